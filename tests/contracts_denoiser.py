"""The suite every exact denoiser inherits, and quadratures over one-dimensional noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurodiff.diffusion.logsnr import alpha_sigma
from neurodiff.diffusion.loss import squared_error

logsnrs = st.floats(-8.0, 8.0)


def hermite(n=200):
    """Nodes and weights of E f(ε), ε ~ N(0, 1)."""
    node, weight = np.polynomial.hermite_e.hermegauss(n)
    return torch.tensor(node), torch.tensor(weight / weight.sum())


def error_1d(prior, x, logsnr):
    """m(λ; x) of a one-number prior by Gauss–Hermite: (logsnr)."""
    node, weight = hermite()
    eps = node.reshape(-1, *(1,) * len(prior.event))
    there = torch.full_like(eps, x)
    each = [squared_error(prior, there, level.expand(len(eps)), eps) for level in logsnr]
    return torch.stack(each) @ weight


def information_1d(prior, x, logsnr):
    """KL(q(z|x) ‖ p(z)) of a one-number prior by Gauss–Hermite: (logsnr)."""
    node, weight = hermite()
    alpha, sigma = (scale[:, None] for scale in alpha_sigma(logsnr))
    z = (alpha * x + sigma * node).reshape(len(logsnr), -1, *prior.event)
    log_p = torch.stack([prior.log_prob(z_l, level) for z_l, level in zip(z, logsnr, strict=True)])
    log_q = -0.5 * (node.square() + (2 * math.pi * sigma.square()).log())
    return (log_q - log_p) @ weight


def within(difference, standard_errors=4.5):
    """Whether the mean over the first axis is 0, up to this many standard errors of its own."""
    mean, se = difference.mean(0), difference.std(0) / math.sqrt(len(difference))
    return bool((mean.abs() <= standard_errors * se + 1e-12).all())


class PriorContract:
    """What an exact denoiser promises. Subclasses give ``make()`` and, if it is not 0, ``mean``."""

    mean = 0.0

    def make(self):
        raise NotImplementedError

    def noisy(self, logsnr, count=7):
        prior = self.make()
        x = prior.sample(count)
        alpha, sigma = alpha_sigma(torch.tensor(logsnr))
        return prior, x, alpha * x + sigma * torch.randn(x.shape)

    def test_one_logsnr_serves_all(self):
        prior, _, z = self.noisy(0.3)
        many = torch.full((len(z),), 0.3)
        assert torch.equal(prior(z, torch.tensor(0.3)), prior(z, many))
        assert prior(z, many).shape == z.shape
        assert prior.log_prob(z, many).shape == (len(z),)

    def test_tweedie(self):
        """(α x̂ − z) / σ² is the gradient of log p(z)."""

        @settings(deadline=None, max_examples=20)
        @given(logsnr=logsnrs)
        def check(logsnr):
            prior, _, z = self.noisy(logsnr)
            z.requires_grad_()
            level = torch.tensor(logsnr)
            alpha, sigma = alpha_sigma(level)
            (score,) = torch.autograd.grad(prior.log_prob(z, level).sum(), z)
            claimed = (alpha * prior(z, level) - z) / sigma.square()
            scale = (z.abs() / sigma.square()).max() + 1
            assert (score - claimed).abs().max() <= 1e-11 * scale

        check()

    @pytest.mark.parametrize("logsnr", [-3.0, 0.0, 1.5])
    def test_brute_force(self, logsnr):
        """x̂ and p(z) by importance sampling from the prior itself."""
        prior, _, z = self.noisy(logsnr, count=4)
        alpha, sigma = alpha_sigma(torch.tensor(logsnr))
        x = prior.sample(100_000)
        residual = (z[None] - alpha * x[:, None]).reshape(len(x), len(z), -1)
        size = residual.shape[-1]
        log_weight = -0.5 * (residual / sigma).square().sum(-1)
        log_weight = log_weight - 0.5 * size * (2 * math.pi * sigma.square()).log()
        relative = (log_weight - prior.log_prob(z, torch.tensor(logsnr))).exp()
        assert within(relative - 1)
        off = (x[:, None] - prior(z, torch.tensor(logsnr))).reshape(len(x), len(z), -1)
        assert within(relative[..., None] * off)

    @pytest.mark.parametrize("logsnr", [-2.0, 1.0, 4.0])
    def test_orthogonality(self, logsnr):
        """The error x − x̂ is uncorrelated with what z could tell: E (x − x̂)·x̂ = E (x − x̂)·z = 0."""
        prior, x, z = self.noisy(logsnr, count=20_000)
        estimate = prior(z, torch.tensor(logsnr))
        for known in (estimate, z):
            assert within(((x - estimate) * known).reshape(len(x), -1).sum(1))

    @pytest.mark.parametrize("logsnr", [-2.0, 0.5, 2.0])
    def test_information_grows_by_half_the_error(self, logsnr):
        """dL/dλ = m/2 at one fixed x, draw by draw: L = E[log q − log p], d log σ²/dλ = −α²."""
        prior = self.make()
        x = prior.sample(1).expand(20_000, *prior.event)
        eps, level = torch.randn(x.shape), torch.full((len(x),), logsnr)

        def log_p(level):
            alpha, sigma = (s.reshape(-1, *(1,) * (x.ndim - 1)) for s in alpha_sigma(level))
            return prior.log_prob(alpha * x + sigma * eps, level)

        level.requires_grad_()
        (slope,) = torch.autograd.grad(log_p(level).sum(), level)
        level = level.detach()
        log_q_slope = 0.5 * x[0].numel() * torch.sigmoid(torch.tensor(logsnr))
        assert within(log_q_slope - slope - 0.5 * squared_error(prior, x, level, eps))

    def test_no_signal_leaves_the_mean(self):
        prior, _, z = self.noisy(-30.0)
        assert (prior(z, torch.tensor(-30.0)) - self.mean).abs().max() <= 1e-4

    def test_no_noise_leaves_x(self):
        prior, x, z = self.noisy(30.0)
        assert (prior(z, torch.tensor(30.0)) - x).abs().max() <= 1e-4

    def test_single_precision_stays_single(self):
        prior, _, z = self.noisy(1.0)
        single = prior.float()(z.float(), torch.tensor(1.0, dtype=torch.float32))
        assert single.dtype == torch.float32
        assert (single - self.make()(z, torch.tensor(1.0))).abs().max() <= 1e-4

    def test_state_moves_to_another_instance(self):
        prior, _, z = self.noisy(1.0)
        other = self.make()
        other.load_state_dict(prior.state_dict())
        assert torch.equal(other(z, torch.tensor(1.0)), prior(z, torch.tensor(1.0)))

    def test_refuses(self):
        prior, _, z = self.noisy(0.0, count=3)
        level = torch.tensor(0.0)
        with pytest.raises(ValueError, match="has no condition"):
            prior(z, level, torch.zeros(3))
        with pytest.raises(ValueError, match="event"):
            prior(z[..., None], level)
        with pytest.raises(ValueError, match=r"wanted \(\) or \(3,\)"):
            prior(z, torch.zeros(2))
