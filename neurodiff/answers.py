r"""The numbers behind the figure of answers with a label: is what is predicted what is answered?

Every pair of a stimulus and a label has a predicted share of the answers. Pairs are gathered by it;
in each bin stands the share that was observed, and the band of what the fit predicts for as many
trials.
"""

import numpy as np
import pandas as pd
import xarray as xr

from neurodiff import summary

_EDGES = np.array([0.0, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 1.0])


def shares(fit: xr.DataTree) -> pd.DataFrame:
    """Observed and predicted shares of the answers, by what was predicted.

    Returns:
        Columns ``predicted, observed, se, n, q05, q25, median, q75, q95``; the standard error is
        over stimuli.

    Raises:
        ValueError: If the fit is not of choices among labels.
    """
    if "choice" not in fit["observed_data"].dataset or "constant_data" not in fit.children:
        raise ValueError("the fit is of no choices among labels: wanted one with --evidence")
    observed = fit["observed_data"].dataset["choice"].values
    drawn = fit["posterior_predictive"].dataset["choice"].values.reshape(-1, len(observed))
    known = np.isfinite(observed)
    observed, drawn = observed[known].astype(int), drawn[:, known].astype(int)
    stimulus = np.unique(fit["constant_data"].dataset["shown"].values[known], return_inverse=True)
    row, labels = stimulus[1], 1 + max(observed.max(), drawn.max())
    trials = np.bincount(row)[:, None]

    def counts(choice: np.ndarray) -> np.ndarray:
        flat = np.bincount(row * labels + choice, minlength=len(trials) * labels)
        return flat.reshape(-1, labels)

    many, own = np.stack([counts(one) for one in drawn]), counts(observed)
    predicted = many.mean(0) / trials
    place = np.clip(np.digitize(predicted, _EDGES) - 1, 0, len(_EDGES) - 2)
    rows = []
    for here in range(len(_EDGES) - 1):
        mask = place == here
        n = (mask * trials).sum()
        if not n:
            continue
        share = (own * mask).sum() / n
        # of a ratio over stimuli
        off = (own * mask).sum(1) - share * (mask * trials).sum(1)
        each = (many * mask).sum((1, 2)) / n
        row_ = {"predicted": float((predicted * trials * mask).sum() / n), "observed": share}
        row_ |= {"se": float(np.sqrt((off**2).sum()) / n), "n": int(n)}
        rows.append(row_ | summary.quantiles(each))
    return pd.DataFrame(rows)
