"""Guided fields against their closed forms on two Gaussian classes."""

import math

import pytest
import torch

from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.guidance import Auto, CfgZero, Classifier, ClassifierFree
from neurodiff.diffusion.logsnr import alpha, sigma
from neurodiff.diffusion.prior import Gaussian, GaussianMixture
from neurodiff.diffusion.sample import ddim, levels
from neurodiff.diffusion.schedule import schedule

MEAN, VARIANCE = torch.tensor([[-1.0, 0.5], [0.8, 0.0]]), torch.tensor([[0.3, 0.1], [0.2, 0.6]])
WEIGHT = torch.tensor([0.4, 0.6])


class Classes(Denoiser):
    """The exact denoiser of each class, and of their mixture without one."""

    def __init__(self):
        super().__init__()
        self.mixture = GaussianMixture(WEIGHT, MEAN, VARIANCE)
        self.each = [Gaussian(m, v) for m, v in zip(MEAN, VARIANCE, strict=True)]

    def forward(self, z, logsnr, cond=None):
        if cond is None:
            return self.mixture(z, logsnr)
        both = torch.stack([one(z, logsnr) for one in self.each])
        return both[cond, torch.arange(len(z))]


def log_class(z, logsnr, cond):
    """log p(cond|z) by Bayes' rule."""
    logits = []
    for weight, m, v in zip(WEIGHT, MEAN, VARIANCE, strict=True):
        a, s = alpha(logsnr)[:, None], sigma(logsnr)[:, None]
        var = a.square() * v + s.square()
        log_p = -0.5 * ((z - a * m).square() / var + var.log()).sum(-1)
        logits.append(weight.log() + log_p)
    return torch.stack(logits, -1).log_softmax(-1)[torch.arange(len(z)), cond]


def case(n=50):
    return torch.randn(n, 2), 3 * torch.randn(n), torch.randint(0, 2, (n,))


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_an_exact_classifier_guides_as_the_classes_do(scale):
    z, logsnr, cond = case()
    free = ClassifierFree(Classes(), scale)(z, logsnr, cond)
    guided = Classifier(Classes(), log_class, scale)(z, logsnr, cond)
    # rounding of a gradient times sigma^2 / alpha
    assert (free - guided).abs().max() < 1e-9


def test_scales_zero_and_one_are_without_and_with_the_condition():
    z, logsnr, cond = case()
    for guide in (ClassifierFree, CfgZero):
        assert torch.allclose(
            guide(Classes(), 1.0)(z, logsnr, cond), Classes()(z, logsnr, cond), atol=1e-12
        )
    assert torch.allclose(
        ClassifierFree(Classes(), 0.0)(z, logsnr, cond), Classes()(z, logsnr), atol=1e-12
    )


def test_the_guided_field_is_not_the_score_of_a_diffused_power():
    # p(x) p(y|x)^s on one number, diffused by quadrature, at two levels of noise
    x = torch.linspace(-8, 8, 20_001)
    prior = GaussianMixture(torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), 0.25))
    up = Gaussian(torch.ones(1), torch.full((1,), 0.25))

    class Two(Denoiser):
        def forward(self, z, logsnr, cond=None):
            return prior(z, logsnr) if cond is None else up(z, logsnr)

    def apart(level, scale=3.0, at=0.3):
        level = torch.tensor(level)
        a, s = alpha(level), sigma(level)
        p_c = torch.distributions.Normal(1.0, 0.5).log_prob(x)
        p_u = torch.logaddexp(p_c, torch.distributions.Normal(-1.0, 0.5).log_prob(x)) - math.log(2)
        tilted = (p_u + scale * (p_c - math.log(2) - p_u)).exp()
        weight = tilted * torch.exp(-0.5 * ((at - a * x) / s).square())
        mean = (weight * x).sum() / weight.sum()
        guided = ClassifierFree(Two(), scale)(torch.full((1, 1), at), level, torch.ones(1))
        return float((guided - mean).abs())

    assert apart(9.0) < 1e-3 < 0.1 < apart(0.0)


def test_cfg_zero_scales_the_unconditional_velocity_to_fit():
    z, logsnr, cond = case()
    classes, scale = Classes(), 2.5
    a, s = alpha(logsnr)[:, None], sigma(logsnr)[:, None]

    def velocity(x):
        return (z - a * x) / s - x

    plain, given = velocity(classes(z, logsnr)), velocity(classes(z, logsnr, cond))
    got = velocity(CfgZero(classes, scale)(z, logsnr, cond))
    for i in range(10):
        fit = torch.linalg.lstsq(plain[i, :, None], given[i, :, None]).solution[0, 0]
        wanted = (1 - scale) * fit * plain[i] + scale * given[i]
        assert torch.allclose(got[i], wanted, atol=1e-8)


def test_cfg_zero_begins_by_standing_still_on_the_straight_path():
    logsnr = levels(schedule("flow"), 25)
    still = float(logsnr[2])
    z = torch.randn(5, 2)
    guide = CfgZero(Classes(), 2.0, still=still)
    cond = torch.zeros(5, dtype=torch.long)
    there = ddim(guide, z, logsnr[:3], cond)
    ends = [alpha(level) + sigma(level) for level in (logsnr[0], logsnr[2])]
    assert torch.allclose(there / ends[1], z / ends[0], atol=1e-12)
    assert not torch.allclose(ddim(guide, z, logsnr[:4], cond), there)


def test_auto_guidance_goes_from_the_bad_one_through_the_good_one():
    z, logsnr, cond = case()
    good, bad = Classes(), Gaussian(torch.zeros(2), torch.ones(2))

    class Bad(Denoiser):
        def forward(self, z, logsnr, cond=None):
            return bad(z, logsnr)

    got = Auto(good, Bad(), 1.7)(z, logsnr, cond)
    wanted = bad(z, logsnr) + 1.7 * (good(z, logsnr, cond) - bad(z, logsnr))
    assert torch.allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize(
    "guide",
    [ClassifierFree(Classes(), 2.0), CfgZero(Classes(), 2.0), Classifier(Classes(), log_class)],
)
def test_guidance_without_a_condition_is_refused(guide):
    with pytest.raises(ValueError, match="guides towards a condition and got none"):
        guide(torch.zeros(3, 2), torch.tensor(0.0))
