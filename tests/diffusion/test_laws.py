"""Laws on logsnr: each against scipy.stats, far tails, errors."""

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
