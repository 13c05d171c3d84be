"""A deadline of each trial's own: survival at it, mass, samples, refusals, and what is fitted."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import integrate, stats

from neurodiff.data.choice_rt import choice_rt
from neurodiff.diffusion import laws
from neurodiff.inference.decisions import horizon_of
from neurodiff.inference.fit import modes_of
from neurodiff.inference.join import join
from neurodiff.inference.posterior import on_one_thread
from neurodiff.perception import bounds
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.deadline import DeadlineMixture
from neurodiff.perception.drifts import Leak, Power, Urgency
from neurodiff.perception.race import Race
from neurodiff.perception.strength_stop import StrengthStop
from neurodiff.perception.timed import SnrStop, TimeStop

DEADLINE = torch.tensor([0.35, 0.613, 1.0, 1.5, 2.0])
MODELS = {
    "bound": lambda **k: Bounded(Power(8.0), bounds.Weibull(), 2.0, 120, start=0.2, **k),
    "fixed delay": lambda **k: Bounded(
        Power(8.0), bounds.Constant(), 2.0, 120, jitter=None, start=0.2, **k
    ),
    "leak": lambda **k: Bounded(Leak(8.0, 1.0), bounds.Constant(), 2.0, 120, **k),
    "time stop": lambda **k: TimeStop(Power(8.0), laws.Normal(-0.7, 0.3), 2.0, 120, **k),
    "race": lambda **k: Race(Power(8.0), 2.0, 120, **k),
    "SNR stop": lambda **k: SnrStop(Power(8.0), laws.Normal(-1.0, 0.5), 2.0, 120, **k),
    "strength stop": lambda **k: StrengthStop(
        Power(8.0), laws.Normal(0.0, 0.3), [0.1], 2.0, 120, **k
    ),
    "deadline beside a bound": lambda **k: DeadlineMixture(
        Power(8.0), bounds.Weibull(), laws.Normal(-0.7, 0.3), 2.0, 120, start=0.2, **k
    ),
    "starts and drifts that differ": lambda **k: Bounded(
        Power(8.0, spread=1.0), bounds.Exponential(), 2.0, 120, start_spread=0.3, **k
    ),
    "urgency": lambda **k: Bounded(Urgency(8.0), bounds.Linear(), 2.0, 120, **k),
    "hardly any delay": lambda **k: Bounded(
        Power(8.0), bounds.Weibull(), 2.0, 120, delay=0.06, jitter=0.03, **k
    ),
    "some of it below 0": lambda **k: Bounded(
        Power(8.0), bounds.Constant(0.6), 2.0, 120, delay=0.02, jitter=0.08, **k
    ),
}


def trials(strength, deadline):
    known = torch.ones_like(strength)
    return {"strength": strength, "choice_known": known, "deadline": deadline}


def missed(model, strength=0.1):
    given = trials(torch.full_like(DEADLINE, strength), DEADLINE)
    return model(given).log_prob(torch.full_like(DEADLINE, torch.inf)).exp()


@pytest.mark.parametrize("name", MODELS)
def test_answers_and_no_answer_by_each_deadline_have_mass_one(name):
    model, cells = MODELS[name](lapse=0.1).double(), 4000
    for end, none in zip(DEADLINE, missed(model), strict=True):
        time = end / cells * (torch.arange(cells) + 0.5)
        given = trials(torch.full((cells,), 0.1), end.expand(cells))
        mass = sum(model(given).log_prob(s * time).exp().sum() * end / cells for s in (1, -1))
        # times that are given up are those of cells of a quarter of a step
        near = 2e-4 if "beside" in name else 3e-5
        assert (mass + none).item() == pytest.approx(1.0, abs=near)


def test_no_answer_is_survival_at_the_trial_s_own_deadline():
    model = MODELS["fixed delay"](lapse=0.05).double()
    model.start.data.zero_()

    def first(t):  # a Wiener path of drift 0.8 between ±1, by its images
        k = np.arange(-20, 21)
        z = 1 + 4 * k
        f = (z * np.exp(-z * z / (2 * t))).sum() / math.sqrt(2 * math.pi * t**3)
        return 2 * f * math.cosh(0.8) * math.exp(-0.32 * t)

    wanted = [
        0.95 * (1 - integrate.quad(first, 1e-9, d - 0.3, limit=200, points=[0.02])[0])
        for d in DEADLINE.tolist()
    ]
    assert missed(model).tolist() == pytest.approx(wanted, abs=2e-5)


def test_a_jittered_delay_is_averaged_over_at_the_deadline():
    model = MODELS["time stop"](lapse=0.05).double()

    def late(tau, d):
        left = stats.lognorm.sf(max(d - tau, 0.0), 0.3, scale=math.exp(-0.7))
        return left * stats.norm.pdf(tau, 0.3, 0.05)

    wanted = [0.95 * integrate.quad(late, -0.1, 0.7, (d,), points=[0.3])[0] for d in DEADLINE]
    assert missed(model).tolist() == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_deadline_at_the_horizon_changes_nothing(name):
    model, y = MODELS[name]().double(), torch.tensor([0.5, -0.7, torch.inf])
    given = trials(torch.full((3,), 0.1), torch.full((3,), 2.0))
    without = {k: v for k, v in given.items() if k != "deadline"}
    assert torch.allclose(model(given).log_prob(y), model(without).log_prob(y), atol=1e-14)


def test_samples_miss_as_often_as_they_should():
    n, model = 20_000, MODELS["bound"](lapse=0.1).double()
    given = trials(torch.full((5 * n,), 0.1), DEADLINE.repeat_interleave(n))
    torch.manual_seed(0)
    y = model(given).sample().reshape(5, n)
    found, p = torch.isinf(y).double().mean(1), missed(model).detach()
    assert ((found - p).abs() < 4 * (p * (1 - p) / n).sqrt() + 1e-4).all()
    assert (torch.where(torch.isinf(y), 0.0, y.abs()).amax(1) <= DEADLINE).all()


def test_derivatives_are_finite_and_true():
    model = MODELS["bound"](lapse=0.05).double()
    names = [n for n, _ in model.named_parameters()]
    y = torch.tensor([-0.3, torch.inf, 0.6, torch.inf, 1.2])
    given = trials(torch.tensor([0.1, 0.1, -0.2, 0.0, 0.3]), DEADLINE)

    def total(*values):
        both = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, both, (given,)).log_prob(y).sum()

    at = tuple(p.detach().requires_grad_() for p in model.parameters())
    assert torch.autograd.gradcheck(total, at, atol=1e-5, rtol=1e-4)


def rows(n=20, **change):
    rng = np.random.default_rng(0)
    c = rng.choice([-0.2, 0.2], n)
    columns = {"coherence": c, "rt": np.full(n, 0.5), "choice": (c > 0) * 1.0}
    columns |= {"deadline": np.tile([0.6, 0.9], n // 2)} | change
    return xr.Dataset({k: ("trial", v) for k, v in columns.items()})


def test_missing_times_are_no_answer_by_their_own_deadline():
    rt = np.full(20, 0.5)
    rt[:2] = np.nan
    data = choice_rt(rows(rt=rt))
    assert np.isinf(data["signed_rt"].values[:2]).all()
    assert np.isfinite(data["signed_rt"].values[2:]).all()
    assert horizon_of(data) == 0.9
    bound = join(Bounded(Power(), bounds.Constant(), horizon_of(data)), data)
    assert sorted(bound.posterior.trials["deadline"].unique().tolist()) == [0.6, 0.9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rt": np.full(20, 0.7)}, r"rt: 0.7 s at trial 0 .* deadline of 0.6 s \(10 of 20 are\)"),
        ({"deadline": np.zeros(20)}, "deadline: 0 at trial 0"),
        ({"deadline": np.full(20, np.nan)}, "deadline: nan at trial 0"),
    ],
)
def test_bad_deadlines_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        choice_rt(rows(**change))


def test_two_kinds_of_deadline_are_refused():
    with pytest.raises(ValueError, match="leave out one of them"):
        choice_rt(rows(), deadline=1.0)


def test_a_deadline_beyond_the_horizon_is_an_error():
    with pytest.raises(ValueError, match=r"the deadline of trial 1 \(from 0\) is 0.9 s"):
        join(Bounded(Power(), bounds.Constant(), horizon=0.8), choice_rt(rows()))


@pytest.mark.slow
@on_one_thread
def test_leaving_out_missed_trials_biases_and_counting_them_does_not():
    n, rng = 6000, np.random.default_rng(0)
    strength = torch.as_tensor(rng.choice([-0.3, -0.1, 0.1, 0.3], n))
    deadline = torch.as_tensor(rng.choice([0.6, 0.8, 1.2], n))
    truth = Bounded(Power(8.0), bounds.Constant(1.0), 1.2, 60, lapse=0.02).double()
    torch.manual_seed(2)
    y = truth(trials(strength, deadline)).sample().numpy()
    rt = np.where(np.isinf(y), np.nan, np.abs(y))
    columns = {"coherence": strength.numpy(), "rt": rt, "deadline": deadline.numpy()}
    columns |= {"choice": np.where(np.isnan(rt), np.nan, (y > 0) * 1.0)}
    data = choice_rt(xr.Dataset({k: ("trial", v) for k, v in columns.items()}))
    assert 0.15 < np.isnan(rt).mean() < 0.7
    off = []
    for kept in (data, data.isel(trial=np.isfinite(y)).drop_vars("deadline")):
        bound = join(Bounded(Power(), bounds.Constant(), 1.2, 60), kept)
        mode = modes_of(bound, 1, 0)
        sd = (mode.factor[0] @ mode.factor[0].mT).diagonal().sqrt()
        names = [site.name for site in bound.pooled.sites]
        i = names.index("bound.height")
        off.append((mode.u[0, i] / sd[i]).item())  # of log height, which is 0, in its own s.d.
    assert abs(off[0]) < 4 < abs(off[1])


def test_no_time_is_beyond_the_horizon_that_is_made_of_it():
    longest = np.nextafter(np.arange(1, 200) / 20, np.inf)
    for x in longest:
        assert x <= horizon_of(xr.Dataset({"signed_rt": ("trial", [-x])})) <= x + 0.05
