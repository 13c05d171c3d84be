"""A learned source finds a Gaussian that is known, and keeps densities."""

import math

import pytest
import torch
from torch import nn

from neurodiff.diffusion.denoiser import Denoiser, NetworkDenoiser
from neurodiff.diffusion.learned_source import LearnedSource
from neurodiff.diffusion.likelihood import log_prob
from neurodiff.diffusion.logsnr import alpha
from neurodiff.diffusion.loss import squared_error
from neurodiff.diffusion.maximum import most_likely
from neurodiff.diffusion.networks import MLP
from neurodiff.diffusion.prior import Gaussian


def pairs(n):
    """x around 0.8 y, with a standard deviation of 0.1 to 0.4."""
    y = torch.rand(n, 2) * 2 - 1
    scale = 0.2 * (0.7 * y).exp()
    return 0.8 * y + scale * torch.randn(n, 2), y, scale


def any_source(floor=0.01):
    source = LearnedSource(MLP((3,), 8, 1, outputs=2), floor)
    nn.init.normal_(source.network.last.weight, std=0.1)
    return source.requires_grad_(False)


def fit(source, x, y, **how):
    return most_likely(source, LearnedSource.log_prob, x, y, **how)


def test_it_finds_the_mean_and_the_scale():
    x, y, scale = pairs(4000)
    source = fit(LearnedSource(MLP((2,), 32, 2, outputs=2), 0.0), x, y, steps=600)
    x, y, scale = pairs(4000)
    mean, found = source(y)
    # of 4000 examples and some thousand weights
    assert (mean - 0.8 * y).square().mean().sqrt() < 0.05
    assert (found / scale).log().square().mean().sqrt() < 0.15
    # held-out likelihood, against that of the truth
    truth = torch.distributions.Normal(0.8 * y, scale).log_prob(x).sum(1)
    lost = truth - source.log_prob(x, y)
    assert lost.mean() < 0.1 + 3 * lost.std() / math.sqrt(len(x))


def test_coordinates_go_back_and_forth_and_keep_densities():
    source, x, y = any_source(), torch.randn(20, 3), torch.randn(20, 3)
    r = source.whiten(x, y)
    assert torch.allclose(source.colour(r, y), x)
    mean, scale = source(y)
    assert (scale > 0.1).all()
    # x that is what the source says is white, and the exact denoiser of N(0, I) says how likely
    white, wide = (Gaussian(torch.zeros(3), torch.full((3,), v)) for v in (1.0, 2.0))
    found = log_prob(white, r, reference=wide, pairs=200)
    assert ((found.value - scale.log().sum(1) - source.log_prob(x, y)).abs() < 5 * found.se).all()
    assert found.se.max() < 0.1
    known = torch.distributions.MultivariateNormal(mean, torch.diag_embed(scale.square()))
    assert torch.allclose(source.log_prob(x, y), known.log_prob(x))


class Around(Denoiser):
    """A denoiser of x - m as one of x."""

    def __init__(self, denoiser, mean):
        super().__init__()
        self.denoiser, self.mean = denoiser, mean

    def forward(self, z, logsnr, cond=None):
        return self.mean + self.denoiser(z - alpha(logsnr)[:, None] * self.mean, logsnr)


def test_a_mean_alone_changes_no_error():
    x, m, eps, logsnr = torch.randn(9, 3), torch.randn(9, 3), torch.randn(9, 3), torch.randn(9)
    net = NetworkDenoiser(MLP((3,), 8, 1), "v")
    nn.init.normal_(net.network.last.weight)
    there = squared_error(Around(net, m), x, logsnr, eps)
    assert torch.allclose(there, squared_error(net, x - m, logsnr, eps))


def test_a_seed_decides_and_the_start_is_left_alone():
    x, y, _ = pairs(100)
    start = LearnedSource(MLP((2,), 8, 1, outputs=2, dropout=0.2), 0.0)
    before = {k: v.clone() for k, v in start.state_dict().items()}
    a, b, c = (fit(start, x, y, steps=5, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.log_prob(x, y), b.log_prob(x, y))
    assert not torch.equal(a.log_prob(x, y), c.log_prob(x, y))
    assert all(torch.equal(before[k], v) for k, v in start.state_dict().items())


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match=r"got x of \(4, 2\) around \(4, 3\)"):
        any_source().whiten(torch.zeros(4, 2), torch.zeros(4, 3))
    x, y, _ = pairs(10)
    with pytest.raises(FloatingPointError, match=r"log p is nan at step 0"):
        fit(LearnedSource(MLP((2,), 8, 1, outputs=2), 0.0), x * torch.nan, y, steps=2)
