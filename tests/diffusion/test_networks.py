"""Networks of the right shapes and sizes, and a denoiser over levels against brute force."""

import itertools

import pytest
import torch

from neurodiff.diffusion.denoiser import LevelDenoiser
from neurodiff.diffusion.logsnr import alpha, sigma
from neurodiff.diffusion.networks import MLP, Beside, UNet


def woken(network):
    """The same with weights everywhere: what begins at 0 hides what is wrong."""
    g = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data = 0.2 * torch.randn(p.shape, generator=g)
    return network.eval()


NETWORKS = {
    "mlp": (lambda **k: MLP((1, 8, 8), 16, 2, **k), (1, 8, 8)),
    "unet": (lambda **k: UNet(1, 8, (1, 2), 1, **k), (1, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_examples_do_not_see_each_other_and_everything_is_used(name):
    make, shape = NETWORKS[name]
    network = woken(make(classes=3))
    z, logsnr, label = torch.randn(4, *shape), torch.randn(4) * 3, torch.tensor([0, 1, 2, 0])
    found = network(z, logsnr, label)
    assert found.shape == z.shape
    assert torch.allclose(network(z[1:2], logsnr[1:2], label[1:2]), found[1:2], atol=1e-10)
    for other in (
        network(z + 0.1, logsnr, label),
        network(z, logsnr + 0.1, label),
        network(z, logsnr, (label + 1) % 3),
        network(z, logsnr),
    ):
        assert ((other - found).abs().flatten(1).amax(1) > 1e-6).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_conditions_are_lost_in_training_only_and_at_the_rate_asked(name):
    make, shape = NETWORKS[name]
    network = woken(make(classes=3, drop=0.25))
    z, label = torch.zeros(1, *shape).expand(2000, *shape), torch.ones(2000, dtype=torch.long)
    logsnr = torch.zeros(2000)
    given, none = network(z[:1], logsnr[:1], label[:1]), network(z[:1], logsnr[:1])
    network.train()
    found = network(z, logsnr, label).flatten(1)
    lost = (found - none.flatten(1)).abs().amax(1) < 1e-9
    kept = (found - given.flatten(1)).abs().amax(1) < 1e-9
    assert (lost ^ kept).all()
    assert abs(lost.double().mean() - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5


@pytest.mark.parametrize("name", NETWORKS)
def test_beyond_its_reach_a_network_says_the_same_and_begins_at_nothing(name):
    make, shape = NETWORKS[name]
    z = torch.randn(2, *shape)
    ends = torch.tensor([-torch.inf, torch.inf])
    network = woken(make())
    assert torch.equal(network(z, ends), network(z, torch.tensor([-20.0, 20.0])))
    assert not make()(z, ends).any()
    assert make(outputs=5)(z, ends).shape == (2, 5, *shape)


def test_a_u_net_for_pictures_of_32_has_4_to_16_million_parameters():
    assert 4e6 < sum(p.numel() for p in UNet(3, 64, (1, 2, 2), 1).parameters()) < 16e6
    assert 4e6 < sum(p.numel() for p in UNet(3, 64, (1, 2, 2), 2).parameters()) < 16e6


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"images of \(9, 8\), wanted sides .* multiples of 2"):
        UNet(1, 8, (1, 2), 1)(torch.zeros(1, 1, 9, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="the network has no classes"):
        MLP((2,), 8, 1)(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"returned \(2, 4, 3\), wanted \(2, 5, 3\)"):
        LevelDenoiser(MLP((3,), 8, 1, outputs=4), 5)(torch.zeros(2, 3), torch.zeros(2))


def test_levels_are_the_posterior_of_independent_numbers_with_that_prior():
    # a network that says the same whatever z is: numbers are independent with these chances
    logits = torch.randn(3, 2)

    class Prior(torch.nn.Module):
        def forward(self, z, logsnr):
            return logits.expand(len(z), 3, 2)

    model, z, logsnr = LevelDenoiser(Prior(), 3), torch.randn(6, 2), torch.linspace(-5, 5, 6)
    levels = torch.tensor([-2 / 3, 0.0, 2 / 3])
    states = torch.tensor(list(itertools.product(range(3), repeat=2)))
    chance = logits.log_softmax(0).gather(0, states).sum(1)
    a, s = alpha(logsnr)[:, None, None], sigma(logsnr)[:, None, None]
    log_p = chance - 0.5 * ((z[:, None] - a * levels[states]) / s).square().sum(-1)
    mean = torch.einsum("bs,sd->bd", log_p.softmax(1), levels[states])
    assert torch.allclose(model(z, logsnr), mean, atol=1e-10)
    assert torch.isfinite(model(z, torch.tensor(-torch.inf))).all()


@pytest.mark.parametrize("inner", [MLP((3, 8, 8), 16, 2), UNet(3, 8, (1, 2), 1)])
def test_an_image_beside_z_is_seen_and_only_z_is_answered(inner):
    network, logsnr = Beside(woken(inner)), torch.zeros(4)
    z, y = torch.randn(4, 1, 8, 8), torch.randn(4, 2, 8, 8)
    out = network(z, logsnr, y)
    torch.testing.assert_close(out, inner(torch.cat([z, y], 1), logsnr)[:, :1])
    for c in range(2):
        other = y.clone()
        other[:, c] += 1.0
        assert (network(z, logsnr, other) - out).abs().max() > 1e-3
