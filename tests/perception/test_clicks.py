"""Clicks: a simulated accumulator, limits in closed form, and what is not there."""

import math

import pytest
import torch

import neurodiff as nd
from neurodiff.perception.clicks import Clicks


def trials(count=5, most=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    duration = 0.3 + 0.7 * torch.rand(count, generator=g)
    time = (torch.rand(count, most, generator=g) * duration[:, None]).sort(1).values
    time[:, :2] = 0.0
    side = torch.where(torch.rand(count, most, generator=g) < 0.6, 1.0, -1.0)
    side[:, 0], side[:, 1] = -1.0, 1.0
    n = torch.randint(4, most + 1, (count,), generator=g)
    shown = torch.arange(most) < n[:, None]
    return {"pulse_time": torch.where(shown, time, duration[:, None]), "duration": duration,
            "pulse_side": torch.where(shown, side, 0.0)}  # fmt: skip


def rat(law=None):
    model = Clicks(law)
    for name, value in {"leak": -1.5, "adaptation": 0.4, "recovery": 0.08, "click_noise": 0.7,
                        "noise": 1.2, "bias": 0.3, "lapse": 0.06}.items():  # fmt: skip
        model.get_parameter(name).data.fill_(value)
    return model


def walk(shown, i, until, g, many):
    """Euler's accumulator with Brunton's adaptation, click by click."""
    dt, c, now = 1e-3, 1.0, 0.0
    a = torch.zeros(many)
    time, side = shown["pulse_time"][i], shown["pulse_side"][i]
    last = None
    for t, s in zip(time.tolist(), side.tolist(), strict=True):
        if s == 0 or t > until:
            break
        steps = max(1, round((t - now) / dt)) if t > now else 0
        for _ in range(steps):
            h = (t - now) / steps
            a = a * math.exp(-1.5 * h) + 1.2 * math.sqrt(h) * torch.randn(many, generator=g)
        if last is not None and t > last:
            c = 1 - (1 - 0.4 * c) * math.exp(-(t - last) / 0.08)
        a = a + c * (s + 0.7 * torch.randn(many, generator=g))
        now, last = t, t
    steps = max(1, round((until - now) / dt))
    for _ in range(steps):
        h = (until - now) / steps
        a = a * math.exp(-1.5 * h) + 1.2 * math.sqrt(h) * torch.randn(many, generator=g)
    return a + 0.3


def test_an_accumulator_that_adapts_and_leaks():
    shown, g, many = trials(3), torch.Generator().manual_seed(1), 40_000
    p = rat()(shown).probs
    for i in range(3):
        a = walk(shown, i, shown["duration"][i].item(), g, many)
        right = (a > 0).double() * 0.94 + 0.03
        assert abs(p[i].item() - right.mean().item()) < 4 * (right.var() / many).sqrt() + 2e-3


def test_an_accumulator_that_stops_listening():
    law, shown = nd.laws.Logistic(math.log(0.4), 0.3), trials(2, seed=3)
    model = rat(law)
    with torch.no_grad():
        fine = torch.linspace(0.0005, 0.9995, 1000)
        for i in range(2):
            one = {k: v[i : i + 1] for k, v in shown.items()}
            end = one["duration"]
            time = fine * end
            cdf = law().cdf(torch.cat([time - 0.0005 * end, end]).log())
            until = torch.cat([time, end])[None]
            heard = torch.special.ndtr(model.z(one, until))[0]
            p = (torch.cat([cdf.diff(), 1 - cdf[-1:]]) * heard).sum()
            wanted = 0.03 + 0.94 * p
            # cells of a 24th of the trial, in which a click may come: about a hundredth
            assert model(one).probs.item() == pytest.approx(wanted.item(), abs=0.01)


def test_who_never_stops_listens_to_the_end():
    shown = trials()
    late = rat(nd.laws.Logistic(20.0, 0.5))
    assert torch.allclose(late(shown).probs, rat()(shown).probs)


def test_without_leak_and_adaptation_clicks_are_counted():
    shown, model = trials(20), Clicks(adapts=False, leaks=False)
    count = (shown["pulse_side"] != 0).sum(1)
    z = shown["pulse_side"].sum(1) / (count + shown["duration"]).sqrt()
    wanted = 0.025 + 0.95 * torch.distributions.Normal(0.0, 1.0).cdf(z)
    assert torch.allclose(model(shown).probs, wanted)


def test_the_first_pair_cancels_and_what_is_not_there_does_not_count():
    shown, model = trials(20), rat()
    swapped = {**shown, "pulse_side": shown["pulse_side"].clone()}
    swapped["pulse_side"][:, :2] = swapped["pulse_side"][:, :2].flip(1)
    assert torch.allclose(model(swapped).probs, model(shown).probs)
    longer = {
        "pulse_time": torch.cat([shown["pulse_time"], shown["duration"][:, None]], 1),
        "pulse_side": torch.cat([shown["pulse_side"], torch.zeros(20, 1)], 1),
        "duration": shown["duration"],
    }
    assert torch.allclose(model(longer).probs, model(shown).probs)


def test_gradients_are_those_of_differences_also_where_the_leak_is_none():
    shown, model = trials(3), rat(nd.laws.Logistic(-0.5, 0.4))
    model.leak.data.fill_(0.0)
    names = [n for n, _ in model.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_(True) for p in model.parameters())

    def probabilities(*p):
        return torch.func.functional_call(model, dict(zip(names, p, strict=True)), (shown,)).probs

    assert torch.autograd.gradcheck(probabilities, values)


def test_what_is_heard_by_any_time_is_the_sum_over_clicks():
    shown, model = trials(4), rat()
    until = torch.tensor([0.0, 0.11, 0.27, 0.6]).expand(4, 4)
    mean, variance = model.accumulated(shown, until)
    for i in range(4):
        clicks = list(zip(shown["pulse_time"][i].tolist(), shown["pulse_side"][i].tolist(),
                          strict=True))  # fmt: skip
        for k, t in enumerate(until[0].tolist()):
            c, last, a, v = 1.0, None, 0.0, 1.2**2 * math.expm1(-3.0 * t) / -3.0
            for at, s in clicks:
                if s == 0 or at > t:
                    break
                if last not in (None, at):
                    c = 1 - (1 - 0.4 * c) * math.exp(-(at - last) / 0.08)
                kept, last = c * math.exp(-1.5 * (t - at)), at
                a, v = a + s * kept, v + 0.7**2 * kept**2
            assert mean[i, k].item() == pytest.approx(a, abs=1e-5)
            assert variance[i, k].item() == pytest.approx(v, abs=1e-5)


def test_clicks_are_in_order():
    shown = trials(3)
    shown["pulse_time"][1, 4], shown["pulse_time"][1, 5] = 0.2, 0.0
    with pytest.raises(ValueError, match=r"trial 1, click 5.* pulse_side 0"):
        rat().prepare(shown)
    shown = trials(3)
    shown["pulse_time"][1, 11] = float("inf")
    with pytest.raises(ValueError, match=r"trial 1, click 11"):
        rat().prepare(shown)
