"""Neurons that follow clicks: simulated paths sorted by the choice they end in, and limits."""

import math

import pytest
import torch
import xarray as xr

import neurodiff as nd
from neurodiff.inference.join import join
from neurodiff.perception.clicks import Clicks
from neurodiff.perception.listening import Heard, Known, Listening, heard_given_choice

TIME = torch.tensor([0.05, 0.2, 0.35, 0.6])
VALUES = {"leak": -1.5, "adaptation": 0.4, "recovery": 0.08, "click_noise": 0.7, "noise": 1.2,
          "bias": 0.3, "lapse": 0.1}  # fmt: skip


def trial():
    """One trial of half a second with ten clicks."""
    time = torch.tensor([[0.0, 0.0, 0.04, 0.09, 0.15, 0.21, 0.3, 0.34, 0.41, 0.47]])
    side = torch.tensor([[-1.0, 1.0, 1.0, -1.0, 1.0, 1.0, -1.0, 1.0, 1.0, -1.0]])
    return {"pulse_time": time, "pulse_side": side, "duration": torch.tensor([0.5])}


def rat(law=None):
    model = Clicks(law)
    for name, value in VALUES.items():
        model.get_parameter(name).data.fill_(value)
    return model


def paths(stop, many, g):
    """a at TIME and at the stop, of paths that end there: every step drawn as it is distributed."""
    shown, v = trial(), VALUES
    events = [(t, s) for t, s in zip(*(shown[n][0].tolist() for n in ("pulse_time", "pulse_side")),
                                     strict=True)]  # fmt: skip
    looks = [(min(t, 0.5), None) for t in TIME.tolist()] + [(0.5, None)]
    a, now, c, last, seen = torch.zeros(many), 0.0, 1.0, None, []
    for t, s in sorted(events + looks, key=lambda e: (e[0], e[1] is None)):
        grow, h = math.exp(v["leak"] * (t - now)), t - now
        sd = v["noise"] * math.sqrt(math.expm1(2 * v["leak"] * h) / (2 * v["leak"]))
        moved = grow * a + sd * torch.randn(many, generator=g)
        # who stops between two events keeps what there was at the stop
        part = (stop - now).clamp(0.0, h)
        sd = v["noise"] * (torch.expm1(2 * v["leak"] * part) / (2 * v["leak"])).sqrt()
        kept = torch.exp(v["leak"] * part) * a + sd * torch.randn(many, generator=g)
        a = torch.where(stop >= t, moved, torch.where(stop > now, kept, a))
        now = t
        if s is None:
            seen.append(a)
            continue
        if last is not None and t > last:
            c = 1 - (1 - v["adaptation"] * c) * math.exp(-(t - last) / v["recovery"])
        heard = a + c * (s + v["click_noise"] * torch.randn(many, generator=g))
        a, last = torch.where(stop >= t, heard, a), t
    return torch.stack(seen, 1)


@pytest.mark.parametrize("law", [None, nd.laws.Logistic(math.log(0.3), 0.4)])
def test_paths_sorted_by_the_choice_that_ends_them(law):
    many, g = 400_000, torch.Generator().manual_seed(0)
    stop = torch.full((many,), 0.5)
    if law is not None:
        u = torch.rand(many, generator=g)
        stop = torch.exp(law.loc.detach() + law.scale.detach() * torch.logit(u))
    a = paths(stop, many, g)
    lapse, coin = torch.rand(2, many, generator=g)
    right = torch.where(lapse < VALUES["lapse"], coin < 0.5, a[:, -1] + VALUES["bias"] > 0)
    found = heard_given_choice(rat(law), trial(), TIME)[0]
    for k, chosen in enumerate((right, ~right)):
        some = a[chosen][:, :-1]
        se = some.std(0) / len(some) ** 0.5
        # stops are told apart by a 24th of the trial, as in the choices
        slack = 1e-5 if law is None else 0.02
        assert ((found[:, k] - some.mean(0)).abs() < 4 * se + slack).all()


def test_who_only_lapses_tells_nothing_of_the_path():
    model, shown = rat(), trial()
    model.lapse.data.fill_(1.0)
    mean = model.accumulated(shown, TIME.clamp_max(0.5)[None])[0]
    assert torch.allclose(heard_given_choice(model, shown, TIME), mean[..., None].expand(-1, -1, 2))


def test_the_mean_over_choices_is_that_of_the_path():
    model, shown = rat(nd.laws.Logistic(-1.0, 0.4)), trial()
    p = model(shown).probs
    given = heard_given_choice(model, shown, TIME)[0]
    stops, mass = model.stops(shown)
    now = torch.minimum(TIME[:, None], stops)
    mean = (mass * model.accumulated(shown, now.reshape(1, -1))[0].reshape(now.shape)).sum(-1)
    assert torch.allclose(given[:, 0] * p + given[:, 1] * (1 - p), mean, atol=1e-5)


def rows(count, bins=8):
    """Bins of a trial for one neuron, for a right choice and a left one."""
    when = 0.05 * (torch.arange(bins) + 0.5)
    columns = {"number": torch.zeros(2 * bins), "neuron": torch.zeros(2 * bins),
               "choice": torch.ones(2).repeat_interleave(bins) * torch.tensor([1.0, 0.0])
               .repeat_interleave(bins), "when": when.repeat(2),
               "exposure": torch.full((2 * bins,), 0.05), "count": count}  # fmt: skip
    return xr.Dataset({n: ("trial", v.double().numpy()) for n, v in columns.items()})


def test_a_drive_that_is_learned_is_the_drive_of_its_parameters():
    shown = {n: v.double() for n, v in trial().items()}
    time = 0.025 * torch.arange(21.0).double()
    clicks, knots = rat().double(), torch.tensor([0.0, 0.2, 0.5]).double()
    table = heard_given_choice(clicks, shown, time).detach()
    data = rows(torch.arange(16.0))
    learned = join(Listening(Heard(clicks, shown, 0.025), knots), data)
    known = join(Listening(Known(table, 0.025), knots), data)
    assert learned.posterior.size == known.posterior.size + 7
    names = [s.name for s in known.pooled.sites]
    u = learned.posterior.parameters.constrain(learned.start)
    a = learned.posterior.log_likelihood(u)
    b = known.posterior.log_likelihood({n: u[n] for n in names})
    assert torch.allclose(a, b)


def test_parameters_of_each_trial_are_those_of_all():
    shown = {n: v.expand(25, *v.shape[1:]).double() for n, v in trial().items()}
    model, apart = (rat(nd.laws.Logistic(-1.0, 0.4)).double() for _ in range(2))
    for name in VALUES:
        own = apart.get_parameter(name)
        own.data = own.data.expand(25).clone()
    a, b = (heard_given_choice(m, shown, TIME.double()) for m in (model, apart))
    assert torch.allclose(a, b)


def test_a_trial_or_neuron_that_there_is_not():
    model = Listening(Known(torch.zeros(2, 9, 2), 0.05), torch.tensor([0.0, 0.4]))
    for name, value in (("number", 2.0), ("number", -1.0), ("neuron", 1.0)):
        data = rows(torch.zeros(16))
        data[name][3] = value
        with pytest.raises(ValueError, match=rf"{name} is {value:g} in row 3 .* from 0 to"):
            join(model, data)


def test_a_latency_shifts_and_a_gain_of_zero_leaves_the_neuron_alone():
    table = torch.stack([torch.arange(9.0), -torch.arange(9.0)], -1)[None]
    model = Listening(Known(table, 0.05), torch.tensor([0.0, 0.2, 0.4]))
    model.base.data.fill_(40.0)
    shown = {n: torch.as_tensor(v.values).float() for n, v in rows(torch.zeros(16)).items()}
    model.latency.data.fill_(0.05)
    early = model(shown).rate
    # D of a right choice .125 s in is 2.5, of a left one -2.5; a gain of one spike/s
    assert early[3].item() == pytest.approx(0.05 * 42.5, abs=1e-3)
    assert early[11].item() == pytest.approx(0.05 * 37.5, abs=1e-3)
    model.latency.data.fill_(0.1)
    later = model(shown).rate
    assert torch.allclose(later[2:8], early[1:7])
    assert torch.allclose(early[:8] + early[8:], torch.full((8,), 2 * 40 * 0.05), atol=1e-3)
    model.gain.data.fill_(0.0)
    model.course.data[:] = torch.tensor([0.5, -0.5])
    course = torch.tensor([0.0625, 0.1875, 0.3125, 0.4375, 0.375, 0.125, -0.125, -0.375])
    assert torch.allclose(model(shown).rate[:8], 40 * 0.05 * (1 + course), atol=1e-3)
