r"""Pareto-smoothed importance sampling, and leave-one-out by it.

.. math:: \text{elpd}_i = \log \frac{\sum_s r_s\, p(y_i \mid x_s)}{\sum_s r_s}, \qquad
    r_s \propto 1 / p(y_i \mid x_s)

with the largest r smoothed by a generalised Pareto fit, whose shape k̂ says whether to trust it.
Weights that do not vary need no smoothing: k̂ = -inf, where the library's own routine raises.

References:
    Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance sampling".
"""

import contextlib
import math

import numpy as np
from arviz_stats.base.array import array_stats


def smooth(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Smoothed log weights, normalised, and their Pareto k̂.

    Without any weight k̂ is inf.

    >>> smooth(np.zeros(100))[1]
    -inf
    """
    if not len(log_weights):
        return log_weights, math.inf
    k_hat = -math.inf
    if np.ptp(log_weights) > 1e-10:
        k_hat = math.inf  # unless the tail can be fitted: not where one draw fills it
        with contextlib.suppress(ValueError), np.errstate(all="ignore"):
            smoothed, shape = array_stats.psislw(-log_weights)
            if not math.isnan(shape) and not np.isnan(smoothed).any():
                log_weights, k_hat = smoothed, float(shape)
    top = log_weights.max()
    return log_weights - (top + math.log(np.exp(log_weights - top).sum())), k_hat


def leave_one_out(log_likelihood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed elpd and k̂ of each column of (draw, row) log likelihoods.

    A column that does not vary over draws has that value as its elpd, and k̂ = -inf.
    """
    rows = log_likelihood.shape[1]
    elpd, k_hat = np.empty(rows), np.empty(rows)
    for j in range(rows):
        log_w, k_hat[j] = smooth(-log_likelihood[:, j])
        terms = log_w + log_likelihood[:, j]
        elpd[j] = terms.max() + math.log(np.exp(terms - terms.max()).sum())
        # no trial is predicted better without itself: where few draws are distinct the smoothing
        # can say so all the same
        bound = _log_mean(log_likelihood[:, j])
        if not elpd[j] <= bound + 1e-9:
            elpd[j], k_hat[j] = bound, math.inf
    return elpd, k_hat


def _log_mean(values: np.ndarray) -> float:
    top = values.max()
    return float(top + math.log(np.exp(values - top).mean()))
