"""Front ends against loops, and their limits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, jacrev, vmap

from neurodiff.perception.frontend import (
    InternalNoise,
    Nominal,
    PowerFilter,
    Sensitivity,
    middle,
    power_lags,
)

INF = torch.inf
LEVELS = torch.tensor([-INF, -40.0, -2.0, 0.3, 5.0, 60.0, INF])


@settings(deadline=None)
@given(
    bins=st.integers(1, 6),
    per_bin=st.integers(1, 4),
    taps=st.integers(1, 5),
    each=st.integers(1, 3),
)
def test_lagged_power_is_that_of_a_loop(bins, per_bin, taps, each):
    power = torch.arange(1.0, bins * per_bin + 1) ** 2
    got = power_lags(power, bins, taps, each)
    for i in range(bins):
        for k in range(taps):
            end = (i + 1) * per_bin - k * each
            window = [power[max(s, 0)] for s in range(end - each, end)]
            torch.testing.assert_close(got[i, k], sum(window) / each)


def stimulus(n=8):
    return {"power": torch.rand(4 * n) + 0.1, "logsnr": torch.zeros(n)}


@pytest.mark.parametrize("signed", [True, False])
def test_taps_sum_to_one_so_the_gauge_is_left_to_the_law(signed):
    front = PowerFilter(taps=5, per_tap=2, signed=signed)
    with torch.no_grad():
        front.taps.copy_(torch.randn(5))
    torch.testing.assert_close(front.weights().sum(), torch.tensor(1.0))
    steady = {"power": torch.full((12,), 3.2e-9), "logsnr": torch.zeros(3)}
    want = torch.log(torch.tensor(8.0)).expand(3)
    torch.testing.assert_close(front(steady).detach(), want, rtol=1e-8, atol=0)


def test_power_is_averaged_before_the_log():
    trials = stimulus()
    front = PowerFilter(taps=1, per_tap=4, signed=False)
    mean = trials["power"].reshape(-1, 4).mean(1)
    torch.testing.assert_close(front(trials).detach(), torch.log(mean / 4e-10))


def test_unsigned_taps_average_power():
    trials, front = stimulus(), PowerFilter(taps=3, per_tap=2)
    with torch.no_grad():
        front.taps.copy_(torch.tensor([0.7, -0.4, 0.1]))
    share = np.exp([0.7, -0.4, 0.1]) / np.exp([0.7, -0.4, 0.1]).sum()
    lags = power_lags(trials["power"], 8, 3, 2).numpy()
    want = np.log(lags @ share / 4e-10)
    np.testing.assert_allclose(front(trials).detach().numpy(), want, atol=1e-12)


def test_signed_filter_follows_a_loop_over_bins_and_taps():
    trials, front = stimulus(), PowerFilter(taps=3, per_tap=2, signed=True)
    with torch.no_grad():
        front.taps.copy_(torch.tensor([0.7, -0.4, 0.1]))
    mean = trials["power"].mean()
    lags = power_lags(trials["power"], 8, 3, 2) / mean
    a = [0.7 - 0.4 / 3 + 1 / 3, -0.4 - 0.4 / 3 + 1 / 3, 0.1 - 0.4 / 3 + 1 / 3]
    for i, got in enumerate(front(trials).tolist()):
        filtered = sum(a[k] * lags[i, k] for k in range(3))
        want = torch.log(torch.log1p(torch.exp(20 * filtered)) / 20 * mean / 4e-10)
        assert abs(got - want) < 1e-10  # torch takes softplus(x) = x above 20: e^-20 / 20


def test_prepared_lags_change_nothing():
    trials, front = stimulus(), PowerFilter(taps=4, per_tap=3)
    torch.testing.assert_close(front(trials | front.prepare(trials)), front(trials), rtol=0, atol=0)


def test_filters_may_differ_between_bins_and_draws():
    trials, front = stimulus(), PowerFilter(taps=3, per_tap=2)
    taps = torch.randn(8, 3)
    each = functional_call(front, {"taps": taps}, (trials,))
    many = vmap(lambda t: functional_call(front, {"taps": t}, (trials,)))(taps)
    torch.testing.assert_close(each, many.diagonal())


def test_internal_noise_adds_variances_and_keeps_the_limits():
    front = InternalNoise(logsnr_int=1.5)
    got = front({"logsnr": LEVELS}).detach()
    want = -torch.log(torch.exp(-LEVELS) + torch.exp(torch.tensor(-1.5)))
    torch.testing.assert_close(got, want)
    assert got[0] == -INF
    assert got[-1] == 1.5
    negligible = functional_call(front, {"logsnr_int": torch.tensor(500.0)}, ({"logsnr": LEVELS},))
    torch.testing.assert_close(negligible[:-1], LEVELS[:-1])


@pytest.mark.parametrize("front", [InternalNoise(), Sensitivity()])
def test_second_derivatives_are_numbers_at_every_level(front):
    name, value = next(iter(front.named_parameters()))

    def seen(v):
        out = functional_call(front, {name: v}, ({"logsnr": LEVELS},))
        return torch.where(out.isfinite(), out, 0.0).sum()

    for derivative in (jacrev(seen), jacrev(jacrev(seen))):
        assert bool(derivative(value.detach()).isfinite())


def test_nominal_and_sensitivity_keep_what_is_infinite():
    assert bool((Nominal()({"logsnr": LEVELS}) == LEVELS).all())
    shifted = functional_call(Sensitivity(), {"shift": torch.tensor(2.0)}, ({"logsnr": LEVELS},))
    assert bool((shifted == LEVELS + 2).all())


def test_priors_of_places_follow_the_tested_logsnr():
    trials = {"logsnr": torch.tensor([-INF, 17.0, 18.0, 19.0, INF])}
    assert middle(Nominal(), trials) == 18.0
    for front in (InternalNoise(), Sensitivity()):
        assert middle(front, trials) == 18.0  # what was shown, whatever the observer loses
    assert InternalNoise().centre(trials)["logsnr_int"].mean == 18.0
    assert Sensitivity().centre(trials)["shift"].mean == -18.0
    with pytest.raises(ValueError, match="none of the tested logsnr is finite"):
        middle(Nominal(), {"logsnr": torch.tensor([INF])})
