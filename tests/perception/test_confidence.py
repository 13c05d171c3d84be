"""Reports of choice and confidence: against scipy's normal, simulated trials, and the choices."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

import neurodiff as nd
from neurodiff.data.schema import DataError
from neurodiff.inference.join import join
from neurodiff.inference.stack import stack
from neurodiff.perception.categories import Linear
from neurodiff.perception.confidence import REPORTS, Cuts, Reports, reported
from neurodiff.perception.measurement import Power, Stopped
from neurodiff.perception.orientation import Categorise, strengths

S = strengths(3)


def cuts(task, slopes=True):
    rule = Cuts(task, slopes).double()
    rule.offset.data.fill_(4.5 if task == "B" else 0.7)
    rule.gap.data.copy_(torch.tensor([0.8, 1.1, 1.5, 0.6, 2.0, 3.0]))
    if slopes:
        rule.slope.data.fill_(0.2)
        rule.growth.data.copy_(torch.linspace(0.1, 0.6, 6))
    return rule


def shown(n=12, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "orientation": torch.tensor(rng.normal(0, 8, n)),
        "level": torch.tensor(rng.integers(0, 3, n) * 1.0),
    }


def laws():
    return Stopped(S, nd.laws.Logistic(-2.0, 0.8)).double()


@pytest.mark.parametrize("slopes", [True, False])
@pytest.mark.parametrize("task", ["A", "B"])
def test_reports_of_one_gaussian(task, slopes):
    model, trials = Reports(Power(S), cuts(task, slopes)).double(), shown()
    s = trials["orientation"].numpy()[:, None]
    sigma = np.exp(-0.5 * (-3.0 + 0.6 * S))[trials["level"].long().numpy()][:, None]
    k = model.rule(torch.tensor(sigma[:, 0])).detach().numpy()
    assert (np.diff(k) >= 0).all()
    far = np.full_like(sigma, np.inf)
    ends = np.hstack([-far if task == "A" else 0 * s, k, far])
    below = stats.norm.cdf(ends, s, sigma)
    if task == "B":
        below = below - stats.norm.cdf(-ends, s, sigma)
    wanted = 0.02 / REPORTS + 0.98 * np.diff(below)
    np.testing.assert_allclose(model(trials).probs.detach(), wanted, atol=1e-8)


@pytest.mark.parametrize("task", ["A", "B"])
def test_reports_sum_to_the_choices(task):
    rule, trials = cuts(task), shown()
    p = Reports(laws(), rule).double()(trials).probs.detach()
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-12)
    line = Linear(task).double()
    line.offset.data.copy_(rule.offset)
    line.slope.data.copy_(rule.slope)
    alone = Categorise(laws(), line).double()(trials).probs.detach()
    np.testing.assert_allclose(p[:, 4:].sum(-1), alone, atol=1e-12)


def test_distances_of_cut_points_follow_the_noise():
    rule = cuts("A")
    k = rule(torch.tensor([0.5, 5.0, 20.0])).detach().numpy()
    sigma, gap = np.array([0.5, 5.0, 20.0])[:, None], rule.gap.detach().numpy()
    np.testing.assert_allclose(np.diff(k), gap * (sigma / 5) ** np.linspace(0.1, 0.6, 6))
    np.testing.assert_allclose(k[:, 3:4], 0.7 + 0.2 * sigma)


def test_a_stimulus_that_is_not_seen_is_reported_all_the_same():
    model = Reports(Power([-60.0]), cuts("B")).double()
    model.rule.growth.data.fill_(1.5)
    p = model({"orientation": torch.zeros(1), "level": torch.zeros(1)}).probs
    assert (p > 0).all()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)


def test_samples_have_the_probabilities():
    model, trials = Reports(laws(), cuts("B")).double(), shown(2)
    answer = model(trials)
    many = answer.sample(torch.Size([40_000]))
    p = answer.probs.detach()
    for r in range(REPORTS):
        se = (p[:, r] * (1 - p[:, r]) / len(many)).sqrt()
        assert ((many == r).double().mean(0) - p[:, r]).abs().lt(4 * se + 1e-4).all()
    some = many[0].double()
    picked = p.gather(1, many[0][:, None])[:, 0].log()
    assert torch.allclose(answer.log_prob(some).detach(), picked, atol=1e-12)


def test_people_of_unequal_numbers_are_a_loop():
    rng, parts = np.random.default_rng(0), []
    for n in (30, 44):
        columns = {k: ("trial", v.numpy()) for k, v in shown(n, n).items()}
        data = xr.Dataset({**columns, "report": ("trial", rng.integers(0, 8, n) * 1.0)})
        parts.append(join(Reports(laws(), cuts("B")), data).posterior)
    u = torch.stack([part.parameters.start() for part in parts])
    alone = torch.cat([part.log_prob(x[None]) for part, x in zip(parts, u, strict=True)])
    assert torch.allclose(stack(parts).log_prob(u), alone, rtol=1e-12)


def test_what_cannot_be_read_is_named():
    data = xr.Dataset({"choice": ("trial", [0.0, 1.0])})
    with pytest.raises(DataError, match="the data have no confidence"):
        reported(data)
    with pytest.raises(DataError, match="got confidence from 0 to 4"):
        reported(data.assign(confidence=("trial", [0.0, 4.0])))
