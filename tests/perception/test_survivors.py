"""How many are left: by series, kernels, and what passages leave of one; far into the tail."""

import mpmath
import numpy as np
import pytest
import torch

from neurodiff.perception import bounds
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.drifts import Leak, Power, Steady, Urgency
from neurodiff.perception.first_passage import density, survival
from neurodiff.perception.killed import killed
from neurodiff.perception.survivors import sines

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
    log, trusted = sines(b, time, moved, start * b[0] * one, one)
    return log[0], trusted[0]


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
    found, trusted = left(bounds.Constant(b).double(), time, steady(v), start)
    for i in (2, 10, 50, 200, 1000):
        wanted = series(b, v, start * b, time[i].item())
        if trusted[i] and wanted < -2:  # else a difference is taken
            assert found[i].item() == pytest.approx(wanted, abs=1e-4)
    # but for the first moments, and drifts that take paths from one bound to the other in these
    assert trusted[time > (0.05 + 0.01 * v * b) * b * b].all()


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("v", [0.0, 3.0])
def test_moving_bounds_leave_those_that_positive_kernels_leave(name, v):
    bound, time, drift = BOUNDS[name]().double(), grid(400), torch.tensor([v]).double()
    kernels = killed(drift, bound, time[1:], nodes=60)
    exact = kernels.mass.sum(-1).log()[0] + kernels.scale[0, :, 0]
    found, trusted = (each[1:] for each in left(bound, time, steady(v)))
    assert trusted[20:].all()
    # kernels of 5 ms, steps of 20; in the first steps the kernels' nodes are few
    off = (found - exact)[20:].abs()
    assert (off < 2e-3 + 1e-4 * exact[20:].abs()).all()


@pytest.mark.parametrize(("name", "drift"), [("Weibull", "none"), ("constant", "leak")])
def test_what_steps_cost_falls_as_their_square(name, drift):
    bound, strength = BOUNDS[name]().double(), {"strength": torch.tensor([[0.3]]).double()}
    ends = []
    for n in (50, 100, 200, 1600):
        moved = steady(1.0) if drift == "none" else DRIFTS[drift]().double()(strength, grid(4 * n))
        ends.append(left(bound, grid(4 * n), moved)[0][-1].item())
    off = [abs(end - ends[-1]) for end in ends[:-1]]
    assert off[1] < 2e-3
    assert off[0] / off[1] == pytest.approx(4.0, rel=0.15)
    assert off[1] / off[2] == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize("name", ["constant", "Weibull", "linear"])
@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("start", [0.0, 0.4])
def test_drifts_that_change_leave_what_is_left_of_one(name, drift, start):
    bound, moved = BOUNDS[name]().double(), DRIFTS[drift]().double()
    strength, fine = {"strength": torch.tensor([[0.3]]).double()}, grid(1000)
    b0 = bound(fine[1:2] * 1e-6)[0].item()
    g = density(moved(strength, fine[1:]), bound, fine[1:], start * b0).detach()
    wanted = survival(g, fine[1:])[0]
    found, trusted = left(bound, grid(400), moved(strength, grid(400)), start)
    for seconds in (0.1, 0.25, 0.5, 1.0, 2.0):
        i, j = round(200 * seconds), round(500 * seconds) - 1
        assert trusted[i] or seconds < 0.2
        if not trusted[i]:
            continue
        # in steps of 20 ms, which take a leak and a drift for constant
        assert found[i].exp().item() == pytest.approx(wanted[j].item(), abs=1e-3)
        if wanted[j] > 1e-4:
            assert found[i].item() == pytest.approx(wanted[j].log().item(), abs=3e-3)


@pytest.mark.parametrize("name", ["constant", "Weibull"])
def test_drifts_that_differ_over_trials_are_averaged(name):
    bound, time = BOUNDS[name]().double(), grid(400)
    at, weight = np.polynomial.hermite_e.hermegauss(60)
    each = [left(bound, time, steady(2.0 + 1.5 * a), 0.4)[0] for a in at]
    wanted = (torch.stack(each) + torch.tensor(weight / weight.sum()).log()[:, None]).logsumexp(0)
    found, trusted = left(bound, time, steady(2.0, 1.5), 0.4)
    assert trusted[40:].all()
    assert torch.allclose(found[trusted], wanted[trusted], atol=1e-8)


@pytest.mark.parametrize(
    "bound",
    [
        bounds.Weibull(0.5, 0.05, 6.0, 0.1), bounds.Weibull(1.0, 0.1, 12.0, 0.1),
        bounds.Linear(0.7, 0.05), bounds.Exponential(0.7, 0.05), bounds.Constant(0.05),
        bounds.Constant(20.0),
    ],
)  # fmt: skip
def test_bounds_that_fall_at_once_or_are_far_leave_fewer_and_fewer_with_true_gradients(bound):
    model = Bounded(Power(10.0), bound, 2.0, start=0.3).double()
    names = [n for n, _ in model.named_parameters()]
    given = {"strength": torch.full((40,), 0.1), "choice_known": torch.ones(40)}
    given["deadline"] = torch.linspace(0.05, 2.0, 40)
    never = torch.full((40,), torch.inf)

    def none(*values):
        own = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, own, (given,)).log_prob(never)

    found = none(*model.parameters()).detach()
    assert (found.diff() <= 1e-6).all()
    at = tuple(p.detach().requires_grad_() for p in model.parameters())
    some = [5, 20, 39] if (bound(torch.ones(1))[0] > 0).all() else [1, 2, 3]  # until it has closed
    assert torch.autograd.gradcheck(lambda *p: none(*p)[some], at, atol=1e-4, rtol=5e-3)


@pytest.mark.parametrize(
    ("drift", "bound", "start"),
    [
        (Urgency(10.0), bounds.Weibull(), -0.6), (Leak(8.0, 3.0), bounds.Constant(2.0), 0.0),
        (Leak(8.0, 3.0), bounds.Constant(2.0), -0.6), (Leak(8.0, -3.0), bounds.Constant(1.5), -0.3),
        (Urgency(5.0, 0.3), bounds.Constant(2.0), 0.0), (Power(25.0), bounds.Weibull(), -0.6),
        (Power(25.0), bounds.Constant(2.0), -0.9),
    ],
)  # fmt: skip
def test_steep_drifts_leave_what_answers_do_not_take(drift, bound, start):
    model = Bounded(drift, bound, 1.0, 50, jitter=0.02, start=start).double()
    cells = 2000
    for end in (0.4, 0.5, 0.6, 0.75, 1.0):
        time = end / cells * (torch.arange(cells) + 0.5)
        one = torch.ones(cells)
        found = model({"strength": one, "choice_known": one, "deadline": end * one})
        mass = sum(found.log_prob(s * time).exp().sum() * end / cells for s in (1, -1))
        none = found.log_prob(torch.inf * one).exp()[0]
        assert (mass + none).item() == pytest.approx(1.0, abs=5e-4)
