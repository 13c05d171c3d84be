"""The bounded kind: mass, lapses, omissions, delays, bounds and drifts, and what is fitted."""

import itertools
import math

import numpy as np
import pytest
import torch
import xarray as xr

import neurodiff as nd
from neurodiff.data.choice_rt import choice_rt
from neurodiff.inference.join import join
from neurodiff.perception import bounds
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.drifts import Leak, Power, Urgency
from neurodiff.perception.first_passage import density

BOUNDS = {
    "constant": lambda: bounds.Constant(0.8),
    "exponential": lambda: bounds.Exponential(1.2, 0.9),
    "linear": lambda: bounds.Linear(1.2, 2.5),
    "weibull": lambda: bounds.Weibull(1.2, 0.7, 2.5, 0.3),
    "spline": lambda: bounds.Spline(2.0),
}
DRIFTS = {
    "power": lambda: Power(8.0),
    "all of it": lambda: Power(8.0, exponent=1.2, bias=0.3, spread=1.0),
    "leak": lambda: Leak(8.0, 1.0),
    "urgency": lambda: Urgency(8.0, 1.0),
}
STRENGTH = torch.tensor([-0.2, -0.05, 0.0, 0.05, 0.2])


def trials(strength, **more):
    given = {"strength": strength, "choice_known": torch.ones_like(strength)}
    return given | more


def whole(model, strength, cells=8000):
    """Mass over both choices and all times, and of no answer, at one strength."""
    width = model.horizon / cells
    time = width * (torch.arange(cells) + 0.5)
    given = trials(torch.full((cells,), strength))
    mass = sum(model(given).log_prob(s * time).exp().sum() * width for s in (1, -1))
    none = model(trials(torch.tensor([strength]))).log_prob(torch.tensor([torch.inf])).exp()
    return (mass + none[0]).item()


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("drift", DRIFTS)
def test_choices_times_and_no_answer_have_mass_one(bound, drift):
    # lapses included, which is where others lose some
    model = Bounded(DRIFTS[drift](), BOUNDS[bound](), 2.0, 120, lapse=0.1).double()
    assert whole(model, 0.1) == pytest.approx(1.0, abs=2e-5)


@pytest.mark.parametrize("jitter", [None, 0.04])
@pytest.mark.parametrize("start", [{}, {"start": 0.3}, {"start": -0.1, "start_spread": 0.4}])
def test_mass_is_one_whatever_the_delay_and_start(jitter, start):
    model = Bounded(Power(8.0), bounds.Weibull(), 2.0, 120, jitter=jitter, lapse=0.05, **start)
    assert whole(model.double(), 0.1) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_slope_of_a_bound_is_its_derivative(bound):
    module = BOUNDS[bound]().double()
    time = torch.linspace(0.05, 1.9, 40)
    _, slope = module(time)
    wanted = torch.func.vmap(torch.func.grad(lambda t: module(t)[0].squeeze()))(time)
    assert torch.allclose(slope, wanted, atol=1e-10)
    assert module(torch.tensor([1e-9]))[0].item() == pytest.approx(module.height.item(), rel=1e-6)
    assert (slope <= 0).all()


@pytest.mark.parametrize("drift", ["leak", "urgency"])
def test_the_mean_path_obeys_its_equation(drift):
    module = DRIFTS[drift]().double()
    stimulus = {"strength": torch.tensor([[0.3]])}

    def mean(t):
        return module(stimulus, t[None]).mean.squeeze()

    time = torch.linspace(0.1, 2.0, 20)
    path = module(stimulus, time)
    rate = torch.func.vmap(torch.func.grad(mean))(time)
    leak = 0.0 if path.leak is None else path.leak[0]
    assert torch.allclose(rate, path.slope[0] - leak * path.mean[0], atol=1e-10)


def test_a_fixed_delay_shifts_the_density_exactly():
    model = Bounded(Power(8.0), bounds.Constant(0.9), 2.0, 100, jitter=None, lapse=0.0).double()
    rt = torch.linspace(0.35, 1.9, 300)
    got = model(trials(torch.full_like(rt, 0.15))).log_prob(rt).exp()
    a, mu, t = 0.9, 1.2, rt - 0.3
    k = torch.arange(-40, 41)[:, None]
    z = a + 4 * a * k
    series = (z * torch.exp(-z * z / (2 * t)) / torch.sqrt(2 * math.pi * t**3)).sum(0)
    wanted = series * torch.exp(mu * a - mu * mu * t / 2)
    assert ((got - wanted).abs() / (wanted + 1e-3)).max() < 2e-4


def test_a_jittered_delay_is_an_average_over_delays():
    rt, sd = torch.linspace(0.3, 1.7, 60), 0.05
    model = Bounded(Power(8.0), bounds.Weibull(), 2.0, 200, jitter=sd, lapse=0.0).double()
    got = model(trials(torch.full_like(rt, 0.15))).log_prob(rt).exp()
    fixed = Bounded(Power(8.0), bounds.Weibull(), 2.0, 200, jitter=None, lapse=0.0).double()
    at, weight = np.polynomial.hermite_e.hermegauss(61)
    wanted = torch.zeros_like(rt)
    for x, w in zip(at, weight / weight.sum(), strict=True):
        fixed.delay.data = torch.tensor(0.3 + sd * x)
        wanted += w * fixed(trials(torch.full_like(rt, 0.15))).log_prob(rt).exp().detach()
    assert (got - wanted).abs().max() < 5e-4


def test_starts_are_averaged_over():
    time = 2.0 / 200 * torch.arange(1, 201)
    model = Bounded(
        Power(8.0), bounds.Constant(0.9), 2.0, 200, start=0.1, start_spread=0.5
    ).double()
    values = dict(model.named_parameters())
    got = model._decisions(values, {"strength": torch.tensor([[0.15]])})[0, -200:]
    at, weight = np.polynomial.legendre.leggauss(31)
    x0 = 0.9 * (0.1 + 0.5 * 0.9 * torch.as_tensor(at))
    wanted = (torch.as_tensor(0.5 * weight)[:, None, None] * density(1.2, 0.9, time, x0)).sum(0)
    assert (got - wanted).abs().max() < 1e-3


def test_a_choice_that_says_nothing_counts_as_both():
    model = Bounded(Power(8.0), bounds.Constant(0.8), 2.0).double()
    y = torch.tensor([0.6, 0.6, -0.6])
    given = trials(torch.full((3,), 0.1)) | {"choice_known": torch.tensor([0.0, 1.0, 1.0])}
    p = model(given).log_prob(y).exp()
    assert p[0].item() == pytest.approx((p[1] + p[2]).item(), rel=1e-12)


def test_no_answer_is_survival_and_late_answers_do_not_exist():
    model = Bounded(Power(8.0), bounds.Constant(1.2), 1.0, 200, jitter=None, lapse=0.0).double()
    given = trials(torch.full((2,), 0.05))
    none, late = model(given).log_prob(torch.tensor([torch.inf, 1.2]))
    time = 0.7 / 700 * torch.arange(1, 701)
    g = density(0.4, 1.2, time)
    mass = (g.sum() - 0.5 * g[-1].sum()) * time[0]
    assert none.exp().item() == pytest.approx(1 - mass.item(), abs=1e-6)
    assert late == -torch.inf


def test_before_the_delay_only_lapses_answer():
    model = Bounded(Power(8.0), bounds.Constant(0.8), 2.0, jitter=None, lapse=0.04).double()
    p = model(trials(torch.zeros(1))).log_prob(torch.tensor([0.1])).exp()
    assert p.item() == pytest.approx(0.04 / 4, rel=1e-12)


def test_all_but_lapses_are_yet_to_answer_before_the_delay_and_soon_after_it():
    """P(T > t) is that of images, from time 0 on, also where many decide within a few steps."""
    b, v = 0.5, 5.0
    model = Bounded(Power(10.0), bounds.Constant(b), 2.0, jitter=None, delay=0.3).double()
    t = torch.tensor([-0.1, 0.0, 0.05, 0.15])
    given = trials(torch.full((4,), v / 10.0)) | {"deadline": 0.3 + t}
    found = model(given).log_prob(torch.full((4,), torch.inf)).exp() / 0.99
    x, k = torch.linspace(-b, b, 4001), torch.arange(-6, 7)[:, None]
    for i in (2, 3):
        image = sum(
            s * torch.exp(-((x - y) ** 2) / (2 * t[i]))
            for s, y in ((1, 4 * k * b), (-1, (4 * k + 2) * b))
        )
        there = torch.as_tensor(image).sum(0) * torch.exp(v * x - 0.5 * v * v * t[i])
        left = torch.trapezoid(there, x) / torch.sqrt(2 * math.pi * t[i])
        assert found[i].item() == pytest.approx(left.item(), abs=5e-3)
    assert found[:2].detach() == pytest.approx(torch.ones(2), abs=1e-6)


@pytest.mark.parametrize("more", [{}, {"start": 0.3}, {"start": -0.2, "start_spread": 0.4}])
@pytest.mark.parametrize("drift", ["leak", "urgency"])
def test_mirrored_strengths_share_a_solve(drift, more):
    model = Bounded(DRIFTS[drift](), bounds.Weibull(), 2.0, **more).double()
    values, stimulus = dict(model.named_parameters()), {"strength": STRENGTH[:, None]}
    solved = []
    passages = model._passages
    model._passages = lambda *a: solved.append(len(a[2].slope)) or passages(*a)
    shared = model._decisions(values, stimulus)
    model.drift.odd = False
    each = model._decisions(values, stimulus)
    assert solved == [3, 5]
    # corrections next to the diagonal go by the nearest start, here of either side
    assert torch.allclose(shared, each, atol=2e-6)


@pytest.mark.parametrize("drift", [Power(8.0), Leak(8.0, -4.9), Urgency(8.0)])
@pytest.mark.parametrize("height", [0.8, 5.5])  # exp(-b²/2 dt) is 0 in floating point
def test_second_derivatives_are_finite_far_from_the_data(drift, height):
    model = Bounded(drift, bounds.Constant(height), 2.0, jitter=None, lapse=0.005).double()
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    y, given = torch.tensor([-0.72, 0.1, 1.9]), trials(torch.tensor([-0.5, 0.5, 0.5]))

    def total(*values):
        both = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, both, (given,)).log_prob(y).sum()

    at = tuple(p.detach() for p in model.parameters() if p.requires_grad)
    every = torch.autograd.functional.hessian(total, at)
    assert all(torch.isfinite(x).all() for x in itertools.chain(*every))


@pytest.mark.parametrize("jitter", [None, 0.05])
def test_samples_follow_the_density(jitter):
    model = Bounded(Power(8.0), bounds.Weibull(), 1.2, 120, jitter=jitter, lapse=0.05, start=0.1)
    n = 40_000
    answer = model.double()(trials(torch.full((n,), 0.05)))
    y = answer.sample()
    edges = torch.linspace(0, 1.2, 9)
    for s, (low, high) in itertools.product((1, -1), itertools.pairwise(edges.tolist())):
        t = torch.linspace(low, high, 201)[1:] - (high - low) / 400
        given = trials(torch.full_like(t, 0.05))
        p = (model(given).log_prob(s * t).exp().sum() * (high - low) / 200).item()
        found = ((s * y > low) & (s * y <= high)).double().mean().item()
        assert abs(found - p) < 4.5 * math.sqrt(max(p * (1 - p), 1 / n) / n)
    p = answer.log_prob(torch.full((n,), torch.inf))[0].exp().item()
    assert abs(torch.isinf(y).double().mean().item() - p) < 4.5 * math.sqrt(p * (1 - p) / n) + 1e-4


def test_groups_have_parameters_of_their_own():
    model = Bounded(Power(8.0), bounds.Exponential(), 2.0, start=0.1).double()
    given = trials(STRENGTH.repeat(2), group=torch.arange(2).repeat_interleave(5))
    y = torch.linspace(0.4, 1.2, 10) * torch.tensor([1.0, -1.0]).repeat(5)
    both = {n: torch.stack([p, 1.2 * p]).detach() for n, p in model.named_parameters()}
    each = {n: p[given["group"]] for n, p in both.items()}
    got = torch.func.functional_call(model, each, (given,)).log_prob(y)
    for g in (0, 1):
        own = {n: p[g] for n, p in both.items()}
        here = given["group"] == g
        alone = torch.func.functional_call(model, own, (trials(STRENGTH),)).log_prob(y[here])
        assert torch.allclose(got[here], alone, atol=1e-12)


def rows(n=40, **more):
    rng = np.random.default_rng(0)
    c = rng.choice([-0.2, 0.0, 0.2], n)
    columns = {"coherence": c, "rt": 0.3 + rng.gamma(3, 0.1, n), "choice": (c >= 0) * 1.0}
    return xr.Dataset({k: ("trial", v) for k, v in (columns | more).items()})


def test_signed_times():
    data = choice_rt(rows(4, rt=np.array([0.5, 0.6, np.nan, 1.4])), deadline=1.0)
    sign = np.where(data["choice"].values > 0, 1, -1)
    assert np.allclose(data["signed_rt"].values[:2], sign[:2] * [0.5, 0.6])
    assert np.isinf(data["signed_rt"].values[2:]).all()
    assert np.isnan(choice_rt(rows(4, rt=np.full(4, np.nan) + 0))["signed_rt"].values).all()


def test_accuracy_coding_makes_strengths_positive():
    data = rows(6).drop_vars("choice").assign(correct=("trial", [1.0, 0, 1, 0, 1, 1]))
    found = choice_rt(data)
    assert (found["strength"].values >= 0).all()
    assert ((found["signed_rt"].values > 0) == (data["correct"].values > 0)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rt": 500 * np.ones(40)}, "looks like milliseconds"),
        ({"rt": np.zeros(40)}, "rt: 0 at trial 0"),
        ({"choice": 2 * np.ones(40)}, "choice: 2 at trial"),
    ],
)
def test_bad_times_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        choice_rt(rows(**change))


def test_a_time_beyond_the_horizon_is_an_error():
    model = Bounded(Power(), bounds.Constant(), horizon=0.5)
    with pytest.raises(ValueError, match=r"beyond the horizon of 0.5 s \(\d+ of 40 are\)"):
        join(model, choice_rt(rows()))


def test_a_fit_from_python():
    data = choice_rt(rows(200))
    model = Bounded(Power(), bounds.Exponential(), horizon=2.0, steps=50)
    fit = nd.fit(model, data, nd.Laplace(draws=100, starts=1), seed=0)
    assert {"drift.gain", "bound.tau", "jitter"} <= set(fit["posterior"].data_vars)
    assert np.isfinite(fit["loo"]["elpd"].values).all()
    assert np.abs(fit["posterior_predictive"]["signed_rt"].values).min() > 0


def test_a_grid_that_is_too_coarse_is_not_rewarded():
    # over in four steps: as it is solved, the density has three times the mass it should
    model = Bounded(Power(180.0), bounds.Weibull(7.6, 0.15, 4.4, 0.08), 1.7, 85, lapse=0.0).double()
    assert whole(model, 0.5) <= 1 + 1e-6
