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
from neurodiff.inference.proposals import CENTRES, Cloud, SplitT
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


def spikes(bins):
    rng = np.random.default_rng(0)
    level = rng.normal(0, 2, bins)
    count = (rng.random(bins) < 0.05 + 0.3 / (1 + np.exp(-level))).astype(float)
    return xr.Dataset({"logsnr": ("time", level), "count": ("time", count)})


@pytest.mark.parametrize("law", ["Logistic", "Normal", "GumbelMax", "GumbelMin", "Exponential"])
def test_long_recordings_in_single_precision_differ_by_far_less_than_a_nat(law):
    weighting = nd.SurvivalWeighting(getattr(nd.laws, law)())
    joint = join(nd.Threshold(weighting, nd.observers.Counts(history=3)), spikes(_LONG)).posterior
    assert joint._fits_single
    u = joint.parameters.start() + 0.3 * torch.randn(1, 20, joint.size, generator=toys.generator())
    _, by_unit = joint.draws_terms(u)
    assert by_unit.dtype == torch.float64
    exact = joint.draws_log_prob(u) - torch.vmap(torch.vmap(joint.parameters.log_prior))(u)
    # 5,000 terms of at most 10 nats, each off by 6e-8 of itself at random
    torch.testing.assert_close(by_unit.sum(-1), exact.detach(), atol=3e-3, rtol=0)
    assert not torch.equal(by_unit.sum(-1), exact.detach())


@pytest.mark.parametrize("what", ["choice", "limited", "Poisson"])
def test_what_single_precision_would_spoil_stays_in_double(what):
    """Probabilities within 1e-7 of 0 and 1, and factorials of counts."""
    weighting = nd.SurvivalWeighting(nd.laws.Logistic())
    rng = np.random.default_rng(0)
    level = np.r_[np.full(5, -300.0), rng.normal(0, 4, _LONG)]
    right = np.r_[np.ones(5), (rng.random(_LONG) < 0.5).astype(float)]
    name, observer = "correct", nd.observers.Choice(guess=0.0)
    if what == "Poisson":
        name, observer = "count", nd.observers.Counts(history=0, most=None)
    model = nd.Threshold(weighting, observer)
    if what == "limited":
        model = nd.Limited(weighting, nd.perception.ideal.Binary())
    data = xr.Dataset({"logsnr": ("trial", level), name: ("trial", right)})
    joint = join(model, data).posterior
    u = joint.parameters.start()[None, None]
    exact = joint.draws_log_prob(u) - joint.parameters.log_prior(u[0, 0])
    torch.testing.assert_close(joint.draws_terms(u)[1].sum(-1), exact.detach(), rtol=1e-12, atol=0)


def test_what_is_held_out_may_be_impossible():
    joint = join(toys.model(BOTH), toys.data(6)).posterior
    mask = torch.ones(1, 6)
    mask[0, 2] = 0.0
    by_unit = torch.zeros(1, 2, 6)
    by_unit[0, 0, 2] = -math.inf
    by_unit[0, 1, 3] = -math.inf
    assert joint.with_mask(mask).trained(by_unit).tolist() == [[0.0, -math.inf]]


def test_a_cloud_draws_alike_about_every_centre():
    """Its density is a mixture of equal shares: against quadrature, centres in order."""
    centres = torch.linspace(-3, 3, CENTRES)[None, :, None]
    cloud = Cloud(centres, torch.full((1, 1, 1), 0.05))
    u = cloud.sample(512, toys.generator())
    assert u.shape[1] % CENTRES == 0
    assert u.mean().item() == pytest.approx(0.0, abs=4 * 0.06 / math.sqrt(u.shape[1]))
    grid = torch.linspace(-6, 6, 4001)[None, :, None]
    density = cloud.log_prob(grid)[0].exp()
    assert torch.trapezoid(density, grid[0, :, 0]).item() == pytest.approx(1.0, abs=1e-4)


def test_stretched_points_leave_no_axes_correlated():
    """Weighted to a normal, t₇ in 22 dimensions; by chance alone the worst pair has 0.17."""
    for seed in range(6):
        source, centre = torch.Generator().manual_seed(seed), torch.zeros(1, 22).double()
        eye = torch.eye(22).double()
        proposal = SplitT(centre, eye[None], torch.ones(1, 2, 22).double())
        u = proposal.sample(1000, source)
        share = torch.softmax(-0.5 * u.square().sum(-1) - proposal.log_prob(u), -1)[0]
        apart = (share[:, None] * u[0]).mT @ u[0] - eye
        assert apart.abs().max() < 0.15
