"""Posterior draws where importance weights fail and chains take over."""

import math

import numpy as np
import pytest
import torch
import toys
import xarray as xr

import neurodiff as nd
from neurodiff.inference import draws as module
from neurodiff.inference.draws import posterior_draws
from neurodiff.inference.fit import modes_of
from neurodiff.inference.join import join
from neurodiff.inference.posterior import _LONG
from neurodiff.perception.frontend import InternalNoise

BOTH = ("weighting.law.loc", "weighting.law.scale")


def test_chains_take_over_for_the_problems_whose_weights_fail(monkeypatch):
    data = toys.data(40, seed=3)
    loc, log_scale, weights, _ = toys.grid_both(data, 301)
    bound = join(toys.model(BOTH), data)
    two = bound.posterior.with_mask(bound.posterior.mask.expand(2, -1))
    modes = modes_of(bound, 1, 0)
    modes = type(modes)(**{k: v.expand(2, *v.shape[1:]) for k, v in vars(modes).items()})
    true = module.importance_draws

    def hopeless(*args):
        found = true(*args)
        found.k_hat[1] = 0.9
        found.log_w[1] = -math.inf
        found.log_w[1, 0] = 0.0
        return found

    monkeypatch.setattr(module, "importance_draws", hopeless)
    found = posterior_draws(two, modes, 4000, toys.generator())
    assert found.k_hat[0] < 0.7
    assert found.k_hat[1] == -math.inf
    torch.testing.assert_close(found.log_w.exp().sum(-1), torch.ones(2))
    u = found.resample(2000, toys.generator())
    for own in u:
        for values, one in ((loc, own[:, 0]), (log_scale, own[:, 1])):
            mean = (values * weights).sum()
            sd = np.sqrt(((values - mean) ** 2 * weights).sum())
            assert one.mean().item() == pytest.approx(mean, abs=4 * sd / np.sqrt(500))
    # what stands beside a draw is that draw's
    again = two.draws_terms(found.u[:, :50])[1]
    torch.testing.assert_close(found.by_unit[:, :50], again)


def test_a_curved_ridge_leaves_many_distinct_draws():
    """One person with internal noise: weights alone left two to a hundred of a thousand."""
    rng = np.random.default_rng(2)
    level = np.repeat(np.linspace(-5, 2, 8), 40)
    seen = -np.logaddexp(-level, 0.5)  # internal noise at logsnr -0.5
    p = 1 / 16 + (0.93 - 1 / 16) / (1 + np.exp(-2 * (seen + 1.5)))
    right = (rng.random(len(p)) < p).astype(float)
    data = xr.Dataset({"logsnr": ("trial", level), "correct": ("trial", right)})
    law = nd.SurvivalWeighting(nd.laws.Logistic())
    model = nd.Threshold(law, nd.observers.Choice(choices=16), InternalNoise())
    bound = join(model, data)
    modes = modes_of(bound, 4, 0)
    found = posterior_draws(bound.posterior, modes, 1000, toys.generator())
    assert found.k_hat.item() < 0.7
    assert found.ess.item() > 200


def test_long_designs_in_single_precision_differ_by_far_less_than_a_nat():
    """Their rows are as many as a recording's bins; the oracle is double precision."""
    data = toys.data(_LONG)
    data = data.assign(logsnr=data["logsnr"] + 1e-6 * np.arange(_LONG))  # all rows distinct
    joint = join(toys.model(BOTH), data).posterior
    assert joint.response.shape == (_LONG,)
    u = 0.3 * torch.randn(1, 20, 2, generator=toys.generator())
    _, by_unit = joint.draws_terms(u)
    assert by_unit.dtype == torch.float64
    exact = joint.draws_log_prob(u) - torch.vmap(torch.vmap(joint.parameters.log_prior))(u)
    # 5,000 terms of at most 10 nats, each off by 6e-8 of itself at random
    torch.testing.assert_close(by_unit.sum(-1), exact.detach(), atol=3e-3, rtol=0)
    assert not torch.equal(by_unit.sum(-1), exact.detach())
