import numpy as np
import pytest
import torch
import toys
import xarray as xr
from scipy import stats

from neurodiff.inference.fit import modes_of
from neurodiff.inference.groups import Centring, Grouped
from neurodiff.inference.hmc import many_chains, r_hat
from neurodiff.inference.join import join

BOTH = ("weighting.law.loc", "weighting.law.scale")


def run(bound, seed=0, chains=100, wide=1.5, **lengths):
    joint, generator = bound.posterior, toys.generator(seed)
    modes = modes_of(bound, 1, 0)
    noise = torch.randn(1, chains, joint.size, generator=generator)
    start = modes.u[:, None] + wide * noise @ modes.factor.mT
    return many_chains(joint, modes.u, modes.factor, start, generator, **lengths)


def close(own, values, weights, effective):
    """Mean and s.d. within four standard errors of what quadrature gives."""
    mean = (values * weights).sum()
    sd = np.sqrt(((values - mean) ** 2 * weights).sum())
    assert own.mean().item() == pytest.approx(mean, abs=4 * sd / np.sqrt(effective))
    assert own.std().item() == pytest.approx(sd, rel=4 * np.sqrt(1 / effective))


def test_against_quadrature():
    """Forty trials: the mode is a poor guide to where the mass is."""
    data = toys.data(40, seed=3)
    loc, log_scale, weights, _ = toys.grid_both(data)
    chains = run(join(toys.model(BOTH), data))
    assert chains.r_hat.item() < 1.05
    assert 0.6 < chains.accepted.item() < 0.95
    u = chains.u.flatten(1, 2)[0]
    for values, own in ((loc, u[:, 0]), (log_scale, u[:, 1])):
        close(own, values, weights, 500)


def test_a_batch_of_data_sets():
    joint = join(toys.model(), toys.data(80)).posterior
    masks = torch.ones(2, joint.mask.shape[1])
    masks[1, :4] = 0.0
    folds = joint.with_mask(masks)
    generator = toys.generator()
    centre, factor = torch.zeros(2, 1), torch.ones(2, 1, 1)
    start = torch.randn(2, 60, 1, generator=generator)
    chains = many_chains(folds, centre, factor, start, generator, warmup=40)
    assert (chains.r_hat < 1.05).all()
    grid = torch.linspace(-6, 8, 2001)[None, :, None].expand(2, -1, -1)
    log_p = folds.draws_log_prob(grid)
    weights = torch.softmax(log_p, -1).numpy()
    for i in range(2):
        close(chains.u[i].flatten(), grid[i, :, 0].numpy(), weights[i], 400)


class Mean(torch.nn.Module):
    """y ~ N(loc, 1), loc ~ N(0, 2)."""

    requires, response = ("logsnr",), "y"

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(0.0))
        self.priors = {"loc": torch.distributions.Normal(0.0, 2.0)}

    def forward(self, trials):
        loc = self.loc.expand(trials["logsnr"].shape)
        return torch.distributions.Normal(loc, 1.0, validate_args=False)


def people(counts=(40, 2, 10)):
    rng = np.random.default_rng(1)
    subject = np.repeat(np.arange(len(counts)), counts)
    y = rng.normal(np.array([1.0, -0.5, 0.4])[subject], 1.0)
    data = xr.Dataset({"logsnr": ("trial", 0 * y), "y": ("trial", y)})
    return data.assign_coords(subject=("trial", subject)), y, subject


def test_hierarchical_against_quadrature():
    """Given (μ, τ) a subject's mean of n answers is N(μ, τ² + 1/n): two integrals remain."""
    data, y, subject = people()
    bound = join(Mean(), data, by="subject")
    chains = run(bound, warmup=60, draws=40)
    assert chains.r_hat.item() < 1.05
    mean, log_sd = np.meshgrid(np.linspace(-6, 6, 301), np.linspace(-7, 2, 301), indexing="ij")
    tau = np.exp(log_sd)
    log_p = stats.norm(0, 2).logpdf(mean) + stats.halfnorm.logpdf(tau) + log_sd
    n = np.bincount(subject)
    average = np.bincount(subject, y) / n
    for m, a in zip(n, average, strict=True):
        log_p = log_p + stats.norm(mean, np.sqrt(tau**2 + 1 / m)).logpdf(a)
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    u = chains.u.flatten(1, 2)[0]
    close(u[:, 0], mean, weights, 300)
    close(u[:, 1], log_sd, weights, 300)
    own = bound.posterior.parameters.deviations(u)[2][..., 0]
    for s, (m, a) in enumerate(zip(n, average, strict=True)):
        pull = m * tau**2 / (m * tau**2 + 1)
        expected = (weights * (mean + pull * (a - mean))).sum()
        assert own[:, s].mean().item() == pytest.approx(
            expected, abs=4 * own[:, s].std().item() / 17
        )


def test_centring_is_a_change_of_variables():
    bound = join(toys.model(BOTH), toys.data(subjects=3), by="subject")
    modes = modes_of(bound, 1, 0)
    centring = Centring(bound.posterior.parameters, modes.factor)
    assert ((centring.c >= 0) & (centring.c <= 1)).all()
    u = torch.randn(1, 4, bound.posterior.size)
    v = centring.forth(u)
    assert torch.allclose(centring.back(v), u, atol=1e-12)
    for i in range(4):
        jacobian = torch.func.jacrev(lambda x: centring.back(x[None, None])[0, 0])(v[0, i])
        expected = torch.linalg.slogdet(jacobian)[1]
        assert centring.log_det(v)[0, i].item() == pytest.approx(expected.item(), abs=1e-10)


def test_what_the_data_settle_is_centred():
    data, _, _ = people((4000, 1, 1))
    bound = join(Mean(), data, by="subject")
    parameters = bound.posterior.parameters
    assert isinstance(parameters, Grouped)
    precision = -bound.posterior.hessian(torch.zeros(1, 5))
    precision[0, :2] = precision[0, :, :2] = 0.0  # of the population, which is not looked at
    precision[0, :2, :2] = torch.eye(2)
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))
    c = Centring(parameters, factor).c[0, 0, :, 0]
    # precision of z is n τ² + 1, with τ = 1
    assert torch.allclose(c, 1 - 1 / (torch.tensor([4000.0, 1.0, 1.0]) + 1), atol=1e-6)


def test_r_hat_sees_chains_that_have_not_left_their_start():
    u = torch.randn(1, 100, 20, 3, generator=toys.generator())
    assert r_hat(u, 10).item() < 1.02
    stuck = u.clone()
    stuck[:, :10, :, 1] = 4.0
    assert r_hat(stuck, 10).item() > 1.3


def test_a_start_far_out_does_not_hold_the_others_up():
    bound = join(toys.model(BOTH), toys.data())
    modes = modes_of(bound, 1, 0)
    start = modes.u[:, None] + 0.3 * torch.randn(1, 100, 2, generator=toys.generator())
    start[0, 0] = 60.0
    start[0, 1] = torch.nan
    chains = many_chains(bound.posterior, modes.u, modes.factor, start, toys.generator(), 40)
    assert torch.isfinite(chains.u).all()
    assert chains.r_hat.item() < 1.06


def test_the_same_seed_draws_the_same():
    bound = join(toys.model(), toys.data())
    a, b, c = (run(bound, seed, 20, warmup=8, draws=4).u for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_prime_number_of_chains_is_refused():
    with pytest.raises(ValueError, match="got 13 chains"):
        run(join(toys.model(), toys.data()), chains=13)
