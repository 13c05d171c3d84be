"""First passage against the series, Crank-Nicolson, simulation, and the laws of probability."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_banded

from neurodiff.perception import bounds
from neurodiff.perception.first_passage import Path, density, error, solve, survival, tilt
from neurodiff.perception.volterra import weights


def grid(n, end):
    return end / n * torch.arange(1, n + 1)


def navarro_fuss(t, mu, a, x0=0.0):
    """The small-time series: density at +a and -a, [time, 2]; the oracle."""
    t = np.asarray(t)
    k = np.arange(-60, 61)[:, None]
    out = []
    for sign in (1, -1):
        d = a - sign * x0
        z = d + 2 * k * (2 * a)
        driftless = (z * np.exp(-(z**2) / (2 * t)) / np.sqrt(2 * np.pi * t**3)).sum(0)
        out.append(driftless * np.exp(sign * mu * d - mu * mu * t / 2))
    return np.stack(out, -1)


def crank_nicolson(drift, bound, end, cells=1000, steps=8000):
    """Density of leaving through the upper bound and the lower, by ∂p = ½∂²p - v∂p in x/b(t)."""
    dt, u = end / steps, np.linspace(-1, 1, cells + 1)
    h = u[1] - u[0]
    p = np.zeros(cells + 1)
    sd = 0.02  # starts as a narrow Gaussian at time sd² b0²
    b0 = bound(0.0)[0]
    began = (sd * b0) ** 2
    p = (
        np.exp(-0.5 * ((u * b0 - drift * began) / (sd * b0)) ** 2)
        / (sd * b0 * math.sqrt(2 * math.pi))
        * b0
    )
    dt = (end - began) / steps
    times, flux = began + dt * np.arange(1, steps + 1), []

    def operator(t):
        b, slope = bound(t)
        diffusion, speed = 0.5 / b**2, drift / b - u * slope / b
        low = diffusion / h**2 + np.roll(speed, 1) / (2 * h)
        high = diffusion / h**2 - np.roll(speed, -1) / (2 * h)
        return low, np.full_like(u, -2 * diffusion / h**2), high

    for i, t in enumerate(times):
        low, mid, high = operator(t - 0.5 * dt)
        # a few implicit steps at first damp what the narrow start excites
        theta = 1.0 if i < 8 else 0.5
        right = p + (1 - theta) * dt * (low * np.roll(p, 1) + mid * p + high * np.roll(p, -1))
        right[[0, -1]] = 0.0
        bands = np.zeros((3, cells + 1))
        bands[0, 1:], bands[1], bands[2, :-1] = (
            -theta * dt * high[:-1],
            1 - theta * dt * mid,
            -theta * dt * low[1:],
        )
        bands[1, [0, -1]], bands[0, 1], bands[2, -2] = 1.0, 0.0, 0.0
        p = solve_banded((1, 1), bands, right)
        b = bound(t)[0]
        one = (4 * p[-2] - p[-3]) / (2 * h), (4 * p[1] - p[2]) / (2 * h)
        flux.append([0.5 * x / b**2 for x in one])
    return times, np.array(flux)


def weibull(height=1.1, tau=0.6, shape=3.0, floor=0.3):
    module = bounds.Weibull(height, tau, shape, floor).double()
    return lambda time: tuple(x.detach() for x in module(time))


@pytest.mark.parametrize(("mu", "a", "x0"), [(0.0, 0.9, 0.2), (1.3, 0.9, 0.0), (-4.0, 1.2, -0.3)])
def test_constant_bounds_match_the_series(mu, a, x0):
    time = grid(200, 2.0)
    got = density(mu, a, time, x0).numpy()
    wanted = navarro_fuss(time.numpy(), mu, a, x0)
    seen = wanted > 1e-6
    assert (np.abs(got / wanted - 1)[seen]).max() < 1e-6


def test_the_series_itself_matches_its_long_time_form():
    t, a, mu = np.array([0.5, 1.0, 2.0]), 0.8, 1.1
    k = np.arange(1, 200)[:, None]
    tt = t / (2 * a) ** 2
    f = math.pi * (k * np.exp(-(k**2) * math.pi**2 * tt / 2) * np.sin(k * math.pi / 2)).sum(0)
    wanted = np.exp(mu * a - mu**2 * t / 2) / (2 * a) ** 2 * f
    np.testing.assert_allclose(navarro_fuss(t, mu, a)[:, 0], wanted, rtol=1e-12)


def test_survival_matches_the_series():
    time, a, mu = grid(200, 2.0), 0.9, 1.3
    k = np.arange(1, 400)[:, None]
    A, t = 2 * a, time.numpy()
    rate = k * math.pi / A
    whole = rate * (np.exp(-mu * a) - (-1.0) ** k * np.exp(mu * a)) / (mu**2 + rate**2)
    each = np.sin(k * math.pi / 2) * whole * np.exp(-(rate**2) * t / 2)
    wanted = np.exp(-(mu**2) * t / 2) * 2 / A * each.sum(0)
    got = survival(density(mu, a, time), time).numpy()
    # the rise of the density takes a few steps, over which cubics err the most
    np.testing.assert_allclose(got, wanted, atol=4e-6)
    np.testing.assert_allclose(got[50:], wanted[50:], atol=1e-7)


@pytest.mark.parametrize("mu", [0.7, 2.5])
def test_moments_of_constant_bounds(mu):
    a, time = 0.9, grid(1500, 15.0)
    g = density(mu, a, time)
    dt = time[0]
    assert g[:, 0].sum() * dt == pytest.approx(1 / (1 + math.exp(-2 * mu * a)), abs=1e-7)
    kappa = a * mu
    mean = (a / mu) * math.tanh(kappa)
    variance = (a / mu**3) * (math.tanh(kappa) - kappa / math.cosh(kappa) ** 2)
    first, second = ((g.sum(-1) * time**n).sum() * dt for n in (1, 2))
    assert first == pytest.approx(mean, abs=1e-6)
    assert second - first**2 == pytest.approx(variance, abs=1e-5)


@pytest.mark.parametrize("drift", [0.0, 1.5])
def test_collapsing_bounds_match_crank_nicolson(drift):
    bound = weibull()

    def one(t):
        b, slope = bound(torch.tensor([max(t, 1e-9)]))
        return b.item(), slope.item()

    times, flux = crank_nicolson(drift, one, 1.2)
    time = grid(120, 1.2)
    got = density(drift, bound, time).numpy()
    late = time.numpy() > 0.03
    for side in (0, 1):
        wanted = np.interp(time.numpy(), times, flux[:, side])
        assert np.abs(got[:, side] - wanted)[late].max() < 1e-4 * max(1.0, flux.max())


def simulate(drift, leak, bound, end, paths, seed, dt=1e-3):
    """Euler paths with the chance of a crossing between steps (Brownian bridge)."""
    rng = np.random.default_rng(seed)
    x, side, when = np.zeros(paths), np.zeros(paths), np.full(paths, np.inf)
    b = bound(0.0)
    for i in range(round(end / dt)):
        t = (i + 1) * dt
        new = x + (drift(t - dt / 2) - leak * x) * dt + math.sqrt(dt) * rng.standard_normal(paths)
        after = bound(t)
        alive = side == 0
        for s in (1, -1):
            near, far = b - s * x, after - s * new
            chance = np.where(far <= 0, 1.0, np.exp(-2 * near * np.maximum(far, 0) / dt))
            hit = alive & (side == 0) & (rng.random(paths) < chance)
            side[hit], when[hit] = s, t - dt / 2
        x, b = new, after
    return side, when


@pytest.mark.parametrize(("leak", "rise"), [(2.0, 0.0), (-1.0, 0.0), (1.0, 1.5)])
def test_leak_and_moving_drift_match_simulated_paths(leak, rise):
    time, end = grid(160, 1.6), 1.6
    v = 1.2
    # m' = v (1 + rise t) - leak m
    t = time
    steady = v / leak * (1 - torch.exp(-leak * t))
    ramp = v * rise / leak * (t - (1 - torch.exp(-leak * t)) / leak)
    path = Path(steady + ramp, v * (1 + rise * t), torch.tensor(leak))
    bound = bounds.Exponential(1.0, 1.2).double()
    g = density(path, lambda s: tuple(x.detach() for x in bound(s)), time)
    n = 40_000
    side, when = simulate(
        lambda s: v * (1 + rise * s), leak, lambda s: math.exp(-s / 1.2), end, n, 0
    )
    edges = np.linspace(0, end, 9)
    for j, s in enumerate((1, -1)):
        for low, high in itertools.pairwise(edges):
            inside = (time > low + 1e-9) & (time <= high + 1e-9)
            # trapezoid over a bin of 20 steps
            own = torch.cat([torch.zeros(1), g[:, j]])
            at = torch.cat([torch.zeros(1), time])
            cells = 0.5 * (own[1:] + own[:-1]) * at.diff()
            p = cells[inside].sum().item()
            found = ((side == s) & (when > low) & (when <= high)).mean()
            se = math.sqrt(max(p * (1 - p), 1 / n) / n)
            assert abs(found - p) < 4 * se + 2e-3 * p, (s, low, found, p)


def test_no_leak_is_the_limit_of_a_small_one():
    time = grid(100, 1.5)
    v = 1.2 * torch.ones_like(time)
    free = density(Path(1.2 * time, v), 0.9, time)
    for leak in (1e-9, 1e-5):
        near = density(Path(1.2 * time, v, torch.tensor(leak)), 0.9, time)
        assert (near - free).abs().max() < 10 * leak + 1e-9


def test_a_constant_drift_is_a_tilt():
    time = grid(200, 2.0)
    direct = density(Path(1.4 * time, torch.full_like(time, 1.4)), weibull(), time, 0.2)
    assert (density(1.4, weibull(), time, 0.2) - direct).abs().max() < 1e-7


def test_drift_variability_is_an_average_over_drifts():
    time, eta, v = grid(100, 1.5), 0.8, 1.1
    at, weight = np.polynomial.hermite_e.hermegauss(41)
    each = density(torch.as_tensor(v + eta * at), 0.9, time)
    wanted = (torch.as_tensor(weight / weight.sum())[:, None, None] * each).sum(0)
    b, slope = torch.full_like(time, 0.9), torch.zeros_like(time)
    zero = torch.zeros(1)
    log = tilt(b, time, zero[0], torch.tensor(v), torch.tensor(eta))
    got = solve(b, slope, time, zero)[0] * log.exp()
    assert (got - wanted).abs().max() < 1e-8


@given(st.floats(-3, 3), st.floats(0.6, 1.5), st.floats(-0.5, 0.5), st.floats(0.3, 2.0))
@settings(max_examples=12, deadline=None)
def test_the_mass_of_a_bound_that_comes_down_is_one(mu, height, place, tau):
    # by then a constant bound would have left less than 1e-7, and this one is lower
    end = 13.0 * height**2
    time = grid(1200, end)
    bound = bounds.Exponential(height, tau).double()
    g = density(mu, lambda t: tuple(x.detach() for x in bound(t)), time, place * height)
    assert torch.isfinite(g).all()
    assert (g >= 0).all()
    assert g.sum() * time[0] == pytest.approx(1.0, abs=2e-3)
    assert survival(g, time).diff().max() < 1e-3


def test_convergence_is_of_order_four_and_a_half():
    bound, end = weibull(), 1.6
    fine = density(1.0, bound, grid(1600, end))
    errors = [
        (density(1.0, bound, grid(n, end)) - fine[1600 // n - 1 :: 1600 // n]).abs().max()
        for n in (100, 200, 400)
    ]
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(rates) > 4.0


def test_the_error_estimate_bounds_the_error():
    bound, time = weibull(), grid(100, 1.6)
    fine = density(1.0, bound, grid(1600, 1.6))[15::16]
    actual = (density(1.0, bound, time) - fine).abs().max()
    assert actual < error(1.0, bound, time).max()


def test_gradients():
    time = grid(40, 1.5)

    def total(v, height, tau, x0):
        t = time

        def bound(s):
            b = height * torch.exp(-s / tau)
            return b, -b / tau

        g = density(v, bound, t, x0)
        return (g * torch.linspace(0.5, 1.5, 40)[:, None]).sum()

    given = tuple(torch.tensor(x, requires_grad=True) for x in (1.2, 0.9, 1.1, 0.1))
    assert torch.autograd.gradcheck(total, given)


def test_second_derivatives_are_finite_and_right():
    time = grid(40, 1.5)
    function = lambda v: density(v, 0.9, time)[10, 0].log()  # noqa: E731
    v, h = torch.tensor(1.2), 1e-4
    twice = torch.func.jacrev(torch.func.jacrev(function))(v)
    wanted = (function(v + h) - 2 * function(v) + function(v - h)) / h**2
    assert twice == pytest.approx(wanted.item(), rel=1e-4)


def test_a_bound_that_reaches_zero_ends_everything():
    time = grid(300, 1.5)
    line = bounds.Linear(1.0, tau=1.0).double()
    g = density(0.5, lambda t: tuple(x.detach() for x in line(t)), time)
    assert (g[time >= 1.0] == 0).all()
    assert torch.isfinite(g).all()
    assert g.sum() * time[0] == pytest.approx(1.0, abs=2e-3)


def test_a_tensor_bound_is_differentiated_numerically():
    time = grid(400, 1.6)
    b, _ = weibull()(time)
    assert (density(1.0, b, time) - density(1.0, weibull(), time)).abs().max() < 1e-3
    both = density(torch.tensor([0.0, 1.0]), torch.stack([b, b]), time)
    assert torch.equal(both[1], density(1.0, b, time))


def test_draws_and_conditions_are_one_call():
    time = grid(60, 1.5)
    v, height = torch.randn(3, 4), torch.rand(3, 1) + 0.5
    both = density(v, height[..., None].expand(3, 4, 60), time)
    alone = torch.stack(
        [
            torch.stack([density(x, h, time) for x in row])
            for row, h in zip(v, height.flatten().tolist(), strict=True)
        ]
    )
    assert torch.allclose(both, alone, atol=1e-12)
    mapped = torch.vmap(lambda x: solve(time * 0 + 0.9, time * 0, time, x[None]))(
        torch.rand(5) - 0.5
    )
    assert mapped.shape == (5, 1, 60, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.9, torch.tensor([0.0, 0.1, 0.2])), "without 0"),
        ((1.0, 0.9, torch.tensor([0.1, 0.2, 0.4])), "wanted dt, 2 dt"),
        ((1.0, 0.9, grid(10, 1.0), 0.9), "the start 0.9 is not between the bounds ±0.9"),
        ((1.0, -0.9, grid(10, 1.0)), "wanted it above 0"),
        ((math.nan, 0.9, grid(10, 1.0)), "the drift is not finite: nan"),
        ((1.0, torch.ones(7), grid(10, 1.0)), "its last dimension is time"),
    ],
)
def test_what_makes_no_sense_says_so(arguments, message):
    with pytest.raises(ValueError, match=message):
        density(*arguments)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.999, 2.001, 7.0, 60.0])
def test_weights_next_to_the_diagonal_integrate_a_root_times_an_exponential(rate):
    x = torch.arange(0.0, 400.0)
    w = weights(torch.tensor(rate))
    for p in (1 + 0 * x, x, x * x):
        f = x.sqrt() * torch.exp(-rate * x) * p
        added = w @ torch.stack([p[0], p[1], 2**0.5 * p[2]])
        if rate:
            k = round(float(torch.log2(p[2])))
            wanted = math.gamma(k + 1.5) * rate ** (-k - 1.5)
            # twelve terms of the sum at κ dt = 2 leave 13^2.5 e^-26
            assert (f.sum() + added).item() == pytest.approx(wanted, abs=4e-9)
        else:  # the sum diverges; less its integral it is a value of ζ: Navot's
            zeta = {1.0: -0.2078862249773546, 2.0: -0.0254852018898331, 4.0: 0.0085169287778503}
            assert added.item() == pytest.approx(-zeta[float(p[2])], abs=1e-9)  # κ dt is 1e-9


def test_paths_that_run_away_within_a_step():
    # at the bound the evidence moves at 23 per second: the kernel is over in a fifth of a step
    def path(time):
        gain = torch.tensor([[0.0], [1.3], [10.0]])
        x = 4.6 * time
        return Path(gain * torch.expm1(x) / 4.6, gain + 0 * time, torch.full((3,), -4.6))

    fine = density(path, 4.95, grid(1600, 1.6))[:, 15::16]
    found = density(path, 4.95, grid(100, 1.6))
    assert ((found - fine).abs().amax((1, 2)) / fine.amax((1, 2))).max() < 2e-3
    assert survival(found, grid(100, 1.6))[:, -1].abs().max() < 2e-2
