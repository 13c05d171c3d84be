"""Verdicts, stacking and held-out densities against brute force."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import stats
from torch import nn
from torch.distributions import Bernoulli, Normal
from torch.func import functional_call

from neurodiff.inference import heldout
from neurodiff.inference import together as together_module
from neurodiff.inference.compare import COLUMNS, compare, distinguished, elpd_of, paired, stacking
from neurodiff.inference.fit import modes_of
from neurodiff.inference.heldout import alternating, kfold, refit
from neurodiff.inference.join import join
from neurodiff.inference.nuts import NUTS
from neurodiff.inference.psis import leave_one_out
from neurodiff.inference.together import alone
from neurodiff.perception.beta_binomial import BetaBinomial, by_level, cell_of


def made(elpd, kind="law", k_hat=0.1, group="loo", **attrs):
    """A fit that carries nothing but its scores."""
    scores = {"elpd": ("trial", np.asarray(elpd)), "k_hat": ("trial", np.full(len(elpd), k_hat))}
    tree = xr.DataTree.from_dict({group: xr.Dataset(scores)})
    tree.attrs = {"kind": kind, "data": "cell", "front_end": "none"} | attrs
    return tree


@pytest.fixture
def units():
    return np.random.default_rng(0).normal(-1, 0.2, 400)


def verdicts(fits):
    table = compare(fits)
    return dict(zip(table["hypothesis"], table["verdict"], strict=True))


def test_paired_se_is_that_of_a_sum_of_independent_units():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 50))
    difference, se = paired(a, b)
    mean_se = stats.ttest_rel(a, b)
    assert difference == pytest.approx((a - b).sum())
    assert difference / se == pytest.approx(mean_se.statistic)
    # its size: the s.d. of the sum over repeated experiments
    sums = [paired(*rng.normal(size=(2, 50)))[0] for _ in range(4000)]
    assert np.mean([paired(*rng.normal(size=(2, 50)))[1] for _ in range(400)]) == pytest.approx(
        np.std(sums), rel=0.05
    )


def test_a_single_unit_distinguishes_nothing():
    assert paired(np.array([5.0]), np.array([-50.0])) == (55.0, np.inf)
    assert not distinguished(55.0, np.inf)


@pytest.mark.parametrize(
    ("difference", "se", "claim"),
    [
        (10.0, 4.9, True),
        (10.0, 5.1, False),
        (-4.1, 0.1, True),
        (-3.9, 0.1, False),
        (0.0, 0.0, False),
    ],
)
def test_two_rules_of_a_claim(difference, se, claim):
    assert distinguished(difference, se) is claim


@pytest.mark.parametrize("models", [2, 3])
def test_stacking_against_brute_force(models):
    rng = np.random.default_rng(models)
    elpd = rng.normal(-1, 1, (models, 60))
    step = 100
    simplex = np.array(
        [c for c in itertools.product(range(step + 1), repeat=models) if sum(c) == step]
    )
    scores = np.log(simplex / step @ np.exp(elpd)).sum(1)
    w = stacking(elpd)
    assert w.sum() == pytest.approx(1)
    assert np.log(w @ np.exp(elpd)).sum() >= scores.max() - 1e-6
    np.testing.assert_allclose(w, simplex[scores.argmax()] / step, atol=1.5 / step)


def test_columns_are_as_designed(units):
    table = compare({"a": made(units)})
    assert (
        list(table.columns)
        == COLUMNS
        == ("data front_end gauge hypothesis kind elpd se elpd_diff dse weight verdict".split())
    )
    counts = compare(
        {
            "a": made(units, spikes=100.0),
            "constant": made(units - 1, kind="control", spikes=100.0),
        }
    )
    assert list(counts.columns) == [*COLUMNS, "bits_per_spike"]
    bits = dict(zip(counts["hypothesis"], counts["bits_per_spike"], strict=True))
    assert bits == {"a": pytest.approx(400 / 100 / np.log(2)), "constant": 0.0}


def test_behind_and_not_distinguished(units):
    noise = np.random.default_rng(1).normal(0, 0.01, 400)
    noise -= noise.mean()
    found = verdicts(
        {
            "best": made(units),
            "twin": made(units - 0.005 + noise),  # 2 nats below: under 4
            "noisy": made(units - 0.02 + 100 * noise),  # 8 nats below, of 20
            "far": made(units - 0.05),
        }
    )
    assert found == {
        "best": "best",
        "twin": "not distinguished",
        "noisy": "not distinguished",
        "far": "behind",
    }


def test_an_impossible_response_is_behind_and_a_failed_score_is_no_rival(units):
    impossible, failed = units.copy(), units.copy() + 5
    impossible[3], failed[3] = -np.inf, np.nan
    found = verdicts({"a": made(units), "b": made(impossible), "c": made(failed)})
    assert found == {"a": "best", "b": "behind", "c": "not scored"}


def test_adequate_and_inadequate(units):
    noise = np.random.default_rng(1).normal(0, 0.1, 400)
    near, high = made(units + 0.005 + noise, kind="control"), made(units + 0.1, kind="control")
    assert verdicts({"a": made(units), "free link": near})["a"] == "best; adequate"
    inadequate = verdicts({"a": made(units), "free link": high})
    assert inadequate == {
        "a": "best; inadequate: 40 nats below the free link",
        "free link": "control",
    }


def test_a_noise_floor_suffices_unless_it_is_beaten(units):
    fits = {"a": made(units), "b": made(units - 0.005), "c": made(units - 0.1)}
    equal = verdicts({**fits, "noise floor": made(units - 0.004, kind="control")})
    assert equal["a"] == "best; a noise floor suffices"
    assert equal["b"] == "not distinguished; a noise floor suffices"
    assert equal["c"] == "behind"
    beaten = verdicts({**fits, "noise floor": made(units - 0.2, kind="control")})
    assert beaten == {
        "a": "best",
        "b": "not distinguished",
        "c": "behind",
        "noise floor": "control",
    }


def test_depends_on_the_front_end(units):
    fits = {
        "1": made(units, hypothesis="logistic", gauge="free"),
        "2": made(units - 0.001, hypothesis="sigmoid"),
        "3": made(units, hypothesis="logistic", gauge="free", front_end="power-filter"),
        "4": made(units - 0.1, hypothesis="sigmoid", front_end="power-filter"),
        "5": made(units - 0.1, hypothesis="step"),
        "6": made(units - 0.1, hypothesis="step", front_end="power-filter"),
        # the same changes in another cell are that cell's
        "7": made(units, hypothesis="logistic", gauge="free", data="other"),
        "8": made(units - 0.1, hypothesis="sigmoid", data="other"),
    }
    table = compare(fits).set_index(["data", "front_end", "hypothesis"])["verdict"]
    marked = "depends on the front end"
    assert table["cell", "none", "sigmoid"] == f"not distinguished; {marked}"
    assert table["cell", "power-filter", "sigmoid"] == f"behind; {marked}"
    assert table["cell", "none", "logistic"] == table["cell", "power-filter", "logistic"] == "best"
    assert table["cell", "none", "step"] == table["other", "none", "sigmoid"] == "behind"


def test_a_runaway_is_not_called_by_its_name(units):
    found = verdicts({"a": made(units, unsaturated=1), "b": made(units - 1, k_hat=0.8)})
    assert found["a"] == "best; not saturating: power law"
    assert found["b"] == "behind; k-hat above 0.7: numerically unsure"


def test_best_first_controls_weigh_nothing_and_differences_are_to_the_best(units):
    table = compare(
        {
            "b": made(units - 0.1),
            "a": made(units),
            "free link": made(units + 0.1, kind="control"),
        }
    ).set_index("hypothesis")
    assert list(table.index) == ["free link", "a", "b"]
    np.testing.assert_allclose(table["elpd_diff"], [40, 0, -40])
    assert np.isnan(table["weight"]["free link"])
    assert table["weight"]["a"] + table["weight"]["b"] == pytest.approx(1)
    assert table["se"]["a"] == pytest.approx(np.sqrt(400) * units.std(ddof=1))


def test_refuses_what_cannot_be_paired(units):
    with pytest.raises(ValueError, match=r"different units .*'a' on 400.*'b' on 399"):
        compare({"a": made(units), "b": made(units[:-1])})
    with pytest.raises(ValueError, match="different data"):
        compare({"a": made(units, data_hash="1"), "b": made(units, data_hash="2")})
    with pytest.raises(ValueError, match="no fits"):
        compare({})
    with pytest.raises(ValueError, match="neither held-out scores nor log likelihoods"):
        compare({"a": xr.DataTree.from_dict({"posterior": xr.Dataset()})})


def test_the_same_labels_twice_are_told_apart(units):
    again = {"x": made(units, hypothesis="h"), "y": made(units - 1, hypothesis="h")}
    assert list(compare(again)["hypothesis"]) == ["h", "h (y)"]


def test_files_give_the_table_of_trees(units, tmp_path):
    fits = {
        "a": made(units, spikes=50.0, unsaturated=1, data_hash="1", hypothesis="α"),
        "b": made(units - 1, group="kfold", spikes=50.0, gauge="free"),
        "c": made(units - 2, kind="control", hypothesis="constant", spikes=50.0),
    }
    fits["a"]["sample_stats"] = xr.Dataset({"k_hat": 0.9})
    log_p = np.random.default_rng(0).normal(-1, 0.1, (300, 400))
    fits["d"] = xr.DataTree.from_dict(
        {"log_likelihood": xr.Dataset({"block": (("draw", "block_unit"), log_p)})}
    )
    fits["d"].attrs = fits["b"].attrs | {"hypothesis": "d"}
    paths = {}
    for name, tree in fits.items():
        paths[name] = tmp_path / f"{name}.nc"
        tree.to_netcdf(paths[name], engine="h5netcdf")
    pd.testing.assert_frame_equal(compare(paths), compare(fits))


def test_a_population_comes_before_folds_and_these_before_trials(units):
    tree = made(units)
    for group, value in (("kfold", -2.0), ("loso", -3.0)):
        tree[group] = xr.Dataset({"elpd": ("unit", [value] * 3), "k_hat": ("unit", [0.0] * 3)})
    assert elpd_of(tree)[0].tolist() == [-3.0] * 3
    del tree["loso"]
    assert elpd_of(tree)[0].tolist() == [-2.0] * 3


def test_a_fit_without_scores_is_scored_by_its_blocks():
    log_p = np.random.default_rng(0).normal(-2, 0.1, (300, 8))
    kept = xr.Dataset({"block": (("draw", "block_unit"), log_p)})
    elpd, k_hat = elpd_of(xr.DataTree.from_dict({"log_likelihood": kept}))
    np.testing.assert_array_equal(elpd, leave_one_out(log_p)[0])
    assert k_hat == leave_one_out(log_p)[1].max()


class Coin(nn.Module):
    """P(correct) = sigmoid(theta), one parameter: everything is a one-dimensional integral."""

    requires = ("one",)
    response = "correct"

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.0))
        self.priors = {"theta": Normal(0.0, 1.0)}

    def forward(self, trials):
        return Bernoulli(logits=self.theta * trials["one"], validate_args=False)


def coins(right, n, **coords):
    answers = np.concatenate([np.repeat([1.0, 0.0], [k, n - k]) for k in right])
    block = np.repeat(np.arange(len(right)), n)
    return xr.Dataset(
        {"one": ("trial", np.ones(len(answers))), "correct": ("trial", answers)},
        coords={name: ("trial", values) for name, values in ({"block": block} | coords).items()},
    )


THETA = np.linspace(-8, 8, 4001)


def evidence(right, wrong):
    """∫ p(θ) σ(θ)^right σ(-θ)^wrong dθ"""
    log_p = stats.norm.logpdf(THETA) - right * np.logaddexp(0, -THETA)
    return np.trapezoid(np.exp(log_p - wrong * np.logaddexp(0, THETA)), THETA)


def test_kfold_against_quadrature_of_each_training_subset():
    right, n, folds = np.array([3, 5, 8, 4, 6, 9, 7]), 12, 3
    bound = join(Coin(), coins(right, n))
    assert bound.unit_dim == "block"
    fold = alternating(len(right), folds)
    elpd, k_hat = alone(kfold(bound, modes_of(bound, 1, 0), fold, 20_000, 0))
    for j, k in enumerate(right):
        train = fold != fold[j]
        a, b = right[train].sum(), (n - right[train]).sum()
        exact = np.log(evidence(a + k, b + n - k) / evidence(a, b))
        # the relative s.d. of p(y | θ) over the posterior is below 1
        assert elpd[j] == pytest.approx(exact, abs=4 / np.sqrt(20_000))
    assert (k_hat < 0.7).all()


def test_chains_take_over_where_importance_sampling_fails(monkeypatch):
    right, n = np.array([3, 8, 6]), 12
    bound = join(Coin(), coins(right, n))
    weigh, true = heldout.Shared.weigh, together_module.posterior_draws

    def unsure(mask):
        return torch.where(mask[:, 0] == 0, 0.9, 0.1)  # of the fold that lacks block 0

    def astray(shared, mask):
        log_w, _, evidence = weigh(shared, mask)
        return log_w - 50 * (mask[:, :1] == 0), unsure(mask), evidence

    def hopeless(problems, *rest):
        draws, k_hat = true(problems, *rest), unsure(problems.mask)
        return replace(
            draws, by_unit=draws.by_unit - 50 * (k_hat > 0.7)[:, None, None], k_hat=k_hat
        )

    monkeypatch.setattr(heldout.Shared, "weigh", astray)
    monkeypatch.setattr(together_module, "posterior_draws", hopeless)
    args = bound, modes_of(bound, 1, 0), alternating(3, 3), 4000, 0
    elpd, k_hat = alone(kfold(*args, NUTS(draws=500, warmup=100, chains=2)))
    assert (k_hat < 0.7).all()  # of chains that agree
    for j, k in enumerate(right):
        a, b = right.sum() - k, 2 * n - right.sum() + k
        assert elpd[j] == pytest.approx(
            np.log(evidence(a + k, b + n - k) / evidence(a, b)), abs=0.1
        )
    # without chains k̂ stays, for the verdict to name
    assert alone(kfold(*args))[1] == pytest.approx([0.9, 0.1, 0.1])


def test_a_surprising_block_is_scored_by_evidence(monkeypatch):
    """Few draws trained on the rest explain it: averages over them scatter, evidences do not."""
    # the last two, held out together, are surprising in opposite directions
    right, n, fold = np.array([128, 130, 127, 20, 236]), 256, np.array([0, 0, 1, 2, 2])
    bound = join(Coin(), coins(right, n))
    a, b = right[:3].sum(), 3 * n - right[:3].sum()
    exact = [np.log(evidence(a + k, b + n - k) / evidence(a, b)) for k in right[3:]]
    modes, calls, true = modes_of(bound, 1, 0), [], heldout.Shared.about

    def spy(shared, mask, draws):
        calls.append(len(mask))
        true(shared, mask, draws)

    monkeypatch.setattr(heldout.Shared, "about", spy)
    for seed in range(3):
        elpd, k_hat = alone(kfold(bound, modes, fold, 256, seed))
        np.testing.assert_allclose(elpd[3:], exact, atol=0.2)
        assert (k_hat < 0.7).all()
    assert calls == [4, 2] * 3  # three folds and the whole, then the two surprising blocks


def test_trials_of_cells_are_left_out_one_by_one():
    """At one posterior draw each trial has its probability given the others of its cell."""
    correct = np.array([1.0, 0.0, np.nan, 1.0, 1.0, 0.0])
    level = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    data = xr.Dataset({"logsnr": ("trial", level), "correct": ("trial", correct)})
    bound = join(BetaBinomial(choices=2), by_level(data))
    u = bound.start.expand(50, -1)
    loo = heldout.by_trial(bound, u, cell_of(data), correct)
    assert loo["elpd"][2] == 0.0
    values = bound.pooled.constrain(bound.start)
    for cell, here in enumerate(level == x for x in (0.0, 1.0)):
        here &= ~np.isnan(correct)
        one = bound.posterior.take(torch.as_tensor([bound.rows[cell]]))
        answer = functional_call(one.model, values, (one.trials,))
        right, wrong = answer.each_given_the_others(torch.tensor([correct[here].sum()]))
        expected = np.where(correct[here] > 0.5, right.item(), wrong.item())
        np.testing.assert_allclose(loo["elpd"].values[here], expected, atol=1e-12)


def test_kfold_needs_two_blocks():
    bound = join(Coin(), coins([3], 12))
    with pytest.raises(ValueError, match="at least 2 blocks"):
        alone(kfold(bound, modes_of(bound, 1, 0), alternating(1), 100, 0))


def test_rows_that_cannot_be_trusted_are_refitted_without_one_trial():
    data = coins([10], 12).drop_vars("block")
    bound = join(Coin(), data)
    assert len(bound.posterior.response) == 2  # distinct rows, 10 and 2 times
    loo = xr.Dataset({"elpd": ("trial", np.full(12, -9.0)), "k_hat": ("trial", np.full(12, 0.1))})
    modes = modes_of(bound, 1, 0)
    assert alone(refit(bound, modes, loo, 4000, 0)).identical(loo)
    wrong = data["correct"].values == 0
    loo["k_hat"][wrong] = 0.9
    loo["elpd"][~wrong] = np.nan
    found = alone(refit(bound, modes, loo, 20_000, 0))
    whole = evidence(10, 2)
    exact = np.where(wrong, np.log(whole / evidence(10, 1)), np.log(whole / evidence(9, 2)))
    np.testing.assert_allclose(found["elpd"], exact, atol=4 / np.sqrt(20_000))
    assert (found["k_hat"] < 0.7).all()
