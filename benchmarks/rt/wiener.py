"""Constant bounds by maximum likelihood: the first-passage density of a Wiener process.

dX = (k c + v0) dt + dB between ±a from X = z a. With A = 2a, w = (1 + z)/2 and s = t/A² the density
at the lower bound is  exp(-v w A - v² t/2)/A² f(s; w),  f the small-time sum of
(w + 2j) exp(-(w + 2j)²/2s)/sqrt(2π s³)  or the large-time sum of  π j exp(-(jπ)² s/2) sin(jπw)
(Navarro & Fuss 2009); the upper bound is the lower one of -v and 1 - w. Numpy alone, derivatives by
the complex step: an oracle that shares nothing with the package.
"""

import numpy as np
import scipy
from held_out import LAPSE, LAPSE_DENSITY, scores
from scipy.optimize import minimize

STARTS = {"k": 10.0, "height": np.log(0.8), "delay": 0.0, "v0": 0.0, "start": 0.0}
MODELS = {"wiener": ("k", "height", "delay"), "wiener-biased": tuple(STARTS)}


def log_density(choice, time, drift, height, start=0.0):
    """Log first-passage density (1/s) at the chosen bound; -inf where no time is left."""
    side = np.where(choice == 1, 1.0, -1.0)
    width, w, v = 2 * height, (1 - side * start) / 2, -side * drift
    passed = np.real(time) > 0
    t = np.where(passed, time, 1.0)
    s = t / width**2
    early = np.real(s) < 0.5
    small, large = np.where(early, s, 0.5), np.where(early, 0.5, s)
    few, many = 0.0, 0.0
    for j in range(-4, 5):  # without its largest factor, whose logarithm is known
        few = few + (w + 2 * j) * np.exp(-2 * j * (w + j) / small)
    for j in range(1, 6):
        many = many + np.pi * j * np.exp(-((j * np.pi) ** 2) * large / 2) * np.sin(j * np.pi * w)
    at_early = np.log(few) - w**2 / (2 * small) - 0.5 * np.log(2 * np.pi * small**3)
    log_f = np.where(early, at_early, np.log(many))
    return np.where(passed, -v * w * width - v**2 * t / 2 - 2 * np.log(width) + log_f, -np.inf)


def trial_scores(frame, k, height, delay, v0=0.0, start=0.0, lapse=LAPSE):
    """Log density of each trial's choice and reaction time, lapses mixed in."""
    drift = k * frame["coherence"].to_numpy() + v0
    time = frame["rt"].to_numpy() - delay
    decided = log_density(frame["choice"].to_numpy(), time, drift, height, start)
    return np.log((1 - lapse) * np.exp(decided) + lapse * LAPSE_DENSITY) if lapse else decided


def fit(frame, names, lapse=LAPSE):
    """Maximum likelihood: parameters, the log likelihood, and the largest slope left at it."""
    # no delay beyond the fastest trial where nothing lapses, beyond 0.6 s where some do
    longest = 0.6 if lapse else frame["rt"].min()

    def natural(u):
        value = dict(zip(names, u, strict=True))
        value["height"] = np.exp(value["height"])
        value["delay"] = longest / (1 + np.exp(-value["delay"]))
        if "start" in value:
            value["start"] = np.tanh(value["start"])
        return value

    def loss(u):
        return -trial_scores(frame, **natural(u), lapse=lapse).sum()

    def slope(u):
        steps = u + 1e-30j * np.eye(len(u))
        return np.array([np.imag(loss(step)) / 1e-30 for step in steps])

    u = np.array([STARTS[name] for name in names])
    u = minimize(loss, u, jac=slope, method="BFGS", options={"gtol": 1e-3}).x
    for _ in range(20):
        if np.abs(slope(u)).max() < 1e-6:
            break
        curve = np.array([(slope(u + h) - slope(u - h)) / 2e-5 for h in 1e-5 * np.eye(len(u))])
        u = u - np.linalg.solve(curve, slope(u))
    return natural(u), -loss(u), np.abs(slope(u)).max()


def held_out(names):
    def score(train, test):
        parameters, _, _ = fit(train, names)
        return trial_scores(test, **parameters), parameters

    return score


if __name__ == "__main__":
    for model, names in MODELS.items():
        scores("scipy", model, scipy.__version__, held_out(names))
