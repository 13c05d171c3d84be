from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import toys
import xarray as xr

import neurodiff as nd

BOTH = ("weighting.law.loc", "weighting.law.scale")
METHODS = {
    "laplace": nd.Laplace(draws=60, starts=1),
    "svi": nd.SVI(draws=60, steps=12, particles=2),
    "nuts": nd.NUTS(draws=20, warmup=20, chains=2),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_fit(name):
    data = toys.data(subjects=2)
    a, b, c = (nd.fit(toys.model(), data, METHODS[name], seed=seed) for seed in (3, 3, 4))
    for group in ("posterior", "posterior_predictive", "prior"):
        xr.testing.assert_identical(a[group].dataset, b[group].dataset)
    assert not a["posterior"].dataset.identical(c["posterior"].dataset)


@pytest.mark.parametrize("name", METHODS)
def test_hierarchical_fits_run(name):
    data = toys.data(subjects=2)
    method = METHODS[name] if name != "nuts" else nd.NUTS(draws=6, warmup=10, chains=1)
    fit = nd.fit(toys.model(), data, method, by="subject", seed=0)
    loc = fit["posterior"]["weighting.law.loc"]
    assert loc.sizes["subject"] == 2
    assert np.isfinite(loc.values).all()


def test_random_state_threads_and_precision_are_left_alone():
    torch.set_default_dtype(torch.float32)
    try:
        torch.manual_seed(7)
        wanted = torch.rand(3)
        torch.manual_seed(7)
        model = toys.model(BOTH)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        fit = nd.fit(model, toys.data(), nd.Laplace(draws=20, starts=1), seed=0)
        assert torch.get_default_dtype() == torch.float32
        assert torch.equal(torch.rand(3), wanted)
        assert fit["posterior"]["weighting.law.loc"].dtype == np.float64
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[key])
    finally:
        torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("name", METHODS)
def test_single_precision_modules_are_fitted_in_double(name):
    torch.set_default_dtype(torch.float32)
    try:
        law = nd.laws.PiecewiseLinear([-4.0, 0.0, 4.0])
        model = nd.Threshold(nd.SurvivalWeighting(law), nd.observers.Choice(guess=0.25))
        fit = nd.fit(model, toys.data(), METHODS[name], seed=0)
    finally:
        torch.set_default_dtype(torch.float64)
    again = nd.Threshold(
        nd.SurvivalWeighting(nd.laws.PiecewiseLinear([-4.0, 0.0, 4.0])),
        nd.observers.Choice(guess=0.25),
    )
    other = nd.fit(again, toys.data(), METHODS[name], seed=0)
    a, b = (f["posterior"]["weighting.law.logits"].values.mean() for f in (fit, other))
    assert a == pytest.approx(b, abs=0.05)


def test_priors_can_be_replaced():
    tight = torch.distributions.Normal(-2.0, 0.01)
    fit = nd.fit(
        toys.model(), toys.data(), nd.Laplace(draws=50), priors={"weighting.law.loc": tight}, seed=0
    )
    assert fit["posterior"]["weighting.law.loc"].mean() == pytest.approx(-2.0, abs=0.02)
    with pytest.raises(ValueError, match=r"did you mean 'weighting.law.loc'"):
        nd.fit(toys.model(), toys.data(), priors={"weighting.law.locc": tight}, seed=0)


@pytest.mark.slow
def test_chains_run_in_other_processes():
    """With the same draws as in this one."""
    data, method = toys.data(), nd.NUTS(draws=15, warmup=15, chains=2)
    model = toys.model(BOTH)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        there = nd.fit(model, data, method, seed=0, executor=executor)
    here = nd.fit(model, data, method, seed=0)
    xr.testing.assert_allclose(there["posterior"].dataset, here["posterior"].dataset)
