"""Samples of evidence: simulated observers, and the limits in which rivals are one."""

import numpy as np
import pytest
import torch
import xarray as xr

import neurodiff as nd
from neurodiff.inference.join import join
from neurodiff.perception.pulses import (
    Bounded,
    Leaky,
    OneSample,
    Placed,
    Pulses,
    Stops,
    StopsFreely,
)
from neurodiff.perception.stopping import Gauge

RIVALS = [Stops, StopsFreely, Placed, Leaky, OneSample, Bounded]


def trials(count=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    n = torch.randint(1, 6, (count,), generator=g).to(torch.get_default_dtype())
    llr = 1.3 * torch.randn(count, 5, generator=g) + 0.4
    return {"pulse_llr": torch.where(torch.arange(5) < n[:, None], llr, 0.0), "pulse_count": n}


def observer(use):
    model = Pulses(use)
    for name, value in {"gain": 0.9, "square": 0.1, "cube": -0.05, "bias": 0.2, "exponent": 0.6,
                        "lapse": 0.04}.items():  # fmt: skip
        model.get_parameter(name).data.fill_(value)
    return model


def evidence(model, shown):
    llr = shown["pulse_llr"]
    return model.gain * llr * (1 + llr * (model.square + model.cube * llr))


def test_an_observer_who_stops_answers_from_what_was_heard():
    w = nd.SurvivalWeighting(nd.laws.Logistic(1.0, 0.5))
    model, shown = observer(Stops(w)), trials()
    p = w(torch.arange(1.0, 6.0).log())
    keep, g, many = (p / p[0]).detach(), torch.Generator().manual_seed(1), 200_000
    e = evidence(model, shown).detach()
    total = e.cumsum(1) + 0.2
    for i, n in enumerate(shown["pulse_count"].long().tolist()):
        # heard the k-th with probability w_k
        heard = (torch.rand(many, 1, generator=g) < keep[:n]).sum(1)
        at = total[i, heard - 1] + heard**0.6 * torch.randn(many, generator=g)
        slip = torch.rand(many, generator=g) < 0.04
        answer = torch.where(slip, torch.rand(many, generator=g) < 0.5, at > 0).double()
        off = model(shown).probs[i] - answer.mean()
        assert abs(off.item()) < 4 * (answer.var() / many).sqrt()


def test_an_observer_with_a_bound_stops_at_it():
    model, shown = observer(Bounded()), trials()
    model.use.bound.data.fill_(1.4)
    total = evidence(model, shown).detach().cumsum(1) + 0.2
    g, many = torch.Generator().manual_seed(2), 200_000
    for i, n in enumerate(shown["pulse_count"].long().tolist()):
        looks = total[i, :n] + torch.arange(1.0, n + 1) ** 0.6 * torch.randn(many, n, generator=g)
        out = looks.abs() >= 1.4
        out[:, -1] = True
        x = looks.gather(1, out.long().argmax(1, keepdim=True))[:, 0]  # the first that is out
        slip = torch.rand(many, generator=g) < 0.04
        answer = torch.where(slip, torch.rand(many, generator=g) < 0.5, x > 0).double()
        off = model(shown).probs[i] - answer.mean()
        assert abs(off.item()) < 4 * (answer.var() / many).sqrt()


def test_limits_in_which_all_listen_to_the_end():
    shown = trials(40)
    wanted = observer(Stops())(shown).probs
    freely, bounded = observer(StopsFreely()), observer(Bounded())
    freely.use.stays.data.fill_(1.0)
    bounded.use.bound.data.fill_(60.0)
    for model in (freely, bounded, observer(Placed()), observer(Leaky())):
        assert torch.allclose(model(shown).probs, wanted)
    late = Stops(nd.SurvivalWeighting(nd.laws.Logistic(30.0, 0.5)))
    assert torch.allclose(observer(late)(shown).probs, wanted)


def test_flow_matching_is_a_power_law_without_a_place():
    w = Stops(nd.weighting("flow-matching")).heard(torch.zeros(1, 5))
    assert torch.allclose(w, torch.arange(1.0, 6.0) ** -0.5)
    s = Stops(Gauge(nd.weighting("sigmoid"))).heard(torch.zeros(1, 5))
    n = torch.arange(1.0, 6.0)
    # w = sig(b − log n): 1/(1 + n e^−b), b the weighting's own bias
    b = torch.logit(nd.weighting("sigmoid")(torch.tensor(0.0)))
    assert torch.allclose(s, (1 + torch.exp(-b)) / (1 + n * torch.exp(-b)))


@pytest.mark.parametrize("rival", RIVALS)
def test_one_sample_is_one_model_and_what_was_not_shown_does_not_count(rival):
    shown = trials(30)
    model = observer(rival())
    one = shown["pulse_count"] == 1
    assert torch.allclose(model(shown).probs[one], observer(Stops())(shown).probs[one])
    after = torch.arange(5) >= shown["pulse_count"][:, None]
    other = {**shown, "pulse_llr": torch.where(after, 7.0, shown["pulse_llr"])}
    assert torch.allclose(model(other).probs, model(shown).probs)


@pytest.mark.parametrize("rival", RIVALS)
def test_parameters_of_each_trial_are_those_of_all(rival):
    shown = trials(5)
    model = observer(rival())
    wanted = model(shown).probs
    each = {
        name: value.detach().expand(5, *value.shape) for name, value in model.named_parameters()
    }
    found = torch.func.functional_call(model, each, (shown,)).probs
    assert torch.allclose(found, wanted)


@pytest.mark.parametrize("rival", RIVALS)
def test_gradients_are_those_of_differences(rival):
    shown = trials(4)
    model = observer(rival())
    values = tuple(p.detach().clone().requires_grad_(True) for p in model.parameters())
    names = [n for n, _ in model.named_parameters()]

    def probabilities(*p):
        return torch.func.functional_call(model, dict(zip(names, p, strict=True)), (shown,)).probs

    assert torch.autograd.gradcheck(probabilities, values)


@pytest.mark.parametrize("rival", [StopsFreely, Placed])
def test_places_are_as_many_as_samples(rival):
    with pytest.raises(ValueError, match="got samples=4; wanted 5, as many as pulse_llr has"):
        observer(rival(4))(trials())


@pytest.mark.slow
def test_a_law_is_found_again():
    """An observer who hears one in four fifth samples, and the fit's 98 % intervals."""
    import xarray as xr

    shown = trials(3000, seed=3)
    truth = observer(Stops(nd.SurvivalWeighting(nd.laws.Logistic(1.2, 0.4))))
    g = torch.Generator().manual_seed(4)
    choice = torch.bernoulli(truth(shown).probs.detach(), generator=g)
    data = xr.Dataset({
        "pulse_llr": (("trial", "pulse"), shown["pulse_llr"].numpy()),
        "pulse_count": ("trial", shown["pulse_count"].numpy()),
        "choice": ("trial", choice.numpy()),
    })  # fmt: skip
    fit = nd.fit(Pulses(StopsFreely()), data, nd.Laplace(), seed=0)
    stays = fit["posterior"]["use.stays"]
    heard = stays.cumprod(stays.dims[-1])
    w = truth.use.heard(torch.zeros(1, 5))[0, 1:].detach().numpy()
    low, high = heard.quantile([0.01, 0.99], ("chain", "draw")).values
    assert (low <= w).all()
    assert (w <= high).all()
    assert float(fit["sample_stats"]["k_hat"]) < 0.7


@pytest.mark.parametrize("count", [0.0, 6.0, 2.5, float("inf")])
def test_trials_have_as_many_samples_as_they_say(count):
    shown = trials()
    shown["pulse_count"][3] = count
    data = xr.Dataset({
        "pulse_llr": (("trial", "pulse"), shown["pulse_llr"].numpy()),
        "pulse_count": ("trial", shown["pulse_count"].numpy()), "choice": ("trial", np.ones(6)),
    })  # fmt: skip
    with pytest.raises(ValueError, match=rf"pulse_count is {count:g} in trial 3 .* from 1 to 5"):
        join(Pulses(Stops()), data)
    data["pulse_llr"][2, 4] = np.nan
    with pytest.raises(ValueError, match=r"= \(2, 4\).*data.fillna\(\{'pulse_llr': 0\}\)"):
        join(Pulses(Stops()), data)
