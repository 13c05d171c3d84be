"""Choosing stimuli: the gain against Monte Carlo, its bound, and simulations in which it pays."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import neurodiff as nd
from neurodiff.inference.design import gain, predictions, settled, trials_needed
from neurodiff.perception.classify import AveragedEvidence, StoppedEvidence
from tests.perception.test_classify import table


def some(seed, hypotheses=3, draws=7, stimuli=20, answers=4):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(answers, 0.5), (hypotheses, draws, stimuli))


def test_the_gain_is_what_answers_tell_on_average():
    # draw a hypothesis, parameters and an answer; how far does the posterior move?
    p, rng, n = some(0, stimuli=2), np.random.default_rng(1), 200_000
    each = p.mean(1)
    for s in range(2):
        h, d = rng.integers(3, size=n), rng.integers(7, size=n)
        y = (rng.random((n, 1)) > p[h, d, s].cumsum(-1)[:, :-1]).sum(-1)
        moved = np.log(each[h, s, y] / each[:, s].mean(0)[y])
        se = moved.std() / np.sqrt(n)
        assert abs(gain(p).hypothesis[s] - moved.mean()) < 4 * se


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), hypotheses=st.integers(2, 4), draws=st.integers(1, 6))
def test_bounds(seed, hypotheses, draws):
    found = gain(some(seed, hypotheses, draws))
    assert (found.hypothesis >= 0).all()
    assert (found.hypothesis <= np.log(hypotheses) + 1e-12).all()
    assert (found.hypothesis <= found.bound + 1e-12).all()
    if draws == 1:
        assert np.allclose(found.hypothesis, found.bound)
    # Pinsker: a gain needs disagreement
    assert ((found.disagreement == 0) <= (found.hypothesis < 1e-12)).all()


def test_expected_trials_are_those_of_a_random_walk():
    # the mean log Bayes factor after that many trials is log 20
    p = some(3, 2, 1, 5)
    chosen, rng = np.arange(5), np.random.default_rng(0)
    needed = trials_needed(p, chosen)[0, 1]
    n = 100_000
    s = rng.integers(5, size=n)
    y = (rng.random((n, 1)) > p[0, 0, s].cumsum(-1)[:, :-1]).sum(-1)
    step = np.log(p[0, 0, s, y] / p[1, 0, s, y])
    assert abs(needed * step.mean() - np.log(20)) < 4 * needed * step.std() / np.sqrt(n)


def test_chosen_stimuli_settle_sooner_than_random_ones():
    t = table(4, stimuli=80)
    data = xr.Dataset({"shown": ("trial", 10.0 + np.arange(80)), "choice": ("trial", np.zeros(80))})
    models = {
        "averaged": AveragedEvidence(nd.weighting("sigmoid", bias=0.0), t),
        "stopped": StoppedEvidence(nd.weighting("sigmoid", bias=0.0), t),
    }
    for model in models.values():
        model.observer.sensitivity.data.fill_(6.0)
    p = predictions(models, data, fixed=True, seed=0)
    assert np.allclose(p.sum(-1), 1)
    best = np.argsort(-gain(p).hypothesis)[:10]
    rng = np.random.default_rng(0)
    by_gain = settled(p, rng.choice(best, 60), sets=150, seed=0)
    by_chance = settled(p, rng.integers(80, size=60), sets=150, seed=0)
    in_turn = settled(p, None, trials=60, sets=60, seed=0)
    assert by_gain[-1] > by_chance[-1] + 0.05
    assert in_turn[-1] > by_chance[-1] + 0.05
    assert by_gain[0] == pytest.approx(0.5, abs=0.05)


def test_weights_are_what_is_left_of_hypotheses():
    # what has no weight might as well not be there
    p = some(2, hypotheses=3, draws=4)
    weights = np.zeros((3, 4))
    weights[:2, 1:] = 1 / 6
    left = gain(p[:2, 1:])
    assert np.allclose(gain(p, weights).hypothesis, left.hypothesis)
    assert np.allclose(gain(p, weights).bound, left.bound)
    for wrong in (2 * weights, weights * np.nan, weights + np.eye(3, 4, 1) - np.eye(3, 4)):
        with pytest.raises(
            ValueError, match=r"weights: got .* wanted none below 0, and a sum of 1"
        ):
            gain(p, wrong)
    with pytest.raises(ValueError, match=r"weights: got shape \(3,\), wanted \(3, 4\), as of p"):
        gain(p, np.full(3, 1 / 3))


@pytest.mark.parametrize("lapse", [0.0, 1e-14, 1.0])
def test_fixed_predictions_are_the_model_s_own_on_the_edge_of_a_support_too(lapse):
    t = table(4, stimuli=20)
    data = xr.Dataset({"shown": ("trial", 10.0 + np.arange(20)), "choice": ("trial", np.zeros(20))})
    model = AveragedEvidence(nd.weighting("sigmoid", bias=0.0), t)
    model.observer.lapse.data.fill_(lapse)
    own = model({"row": torch.arange(20)}).probs.detach()
    assert np.allclose(predictions({"a": model}, data, fixed=True, seed=0)[0, 0], own, atol=1e-6)


def test_predictions_of_right_and_wrong():
    pool = xr.Dataset(
        {"logsnr": ("trial", [-8.0, 0.0, 8.0]), "correct": ("trial", [1.0, 1.0, 1.0])}
    )
    model = nd.Threshold(nd.weighting("sigmoid", bias=0.0), nd.observers.Choice(choices=2))
    p = predictions({"a": model, "b": model}, pool, draws=3, seed=0)
    assert p.shape == (2, 3, 3, 2)
    assert np.array_equal(p[0], p[1])
    with torch.no_grad():
        own = model({"logsnr": torch.tensor([-8.0, 0.0, 8.0])}).probs
    assert np.allclose(predictions({"a": model}, pool, fixed=True, seed=0)[0, 0, :, 1], own)
    equal = pool.isel(trial=[0, 0, 1])
    with pytest.raises(ValueError, match="each stimulus once"):
        predictions({"a": model}, equal, seed=0)
