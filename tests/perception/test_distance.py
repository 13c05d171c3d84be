"""Distances of what a denoiser knows: closed forms of Gaussians and of two points."""

import pytest
import torch

from neurodiff.diffusion.denoiser import ByLabel
from neurodiff.diffusion.logsnr import diffuse
from neurodiff.diffusion.prior import Binary, Gaussian
from neurodiff.perception.distance import distances

LEVELS = torch.tensor([-3.0, 0.0, 2.5])


def test_gaussian_distances_are_filtered_differences():
    g = torch.Generator().manual_seed(0)
    v = torch.tensor([3.0, 1.0, 0.1, 0.01])
    x = torch.randn(5, 4, generator=g)
    found = distances(Gaussian(torch.zeros(4), v), x, LEVELS)
    gain = v * LEVELS.exp()[:, None] / (1 + v * LEVELS.exp()[:, None])
    off = gain * (x[:, None, None] - x[None, :, None])
    wanted = LEVELS.exp() * off.square().sum(-1)
    assert torch.allclose(torch.from_numpy(found["distance"].values), wanted, rtol=1e-9, atol=1e-12)
    assert float(found["se"].max()) < 1e-12


def test_the_error_is_that_of_the_mean_over_noise():
    # of ±1 the denoiser is tanh: E (tanh(a + y) − tanh(y − a))² by quadrature
    x = torch.tensor([[1.0], [-1.0]])
    found = distances(Binary((1,)), x, torch.tensor([0.5]), pairs=4000)
    root = torch.tensor(0.5).exp().sqrt()
    nodes = torch.linspace(-9.0, 9.0, 4001)
    density = torch.exp(-0.5 * nodes**2) / (2 * torch.pi) ** 0.5
    # e^{λ/2} z/α·… : the argument of tanh at x is e^λ x + e^{λ/2} ε
    two = [torch.tanh(root**2 * s + root * nodes) for s in (1.0, -1.0)]
    wanted = root**2 * torch.trapezoid(density * (two[0] - two[1]) ** 2, nodes)
    value, se = (float(found[k][0, 1, 0]) for k in ("distance", "se"))
    assert abs(value - wanted.item()) < 4 * se
    assert se < 0.05


def test_distances_are_of_pairs():
    x = torch.randn(4, 1, 3, 3)
    p = Gaussian(torch.zeros(1, 3, 3), torch.ones(1, 3, 3))
    found = distances(p, x, LEVELS, batch=3)["distance"].values
    assert (found == found.transpose(1, 0, 2)).all()
    assert (found[range(4), range(4)] == 0).all()
    with pytest.raises(ValueError, match="got pairs=1, wanted at least 2"):
        distances(p, x, LEVELS, pairs=1)
    with pytest.raises(ValueError, match=r"got stimuli of torch\.uint8, wanted floats"):
        distances(p, x.to(torch.uint8), LEVELS)
    x[2, 0, 1, 1] = torch.inf
    with pytest.raises(ValueError, match=r"got inf at \[2, 0, 1, 1\] of the stimuli"):
        distances(p, x, LEVELS)


def test_the_posterior_of_labels_is_bayes():
    g = torch.Generator().manual_seed(1)
    m = torch.tensor([[0.0, 0.0], [1.0, -0.5], [0.3, 2.0]])
    v = torch.tensor([[1.0, 1.0], [0.5, 2.0], [0.2, 0.3]])
    d = ByLabel(*(Gaussian(a, b) for a, b in zip(m, v, strict=True)))
    level, shares = torch.tensor([-1.0, 0.0, 1.0, 3.0]), torch.tensor([0.5, 0.3, 0.2])
    x, eps = (torch.randn(4, 2, generator=g) for _ in range(2))
    z = diffuse(x, eps, level)
    a, s2 = torch.sigmoid(level).sqrt()[:, None, None], torch.sigmoid(-level)[:, None, None]
    normal = torch.distributions.Normal(a * m, (a**2 * v + s2).sqrt())
    joint = shares * normal.log_prob(z[:, None]).sum(-1).exp()
    wanted = joint / joint.sum(1, keepdim=True)
    assert torch.allclose(d.posterior(z, level, shares), wanted)
    with pytest.raises(ValueError, match=r"the denoisers of labels \[1\] have no density"):
        ByLabel(Gaussian(m[0], v[0]), d).posterior(z, level)
