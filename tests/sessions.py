"""Small sessions of a two-choice observer, each with levels of its own and answers missing."""

import numpy as np
import xarray as xr


def session(seed, trials=60, name=None, blank=0.05):
    """Answers of an observer whose law is logistic, about a place that differs from day to day."""
    rng = np.random.default_rng(seed)
    logsnr = np.round(rng.normal(0, 2) + rng.choice([-4.0, -2.0, -1.0, 1.0, 2.0, 4.0], trials), 3)
    p = 0.5 + 0.45 / (1 + np.exp(-(logsnr - logsnr.mean())))
    correct = np.where(rng.random(trials) < blank, np.nan, rng.random(trials) < p)
    return xr.Dataset(
        {"logsnr": ("trial", logsnr), "correct": ("trial", correct)},
        attrs={"name": name or f"session{seed:02d}"},
    )
