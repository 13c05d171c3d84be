"""Choices of a category: against quadrature, Monte Carlo, and the posterior of the categories."""

import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import integrate, stats

import neurodiff as nd
from neurodiff.data.schema import DataError
from neurodiff.inference.join import join
from neurodiff.inference.stack import stack
from neurodiff.perception.categories import (
    MEAN,
    NARROW,
    SPREAD,
    WIDE,
    Bayes,
    Linear,
    PerLevel,
)
from neurodiff.perception.measurement import Free, Power, Stopped, Variable
from neurodiff.perception.orientation import Categorise, of_task, strengths

S = strengths(6)
SHOWN = np.array([-14.0, -5.0, -1.0, 0.5, 4.0, 9.0])


def logistic(loc=-1.5, scale=0.8, **options):
    return Stopped(S, nd.laws.Logistic(loc, scale), **options)


def trials(orientation=SHOWN, level=range(6)):
    s, which = np.meshgrid(orientation, np.fromiter(level, float))
    return {"orientation": torch.tensor(s.ravel()), "level": torch.tensor(which.ravel())}


def choices(model, shown):
    with torch.no_grad():
        return model.double()(shown).probs.numpy()


def rule(task, offset=3.0, slope=0.4):
    found = Linear(task)
    found.offset.data.fill_(offset)
    found.slope.data.fill_(slope)
    return found


def chosen(task, s, sigma, offset=3.0, slope=0.4):
    """P(1 | s) of the linear rule, from scipy's normal."""
    k = offset + slope * sigma
    p = stats.norm.sf(k, s, sigma)
    return p if task == "A" else p + stats.norm.cdf(-k, s, sigma)


def levels_of(model, shown):
    return model.measurement.reached().detach().numpy()[shown["level"].long().numpy()]


@pytest.mark.parametrize("task", ["A", "B"])
@pytest.mark.parametrize("floor", [False, True])
def test_a_power_law_is_one_gaussian(task, floor):
    model, shown = Categorise(Power(S, floor=floor), rule(task)), trials()
    sigma = np.exp(-0.5 * (-3.0 + 0.6 * S))
    if floor:
        sigma = np.sqrt(sigma**2 + np.exp(1.0))
    wanted = 0.01 + 0.98 * chosen(task, shown["orientation"].numpy(), np.repeat(sigma, 6))
    np.testing.assert_allclose(choices(model, shown), wanted, atol=1e-7)


@pytest.mark.parametrize("task", ["A", "B"])
@pytest.mark.parametrize(("loc", "scale"), [(-1.5, 0.3), (-3.0, 0.8), (0.0, 1.0), (-2.0, 2.0)])
def test_a_stopping_law_is_a_mixture_of_gaussians(task, loc, scale):
    model, shown = Categorise(logistic(loc, scale), rule(task)), trials()
    wanted = []
    for s, most in zip(shown["orientation"].numpy(), levels_of(model, shown), strict=True):
        wanted.append(by_density(task, s, most, loc, scale))
    got = (choices(model, shown) - 0.01) / 0.98
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def by_density(task, s, most, loc, scale):
    """Kind (c), capped by the stimulus: the density of stops below, an atom at the stimulus."""
    law = stats.logistic(loc, scale)

    def density(x):
        return law.pdf(x) * chosen(task, s, np.exp(-0.5 * x))

    low = most - 60 * max(scale, 1)
    ends = sorted({low, *(p for p in (loc, most - 4.0, most - 12.0) if low < p < most), most})
    parts = [
        integrate.quad(density, a, b, epsabs=1e-13, epsrel=1e-12, limit=400)[0]
        for a, b in itertools.pairwise(ends)
    ]
    return sum(parts) + law.sf(most) * chosen(task, s, np.exp(-0.5 * most))


def by_weighting(task, s, most, loc, scale):
    """Kind (a′): what is taken in at each logsnr weighs w, g(−∞) + ∫ w g′, g′ in closed form."""
    law, offset, slope = stats.logistic(loc, scale), 3.0, 0.4

    def taken(x):
        sigma = np.exp(-0.5 * x)
        # d/dλ of (±s − k₀)/σ − m is half of its first term
        each = [0.5 * (sign * s - offset) / sigma for sign in ((1,) if task == "A" else (1, -1))]
        slopes = [stats.norm.pdf(2 * z - slope) * z for z in each]
        return law.sf(x) * sum(slopes)

    low = most - 90.0
    ends = sorted({low, *(p for p in (loc, most - 4.0, most - 12.0) if low < p < most), most})
    parts = [
        integrate.quad(taken, a, b, epsabs=1e-13, epsrel=1e-12, limit=400)[0]
        for a, b in itertools.pairwise(ends)
    ]
    return (1 if task == "A" else 2) * stats.norm.cdf(-slope) + sum(parts)


@pytest.mark.parametrize("task", ["A", "B"])
def test_limited_and_stopped_are_one_model_of_choices(task):
    for s in (-6.0, 2.0, 11.0):
        for most in (-4.0, -1.0, 1.5):
            for loc, scale in ((-1.5, 1.0), (-3.0, 0.5)):
                one = by_density(task, s, most, loc, scale)
                other = by_weighting(task, s, most, loc, scale)
                assert one == pytest.approx(other, abs=1e-10)


def test_more_nodes_reach_the_integral():
    model, shown = Categorise(logistic(-1.5, 1.0, nodes=60), rule("B")), trials()
    wanted = [
        by_weighting("B", s, most, -1.5, 1.0)
        for s, most in zip(shown["orientation"].numpy(), levels_of(model, shown), strict=True)
    ]
    np.testing.assert_allclose((choices(model, shown) - 0.01) / 0.98, wanted, atol=1e-10)


@pytest.mark.parametrize("task", ["A", "B"])
def test_oblique_noise_against_simulated_trials(task):
    model, shown = Categorise(logistic(oblique=True), rule(task)), trials((8.0, 30.0), (1, 4))
    rng, n = np.random.default_rng(0), 200_000
    stop = rng.logistic(-1.5, 0.8, (n, 1))
    stop = np.exp(-0.5 * np.minimum(stop, levels_of(model, shown)))
    s = shown["orientation"].numpy()
    x = s + (stop + abs(np.sin(np.deg2rad(2 * s)))) * rng.normal(size=stop.shape)
    k = 3.0 + 0.4 * stop
    wanted = 0.01 + 0.98 * ((x > k) if task == "A" else (abs(x) > k)).mean(0)
    assert (abs(choices(model, shown) - wanted) < 4 * 0.5 / np.sqrt(n)).all()


@pytest.mark.parametrize("task", ["A", "B"])
def test_precision_that_varies_is_a_mixture_over_it(task):
    model, shown = Categorise(Variable(S, nodes=15), rule(task)), trials()
    most, z = levels_of(model, shown), np.linspace(-8, 8, 4001)[:, None]
    weight = stats.norm.pdf(z) / stats.norm.pdf(z).sum()
    sigma = np.exp(-0.5 * (most + 0.4 * z))
    wanted = (weight * chosen(task, shown["orientation"].numpy(), sigma)).sum(0)
    np.testing.assert_allclose((choices(model, shown) - 0.01) / 0.98, wanted, atol=1e-6)


def test_a_law_that_never_stops_is_the_power_law():
    shown = trials()
    alone = choices(Categorise(Power(S), rule("A")), shown)
    np.testing.assert_allclose(
        choices(Categorise(logistic(40.0, 0.5), rule("A")), shown), alone, atol=1e-12
    )


def test_a_law_that_is_never_reached_is_finite():
    model = Categorise(logistic(60.0, 0.01), rule("A")).double()
    model(trials()).probs.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("task", ["A", "B"])
def test_bayes_is_indifferent_at_its_boundary(task, free):
    bayes = Bayes(task, free).double()
    bayes.bias.data.fill_(0.3 if task == "A" else -0.4)
    if free:
        for name in ("spread", "narrow", "excess"):
            if hasattr(bayes, name):
                getattr(bayes, name).data.mul_(1.3)
    sigma = np.array([0.1, 2.0, 9.0])
    k = bayes(torch.tensor(sigma)).detach().numpy()
    grow = 1.3 if free else 1.0
    if task == "A":
        sd = np.hypot(grow * SPREAD, sigma)
        odds = stats.norm.logpdf(k, MEAN, sd) - stats.norm.logpdf(k, -MEAN, sd) + 0.3
    else:
        wide = np.hypot(grow * WIDE, sigma)
        odds = stats.norm.logpdf(k, 0, wide) - 0.4
        odds = odds - stats.norm.logpdf(k, 0, np.hypot(grow * NARROW, sigma))
    np.testing.assert_allclose(odds, 0, atol=1e-12)


def test_a_strong_prior_makes_everything_wide():
    bayes = Bayes("B").double()
    bayes.bias.data.fill_(3.0)
    sigma = torch.tensor([1.0, 5.0], dtype=torch.float64)
    assert (bayes(sigma) < 1e-3).all()


def test_boundaries_of_levels_and_below_zero():
    assert Linear("B")(torch.tensor([-9.0, 1.0])).tolist() == [0.0, 6.0]
    own = PerLevel("A", 6)
    own.boundary.data.copy_(torch.arange(6.0))
    assert own(torch.ones(6, 3))[:, 2].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="got task 'C', wanted one of A, B"):
        Linear("C")


def test_people_of_unequal_numbers_are_a_loop():
    rng = np.random.default_rng(0)
    data = [
        xr.Dataset({
            "orientation": ("trial", rng.normal(0, 8, n)),
            "level": ("trial", rng.integers(0, 6, n) * 1.0),
            "choice": ("trial", rng.integers(0, 2, n) * 1.0),
        })
        for n in (40, 55)
    ]  # fmt: skip
    parts = [join(Categorise(logistic(), Bayes("B", free=True)), one).posterior for one in data]
    joint = stack(parts)
    u = torch.stack([part.parameters.start() for part in parts])
    alone = torch.cat([part.log_prob(x[None]) for part, x in zip(parts, u, strict=True)])
    assert torch.allclose(joint.log_prob(u), alone, rtol=1e-12)


def test_draws_of_many_nodes_are_weighed_in_single_precision():
    rng = np.random.default_rng(0)
    columns = {"orientation": rng.normal(0, 8, 420), "level": np.arange(420) % 6 * 1.0}
    columns["choice"] = np.arange(420) % 2 * 1.0
    data = xr.Dataset({name: ("trial", values) for name, values in columns.items()})
    one = join(Categorise(logistic(), Linear("B")), data).posterior
    assert one._fits_single
    u = one.parameters.start() + 0.5 * torch.randn(50, one.size)
    exact = one.draws_log_prob(u[None]) - one.parameters.draws_log_prior(u[None])
    # a rounding of 1e-7 in each of the 420, some of probability 0.01
    assert torch.allclose(one.draws_terms(u[None])[1].sum(-1), exact, atol=2e-3)


def test_free_levels_are_power_laws_of_their_own():
    model = Categorise(Free(6), rule("A"))
    power = Power(np.linspace(-1.0, 1.0, 6))
    power.shift.data.fill_(-3.25)
    power.power.data.fill_(1.75)
    np.testing.assert_allclose(
        choices(model, trials()), choices(Categorise(power, rule("A")), trials()), atol=1e-7
    )


def load(part):
    try:
        return nd.load(f"adler2018-orientation-confidence/{part}")
    except DataError as error:
        if "not on this machine" in str(error):
            pytest.skip("the files of data set adler2018 are neither here nor reachable")
        raise


@pytest.mark.parametrize("part", ["expt1", "expt2", "expt3", "attention"])
def test_recorded_orientations_are_of_the_published_categories(part):
    data = load(part)
    published = {"A": ((-MEAN, SPREAD), (MEAN, SPREAD)), "B": ((0, NARROW), (0, WIDE))}
    for task in ("A", "B") if part in ("expt1", "expt2") else ("B",):
        mine = of_task(data, task)
        for category, (mean, sd) in enumerate(published[task]):
            s = mine["orientation"].values[mine["category"].values == category]
            # four standard errors of a mean and of a standard deviation
            assert abs(s.mean() - mean) < 4 * sd / np.sqrt(len(s))
            assert abs(s.std() - sd) < 4 * sd / np.sqrt(2 * len(s))


def test_strengths_are_those_of_the_contrasts():
    data = load("expt2")
    contrast = np.unique(data["logsnr"])
    np.testing.assert_allclose(strengths(6), contrast - contrast.mean(), atol=1e-6)
    mine = of_task(data, "A")
    place = strengths(6)[mine["level"].values.astype(int)]
    np.testing.assert_allclose(place, mine["logsnr"] - contrast.mean(), atol=1e-6)
    assert of_task(load("attention"), "B")["level"].max() == 2


def test_what_cannot_be_read_is_named():
    data = xr.Dataset({"orientation": ("trial", [0.0]), "choice": ("trial", [1.0])})
    with pytest.raises(DataError, match="wanted orientation, choice and one of contrast"):
        of_task(data, "A")
    with pytest.raises(DataError, match="no trial is of task A"):
        of_task(data.assign(contrast=("trial", [0.1])), "A")
    with pytest.raises(ValueError, match="got task 'a'"):
        of_task(data, "a")
