"""Survivors by sines: held against series, kernels, and what is left of one; far into the tail."""

import mpmath
import numpy as np
import pytest
import torch

from neurodiff.perception import bounds
from neurodiff.perception.drifts import Leak, Steady, Urgency
from neurodiff.perception.first_passage import density, survival
from neurodiff.perception.killed import killed
from neurodiff.perception.survivors import log_survival

BOUNDS = {
    "constant": lambda: bounds.Constant(0.9),
    "exponential": lambda: bounds.Exponential(1.2, 1.0),
    "linear": lambda: bounds.Linear(1.2, 2.5),
    "Weibull": lambda: bounds.Weibull(1.15, 0.46, 4.0, 0.39),
    "falls at once": lambda: bounds.Weibull(1.2, 0.3, 0.7, 0.2),
    "spline": lambda: bounds.Spline(2.0),
}
DRIFTS = {
    "leak": lambda: Leak(10.0, 2.0),
    "instability": lambda: Leak(10.0, -1.5),
    "urgency": lambda: Urgency(10.0),
}


def grid(steps, end=2.0):
    return torch.linspace(0.0, end, steps + 1, dtype=torch.float64)


def left(bound, time, moved, start=0.0):
    b = bound(torch.cat([1e-6 * time[1:2], time[1:]]))[0].detach()
    one = torch.ones(1, dtype=torch.float64)
    return log_survival(b, time, moved, start * b[0] * one, one)[0]


def steady(v, spread=None):
    each = [None if x is None else torch.tensor([x], dtype=torch.float64) for x in (v, spread)]
    return Steady(*each)


def series(b, v, x, t):
    """Log P(T > t) at a constant bound, by its sines; they cancel, so in fifty digits."""
    with mpmath.workdps(50):
        b, v, x, t = (mpmath.mpf(y) for y in (b, v, x, t))

        def term(k):
            wave = k * mpmath.pi / (2 * b)
            size = mpmath.sin(wave * (x + b)) * wave / b * mpmath.exp(-v * x)
            ends = mpmath.exp(-v * b) - (-1) ** k * mpmath.exp(v * b)
            return size * ends / (v * v + wave**2) * mpmath.exp(-(v * v + wave**2) * t / 2)

        last = int(2 * b / mpmath.pi * mpmath.sqrt(240 / t)) + 2  # e^{-120} is left out
        return float(mpmath.log(mpmath.fsum(term(k) for k in range(1, last))))


@pytest.mark.parametrize("b", [0.2, 0.4, 0.8, 1.5, 2.5])
@pytest.mark.parametrize("v", [0.0, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("start", [0.0, 0.5, -0.9])
def test_a_constant_bound_is_its_series_however_few_are_left(b, v, start):
    time = grid(1000, 5.0)
    found = left(bounds.Constant(b).double(), time, steady(v), start)
    # soon after the start a strong drift may take paths from one bound to the other
    near = 2e-6 if v * b * (1 + abs(start)) < 40 else 1e-2
    for i in (2, 10, 50, 200, 1000):
        assert found[i].item() == pytest.approx(series(b, v, start * b, time[i].item()), abs=near)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("v", [0.0, 3.0])
def test_moving_bounds_leave_those_that_positive_kernels_leave(name, v):
    bound, time, drift = BOUNDS[name]().double(), grid(400), torch.tensor([v]).double()
    kernels = killed(drift, bound, time[1:], nodes=60)
    exact = kernels.mass.sum(-1).log()[0] + kernels.scale[0, :, 0]
    found = left(bound, time, steady(v))[1:]
    # both take bounds for straight within 5 ms; in the first steps the kernels' nodes are few
    off = (found - exact)[20:].abs()
    assert (off < 2e-3 + 1e-4 * exact[20:].abs()).all()


@pytest.mark.parametrize("name", ["exponential", "Weibull"])
def test_what_straight_steps_cost_falls_as_their_square(name):
    bound = BOUNDS[name]().double()
    ends = [left(bound, grid(n), steady(1.0))[-1].item() for n in (50, 100, 200, 1600)]
    off = [abs(end - ends[-1]) for end in ends[:-1]]
    assert off[0] / off[1] == pytest.approx(4.0, rel=0.1)
    assert off[1] / off[2] == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("name", ["constant", "Weibull", "linear"])
@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("start", [0.0, 0.4])
def test_drifts_that_change_leave_what_is_left_of_one(name, drift, start):
    bound, moved = BOUNDS[name]().double(), DRIFTS[drift]().double()
    strength, fine = {"strength": torch.tensor([[0.3]]).double()}, grid(1000)
    b0 = bound(fine[1:2] * 1e-6)[0].item()
    g = density(moved(strength, fine[1:]), bound, fine[1:], start * b0).detach()
    wanted = survival(g, fine[1:])[0]
    found = left(bound, grid(400), moved(strength, grid(400)), start).detach()
    for seconds in (0.1, 0.25, 0.5, 1.0, 2.0):
        i, j = round(200 * seconds), round(500 * seconds) - 1
        assert found[i].exp().item() == pytest.approx(wanted[j].item(), abs=5e-5)
        if wanted[j] > 1e-4:
            assert found[i].item() == pytest.approx(wanted[j].log().item(), abs=5e-4)


@pytest.mark.parametrize("name", ["constant", "Weibull"])
def test_drifts_that_differ_over_trials_are_averaged(name):
    bound, time = BOUNDS[name]().double(), grid(400)
    at, weight = np.polynomial.hermite_e.hermegauss(60)
    each = [left(bound, time, steady(2.0 + 1.5 * a), 0.4) for a in at]
    wanted = (torch.stack(each) + torch.tensor(weight / weight.sum()).log()[:, None]).logsumexp(0)
    assert torch.allclose(left(bound, time, steady(2.0, 1.5), 0.4), wanted, atol=1e-8)


@pytest.mark.parametrize(
    "bound",
    [
        bounds.Weibull(0.5, 0.05, 6.0, 0.1), bounds.Weibull(1.0, 0.1, 12.0, 0.1),
        bounds.Linear(0.7, 0.05), bounds.Exponential(0.7, 0.05), bounds.Constant(0.05),
        bounds.Constant(20.0),
    ],
)  # fmt: skip
def test_bounds_that_fall_at_once_or_are_far_leave_a_falling_share_and_true_gradients(bound):
    time, bound = grid(400), bound.double()

    def last(*values):
        own = dict(zip([n for n, _ in bound.named_parameters()], values, strict=True))
        at = torch.cat([1e-6 * time[1:2], time[1:]])
        b = torch.func.functional_call(bound, own, (at,))[0]
        one = torch.ones(1, dtype=torch.float64)
        return log_survival(b, time, steady(1.0), 0.3 * b[:1], one)[0]

    found = last(*bound.parameters()).detach()
    assert (found <= 0).all()
    assert (found.diff() < 1e-4).all()
    given = tuple(p.detach().requires_grad_() for p in bound.parameters())
    some = [20, 100, 400]
    assert torch.autograd.gradcheck(lambda *p: last(*p)[some], given, atol=1e-4, rtol=1e-3)
