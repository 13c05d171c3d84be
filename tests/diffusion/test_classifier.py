"""A classifier of noisy z against Bayes' rule on two Gaussian classes."""

from functools import partial

import pytest
import torch

from neurodiff.diffusion.classifier import NoisyClassifier
from neurodiff.diffusion.guidance import Classifier
from neurodiff.diffusion.logsnr import alpha, diffuse, sigma
from neurodiff.diffusion.maximum import most_likely
from neurodiff.diffusion.networks import MLP
from neurodiff.diffusion.prior import GaussianMixture
from neurodiff.diffusion.schedule import schedule

MEAN, VARIANCE = torch.tensor([[-0.6, 0.3], [0.5, 0.0]]), torch.tensor([[0.1, 0.1], [0.1, 0.2]])
WEIGHT = torch.tensor([0.4, 0.6])


def examples(n):
    y = (torch.rand(n) > WEIGHT[0]).long()
    return MEAN[y] + VARIANCE[y].sqrt() * torch.randn(n, 2), y


def bayes(z, logsnr):
    """log p(y|z) of both classes."""
    a, s = alpha(logsnr)[:, None, None], sigma(logsnr)[:, None, None]
    var = a.square() * VARIANCE + s.square()
    each = -0.5 * ((z[:, None] - a * MEAN).square() / var + var.log()).sum(-1)
    return (each + WEIGHT.log()).log_softmax(-1)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    x, y = examples(5000)
    log_prob = partial(NoisyClassifier.noisy_log_prob, schedule=schedule("cosine"))
    start = NoisyClassifier(MLP((2,), 32, 2, outputs=8), 16, 2)
    return most_likely(start, log_prob, x, y, steps=500, rate=3e-3)


@pytest.mark.parametrize("level", [-6.0, -2.0, 0.0, 2.0, 6.0])
def test_it_finds_the_posterior_at_every_noise_level(trained, level):
    x, _ = examples(4000)
    logsnr = torch.full((4000,), level)
    z = diffuse(x, torch.randn(4000, 2), logsnr)
    known = bayes(z, logsnr)
    divergence = (known.exp() * (known - trained(z, logsnr))).sum(1)
    # a network of a few hundred weights and 5000 examples: some per mille of a nat, rarely more
    assert divergence.mean() < 0.01
    assert (trained.log_prob(z, logsnr, torch.ones(4000).long()) == trained(z, logsnr)[:, 1]).all()


def test_it_guides(trained):
    prior = GaussianMixture(WEIGHT, MEAN, VARIANCE)
    logsnr = torch.full((300,), 0.5)
    z = diffuse(examples(300)[0], torch.randn(300, 2), logsnr)
    y = torch.ones(300).long()

    def exact(z, logsnr, cond):
        return bayes(z, logsnr)[torch.arange(len(z)), cond]

    plain = prior(z, logsnr)
    by_bayes, learned = (Classifier(prior, f)(z, logsnr, y) for f in (exact, trained.log_prob))
    off = (learned - by_bayes).square().mean().sqrt()
    assert off < 0.3 * (by_bayes - plain).square().mean().sqrt()


def test_where_nothing_is_left_of_x_nothing_is_seen(trained):
    # the network is shown α z; shown z, its errors would be divided by a vanishing α in guidance
    z, logsnr = 3 * torch.randn(50, 2), torch.full((50,), -40.0)
    with torch.no_grad():
        found = trained(z, logsnr)
    torch.testing.assert_close(found, found[:1].expand_as(found), rtol=0, atol=1e-7)
