import numpy as np
import pytest
import torch
import toys
import xarray as xr
from torch import nn

import neurodiff as nd
from neurodiff.inference.fit import modes_of
from neurodiff.inference.importance import importance_draws
from neurodiff.inference.join import join
from neurodiff.inference.laplace import find_modes

BOTH = ("weighting.law.loc", "weighting.law.scale")


class Mean(nn.Module):
    """y ~ N(loc, 1) with loc ~ N(0, 2): everything is known in closed form."""

    requires, response = ("logsnr",), "y"

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))
        self.priors = {"loc": torch.distributions.Normal(0.0, 2.0)}

    def forward(self, trials):
        loc = self.loc.expand(trials["logsnr"].shape)
        return torch.distributions.Normal(loc, 1.0, validate_args=False)


def normal_data(n=12):
    y = np.random.default_rng(0).normal(1.0, 1.0, n)
    return xr.Dataset({"logsnr": ("trial", np.zeros(n)), "y": ("trial", y)})


def solve(model, data, draws=2000, seed=0):
    bound = join(model, data)
    modes = modes_of(bound, 2, 0)
    return modes, importance_draws(bound.posterior, modes, 2 * draws, toys.generator(seed))


def equal(draws, n=2000):
    """Draws of equal weight, of one problem."""
    return draws.resample(n, toys.generator())[0]


def test_conjugate_normal_is_exact():
    data = normal_data()
    y = data["y"].values
    variance = 1 / (len(y) + 1 / 4)
    modes, draws = solve(Mean(), data)
    assert modes.u.item() == pytest.approx(variance * y.sum(), abs=1e-6)
    assert modes.factor.item() ** 2 == pytest.approx(variance, rel=1e-9)
    assert modes.definite.all()
    covariance = np.eye(len(y)) + 4.0
    evidence = toys.stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)
    # the proposals are wider than this posterior: their weights scatter the evidence a little
    assert draws.log_evidence.item() == pytest.approx(evidence, abs=4 * 0.5 / np.sqrt(4000))
    se = np.sqrt(variance / draws.ess.item())
    assert equal(draws).mean().item() == pytest.approx(variance * y.sum(), abs=4 * se)
    assert equal(draws).std().item() == pytest.approx(np.sqrt(variance), rel=0.06)


def test_mode_has_no_gradient():
    bound = join(toys.model(BOTH), toys.data())
    modes = modes_of(bound, 1, 0)
    u = modes.u.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(bound.posterior.log_prob(u).sum(), u)
    assert modes.gradient.item() == pytest.approx(gradient.abs().max().item(), rel=1e-3, abs=1e-9)
    decrement = gradient[0] @ modes.factor[0] @ modes.factor[0].T @ gradient[0]
    assert decrement < 1e-5
    assert modes.converged.all()


def test_one_parameter_against_quadrature():
    data = toys.data()
    loc, weights, evidence = toys.grid_loc(data)
    _, draws = solve(toys.model(), data)
    u = equal(draws)[:, 0].numpy()
    n = draws.ess.item()
    assert n > 1000
    assert draws.log_evidence.item() == pytest.approx(evidence, abs=0.05)
    mean = (loc * weights).sum()
    sd = np.sqrt(((loc - mean) ** 2 * weights).sum())
    assert u.mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(n))
    for q in (0.05, 0.5, 0.95):
        share = weights[loc < np.quantile(u, q)].sum()
        assert share == pytest.approx(q, abs=4 * np.sqrt(q * (1 - q) / n))


def test_two_parameters_with_few_trials_against_quadrature():
    """Forty trials leave the posterior far from normal; importance weights put that right."""
    data = toys.data(40, seed=3)
    loc, log_scale, weights, evidence = toys.grid_both(data, 601)
    _, draws = solve(toys.model(BOTH), data, draws=4000)
    u = equal(draws, 4000)
    n = len(u) / 4  # the few draws in a tail carry the larger weights
    assert draws.k_hat.item() < 0.7
    assert draws.log_evidence.item() == pytest.approx(evidence, abs=0.1)
    for values, own in ((loc, u[:, 0]), (log_scale, u[:, 1])):
        for q in (0.05, 0.5, 0.95):
            share = weights[values < np.quantile(own.numpy(), q)].sum()
            assert share == pytest.approx(q, abs=4 * np.sqrt(q * (1 - q) / n))


class Flat(nn.Module):
    """Two parameters of which only the sum is seen; their priors say nothing."""

    requires, response = ("logsnr",), "y"

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.tensor(0.1))
        wide = torch.distributions.Normal(0.0, 1e9)
        self.priors = {"a": wide, "b": wide}

    def forward(self, trials):
        loc = (self.a + self.b).expand(trials["logsnr"].shape)
        return torch.distributions.Normal(loc, 1.0, validate_args=False)


def test_a_hessian_that_is_not_definite_is_reported():
    modes = modes_of(join(Flat(), normal_data()), 1, 0)
    assert not modes.definite.any()
    assert torch.isfinite(modes.factor).all()
    good = modes_of(join(Mean(), normal_data()), 1, 0)
    assert good.definite.all()


def test_a_step_is_found_from_a_start_near_it():
    """Beyond what the spikes tell apart nothing leads a step back: no spike depends on it."""
    data = toys.needs("grasshopper-receptor/2")
    law = nd.SurvivalWeighting(nd.laws.Logistic(scale=0.05))
    law.law.scale.requires_grad_(False)
    bound = join(nd.Threshold(law, nd.observers.Counts()), data)
    assert bound.place.nonzero().tolist() == [[0]]  # the law's; nothing else has one
    one, three = modes_of(bound, 1, 0), modes_of(bound, 3, 0)
    assert one.log_prob.item() < three.log_prob.item() - 50


def test_several_starts_find_the_better_mode():
    class Two(Mean):
        def forward(self, trials):
            loc = ((self.loc - 1.0) ** 2 * (self.loc + 3.0) / 3).expand(trials["logsnr"].shape)
            return torch.distributions.Normal(loc, 0.05, validate_args=False)

    model = Two()
    model.loc.data.fill_(2.0)
    data = normal_data()
    data["y"][:] = 4.0
    bound = join(model, data)
    one, many = modes_of(bound, 1, 0), modes_of(bound, 24, 0)
    assert many.log_prob.item() >= one.log_prob.item() - 1e-6


def test_folds_start_where_the_full_fit_ended():
    bound = join(toys.model(BOTH), toys.data(400))
    full = modes_of(bound, 1, 0)
    mask = torch.ones(2, bound.posterior.mask.shape[1])
    mask[0, ::2], mask[1, 1::2] = 0.0, 0.0
    inverse = (full.factor @ full.factor.mT).expand(2, -1, -1)
    warm = find_modes(bound.posterior.with_mask(mask), full.u.expand(2, -1), inverse)
    cold = find_modes(bound.posterior.with_mask(mask), torch.zeros(2, 2))
    assert torch.allclose(warm.u, cold.u, atol=5e-3)
    assert torch.allclose(warm.log_prob, cold.log_prob, atol=1e-5)


def test_the_same_seed_draws_the_same():
    bound = join(toys.model(BOTH), toys.data())
    modes = modes_of(bound, 1, 0)
    a, b, c = (
        importance_draws(bound.posterior, modes, 50, toys.generator(seed)).u for seed in (1, 1, 2)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_weights_sum_to_one_and_so_do_those_of_the_resampled():
    _, draws = solve(toys.model(BOTH), toys.data(40, seed=3))
    assert draws.log_w.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert 1 < draws.ess.item() <= draws.u.shape[1]
    by_weight = (draws.log_w.exp()[..., None] * draws.u).sum(1)[0]
    # systematic resampling: far closer to the weighted mean than independent draws would be
    sd = equal(draws).std(0)
    assert ((equal(draws).mean(0) - by_weight).abs() < 2 * sd / np.sqrt(2000)).all()
