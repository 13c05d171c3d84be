"""Exact denoisers against dense algebra, quadrature and each other."""

import math

import numpy as np
import pytest
import torch
from contracts_denoiser import PriorContract, error_1d, information_1d
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from neurodiff.diffusion.logsnr import alpha_sigma
from neurodiff.diffusion.prior import Binary, Empirical, Gaussian, GaussianMixture, PowerLaw

COVARIANCE = torch.tensor([[2.0, 0.6, 0.0], [0.6, 0.5, -0.1], [0.0, -0.1, 1.0]])
LEVELS = torch.linspace(-8.0, 8.0, 17)


class TestGaussian(PriorContract):
    mean = torch.tensor([0.5, -1.0, 0.0])

    def make(self):
        return Gaussian(self.mean, COVARIANCE)

    @settings(deadline=None)
    @given(logsnr=st.floats(-10.0, 10.0))
    def test_dense_algebra(self, logsnr):
        prior, _, z = self.noisy(logsnr)
        level = torch.tensor(logsnr)
        alpha, sigma = alpha_sigma(level)
        total = alpha**2 * COVARIANCE + sigma**2 * torch.eye(3)
        gain = alpha * torch.linalg.solve(total, COVARIANCE).mT
        mean = self.mean + (z - alpha * self.mean) @ gain.mT
        assert (prior(z, level) - mean).abs().max() <= 1e-12
        log_p = stats.multivariate_normal((alpha * self.mean).numpy(), total.numpy()).logpdf(z)
        assert np.abs(prior.log_prob(z, level).numpy() - log_p).max() <= 1e-10


class TestIndependentGaussian(PriorContract):
    """Variances in the shape of an image, one of them 0."""

    mean = torch.tensor([[0.5, -1.0], [0.0, 1.0]])

    def make(self):
        return Gaussian(self.mean, torch.tensor([[1.0, 0.2], [0.0, 2.0]]))

    def test_is_the_full_one(self):
        prior, _, z = self.noisy(0.7)
        flat = Gaussian(self.mean.flatten(), torch.diag(prior.variance))
        level = torch.tensor(0.7)
        assert torch.allclose(prior(z, level).flatten(1), flat(z.flatten(1), level), atol=1e-14)
        assert torch.allclose(prior.log_prob(z, level), flat.log_prob(z.flatten(1), level))


class TestPowerLaw(PriorContract):
    def make(self):
        return PowerLaw((2, 3), exponent=2.0, variance=1.5)

    def test_is_the_circulant_gaussian(self):
        """Covariance of pixels i, j = (1/n) Σ_k S_k cos(2π k·(i − j))."""
        prior, z = PowerLaw((4, 6), variance=1.5), torch.randn(5, 4, 6)
        place = torch.cartesian_prod(torch.arange(4) / 4.0, torch.arange(6) / 6.0)
        wave = torch.cartesian_prod(torch.arange(4.0), torch.arange(6.0))
        lag = place[:, None] - place[None]
        # k_y · i_y / 4 + k_x · i_x / 6
        covariance = (prior.spectrum.flatten() * torch.cos(2 * math.pi * lag @ wave.mT)).mean(-1)
        dense = Gaussian(torch.zeros(24), covariance)
        level = torch.tensor(0.4)
        assert torch.allclose(prior(z, level).flatten(1), dense(z.flatten(1), level), atol=1e-12)
        assert torch.allclose(prior.log_prob(z, level), dense.log_prob(z.flatten(1), level))
        assert torch.allclose(covariance.diagonal(), torch.tensor(1.5))

    def test_the_spectrum_falls_by_the_exponent(self):
        spectrum = PowerLaw((64,), exponent=1.3).spectrum
        k = torch.arange(1, 32)
        slope = (spectrum[k].log().diff() / k.log().diff()).numpy()
        assert np.abs(slope + 1.3).max() <= 1e-4  # fftfreq is single precision
        x = PowerLaw((64,), exponent=1.3).sample(20_000)
        power = torch.fft.fft(x, norm="ortho").abs().square()
        ratio = power.mean(0) / spectrum
        assert (ratio - 1).abs().max() <= 5 * math.sqrt(2 / 20_000)

    def test_white(self):
        prior = PowerLaw((5,), exponent=0.0, variance=2.0)
        z, level = torch.randn(3, 5), torch.tensor(-0.5)
        white = Gaussian(torch.zeros(5), torch.full((5,), 2.0))
        assert torch.allclose(prior(z, level), white(z, level))


class TestGaussianMixture(PriorContract):
    weights = torch.tensor([1.0, 2.0])
    means = torch.tensor([[-1.0, 0.5], [1.5, 0.0]])
    mean = (weights[:, None] * means).sum(0) / 3

    def make(self):
        covariances = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.5, -0.3], [-0.3, 1.0]]])
        return GaussianMixture(self.weights, self.means, covariances)

    def test_one_component_is_the_gaussian(self):
        mixture = GaussianMixture(torch.tensor([3.0]), torch.ones(1, 3), COVARIANCE[None])
        gaussian, z, level = Gaussian(torch.ones(3), COVARIANCE), torch.randn(5, 3), torch.zeros(5)
        assert torch.allclose(mixture(z, level), gaussian(z, level), atol=1e-14)
        assert torch.allclose(mixture.log_prob(z, level), gaussian.log_prob(z, level))

    @pytest.mark.parametrize("logsnr", [-4.0, 0.0, 3.0])
    def test_quadrature(self, logsnr):
        """E[x|z] and p(z) as integrals over a one-dimensional x."""
        weight, mean, variance = np.array([0.3, 0.7]), np.array([-1.0, 1.5]), np.array([0.2, 0.5])
        prior = GaussianMixture(
            *(torch.tensor(a) for a in (weight, mean[:, None], variance[:, None]))
        )
        level = torch.tensor(logsnr)
        alpha, sigma = (float(scale) for scale in alpha_sigma(level))
        for z in (-2.0, 0.1, 1.3):

            def joint(x, power, z=z):
                density = weight @ stats.norm.pdf(x, mean, np.sqrt(variance))
                return x**power * density * stats.norm.pdf(z, alpha * x, sigma)

            total, first = (
                integrate.quad(
                    joint, -12, 12, (power,), epsabs=1e-13, limit=200, points=[-1, 0, 1.5]
                )[0]
                for power in (0, 1)
            )
            there = torch.tensor([[z]])
            assert abs(prior.log_prob(there, level).exp() - total) <= 1e-9
            assert abs(prior(there, level) - first / total) <= 1e-8


class TestIndependentMixture(PriorContract):
    mean = torch.tensor([0.5])

    def make(self):
        means = torch.tensor([[-1.0], [1.0]])
        return GaussianMixture(torch.tensor([0.25, 0.75]), means, torch.tensor([[0.1], [0.4]]))


class TestBinary(PriorContract):
    def make(self):
        return Binary((2,))


class TestBinaryNumber(PriorContract):
    def make(self):
        return Binary()


class TestEmpirical(PriorContract):
    data = torch.tensor([[[-1.0, 0.3]], [[0.2, 2.0]], [[0.9, -0.7]]])
    mean = data.mean(0)

    def make(self):
        return Empirical(self.data)


LOGSNR = st.floats(-10.0, 12.0)


@settings(deadline=None)
@given(logsnr=LOGSNR)
def test_atoms_three_ways(logsnr):
    """±1 as the binary source, as two examples, as a mixture without width."""
    x = torch.tensor([[-1.0], [1.0]])
    priors = Binary((1,)), Empirical(x), GaussianMixture(torch.ones(2), x, torch.zeros(2, 1))
    z, level = torch.linspace(-3.0, 3.0, 13)[:, None], torch.tensor(logsnr)
    first = priors[0](z, level), priors[0].log_prob(z, level)
    for other in priors[1:]:
        assert (other(z, level) - first[0]).abs().max() <= 1e-9
        assert ((other.log_prob(z, level) - first[1]) / first[1]).abs().max() <= 1e-9


def test_a_data_set_in_single_precision_at_high_snr():
    """Distances are differences: at e^λ = e^14 the nearest example still wins, and exactly."""
    data = torch.rand(200, 64, dtype=torch.float32) * 2 - 1
    alpha, sigma = alpha_sigma(torch.tensor(14.0, dtype=torch.float32))
    z = alpha * data + sigma * torch.randn(data.shape, dtype=torch.float32)
    prior, level = Empirical(data), torch.tensor(14.0, dtype=torch.float32)
    assert torch.equal(prior(z, level), data)
    exact = Empirical(data.double()).log_prob(z.double(), level.double())
    assert ((prior.log_prob(z, level) - exact) / exact).abs().max() <= 1e-3


def test_gaussian_closed_forms():
    """L and m at one x (formulas §4): N(m, u), E = e^λ."""
    mean, variance, x, snr = 0.4, 1.7, 2.1, LEVELS.exp()
    prior = Gaussian(torch.tensor([mean]), torch.tensor([[variance]]))
    gain, off = 1 + variance * snr, (x - mean) ** 2
    L = 0.5 * (gain.log() + (1 + snr * off) / gain - 1)
    m = (snr * off + snr.square() * variance**2) / gain.square()
    assert (information_1d(prior, x, LEVELS) - L).abs().max() <= 1e-11
    assert (error_1d(prior, x, LEVELS) - m).abs().max() <= 1e-11


def test_mixture_information_is_the_integral_of_the_error():
    """dL/dλ = m/2 at every x, L = KL(q(z|x) ‖ p(z)), by central differences of quadratures."""
    prior = TestIndependentMixture().make()
    levels, h = torch.linspace(-6.0, 3.0, 10), 1e-3
    for x in (-1.2, 0.3, 2.0):
        rise = information_1d(prior, x, levels + h) - information_1d(prior, x, levels - h)
        assert (rise / (2 * h) - 0.5 * error_1d(prior, x, levels)).abs().max() <= 1e-6


def test_binary_closed_forms():
    """mmse = 1 − E tanh(γ + √γ Z) = 1 − E tanh², L = γ − E log cosh(γ + √γ Z), I′ = mmse/2."""

    def expect(f, snr):
        def integrand(n):
            y = snr + math.sqrt(snr) * n
            return f(y) * stats.norm.pdf(n)

        return integrate.quad(integrand, -12, 12, epsabs=1e-13, limit=400)[0]

    def log_cosh(y):
        return abs(y) + math.log1p(math.exp(-2 * abs(y))) - math.log(2)

    for level in (-6.0, -2.0, 0.0, 1.0, 2.0):
        snr, at = math.exp(level), torch.tensor([level])
        mmse = 1 - expect(math.tanh, snr)
        assert abs(mmse - (1 - expect(lambda y: math.tanh(y) ** 2, snr))) <= 1e-11
        for x in (-1.0, 1.0):
            assert abs(error_1d(Binary(), x, at) / snr - mmse) <= 1e-6
            assert abs(information_1d(Binary(), x, at) - (snr - expect(log_cosh, snr))) <= 1e-6
        h = 1e-4 * snr
        rise = [snr + s * h - expect(log_cosh, snr + s * h) for s in (-1, 1)]
        assert abs((rise[1] - rise[0]) / (2 * h) - mmse / 2) <= 1e-7
    assert abs(information_1d(Binary(), 1.0, torch.tensor([5.0])) - math.log(2)) <= 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(torch.zeros(3), torch.eye(2)), r"wanted \(3, 3\)"),
        (lambda: Gaussian(torch.zeros(2), -torch.ones(2)), "must not be negative"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "eigenvalue"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 2.0], [0.0, 1.0]])), "symmetric"),
        (lambda: PowerLaw(()), "wanted a shape"),
        (lambda: PowerLaw((4,), variance=0.0), "positive variance"),
        (
            lambda: GaussianMixture(torch.zeros(1), torch.zeros(1, 2), torch.ones(1, 2)),
            "weights must be positive",
        ),
        (
            lambda: GaussianMixture(torch.ones(1), torch.zeros(1, 2), -torch.ones(1, 2)),
            "must not be negative",
        ),
        (lambda: Empirical(torch.zeros(0, 2)), "at least one example"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
