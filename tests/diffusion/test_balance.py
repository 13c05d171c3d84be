"""Learned weightings against the averages that they claim, on a denoiser whose errors are known."""

import pytest
import torch

from neurodiff.diffusion.balance import GradientBalance, UncertaintyBalance, VarianceBalance
from neurodiff.diffusion.logsnr import diffuse
from neurodiff.diffusion.loss import squared_error
from neurodiff.diffusion.parameterization import convert
from neurodiff.diffusion.prior import Gaussian

EDGES = torch.linspace(-4, 4, 9)
PRIOR = Gaussian(torch.zeros(1), torch.full((1,), 0.5))
MIDDLE = 0.5 * (EDGES[1:] + EDGES[:-1])


def errors(count=40_000):
    logsnr = (torch.rand(count) * 8) - 4
    eps, x = torch.randn(count, 1), torch.full((count, 1), 0.7)
    return logsnr, squared_error(PRIOR, x, logsnr, eps), x, eps


def taught(weighting, batches=20):
    for _ in range(batches):
        weighting.update(*errors(4000)[:2])
    return weighting


def by_bin(value, logsnr):
    where = torch.bucketize(logsnr, EDGES[1:-1])
    return torch.stack([value[where == k].mean() for k in range(8)])


def close(weighting, size):
    wanted = (1 / size) / (1 / size).mean()
    found = weighting(MIDDLE)
    assert ((found - wanted) / wanted).abs().max() < 0.1  # of a few thousand draws a bin


def test_uncertainty_makes_every_level_add_the_same():
    logsnr, m, *_ = errors(400_000)
    close(taught(UncertaintyBalance(-4.0, 4.0, bins=8)), by_bin(m, logsnr))


def test_variance_makes_every_level_as_noisy():
    logsnr, m, *_ = errors(400_000)
    mean = by_bin(m, logsnr)
    spread = (by_bin(m.square(), logsnr) - mean.square()).sqrt()
    close(taught(VarianceBalance(-4.0, 4.0, bins=8)), spread)


@pytest.mark.parametrize("output", ["v", "x", "eps"])
def test_gradients_are_those_of_the_output(output):
    logsnr, _, x, eps = errors(20_000)
    z = diffuse(x, eps, logsnr)
    y = convert(PRIOR(z, logsnr), "x", output, z=z, logsnr=logsnr).requires_grad_(True)
    m = (convert(y, output, "eps", z=z, logsnr=logsnr) - eps).square()[:, 0]
    (gradient,) = torch.autograd.grad(m.sum(), y)
    weighting = GradientBalance(output, -4.0, 4.0, bins=8)
    weighting.update(logsnr, m.detach())
    close(weighting, by_bin(gradient.abs()[:, 0], logsnr))


@pytest.mark.parametrize(
    "make", [UncertaintyBalance, VarianceBalance, lambda *a: GradientBalance("v", *a)]
)
def test_before_it_has_learned_a_weighting_is_flat_and_its_mean_stays_one(make):
    weighting = make(-4.0, 4.0)
    assert torch.equal(weighting(torch.tensor([-torch.inf, 0.0, torch.inf])), torch.ones(3))
    taught(weighting, 3)
    grid = torch.linspace(-4, 4, 81)
    assert weighting(0.5 * (grid[1:] + grid[:-1])).mean() == pytest.approx(1.0, abs=1e-9)
    assert weighting(torch.tensor([-50.0])) == weighting(torch.tensor([-3.99]))
