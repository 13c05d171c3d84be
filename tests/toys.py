"""Small problems whose posteriors are known by quadrature."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import special, stats

import neurodiff as nd
from neurodiff.data.schema import DataError

LEVELS = np.linspace(-3.0, 4.0, 8)
PRIOR = stats.norm(0.0, 5.0)  # of loc, the default: about torch's median of the levels
SCALE_PRIOR = stats.lognorm(1.0)


def needs(name):
    """A data set, or no test."""
    try:
        return nd.load(name)
    except DataError as error:
        pytest.skip(f"data set: {error}")


def model(free=("weighting.law.loc",), guess=0.25):
    """A logistic threshold whose parameters are fixed but for those named."""
    m = nd.Threshold(nd.SurvivalWeighting(nd.laws.Logistic()), nd.observers.Choice(guess=guess))
    m.observer.ceiling.data.fill_(0.95)
    m.observer.lapse.data.fill_(0.02)
    for name, parameter in m.named_parameters():
        parameter.requires_grad_(name in free)
    return m


def probability(loc, scale=1.0, logsnr=LEVELS, guess=0.25):
    """P(correct), by hand."""
    drive = special.expit((logsnr - np.asarray(loc)[..., None]) / np.asarray(scale)[..., None])
    return 0.02 * guess + 0.98 * (guess + (0.95 - guess) * drive)


def data(trials=160, seed=0, loc=0.8, scale=1.3, subjects=None):
    """Answers of an observer, every level equally often."""
    rng = np.random.default_rng(seed)
    logsnr = np.resize(LEVELS, trials)
    own = (
        np.zeros(trials)
        if subjects is None
        else rng.normal(0, 1, subjects)[rng.integers(0, subjects, trials)]
    )
    correct = (rng.random(trials) < probability(loc + own, scale, logsnr[:, None])[:, 0]).astype(
        float
    )
    out = xr.Dataset({"logsnr": ("trial", logsnr), "correct": ("trial", correct)})
    if subjects is not None:
        names = np.unique(own, return_inverse=True)[1]
        out = out.assign_coords(subject=("trial", np.array([f"s{i}" for i in names])))
    return out


def log_likelihood(d, loc, scale=1.0):
    """(…, trial) at arrays of parameters, by hand; a missing answer is 0."""
    p = probability(loc, scale, d["logsnr"].values)
    y = d["correct"].values
    return np.where(np.isnan(y), 0.0, np.log(np.where(np.nan_to_num(y) > 0.5, p, 1 - p)))


def grid_loc(d, n=4001):
    """loc, its normalised posterior weights, and the log evidence, by quadrature over loc alone."""
    loc = np.linspace(-6, 8, n)
    log_p = PRIOR.logpdf(loc) + log_likelihood(d, loc).sum(-1)
    weights = np.exp(log_p - log_p.max())
    evidence = np.log(weights.sum() * (loc[1] - loc[0])) + log_p.max()
    return loc, weights / weights.sum(), evidence


def grid_both(d, n=141):
    """(loc, log scale) grids, posterior weights and log evidence, by quadrature over both."""
    loc, log_scale = np.meshgrid(np.linspace(-6, 6, n), np.linspace(-3.5, 2.5, n), indexing="ij")
    prior = PRIOR.logpdf(loc) + stats.norm(0, 1).logpdf(log_scale)
    log_p = prior + log_likelihood(d, loc, np.exp(log_scale)).sum(-1)
    weights = np.exp(log_p - log_p.max())
    cell = (loc[1, 0] - loc[0, 0]) * (log_scale[0, 1] - log_scale[0, 0])
    return loc, log_scale, weights / weights.sum(), np.log(weights.sum() * cell) + log_p.max()


def quantile(values, weights, q):
    """Weighted quantiles."""
    order = np.argsort(values.ravel())
    return np.interp(q, np.cumsum(weights.ravel()[order]), values.ravel()[order])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)
