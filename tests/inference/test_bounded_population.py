"""A hierarchy of bounded accumulators: groups have their own parameters, and truths are found."""

import numpy as np
import pytest
import torch
import xarray as xr

import neurodiff as nd
from neurodiff.inference.join import join
from neurodiff.inference.tree import build_tree
from neurodiff.page import fit_row
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.bounds import Exponential
from neurodiff.perception.drifts import Power

STRENGTH = torch.tensor([-0.3, -0.1, -0.03, 0.03, 0.1, 0.3])
GAIN, HEIGHT = [5.0, 7.0, 9.0, 12.0, 16.0], [0.7, 0.95, 0.8, 1.1, 0.9]


def model(gain=9.0, height=0.9):
    return Bounded(Power(gain), Exponential(height, 2.0), 2.0, 40, jitter=0.08).double()


def people(n=240):
    """People who differ in gain and height; those who did not answer in time have inf."""
    parts = []
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for i, (gain, height) in enumerate(zip(GAIN, HEIGHT, strict=True)):
            given = {"strength": STRENGTH.repeat(n // 6), "choice_known": torch.ones(n)}
            given = {name: value.double() for name, value in given.items()}
            columns = given | {"signed_rt": model(gain, height)(given).sample()}
            part = xr.Dataset({k: ("trial", v.numpy()) for k, v in columns.items()})
            parts.append(part.assign_coords(subject=("trial", [f"s{i}"] * n)))
    return xr.concat(parts, "trial")


@pytest.fixture(scope="module")
def data():
    return people()


def test_the_density_of_a_hierarchy_is_that_of_its_groups(data):
    joint = join(model(), data, by="subject").posterior
    generator = torch.Generator().manual_seed(0)
    u = joint.parameters.start()
    u = u + 0.3 * torch.randn(len(u), generator=generator, dtype=u.dtype)
    own = joint.parameters.deviations(u)[2]
    rows = joint._rows(u, joint._first)
    for g in range(len(GAIN)):
        here = data.isel(trial=data["subject"].values == f"s{g}")
        alone = join(model(), here)
        each = alone.posterior._rows(own[g], alone.posterior._first)[torch.as_tensor(alone.rows)]
        got = rows[torch.as_tensor(join(model(), data, by="subject").rows)]
        at = torch.as_tensor(data["subject"].values == f"s{g}")
        assert torch.allclose(got[at], each, atol=1e-10)


@pytest.mark.parametrize("by", [None, "subject"])
def test_predictions_are_made_at_every_draw(data, by):
    """Draws that differ in nothing but the delay: so do the times that they predict."""
    bound = join(model(), data, by=by)
    place = [s.name for s in bound.pooled.sites].index("delay")
    u = bound.start.repeat(20, 1)
    u[10:, place] += 1.0  # of the population, where there is one
    tree = build_tree(bound, data, u[None], {}, nd.Laplace(), 0, "cpu", 0.0)
    times = np.abs(tree["posterior_predictive"]["signed_rt"].values[0])
    times = np.where(np.isfinite(times), times, 2.0).mean(-1)
    assert times[10:].min() > times[:10].max() + 0.2


@pytest.mark.parametrize("by", [None, "subject"])
@pytest.mark.parametrize(("height", "warned"), [(1.5, False), (0.3, True)])
def test_a_fit_says_what_its_steps_cost(data, by, height, warned):
    """A bound that paths reach within two steps, while sums over every second node agree."""
    bound = join(model(), data, by=by)
    place = [s.name for s in bound.pooled.sites].index("bound.height")
    u = bound.start.repeat(20, 1)
    u[:, place] = np.log(height)
    tree = build_tree(bound, data, u[None], {}, nd.Laplace(), 0, "cpu", 0.0)
    said = [words for words in fit_row(tree)["warnings"] if "grid" in words]
    assert len(said) == warned, said


@pytest.mark.parametrize("by", [None, "subject"])
@pytest.mark.parametrize("height", [1.5, 0.3])
def test_a_fit_says_what_its_steps_cost_those_without_an_answer(data, by, height):
    without = data.copy(deep=True)
    without["signed_rt"][[3, 700]] = np.inf
    said = []
    for rows in (data, without):
        bound = join(model(), rows, by=by)
        place = [s.name for s in bound.pooled.sites].index("bound.height")
        u = bound.start[None, None].clone()
        u[..., place] = np.log(height)
        tree = build_tree(bound, rows, u, {}, nd.Laplace(), 0, "cpu", 0.0)
        said.append(tree["sample_stats"].dataset.get("unsure_none"))
        assert not any("have no answer" in words for words in fit_row(tree)["warnings"])
    assert said[0] is None  # all have answered
    # a bound that paths reach within two steps, too: how few are left is no difference from 1
    assert 0 < said[1] < 0.01


def test_a_population_is_recovered(data):
    fit = nd.fit(model(), data, nd.Laplace(draws=500), by="subject", seed=0)
    found = fit["posterior"]
    assert fit["sample_stats"]["k_hat"] < 0.7
    for name, truth in (("drift.gain", GAIN), ("bound.height", HEIGHT)):
        draws = found[name].values[0]
        low, high = np.quantile(draws, [0.005, 0.995], axis=0)
        assert (low < truth).all()
        assert (truth < high).all()
        # it is the subjects that are told apart, not the prior that is wide
        assert (high - low).mean() < 1.5 * np.ptp(truth)
        centre = np.log(found[f"population.{name}"].values[0])
        assert abs(np.mean(np.log(truth)) - centre.mean()) < 3 * centre.std()
        spread = found[f"spread.{name}"].values[0]
        assert np.quantile(spread, 0.01) < np.std(np.log(truth), ddof=1) < np.quantile(spread, 0.99)
