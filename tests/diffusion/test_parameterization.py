"""Every ordered pair, the error ratios of formulas §2, general paths, refusals."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from neurodiff.diffusion.parameterization import PAIRS, convert, error_ratio

numbers = st.floats(-5.0, 5.0)
logsnrs = st.floats(-15.0, 15.0)
times = st.floats(0.02, 0.98)
ORDERED = list(itertools.product(PAIRS, PAIRS))


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def truth(x, eps, alpha, sigma, d_alpha=-1.0, d_sigma=1.0, sd=0.5):
    """Every parameterization as formulas §2 writes it, in plain numbers."""
    tilde = sigma / alpha
    return {
        "x": x,
        "eps": eps,
        "v": alpha * eps - sigma * x,
        "score": -eps / sigma,
        "flow": d_alpha * x + d_sigma * eps,
        "F": (tilde * x - sd**2 * eps) / (sd * math.sqrt(sd**2 + tilde**2)),
    }


def vp(logsnr):
    return (1 + math.exp(-logsnr)) ** -0.5, (1 + math.exp(logsnr)) ** -0.5


PATHS = {  # alpha, sigma, alpha', sigma' as functions of t
    "straight": lambda t: (1 - t, t, -1.0, 1.0),
    "cosine": lambda t: (
        math.cos(math.pi * t / 2),
        math.sin(math.pi * t / 2),
        -math.pi / 2 * math.sin(math.pi * t / 2),
        math.pi / 2 * math.cos(math.pi * t / 2),
    ),
    "exploding": lambda t: (1.0, 0.01 * 5000**t, 0.0, 0.01 * 5000**t * math.log(5000)),
}


@given(x=numbers, eps=numbers, logsnr=logsnrs)
def test_every_ordered_pair(x, eps, logsnr):
    alpha, sigma = vp(logsnr)
    z, known = scalar(alpha * x + sigma * eps), truth(x, eps, alpha, sigma)
    unit = truth(1.0, 0.0, alpha, sigma), truth(0.0, 1.0, alpha, sigma)
    for source, target in ORDERED:
        got = convert(scalar(known[source]), source, target, z=z, logsnr=scalar(logsnr))
        # relative to what unit x and eps make of it: a score is of the order 1 / sigma
        size = max(abs(known[target]), *(abs(part[target]) for part in unit))
        assert abs(got - known[target]) <= 1e-10 * size


@given(x=numbers, eps=numbers, t=times, sd=st.floats(0.1, 4.0), path=st.sampled_from(list(PATHS)))
def test_every_ordered_pair_on_any_path(x, eps, t, sd, path):
    alpha, sigma, d_alpha, d_sigma = PATHS[path](t)
    z = scalar(alpha * x + sigma * eps)
    known = truth(x, eps, alpha, sigma, d_alpha, d_sigma, sd)
    names = ("alpha", "sigma", "d_alpha", "d_sigma")
    scales = dict(zip(names, map(scalar, PATHS[path](t)), strict=True))
    for source, target in ORDERED:
        got = convert(scalar(known[source]), source, target, z=z, sigma_data=sd, **scales)
        assert abs(got - known[target]) <= 1e-10 * max(1.0, *map(abs, known.values()))


@given(logsnr=logsnrs)
def test_error_ratios(logsnr):
    """(122)–(126): squared errors as multiples of that in eps."""
    _, sigma = vp(logsnr)
    sd, snr = 0.5, math.exp(logsnr)
    table = {
        "x": snr,
        "score": sigma**2,
        "v": 1 / (1 + 1 / snr),
        "F": 1 / (1 + 1 / (snr * sd**2)),
        "flow": (1 + math.exp(-logsnr / 2)) ** -2,  # eps - x, on any path
        "eps": 1.0,
    }
    for source, factor in table.items():
        got = error_ratio(source, "eps", logsnr=scalar(logsnr))
        assert abs(got / factor - 1) <= 1e-10
        back = error_ratio("eps", source, logsnr=scalar(logsnr))
        assert abs(got * back - 1) <= 1e-10


@given(t=times, path=st.sampled_from(list(PATHS)))
def test_error_ratios_on_any_path(t, path):
    """The rows of v, u and eps − x where alpha² + sigma² is not 1."""
    alpha, sigma, d_alpha, d_sigma = PATHS[path](t)
    logsnr = 2 * math.log(alpha / sigma)
    slope = 2 * (d_alpha / alpha - d_sigma / sigma)
    place = {"alpha": scalar(alpha), "sigma": scalar(sigma)}
    move = {"d_alpha": scalar(d_alpha), "d_sigma": scalar(d_sigma)}
    v = error_ratio("v", "eps", **place)
    u = error_ratio("flow", "eps", **place, **move)
    difference = error_ratio("flow", "eps", **place)
    assert abs(v * alpha**2 * (1 + math.exp(-logsnr)) ** 2 - 1) <= 1e-10
    assert abs(u / (2 / (sigma * slope)) ** 2 - 1) <= 1e-10
    # eps - x with z = alpha x + sigma eps: an error in it moves eps by alpha / (alpha + sigma)
    assert abs(difference * (1 + math.exp(-logsnr / 2)) ** 2 - 1) <= 1e-10
    if path == "straight":
        assert abs(u / (1 - t) ** 2 - 1) <= 1e-10


@given(x=numbers, eps=numbers, other=numbers, logsnr=logsnrs)
def test_the_ratio_is_that_of_the_errors(x, eps, other, logsnr):
    """A wrong prediction at the same z, converted, is wrong by the root of the ratio."""
    assume(abs(other - eps) > 0.1)
    alpha, sigma = vp(logsnr)
    z, level = scalar(alpha * x + sigma * eps), scalar(logsnr)
    for target, right in truth(x, eps, alpha, sigma).items():
        wrong = convert(scalar(other), "eps", target, z=z, logsnr=level)
        ratio = error_ratio("eps", target, logsnr=level)
        scale = max(1.0, abs(right), abs(float(wrong)))
        assert abs((wrong - right).abs() - ratio.sqrt() * abs(other - eps)) <= 1e-10 * scale


@given(x=numbers, eps=numbers, t=times, path=st.sampled_from(list(PATHS)))
def test_flow_is_the_drift_of_the_path(x, eps, t, path):
    """u = (α′/α) z − (σ λ′/2) ε = (α′/α) z + (σ² λ′/2) s; on the VP cosine u = (π/2) v."""
    alpha, sigma, d_alpha, d_sigma = PATHS[path](t)
    z, slope = alpha * x + sigma * eps, 2 * (d_alpha / alpha - d_sigma / sigma)
    names = ("alpha", "sigma", "d_alpha", "d_sigma")
    place = dict(zip(names, map(scalar, PATHS[path](t)), strict=True))
    u = convert(scalar(eps), "eps", "flow", z=scalar(z), **place)
    score = convert(scalar(eps), "eps", "score", z=scalar(z), **place)
    scale = max(1.0, abs(z / alpha * d_alpha), abs(sigma * slope))
    assert abs(u - (d_alpha / alpha * z - sigma * slope / 2 * eps)) <= 1e-10 * scale
    assert abs(u - (d_alpha / alpha * z + sigma**2 * slope / 2 * score)) <= 1e-10 * scale
    if path == "cosine":
        v = convert(scalar(eps), "eps", "v", z=scalar(z), **place)
        assert abs(u - math.pi / 2 * v) <= 1e-10 * scale


@given(x=numbers, eps=numbers, logsnr=logsnrs, sd=st.floats(0.1, 4.0))
def test_edm_preconditioning(x, eps, logsnr, sd):
    """x̂ = c_skip y + c_out F, y = z / α."""
    alpha, sigma = vp(logsnr)
    z, tilde = alpha * x + sigma * eps, sigma / alpha
    value = convert(scalar(x), "x", "F", z=scalar(z), logsnr=scalar(logsnr), sigma_data=sd)
    skip, out = sd**2 / (sd**2 + tilde**2), tilde * sd / math.hypot(sd, tilde)
    assert abs(skip * z / alpha + out * value - x) <= 1e-10 * max(1.0, abs(z / alpha))


def test_one_logsnr_an_example():
    z, value, logsnr = torch.randn(4, 3, 2), torch.randn(4, 3, 2), torch.linspace(-2, 2, 4)
    whole = convert(value, "v", "eps", z=z, logsnr=logsnr)
    each = [convert(value[i], "v", "eps", z=z[i], logsnr=logsnr[i]) for i in range(4)]
    assert torch.equal(whole, torch.stack(each))
    assert torch.equal(whole, convert(value, "v", "eps", z=z, logsnr=logsnr[:, None, None]))


def test_ends_of_the_scale():
    z, value = torch.randn(5), torch.randn(5)
    clean, blank = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    assert torch.equal(convert(value, "v", "x", z=z, logsnr=clean), z)
    assert torch.equal(convert(value, "eps", "x", z=z, logsnr=clean), z)
    assert torch.equal(convert(value, "v", "eps", z=z, logsnr=blank), z)
    assert torch.equal(convert(value, "x", "eps", z=z, logsnr=blank), z)
    assert torch.equal(convert(value, "v", "v", z=z, logsnr=blank), value)


def test_gradients_pass():
    z, value = torch.randn(5), torch.randn(5, requires_grad=True)
    convert(value, "v", "x", z=z, logsnr=torch.tensor(0.0)).sum().backward()
    assert torch.allclose(value.grad, torch.full((5,), -(0.5**0.5)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("velocity", "x", {"logsnr": torch.tensor(0.0)}), "unknown parameterization 'velocity'"),
        (("v", "Eps", {"logsnr": torch.tensor(0.0)}), "did you mean 'eps'"),
        (("v", "x", {}), "give logsnr"),
        (("v", "x", {"alpha": torch.tensor(1.0)}), "go together"),
        (("v", "x", {"logsnr": torch.tensor(0.0), "d_sigma": torch.tensor(1.0)}), "go together"),
        (("v", "x", {"logsnr": torch.zeros(4)}), "leading axes"),
        (("v", "x", {"logsnr": torch.zeros(3, 2, 1)}), "leading axes"),
        (("F", "x", {"logsnr": torch.tensor(0.0), "sigma_data": 0.0}), "must be > 0"),
    ],
)
def test_refusals(arguments, message):
    source, target, rest = arguments
    with pytest.raises(ValueError, match=message):
        convert(torch.zeros(3, 2), source, target, z=torch.zeros(3, 2), **rest)


def test_shapes_must_agree():
    # the run-time type checks, where they are on, are first to see it
    with pytest.raises(Exception, match="shape"):
        convert(torch.zeros(3), "v", "x", z=torch.zeros(2), logsnr=torch.tensor(0.0))
