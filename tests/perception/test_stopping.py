"""The kinds of stopping: equivalences, quadrature and Monte Carlo; what every model promises."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch.func import functional_call, grad, jacrev, vmap

import neurodiff as nd
from neurodiff.perception.controls import BetaBinomial, Constant, FreeLink, NoiseFloor
from neurodiff.perception.frontend import InternalNoise, PowerFilter, Sensitivity
from neurodiff.perception.ideal import Binary, alternatives, gaussians
from neurodiff.perception.observers import Choice, Counts
from neurodiff.perception.stopping import Gauge, Limited, Threshold, stopped

INF = torch.inf
WIDE = torch.tensor([-INF, -30.0, -4.0, -0.7, 0.0, 0.31, 2.2, 30.0, INF])


def logistic(loc=0.5, scale=1.0):
    return nd.SurvivalWeighting(nd.laws.Logistic(loc, scale))


# -- the threshold kind


@settings(deadline=None)
@given(
    bias=st.floats(-3, 3),
    shift=st.floats(-5, 5),
    kappa=st.floats(0.1, 5),
    logsnr=st.floats(-20, 20),
)
def test_a_sigmoid_in_the_free_gauge_is_the_logistic_law(bias, shift, kappa, logsnr):
    gauge = Gauge(nd.weighting("sigmoid", bias=bias), free=True)
    values = {"shift": torch.tensor(shift), "kappa": torch.tensor(kappa)}
    at, law = torch.tensor(logsnr), nd.laws.Logistic(bias / kappa - shift, 1 / kappa)
    torch.testing.assert_close(
        functional_call(gauge, values, (at,)), law().survival(at), rtol=1e-12, atol=0
    )


def test_flow_matching_from_zero_is_an_exponential_law():
    gauge = Gauge(nd.weighting("flow-matching"), logsnr_min=0.0)
    values = {"shift": torch.tensor(1.5)}
    law = nd.laws.Exponential(-1.5, 2.0)
    got = functional_call(gauge, values, (WIDE[1:-1],))
    torch.testing.assert_close(got, law().survival(WIDE[1:-1]).detach())


def test_kappa_is_learned_in_the_free_gauge_only():
    names = {
        free: [
            n
            for n, p in Gauge(nd.weighting("deadline"), free).named_parameters()
            if p.requires_grad
        ]
        for free in (False, True)
    }
    assert names == {False: ["shift"], True: ["shift", "kappa"]}


@pytest.mark.parametrize("name", ["ddpm", "edm", "min-snr", "p2"])
def test_a_weighting_that_rises_is_refused_with_the_place(name):
    for make in (Gauge, lambda w: Threshold(w, Counts()), lambda w: Limited(w, Binary())):
        with pytest.raises(ValueError, match=rf"'{name}' rises at logsnr = -?\d+\.\d \(by"):
            make(nd.weighting(name))


def test_the_elbo_is_refused_where_it_never_responds():
    with pytest.raises(ValueError, match=r"'elbo' is still 1 of its height.*never stops"):
        Threshold(nd.weighting("elbo"), Choice(choices=2))


def test_the_logistic_law_is_naka_rushton():
    c = torch.linspace(0.01, 1.0, 50)
    for n, c50 in ((1.0, 0.2), (2.0, 0.5), (3.4, 0.1)):
        w = logistic(2 * math.log(c50), 2 / n)
        torch.testing.assert_close(stopped(w, 2 * c.log()), c**n / (c**n + c50**n))


def test_stopped_is_exact_at_the_ends_and_in_the_tails():
    w = logistic(0.0)
    got = stopped(w, torch.tensor([-INF, -700.0, INF]))
    assert got.tolist()[0] == 0.0
    assert got.tolist()[2] == 1.0
    torch.testing.assert_close(got[1].log(), torch.tensor(-700.0))


def test_the_default_priors_stand_where_the_stimuli_are():
    trials = {"logsnr": torch.tensor([-INF, 17.0, 18.0, 19.0, INF])}
    choice = Choice(choices=2)
    law = Threshold(logistic(), choice).centre(trials)
    assert set(law) == {"weighting.law.loc"}
    assert (law["weighting.law.loc"].mean, law["weighting.law.loc"].stddev) == (18.0, 5.0)
    named = Threshold(nd.weighting("sigmoid"), choice).centre(trials)
    assert named["weighting.shift"].mean == -18.0
    noisy = Threshold(logistic(), choice, InternalNoise()).centre(trials)
    assert noisy["front_end.logsnr_int"].mean == noisy["weighting.law.loc"].mean == 18.0
    assert Threshold(nd.SurvivalWeighting(FreeLink([0.0, 1.0])), choice).centre(trials) == {}
    assert Limited(nd.weighting("elbo"), Binary()).centre(trials) == {}


def test_a_model_reads_what_its_parts_read():
    model = Threshold(logistic(), Counts(), PowerFilter())
    assert model.requires == ("power", "logsnr", "count")
    assert model.response == "count"
    assert Threshold(logistic(), Choice()).requires == ("logsnr",)


# -- the limited kind


def p_correct(weighting, ideal, logsnr):
    return Limited(weighting, ideal).reached(ideal(torch.as_tensor(logsnr))).detach()


def quadrature(weighting, ideal, end):
    def rate(logsnr):
        at = torch.tensor(logsnr)
        return (weighting(at) * ideal.slope(at)).item()

    top = min(end, 12.0)
    pieces = [-70.0, *[p for p in (-20.0, -6.0, -2.0, 0.0, 2.0, 4.0) if p < top], top]
    return ideal.chance + sum(
        integrate.quad(rate, a, b, epsabs=1e-11, limit=200)[0]
        for a, b in itertools.pairwise(pieces)
    )


@pytest.mark.parametrize("ideal", [Binary(), alternatives(16), gaussians((-1.0, 1.0), (0.3, 1.0))])
def test_limited_accuracy_agrees_with_quadrature(ideal):
    closed = isinstance(ideal, Binary)  # quadrature of a table takes its time
    ends = np.array([-6.0, -1.0, 0.0, 0.5, 1.0, 2.0, 9.0] if closed else [1.0, 9.0])
    for law in (
        nd.laws.Logistic(0.5, 1.0),
        nd.laws.Logistic(3.0, 0.2),
        nd.laws.Normal(-6.0, 3.0),
        nd.laws.GumbelMax(0.0, 2.0),
        nd.laws.GumbelMin(-1.0, 0.4),
    ):
        w = nd.SurvivalWeighting(law)
        want = [quadrature(w, ideal, end) for end in ends]
        np.testing.assert_allclose(p_correct(w, ideal, ends).numpy(), want, rtol=0, atol=1e-6)


def test_limited_accuracy_has_bounded_error_where_the_law_has_an_edge():
    for law, tolerance in (
        (nd.laws.Exponential(-1.0, 2.0), 1e-5),
        (nd.laws.Uniform(0.0, 1.0), 1e-5),
    ):
        w = nd.SurvivalWeighting(law)
        got = p_correct(w, Binary(), np.array([2.0])).item()
        assert abs(got - quadrature(w, Binary(), 2.0)) < tolerance
    step = Gauge(nd.weighting("step", loc=0.7))
    want = Binary()(torch.tensor(0.7)).item()
    assert abs(p_correct(step, Binary(), np.array([5.0])).item() - want) < 1e-3


def test_limited_accuracy_agrees_with_observers_that_stop():
    n = 200_000
    generator = torch.Generator().manual_seed(1)
    law, ends = nd.laws.Logistic(0.5, 1.0), torch.tensor([-2.0, -0.5, 0.5, 1.0, 3.0])
    got = p_correct(nd.SurvivalWeighting(law), Binary(), ends)
    for end, p in zip(ends, got, strict=True):
        stop = torch.minimum(law().icdf(torch.rand(n, generator=generator)), end).detach()
        source = torch.rand(n, generator=generator).round() * 2 - 1
        seen = source * torch.exp(stop / 2) + torch.randn(n, generator=generator)
        right = (seen.sign() == source).double().mean()
        assert abs(right - p) < 4 * (p * (1 - p) / n).sqrt()


def test_limited_and_threshold_are_distinguishable():
    trials = {"logsnr": torch.tensor([1.0])}
    limited = p_correct(logistic(), Binary(), np.array([1.0])).item()
    threshold = 0.5 + 0.5 * stopped(logistic(), trials["logsnr"]).item()
    assert round(limited, 3) == 0.851
    assert round(threshold, 3) == 0.811


@pytest.mark.parametrize("ideal", [Binary(), alternatives(4)])
def test_the_elbo_is_the_ideal_observer_and_nothing_beats_it(ideal):
    at = torch.cat([WIDE, torch.linspace(-10.0, 10.0, 201)])
    best = p_correct(nd.weighting("elbo"), ideal, at)
    torch.testing.assert_close(best, ideal(at), rtol=0, atol=1e-15)
    assert bool((p_correct(logistic(), ideal, at) <= best + 1e-9).all())
    assert p_correct(logistic(), ideal, torch.tensor([-INF])).item() == ideal.chance


@settings(deadline=None, max_examples=30)
@given(loc=st.floats(-3, 3), scale=st.floats(0.3, 3), logsnr=st.floats(-4, 3))
def test_efficiency_is_the_slope_against_the_ideal(loc, scale, logsnr):
    model, ideal = Limited(logistic(loc, scale), Binary()), Binary()
    at = torch.tensor([logsnr])
    slope = grad(lambda x: model.reached(ideal(x)).sum())(at)
    w = (slope / ideal.slope(at)).item()
    # within a cell of 1/512 of the accuracy w is a parabola
    assert abs(w - model.weighting(at).item()) < 1e-4


def test_slips_are_inside():
    model = Limited(logistic(), alternatives(4))
    trials = {"logsnr": torch.tensor([-INF, 1.0, INF])}
    p = p_correct(logistic(), alternatives(4), trials["logsnr"])
    values = {"observer.lapse": torch.tensor(0.2)}
    got = functional_call(model, values, (trials,)).probs
    torch.testing.assert_close(got, 0.2 * 0.25 + 0.8 * p)
    learned = {n for n, q in model.named_parameters() if q.requires_grad}
    assert learned == {"observer.lapse", "weighting.law.loc", "weighting.law.scale"}
    assert (model.response, model.requires) == ("correct", ("logsnr",))


def test_an_observer_that_guesses_otherwise_is_refused():
    with pytest.raises(ValueError, match=r"rate of 0.5, the ideal at 0.25.*Choice\(guess=0.25\)"):
        Limited(logistic(), alternatives(4), Choice(choices=2))


# -- what every model promises


def channel(n=9):
    return {"logsnr": WIDE, "power": torch.rand(4 * n) + 0.05, "count": torch.rand(n).round()}


MODELS = {
    "law, choice": lambda: Threshold(logistic(), Choice(choices=4)),
    "law, guess learned": lambda: Threshold(logistic(), Choice()),
    "gauge, counts": lambda: Threshold(
        Gauge(nd.weighting("deadline"), free=True), Counts(history=3)
    ),
    "flow, noise": lambda: Threshold(
        Gauge(nd.weighting("flow-matching"), logsnr_min=0.0), Choice(choices=2), InternalNoise()
    ),
    "edm, choice": lambda: Threshold(nd.weighting("edm-monotonic"), Choice(choices=2)),
    "law, filter": lambda: Threshold(logistic(20.0), Counts(history=2), PowerFilter(taps=3)),
    "free, counts": lambda: Threshold(
        nd.SurvivalWeighting(free_link()), Counts(most=None, dispersion=0.5, history=0)
    ),
    "free, filter": lambda: Threshold(
        nd.SurvivalWeighting(free_link(20.0)), Counts(history=2), PowerFilter(taps=3)
    ),
    "limited": lambda: Limited(logistic(), Binary()),
    "limited, gauge": lambda: Limited(
        Gauge(nd.weighting("sigmoid"), free=True), alternatives(4), Choice(choices=4), Sensitivity()
    ),
    "limited, free": lambda: Limited(
        nd.SurvivalWeighting(free_link()), Binary(), front_end=InternalNoise()
    ),
    "ideal": lambda: Limited(nd.weighting("elbo"), alternatives(3), front_end=Sensitivity()),
    "constant": lambda: Constant(Choice(choices=4)),
    "history only": lambda: Constant(Counts(history=3)),
    "noise floor": lambda: NoiseFloor(4),
    "noise floor, given": lambda: NoiseFloor(4, internal=False, front_end=InternalNoise()),
    "beta-binomial": lambda: BetaBinomial(choices=4),
}


def free_link(centre=0.0):
    law = FreeLink(torch.tensor([-5.0, -1.0, 0.4, 2.0, 6.0]) + centre)
    with torch.no_grad():
        law.z.copy_(torch.tensor([0.3, -0.8, 0.5, 1.1, -0.4]))
    return law


def prepared(name):
    model = MODELS[name]()
    trials = channel() | {"n": torch.full((9,), 5.0)}
    for module in model.modules():
        if hasattr(module, "prepare"):
            trials |= module.prepare(trials)
    response = {"count": trials["count"], "correct": trials["count"]}
    y = response.get(model.response, torch.arange(9.0) % 5)
    learned = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return model, trials, y, learned


def scattered(model, learned, n):
    """n parameter settings within the supports, around the modules' own."""
    torch.manual_seed(5)
    out = {}
    for name, value in learned.items():
        path, _, own = name.rpartition(".")
        support = model.get_submodule(path).constraints[own]
        transform = torch.distributions.biject_to(support)
        u = transform.inv(value)
        out[name] = transform(u + 0.2 * torch.randn(n, *u.shape))
    return out


def log_prob(model, values, trials, y):
    return functional_call(model, values, (trials,)).log_prob(y)


@pytest.mark.parametrize("name", MODELS)
def test_no_level_makes_a_derivative_nan(name):
    model, trials, y, learned = prepared(name)

    def total(values):
        # an answer that is impossible under the model is the trial's affair, not the derivative's
        each = log_prob(model, values, trials, y)
        return each.sum()

    assert bool(log_prob(model, learned, trials, y).isfinite().all())
    for parameter, slope in jacrev(total)(learned).items():
        assert bool(slope.isfinite().all()), parameter
    for row in jacrev(jacrev(total))(learned).values():
        assert all(bool(block.isfinite().all()) for block in row.values())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_what_is_learned(name):
    model, trials, y, learned = prepared(name)
    slopes = jacrev(lambda values: log_prob(model, values, trials, y).sum())(learned)
    assert all(bool((slope != 0).any()) for slope in slopes.values()), slopes


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_each_trial_are_those_of_a_loop(name):
    model, trials, y, learned = prepared(name)
    each = scattered(model, learned, 9)
    got = log_prob(model, each, trials, y)
    assert got.shape == (9,)
    for i in range(9):
        own = log_prob(model, {k: v[i] for k, v in each.items()}, trials, y)[i]
        torch.testing.assert_close(got[i], own, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_draws_can_be_batched(name):
    model, trials, y, learned = prepared(name)
    draws = scattered(model, learned, 4)
    got = vmap(lambda values: log_prob(model, values, trials, y))(draws)
    for i in range(4):
        own = log_prob(model, {k: v[i] for k, v in draws.items()}, trials, y)
        torch.testing.assert_close(got[i], own, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_batched_draws_of_parameters_of_each_trial(name):
    model, trials, y, learned = prepared(name)
    each = {k: v.reshape(2, 9, *v.shape[1:]) for k, v in scattered(model, learned, 18).items()}
    got = vmap(lambda values: log_prob(model, values, trials, y))(each)
    own = torch.stack(
        [log_prob(model, {k: v[i] for k, v in each.items()}, trials, y) for i in range(2)]
    )
    torch.testing.assert_close(got, own, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_priors_and_supports_are_named_for_all_that_is_learned(name):
    model, trials, _, learned = prepared(name)
    centre = model.centre(trials) if hasattr(model, "centre") else {}
    assert set(centre) <= set(learned)
    for parameter, value in learned.items():
        path, _, own = parameter.rpartition(".")
        owner = model.get_submodule(path)
        assert bool(owner.constraints[own].check(value).all()), parameter
        prior = centre.get(parameter, owner.priors[own])
        assert bool(prior.log_prob(value).isfinite().all()), parameter


@pytest.mark.parametrize("name", MODELS)
def test_responses_can_be_drawn(name):
    model, trials, _, _ = prepared(name)
    p = model(trials)
    assert p.batch_shape == (9,)
    assert p.sample(torch.Size([3])).shape == (3, 9)
