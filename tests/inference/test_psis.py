import math

import numpy as np
import pytest
import toys
import xarray as xr

from neurodiff.inference.psis import leave_one_out, smooth


def test_constant_log_likelihoods_need_no_smoothing():
    """Where arviz_stats.loo raises."""
    elpd, k_hat = leave_one_out(np.full((200, 3), -0.7))
    assert elpd == pytest.approx(-0.7)
    assert (k_hat == -math.inf).all()


def test_weights_are_normalised_and_heavy_tails_are_seen():
    rng = np.random.default_rng(0)
    light = rng.normal(size=4000) * 0.1
    heavy = rng.exponential(size=4000) * 1.2  # weights e^x have a Pareto tail of shape 1.2
    for log_weights in (light, heavy):
        smoothed, _ = smooth(log_weights)
        assert np.exp(smoothed).sum() == pytest.approx(1.0)
    assert smooth(light)[1] < 0.3
    assert smooth(heavy)[1] == pytest.approx(1.2, abs=0.25)


def test_repeated_draws_are_beyond_repair_not_an_error():
    repeated = np.r_[np.zeros(500), np.full(500, 50.0)]
    assert smooth(repeated)[1] in (math.inf, -math.inf) or smooth(repeated)[1] > 0.7


def test_as_arviz_where_it_works():
    import arviz_stats

    rng = np.random.default_rng(1)
    loc = rng.normal(0.8, 0.3, 1000)
    data = toys.data(50)
    log_lik = toys.log_likelihood(data, loc)
    elpd, k_hat = leave_one_out(log_lik)
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({"loc": (("chain", "draw"), loc[None])}),
            "log_likelihood": xr.Dataset({"y": (("chain", "draw", "trial"), log_lik[None])}),
        }
    )
    theirs = arviz_stats.loo(tree, pointwise=True, reff=1.0)
    assert elpd == pytest.approx(theirs.elpd_i.values, abs=1e-10)
    assert k_hat == pytest.approx(theirs.pareto_k.values, abs=1e-10)


def test_leave_one_out_is_what_quadrature_says():
    data = toys.data(60)
    loc, weights, _ = toys.grid_loc(data)
    draws = toys.quantile(loc, weights, (np.arange(4000) + 0.5) / 4000)
    elpd, _ = leave_one_out(toys.log_likelihood(data, draws))
    each = toys.log_likelihood(data, loc)
    log_w = np.log(weights + 1e-300)
    for i in range(0, 60, 7):
        without = np.exp(log_w - each[:, i])
        exact = np.log((without * np.exp(each[:, i])).sum() / without.sum())
        assert elpd[i] == pytest.approx(exact, abs=1e-3)
