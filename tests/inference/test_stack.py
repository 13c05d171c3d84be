"""Parts stacked into one batch are what they are alone, however unequal their lengths."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sessions import session

import neurodiff as nd
from neurodiff.inference.hypotheses import build, plan, priors_of
from neurodiff.inference.join import join
from neurodiff.inference.stack import Stacked, alike, stack
from neurodiff.inference.tasks import task_of
from neurodiff.perception.beta_binomial import by_level

PARTS = [session(0, 17), session(1, 40), session(2, 31)]
TASK = task_of(PARTS[0], choices=2)


def joined(hypothesis, data, task=TASK):
    data = by_level(data) if hypothesis.key == "beta-binomial" else data
    model = build(hypothesis, task, data)
    return join(model, data, priors_of(model)).posterior


def derivatives(joint, u):
    leaf = u.clone().requires_grad_(True)
    value = joint.log_prob(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient, joint.hessian(u)


def assert_a_loop(parts, draws=5, seed=0):
    batch, generator = stack(parts), toys.generator(seed)
    u = 0.5 * torch.randn(len(parts), draws, batch.size, generator=generator)
    u = u + torch.stack([part.parameters.start() for part in parts])[:, None]
    together, chains = batch.draws_terms(u), batch.draws_log_prob(u)
    derived = derivatives(batch, u[:, 0])
    for i, part in enumerate(parts):
        one, units = slice(i, i + 1), part.mask.shape[1]
        prior, by_unit = part.draws_terms(u[one])
        assert torch.allclose(together[0][one], prior, rtol=1e-12)
        assert torch.allclose(together[1][one, :, :units], by_unit, rtol=1e-10, atol=1e-12)
        assert (together[1][one, :, units:] == 0).all()
        assert torch.allclose(batch.trained(together[1])[one], part.trained(by_unit), rtol=1e-12)
        assert torch.allclose(chains[one], part.draws_log_prob(u[one]), rtol=1e-12)
        for a, b in zip(derived, derivatives(part, u[one, 0]), strict=True):
            assert torch.allclose(a[one], b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model", ["threshold", "limited"])
def test_parts_of_unequal_length_are_a_loop_under_every_hypothesis(model):
    task = replace(TASK, model=model)
    for hypothesis in plan(task, front_ends=["none", "internal-noise"]):
        parts = [joined(hypothesis, data, task) for data in PARTS]
        for own in {alike(part) for part in parts}:
            assert_a_loop([part for part in parts if alike(part) == own])


def test_the_place_of_a_law_has_the_prior_of_its_own_part():
    logistic = next(h for h in plan(TASK) if h.key == "logistic")
    parts = [joined(logistic, data) for data in PARTS]
    middles = [part.parameters.sites[0].prior.mean.item() for part in parts]
    assert np.ptp(middles) > 0.5
    batch = stack(parts)
    for problems in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        some = batch.select(problems)
        expected = torch.tensor(middles)[problems]
        assert torch.allclose(some.parameters.coefficients[0][:, 0], expected)
    assert isinstance(batch.parameters, Stacked)
    assert stack(parts[:1]) is parts[0]


@given(
    rows=st.integers(2, 12),  # one of which has no answer
    more=st.integers(0, 9),
    missing=st.integers(0, 11),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_rows_of_no_weight_change_nothing(rows, more, missing, seed):
    """Log density, gradient and Hessian, of a part beside one that is longer."""
    data = session(seed, rows, blank=0.0)
    data["correct"][missing % rows] = np.nan
    longer = session(seed + 1, rows + more)
    logistic = next(h for h in plan(TASK) if h.key == "logistic")
    assert_a_loop([joined(logistic, data), joined(logistic, longer)], 2, seed)


def recording(seed, bins):
    rng = np.random.default_rng(seed)
    logsnr = rng.normal(0, 2, bins)
    count = (rng.random(bins) < 0.3 / (1 + np.exp(-logsnr))) * 1.0
    return xr.Dataset(
        {"logsnr": ("time", logsnr), "count": ("time", count)},
        coords={"time": np.arange(bins) * 1e-3, "block": ("time", np.arange(bins) * 5 // bins)},
    )


def test_recordings_with_blocks_and_histories_are_a_loop():
    model = nd.Threshold(nd.SurvivalWeighting(nd.laws.Logistic()), nd.observers.Counts(history=3))
    assert_a_loop([join(model, recording(i, n)).posterior for i, n in enumerate((100, 60, 85))])


def test_parts_of_other_models_are_not_alike():
    keys = {h.name: alike(joined(h, PARTS[0])) for h in plan(TASK)}
    assert keys["logistic"] == keys["normal"] != keys["constant"]
    blocks = join(nd.Threshold(nd.weighting("sigmoid"), nd.observers.Counts()), recording(0, 60))
    assert alike(blocks.posterior) != keys["sigmoid/debiased"]
