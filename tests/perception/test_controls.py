"""Controls against scipy, Monte Carlo and brute force."""

import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from contracts import LawContract
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import interpolate, special, stats
from torch.func import functional_call

import neurodiff as nd
from neurodiff.perception.beta_binomial import OrderedBetaBinomial, by_level, cell_of
from neurodiff.perception.controls import (
    BetaBinomial,
    Constant,
    FreeLink,
    NoiseFloor,
    permute,
)
from neurodiff.perception.frontend import InternalNoise
from neurodiff.perception.observers import Choice, Counts

INF = torch.inf


def learned(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


# -- constant


def test_a_constant_rate_has_one_parameter():
    model = Constant(Counts(history=0))
    assert learned(model) == {"observer.base"}
    trials = {"logsnr": torch.tensor([-INF, 0.0, 9.0])}
    rate = functional_call(model, {"observer.base": torch.tensor(80.0)}, (trials,)).rate
    assert rate.tolist() == [0.08] * 3


def test_history_only_is_counts_without_a_drive():
    model, count = Constant(Counts(history=4)), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    assert learned(model) == {"observer.base", "observer.history"}
    assert model.requires == ("logsnr", "count")
    trials = {"logsnr": torch.randn(5), "count": count}
    want = Counts(history=4)(torch.zeros(5), trials).rate
    torch.testing.assert_close(model(trials).rate, want)


@pytest.mark.parametrize(("observer", "low"), [(Choice(choices=4), 0.25), (Choice(), 0.0)])
def test_one_probability_of_being_correct(observer, low):
    model = Constant(observer)
    assert learned(model) == {"drive"}
    trials = {"logsnr": torch.tensor([-INF, 3.0])}
    for drive in (0.0, 0.3, 1.0):
        p = functional_call(model, {"drive": torch.tensor(drive)}, (trials,)).probs
        torch.testing.assert_close(p, torch.full((2,), low + (1 - low) * drive))


def test_the_observer_of_the_other_models_is_left_alone():
    observer = Choice(choices=4)
    before = {k: v.clone() for k, v in observer.state_dict().items()}
    Constant(observer)
    assert observer.ceiling.requires_grad
    assert all(bool((v == before[k]).all()) for k, v in observer.state_dict().items())
    with pytest.raises(TypeError, match="got Linear, wanted a Choice or a Counts"):
        Constant(torch.nn.Linear(1, 1))


# -- free monotone link


class TestFreeLink(LawContract):
    def make(self):
        law = FreeLink([-3.0, -1.0, 0.5, 0.9, 4.0])
        with torch.no_grad():
            law.z.copy_(torch.tensor([0.4, -1.0, 0.3, 0.9, -0.6]))
            law.smoothness.fill_(0.7)
        return law


def test_i_splines_are_integrated_m_splines():
    knots = np.array([-2.0, -0.5, 0.1, 3.0])
    law, k = FreeLink(knots), len(knots) + 1
    ends = np.r_[[knots[0]] * 2, knots, [knots[-1]] * 2]
    x = np.linspace(-2.5, 3.5, 61)
    for i in range(k):
        m = interpolate.BSpline(ends, np.eye(k)[i] * 3 / (ends[i + 3] - ends[i]), 2)
        area = m.antiderivative()(np.clip(x, -2.0, 3.0))
        logits = torch.full((k,), -800.0)
        logits[i] = 0.0
        p = functional_call(law, {"z": logits.diff(), "smoothness": torch.tensor(1.0)}, ())
        np.testing.assert_allclose(p.cdf(torch.as_tensor(x)).numpy(), area, atol=1e-13)


def test_the_free_link_bends_to_any_monotone_curve():
    x = torch.linspace(-4.0, 6.0, 400)
    law = FreeLink.on(x, basis=14)
    target = 0.4 * torch.sigmoid((x + 2) / 0.5) + 0.6 * torch.sigmoid((x - 3) / 0.6)
    optimizer = torch.optim.LBFGS(law.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (law().cdf(x) - target).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert (law().cdf(x) - target).abs().max() < 0.02


def test_steps_of_no_size_leave_equal_masses():
    law = FreeLink([0.0, 1.0, 2.0])
    values = {"smoothness": torch.tensor(1e-9), "z": torch.randn(3)}
    torch.testing.assert_close(functional_call(law, values, ()).mass, torch.full((4,), 0.25))


def test_knots_lie_at_quantiles_and_reach_beyond():
    x = torch.cat([torch.tensor([-INF, INF]), torch.linspace(-3.0, 5.0, 801)])
    knots = FreeLink.on(x).knots
    assert len(knots) + 1 == 10
    torch.testing.assert_close(
        knots, torch.cat([torch.tensor([-5.0]), torch.arange(1.0, 8) - 3, torch.tensor([7.0])])
    )
    few = FreeLink.on(torch.tensor([-1.0, -1.0, 2.0, 2.0]))
    assert few.knots[0] == -3.0
    assert few.knots[-1] == 4.0
    assert bool((few.knots.diff() > 0).all())
    assert len(FreeLink.on(np.array([1.0])).knots) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FreeLink([0.0, 0.0]), "two finite, increasing"),
        (lambda: FreeLink.on(torch.tensor([INF])), "none of the tested logsnr is finite"),
        (lambda: FreeLink.on(torch.zeros(3), basis=3), "at least 4 basis functions"),
    ],
)
def test_knots_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- noise floor


def floor(m, trials, power=1.0, shift=0.0, noise=50.0, lapse=0.0, ceiling=1.0, **kwargs):
    values = {
        "power": torch.tensor(power),
        "shift": torch.tensor(shift),
        "observer.lapse": torch.tensor(lapse),
        "observer.ceiling": torch.tensor(ceiling),
    }
    model = NoiseFloor(m, **kwargs)
    if model.noise is not None:
        values["noise.logsnr_int"] = torch.tensor(noise)
    return functional_call(model, values, (trials,)).probs


def test_the_noise_floor_agrees_with_an_observer_who_is_noisy():
    m, n, power, shift, noise = 4, 200_000, 1.6, 0.3, 1.2
    rng = np.random.default_rng(0)
    at = np.array([-1.5, 0.5, 6.0])
    got = floor(m, {"logsnr": torch.as_tensor(at)}, power, shift, noise, lapse=0.1, ceiling=0.9)
    for logsnr, p in zip(at, got.tolist(), strict=True):
        # both noises add to a unit signal; the power law acts on the amplitude that is left
        amplitude = (np.exp(-logsnr) + np.exp(-noise)) ** -0.5
        seen = rng.normal(size=(n, m))
        seen[:, 0] += (amplitude * np.exp(shift / 2)) ** power
        reached = 0.25 + (0.9 - 0.25) / 0.75 * ((seen.argmax(1) == 0).mean() - 0.25)
        assert abs(p - (0.1 * 0.25 + 0.9 * reached)) < 4 * np.sqrt(0.25 / n)


def test_the_noise_floor_runs_from_guess_to_what_internal_noise_leaves():
    trials = {"logsnr": torch.tensor([-INF, INF])}
    p = floor(2, trials, noise=0.0)
    torch.testing.assert_close(
        p, torch.tensor([0.5, special.ndtr(np.sqrt(0.5))]), atol=1e-8, rtol=0
    )
    assert floor(2, trials).tolist()[0] == 0.5


def test_internal_noise_of_the_front_end_is_not_added_twice():
    trials, front = {"logsnr": torch.tensor([-1.0, 2.0, INF])}, InternalNoise(logsnr_int=0.7)
    assert NoiseFloor(3, internal=False, front_end=front).noise is None
    torch.testing.assert_close(
        floor(3, trials, internal=False, front_end=front), floor(3, trials, noise=0.7)
    )


def test_places_of_the_noise_floor_follow_the_data():
    trials = {"logsnr": torch.tensor([17.0, 18.0, 19.0])}
    centre = NoiseFloor(2).centre(trials)
    assert {k: v.mean.item() for k, v in centre.items()} == {
        "shift": -18.0,
        "noise.logsnr_int": 18.0,
    }
    given_ = NoiseFloor(2, internal=False, front_end=InternalNoise()).centre(trials)
    assert set(given_) == {"shift", "front_end.logsnr_int"}


# -- beta-binomial


@settings(deadline=None)
@given(n=st.integers(1, 60), p=st.floats(0.05, 0.95), eta=st.floats(0.02, 0.9))
def test_beta_binomial_is_scipy_for_one_order(n, p, eta):
    k = torch.arange(n + 1.0)
    q = OrderedBetaBinomial(torch.tensor(float(n)), torch.tensor(p), torch.tensor(eta))
    nu = 1 / eta**2 - 1
    scipy = stats.betabinom(n, nu * p, nu * (1 - p))
    orders = np.log(special.comb(n, k.numpy()))
    np.testing.assert_allclose(
        q.log_prob(k).numpy(), scipy.logpmf(k.numpy()) - orders, rtol=1e-8, atol=1e-9
    )
    np.testing.assert_allclose([q.mean.item(), q.variance.item()], scipy.stats("mv"), rtol=1e-9)


def test_beta_binomial_sums_to_one_over_ordered_answers():
    q = OrderedBetaBinomial(torch.tensor(6.0), torch.tensor(0.3), torch.tensor(0.4))
    counts = torch.tensor([float(sum(y)) for y in itertools.product([0, 1], repeat=6)])
    torch.testing.assert_close(q.log_prob(counts).exp().sum(), torch.tensor(1.0))


def test_without_overdispersion_a_cell_is_its_trials():
    p, y = torch.tensor(0.7), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    trials = torch.distributions.Bernoulli(p).log_prob(y).sum()
    cell = OrderedBetaBinomial(torch.tensor(5.0), p, torch.tensor(1e-9)).log_prob(y.sum())
    # lgamma near 1e8 keeps 2e9 · eps of absolute accuracy
    torch.testing.assert_close(cell, trials, rtol=0, atol=2e-6)


def test_beta_binomial_draws_have_its_moments():
    q = OrderedBetaBinomial(torch.tensor([20.0]), torch.tensor([0.4]), torch.tensor([0.3]))
    n = 40_000
    draws = q.sample(torch.Size([n]))
    assert abs(draws.mean() - q.mean) < 4 * (q.variance / n).sqrt()
    assert abs(draws.var() / q.variance - 1) < 4 * np.sqrt(2.5 / n)  # kurtosis below 3.5


def test_beta_binomial_is_the_threshold_curve_of_a_logistic_law():
    cells = {"logsnr": torch.tensor([-INF, 0.2, INF]), "n": torch.tensor([3.0, 4.0, 5.0])}
    model = BetaBinomial(choices=4)
    curve = nd.Threshold(nd.SurvivalWeighting(nd.laws.Logistic()), Choice(choices=4))
    torch.testing.assert_close(model(cells).mean, cells["n"] * curve(cells).probs)
    assert model.requires == ("logsnr", "n")
    assert set(model.centre(cells)) == {"psychometric.weighting.law.loc"}


# -- data


def trials_of(subjects=("a", "b"), n=40):
    rng = np.random.default_rng(1)
    correct = rng.integers(0, 2, n).astype(float)
    correct[rng.random(n) < 0.2] = np.nan
    return xr.Dataset(
        {
            "logsnr": ("trial", rng.choice([-np.inf, -1.0, 0.5, np.inf], n)),
            "logsnr_clipped": ("trial", rng.normal(size=n)),
            "correct": ("trial", correct),
        },
        coords={"subject": ("trial", rng.choice(subjects, n))},
        attrs={"n_choices": 2},
    )


def test_cells_count_answers_by_subject_and_level():
    data = trials_of()
    cells = by_level(data)
    assert cells["n"].sum() == np.isfinite(data["correct"]).sum()
    for i in range(cells.sizes["trial"]):
        own = (data["subject"] == cells["subject"][i]) & (data["logsnr"] == cells["logsnr"][i])
        answers = data["correct"].values[own.values]
        assert cells["n"][i] == np.isfinite(answers).sum() > 0
        assert cells["correct_count"][i] == np.nansum(answers)
    assert cells.attrs == data.attrs
    pooled = by_level(data.drop_vars("subject"))
    assert pooled.sizes["trial"] == 4
    with pytest.raises(ValueError, match="no 'correct'"):
        by_level(data.drop_vars("correct"))


def test_permuted_trials_keep_their_subject_and_lose_their_stimulus():
    data = trials_of()
    got = permute(data, seed=3)
    xr.testing.assert_identical(got, permute(data, seed=3))
    assert not got["logsnr"].equals(data["logsnr"])
    assert got["correct"].equals(data["correct"])
    pair = ["logsnr", "logsnr_clipped"]
    for subject in ("a", "b"):
        own = (data["subject"] == subject).values
        before, after = (
            sorted(zip(*(d[k].values[own] for k in pair), strict=True)) for d in (data, got)
        )
        assert before == after  # the variables of one stimulus stay together
    with pytest.raises(ValueError, match="no 'session'"):
        permute(data, seed=0, within="session")


def recording(blocks=5, bins=6, samples=4):
    n = blocks * bins
    return xr.Dataset(
        {
            "count": ("time", np.arange(n) % 2.0),
            "logsnr": ("time", np.arange(n, dtype=float)),
            "power": ("sample", np.arange(n * samples, dtype=float)),
        },
        coords={"block": ("time", np.arange(n) // bins)},
    )


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), blocks=st.integers(2, 7))
def test_no_block_meets_its_own_stimulus(seed, blocks):
    data = recording(blocks)
    got = permute(data, seed)
    assert got["count"].equals(data["count"])
    bins, samples = got["logsnr"].values.reshape(blocks, 6), got["power"].values.reshape(blocks, 24)
    source = bins[:, 0] // 6
    assert sorted(source) == list(range(blocks))
    assert bool((source != np.arange(blocks)).all())
    for i, block in enumerate(source):
        np.testing.assert_array_equal(bins[i], np.arange(6) + 6 * block)
        np.testing.assert_array_equal(samples[i], np.arange(24) + 24 * block)


def test_blocks_that_cannot_be_exchanged_are_refused():
    with pytest.raises(ValueError, match=r"'block' has 1 blocks of \[6\] bins"):
        permute(recording(1), seed=0)
    with pytest.raises(ValueError, match=r"3 blocks of \[2, 6\] bins.*whole blocks"):
        permute(recording(3).isel(time=slice(0, 14)), seed=0)
    with pytest.raises(ValueError, match="no 'block'"):
        permute(recording().drop_vars("block"), seed=0)


@given(
    total=st.integers(1, 30),
    right=st.integers(0, 30),
    p=st.floats(0.05, 0.95),
    overdispersion=st.floats(0.05, 0.9),
)
def test_one_answer_given_the_others_is_a_ratio_of_probabilities(total, right, p, overdispersion):
    k, n = float(min(right, total)), float(total)
    args = torch.tensor(p), torch.tensor(overdispersion)
    whole = OrderedBetaBinomial(torch.tensor(n), *args)
    rest = OrderedBetaBinomial(torch.tensor(n - 1), *args)
    as_right, as_wrong = whole.each_given_the_others(torch.tensor(k))
    both = whole.log_prob(torch.tensor(k))
    if k > 0:
        expected = both - rest.log_prob(torch.tensor(k - 1))
        assert as_right.item() == pytest.approx(expected.item(), abs=1e-9)
    if k < n:
        expected = both - rest.log_prob(torch.tensor(k))
        assert as_wrong.item() == pytest.approx(expected.item(), abs=1e-9)


def test_cells_hold_the_trials_that_they_count():
    rng = np.random.default_rng(0)
    data = xr.Dataset(
        {
            "logsnr": ("trial", rng.choice([-1.0, 0.0, np.inf], 60)),
            "correct": ("trial", rng.choice([0.0, 1.0, np.nan], 60)),
        },
        coords={"subject": ("trial", rng.choice(["a", "b"], 60))},
    )
    cells, cell = by_level(data), cell_of(data)
    assert ((cell < 0) == np.isnan(data["correct"].values)).all()
    for i in range(cells.sizes["trial"]):
        here = cell == i
        assert here.sum() == cells["n"][i]
        assert data["correct"].values[here].sum() == cells["correct_count"][i]
        assert (data["subject"].values[here] == cells["subject"].values[i]).all()
        assert (data["logsnr"].values[here] == cells["logsnr"].values[i]).all()
