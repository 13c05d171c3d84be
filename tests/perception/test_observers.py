"""Observers against scipy, brute force and a loop over bins."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.func import functional_call, grad, vmap

from neurodiff.perception.observers import Choice, Counts, OneSpike, lagged


def numbers(*shape):
    return torch.as_tensor(np.random.default_rng(3).uniform(0.02, 0.98, shape))


def test_one_spike_is_a_poisson_process_seen_through_a_bin():
    rate = torch.logspace(-8, 1.5, 40)
    p = OneSpike(rate)
    none, some = stats.poisson.logpmf(0, rate.numpy()), np.log(stats.poisson.sf(0, rate.numpy()))
    torch.testing.assert_close(p.log_prob(torch.zeros(40)), torch.as_tensor(none))
    torch.testing.assert_close(p.log_prob(torch.ones(40)), torch.as_tensor(some))
    total = sum(p.log_prob(torch.full((40,), y)).exp() for y in (0.0, 1.0))
    torch.testing.assert_close(total, torch.ones(40), rtol=1e-14, atol=0)


def test_one_spike_draws_follow_the_mean():
    p = OneSpike(torch.tensor([0.05, 1.0]))
    n = 40_000
    draws = p.sample(torch.Size([n]))
    standard_error = (p.mean * (1 - p.mean) / n).sqrt()
    assert bool(((draws.mean(0) - p.mean).abs() < 4 * standard_error).all())


def test_one_spike_has_gradients_where_the_rate_vanishes():
    for y in (0.0, 1.0):
        value = torch.tensor(y)
        slope = grad(lambda r, v=value: OneSpike(r).log_prob(v))(torch.tensor(1e-290))
        assert bool(slope.isfinite())


@settings(deadline=None)
@given(
    values=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    lags=st.integers(1, 12),
)
def test_lagged_counts_are_those_of_a_loop(values, lags):
    got = lagged(torch.tensor(values, dtype=torch.float64), lags)
    for t in range(len(values)):
        for k in range(1, lags + 1):
            assert got[t, k - 1] == (values[t - k] if t >= k else 0)


def brute_mean(observer, drive, count):
    base, gain = observer.base.item(), observer.gain.item()
    h = observer.history.detach().numpy()
    means = []
    for t in range(len(drive)):
        past = sum(h[k - 1] * count[t - k] for k in range(1, len(h) + 1) if t >= k)
        means.append(observer.width * (base + gain * drive[t]) * np.exp(past))
    return np.array(means)


def mild(observer):
    """A history that leaves means to which scipy gives all digits."""
    with torch.no_grad():
        observer.history.copy_(torch.tensor([-0.5, 0.3, 0.1]))
    return observer


def recording(n=60, most=1):
    rng = np.random.default_rng(0)
    drive = rng.uniform(0, 1, n)
    return drive, rng.integers(0, most + 1, n).astype(float)


def test_counts_in_narrow_bins_follow_a_loop_over_bins():
    observer = Counts(history=4, width=2e-3)
    drive, count = recording()
    mean = brute_mean(observer, drive, count)
    want = np.where(count == 1, np.log1p(-np.exp(-mean)), -mean)
    trials = {"count": torch.as_tensor(count)}
    trials |= observer.prepare(trials)
    got = observer(torch.as_tensor(drive), trials).log_prob(trials["count"])
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-12)


def test_counts_in_wide_bins_are_scipy_poisson_and_negative_binomial():
    drive, count = recording(most=6)
    trials, y = {"count": torch.as_tensor(count)}, torch.as_tensor(count)
    plain = mild(Counts(history=3, width=0.05, most=None))
    mean = brute_mean(plain, drive, count)
    got = plain(torch.as_tensor(drive), trials).log_prob(y).detach().numpy()
    np.testing.assert_allclose(got, stats.poisson.logpmf(count, mean), rtol=1e-11)
    wide = mild(Counts(history=3, width=0.05, most=None, dispersion=0.4))
    p = wide(torch.as_tensor(drive), trials)
    scipy = stats.nbinom(1 / 0.4, 1 / (1 + 0.4 * mean))
    np.testing.assert_allclose(p.log_prob(y).detach().numpy(), scipy.logpmf(count), rtol=1e-10)
    np.testing.assert_allclose(p.mean.detach().numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(p.variance.detach().numpy(), mean + 0.4 * mean**2, rtol=1e-11)


def test_counts_take_one_history_filter_for_each_bin():
    observer = Counts(history=3)
    drive, count = (torch.as_tensor(v) for v in recording(20))
    trials = {"count": count}
    filters = torch.randn(20, 3)
    got = functional_call(observer, {"history": filters}, (drive, trials)).rate
    for t in range(20):
        own = functional_call(observer, {"history": filters[t]}, (drive, trials)).rate[t]
        torch.testing.assert_close(got[t], own)
    many = vmap(lambda h: functional_call(observer, {"history": h}, (drive, trials)).rate)(filters)
    torch.testing.assert_close(many.diagonal(), got)


def test_counts_without_history_need_no_counts():
    observer = Counts(history=0)
    assert observer.requires == ()
    assert observer.prepare({"count": torch.tensor([0.0, 1.0])}) == {}
    assert not hasattr(observer, "history")


def test_counts_refuse_two_spikes_in_a_bin_that_holds_one():
    with pytest.raises(ValueError, match="bin 1 holds 3 spikes, wanted at most 1: use narrower"):
        Counts().prepare({"count": torch.tensor([1.0, 3.0])})
    with pytest.raises(ValueError, match="most=2, wanted 1"):
        Counts(most=2)
    with pytest.raises(ValueError, match="no dispersion: use most=None"):
        Counts(dispersion=1.0)


@pytest.mark.parametrize("choices", [2, 5, 16])
def test_guesses_and_slips_leave_one_distribution_over_all_answers(choices):
    observer, drive = Choice(choices=choices), numbers(7)
    values = {"lapse": torch.tensor(0.2), "ceiling": torch.tensor(0.9)}
    got = functional_call(observer, values, (drive, {})).probs
    answers = torch.zeros(7, choices)
    reached = 1 / choices + (0.9 - 1 / choices) * drive
    answers[:, 0] = reached  # the right one; the others share what is left
    answers[:, 1:] = ((1 - reached) / (choices - 1))[:, None]
    answers = 0.2 / choices + 0.8 * answers
    torch.testing.assert_close(answers.sum(1), torch.ones(7))
    torch.testing.assert_close(got, answers[:, 0])


def test_choice_runs_from_guess_to_ceiling():
    observer = Choice(choices=4)
    assert not observer.guess.requires_grad
    values = {"lapse": torch.tensor(0.0), "ceiling": torch.tensor(0.8)}
    ends = functional_call(observer, values, (torch.tensor([0.0, 1.0]), {})).probs
    assert ends.tolist() == [0.25, 0.8]
    assert Choice(guess=0.3).guess.item() == 0.3
    assert Choice().guess.requires_grad


@pytest.mark.parametrize("make", [Choice, lambda: Choice(choices=3), Counts])
def test_values_lie_in_their_supports_and_priors_draw_from_them(make):
    observer = make()
    for name, value in observer.named_parameters():
        assert bool(observer.constraints[name].check(value.detach()).all()), name
        draw = observer.priors[name].sample()
        assert bool(observer.constraints[name].check(draw.expand(value.shape)).all()), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"choices": 1}, "choices=1, wanted at least 2"),
        ({"guess": 1.0}, r"guess rate of 1.0, wanted a probability in \[0, 1\)"),
        ({"choices": 2, "guess": 0.5}, "give one of them"),
    ],
)
def test_choice_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Choice(**arguments)
