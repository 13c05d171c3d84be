"""Each published loss, written as it was published, against its triple in our one loss."""

import math

import pytest
import torch
from torch import nn

import neurodiff as nd
from neurodiff.diffusion.denoiser import NetworkDenoiser
from neurodiff.diffusion.logsnr import alpha_sigma
from neurodiff.diffusion.loss import denoising_loss, look
from neurodiff.diffusion.networks import MLP
from neurodiff.diffusion.recipe import RECIPES, PlainWeighting, recipe

N, DIM = 64, 3


class Awake(nn.Module):
    """A small network whose output is of everything that it sees."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = MLP((DIM,), 16, 1)
        for p in self.net.parameters():
            p.data = 0.3 * torch.randn(p.shape)

    def forward(self, z, logsnr):
        return self.net(z, logsnr)


def beta(t, low=0.1, high=20.0):
    return low + (high - low) * t


def linear(t, low=0.1, high=20.0):
    whole = low * t + 0.5 * (high - low) * t**2
    return torch.exp(-0.5 * whole), torch.sqrt(-torch.expm1(-whole))


# Each: a network (z on the VP path, logsnr) → output, x, t, eps ↦ published loss, (batch,).


def eps_at(net, x, t, eps, scales):
    a, s = (v[:, None] for v in scales)
    return net(a * x + s * eps, 2 * torch.log(a / s)[:, 0])


def l_simple(net, x, t, eps):
    return (eps_at(net, x, t, eps, linear(t)) - eps).square().sum(1)


def ddpm_eq_12(net, x, t, eps, steps=1_000_000_000):
    """The term of one step of a long chain, with the posterior variance, times the steps."""
    (a, s), s_before = linear(t), linear(t - 1 / steps)[1]
    one = -torch.expm1(-beta(t - 0.5 / steps) / steps)  # beta of that step
    posterior = one * (s_before / s).square()
    factor = one.square() / (2 * posterior * (1 - one) * s.square())
    return steps * factor * (eps_at(net, x, t, eps, (a, s)) - eps).square().sum(1)


def ncsn(net, x, t, eps):
    """½ sigma² |score - target|² is theirs; here without the ½, as their code's sum has it."""
    s = 0.01 * (50.0 / 0.01) ** t
    z = x + s[:, None] * eps
    vp = z / torch.sqrt(1 + s.square())[:, None]
    score = -net(vp, -2 * torch.log(s)) / s[:, None]
    return s.square() * (score + eps / s[:, None]).square().sum(1)


def song_likelihood(net, x, t, eps):
    """½ g² |score error|², g² = beta, of the VP SDE."""
    a, s = linear(t)
    score = net(a[:, None] * x + s[:, None] * eps, 2 * torch.log(a / s))
    return 0.5 * beta(t) * (score + eps / s[:, None]).square().sum(1)


def cfm(net, x, t, eps):
    """|u - (eps - x)|² on z = (1 - t) x + t eps."""
    z = (1 - t)[:, None] * x + t[:, None] * eps
    scale = torch.sqrt((1 - t).square() + t.square())
    u = net(z / scale[:, None], 2 * torch.log((1 - t) / t))
    return (u - (eps - x)).square().sum(1)


def v_mse(net, x, t, eps):
    a, s = torch.cos(0.5 * math.pi * t), torch.sin(0.5 * math.pi * t)
    target = a[:, None] * eps - s[:, None] * x
    return (eps_at(net, x, t, eps, (a, s)) - target).square().sum(1)


def edm(net, x, t, eps):
    """lambda(sigma) |D(y; sigma) - x|² with log sigma ~ N(-1.2, 1.2²), D of c_skip, c_out, F."""
    s = torch.exp(-1.2 + 1.2 * torch.distributions.Normal(0.0, 1.0).icdf(t))[:, None]
    y, data = x + s * eps, 0.5
    total = torch.sqrt(s.square() + data**2)
    skip, out, weight = data**2 / total.square(), s * data / total, (total / (s * data)).square()
    f = net(y / torch.sqrt(1 + s.square()), -2 * torch.log(s)[:, 0])
    return (weight * (skip * y + out * f - x).square()).sum(1)


def interpolant(net, x, t, eps):
    """|b - dI/dt|² with I = cos(pi t / 2) x + sin(pi t / 2) eps, b = pi/2 times the output."""
    angle = (0.5 * math.pi * t)[:, None]
    z = torch.cos(angle) * x + torch.sin(angle) * eps
    velocity = 0.5 * math.pi * (torch.cos(angle) * eps - torch.sin(angle) * x)
    b = 0.5 * math.pi * net(z, -2 * torch.log(torch.tan(angle))[:, 0])
    return (b - velocity).square().sum(1)


def vdm(net, x, t, eps):
    """½ (d gamma / dt) |eps error|², gamma = -logsnr, by autograd."""
    schedule, t = nd.schedule("truncated-cosine"), t.clone().requires_grad_(True)
    logsnr = schedule.logsnr(t)
    (slope,) = torch.autograd.grad(logsnr.sum(), t)
    scales = alpha_sigma(logsnr.detach())
    return 0.5 * -slope * (eps_at(net, x, t.detach(), eps, scales) - eps).square().sum(1)


PUBLISHED = {
    "ddpm": ddpm_eq_12,
    "l-simple": l_simple,
    "score-matching": ncsn,
    "score-matching-likelihood": song_likelihood,
    "flow-matching": cfm,
    "v": v_mse,
    "edm": edm,
    "interpolant": interpolant,
    "vdm": vdm,
}


def ours(name, net):
    found = recipe(name)
    return found, NetworkDenoiser(net, found.parameterization)


def drawn(found, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(N, DIM, generator=torch.Generator().manual_seed(9)) * 2 - 1
    logsnr, _ = look(x, found.schedule, g)
    return x, found.schedule.t(logsnr), torch.randn(N, DIM, generator=g)


def test_every_recipe_is_held_against_its_paper():
    assert set(PUBLISHED) == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_losses_are_the_published_ones_example_by_example(name):
    net = Awake()
    found, denoiser = ours(name, net)
    x, t, eps = drawn(found)
    loss = denoising_loss(
        denoiser, x, weighting=found.weighting, schedule=found.schedule,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    published = PUBLISHED[name](net, x, t, eps)
    assert ((loss - published) / published).abs().max() < 1e-5


@pytest.mark.parametrize("name", RECIPES)
def test_a_network_trained_either_way_is_the_same(name):
    nets = [Awake(), Awake()]
    found, denoiser = ours(name, nets[0])
    optimizers = [torch.optim.SGD(net.parameters(), lr=1e-4) for net in nets]
    for step in range(5):
        x, t, eps = drawn(found, step)
        losses = (
            denoising_loss(
                denoiser,
                x,
                weighting=found.weighting,
                schedule=found.schedule,
                generator=torch.Generator().manual_seed(step),
            ),
            PUBLISHED[name](nets[1], x, t, eps),
        )
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.clamp_max(1e4).mean().backward()
            optimizer.step()
    start = dict(Awake().named_parameters())
    moved = max((p - start[k]).abs().max() for k, p in nets[0].named_parameters())
    apart = max(
        (a - b).abs().max() for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True)
    )
    assert moved > 1e-6
    assert apart < 1e-4 * moved


@pytest.mark.parametrize(
    ("name", "zoo", "factor"),
    [
        ("l-simple", "ddpm-linear", 1.0),
        ("flow-matching", "flow-matching", 1.0),
        ("v", "v-cosine", 1.0),
        ("edm", "edm", 1.0),
        ("interpolant", "v-cosine", math.pi**2 / 4),
    ],
)
def test_what_a_plain_loss_amounts_to_is_the_row_of_the_zoo(name, zoo, factor):
    logsnr = torch.linspace(-8, 8, 161)
    found, row = recipe(name).weighting, nd.weighting(zoo)
    assert torch.allclose(found(logsnr), factor * row(logsnr), rtol=1e-8)
    assert found.monotone == row.monotone


def test_another_schedule_leaves_the_loss_that_a_weighting_means():
    """The weight is not counted twice: sd3's times under flow matching's weighting."""
    found, denoiser = ours("flow-matching", Awake())
    x = torch.zeros(200_000, DIM)
    means = []
    for name in ("flow", "sd3"):
        loss = denoising_loss(denoiser, x, weighting=found.weighting, schedule=nd.schedule(name))
        means.append((loss.mean(), loss.std() / len(loss) ** 0.5))
    (a, se_a), (b, se_b) = means
    assert abs(a - b) < 4 * (se_a**2 + se_b**2) ** 0.5
    # as against sd3's own loss, whose weighting is another
    own = PlainWeighting(nd.schedule("sd3"), "flow")
    assert not torch.allclose(own(torch.zeros(1)), found.weighting(torch.zeros(1)))


def test_an_unknown_recipe_gets_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'edm'"):
        nd.recipe("edn")
