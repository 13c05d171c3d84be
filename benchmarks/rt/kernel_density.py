"""No model at all, the ceiling: a kernel density of reaction times for each coherence and choice.

f(choice, t | c) = P(choice | c) f(t | choice, c), over signed coherences, or with the two
directions taken as one (``mirrored``). Gaussian kernels in log t of width h n^(-1/5) times the
cell's spread, P with half a trial added to each choice, and lapses; h and the share of lapses are
those with the best leave-one-out likelihood of the training folds.
"""

import numpy as np
import scipy
from held_out import LAPSE_DENSITY, scores

WIDTHS = np.geomspace(0.3, 2.0, 12)
LAPSES = (0.002, 0.005, 0.01, 0.02, 0.04)


def kernels(at, points, width, itself):
    """Mean of the kernels on ``points``, in 1/s; with ``itself`` without the point's own."""
    density = np.exp(-0.5 * ((np.log(at[:, None] / points)) / width) ** 2)
    density /= np.sqrt(2 * np.pi) * width * at[:, None]
    if itself:
        np.fill_diagonal(density, 0.0)
    return density.sum(1) / max(len(points) - itself, 1)


def densities(train, test, width):
    """Density (1/s) of choice and time at the trials of ``test``; leave-one-out on ``train``."""
    itself = test is train
    out = np.zeros(len(test))
    places = np.arange(len(test))
    for (coherence, choice), rows in test.groupby(["cell", "side"]):
        same = train[train["cell"] == coherence]
        points = same.loc[same["side"] == choice, "rt"].to_numpy()
        at = places[test.index.isin(rows.index)]
        share = (len(points) - itself + 0.5) / (len(same) - itself + 1.0)
        spread = np.log(points).std() if len(points) > 4 else 0.3
        scale = width * max(len(points), 1) ** -0.2 * max(spread, 0.05)
        if len(points) > itself:
            out[at] = share * kernels(rows["rt"].to_numpy(), points, scale, itself)
    return out


def fit(mirrored):
    def score(train, test):
        train, test = train.copy(), test.copy()
        for frame in (train, test):
            sign = np.where(frame["coherence"] < 0, -1, 1) if mirrored else 1
            frame["cell"] = frame["coherence"] * sign
            frame["side"] = np.where(sign == 1, frame["choice"], 1 - frame["choice"])
        best = max(
            (np.log((1 - lapse) * own + lapse * LAPSE_DENSITY).sum(), width, lapse)
            for width in WIDTHS
            for own in [densities(train, train, width)]
            for lapse in LAPSES
        )
        _, width, lapse = best
        density = (1 - lapse) * densities(train, test, width) + lapse * LAPSE_DENSITY
        return np.log(density), {"width": width, "lapse": lapse}

    return score


if __name__ == "__main__":
    scores("scipy", "kernel-density", scipy.__version__, fit(False))
    scores("scipy", "kernel-density-mirrored", scipy.__version__, fit(True))
