"""The ELBO from few evaluations: unbiased whatever is subtracted, and less variable."""

import math

import pytest
import torch

import neurodiff as nd
from neurodiff.diffusion.adaptive import AdaptiveSchedule
from neurodiff.diffusion.likelihood import denoising_error
from neurodiff.diffusion.prior import Gaussian, GaussianMixture
from neurodiff.diffusion.variance import Control, diffusion_term, gaussian_error, pilot

COVARIANCE = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.8, 0.2], [0.0, 0.2, 0.3]])
REFERENCE = Gaussian(torch.tensor([0.3, 0.0, -0.2]), COVARIANCE)
MIXTURE = GaussianMixture(
    torch.tensor([0.5, 0.5]), torch.tensor([[1.0, 0.5, 0.0], [-0.4, -0.5, -0.4]]),
    torch.stack([0.3 * COVARIANCE, 0.2 * torch.eye(3)]),
)  # fmt: skip


def test_the_expected_error_of_a_gaussian_is_that_of_its_denoiser():
    x, logsnr = torch.randn(4, 3), torch.tensor([-6.0, -1.0, 2.0, 8.0])
    found = denoising_error(REFERENCE, x, logsnr, pairs=4000)
    known = torch.stack([gaussian_error(REFERENCE, x, level.expand(4)) for level in logsnr], 1)
    assert ((found.value - known).abs() < 4.5 * found.se + 1e-9).all()


def exact(x, low, high):
    """½∫m dλ of the mixture: the difference of two informations, by many pairs."""
    nodes = torch.linspace(low, high, 201)
    m = denoising_error(MIXTURE, x, nodes, pairs=500)
    return 0.5 * torch.trapezoid(m.value, nodes), 0.5 * m.se.square().sum(1).sqrt() * 0.1


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("share", [None, 0.0, 1.0, "learned"])
def test_the_mean_is_right_whatever_is_subtracted(antithetic, share):
    torch.manual_seed(1)
    x = MIXTURE.sample(20)
    known, se = exact(x, -6.0, 6.0)
    schedule, control = pilot(
        MIXTURE, MIXTURE.sample(500), None if share is None else REFERENCE,
        logsnr_min=-6.0, logsnr_max=6.0, bins=8, draws=4000, antithetic=antithetic,
    )  # fmt: skip
    if isinstance(share, float):
        control = Control(REFERENCE, schedule.seen.edges, torch.full((2, 8), share))
    draws = torch.stack([
        diffusion_term(MIXTURE, x, schedule, control, antithetic=antithetic) for _ in range(800)
    ])  # fmt: skip
    error = (draws.var(0) / len(draws) + se.square()).sqrt()
    assert ((draws.mean(0) - known).abs() < 4.5 * error).all()


def test_each_means_takes_its_share_of_the_variance():
    """At equal evaluations, for the mean over a set; oracle: the variance over many repeats."""
    torch.manual_seed(2)
    x, other = MIXTURE.sample(64), MIXTURE.sample(1000)
    uniform = AdaptiveSchedule(-6.0, 6.0, bins=1)
    options = {"logsnr_min": -6.0, "logsnr_max": 6.0, "bins": 16}
    looked, _ = pilot(MIXTURE, other, None, antithetic=False, **options)
    both, control = pilot(MIXTURE, other, REFERENCE, antithetic=False, **options)

    def variance(*how, **options):
        draws = [diffusion_term(MIXTURE, x, *how, antithetic=False, **options).mean()
                 for _ in range(600)]  # fmt: skip
        return torch.stack(draws).var()

    plain = variance(uniform, stratified=False)
    spread = variance(looked)
    less = variance(both, control)
    # a ratio of variances of 600 draws is known to 8 %
    assert plain > 1.5 * spread > 1.5 * 1.2 * less


def test_a_perfect_reference_leaves_nothing():
    x = REFERENCE.sample(50)
    schedule, control = pilot(REFERENCE, REFERENCE.sample(200), REFERENCE, draws=5000)
    # by three nodes in a bin, and c is 1 but for its ridge
    terms = [diffusion_term(REFERENCE, x, schedule, control) for _ in range(2)]
    assert (terms[0] - terms[1]).abs().max() < 1e-3 * terms[0].mean()
    u = REFERENCE.variance
    off = ((x - REFERENCE.mean) @ REFERENCE.axes).square()
    # 1/2 log(1 + u e^λ) + 1/2 (1 + e^λ off)/(1 + u e^λ), between the ends
    ends = [
        0.5 * (torch.log1p(u * s) + (1 + s * off) / (1 + u * s)).sum(1)
        for s in (math.exp(-13.3), math.exp(13.3))
    ]
    assert torch.allclose(terms[0], ends[1] - ends[0], rtol=2e-3)


def test_a_schedule_without_ends_serves_where_the_loss_has_them():
    binary = nd.diffusion.prior.Binary()
    terms = diffusion_term(binary, torch.ones(20_000), nd.schedule("cosine"))
    assert abs(terms.mean() - math.log(2)) < 4.5 * terms.std() / len(terms) ** 0.5
