"""Cues that come and go: their clocks, what two give together, and the densities they lead to."""

import itertools
import math

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.integrate import quad

import neurodiff as nd
from neurodiff.data.choice_rt import choice_rt
from neurodiff.inference.hypotheses import build, plan
from neurodiff.inference.join import join
from neurodiff.inference.tasks import Task
from neurodiff.perception.bounds import Constant, Weibull
from neurodiff.perception.controls import permute
from neurodiff.perception.first_passage import density
from neurodiff.perception.heading import Cues, Heading, Motion

COHERENCES, HORIZON = (0.25, 0.37, 0.7), 2.0


def stimulus(heading, coherence, vestibular, n=1):
    columns = {"heading": heading, "coherence": coherence, "vestibular": vestibular}
    return {k: torch.full((n, 1), float(v), dtype=torch.float64) for k, v in columns.items()}


def decisions(model, *given):
    g = model._decisions(dict(model.named_parameters()), stimulus(*given))[0].detach()
    return g[-len(model.time) :]  # without the early nodes


@pytest.mark.parametrize("motion", [Motion(), Motion(0.4, 0.8)])
def test_clocks_add_up_squares_of_velocity_and_acceleration(motion):
    def velocity(t):
        return math.exp(-0.5 * ((t - motion.centre) / motion.width) ** 2)

    def acceleration(t):
        return velocity(t) * (motion.centre - t) / motion.width**2

    time = torch.linspace(0.1, 2.0, 20, dtype=torch.float64)
    elapsed, rate = motion.clocks(time, HORIZON)
    for j, speed in enumerate((velocity, acceleration)):
        middle = [motion.centre]  # where acceleration is 0

        def power(t, speed=speed):
            return speed(t) ** 2

        whole = quad(power, 0, HORIZON, points=middle)[0]
        for i, t in enumerate(time.tolist()):
            wanted = HORIZON * quad(power, 0, t, points=middle if t > motion.centre else None)[0]
            assert elapsed[j, i].item() == pytest.approx(wanted / whole, abs=1e-9)
            assert rate[j, i].item() == pytest.approx(HORIZON * power(t) / whole, abs=1e-9)
        assert elapsed[j, -1].item() == pytest.approx(HORIZON)


def test_optimal_cues_add_their_information():
    cues = Cues(COHERENCES, HORIZON).double()
    cues.visual.data, cues.vestibular.data = torch.tensor([4.0, 8.0, 12.0]), torch.tensor(6.0)
    time = torch.linspace(0.02, 2.0, 100, dtype=torch.float64)
    for level in COHERENCES:
        seen, felt, both = (
            cues(stimulus(10.0, *at), time) for at in ((level, 0), (0, 1), (level, 1))
        )
        squares = [x.slope.square() * x.rate for x in (seen, felt, both)]
        # information per second, at every time
        assert torch.allclose(squares[0] + squares[1], squares[2], rtol=1e-10)
    free = Cues(COHERENCES, HORIZON, combined=True).double()
    free.efficiency.data = torch.tensor([0.5, 1.0, 2.0])
    ratio = [
        (free(stimulus(10.0, c, 1), time).slope / free(stimulus(10.0, c, 0), time).slope).item()
        for c in COHERENCES
    ]
    np.testing.assert_allclose(ratio, np.sqrt(2) * np.array([0.5, 1.0, 2.0]), rtol=1e-6)


def test_a_bias_is_a_heading():
    cues = Cues(COHERENCES, HORIZON).double()
    cues.bias.data = torch.tensor([1.0, -2.0, 3.0])
    for given, bias in (((0.37, 0), 1.0), ((0, 1), -2.0), ((0.7, 1), 3.0)):
        slope = cues(stimulus(-bias, *given), torch.ones(1)).slope
        assert abs(slope.item()) < 1e-9


@pytest.mark.parametrize("bound", [Constant(0.8), Weibull(1.2, 0.8, 2.0, 0.2)])
def test_where_nothing_comes_and_goes_it_is_a_constant_drift(bound):
    model = Heading(Cues(COHERENCES, HORIZON, None), bound, 200).double()
    got = decisions(model, 8.0, 0.37, 0)
    own = type(bound)(*(p.item() for p in bound.parameters() if p.dim() == 0))
    if isinstance(bound, Constant):
        own = Constant(0.8)
    else:
        own = Weibull(1.2, 0.8, 2.0, 0.2)
    wanted = density(10.0 * math.sin(math.radians(8)), own.double(), model.time).detach()
    assert (got - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("motion", [None, Motion()])
def test_a_bound_that_falls_at_once_is_followed(motion):
    """Of infinite slope at time 0, against steps of the clock that are a fortieth as long."""
    shape, given = (0.6, 0.4, 0.5, 0.12), stimulus(16.0, 0.7, 0)
    model = Heading(Cues((0.7,), HORIZON, motion), Weibull(*shape)).double()
    model.drift.visual.data.fill_(66.0)
    moved = model.drift(given, model.nodes)
    clock = torch.arange(1, 4001, dtype=torch.float64) / 2000
    fine = density(moved.slope.item(), Weibull(*shape).double(), clock).detach()
    s, rate = (x[0].detach().numpy() for x in (moved.elapsed, moved.rate))
    wanted = np.stack([rate * np.interp(s, clock, fine[:, side]) for side in (0, 1)], -1)
    got = model._decisions(dict(model.named_parameters()), given)[0].detach().numpy()
    assert np.abs(got - wanted).max() < 2e-3 * wanted.max()


@pytest.mark.parametrize(
    ("shape", "most"),
    [
        ((0.5, 0.05, 6.0, 0.1), 0.08),
        ((0.5, 0.1, 6.0, 0.1), 0.03),
        ((1.0, 0.05, 3.0, 0.05), 0.05),
        ((0.7, 0.15, 4.0, 0.02), 0.003),
        ((0.6, 0.4, 0.5, 0.12), 0.0003),
    ],
)
def test_a_bound_that_falls_within_steps_loses_little(shape, most):
    """Of weak evidence, against steps of .5 ms; up to .55 of answers were elsewhere."""
    given = stimulus(16.0, 0.7, 0)
    model = Heading(Cues((0.7,), HORIZON, None), Weibull(*shape)).double()
    model.drift.visual.data.fill_(5.0)
    slope = model.drift(given, model.nodes).slope.item()
    clock = torch.arange(1, 4001, dtype=torch.float64) / 2000
    fine = density(slope, Weibull(*shape).double(), clock).detach()
    got = model._decisions(dict(model.named_parameters()), given).detach()
    got = model._at_most_one(got)[0].numpy()
    wanted = np.stack([np.interp(model.nodes, clock, fine[:, side]) for side in (0, 1)], -1)
    assert 0.5 * (model.width[:, None].numpy() * np.abs(got - wanted)).sum() < most


@pytest.mark.parametrize("given", [(5.0, 0.37, 0), (5.0, 0, 1), (5.0, 0.37, 1)])
def test_decisions_are_those_of_paths(given):
    """Weighted evidence, simulated in time with crossings between steps, against the densities."""
    model = Heading(Cues(COHERENCES, HORIZON), Constant(0.7), 200).double()
    g = decisions(model, *given)
    edges = torch.tensor([0.0, 0.6, 0.8, 0.9, 1.0, 1.1, 1.3, 2.0])
    n, dt = 20_000, 2e-3
    time = dt * torch.arange(1, round(HORIZON / dt) + 1, dtype=torch.float64)
    moved = model.drift(stimulus(*given), time)
    generator = torch.Generator().manual_seed(0)
    weight = moved.rate[0].sqrt()
    x, when = torch.zeros(n, dtype=torch.float64), torch.full((n,), torch.inf)
    side = torch.zeros(n)
    for t, p in zip((time - 0.5 * dt).tolist(), weight.tolist(), strict=True):
        noise = torch.randn(n, generator=generator, dtype=torch.float64)
        new = x + p * (moved.slope.item() * p * dt + math.sqrt(dt) * noise)
        variance = max(p * p * dt, 1e-300)
        for s in (1, -1):
            # a bridge between two steps may have crossed: exp(-2 d d' / variance)
            room = (0.7 - s * x).clamp_min(0) * (0.7 - s * new).clamp_min(0)
            crossed = torch.rand(n, generator=generator) < torch.exp(-2 * room / variance)
            first = crossed & torch.isinf(when)
            when[first], side[first] = t, float(s)
        x = new
    cells = g * (HORIZON / 200)
    cumulative = torch.cat([torch.zeros(1, 2), (cells - 0.5 * cells).cumsum(0) + 0.0])
    cumulative[1:] += 0.5 * torch.cat([torch.zeros(1, 2), cells[:-1]]).cumsum(0)
    grid = torch.linspace(0, HORIZON, 201)
    for (low, high), (j, s) in itertools.product(
        itertools.pairwise(edges.tolist()), enumerate((1, -1))
    ):
        ends = np.interp([low, high], grid, cumulative[:, j])
        p = ends[1] - ends[0]
        found = ((when > low) & (when <= high) & (side == s)).double().mean().item()
        assert abs(found - p) < 4.5 * math.sqrt(max(p * (1 - p), 1 / n) / n) + 5e-4


def test_choices_times_and_no_answer_have_mass_one():
    model = Heading(Cues(COHERENCES, HORIZON), Constant(0.5)).double()
    cells = 4000
    width = HORIZON / cells
    time = width * (torch.arange(cells, dtype=torch.float64) + 0.5)
    for given in ((5.6, 0.25, 0), (5.6, 0, 1), (-16.0, 0.7, 1)):
        trials = {k: v[:, 0] for k, v in stimulus(*given, n=cells).items()}
        trials["choice_known"] = torch.ones(cells)
        answer = model(trials)
        mass = sum(answer.log_prob(s * time).exp().sum() * width for s in (1, -1))
        none = answer.log_prob(torch.full((cells,), torch.inf))[0].exp()
        assert (mass + none).item() == pytest.approx(1, abs=2e-4)


def simulated(n=3000):
    rng = np.random.default_rng(0)
    kinds = np.array([(c, 0.0) for c in COHERENCES] + [(0, 1.0)] + [(c, 1.0) for c in COHERENCES])
    coherence, vestibular = kinds[rng.integers(7, size=n)].T
    heading = rng.choice([-16, -5.6, -1.96, -0.686, 0.686, 1.96, 5.6, 16], n)
    columns = {"heading": heading, "coherence": coherence, "vestibular": vestibular}
    given = {k: torch.as_tensor(v) for k, v in columns.items()}
    given["choice_known"] = torch.ones(n)
    model = Heading(Cues(COHERENCES, HORIZON, combined=True), Constant(0.6), 60).double()
    model.drift.visual.data = torch.tensor([4.0, 9.0, 18.0])
    model.drift.efficiency.data = torch.tensor([1.0, 0.7, 1.4])
    model.delay.data = torch.tensor([0.3, 0.2, 0.25])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        y = model(given).sample()
    signed = {"signed_rt": y.numpy(), "choice_known": np.ones(n)}
    return model, xr.Dataset({k: ("trial", v) for k, v in (columns | signed).items()})


def test_what_goes_in_comes_out():
    truth, data = simulated()
    model = Heading(Cues(COHERENCES, HORIZON, combined=True), Constant(0.8), 60)
    fit = nd.fit(model, data, nd.Laplace(draws=300, starts=1), seed=0)
    assert fit["sample_stats"]["k_hat"] < 0.7
    for name in ("drift.visual", "drift.vestibular", "drift.efficiency", "bound.height", "delay"):
        draws = fit["posterior"][name].values[0]
        wanted = dict(truth.named_parameters())[name].detach().numpy()
        assert (np.abs(draws.mean(0) - wanted) < 4 * draws.std(0)).all(), name
        assert (draws.std(0) < 0.35 * wanted).all(), name


def test_a_heading_gives_a_strength():
    columns = {"heading": [30.0, -30.0], "coherence": [0.7, 0.0], "rt": [0.8, 0.9]}
    data = xr.Dataset({k: ("trial", v) for k, v in (columns | {"choice": [1.0, 1.0]}).items()})
    found = choice_rt(data)
    np.testing.assert_allclose(found["strength"], [0.5, -0.5])
    np.testing.assert_allclose(found["signed_rt"], [0.8, 0.9])


def test_columns_that_are_not_there_are_named():
    data = simulated(20)[1].drop_vars("vestibular")
    with pytest.raises(ValueError, match="no variable 'vestibular'"):
        join(Heading(Cues(COHERENCES, HORIZON), Constant()), data)


def test_the_command_line_knows_it_and_what_it_needs():
    data = simulated(20)[1]
    row = plan(Task("bounded"), law_names=["heading-free+constant"], controls=False)[0]
    model = build(row, Task("bounded", horizon=1.9), data)
    assert isinstance(model, Heading)
    assert model.drift.levels.tolist() == list(COHERENCES)
    assert model.drift.efficiency is not None
    assert model.horizon == HORIZON  # the motion goes on, though nobody answered so late
    with pytest.raises(ValueError, match="the data lack 'vestibular'"):
        build(row, Task("bounded", horizon=1.9), data.drop_vars("vestibular"))
    with pytest.raises(ValueError, match="unknown drift 'haeding'"):
        plan(Task("bounded"), law_names=["haeding+constant"])


def test_a_permuted_stimulus_is_permuted_whole():
    data = simulated(200)[1]
    other = permute(data, 0)
    columns = ["heading", "coherence", "vestibular"]
    before, after = (np.stack([x[c].values for c in columns]) for x in (data, other))
    assert not np.array_equal(before, after)
    assert sorted(map(tuple, before.T)) == sorted(map(tuple, after.T))


@pytest.mark.parametrize("given", [(5.0, 0.37, 0), (5.0, 0, 1)])
def test_a_low_bound_needs_no_finer_clock(given):
    """The clock runs up to four times as fast as time, and a low bound is passed in a few steps."""
    models = (Heading(Cues(COHERENCES, HORIZON), Constant(0.3), n).double() for n in (100, 800))
    got, wanted = (decisions(model, *given) for model in models)
    assert (got - wanted[7::8]).abs().max() < 0.02 * wanted.max()


def test_fast_answers_to_a_steady_cue_need_no_finer_steps():
    """Decided within .038 ± .01 s at the widest heading: sums over steps of 20 ms are 17 off."""
    heading = torch.tensor([-16.0, -8.0, 2.0, 8.0, 16.0]).repeat(100)
    given = {"heading": heading, "coherence": 0.7 + 0 * heading, "vestibular": 1 + 0 * heading}
    given["choice_known"] = torch.ones_like(heading)
    steady = Cues((0.7,), HORIZON, None)
    fine, coarse = (Heading(steady, Constant(0.75), n).double() for n in (400, 100))
    steady.visual.data, steady.vestibular.data = torch.tensor([66.0]), torch.tensor(26.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = fine(given).sample()
    # nats, of 500 trials
    got, wanted = (model(given).log_prob(y).sum().item() for model in (coarse, fine))
    assert got == pytest.approx(wanted, abs=0.02)


def test_a_short_motion_has_densities_and_gradients():
    """Its clock is still 0, to the last digit, at the first times."""
    model = Heading(Cues((0.7,), HORIZON, Motion(0.1)), Weibull()).double()
    g = model._decisions(dict(model.named_parameters()), stimulus(5.0, 0.7, 0))
    assert (model.width @ g.sum(-1)[0]).item() == pytest.approx(1.0, abs=1e-3)
    g.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
