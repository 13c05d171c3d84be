"""Densities along the flow against closed forms, and against those from errors."""

import pytest
import torch

import neurodiff as nd
from neurodiff.diffusion.flow_likelihood import flow_log_prob
from neurodiff.diffusion.likelihood import log_prob
from neurodiff.diffusion.prior import Gaussian, GaussianMixture

COSINE = nd.schedule("cosine")
END = torch.tensor(13.3)
GAUSSIAN = Gaussian(torch.tensor([0.2, -0.5]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.0], [0.8, 0.4]]),
    torch.tensor([[0.04, 0.3], [0.09, 0.2]]),
)  # fmt: skip


@pytest.mark.parametrize("prior", [GAUSSIAN, MIXTURE])
def test_the_density_is_the_exact_one(prior):
    x = prior.sample(30)
    found = flow_log_prob(prior, x, schedule=COSINE, steps=800, probes=16)
    known = prior.log_prob(x, END * 10)
    # trapezoids and Heun err by the square of a step; at the end noise of e^-13.3 is on x
    assert ((found.value - known).abs() < 4.5 * found.se + 5e-3).all()


def test_the_error_of_the_steps_falls_as_their_square():
    # independent numbers: random signs give the trace itself
    prior = Gaussian(torch.zeros(3), torch.tensor([0.5, 1.5, 0.1]))
    x = prior.sample(10)
    known = prior.log_prob(x, END * 10)
    errors = [
        (flow_log_prob(prior, x, schedule=COSINE, steps=n).value - known).abs().max()
        for n in (200, 400)
    ]
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_standard_errors_are_those_of_the_trace():
    x = GAUSSIAN.sample(1).expand(400, 2)
    found = flow_log_prob(GAUSSIAN, x, schedule=COSINE, steps=20, probes=8)
    assert found.value.std() == pytest.approx(found.se.mean().item(), rel=0.15)


def test_flow_and_errors_agree_where_the_denoiser_is_exact():
    x = MIXTURE.sample(20)
    flow = flow_log_prob(MIXTURE, x, schedule=COSINE, steps=800, probes=8)
    error = log_prob(MIXTURE, x, pairs=400)
    apart = (flow.value - error.value).abs()
    assert (apart < 4.5 * (flow.se.square() + error.se.square()).sqrt() + 5e-3).all()


def test_one_probe_has_no_standard_error():
    with pytest.raises(ValueError, match="at least 2 probes"):
        flow_log_prob(GAUSSIAN, torch.zeros(1, 2), schedule=COSINE, probes=1)
