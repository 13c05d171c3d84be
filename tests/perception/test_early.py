"""Decisions within a few steps: densities between steps, nodes that sum them, and the check."""

import math

import pytest
import torch

from neurodiff.diffusion.laws import Normal
from neurodiff.perception import bounds
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.deadline import DeadlineMixture
from neurodiff.perception.drifts import Leak, Power, Urgency
from neurodiff.perception.early import nested
from neurodiff.perception.first_passage import density
from neurodiff.perception.race import Race

BOUNDS = {
    "constant": lambda: bounds.Constant(0.61),
    "exponential": lambda: bounds.Exponential(0.7, 1.5),
    "linear": lambda: bounds.Linear(0.7, 1.8),
    "weibull": lambda: bounds.Weibull(0.75, 0.3, 2.5, 0.3),
    "spline": lambda: bounds.Spline(1.6),
}
DRIFTS = {
    "power": lambda: Power(26.0),
    "spread": lambda: Power(26.0, exponent=1.2, bias=0.3, spread=2.0),
    "leak": lambda: Leak(26.0, 2.0),
    "unstable": lambda: Leak(24.0, -2.0),
    "urgency": lambda: Urgency(22.0, 0.7),
}
# of the person with the fastest decisions: 0.045 ± 0.015 s at the last of these
STRENGTHS = torch.tensor([-0.512, -0.128, 0.0, 0.032, 0.256, 0.512])


def bounded(bound, drift, steps, **more):
    return Bounded(DRIFTS[drift](), BOUNDS[bound](), 1.6, steps, **more).double()


def decisions(model):
    values = dict(model.named_parameters())
    return model._decisions(values, {"strength": STRENGTHS[:, None]}).detach()


@pytest.mark.parametrize("at", [0.03, 0.08, 0.11, 0.125, 0.14, 0.3, 0.9])
def test_nodes_integrate_what_is_narrow_early_and_wide_later(at):
    nodes, width = nested(0.02 * torch.arange(1.0, 101.0))
    sd, step = (0.004, 0.005) if at < 0.08 else (0.018, 0.02)
    weight = torch.exp(-0.5 * ((nodes - at) / sd) ** 2) / (math.sqrt(2 * math.pi) * sd)
    # sums of normals are exact to 2 exp(-2 pi² s²/h²), s also that of the edge times the density
    edge = (sd**-2 + 0.02**-2) ** -0.5 if 0.05 < at < 0.2 else sd
    rule = 2 * math.exp(-2 * math.pi**2 * (edge / step) ** 2)
    assert (width @ weight).item() == pytest.approx(1.0, abs=rule + 1e-7)


@pytest.mark.parametrize("start", [{}, {"start": 0.2}, {"start": -0.1, "start_spread": 0.4}])
@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("bound", BOUNDS)
def test_densities_between_steps_are_those_of_steps_a_quarter_as_long(bound, drift, start):
    coarse = bounded(bound, drift, 80, **start)
    fine = bounded(bound, drift, 320, **start)
    early, n = len(coarse.nodes) - 80, len(fine.time)
    got, wanted = decisions(coarse)[:, :early], decisions(fine)[:, -n:][:, :early]
    # within a thousandth of the peak, as at the steps themselves: what varies in time is solved for
    assert ((got - wanted).abs() / wanted.amax((-2, -1), keepdim=True)).max() < 2e-3


def test_a_bound_that_is_far_for_its_drift_leaves_no_density_out():
    # without the tilt the density underflows; with one bound in reach it is inverse Gaussian
    b, v = 8.0, 80.0
    model = Bounded(Power(v), bounds.Constant(b), 1.6, 80, lapse=0.0).double()
    g = model._decisions(dict(model.named_parameters()), {"strength": torch.ones(1, 1)})
    t = model.nodes
    wanted = b / torch.sqrt(2 * math.pi * t**3) * torch.exp(-((b - v * t) ** 2) / 2 / t)
    assert torch.allclose(g[0, :, 0], wanted, rtol=1e-9, atol=1e-12)


MODELS = {
    f"{drift}+{bound}": lambda n, b=bound, d=drift: bounded(b, d, n, start=0.05)
    for drift in ("power", "leak", "urgency")
    for bound in ("constant", "exponential", "weibull")
}
MODELS |= {
    "race": lambda n: Race(Power(45.0), 1.6, n, height=0.87, base=1.3, start=0.02),
    "deadline": lambda n: DeadlineMixture(
        Power(26.0), bounds.Constant(0.64), Normal(-0.3, 0.4), 1.6, n, start=0.02
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_log_likelihood_of_fast_answers_is_that_of_steps_a_quarter_as_long(name):
    # as many trials as a person has; without early nodes it is 1 to 3 nats off
    strength = STRENGTHS.repeat(95)
    given = {"strength": strength, "choice_known": torch.ones_like(strength)}
    fine, coarse = MODELS[name](320).double(), MODELS[name](80).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = fine(given).sample()
    both = [model(given).log_prob(y).sum().item() for model in (fine, coarse)]
    assert both[1] == pytest.approx(both[0], abs=0.1)


def unsure(model):
    given = {"strength": STRENGTHS, "choice_known": torch.ones(6)}
    return model(given).distance(model.finer()(given)).max().item()


def test_what_the_grid_cannot_tell_is_said():
    assert unsure(bounded("constant", "power", 80)) < 1e-4
    # over within 8 ± 4 ms: there is nothing to sum; and nothing is said of steps that can tell
    fast = [Bounded(Power(100.0), bounds.Constant(0.4), 1.6, n).double() for n in (80, 320)]
    assert unsure(fast[0]) > 1e-2
    assert unsure(fast[1]) < 1e-5


def log_left(b, v, delay, jitter, horizon):
    """Log P(T + τ > horizon) at a constant bound: a series of sines, averaged over the jitter."""
    z = torch.linspace(-6.0, 6.0, 241).double()
    t, k = (horizon - delay - jitter * z)[:, None], torch.arange(1, 200).double()
    wave = k * math.pi / (2 * b)
    ends = math.exp(-v * b) - (-1.0) ** k * math.exp(v * b)
    size = torch.sin(k * math.pi / 2) * wave / b * ends / (v * v + wave * wave)
    left = (size * torch.exp(-0.5 * (v * v + wave * wave) * t)).sum(-1)
    return ((left * torch.exp(-0.5 * z * z)).sum() / torch.exp(-0.5 * z * z).sum()).log().item()


@pytest.mark.parametrize("horizon", [2.0, 5.0])
@pytest.mark.parametrize("b", [1.0, 0.8, 0.6, 0.5, 0.4, 0.25])
@pytest.mark.parametrize("v", [0.0, 1.0, 3.0])
def test_no_answer_is_as_improbable_as_it_is_however_long_the_steps(horizon, b, v):
    model = Bounded(Power(10.0), bounds.Constant(b), horizon, round(horizon / 0.02)).double()
    given = {"strength": torch.tensor([v / 10]).double(), "choice_known": torch.ones(1).double()}
    here = model(given)
    log_none = here.log_prob(torch.tensor([torch.inf])) - math.log(0.99)
    # sums over quarters of a step; what the steps of the solver cost (11 nats) is not in it
    assert log_none.item() == pytest.approx(log_left(b, v, 0.3, 0.05, horizon), abs=1e-2)
    said = here.omission_distance(model.finer()(given), torch.tensor([0])).item()
    assert said < 1e-2


# bounds that fall within a few steps of 20 ms, or are passed within as many
SUDDEN = {
    "falls": lambda: bounds.Weibull(0.7, 0.15, 4.0, 0.02),
    "falls late": lambda: bounds.Weibull(1.2, 0.4, 8.0, 0.05),
    "falls in a step": lambda: bounds.Weibull(0.5, 0.05, 6.0, 0.1),
    "falls in half a step": lambda: bounds.Weibull(1.0, 0.1, 12.0, 0.1),
    "decays": lambda: bounds.Exponential(0.7, 0.05),
    "closes": lambda: bounds.Linear(0.7, 0.15),
    "closes in two steps": lambda: bounds.Linear(0.7, 0.05),
    "low": lambda: bounds.Constant(0.3),
    "lower": lambda: bounds.Constant(0.1),
}
WEAK = {"strength": torch.tensor([0.0, 0.1, 0.5]), "choice_known": torch.ones(3)}


def sudden(name, drift, steps):
    moved = {"power": Power(12.0), "leak": Leak(12.0, 2.0)}[drift]
    return Bounded(moved, SUDDEN[name](), 1.6, steps, jitter=0.02, lapse=0.0).double()


@pytest.mark.parametrize("drift", ["power", "leak"])
@pytest.mark.parametrize("name", SUDDEN)
def test_the_error_that_is_said_is_of_the_order_of_that_there_is(name, drift):
    with torch.no_grad():
        coarse, finer, fine = (sudden(name, drift, n)(WEAK) for n in (80, 160, 960))
        said, there = coarse.distance(finer), coarse.distance(fine)
    # what is left at steps half as long may have the other sign, or be nearly as large
    assert (said > 0.25 * there - 1e-6).all()
    assert (said < 5 * there + 1e-6).all()


# of all answers, on any drift; before it was 5, 2, 160, 10 and 40 in a thousand
@pytest.mark.parametrize(
    ("name", "most"),
    [("falls", 2e-3), ("falls late", 5e-4), ("falls in half a step", 0.05), ("decays", 2e-3),
     ("closes", 4e-3)],
)  # fmt: skip
def test_times_under_bounds_that_fall_at_once(name, most):
    with torch.no_grad():
        coarse, fine = (sudden(name, "power", n)(WEAK) for n in (80, 960))
        assert coarse.distance(fine).max() < most


@pytest.mark.parametrize("drift", [0.0, 3.0])
def test_the_weights_of_a_bound_that_falls_within_a_step_are_bounded(drift):
    # the tangent at 0.1 s would have come from ten times as high: densities were 1e8 of what is
    module = bounds.Weibull(1.0, 0.1, 12.0, 0.1).double()
    bound = lambda t: tuple(x.detach() for x in module(t))  # noqa: E731
    found = density(drift, bound, 0.02 * torch.arange(1.0, 11.0))[:5]
    fine = density(drift, bound, 0.02 / 64 * torch.arange(1.0, 321.0))[63::64]
    assert ((found - fine).abs() / fine.amax(0)).max() < 5e-3


def test_densities_end_where_all_have_decided():
    model = sudden("low", "power", 80)
    g = decisions(model).sum(-1, keepdim=True).expand(-1, -1, 2)
    ended = model._at_most_one(g)
    mass = (model.width * ended.sum(-1)).sum(-1)
    assert torch.allclose(mass, torch.ones_like(mass), atol=1e-6)
    # twice what there is: the first half is kept, and nothing comes later
    early = (model.width * g.sum(-1))[:, model.nodes.argsort()].cumsum(-1) < 0.99
    ratio = (ended / g)[:, model.nodes.argsort()][early]
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=2e-4)
    assert (ended[:, -1] == 0).all()
