"""Learned weightings against the averages that they claim, on a denoiser whose errors are known."""

import pytest
import torch
from torch import nn

import neurodiff as nd
from neurodiff.diffusion.balance import (
    GradientBalance,
    KindBalance,
    UncertaintyBalance,
    VarianceBalance,
)
from neurodiff.diffusion.denoiser import NetworkDenoiser
from neurodiff.diffusion.logsnr import diffuse
from neurodiff.diffusion.loss import denoising_loss, squared_error
from neurodiff.diffusion.networks import MLP
from neurodiff.diffusion.parameterization import convert
from neurodiff.diffusion.prior import Gaussian
from neurodiff.diffusion.train import train

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


SIZES = (3, 1)
# three numbers of variance ½ and one of 4, which is known sooner: its error per e^λ is larger
KINDS = Gaussian(torch.zeros(4), torch.tensor([0.5, 0.5, 0.5, 4.0]))


def of_kinds(count):
    logsnr = (torch.rand(count) * 8) - 4
    x, eps = torch.randn(count, 4) * KINDS.variance.sqrt(), torch.randn(count, 4)
    return logsnr, squared_error(KINDS, x, logsnr, eps, sizes=SIZES)


def test_errors_of_kinds_are_those_of_their_numbers():
    x, eps, logsnr = torch.randn(50, 2, 2), torch.randn(50, 2, 2), torch.randn(50)
    prior = Gaussian(torch.zeros(2, 2), KINDS.variance.reshape(2, 2))
    each = squared_error(prior, x, logsnr, eps, sizes=SIZES)
    off = (prior(diffuse(x, eps, logsnr), logsnr) - x).square() * logsnr.exp()[:, None, None]
    assert torch.allclose(each[:, 1], off[:, 1, 1])
    assert torch.allclose(each.sum(1), squared_error(prior, x, logsnr, eps))
    with pytest.raises(ValueError, match=r"kinds of 3, 2 numbers are 5 in all, and one x has 4"):
        squared_error(prior, x, logsnr, eps, sizes=(3, 2))


def test_kinds_share_as_their_dimensions_do_and_a_level_keeps_its_weight():
    base = nd.weighting("sigmoid")
    weighting = KindBalance(base, SIZES, -4.0, 4.0, bins=8)
    for _ in range(20):
        weighting.update(*of_kinds(4000))
    logsnr, m = of_kinds(400_000)
    w = weighting(logsnr)
    kinds = [by_bin(part, logsnr) for part in (w * m).unbind(1)]
    plain = by_bin(base(logsnr) * m.sum(1), logsnr)
    # of a few thousand draws a bin, as above; within a bin w and m change together
    assert (kinds[0] / kinds[1] / 3 - 1).abs().max() < 0.1
    assert ((kinds[0] + kinds[1]) / plain - 1).abs().max() < 0.1
    # the weight of a learned Gaussian: d/m of the closed form v e^λ / (1 + v e^λ), a number each
    v, snr = KINDS.variance[[0, 3]], MIDDLE.exp()[:, None]
    known = v * snr / (1 + v * snr)
    known = (0.75 * known[:, :1] + 0.25 * known[:, 1:]) / known
    assert (weighting(MIDDLE) / base(MIDDLE)[:, None] / known - 1).abs().max() < 0.1


def test_before_it_has_learned_kinds_are_a_plain_sum():
    base, x = nd.weighting("sigmoid"), torch.rand(64, 4)
    schedule, losses = nd.schedule("cosine"), []
    for w in (base, KindBalance(base, SIZES)):
        g = torch.Generator().manual_seed(0)
        losses.append(denoising_loss(KINDS, x, weighting=w, schedule=schedule, generator=g))
    assert torch.allclose(*losses)


def test_a_network_learns_under_a_balance_of_kinds_and_goes_on(tmp_path):
    x = torch.rand(200, 4) * 2 - 1
    nn.init.normal_((start := NetworkDenoiser(MLP((4,), 16, 1), "v")).network.last.weight)
    run = {"weighting": KindBalance(nd.weighting("sigmoid"), SIZES), "batch": 32, "steps": 30,
           "schedule": nd.schedule("cosine")}  # fmt: skip
    whole = train(start, x, **run)
    with pytest.raises(KeyboardInterrupt):
        train(start, x, **run, folder=tmp_path, every=10, prepare=Stop(15))
    done = train(start, x, **run, folder=tmp_path, every=10, prepare=Stop(99))
    assert (done.losses == whole.losses).all()
    assert not torch.equal(*done.weighting(torch.zeros(1))[0])
    assert torch.equal(done.weighting(MIDDLE), whole.weighting(MIDDLE))


class Stop:
    """Prepares nothing, and is interrupted at one call."""

    def __init__(self, at):
        self.left = at

    def __call__(self, x, generator):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return x
