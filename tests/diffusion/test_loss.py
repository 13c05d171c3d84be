"""The weighted loss: its expectation under any schedule, its convention, its gradients."""

import itertools
import math

import pytest
import torch
from contracts_denoiser import error_1d, information_1d, within
from scipy import integrate, stats
from torch import nn

import neurodiff as nd
from neurodiff.diffusion import laws
from neurodiff.diffusion.denoiser import Denoiser, NetworkDenoiser
from neurodiff.diffusion.loss import denoising_loss, squared_error
from neurodiff.diffusion.prior import Binary, Gaussian, GaussianMixture
from neurodiff.diffusion.schedule import NoiseSchedule

MEAN, VARIANCE, X = (
    torch.tensor(row) for row in ([0.5, -1.0, 0.0], [2.0, 0.5, 1.0], [1.0, 0.2, -0.7])
)
SCHEDULES = {
    "cosine": 1,  # a factor on the number of draws: linear is the noisiest
    "flow": 1,
    "vp-linear": 4,
}


def expected(weighting, low=-60.0, high=60.0):
    """½ ∫ w m dλ for the Gaussian above at X, from the closed form of m."""

    def integrand(level):
        snr, variance, off = math.exp(level), VARIANCE.numpy(), (X - MEAN).square().numpy()
        m = ((snr * off + snr**2 * variance**2) / (1 + variance * snr) ** 2).sum()
        return 0.5 * float(weighting(torch.tensor(level))) * m

    return integrate.quad(integrand, low, high, limit=500, points=[-10, -5, 0, 5, 10])[0]


class Constant(nn.Module):
    """A network that always says the same."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, z, logsnr, cond=None):
        return (self.value if cond is None else self.value + cond[:, None]).expand(z.shape)


@pytest.mark.parametrize("name", ["sigmoid", "ddpm", "edm"])
def test_the_same_expectation_under_every_schedule(name):
    weighting, prior = nd.weighting(name), Gaussian(MEAN, VARIANCE)
    for schedule, factor in SCHEDULES.items():
        x = X.expand(40_000 * factor, 3)
        loss = denoising_loss(prior, x, weighting=weighting, schedule=nd.schedule(schedule))
        assert loss.shape == (len(x),)
        assert within(loss - expected(weighting), 4.0)


def test_the_elbo_between_ends():
    """w = 1: the loss is the information gained between the ends of the schedule, in nats."""
    ends = torch.tensor([-6.0, 5.0])
    schedule = nd.schedule("truncated-cosine", logsnr_min=-6.0, logsnr_max=5.0)
    prior = GaussianMixture(
        torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.1], [0.4]])
    )
    low, high = information_1d(prior, 0.8, ends)
    loss = denoising_loss(
        prior, torch.full((100_000, 1), 0.8), weighting=nd.weighting("elbo"), schedule=schedule
    )
    assert within(loss - (high - low), 4.0)


@pytest.mark.parametrize(
    ("weighting", "schedule", "output"),
    [("flow-matching", "flow", "flow"), ("v-cosine", "cosine", "v"), ("ddpm", "cosine", "eps")],
)
def test_plain_losses_are_the_weightings_of_their_names(weighting, schedule, output):
    """A network that says 0 errs by the target itself, whose law is known at every t.

    E|ε|² = d and E|ε − x|² = d + |x|² at every t; E|v|² = α² d + σ² |x|² averages (d + |x|²)/2.
    """
    x = X.expand(40_000, 3)
    loss = denoising_loss(
        NetworkDenoiser(Constant(0.0), output),
        x,
        weighting=nd.weighting(weighting),
        schedule=nd.schedule(schedule),
    ).detach()
    power = float(X.square().sum())
    mean = {"flow": 3 + power, "v": (3 + power) / 2, "eps": 3.0}[output]
    assert within(loss - mean, 4.0)
    if output == "flow":
        assert stats.kstest(loss.numpy(), stats.ncx2(3, power).cdf).pvalue > 1e-3
    if output == "eps":
        assert stats.kstest(loss.numpy(), stats.chi2(3).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["elbo", "sigmoid", "flow-matching", "ddpm", "edm"])
def test_survival_identity(name):
    """½∫ w m = w(λmax) L(λmax) − w(λmin) L(λmin) − ∫ w′ L, with a real denoiser at one x."""
    weighting, level = nd.weighting(name), torch.linspace(-6.0, 4.0, 401)
    prior = GaussianMixture(
        torch.tensor([1.0, 2.0]), torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.3], [0.4]])
    )
    m, information = error_1d(prior, 0.3, level), information_1d(prior, 0.3, level)
    moving = level.clone().requires_grad_()
    value = weighting(moving)
    slope = torch.zeros_like(level)
    if value.requires_grad:
        (slope,) = torch.autograd.grad(value.sum(), moving)
    w = value.detach()
    direct = integrate.simpson((0.5 * w * m).numpy(), x=level.numpy())
    by_parts = float(w[-1] * information[-1] - w[0] * information[0])
    by_parts -= integrate.simpson((slope * information).numpy(), x=level.numpy())
    assert abs(direct - by_parts) <= 1e-7


def test_the_loss_is_the_expected_information_at_a_random_stop():
    """L_w = E_Λ L(Λ; x) where w is the survival function of Λ."""
    law, prior = laws.Logistic(0.5, 1.0), Binary()
    weighting = nd.SurvivalWeighting(law)
    x = torch.ones(100_000)
    loss = denoising_loss(prior, x, weighting=weighting, schedule=nd.schedule("cosine"))
    stop = law().rsample((4_000,)).detach()
    gained = information_1d(prior, 1.0, stop.clamp_max(4.0))  # log 2 to 1e-6 beyond 4
    loss = loss.detach()
    se = math.hypot(loss.std() / math.sqrt(len(loss)), gained.std() / math.sqrt(len(gained)))
    assert abs(loss.mean() - gained.mean()) <= 4 * se


def test_gradients_reach_the_network_and_nothing_else():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, z, logsnr):
            return self.layer(z)

    denoiser = NetworkDenoiser(Net(), "v")
    schedule = NoiseSchedule(laws.Logistic(0.0, 2.0))
    loss = denoising_loss(
        denoiser, torch.randn(50, 3), weighting=nd.weighting("sigmoid"), schedule=schedule
    )
    loss.mean().backward()
    for parameter in denoiser.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in schedule.parameters())


def test_the_condition_and_the_generator_are_used():
    denoiser, x = NetworkDenoiser(Constant(0.0), "x"), torch.ones(4, 2)
    options = {"weighting": nd.weighting("sigmoid"), "schedule": nd.schedule("cosine")}

    def loss(seed, cond=None):
        generator = torch.Generator().manual_seed(seed)
        return denoising_loss(denoiser, x, cond=cond, generator=generator, **options)

    assert torch.equal(loss(3), loss(3))
    assert not torch.equal(loss(3), loss(4))
    assert torch.equal(loss(3, torch.zeros(4)), loss(3))
    assert (loss(3, torch.ones(4)) == 0).all()


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_ends_of_the_schedule_stay_finite(monkeypatch, end):
    """Logsnr is infinite at t = 0 and 1: a uniform draw that falls on an end is moved inside."""
    x, prior = torch.ones(5, 1), Gaussian(torch.zeros(1), torch.ones(1))
    monkeypatch.setattr(torch, "rand", lambda *size, dtype, **_: torch.full(size, end, dtype=dtype))
    for name, dtype in itertools.product(SCHEDULES, (torch.float32, torch.float64)):
        schedule = nd.schedule(name).to(dtype)
        options = {"weighting": nd.weighting("flow-matching"), "schedule": schedule}
        loss = denoising_loss(prior.to(dtype), x.to(dtype), **options)
        assert loss.dtype == dtype
        assert torch.isfinite(loss).all()


def test_a_wrong_shape_is_refused():
    class Mean(Denoiser):
        def forward(self, z, logsnr, cond=None):
            return z.mean(1)

    with pytest.raises(ValueError, match=r"returned \(3,\) for x of shape \(3, 2\)"):
        squared_error(Mean(), torch.zeros(3, 2), torch.zeros(3), torch.zeros(3, 2))
