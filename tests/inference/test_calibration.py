"""Ranks are uniform where draws are exact, and not where they are not; the real models pass."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch.distributions import LogNormal, Normal

import neurodiff as nd
from neurodiff.inference.calibration import calibrate, recovery, simulate, uniformity
from neurodiff.inference.join import bind
from neurodiff.inference.posterior import posterior
from neurodiff.inference.priors import Pooled, sites
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.bounds import Exponential
from neurodiff.perception.categories import Linear
from neurodiff.perception.confidence import Cuts, Reports
from neurodiff.perception.drifts import Power as PowerDrift
from neurodiff.perception.measurement import Power, Stopped
from neurodiff.perception.orientation import Categorise, strengths


def design(repeats=20):
    level = np.repeat(np.linspace(-5.0, 3.0, 9), repeats)
    return xr.Dataset({"logsnr": ("trial", level), "correct": ("trial", np.ones_like(level))})


def logistic(choices=2):
    return nd.Threshold(
        nd.SurvivalWeighting(nd.laws.Logistic()), nd.observers.Choice(choices=choices)
    )


def test_uniformity_has_its_nominal_size():
    rng = np.random.default_rng(1)
    p = [uniformity(rng.integers(0, 100, 300), 99, simulations=500) for _ in range(200)]
    # 5 % of 200 is 10, s.d. 3.1; four of them either way
    assert 0 < np.sum(np.array(p) < 0.05) < 23


@pytest.mark.parametrize("spread", [0.7, 1.4])
def test_uniformity_sees_a_wrong_width(spread):
    """Posterior draws too narrow or too wide by 40 % show in 300 ranks."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(300, 1))
    ranks = (spread * rng.normal(size=(300, 99)) < truth).sum(1)
    assert uniformity(ranks, 99) < 0.01


def test_simulated_answers_have_the_model_s_probabilities():
    model, data = logistic(), design(400)
    trials, response = bind(model, data)
    joint = posterior(model, Pooled(sites(model)), trials, response)
    torch.manual_seed(0)
    y = simulate(joint, joint.parameters.start()[None])[0]
    p = model(trials).probs.detach()
    for level in trials["logsnr"].unique():
        here = trials["logsnr"] == level
        se = (p[here][0] * (1 - p[here][0]) / here.sum()).sqrt()
        assert abs(y[here].mean() - p[here][0]) < 4 * se


def test_a_history_cannot_be_simulated_row_by_row():
    data = xr.Dataset({"logsnr": ("time", np.zeros(40)), "count": ("time", np.zeros(40))})
    model = nd.Threshold(nd.weighting("sigmoid"), nd.observers.Counts(history=3))
    with pytest.raises(ValueError, match="history=0"):
        calibrate(model, data, sets=2, seed=0)


def test_the_seed_fixes_the_ranks():
    a, b = (calibrate(logistic(), design(5), sets=10, seed=3).ranks for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_fixed_truths_are_recovered():
    truths = {"weighting.law.loc": -1.0, "weighting.law.scale": 0.8}
    result = calibrate(logistic(), design(200), sets=40, truths=truths, seed=0)
    found = recovery(result)
    for name in truths:
        # the bias of the mean over 40 sets, within 4 standard errors and the shrinkage of the prior
        assert abs(found[name]["bias"]) < 4 * found[name]["rmse"] / np.sqrt(40) + 0.05
    assert found["weighting.law.loc"]["rmse"] < 0.3


@pytest.mark.slow
def test_choices_are_calibrated():
    result = calibrate(logistic(), design(), sets=300, seed=0)
    assert result.family_p > 0.01, result.p_values


@pytest.mark.slow
def test_spikes_are_calibrated():
    level = np.linspace(-5.0, 5.0, 300)
    data = xr.Dataset({"logsnr": ("time", level), "count": ("time", np.ones_like(level))})
    model = nd.Threshold(nd.SurvivalWeighting(nd.laws.Logistic()), nd.observers.Counts(history=0))
    priors = {
        "observer.base": torch.distributions.LogNormal(3.0, 0.5),
        "observer.gain": torch.distributions.LogNormal(5.7, 0.5),
        "weighting.law.loc": Normal(0.0, 2.0),
    }
    result = calibrate(model, data, sets=300, priors=priors, seed=0)
    assert result.family_p > 0.01, result.p_values


@pytest.mark.slow
def test_choices_and_times_are_calibrated():
    strength = np.repeat([-0.3, -0.1, 0.1, 0.3], 25)
    columns = {"strength": strength, "choice_known": np.ones(100), "signed_rt": np.ones(100)}
    data = xr.Dataset({name: ("trial", values) for name, values in columns.items()})
    priors = {
        "bound.height": torch.distributions.LogNormal(0.0, 0.3),
        "drift.gain": torch.distributions.LogNormal(2.1, 0.4),
    }
    model = Bounded(PowerDrift(), Exponential(), 2.0, 60, start=0.0)
    result = calibrate(model, data, sets=60, priors=priors, seed=0)
    assert result.family_p > 0.01, result.p_values


def orientations(task, times=4):
    """Stimuli of both categories of a task at six strengths."""
    rng, level = np.random.default_rng(0), np.repeat(np.arange(6.0), 6 * times)
    wide = np.arange(len(level)) % 2
    s = rng.normal(0, np.where(wide, 12.0, 3.0)) if task == "B" else rng.normal(8 * wide - 4, 5.0)
    columns = {"orientation": s, "level": level, "choice": 0 * s, "report": 0 * s}
    return xr.Dataset({name: ("trial", values) for name, values in columns.items()})


def measured(kind):
    """A measurement, and priors of people whose noise is of the size of what they see."""
    six = strengths(6)
    usual = {"measurement.shift": Normal(-3.0, 1.0), "measurement.power": LogNormal(-0.5, 0.4)}
    if kind == "floor":
        return Power(six, floor=True), usual | {"measurement.floor": Normal(-2.0, 1.5)}
    stop = {"measurement.law.loc": Normal(-2.0, 1.5), "measurement.law.scale": LogNormal(-0.5, 0.7)}
    return Stopped(six, nd.laws.Logistic()), usual | stop


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["floor", "law"])
@pytest.mark.parametrize("task", ["A", "B"])
def test_choices_of_orientations_are_calibrated(task, kind):
    measurement, priors = measured(kind)
    model = Categorise(measurement, Linear(task))
    result = calibrate(model, orientations(task), sets=100, priors=priors, seed=0)
    assert result.family_p > 0.01, result.p_values


@pytest.mark.slow
def test_reports_of_orientations_are_calibrated():
    measurement, priors = measured("floor")
    model = Reports(measurement, Cuts("A"))
    result = calibrate(model, orientations("A"), sets=60, priors=priors, seed=0)
    assert result.family_p > 0.01, result.p_values


@pytest.mark.slow
def test_what_is_measured_is_recovered_from_choices():
    truths = {"measurement.shift": -3.0, "measurement.power": 0.8, "measurement.floor": -2.0}
    measurement, priors = measured("floor")
    model, data = Categorise(measurement, Linear("A")), orientations("A", 60)
    found = recovery(calibrate(model, data, sets=30, truths=truths, priors=priors, seed=0))
    for name in truths:
        # the mean over 30 sets, within 4 standard errors and what the prior shrinks
        assert abs(found[name]["bias"]) < 4 * found[name]["rmse"] / np.sqrt(30) + 0.1
    assert found["measurement.shift"]["rmse"] < 0.5


@pytest.mark.slow
def test_a_wrong_prior_is_not_calibrated():
    """The test above can fail: fits whose prior is not the truths' are found out."""
    model, data = logistic(), design(5)
    from neurodiff.inference import calibration

    honest = calibration.at_truths

    def shifted(joint, u):
        return honest(joint, u + torch.tensor([1.5, 0.0, 0.0, 0.0]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "at_truths", shifted)
        result = calibrate(model, data, sets=300, seed=0)
    assert result.family_p < 0.01
