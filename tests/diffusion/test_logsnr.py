"""The coordinate: scales, their limits, and what a second noise does."""

import math

import pytest
import torch
from contracts import QUICK
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neurodiff.diffusion.logsnr import (
    alpha,
    alpha_sigma,
    diffuse,
    exploding,
    from_scales,
    rescale,
    sigma,
    straight,
    with_extra_noise,
)

LEVELS = st.floats(-600.0, 600.0)


def tensor(value) -> Tensor:
    return torch.tensor(value)


@pytest.mark.parametrize("path", [alpha_sigma, straight, exploding])
def test_scales_have_their_logsnr(path):
    @QUICK
    @given(logsnr=LEVELS)
    def check(logsnr):
        a, s = path(tensor(logsnr))
        assert abs(from_scales(a, s) - logsnr) <= 1e-12 * max(1, abs(logsnr))

    check()


@QUICK
@given(logsnr=LEVELS)
def test_paths_keep_what_they_promise(logsnr):
    a, s = alpha_sigma(tensor(logsnr))
    assert abs(a**2 + s**2 - 1) <= 1e-15
    assert abs(sum(straight(tensor(logsnr))) - 1) <= 1e-15
    assert exploding(tensor(logsnr))[0] == 1
    assert alpha(tensor(logsnr)) == sigma(tensor(-logsnr))


@pytest.mark.parametrize("path", [alpha_sigma, straight])
def test_no_noise_and_no_signal(path):
    a, s = path(tensor([-torch.inf, torch.inf]))
    assert a.tolist() == [0.0, 1.0]
    assert s.tolist() == [1.0, 0.0]
    assert from_scales(a, s).tolist() == [-torch.inf, torch.inf]


def test_diffuse_mixes_each_example_at_its_level():
    x, eps = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    logsnr = tensor([-1.0, 0.5, torch.inf])
    z = diffuse(x, eps, logsnr)
    for i, level in enumerate(logsnr):
        a = 1 / math.sqrt(1 + math.exp(-level))
        torch.testing.assert_close(z[i], a * x[i] + math.sqrt(max(0.0, 1 - a * a)) * eps[i])
    assert diffuse(x, eps, tensor(0.0)).shape == x.shape


@QUICK
@given(logsnr=st.floats(-20.0, 20.0), factor=st.floats(0.01, 100.0))
def test_rescaling_any_path_gives_vp(logsnr, factor):
    x, eps = tensor(0.7), tensor(-1.3)
    a, s = (factor * scale for scale in exploding(tensor(logsnr)))
    expected = diffuse(x, eps, tensor(logsnr))
    assert abs(rescale(a * x + s * eps, a, s) - expected) <= 1e-14 * 10


def test_two_noises_are_one_gaussian_channel_at_lambda_star():
    """x ~ N(0,1): predicting x leaves 1/(1 + e^{λ*}); E[eps|z] = share · E[unit noise|z]."""
    n, a, s, xi = 200_000, tensor(0.8), tensor(0.5), tensor(0.9)
    x, eps, other = torch.randn(3, n)
    z = a * x + s * eps + xi * other
    star, share = with_extra_noise(a, s, xi)
    assert star.item() == pytest.approx(math.log(0.64 / (0.25 + 0.81)), rel=1e-12)
    total = (s**2 + xi**2).sqrt()
    left = (x - z * a / (a**2 + total**2)).square()
    assert abs(left.mean() - 1 / (1 + star.exp())) < 4 * left.std() / math.sqrt(n)
    unit_noise = z * total / (a**2 + total**2)  # E[(s eps + xi other)/total | z]
    residual = (eps - share * unit_noise) * z  # orthogonal to z iff it is the regression
    assert abs(residual.mean()) < 4 * residual.std() / math.sqrt(n)


def test_internal_noise_saturates_the_snr():
    strong = tensor([1e-3, 1e-6, 0.0])
    star, share = with_extra_noise(torch.ones(3), strong, tensor(0.1))
    torch.testing.assert_close(star, torch.full((3,), -2 * math.log(0.1)), rtol=1e-3, atol=0)
    assert share[-1] == 0
