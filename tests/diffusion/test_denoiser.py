"""A network's output read as any parameterization is the same denoiser."""

import pytest
import torch
from torch import nn

from neurodiff.diffusion.denoiser import NetworkDenoiser, per_example
from neurodiff.diffusion.parameterization import PAIRS, convert
from neurodiff.diffusion.prior import Gaussian


class Exact(nn.Module):
    """What a perfectly trained network of this parameterization returns."""

    def __init__(self, prior, parameterization):
        super().__init__()
        self.prior, self.parameterization = prior, parameterization

    def forward(self, z, logsnr, cond=None):
        assert logsnr.shape == (len(z),)
        value = convert(self.prior(z, logsnr), "x", self.parameterization, z=z, logsnr=logsnr)
        return value if cond is None else value + cond[:, None]


@pytest.fixture
def prior():
    return Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[2.0, 0.6], [0.6, 0.5]]))


@pytest.mark.parametrize("name", PAIRS)
def test_every_parameterization_gives_the_posterior_mean(prior, name):
    z, logsnr = torch.randn(9, 2), torch.linspace(-6.0, 6.0, 9)
    denoiser = NetworkDenoiser(Exact(prior, name), name)
    assert (denoiser(z, logsnr) - prior(z, logsnr)).abs().max() <= 1e-12
    scalar = torch.tensor(1.0)
    assert (denoiser(z, scalar) - prior(z, scalar)).abs().max() <= 1e-12


def test_the_condition_reaches_the_network(prior):
    denoiser, z, level = NetworkDenoiser(Exact(prior, "x"), "x"), torch.randn(3, 2), torch.zeros(3)
    cond = torch.tensor([0.0, 1.0, 2.0])
    shift = denoiser(z, level, cond) - denoiser(z, level)
    assert torch.allclose(shift, cond[:, None].expand(3, 2))


def test_parameters_and_repr(prior):
    denoiser = NetworkDenoiser(nn.Linear(2, 2), "v")
    assert [name for name, _ in denoiser.named_parameters()] == ["network.weight", "network.bias"]
    assert "parameterization='v'" in repr(denoiser)


def test_refusals():
    class Mean(nn.Module):
        def forward(self, z, logsnr):
            return z.mean(1)

    with pytest.raises(ValueError, match=r"unknown parameterization 'epsilon'; did you mean 'eps'"):
        NetworkDenoiser(Mean(), "epsilon")
    with pytest.raises(ValueError, match=r"returned \(3,\) for z of shape \(3, 2\)"):
        NetworkDenoiser(Mean(), "v")(torch.zeros(3, 2), torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"wanted \(\) or \(3,\)"):
        per_example(torch.zeros(3, 1), torch.zeros(3, 2))
