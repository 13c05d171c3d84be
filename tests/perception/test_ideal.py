"""The ideal observer against quadrature, Monte Carlo and its own slope."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.func import grad, jacrev, vmap

import neurodiff as nd
from neurodiff.perception.ideal import (
    Binary,
    Tabulated,
    alternatives,
    binary_error,
    from_ratios,
    gaussians,
    information,
)

INF, EPS = torch.inf, torch.finfo(torch.float64).eps
ENDS = torch.tensor([-INF, INF])
GRID = np.linspace(-9.0, 5.0, 15)
IDEALS = {
    "binary": Binary(),
    "two": alternatives(2),
    "sixteen": alternatives(16),
    "overlapping": gaussians((-1.0, 1.0), (0.5, 0.5)),
    "spread": gaussians((0.0, 0.0), (0.2, 1.0)),
}


@pytest.mark.parametrize("name", IDEALS)
def test_accuracy_rises_from_chance_to_its_best(name):
    ideal = IDEALS[name]
    assert ideal(ENDS).tolist() == [ideal.chance, ideal.best]
    assert bool((ideal.slope(ENDS) < 1e-30).all())
    wide = ideal(torch.linspace(-80.0, 40.0, 4001))
    assert bool((wide.diff() >= -4 * EPS).all())
    assert abs(wide[0] - ideal.chance) < 4 * EPS


def test_best_is_one_where_noise_is_all_that_hinders():
    assert all(IDEALS[name].best == 1.0 for name in ("binary", "two", "sixteen"))
    assert [IDEALS[name].chance for name in ("binary", "two", "sixteen")] == [0.5, 0.5, 1 / 16]


@pytest.mark.parametrize("name", IDEALS)
def test_slope_is_the_derivative(name):
    ideal, at = IDEALS[name], torch.as_tensor(GRID) + 0.013
    torch.testing.assert_close(ideal.slope(at), vmap(grad(ideal))(at), rtol=1e-10, atol=1e-13)
    second = vmap(grad(ideal.slope))(torch.cat([ENDS, at]))
    assert bool(second.isfinite().all())
    assert bool(jacrev(jacrev(lambda s: ideal(ENDS + s).sum()))(torch.tensor(0.0)).isfinite())


def test_below_a_table_small_signals_are_seen_as_ever():
    at = np.linspace(-2.0, 3.0, 101)
    ideal = Tabulated(at, stats.norm.cdf(np.exp(at / 2)))
    below = torch.tensor([-9.0, -4.0, -2.1])
    torch.testing.assert_close(ideal.slope(below), vmap(grad(ideal))(below))
    # Φ(d) − 1/2 is d/√2π but for a factor of 1 − d²/6
    wanted = Binary()(below) - 0.5
    assert bool(((ideal(below) - 0.5) / wanted - 1).abs().max() < np.exp(-2.0) / 6)
    assert ideal.slope(torch.tensor(3.1)) == 0.0


def test_binary_is_the_fixed_stop_accuracy():
    want = stats.norm.cdf(np.exp(GRID / 2))
    np.testing.assert_allclose(Binary()(torch.as_tensor(GRID)).numpy(), want, rtol=1e-13)


@pytest.mark.parametrize("m", [2, 3, 16, 100])
def test_alternatives_agree_with_quadrature(m):
    got = alternatives(m)(torch.as_tensor(GRID)).numpy()
    for value, logsnr in zip(got, GRID, strict=True):
        d = np.exp(logsnr / 2)

        def density(x, d=d):
            return stats.norm.pdf(x - d) * stats.norm.cdf(x) ** (m - 1)

        want = integrate.quad(density, d - 9, d + 9, epsabs=1e-12)[0]
        assert abs(value - want) < 1e-7


def test_alternatives_agree_with_trials():
    n, d = 200_000, np.exp(0.5)
    seen = np.random.default_rng(0).normal(size=(n, 5))
    seen[:, 0] += d
    right = (seen.argmax(1) == 0).mean()
    want = alternatives(5)(torch.tensor(1.0)).item()
    assert abs(right - want) < 4 * np.sqrt(want * (1 - want) / n)


def test_two_alternatives_shown_together_halve_the_power():
    at = torch.as_tensor(GRID)
    torch.testing.assert_close(alternatives(2)(at), Binary()(at - np.log(2)), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("means", "sds"),
    [
        ((-1.0, 1.0), (0.0, 0.0)),
        ((-1.0, 1.0), (0.5, 0.5)),
        ((-1.0, 1.0), (0.5, 0.50001)),
        ((1.0, -0.4), (1.0, 0.1)),
        ((0.0, 0.0), (0.2, 1.0)),
    ],
)
def test_gaussians_agree_with_the_larger_density_integrated(means, sds):
    ideal = gaussians(means, sds)
    for logsnr in GRID:
        sd = np.sqrt(np.square(sds) + np.exp(-logsnr))
        y = np.linspace(-14 * sd.max() - 2, 14 * sd.max() + 2, 200_001)
        larger = np.maximum(*(stats.norm.pdf(y, m, s) for m, s in zip(means, sd, strict=True)))
        want = np.trapezoid(larger, y) / 2
        # the trapezoid rule has a kink where the densities cross
        assert abs(ideal(torch.tensor(logsnr)).item() - want) < 1e-7


def test_log_likelihood_ratios_give_the_accuracy_without_labels():
    n, at = 100_000, np.linspace(-8.0, 4.0, 25)
    z = torch.randn(n)
    snr = torch.as_tensor(np.exp(at))[:, None]
    ratios = 2 * (snr + snr.sqrt() * z)  # of the ±1 source, given +1
    ideal = from_ratios(at, ratios)
    spread = torch.sigmoid(ratios.abs()).std(1) / np.sqrt(n)
    # the running maximum adds at most a standard error
    error = (ideal(torch.as_tensor(at)) - Binary()(torch.as_tensor(at))).abs()
    assert bool((error < 5 * spread + 1e-6).all())
    assert ideal(torch.tensor(-INF)) == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: alternatives(1), "got 1 alternatives"),
        (lambda: gaussians((1.0, 1.0), (0.5, 0.5)), "nothing to tell"),
        (lambda: gaussians(sds=(-1.0, 1.0)), "wanted standard deviations"),
        (lambda: from_ratios([0.0, 0.0], torch.zeros(2, 3)), "increasing logsnr"),
        (lambda: Tabulated(np.array([0.0, 1.0, 3.0]), np.array([0.5, 0.6, 0.7])), "uniform"),
        (lambda: Tabulated(np.arange(3.0), np.array([0.5, 0.7, 0.6])), "falls by 0.1 after .* = 1"),
        (lambda: Tabulated(np.arange(2.0), np.array([0.4, 0.6])), "within chance = 0.5 and 1"),
    ],
)
def test_what_cannot_be_an_accuracy_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_binary_error_agrees_with_quadrature():
    for logsnr in (-6.0, -1.0, 0.0, 1.5, 4.0):
        snr = np.exp(logsnr)

        def left(z, snr=snr):
            return (1 - np.tanh(snr + np.sqrt(snr) * z)) * stats.norm.pdf(z)

        want = snr * integrate.quad(left, -12, 12, epsabs=1e-13)[0]
        assert abs(binary_error(torch.tensor(logsnr)).item() - want) < 1e-8 * want + 1e-13


def mutual_information(logsnr):
    """I(γ) = γ − E log cosh(γ + √γ Z) of the ±1 source."""
    snr = np.exp(logsnr)

    def density(z):
        u = abs(snr + np.sqrt(snr) * z)
        return (u + np.log1p(np.exp(-2 * u)) - np.log(2)) * stats.norm.pdf(z)

    return snr - integrate.quad(density, -12, 12, epsabs=1e-12)[0]


def test_the_elbo_takes_in_the_mutual_information():
    at = torch.tensor([-8.0, -2.0, 0.0, 1.0, 3.0])
    got = information(nd.weighting("elbo"), at)
    want = torch.tensor([mutual_information(x) for x in at.tolist()])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    ends = information(nd.weighting("elbo"), ENDS)
    torch.testing.assert_close(ends, torch.tensor([0.0, np.log(2)]), rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=15)
@given(loc=st.floats(-4, 4), scale=st.floats(0.3, 3), end=st.floats(-5, 6))
def test_a_stopping_law_takes_in_the_information_where_it_stops(loc, scale, end):
    w = nd.SurvivalWeighting(nd.laws.Logistic(loc, scale))
    got = information(w, torch.tensor(end)).item()

    def rate(x):
        at = torch.tensor(x)
        return 0.5 * (w(at) * binary_error(at)).item()

    want = integrate.quad(rate, -40, end, epsabs=1e-10, limit=200)[0]
    assert abs(got - want) < 1e-8
