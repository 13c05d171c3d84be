"""Sources against the formulas that they are known by, and bridges of jointly Gaussian (x, y)."""

import math

import pytest
import torch

import neurodiff as nd
from neurodiff.diffusion.denoiser import Denoiser, NetworkDenoiser
from neurodiff.diffusion.likelihood import log_prob
from neurodiff.diffusion.logsnr import alpha, diffuse, sigma
from neurodiff.diffusion.loss import squared_error
from neurodiff.diffusion.networks import MLP, Beside
from neurodiff.diffusion.prior import Gaussian, GaussianMixture
from neurodiff.diffusion.sample import ancestral, ddim, dpm_solver, levels, renoised, step
from neurodiff.diffusion.schedule import NoiseSchedule
from neurodiff.diffusion.source import Bridge, circle, colour, whiten
from neurodiff.diffusion.train import train

MEAN, COVARIANCE = torch.tensor([0.3, -0.2]), torch.tensor([[1.0, 0.6], [0.6, 0.5]])
SOURCE = Gaussian(MEAN, COVARIANCE)


def test_whitening_is_the_symmetric_root_and_is_undone():
    x = SOURCE.sample(1000)
    white = whiten(x, SOURCE)
    torch.testing.assert_close(colour(white, SOURCE), x, rtol=0, atol=1e-12)
    root = torch.stack(list(colour(torch.eye(2), SOURCE))) - MEAN
    torch.testing.assert_close(root, root.mT)
    torch.testing.assert_close(root @ root, COVARIANCE)


def test_a_plain_source_changes_nothing():
    x = torch.randn(5, 2)
    for unit in (torch.eye(2), torch.ones(2)):
        torch.testing.assert_close(whiten(x, Gaussian(torch.zeros(2), unit)), x)


def test_the_loss_in_whitened_coordinates_is_that_of_priorgrad():
    # z = α x + σ e, e ~ N(μ, Σ), of which a denoiser in image coordinates says x̂
    x, eps, logsnr = SOURCE.sample(7), torch.randn(7, 2), torch.randn(7)
    a, s = alpha(logsnr)[:, None], sigma(logsnr)[:, None]
    root = torch.linalg.cholesky(COVARIANCE)  # any root gives the same law of e
    e = MEAN + eps @ root.mT
    z = a * x + s * e
    estimate = torch.tanh(z)

    class Same(Denoiser):
        def forward(self, z, logsnr, cond=None):
            shift = (a + s) * MEAN
            return whiten(torch.tanh(colour(z, SOURCE) - MEAN + shift), SOURCE)

    off = (z - a * estimate) / s - e
    wanted = torch.einsum("ni,ij,nj->n", off, torch.linalg.inv(COVARIANCE), off)
    got = squared_error(Same(), whiten(x, SOURCE), logsnr, whiten(e, SOURCE))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=0)


def test_likelihood_is_that_of_the_whitened_less_half_the_log_determinant():
    root = colour(torch.eye(2), SOURCE) - MEAN
    inverse = torch.linalg.inv(root)
    m, c = torch.tensor([0.1, 0.4]), torch.tensor([[0.5, -0.2], [-0.2, 0.4]])
    inside = inverse @ c @ inverse.mT
    white = Gaussian(whiten(m[None], SOURCE)[0], 0.5 * (inside + inside.mT))
    x = torch.randn(20, 2)
    got = log_prob(white, whiten(x, SOURCE), reference=white).value
    got = got - 0.5 * SOURCE.variance.log().sum()
    wanted = torch.distributions.MultivariateNormal(m, c).log_prob(x)
    torch.testing.assert_close(got, wanted)


def test_the_circle_is_exact_for_what_the_source_says_and_of_first_order_else():
    z, schedule = torch.randn(50, 2), nd.schedule("cosine")
    for steps in (1, 3):
        there = circle(Gaussian(torch.zeros(2), torch.ones(2)), z, levels(schedule, steps))
        assert torch.allclose(there, z, atol=1e-12)
        shrunk = ddim(Gaussian(torch.zeros(2), torch.ones(2)), z, levels(schedule, steps))
        turns = (-0.5 * levels(schedule, steps)).exp().atan().diff()
        assert torch.allclose(shrunk, turns.cos().prod() * z, atol=1e-12)
    other = GaussianMixture(
        torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.full((2, 2), 0.2)
    )
    truth = dpm_solver(other, z, levels(schedule, 3200, 8.0))
    off = [
        (circle(other, z, levels(schedule, n, 8.0)) - truth).square().mean().sqrt()
        for n in (100, 200)
    ]
    assert 0.9 < math.log2(off[0] / off[1]) < 1.1


def test_a_source_without_variance_is_refused():
    with pytest.raises(ValueError, match=r"variance 0 in some direction.*floor"):
        whiten(torch.zeros(1, 2), Gaussian(torch.zeros(2), torch.tensor([1.0, 0.0])))
    with pytest.raises(ValueError, match=r"got \(1, 3\) beside a source of \(2,\)"):
        whiten(torch.zeros(1, 3), SOURCE)


# bridges ----------------------------------------------------------------------------------------


class Shown(Denoiser):
    """Returns what it is shown, for the law of z on the bridge."""

    def forward(self, z, logsnr, cond=None):
        return z


def test_the_brownian_bridge_is_that_of_any_rate_of_noise():
    # I2SB: sigma^2 = ∫_0^t beta, sbar^2 = ∫_t^1 beta, here of beta = 0.1 + 3 t (1 - t)
    t = torch.linspace(0.05, 0.95, 10)
    near = 0.1 * t + 1.5 * t**2 - t**3
    far = 0.1 + 0.5 - near
    x, y, eps = torch.randn(3, 10, 1).unbind()
    mean = (far[:, None] * x + near[:, None] * y) / (near + far)[:, None]
    wanted = mean + (near * far / (near + far)).sqrt()[:, None] * eps
    bridge = Bridge(Shown(), math.sqrt(0.6), pinned=True, seen=False)
    logsnr = (far / near).log() - math.log(0.6)
    torch.testing.assert_close(bridge(diffuse(x, eps, logsnr), logsnr, y), wanted)


def test_the_straight_one_is_the_interpolant_from_y_and_a_little_noise():
    t = torch.linspace(0.05, 0.95, 10)
    x, y, eps = torch.randn(3, 10, 1).unbind()
    bridge = Bridge(Shown(), 0.3, pinned=False, seen=False)
    logsnr = 2 * ((1 - t) / (0.3 * t)).log()
    torch.testing.assert_close(bridge.share(logsnr), 1 - t)
    wanted = (1 - t)[:, None] * x + t[:, None] * (y + 0.3 * eps)
    torch.testing.assert_close(bridge(diffuse(x, eps, logsnr), logsnr, y), wanted)


@pytest.mark.parametrize("pinned", [True, False])
def test_the_losses_that_bridges_are_trained_with_are_named_weightings(pinned):
    bridge, kappa = Bridge(Shown(), 0.6, pinned=pinned, seen=False), 0.6
    x, y, eps = torch.randn(3, 9, 1).unbind()
    t = torch.linspace(0.1, 0.9, 9)
    law = NoiseSchedule(bridge.law)
    logsnr = law.logsnr(t)
    if pinned:
        weighting = nd.weighting("sigmoid", bias=-2 * math.log(kappa))(logsnr)
        z = (1 - t)[:, None] * x + t[:, None] * y + kappa * (t * (1 - t)).sqrt()[:, None] * eps
        scale = kappa * t.sqrt()[:, None]
        off = (z - x) / scale  # Shown says that z is x, and the target 0
    else:
        weighting = 0.5 * kappa * nd.weighting("flow-matching")(logsnr)
        off = y + kappa * eps - x
    got = weighting / law.log_density(logsnr).exp() * squared_error(bridge, x, logsnr, eps, y)
    torch.testing.assert_close(0.5 * got, 0.5 * off.square()[:, 0])


@pytest.mark.parametrize("pinned", [True, False])
def test_plain_steps_are_those_of_the_bridge(pinned):
    bridge = Bridge(Shown(), 0.6, pinned=pinned, seen=False)
    z, x, y, xi = torch.randn(4, 8, 1).unbind()
    t, s = torch.tensor(0.7), torch.tensor(0.2)
    law = NoiseSchedule(bridge.law)
    now, then = law.logsnr(t), law.logsnr(s)
    before = bridge(z, now, y)
    if pinned:  # the posterior of a Brownian motion, between x and where it is
        there = renoised(z, x, xi, now, then)
        wanted = before * s / t + (1 - s / t) * x + 0.6 * (s * (t - s) / t).sqrt() * xi
    else:  # Euler's step of dz/dt = (z - x) / t
        there = step(z, x, now, then)
        wanted = before + (s - t) * (before - x) / t
    torch.testing.assert_close(bridge(there, then, y), wanted)


JOINT = (torch.tensor([0.4, -0.1]), torch.tensor([[0.5, 0.3], [0.3, 0.8]]))  # of (x, y)


class Exact(Denoiser):
    """E[x|z] or E[x|z, y] of jointly Gaussian (x, y), by conditioning."""

    def __init__(self, joint, spread, pinned):
        super().__init__()
        self.joint, self.spread, self.pinned = joint, spread, pinned

    def forward(self, z, logsnr, cond=None):
        (mx, my), c = self.joint
        a = torch.sigmoid((logsnr + 2 * math.log(self.spread)) / (1 if self.pinned else 2))[:, None]
        b, noise = 1 - a, a.square() * (-logsnr).exp()[:, None]
        mean_z = a * mx + b * my
        var_z = a**2 * c[0, 0] + 2 * a * b * c[0, 1] + b**2 * c[1, 1] + noise
        xz, yz = a * c[0, 0] + b * c[0, 1], a * c[0, 1] + b * c[1, 1]
        if cond is None:
            return mx + xz / var_z * (z - mean_z)
        determinant = var_z * c[1, 1] - yz**2
        by_z = (xz * c[1, 1] - c[0, 1] * yz) / determinant
        by_y = (c[0, 1] * var_z - xz * yz) / determinant
        return mx + by_z * (z - mean_z) + by_y * (cond - my)


def bridge_of(pinned, seen, joint=JOINT, spread=0.7):
    return Bridge(Exact(joint, spread, pinned), spread, pinned=pinned, seen=seen)


@pytest.mark.parametrize("pinned", [True, False])
def test_the_conditional_means_are_those_of_quadrature(pinned):
    x, y = torch.meshgrid(torch.linspace(-6, 6, 1201), torch.linspace(-6, 6, 1201), indexing="ij")
    prior = torch.distributions.MultivariateNormal(*JOINT).log_prob(torch.stack([x, y], -1))
    for level, z in ((-1.0, 0.3), (1.5, -0.8)):
        a = torch.sigmoid(torch.tensor((level + 2 * math.log(0.7)) / (1 if pinned else 2)))
        see = -0.5 * (z - a * x - (1 - a) * y).square() / (a**2 * math.exp(-level))
        weight = (prior + see - see.max()).exp()
        exact = Exact(JOINT, 0.7, pinned)
        at, given = torch.tensor([level]), torch.tensor([[0.5]])
        blind = (weight * x).sum() / weight.sum()
        column = int((0.5 + 6) / 0.01 + 0.5)
        seen = (weight * x)[:, column].sum() / weight[:, column].sum()
        torch.testing.assert_close(exact(torch.tensor([[z]]), at)[0, 0], blind)
        torch.testing.assert_close(exact(torch.tensor([[z]]), at, given)[0, 0], seen)


MANY, STEPS = 20_000, 500  # steps of first order leave 2 % of the variance at most, two s.e.


def drawn(bridge, sampler, y):
    # from the very end: what schedule() leaves out would show in so many draws
    logsnr = levels(NoiseSchedule(bridge.law), STEPS)
    z = sampler(bridge, torch.randn_like(y), logsnr, y)
    return z[:, 0]


def standard_errors_off(x, mean, variance):
    """How far mean and variance of Gaussian draws are off, in standard errors."""
    off = (x.mean() - mean) / (variance / len(x)) ** 0.5
    return max(abs(float(off)), abs(float(x.var() / variance - 1)) / (2 / len(x)) ** 0.5)


def given_y(y, joint=JOINT):
    (mx, my), c = joint
    slope = c[0, 1] / c[1, 1]
    return mx + slope * (y - my), c[0, 0] - slope * c[0, 1]


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("sampler", [ancestral, dpm_solver])
def test_who_sees_y_draws_x_given_y(pinned, sampler):
    y = torch.full((MANY, 1), 1.3)
    x = drawn(bridge_of(pinned, True), sampler, y)
    assert standard_errors_off(x, *given_y(1.3)) < 4


@pytest.mark.parametrize(
    ("pinned", "sampler", "right"),
    [(True, ancestral, True), (False, dpm_solver, True), (True, dpm_solver, False),
     (False, ancestral, False)],
)  # fmt: skip
def test_who_is_blind_draws_x_over_all_y_with_the_sampler_of_its_kind(pinned, sampler, right):
    (mx, my), c = JOINT
    y = my + c[1, 1].sqrt() * torch.randn(MANY, 1)
    off = standard_errors_off(drawn(bridge_of(pinned, False), sampler, y), mx, c[0, 0])
    assert off < 4 if right else off > 6


@pytest.mark.parametrize(("pinned", "sampler"), [(True, ancestral), (False, dpm_solver)])
def test_who_is_blind_does_not_draw_x_given_y(pinned, sampler):
    x = drawn(bridge_of(pinned, False), sampler, torch.full((MANY, 1), 1.3))
    assert standard_errors_off(x, *given_y(1.3)) > 10


def test_unless_y_is_x_with_just_the_noise_of_the_bridge():
    joint = torch.tensor([0.4, 0.4]), torch.tensor([[0.5, 0.5], [0.5, 0.5 + 0.7**2]])
    x = drawn(bridge_of(True, False, joint), ancestral, torch.full((MANY, 1), 1.3))
    assert standard_errors_off(x, *given_y(1.3, joint)) < 4


def test_seen_bridges_know_the_likelihood_of_x_given_y():
    x, y = torch.randn(30, 1), torch.randn(30, 1)
    mean, variance = given_y(y)
    wanted = torch.distributions.Normal(mean, variance.sqrt()).log_prob(x)[:, 0]
    for pinned in (True, False):
        got = log_prob(bridge_of(pinned, True), x, cond=y, pairs=64)
        assert ((got.value - wanted).abs() < 5 * got.se + 1e-4).all()


@pytest.mark.parametrize("seen", [True, False])
def test_training_is_the_plain_one_and_ends_near_the_conditional_mean(seen):
    torch.manual_seed(1)
    c = torch.tensor([[0.06, 0.04], [0.04, 0.09]])
    pair = torch.randn(4000, 2) @ torch.linalg.cholesky(c).mT
    x, y = pair[:, :1].clamp(-1, 1), pair[:, 1:]
    inner = Beside(MLP((2,), 32, 2)) if seen else MLP((1,), 32, 2)
    start = Bridge(NetworkDenoiser(inner, "v"), 0.3, pinned=True, seen=seen)
    done = train(
        start, x, cond=y, weighting=nd.weighting("elbo"), schedule=start.schedule(),
        steps=500, rate=3e-3, average=0.99,
    ).denoiser  # fmt: skip
    exact = Bridge(Exact((torch.zeros(2), c), 0.3, True), 0.3, pinned=True, seen=seen)
    for logsnr in start.schedule().logsnr(torch.tensor([0.9, 0.3])):
        z = diffuse(x, torch.randn_like(x), logsnr)
        off = (done(z, logsnr, y) - exact(z, logsnr, y)).square().mean().sqrt()
        # of a standard deviation of x of 0.24
        assert off < 0.025


def test_what_a_bridge_needs_is_said():
    with pytest.raises(ValueError, match="a spread above 0, got 0"):
        Bridge(Shown(), 0.0, pinned=True, seen=False)
    bridge = Bridge(Shown(), 1.0, pinned=True, seen=False)
    with pytest.raises(ValueError, match=r"its y, of the shape \(2, 3\); got none"):
        bridge(torch.zeros(2, 3), torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"of the shape \(2, 3\); got \(2, 1\)"):
        bridge(torch.zeros(2, 3), torch.tensor(0.0), torch.zeros(2, 1))
