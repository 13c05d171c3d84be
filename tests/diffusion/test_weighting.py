"""Weightings and their stopping laws: closed forms against generic ones, errors, duplicates."""

import math

import pytest
import torch
from contracts import TailsContract, WeightingContract
from scipy import integrate

from neurodiff.diffusion import laws
from neurodiff.diffusion.weighting import (
    SurvivalWeighting,
    WeightingLaw,
    canonical,
    names,
    stopping_density,
    to_stopping,
    weighting,
)

INF = torch.inf


class TestSurvival(WeightingContract):
    def make(self):
        return SurvivalWeighting(laws.GumbelMax(0.5, 1.4))


# --- stopping laws


@pytest.mark.parametrize(
    ("w", "low", "law"),
    [
        (weighting("sigmoid", bias=1.5), None, laws.Logistic(1.5, 1.0)),
        (weighting("debiased"), None, laws.Logistic(0.0, 1.0)),
        (weighting("deadline", b=-0.5), None, laws.GumbelMin(-0.5, 1.0)),
        (weighting("flow-matching"), 0.0, laws.Exponential(0.0, 2.0)),
        (weighting("v-cosine"), -3.0, laws.Exponential(-3.0, 2.0)),
        (weighting("indi"), 1.0, laws.Exponential(1.0, 2 / 3)),
    ],
)
def test_stopping_laws_of_the_family(w, low, law):
    found = to_stopping(w, logsnr_min=low)
    assert type(found) is type(law)
    logsnr = torch.linspace(-6.0, 9.0, 301)
    torch.testing.assert_close(found().survival(logsnr), law().survival(logsnr))
    generic = WeightingLaw(w, -INF if low is None else low)()
    torch.testing.assert_close(generic.survival(logsnr), law().survival(logsnr).detach())
    density = law().log_prob(logsnr).exp().detach()
    torch.testing.assert_close(generic.log_prob(logsnr).exp(), density)


def test_the_law_of_a_survival_weighting_is_its_own():
    law = laws.Normal(1.0, 2.0)
    assert to_stopping(SurvivalWeighting(law)) is law


STOPPING = {
    "edm-monotonic": lambda: to_stopping(weighting("edm-monotonic")),
    "truncated-snr": lambda: to_stopping(weighting("truncated-snr"), logsnr_min=-4.0),
    "ddpm from 0": lambda: to_stopping(weighting("ddpm"), logsnr_min=0.0),
    "sigmoid cut": lambda: to_stopping(weighting("sigmoid"), logsnr_min=-1.0),
    "learned, cut": lambda: to_stopping(SurvivalWeighting(laws.GumbelMax(0.3)), logsnr_min=-1.0),
}


class TestWeightingLaw(TailsContract):
    @pytest.fixture(autouse=True, params=STOPPING)
    def _name(self, request):
        self.name, self.smooth = request.param, request.param != "truncated-snr"

    def make(self):
        return STOPPING[self.name]()

    def test_survival_is_the_weighting_over_its_top(self):
        law, logsnr = self.make(), torch.linspace(-2.0, 8.0, 50)
        low = law.logsnr_min
        expected = law.weighting(torch.maximum(logsnr, low)) / law.weighting(low)
        torch.testing.assert_close(law().survival(logsnr), expected)

    def test_law_is_fast_under_vmap_with_second_derivatives(self):
        law = self.make()().survival
        logsnr = torch.linspace(-2.1, 3.0, 7)
        second = torch.func.vmap(torch.func.grad(torch.func.grad(law)))(logsnr)
        assert bool(second.isfinite().all())


def test_a_cut_law_still_learns():
    law = to_stopping(SurvivalWeighting(laws.Logistic()), logsnr_min=-2.0)
    law().rsample((50,)).sum().backward()
    assert all(bool((p.grad != 0).any()) for p in law.parameters())


def test_the_step_has_an_atom():
    law = to_stopping(weighting("step", loc=1.25))()
    assert law.survival(torch.tensor([1.24, 1.25])).tolist() == [1.0, 0.0]
    torch.testing.assert_close(law.sample((5,)), torch.full((5,), 1.25))
    assert law.log_prob(torch.tensor(1.25)) == -INF


def test_flow_matching_stops_two_nats_above_the_lower_end():
    draws = to_stopping(weighting("flow-matching"), logsnr_min=-3.0)().sample((40_000,))
    assert abs(draws.mean() - (-1.0)) < 4 * 2.0 / 200


def test_w_is_the_probability_of_still_integrating():
    """L_w/w(a) = E_Λ[½∫_a^Λ m], by sampling Λ: m = S(λ), ½∫_a^Λ m = (softplus Λ − softplus a)/2."""
    w, low = weighting("edm-monotonic"), -6.0
    softplus = torch.nn.functional.softplus
    draws = to_stopping(w, logsnr_min=low)().sample((40_000,))
    each = (softplus(draws) - softplus(torch.tensor(low))) / 2
    loss = integrate.quad(
        lambda value: 0.5 * w(torch.tensor(value)).item() / (1 + math.exp(-value)), low, 40.0
    )[0]
    error = each.mean() - loss / w(torch.tensor(low)).item()
    assert abs(error) < 4 * each.std() / math.sqrt(len(each))


def test_the_sech_is_a_difference_of_two_halves():
    logsnr = torch.linspace(-60.0, 60.0, 120_001)
    density = stopping_density(weighting("ddpm"), logsnr)
    halves = [torch.trapezoid(density * side, logsnr) for side in (logsnr > 0, logsnr < 0)]
    assert [half.item() * math.pi for half in halves] == pytest.approx([1.0, -1.0], rel=1e-6)


@pytest.mark.parametrize("name", [n for n in names() if not weighting(n).monotone])
def test_no_stopping_law_where_w_rises(name):
    with pytest.raises(ValueError, match=rf"'{name}' rises at logsnr = .*signed density"):
        to_stopping(weighting(name))


def test_the_error_names_where_it_rises():
    with pytest.raises(ValueError, match=r"'edm' rises at logsnr = -3\.3 \(by 2\.2\)"):
        to_stopping(weighting("edm"))
    with pytest.raises(ValueError, match=r"'clark-jaini' rises at logsnr = 0\.4 \(by"):
        to_stopping(weighting("clark-jaini"))


@pytest.mark.parametrize("name", ["flow-matching", "v-cosine", "indi", "x-cosine", "truncated-snr"])
def test_unbounded_weightings_want_a_lower_end(name):
    with pytest.raises(ValueError, match=r"is inf at logsnr = -inf.*give logsnr_min"):
        to_stopping(weighting(name))


def test_the_elbo_never_stops():
    with pytest.raises(ValueError, match=r"still 1 of its height at logsnr = inf.*never stops"):
        to_stopping(weighting("elbo"))


def test_wrong_names_and_constants():
    with pytest.raises(ValueError, match=r"unknown weighting 'flow-matchin'; did you mean 'flow-m"):
        weighting("flow-matchin")
    with pytest.raises(ValueError, match=r"Known: elbo, ddpm, .*step"):
        weighting("zzz")
    with pytest.raises(TypeError, match=r"'p2' has no argument 'gama'; it takes k, gamma"):
        weighting("p2", gama=1.0)
    with pytest.raises(TypeError, match=r"'elbo' has no argument 'bias'; it takes none"):
        weighting("elbo", bias=1.0)
    with pytest.raises(ValueError, match="unknown weighting"):
        canonical("sigmoids")


def test_duplicates_are_those_equal_up_to_scale_and_shift():
    """d log w/dλ is free of scale; two names are one iff a shift along λ makes these equal."""
    step, reach = 0.05, 120
    logsnr = torch.arange(-300 - reach, 301 + reach) * step
    rows = {"ddpm-shifted": {"shift": -1.4}}  # a whole number of steps

    def slope(name):
        w = weighting(name, **rows.get(name, {}))
        return torch.func.grad(lambda value: w.log(value).sum())(logsnr)

    curves = {name: slope(name) for name in names() if name != "step"}  # the step's is an atom
    found = {name: {name} for name in names()}
    for one, first in curves.items():
        middle = first[reach:-reach]
        for other, second in curves.items():
            apart = (second.unfold(0, len(middle), 1) - middle).abs().amax(-1)
            if apart.min() < 1e-9:
                found[one].add(other)
            else:
                assert apart.min() > 1e-2, (one, other)
    joined = {frozenset(group): name for name, group in found.items()}
    for group in joined:
        assert len({canonical(name) for name in group}) == 1
        assert set(canonical(next(iter(group))).split("/")) == set(group)
