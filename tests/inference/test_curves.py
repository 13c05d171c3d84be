"""Curves over logsnr, and how much the data have told about them."""

import numpy as np
import pytest
import torch
import toys

from neurodiff.inference.curves import contraction, curves
from neurodiff.inference.join import join

BOTH = ("weighting.law.loc", "weighting.law.scale")


@pytest.fixture(params=[None, "subject"])
def bound(request):
    return join(toys.model(BOTH), toys.data(80, subjects=3), by=request.param)


def test_curves_are_the_survival_function_and_its_slope(bound):
    u = 0.3 * torch.randn(5, bound.posterior.size, generator=toys.generator())
    grid, w, density = curves(bound, u)
    own = bound.pooled.constrain(bound.posterior.parameters.deviations(u)[2] if bound.by else u)
    loc, scale = own["weighting.law.loc"][..., None], own["weighting.law.scale"][..., None]
    exact = 1 / (1 + torch.exp((grid - loc) / scale))
    torch.testing.assert_close(w, exact, atol=1e-12, rtol=0)
    torch.testing.assert_close(density, exact * (1 - exact) / scale, atol=1e-12, rtol=0)


def test_contraction_is_none_at_the_prior_and_whole_at_a_point(bound):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        prior = bound.pooled.draw_prior(4000)
    rest = torch.zeros(4000, bound.posterior.size - prior.shape[1])
    told = contraction(bound, torch.cat([prior, rest], -1), 0)["contraction"].values
    # two standard deviations of 4,000 and of 500 draws, of a bounded quantity
    assert told.max() < 4 * np.sqrt(1 / 2 / 500)
    point = bound.start.expand(50, -1)
    assert contraction(bound, point, 0)["contraction"].values == pytest.approx(1.0)
