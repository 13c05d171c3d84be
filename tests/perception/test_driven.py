"""Drives against the survivors' means and quadrature; simulated neurons are recovered."""

import math

import numpy as np
import pytest
import torch
import xarray as xr

import neurodiff as nd
from neurodiff.perception import bounds
from neurodiff.perception.drifts import Power
from neurodiff.perception.driven import (
    Accumulated,
    Driven,
    Tabulated,
    Unstopped,
    belief,
    evidence_log_odds,
    position,
    survivors_mean,
)
from neurodiff.perception.killed import killed

STRENGTHS = torch.tensor([-0.4, -0.1, 0.0, 0.1, 0.4], dtype=torch.float64)
KNOTS = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
TIME = 0.02 * torch.arange(1, 76, dtype=torch.float64)


def weibull():
    return bounds.Weibull(1.1, 0.6, 3.0, 0.45).double().requires_grad_(False)


def rows(strength, choice, when):
    found = {"coherence": strength, "choice": choice, "when": when}
    found = {n: torch.as_tensor(v, dtype=torch.float64) for n, v in found.items()}
    return found | {"exposure": torch.full_like(found["when"], 2.0)}


def test_the_table_is_what_survivors_believe():
    v = 8.0 * STRENGTHS
    table = survivors_mean(v, weibull(), TIME, 0.1, belief)
    found = killed(v, weibull(), TIME, 0.1)
    odds = evidence_log_odds(found.position[24], TIME[24, None], torch.tensor([0.0, 0.8, 3.2]))
    weight = found.mass[3, 24, :, None] * found.fate[3, 24]
    wanted = (torch.tanh(0.5 * odds)[:, None] * weight).sum(0) / weight.sum(0)
    torch.testing.assert_close(table[3, 25], wanted)
    # at first it is what the start says, whatever the choice will be
    prior = belief(torch.tensor([[0.1]]), torch.zeros(1, 1), torch.tensor([0.0, 0.8, 3.2]))
    torch.testing.assert_close(table[:, 0], prior.expand(5, 2))


def test_the_drive_is_read_a_latency_ago():
    v = 8.0 * STRENGTHS
    table = survivors_mean(v, weibull(), TIME, 0.0, position)
    model = Driven(Tabulated(table, STRENGTHS, 0.02, latency=0.1), STRENGTHS, KNOTS).double()
    trials = rows([0.1, 0.1, -0.4], [1.0, 0.0, 0.0], [0.3, 0.3, 0.05])
    drive = model.drive(trials | model.prepare(trials))
    wanted = torch.stack([table[3, 10, 0], table[3, 10, 1], table[0, 0, 1]])
    torch.testing.assert_close(drive, wanted)  # before the stimulus arrives: as at first


def test_a_learned_accumulator_is_the_table_of_its_values():
    learned = Accumulated(Power(8.0), weibull(), STRENGTHS, belief, horizon=1.5, steps=75)
    learned = learned.double()
    table = survivors_mean(8.0 * STRENGTHS, weibull(), TIME, 0.0, belief, learned.nodes)
    model = Driven(learned, STRENGTHS, KNOTS).double()
    other = Driven(Tabulated(table, STRENGTHS, 0.02), STRENGTHS, KNOTS).double()
    trials = rows([0.1, 0.4, 0.0], [1.0, 0.0, 1.0], [0.4, 0.7, 0.9])
    torch.testing.assert_close(model(trials).rate, other(trials).rate)


def test_nodes_are_near_enough_for_a_high_bound_and_short_steps():
    """Against series of sines: survivors, and P(upper by the horizon), both without drift."""
    b, horizon = 1.8, 1.5
    learned = Accumulated(Power(8.0), bounds.Constant(b), STRENGTHS, position, horizon, 150)
    y, n = torch.linspace(-b, b, 20_001), torch.arange(1.0, 200.0)[:, None]
    wave, rate = torch.sin(n * math.pi * (y + b) / (2 * b)), (n * math.pi / b) ** 2 / 8
    for t in (0.4, 0.8):
        there = (wave * torch.sin(n * math.pi / 2) * torch.exp(-rate * t)).sum(0)
        rest = 2 / (n * math.pi) * (-1) ** n * torch.exp(-rate * (horizon - t))
        there = there * ((y + b) / (2 * b) + (wave * rest).sum(0))
        wanted = (y * there).sum() / there.sum()
        at = {"when": learned.latency + t, "strength_index": torch.tensor([2]).double()}
        got = learned.double()(at | {"choice": torch.ones(1)})
        assert got.item() == pytest.approx(wanted.item(), abs=1e-3)


def test_nodes_too_far_apart_are_refused():
    time = 0.01 * torch.arange(1.0, 101.0)
    with pytest.raises(ValueError, match=r"32 nodes for a bound of ±2.7 .*wanted at least 85"):
        survivors_mean(8.0 * STRENGTHS, bounds.Constant(2.7).double(), time, 0.0, belief)


def test_unstopped_belief_is_the_mean_over_the_path():
    speeds = 8.0 * STRENGTHS
    drive = Unstopped(speeds, KNOTS).double()
    trials = rows([0.4, -0.1, 0.0], [1.0] * 3, [0.5, 0.2, 0.8])
    got = drive(trials | {"strength_index": torch.tensor([4.0, 1.0, 2.0])}).detach()
    z = torch.linspace(-9, 9, 20001)
    phi = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    for i, (v, t) in enumerate(((3.2, 0.5), (-0.8, 0.2), (0.0, 0.8))):
        # f follows log t at the knots as it begins
        y = abs(v) * t + math.sqrt(t) * z
        wanted = math.copysign(1, v) * (phi * torch.tanh(abs(v) * y)).sum()
        assert got[i] == pytest.approx(
            wanted.item() if v else 0.0, abs=1e-4
        )  # a sum every half s.d.


def test_urgency_is_linear_between_knots():
    model = Driven(None, STRENGTHS, KNOTS).double()
    values = {"base": torch.tensor(50.0), "urgency": torch.tensor([0.2, -0.4])}
    trials = rows([0.0] * 4, [1.0] * 4, [0.1, 0.35, 0.75, 1.4])
    rate = torch.func.functional_call(model, values, (trials,)).rate.detach()
    wanted = 2 * 50 * torch.tensor([1.0, 1.1, 0.9, 0.6])
    torch.testing.assert_close(rate, wanted, rtol=1e-6, atol=1e-6)


def simulated(units, seed):
    """Neurons with gains and baselines of their own, under one accumulator."""
    generator = torch.Generator().manual_seed(seed)
    table = survivors_mean(8.0 * STRENGTHS, weibull(), TIME, 0.0, belief)
    when = torch.arange(0.25, 1.0, 0.1, dtype=torch.float64)
    grid = torch.cartesian_prod(STRENGTHS, torch.tensor([0.0, 1.0]).double(), when)
    trials = rows(*(column.contiguous() for column in grid.T))
    model = Driven(Tabulated(table, STRENGTHS, 0.02), STRENGTHS, KNOTS).double()
    base = 40 * torch.exp(0.3 * torch.randn(units, generator=generator, dtype=torch.float64))
    gain = 25 * torch.exp(0.4 * torch.randn(units, generator=generator, dtype=torch.float64))
    parts = []
    for i in range(units):
        values = {"base": base[i], "gain": gain[i], "urgency": torch.tensor([0.1, 0.3]).double()}
        rate = torch.func.functional_call(model, values, (trials,)).rate.detach()
        count = torch.poisson(rate, generator=generator)
        columns = {n: ("trial", v.numpy()) for n, v in trials.items()}
        unit = ("trial", np.full(len(rate), f"u{i}"))
        parts.append(xr.Dataset(columns | {"count": ("trial", count.numpy())}, {"unit": unit}))
    return model, xr.concat(parts, "trial"), base, gain


@pytest.mark.slow
def test_neurons_are_recovered_by_a_hierarchical_fit():
    model, data, base, gain = simulated(4, 0)
    found = nd.fit(model, data, nd.Laplace(draws=200, starts=1), by="unit", seed=0)["posterior"]
    for name, truth in (("base", base), ("gain", gain)):
        mean, sd = (getattr(found[name], f)(("chain", "draw")).values for f in ("mean", "std"))
        assert (np.abs(mean - truth.numpy()) < 4 * sd).all()
        assert (sd < 0.3 * mean).all()
    latency = found["drive.latency"].mean(("chain", "draw")).values
    assert np.abs(latency - 0.2).max() < 0.1
