"""Errors, information, log p(x), ELBO and bits a dimension against closed forms."""

import math

import numpy as np
import pytest
import torch
from contracts_denoiser import error_1d, information_1d, within
from scipy import integrate, stats
from torch import nn

from neurodiff.diffusion import likelihood
from neurodiff.diffusion.denoiser import NetworkDenoiser
from neurodiff.diffusion.likelihood import (
    Estimate,
    bits_per_dim,
    denoising_error,
    elbo,
    flat_decoder,
    information,
    level_decoder,
    log_prob,
    prior_kl,
)
from neurodiff.diffusion.prior import Binary, Gaussian, GaussianMixture, PowerLaw

GRID = torch.linspace(-6.0, 6.0, 13)
COVARIANCE = torch.tensor([[2.0, 0.6, 0.0], [0.6, 0.5, -0.1], [0.0, -0.1, 1.0]])
MEAN = torch.tensor([0.5, -1.0, 0.0])


def mixture():
    covariances = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.5, -0.3], [-0.3, 1.0]]])
    means = torch.tensor([[-1.0, 0.5], [1.5, 0.0]])
    return GaussianMixture(torch.tensor([1.0, 2.0]), means, covariances)


def narrow():
    means = torch.tensor([[-1.0], [1.0]])
    return GaussianMixture(torch.tensor([0.25, 0.75]), means, torch.tensor([[0.1], [0.4]]))


def close(estimate, exact, errors=4.5, slack=1e-12):
    """Whether every value is right to this many of its standard errors."""
    return bool(((estimate.value - exact).abs() <= errors * estimate.se + slack).all())


def gaussian_curves(x, grid):
    """L and m of N(MEAN, COVARIANCE) at x, summed over the principal axes (formulas §4)."""
    variance, axes = torch.linalg.eigh(COVARIANCE)
    off, snr = ((x - MEAN) @ axes).square()[:, None], grid.exp()[:, None]
    gain = 1 + variance * snr
    L = 0.5 * (gain.log() + (1 + snr * off) / gain - 1)
    m = (snr * off + snr.square() * variance.square()) / gain.square()
    return L.sum(-1), m.sum(-1)


def test_gaussian_curves():
    prior, x = Gaussian(MEAN, COVARIANCE), torch.tensor([[1.0, 0.2, -0.7], [3.0, -2.0, 0.0]])
    L, m = gaussian_curves(x, GRID)
    error, gained = (
        denoising_error(prior, x, GRID, pairs=500),
        information(prior, x, GRID, pairs=40),
    )
    assert error.value.shape == gained.se.shape == (2, 13)
    assert close(error, m)
    assert close(gained, L)
    assert (gained.se[:, -1] < 0.05 * L[:, -1]).all()


def test_matched_gaussian_mean_information():
    """E_x L = ½ Σ log(1 + v E) over the spectrum."""
    prior = PowerLaw((4, 4), variance=2.0)
    gained = information(prior, prior.sample(4_000), GRID, pairs=2)
    exact = 0.5 * (1 + prior.spectrum.flatten() * GRID.exp()[:, None]).log().sum(-1)
    se = gained.value.std(0) / math.sqrt(4_000)
    assert ((gained.value.mean(0) - exact).abs() <= 4.5 * se).all()


@pytest.mark.parametrize("make", [narrow, Binary])
def test_curves_by_quadrature(make):
    prior = make()
    x, grid = torch.full((1, *prior.event), 1.0), GRID[:9]  # beyond, rare draws carry the mean
    error = denoising_error(prior, x, grid, pairs=4_000)
    gained = information(prior, x, grid, pairs=1_000)
    assert close(error, error_1d(prior, 1.0, grid))
    assert close(gained, information_1d(prior, 1.0, grid))


def test_standard_errors_are_calibrated():
    """Over 4,000 repetitions: no bias, and the mean se² is the variance that is seen."""
    prior, x = Gaussian(MEAN, COVARIANCE), torch.tensor([[1.0, 0.2, -0.7]])
    grid, many = torch.tensor([-1.0, 2.0]), x.expand(4_000, 3)
    L, m = gaussian_curves(x, grid)
    for route, exact in ((denoising_error, m), (information, L)):
        value, se = route(prior, many, grid, pairs=4)
        assert within(value - exact)
        seen = (value - value.mean(0)).square()
        assert within(seen - se.square())


def test_noise_comes_in_pairs():
    """What is odd in ε cancels: x̂ = 0 + c z errs by |(1 − c α) x|² + (c σ ε)² a pair, at any x."""
    unit, x = Gaussian(torch.zeros(1), torch.ones(1)), torch.tensor([[0.0], [100.0]])
    first = denoising_error(unit, x[:1], GRID, generator=torch.Generator().manual_seed(0)).se
    far = denoising_error(unit, x[1:], GRID, generator=torch.Generator().manual_seed(0)).se
    assert torch.allclose(first, far, rtol=1e-8)


@pytest.mark.parametrize("grid", [[-12.0, 1.5, 7.0], [3.0], [-3.0, -2.9, 9.0]])
def test_the_rule_integrates_from_minus_infinity(grid):
    """For N(0, 1) the average of m is sig(λ), and its integral softplus, at any grid."""
    grid = torch.tensor(grid)
    nodes, weights, owner = likelihood._rule(grid)
    parts = torch.zeros(len(grid)).index_add(0, owner, weights * nodes.sigmoid()).cumsum(0)
    assert (parts - torch.nn.functional.softplus(grid)).abs().max() <= 1e-7


def test_information_is_the_same_on_a_coarse_grid():
    prior, x = narrow(), torch.tensor([[0.3]])
    fine = information(prior, x, torch.linspace(-7.0, 3.0, 41), pairs=400)
    coarse = information(prior, x, torch.tensor([3.0]), pairs=400)
    gap = fine.value[:, -1] - coarse.value[:, -1]
    assert gap.abs() <= 4 * torch.hypot(fine.se[:, -1], coarse.se[:, -1])


def test_itd_in_both_forms():
    """−log p = (d/2) log 2πe − ½∫[sig − m] dλ = −log N − ½∫[m_ref − m] dλ, by quadrature."""
    prior, level = narrow(), torch.linspace(-16.0, 16.0, 321)
    reference = Gaussian(torch.zeros(1), torch.ones(1))
    for x in (-1.2, 0.3, 2.0):
        there = torch.tensor([[x]])
        exact = float(prior.log_prob(there, torch.tensor(torch.inf)))
        m = error_1d(prior, x, level)
        for base, m_ref in (
            (-0.5 * math.log(2 * math.pi * math.e), level.sigmoid()),
            (stats.norm.logpdf(x), error_1d(reference, x, level)),
        ):
            gain = integrate.simpson((m_ref - m).numpy(), x=level.numpy())
            assert abs(base + 0.5 * gain - exact) <= 1e-5


def test_log_prob_of_a_gaussian():
    prior, x = Gaussian(MEAN, COVARIANCE), torch.tensor([[1.0, 0.2, -0.7], [3.0, -2.0, 0.0]])
    exact = prior.log_prob(x, torch.tensor(torch.inf))
    density = stats.multivariate_normal(MEAN.numpy(), COVARIANCE.numpy())
    assert np.allclose(exact, density.logpdf(x), rtol=1e-12)
    assert close(log_prob(prior, x, pairs=200), exact, slack=1e-4)
    itself = log_prob(prior, x, reference=prior, pairs=2)
    assert (itself.value - exact).abs().max() <= 1e-12
    assert itself.se.abs().max() <= 1e-12


def test_log_prob_of_a_mixture():
    prior = mixture()
    x = torch.tensor([[-1.0, 0.5], [1.5, 0.0], [0.3, 0.1], [3.0, -1.5]])
    exact = prior.log_prob(x, torch.tensor(torch.inf))
    many = prior.sample(20_000)
    near = Gaussian(many.mean(0), many.T.cov())
    for reference in (None, near):
        estimate = log_prob(prior, x, reference=reference, pairs=1_000)
        assert close(estimate, exact, slack=1e-4)  # beyond λ = 14: e^−14 of the curvature
        assert estimate.se.max() <= 0.1
    common, plain = (log_prob(prior, x, reference=r, pairs=400).se for r in (near, None))
    assert common.mean() < plain.mean()


def test_prior_kl():
    x = torch.randn(3, 2, 2)
    for level in (-12.0, -3.0, 0.0, 4.0):
        alpha2, sigma2 = 1 / (1 + math.exp(-level)), 1 / (1 + math.exp(level))
        q = torch.distributions.Normal(math.sqrt(alpha2) * x, math.sqrt(sigma2))
        p = torch.distributions.Normal(torch.zeros_like(x), 1.0)
        exact = torch.distributions.kl_divergence(q, p).sum((1, 2))
        assert ((prior_kl(x, level) - exact) / exact).abs().max() <= 1e-8


def test_elbo_with_a_flat_decoder_is_the_density():
    """Up to the noise at logsnr_max: tight where p is flat on that scale."""
    prior = mixture()
    x = torch.tensor([[-1.0, 0.5], [1.5, 0.0], [0.3, 0.1]])
    exact = prior.log_prob(x, torch.tensor(torch.inf))
    bound = elbo(prior, x, decoder=flat_decoder, pairs=1_000)
    assert close(bound, exact, slack=1e-4)
    # coarser: the same numbers by the parts of the definition
    ends = torch.tensor([-1.0, 4.0])
    middle = torch.stack([information_1d(narrow(), v, ends) for v in (-1.0, 0.4)])
    x = torch.tensor([[-1.0], [0.4]])
    parts = (
        prior_kl(x, -1.0) + middle[:, 1] - middle[:, 0] + 0.5 * (math.log(2 * math.pi * math.e) - 4)
    )
    bound = elbo(narrow(), x, decoder=flat_decoder, logsnr_min=-1.0, logsnr_max=4.0, pairs=2_000)
    assert close(bound, -parts)


def test_elbo_of_levels_is_their_entropy():
    """Exact denoiser of an 8-bit source: −ELBO = −log P(x), within 3e-4 bits at λmax = 13.3."""
    weights = torch.tensor([0.1, 0.4, 0.2, 0.3])
    levels = (2 * torch.tensor([[100.0], [101.0], [104.0], [180.0]]) + 1) / 256 - 1
    source = GaussianMixture(weights, levels, torch.zeros(4, 1))
    many = levels.repeat_interleave(60, 0)
    bound = elbo(source, many, decoder=level_decoder, pairs=50)
    value, se = bound.value.reshape(4, 60), bound.se.reshape(4, 60)
    mean, error = value.mean(1), value.std(1) / math.sqrt(60)
    assert ((mean - weights.log()).abs() <= 4.5 * error + 0.02).all()
    assert (se.square().mean(1).sqrt() / value.std(1) - 1).abs().max() <= 0.5


def test_level_decoder():
    levels = (2 * torch.arange(256.0) + 1) / 256 - 1
    z, level = torch.tensor([0.1]), torch.tensor([8.0])
    each = [level_decoder(x[None], z, level).exp() for x in levels]
    assert abs(sum(each) - 1) <= 1e-12
    alpha = math.sqrt(1 / (1 + math.exp(-8)))
    odds = stats.norm.logpdf(0.1 / alpha, levels[140:142], math.exp(-4))
    assert abs((each[141] / each[140]).log() - (odds[1] - odds[0])) <= 1e-10
    flat = flat_decoder(levels[140:141], z, level)
    assert abs(flat - odds[0]) <= 1e-10
    for wrong in (torch.tensor([0.0]), torch.tensor([257 / 256])):
        with pytest.raises(ValueError, match="must lie on the levels"):
            level_decoder(wrong, z, level)


def test_bits_per_dim():
    """Nats / (d log 2), and + 7 where a density stands for dequantised levels on [−1, 1]."""
    nats = Estimate(torch.tensor([-20.0]), torch.tensor([2.0]))
    discrete, dequantised = bits_per_dim(nats, 10), bits_per_dim(nats, 10, width=2 / 256)
    assert torch.allclose(discrete.value, torch.tensor(2 / math.log(2)))
    assert torch.allclose(dequantised.value - discrete.value, torch.tensor(7.0))
    assert torch.allclose(discrete.se, torch.tensor(0.2 / math.log(2)))
    # uniform on [−1, 1]: every level equally likely, 8 bits
    uniform = Estimate(torch.tensor([10 * math.log(0.5)]), torch.zeros(1))
    assert torch.allclose(bits_per_dim(uniform, 10, width=2 / 256).value, torch.tensor(8.0))


def test_precision_is_that_of_x():
    x, unit = torch.ones(2, 1, dtype=torch.float32), Gaussian(torch.zeros(1), torch.ones(1)).float()
    for estimate in (information(unit, x, GRID), denoising_error(unit, x, GRID)):
        assert estimate.value.dtype == estimate.se.dtype == torch.float32
    assert log_prob(unit, x).value.dtype == torch.float32
    assert elbo(unit, x, decoder=flat_decoder).value.dtype == torch.float32


def test_the_condition_reaches_the_network():
    class Told(nn.Module):
        def forward(self, z, logsnr, cond):
            return cond

    told, x = NetworkDenoiser(Told(), "x"), torch.tensor([[1.0], [-2.0]])
    assert (information(told, x, GRID, cond=x).value == 0).all()
    wrong = denoising_error(told, x, GRID, cond=x + 1)
    assert torch.allclose(wrong.value, GRID.exp().expand(2, -1))
    # all that is left of −ELBO: the prior's and the decoder's terms
    left = prior_kl(x, -13.3) + 0.5 * (math.log(2 * math.pi * math.e) - 13.3)
    assert close(elbo(told, x, decoder=flat_decoder, cond=x, pairs=400), -left)
    # m = 0 leaves log N(x) + L_ref(λmax; x), of the reference N(0, 1)
    there = torch.tensor([2.0])
    gain = torch.cat(
        [information_1d(Gaussian(MEAN[2:], MEAN[2:] + 1), v, there) for v in (1.0, -2.0)]
    )
    exact = torch.tensor(stats.norm.logpdf(x[:, 0])) + gain
    assert close(log_prob(told, x, cond=x, pairs=400, logsnr_max=2.0), exact)


def test_nothing_is_differentiated_and_the_generator_is_used():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, z, logsnr):
            return self.layer(z)

    network, x = NetworkDenoiser(Plain(), "x"), torch.randn(2, 2)
    runs = [
        information(network, x, GRID, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert not runs[0].value.requires_grad
    assert torch.equal(runs[0].value, runs[1].value)
    assert not torch.equal(runs[0].value, runs[2].value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, x: information(p, x, torch.tensor([1.0, 0.0])), "finite and increasing"),
        (lambda p, x: information(p, x, torch.tensor([0.0, torch.inf])), "finite and increasing"),
        (lambda p, x: information(p, x, torch.zeros(0)), "at least one"),
        (lambda p, x: denoising_error(p, x, torch.tensor([torch.inf])), "must be finite"),
        (lambda p, x: denoising_error(p, x, GRID, pairs=1), "at least 2 pairs"),
        (
            lambda p, x: elbo(p, x, decoder=flat_decoder, logsnr_min=1.0, logsnr_max=0.0),
            "wanted logsnr_min < logsnr_max",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(Binary(), torch.ones(1))
