"""Rivals of a bound: mass, closed forms, simulation, the identity with a weighting, derivatives."""

import itertools
import math

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import integrate, stats

import neurodiff as nd
from neurodiff.data.choice_rt import choice_rt
from neurodiff.diffusion import laws
from neurodiff.inference.decisions import RIVALS, decision
from neurodiff.inference.join import join
from neurodiff.inference.stopping_curves import stopping_curves
from neurodiff.perception import bounds
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.deadline import DeadlineMixture
from neurodiff.perception.drifts import Leak, Power, Urgency
from neurodiff.perception.race import Race, first_passage
from neurodiff.perception.strength_stop import StrengthStop
from neurodiff.perception.timed import SnrStop, TimeStop

ALL = {
    "time": lambda **k: TimeStop(Power(8.0), laws.Normal(-0.7, 0.3), 2.0, start=0.1, **k),
    "time, spread": lambda **k: TimeStop(
        Power(8.0, spread=1.0), laws.Logistic(-0.7, 0.2), 2.0, **k
    ),
    "time, leak": lambda **k: TimeStop(Leak(8.0, 1.0), laws.GumbelMin(-0.7, 0.4), 2.0, **k),
    "snr": lambda **k: SnrStop(Power(8.0), laws.Logistic(-0.5, 0.5), 2.0, start=-0.1, **k),
    "strength": lambda **k: StrengthStop(
        Power(8.0, exponent=0.9), laws.Normal(0.0, 0.4), [0.0, 0.1, 0.2, 0.4, 0.5], 2.0, **k
    ),
    "race": lambda **k: Race(Power(8.0), 2.0, start=0.1, **k),
    "deadline": lambda **k: DeadlineMixture(
        Power(8.0, spread=1.0), bounds.Weibull(), laws.Normal(-0.5, 0.3), 2.0, start=0.2, **k
    ),
    "deadline, leak": lambda **k: DeadlineMixture(
        Leak(8.0, 1.0), bounds.Constant(), laws.Logistic(-0.5, 0.2), 2.0, start_spread=0.3, **k
    ),
}


def trials(strength, **more):
    return {"strength": strength, "choice_known": torch.ones_like(strength)} | more


def at_nodes(model, strength):
    """Densities of decision time and choice at one strength, early nodes first."""
    model = model.double()
    values = dict(model.named_parameters())
    return model._decisions(values, {"strength": torch.tensor([[strength]])})[0].detach()


def decided(model, strength):
    """The same at the times."""
    return at_nodes(model, strength)[-len(model.time) :]


@pytest.mark.parametrize("name", ALL)
def test_a_state_goes_into_another_model(name):
    model, other = ALL[name](delay=0.2), ALL[name]()
    other.load_state_dict(model.state_dict())
    assert other.delay.item() == model.delay.item()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_choices_times_and_no_answer_have_mass_one(name, strength):
    model, cells = ALL[name](lapse=0.1).double(), 8000
    width = model.horizon / cells
    time = width * (torch.arange(cells) + 0.5)
    given = trials(torch.full((cells,), strength))
    mass = sum(model(given).log_prob(s * time).exp().sum() * width for s in (1, -1))
    none = model(trials(torch.tensor([strength]))).log_prob(torch.tensor([torch.inf])).exp()
    # a deadline beside a bound is of the second order in the step, 20 ms here
    assert (mass + none[0]).item() == pytest.approx(1.0, abs=1e-4 if "deadline" in name else 2e-5)


@pytest.mark.parametrize("name", ALL)
def test_second_derivatives_are_finite(name):
    model = ALL[name](lapse=0.005).double()
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    strength = torch.tensor([-0.5, 0.5, 0.5, 0.0])
    y, given = torch.tensor([-0.72, 0.1, 1.9, 0.4]), trials(strength)

    def total(*values):
        both = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, both, (given,)).log_prob(y).sum()

    at = tuple(p.detach() for p in model.parameters() if p.requires_grad)
    every = torch.autograd.functional.hessian(total, at)
    assert all(torch.isfinite(x).all() for x in itertools.chain(*every))
    assert all(x.abs().sum() > 0 for x in torch.autograd.functional.jacobian(total, at))


@pytest.mark.parametrize("name", ALL)
def test_groups_have_parameters_of_their_own(name):
    model = ALL[name]().double()
    strength = torch.tensor([-0.2, 0.0, 0.2])
    given = trials(strength.repeat(2), group=torch.arange(2).repeat_interleave(3))
    y = torch.tensor([-0.5, 0.6, 0.7, 0.8, -0.7, 0.5])
    both = {n: torch.stack([p, 1.2 * p]).detach() for n, p in model.named_parameters()}
    each = {n: p[given["group"]] for n, p in both.items()}
    got = torch.func.functional_call(model, each, (given,)).log_prob(y)
    for g in (0, 1):
        own = {n: p[g] for n, p in both.items()}
        here = given["group"] == g
        alone = torch.func.functional_call(model, own, (trials(strength),)).log_prob(y[here])
        assert torch.allclose(got[here], alone, atol=1e-12)


def test_a_strength_stop_holds_the_clock_and_the_snr_stop():
    law, sizes = laws.Normal(-0.6, 0.3), torch.tensor([0.1, 0.3])
    given, y = trials(torch.tensor([0.1, -0.1, 0.3, -0.3])), torch.tensor([0.6, 0.7, -0.5, 0.9])
    for rival, places in (
        (TimeStop, torch.full((2,), -0.6)),
        (SnrStop, -0.6 - 2 * (8.0 * sizes).log()),
    ):
        each = StrengthStop(Power(8.0), laws.Normal(0.0, 0.3), sizes.tolist(), 2.0).double()
        each.place.data = places.double()
        wanted = rival(Power(8.0), law, 2.0).double()(given).log_prob(y)
        assert torch.allclose(each(given).log_prob(y), wanted, atol=1e-12)


def test_a_strength_stop_wants_every_strength():
    model = StrengthStop(Power(), laws.Normal(0.0, 0.3), [0.1, 0.3], 2.0)
    with pytest.raises(ValueError, match=r"trial 1 \(from 0\) has strength 0.2, which is none of"):
        model.prepare(trials(torch.tensor([0.1, 0.2])))


LAWS = [laws.Normal(-0.7, 0.3), laws.Logistic(-0.5, 0.3), laws.GumbelMin(-0.3, 0.5)]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("strength", [0.05, -0.3])
def test_survival_of_a_time_stop_is_a_weighting(law, strength):
    # w(λ) = P(log(v² T) > λ), the law's survival shifted by 2 log|v|: exact at the cells' edges
    model = TimeStop(Power(8.0), law, 2.0).double()
    g = at_nodes(model, strength)
    left = 1 - (g.sum(-1) * model.width).cumsum(0)[5:]  # before, nodes share what is between them
    edge = (model.nodes + 0.5 * model.nodes[1])[5:]
    shift = 2 * math.log(8.0 * abs(strength))
    w = nd.SurvivalWeighting(law.double())
    logsnr = (64.0 * strength**2 * edge).log()
    assert torch.allclose(left, w(logsnr - shift), atol=1e-14)


@pytest.mark.parametrize(
    ("rival", "strength", "place", "scale", "most"),
    [
        (TimeStop, 0.15, -0.7, 0.3, 2e-4),
        (SnrStop, 0.15, -0.7, 0.3, 2e-4),
        # over within 4 ms, less than a quarter of a step, or at once
        (SnrStop, 2.0, 0.3, 0.8, 4e-3),
        (SnrStop, 10.0, -1.0, 1.0, 4e-3),
    ],
)
def test_a_stop_answers_as_the_ideal_observer_of_its_snr(rival, strength, place, scale, most):
    law = laws.Normal(place, scale)
    model = rival(Power(8.0), law, 2.0, jitter=0.05, lapse=0.0).double()
    v = 8.0 * strength
    if rival is SnrStop:
        place = place - 2 * math.log(v)
    rt = torch.linspace(0.2, 1.8, 40)
    got = model(trials(torch.full_like(rt, strength))).log_prob(rt).exp().detach()

    z = np.linspace(-6, 6, 4001)  # of log T; beyond are 1e-9 of all
    u, phi = np.exp(place + scale * z), stats.norm.pdf(z)
    right = phi * stats.norm.cdf(v * np.sqrt(u))
    later = stats.norm.pdf(rt[:, None].numpy() - u, 0.3, 0.05)
    wanted = torch.tensor(integrate.simpson(right * later, x=z))
    assert ((got - wanted).abs().max() / wanted.max()) < most


def test_a_spread_of_drifts_blunts_the_answer():
    model = TimeStop(Power(8.0, spread=1.5), laws.Normal(-0.7, 0.3), 2.0)
    g, t = at_nodes(model, 0.15)[4::4], model.time
    up = g[:, 0] / g.sum(-1)
    rng = np.random.default_rng(0)
    v = rng.normal(1.2, 1.5, 400_000)
    for k in (20, 60):
        x = v * float(t[k]) + rng.normal(0, math.sqrt(float(t[k])), len(v))
        p = (x > 0).mean()
        assert abs(float(up[k]) - p) < 4 * math.sqrt(p * (1 - p) / len(v))


def test_mean_decision_time_of_an_snr_stop_goes_as_the_inverse_square():
    model = SnrStop(Power(8.0), laws.Normal(-0.8, 0.3), 4.0, 400)
    means = []
    for c in (0.1, 0.2, 0.4):
        mass = model.width * at_nodes(model, c).sum(-1)
        means.append(float((mass * model.nodes).sum() / mass.sum()))
    wanted = math.exp(-0.8 + 0.3**2 / 2) / 64
    assert means == pytest.approx([wanted / c**2 for c in (0.1, 0.2, 0.4)], rel=5e-3)


@pytest.mark.parametrize("strength", [0.1, 2.0])  # at 2.0 the SNR is there within 2 ms
def test_accuracy_of_an_snr_stop_does_not_depend_on_strength(strength):
    model = SnrStop(Power(8.0), laws.Normal(-0.8, 0.3), 4.0, 200)
    g = model.width @ at_nodes(model, strength)
    right, weight = np.polynomial.hermite_e.hermegauss(40)
    wanted = (stats.norm.cdf(np.exp(0.5 * (-0.8 + 0.3 * right))) * weight).sum() / weight.sum()
    assert float(g[0] / g.sum()) == pytest.approx(wanted, abs=2e-3)


def test_an_snr_stop_never_answers_strength_zero():
    model = SnrStop(Power(8.0), laws.Logistic(0.0, 1.0), 2.0, lapse=0.02).double()
    answer = model(trials(torch.zeros(2)))
    p = answer.log_prob(torch.tensor([torch.inf, 0.8])).exp()
    # no answer is a sum over the jitter of the delay, in quarters of a step
    assert p.tolist() == pytest.approx([0.98, 0.02 / 4], rel=1e-9)


@pytest.mark.parametrize("drift", [1.5, 0.0, -1.0, 30.0, -30.0])
@pytest.mark.parametrize("bound", [0.3, 1.2])
def test_first_passage_through_one_bound(bound, drift):
    time = torch.tensor([1e-3, 0.05, 0.3, 0.8, 2.0])
    f, left = first_passage(torch.tensor(bound), torch.tensor(drift), time)

    def density(t):
        return bound / math.sqrt(2 * math.pi * t**3) * math.exp(-((bound - drift * t) ** 2) / 2 / t)

    assert f.tolist() == pytest.approx([density(t) for t in time.tolist()], rel=1e-12)
    for t, s in zip(time.tolist(), left.tolist(), strict=True):
        done = integrate.quad(density, 0, t, points=[t / 50, t / 5], limit=300)[0]
        assert s == pytest.approx(1 - done, abs=1e-7)
        if drift > 0:  # relative accuracy in the tail, where 1 - … says nothing
            rest = integrate.quad(density, t, np.inf, epsrel=1e-10, epsabs=0)[0]
            assert s == pytest.approx(rest, rel=1e-6)


def test_a_race_is_won_by_the_first():
    model = Race(Power(8.0), 6.0, 600, height=0.8, base=1.5, start=0.2)
    g = decided(model, 0.1)
    rng, n = np.random.default_rng(0), 200_000
    up = stats.invgauss.rvs(1 / (0.64 * 1.9), scale=0.64**2, size=n, random_state=rng)
    down = stats.invgauss.rvs(1 / (0.96 * 1.1), scale=0.96**2, size=n, random_state=rng)
    first, won = np.minimum(up, down), up < down
    edge = np.array([0.0, 0.2, 0.4, 0.7, 1.1, 2.0, 6.0])
    at = np.append(0.0, model.time.numpy())
    for side, mine in ((0, won), (1, ~won)):
        through = integrate.cumulative_simpson(np.append(0.0, g[:, side]), x=at, initial=0)
        p = np.diff(np.interp(edge, at, through))
        found = np.histogram(first[mine], edge)[0] / n
        assert (np.abs(found - p) < 4 * np.sqrt(p * (1 - p) / n) + 2e-5).all()


def simulate(drift, leak, bound, deadline, paths, seed, dt=5e-4, end=2.0, start=0.0):
    """Choices and times of a path that stops at a bound or a deadline; crossings are bridged."""
    rng = np.random.default_rng(seed)
    x = np.full(paths, start)
    when, side = np.full(paths, np.inf), np.zeros(paths)
    alive = np.arange(paths)
    for k in range(int(end / dt)):
        now = x[alive]
        b = bound(np.array([k * dt, (k + 1) * dt]))
        v = drift[alive] - leak * now
        new = now + v * dt + math.sqrt(dt) * rng.standard_normal(len(alive))
        u = rng.uniform(size=(2, len(alive)))
        # the chance that a bridge has touched a bound between two points
        touched = [
            u[i] < np.exp(-2 * np.clip(b[0] - s * now, 0, None) * np.clip(b[1] - s * new, 0, None)
                          / dt)
            for i, s in enumerate((1, -1))
        ]  # fmt: skip
        over = touched[0] | touched[1]
        out = ~over & (deadline[alive] <= (k + 1) * dt)
        hit = np.where(touched[0], 1, -1)
        side[alive[over]], side[alive[out]] = hit[over], np.sign(new[out])
        when[alive[over | out]] = (k + 0.5) * dt
        x[alive] = new
        alive = alive[~(over | out)]
    return side, when


@pytest.mark.parametrize(
    ("drift", "leak", "spread"),
    [(Power(8.0), 0.0, 0.0), (Power(8.0, spread=1.5), 0.0, 1.5), (Leak(8.0, 2.0), 2.0, 0.0)],
    ids=["steady", "spread", "leak"],
)
def test_a_deadline_beside_a_bound_matches_simulated_paths(drift, leak, spread):
    n, rng = 40_000, np.random.default_rng(1)
    law, bound = laws.Normal(-0.6, 0.4), bounds.Exponential(1.1, 1.5)
    model = DeadlineMixture(drift, bound, law, 2.0, 200, start=0.2)
    g = decided(model, 0.1).numpy()
    v, given_up = rng.normal(0.8, spread, n), np.exp(rng.normal(-0.6, 0.4, n))
    side, when = simulate(v, leak, lambda t: 1.1 * np.exp(-t / 1.5), given_up, n, 2, start=0.22)
    edge = np.array([0.005, 0.205, 0.405, 0.605, 0.905, 1.305, 1.905])
    for i, s in enumerate((1, -1)):
        cell = np.round((edge - 0.005) / 0.01).astype(int)
        p = np.diff(np.append(0.0, 0.01 * np.cumsum(g[:, i]))[cell])
        found = np.histogram(when[side == s], edge)[0] / n
        assert (np.abs(found - p) < 4 * np.sqrt(p * (1 - p) / n) + 3e-4).all()


def test_a_far_deadline_leaves_the_bound_alone():
    own = (Power(8.0, spread=1.0), bounds.Weibull())
    got = decided(DeadlineMixture(*own, laws.Normal(5.0, 0.2), 2.0, start=0.1), 0.1)
    assert torch.allclose(got, decided(Bounded(*own, 2.0, start=0.1), 0.1), atol=1e-14)


def test_a_far_bound_leaves_the_deadline_alone():
    law, given = laws.Normal(-0.7, 0.3), trials(torch.tensor([0.1]))
    there = TimeStop(Urgency(8.0), law, 2.0)(given)
    away = [
        DeadlineMixture(Urgency(8.0), bounds.Constant(20.0), law, 2.0, n)(given).distance(there)
        for n in (100, 200)
    ]
    # its cells are a whole step, of whose square it errs, and theirs a quarter
    assert away[1] < 0.3 * away[0] < 3e-4


def test_a_drift_that_varies_is_refused_where_it_has_no_meaning():
    with pytest.raises(ValueError, match=r"its SNR is not known"):
        SnrStop(Power(spread=1.0), laws.Logistic(), 2.0)
    with pytest.raises(ValueError, match=r"give Power\(spread=None\)"):
        Race(Power(spread=1.0), 2.0)


TRUTHS = {
    "time-stop": {"law.loc": -0.9, "law.scale": 0.4, "start": 0.15},
    "snr-stop": {"law.loc": -0.6, "law.scale": 0.5, "start": -0.05},
    "race": {"height": 0.8, "base": 1.8, "start": 0.1},
    "deadline": {"bound.height": 1.1, "law.loc": -0.6, "law.scale": 0.3, "start": -0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("key", RIVALS)
def test_a_rival_recovers_its_parameters(key):
    """As the command line builds and fits it; a missing answer is data."""
    truth = TRUTHS[key] | {"drift.gain": 8.0, "delay": 0.3, "jitter": 0.05, "lapse": 0.03}
    model, n = decision(key, 2.0).double(), 1200
    assert truth.keys() == dict(model.named_parameters()).keys()
    c = torch.tensor([-0.4, -0.1, 0.0, 0.1, 0.4]).repeat(n // 5)
    values = {name: torch.tensor(v) for name, v in truth.items()}
    torch.manual_seed(1)
    with torch.no_grad():
        y = torch.func.functional_call(model, values, (trials(c),)).sample().numpy()
    rt = np.where(np.isfinite(y), np.abs(y), np.nan)
    columns = {"coherence": c.numpy(), "rt": rt, "choice": np.where(np.isnan(rt), np.nan, y > 0)}
    data = xr.Dataset({k: ("trial", v) for k, v in columns.items()})
    data = choice_rt(data, deadline=2.0)
    fit = nd.fit(decision(key, 2.0), data, nd.Laplace(draws=400, starts=2), seed=0)
    assert float(fit["sample_stats"]["k_hat"]) < 0.7
    for name, true in truth.items():
        drawn = np.asarray(fit["posterior"][name])
        assert abs(drawn.mean() - true) < 4 * drawn.std(), name


def test_what_a_deadline_beside_a_bound_takes_in_matches_simulated_paths():
    """E[(1 - M)²; T > s] / E[(1 - M)²] and P(T > s), T the first of a passage and a deadline."""
    rng, n, dt, v, height, end = np.random.default_rng(3), 40_000, 2e-3, 1.6, 0.9, 0.5
    x, alive, given_up = np.zeros(n), np.ones(n, bool), np.exp(rng.normal(-0.8, 0.4, n))
    for _ in range(round(end / dt)):
        new = x + v * dt + math.sqrt(dt) * rng.standard_normal(n)
        for s in (1, -1):  # the chance that a bridge has touched a bound between two points
            room = np.clip(height - s * x, 0, None) * np.clip(height - s * new, 0, None)
            alive &= rng.uniform(size=n) >= np.exp(-2 * room / dt)
        x = new
    alive &= given_up > end
    miss = (1 - np.tanh(v * x)) ** 2
    model = DeadlineMixture(Power(8.0), bounds.Constant(height), laws.Normal(-0.8, 0.4), 2.0)
    data = xr.Dataset(
        {k: ("trial", w) for k, w in trials(torch.full((4,), 0.2)).items()}
        | {"signed_rt": ("trial", [0.5, 0.6, -0.7, 0.8])}
    )
    bound = join(model, data)
    curves = stopping_curves(bound, bound.posterior.parameters.start()[None])
    at = curves.isel(curve_draw=0, strength=0).sel(time=end, method="nearest")
    se = np.std(alive * miss) / math.sqrt(n) / miss.mean()
    assert float(at["effective"]) == pytest.approx((alive * miss).mean() / miss.mean(), abs=4 * se)
    se = math.sqrt(alive.mean() * (1 - alive.mean()) / n)
    assert float(at["survival"]) == pytest.approx(alive.mean(), abs=4 * se)


@pytest.mark.parametrize("what", ["spread", "bias", "start_spread"])
def test_curves_are_not_drawn_where_belief_is_no_function_of_position(what):
    more = {what: 0.4}
    own = {} if what == "start_spread" else more
    model = Bounded(Power(8.0, **own), bounds.Constant(0.9), 2.0, **({} if own else more))
    data = xr.Dataset(
        {k: ("trial", w) for k, w in trials(torch.full((4,), 0.2)).items()}
        | {"signed_rt": ("trial", [0.5, 0.6, -0.7, 0.8])}
    )
    bound = join(model, data)
    assert not stopping_curves(bound, bound.posterior.parameters.start()[None])
