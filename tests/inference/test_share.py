"""One weighting for several read-outs: against quadrature, and with truths that are known."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.special import logsumexp

import neurodiff as nd
from neurodiff.inference.common_law import explore
from neurodiff.inference.hypotheses import build, plan
from neurodiff.inference.join import bind
from neurodiff.inference.share import part_of, share, ways
from neurodiff.inference.tasks import Task
from neurodiff.inference.tied import common, tie
from neurodiff.perception.categories import Linear
from neurodiff.perception.measurement import Stopped
from neurodiff.perception.orientation import Categorise

N, M = 40, 30  # of the grid over laws
TASK = Task("threshold", "correct", choices=2, history=0, most=None)
MODEL = build(plan(TASK, named=[], law_names=["logistic"], controls=False)[0], TASK, xr.Dataset())


def trials(loc, seed, count=240, scale=0.7, lapse=0.04):
    rng = np.random.default_rng(seed)
    logsnr = np.tile(np.linspace(-3, 3, 8), count // 8)
    p = 1 / (1 + np.exp(-(logsnr - loc) / scale))
    right = rng.random(count) < lapse / 2 + (1 - lapse) * (0.5 + 0.5 * p)
    return xr.Dataset({"logsnr": ("trial", logsnr), "correct": ("trial", right.astype(float))})


def parts_of(*who):
    return [
        part_of(trials(loc, seed=i), MODEL, f"{person} in {i}", person)
        for i, (person, loc) in enumerate(who)
    ]


@pytest.fixture(scope="module")
def two():
    return parts_of(("a", 0.0), ("b", 0.6))


def grid_of(parts, width=1.0):
    """Log p(law) and of each part log p(y, rest | law), with their cells, by rows and on a grid.

    Everything on the unconstrained scale; the rest is integrated on a grid of its own.
    """
    loc, scale = np.linspace(-3, 3.5, N), np.linspace(-4.5, 3.0, M)
    law = torch.as_tensor(np.stack(np.meshgrid(loc, scale, indexing="ij"), -1)).reshape(-1, 2)
    prior = torch.distributions.Normal(
        torch.stack([s.prior.loc for s in common(parts, width).values()]),
        torch.stack([s.prior.scale for s in common(parts, width).values()]),
    )
    log_prior = prior.log_prob(law).sum(-1).numpy()
    log_prior += math.log((loc[1] - loc[0]) * (scale[1] - scale[0]))
    each = []
    for part in parts:
        rest = [s for s in part.posterior.parameters.sites if s.name.startswith("observer")]
        axes = [np.linspace(-9, 0, 22) if "lapse" in s.name else np.linspace(-4, 8, 24)
                for s in rest]  # fmt: skip
        mesh = torch.as_tensor(np.stack(np.meshgrid(*axes, indexing="ij"), -1))
        mesh = mesh.reshape(-1, len(axes))
        cell = math.log(np.prod([a[1] - a[0] for a in axes]))
        logs = sum(
            torch.stack([s.log_prior(x[None]) for x in mesh[:, i]]) for i, s in enumerate(rest)
        )
        u = torch.zeros(len(law), len(mesh), part.posterior.size, dtype=torch.float64)
        u[..., part.columns(ours=True)] = law[:, None]
        u[..., part.columns(ours=False)] = mesh
        rows = torch.cat([part.posterior.draws_terms(x[None])[1] for x in u])
        each.append((logs.numpy() + cell, rows.numpy()))
    return law.numpy(), log_prior, each


@pytest.fixture(scope="module")
def exact(two):
    return grid_of(two)


def test_evidence_and_held_out_scores_of_one_law_are_those_of_quadrature(two, exact):
    _, log_prior, each = exact
    points = explore(two, lambda part: "all", False, 400, 800, 0)
    terms = [logsumexp(prior + rows.sum(-1), 1) for prior, rows in each]
    log_z = logsumexp(log_prior + sum(terms))
    laplace, found, se = points.evidence()
    assert abs(found - log_z) < 4 * se + 0.05
    assert abs(laplace - log_z) < 1.0
    held, k_hat = points.held_out()
    assert k_hat < 1.0  # of one fold of a part, whose scores are checked here
    for part, (prior, rows), other in zip(two, each, reversed(each), strict=True):
        fold = part.fold.numpy()
        for unit in range(0, len(fold), 7):
            kept = fold != fold[unit]
            theirs = two[1 - two.index(part)].fold.numpy() != fold[unit]
            beside = logsumexp(other[0] + other[1][..., theirs].sum(-1), 1)
            own = prior + rows[..., kept].sum(-1)
            copies = part.copies[unit].item()
            both = logsumexp(own + rows[..., unit] / copies, 1) + beside + log_prior
            alone = logsumexp(own, 1) + beside + log_prior
            want = copies * (logsumexp(both) - logsumexp(alone))
            assert abs(held[part.name][unit].item() - want) < 0.03 * max(1.0, copies)


def test_evidence_with_shifts_is_that_of_quadrature(two, exact):
    law, log_prior, each = exact
    terms = [logsumexp(prior + rows.sum(-1), 1).reshape(N, M) for prior, rows in each]
    loc = law[:, 0].reshape(N, M)[:, 0]
    shift = -0.5 * (loc[:, None] - loc) ** 2 - 0.5 * math.log(2 * math.pi)
    shift = shift + math.log(loc[1] - loc[0])
    moved = sum(logsumexp(shift[..., None] + t[None], 1) for t in terms)
    log_z = logsumexp(log_prior.reshape(N, M) + moved)
    _, found, se = explore(two, lambda part: "all", True, 80, 400, 0).evidence()
    assert abs(found - log_z) < 4 * se + 0.05


def test_wider_priors_of_a_law_change_evidence_as_quadrature_says(two, exact):
    points = explore(two, lambda part: "all", False, 400, 800, 0)
    for width in (0.5, 4.0):
        _, log_prior, each = exact
        law = exact[0]
        prior = torch.distributions.Normal(
            torch.stack([s.prior.loc for s in common(two, width).values()]),
            torch.stack([s.prior.scale for s in common(two, width).values()]),
        )
        cell = math.log(6.5 / (N - 1) * 7.5 / (M - 1))
        log_prior = prior.log_prob(torch.as_tensor(law)).sum(-1).numpy() + cell
        terms = sum(logsumexp(p + rows.sum(-1), 1) for p, rows in each)
        _, found, se = points.evidence(width)
        assert abs(found - logsumexp(log_prior + terms)) < 4 * se + 0.05


def test_a_law_of_each_part_has_the_evidence_of_each_part_alone(two):
    alone = [explore([p], lambda part: part.name, False, 256, 512, 0).evidence() for p in two]
    for part, (laplace, _, _) in zip(two, alone, strict=True):
        tied = tie(two, lambda part: part.name)
        assert abs(laplace - alone[two.index(part)][0]) < 1e-12
    whole = tied.log_prob(torch.cat([p.modes.u[0] for p in two])[None])
    shared = {s.name: s for s in common(two).values()}
    apart = sum(
        p.posterior.log_prob(p.modes.u)[0]
        + sum(
            shared[s.name].log_prior(x) - s.log_prior(x)
            for s, x in zip(
                p.posterior.parameters.sites,
                p.modes.u[0].split(p.posterior.parameters.sizes),
                strict=True,
            )
            if s.name in shared
        )
        for p in two
    )
    assert torch.allclose(whole[0], apart)


def test_ways_that_are_the_same_are_left_out(two):
    assert ways(two) == ["one w", "one w, shifted", "all apart"]
    assert ways(parts_of(("a", 0.0), ("a", 0.0))) == ["one w", "all apart"]
    with pytest.raises(ValueError, match="at least two"):
        ways(two[:1])


def test_the_law_of_a_measurement_is_shared():
    """Two tasks of orientation: the law of the measurement is one, contrasts and rules are not."""
    parts = []
    for i, task in enumerate("AB"):
        model = Categorise(Stopped([0.0, 0.5, 1.0], nd.laws.Logistic()), Linear(task))
        g = torch.Generator().manual_seed(i)
        shown = xr.Dataset({
            "orientation": ("trial", (8 * torch.randn(120, generator=g)).numpy()),
            "level": ("trial", np.arange(120) % 3 * 1.0),
        })  # fmt: skip
        p = model(bind(model, shown.assign(choice=("trial", np.zeros(120))))[0]).probs.detach()
        choice = torch.bernoulli(p, generator=g).numpy()
        parts.append(part_of(shown.assign(choice=("trial", choice)), model, task, "a"))
    assert set(common(parts)) == {"measurement.law.loc", "measurement.law.scale"}
    tied = tie(parts, lambda part: "all")
    assert tied.size == sum(part.posterior.size for part in parts) - 2
    assert len(tied.columns("all")) == 2
    table, _ = share(parts, (), points=32, draws=64)
    assert list(table["sharing"]) == ["one w", "all apart"]
    assert np.isfinite(table[["elpd", "ln_bf_bridge"]]).all(axis=None)


def test_parts_of_other_laws_cannot_share(two):
    row = plan(TASK, named=["sigmoid"], law_names=[], controls=False)[0]
    other = part_of(trials(0.0, 5), build(row, TASK, xr.Dataset()), "c", "c")
    with pytest.raises(ValueError, match="wanted the same"):
        share([*two, other])


@pytest.mark.slow
def test_the_way_to_share_that_is_true_is_found():
    """One law, laws that are shifted, and a law of each: simulated, two tasks for four people."""
    rng = np.random.default_rng(1)
    people = [f"person {i}" for i in range(4)]

    def best(loc_of):
        parts = parts_of(*[(p, loc_of(i, r)) for i, p in enumerate(people) for r in range(2)])
        table = share(parts, [1.0], points=128, draws=128)[0].set_index("sharing")
        return table

    one = best(lambda i, r: 0.3)
    assert one["ln_bf_bridge"].idxmax() == "one w"
    assert "one w is not refuted" in one.loc["one w", "verdict"]
    places = rng.normal(0, 1.5, 4)
    moved = best(lambda i, r: places[i])
    assert moved["ln_bf_bridge"].idxmax() == "one w, shifted"
    assert moved.loc["one w", "verdict"].startswith("behind")
    assert moved.loc["own w", "elpd_diff"] > moved.loc["one w", "elpd_diff"]
    tasks = best(lambda i, r: places[i] + 3.0 * r * (-1) ** i)
    assert tasks["ln_bf_bridge"].idxmax() == "all apart"
    # Laplace and bridges agree
    assert (tasks["ln_bf_laplace"] - tasks["ln_bf_bridge"]).abs().max() < 2.0
