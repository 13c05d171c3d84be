"""Laws on logsnr: each against scipy.stats, far tails, errors."""

import math

import mpmath
import pytest
import torch
from contracts import LawContract, ScipyLawContract
from scipy import stats

from neurodiff.diffusion import laws


class TestLogistic(ScipyLawContract):
    oracle = stats.logistic(0.7, 1.3)

    def make(self):
        return laws.Logistic(0.7, 1.3)


class TestNormal(ScipyLawContract):
    oracle = stats.norm(2.4, 2.4)

    def make(self):
        return laws.Normal(2.4, 2.4)


class TestHyperbolicSecant(ScipyLawContract):
    oracle = stats.hypsecant(-0.5, 2.0)

    def make(self):
        return laws.HyperbolicSecant(-0.5, 2.0)


class TestLaplace(ScipyLawContract):
    oracle = stats.laplace(0.3, 0.9)
    smooth = False

    def make(self):
        return laws.Laplace(0.3, 0.9)


class TestCauchy(ScipyLawContract):
    oracle = stats.cauchy(-0.4, 0.6)

    def make(self):
        return laws.Cauchy(-0.4, 0.6)


class TestExponential(ScipyLawContract):
    oracle = stats.expon(-1.5, 2.0)

    def make(self):
        return laws.Exponential(-1.5, 2.0)


class TestGumbelMax(ScipyLawContract):
    oracle = stats.gumbel_r(0.2, 1.7)

    def make(self):
        return laws.GumbelMax(0.2, 1.7)


class TestGumbelMin(ScipyLawContract):
    oracle = stats.gumbel_l(0.2, 1.7)

    def make(self):
        return laws.GumbelMin(0.2, 1.7)


class TestUniform(ScipyLawContract):
    oracle = stats.uniform(-9.0, 20.0)

    def make(self):
        return laws.Uniform(-9.0, 20.0)


class TestMixture(LawContract):
    def make(self):
        return laws.Mixture([laws.Logistic(-2.0, 0.5), laws.GumbelMax(2.0, 1.0)], [0.3, 0.7])


class TestPiecewiseLinear(LawContract):
    smooth = False

    def make(self):
        return laws.PiecewiseLinear([-5.0, -2.0, -1.0, 0.5, 4.0], [0.3, -1.0, 1.2, 0.1])


# --- far tails: log S(z) of the standard law in 200 digits

MP = mpmath.mp.clone()
MP.dps = 200
TAILS = {
    laws.Logistic: lambda z: -MP.log1p(MP.exp(z)),
    laws.Normal: lambda z: MP.log(MP.erfc(z / MP.sqrt(2)) / 2),
    laws.HyperbolicSecant: lambda z: MP.log(2 / MP.pi * MP.atan(MP.exp(-z))),
    laws.Laplace: lambda z: MP.log(MP.exp(-z) / 2) if z > 0 else MP.log1p(-MP.exp(z) / 2),
    laws.Cauchy: lambda z: MP.log(MP.acot(z) / MP.pi if z > 0 else 1 - MP.acot(-z) / MP.pi),
    laws.Exponential: lambda z: -max(z, MP.mpf(0)),
    laws.GumbelMax: lambda z: MP.log(-MP.expm1(-MP.exp(-z))),
    laws.GumbelMin: lambda z: -MP.exp(z),
}


FAR = [-25.0, -3.0, -0.3, 0.0, 0.2, 4.0, 26.0, 60.0, 500.0]


@pytest.mark.parametrize(
    ("law", "z"),
    [(law, z) for law in TAILS for z in FAR if law is not laws.GumbelMin or z <= 60],
)  # log S of GumbelMin at 500 is −e^500; the law stops at −e^80
def test_tails_to_the_last_digits(law, z):
    exact = TAILS[law](MP.mpf(z))
    logsnr = torch.tensor(z)
    assert law()().log_survival(logsnr).item() == pytest.approx(float(exact), rel=3e-13, abs=1e-300)
    assert law()().survival(logsnr).item() == pytest.approx(
        float(MP.exp(exact)), rel=4e-13, abs=1e-307
    )


def test_moments_from_samples():
    for law in (
        laws.GumbelMax(1.0, 2.0),
        laws.GumbelMin(1.0, 2.0),
        laws.HyperbolicSecant(1.0, 2.0),
    ):
        draws = law().sample((40_000,))
        assert abs(draws.mean() - law().mean) < 4 * draws.std() / 200


def test_gumbel_min_is_the_log_of_an_exponential_deadline():
    time, loc = torch.tensor([0.1, 1.0, 5.0]), 0.7
    survival = laws.GumbelMin(loc, 1.0)().survival(time.log())
    torch.testing.assert_close(survival.detach(), torch.exp(-time / math.exp(loc)))


def test_mixture_adds_up():
    parts, logsnr = [laws.Normal(-1.0), laws.Uniform(0.0, 4.0)], torch.linspace(-3.0, 5.0, 30)
    mixture = laws.Mixture(parts, [0.25, 0.75])()
    for method in ("cdf", "survival"):
        one, two = (getattr(part(), method)(logsnr) for part in parts)
        torch.testing.assert_close(getattr(mixture, method)(logsnr), 0.25 * one + 0.75 * two)


def test_piecewise_linear_is_uniform_at_first_and_smooth_by_its_prior():
    knots = torch.linspace(-6.0, 6.0, 13)
    law = laws.PiecewiseLinear(knots)
    same = laws.Uniform(-6.0, 12.0)()
    logsnr = torch.linspace(-7.0, 7.0, 57)
    torch.testing.assert_close(law().cdf(logsnr), same.cdf(logsnr))
    prior = law.priors["logits"]
    steps = prior.sample((20_000,)).diff(dim=-1)
    assert abs(steps.var(0).mean() - 1.0) < 0.05  # one nat² per nat, a little less by the pull
    rough = law.logits.detach() + torch.tensor([1.0, -1.0] * 6)
    tilt = law.logits.detach() + torch.linspace(-1.0, 1.0, 12)
    assert prior.log_prob(rough) < prior.log_prob(tilt) < prior.log_prob(law.logits.detach())


def test_uneven_knots_start_uniform_too():
    law = laws.PiecewiseLinear([-4.0, -3.5, 0.0, 1.0])
    density = law().log_prob(torch.tensor([-3.8, -1.0, 0.5])).exp()
    torch.testing.assert_close(density.detach(), torch.full((3,), 0.2))
    assert law.priors["logits"].mean.equal(law.logits.detach())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: laws.Logistic(0.0, -1.0), "scale is -1.0, but must be positive"),
        (lambda: laws.Mixture([]), "at least one law"),
        (lambda: laws.Mixture([laws.Normal()], [0.5]), "sum to 1"),
        (lambda: laws.Mixture([laws.Normal()], [0.5, 0.5]), "one a law"),
        (lambda: laws.PiecewiseLinear([1.0]), "at least two"),
        (lambda: laws.PiecewiseLinear([0.0, math.inf]), "at least two finite"),
        (lambda: laws.PiecewiseLinear([0.0, 0.0, 1.0]), "must increase"),
        (lambda: laws.PiecewiseLinear([0.0, 1.0], [0.0, 0.0]), "wanted 1 bins"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nan_stays_nan():
    assert laws.Logistic()().survival(torch.tensor(math.nan)).isnan()
