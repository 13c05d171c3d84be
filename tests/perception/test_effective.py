"""The effective weighting: Duncan's identity, simulation, and where survival is a weighting."""

import math

import numpy as np
import pytest
import torch

import neurodiff as nd
from neurodiff.perception import bounds
from neurodiff.perception.effective import doubt, effective_weighting, survivors
from neurodiff.perception.first_passage import density, survival


def grid(n, end):
    return end / n * torch.arange(1, n + 1)


def mmse(snr):
    z, w = np.polynomial.hermite_e.hermegauss(101)
    x = snr[:, None] + snr.sqrt()[:, None] * torch.as_tensor(z)
    return (torch.cosh(x).pow(-2) * torch.as_tensor(w / w.sum())).sum(-1)


def test_it_is_reached_from_first_passage():
    assert nd.perception.first_passage.effective_weighting is effective_weighting


def test_survivors_of_one_are_survival():
    time = grid(200, 2.0)
    free, left = survivors(lambda x, s: torch.ones_like(x), 0.9, time, 0.2)
    assert torch.allclose(free, torch.ones_like(free))
    off = (left - survival(density(0.0, 0.9, time, 0.2), time)).abs()
    # both sum over the rise of the density, in a few steps, to the fourth order
    assert off.max() < 5e-5
    assert off[40:].max() < 1e-6


def test_a_driftless_path_that_stops_stays_where_it_was_on_average():
    # X_{min(T, s)} is a martingale: what goes on and what was absorbed sum to the start
    time, a, x0 = grid(200, 2.0), 0.9, 0.3
    _, left = survivors(lambda x, s: x, a, time, x0)
    g = density(0.0, a, time, x0)
    absorbed = a * (survival(g.flip(-1) * torch.tensor([0.0, 1.0]), time) - 1)
    absorbed = absorbed - a * (survival(g * torch.tensor([0.0, 1.0]), time) - 1)
    off = (left - absorbed - x0).abs()
    assert off.max() < 5e-5
    assert off[40:].max() < 1e-6


@pytest.mark.parametrize(("v", "a"), [(1.3, 0.9), (2.0, 0.6)])
def test_what_is_taken_in_is_what_the_answer_tells(v, a):
    time = grid(600, 9.0)
    w = effective_weighting(torch.tensor([v]), a, time)[0]
    taken = 0.5 * (v * v * w * mmse(v * v * time)).sum() * time[0]
    taken += 0.25 * v * v * time[0]  # the first half cell, where w and the error are 1
    p = 1 / (1 + math.exp(-2 * v * a))
    told = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert taken.item() == pytest.approx(told, abs=2e-4)


def test_the_numbers_of_a_known_case():
    time = grid(100, 1.0)
    w = effective_weighting(torch.tensor([1.3]), 0.9, time)[0]
    left = survival(density(1.3, 0.9, time), time)
    assert np.round([w[49].item(), w[99].item()], 2).tolist() == [0.69, 0.38]
    assert np.round([left[49].item(), left[99].item()], 2).tolist() == [0.44, 0.14]


@pytest.mark.parametrize("prior", [None, [0.3, 0.7]])
def test_collapsing_bounds_match_simulated_paths(prior):
    drift, n, dt = torch.tensor([0.8, 2.0]), 60_000, 2e-3
    share = None if prior is None else torch.tensor(prior)
    line = bounds.Exponential(1.0, 0.8).double()
    time = grid(80, 0.8)
    got = effective_weighting(drift, lambda t: tuple(x.detach() for x in line(t)), time, 0.0, share)
    rng = np.random.default_rng(0)
    for k, v in enumerate(drift.tolist()):
        x, alive = np.zeros(n), np.ones(n, bool)
        for i in range(round(0.8 / dt)):
            t = (i + 1) * dt
            new = x + v * dt + math.sqrt(dt) * rng.standard_normal(n)
            old_b, b = math.exp(-(t - dt) / 0.8), math.exp(-t / 0.8)
            for s in (1, -1):
                near, far = old_b - s * x, b - s * new
                p = np.where(far <= 0, 1.0, np.exp(-2 * near * np.maximum(far, 0) / dt))
                alive &= rng.random(n) >= p
            x = new
            j = round(t / 0.01) - 1
            if abs(t - 0.01 * (j + 1)) < 1e-9 and j in (19, 39, 59, 79):
                # under +v; by symmetry the same under -v
                if share is None:
                    m = np.tanh(v * x)
                else:
                    log = doubt(torch.as_tensor(x), torch.tensor(t), drift, share)
                    m = np.sign(x) * (1 - log.exp().numpy())
                miss = (1 - m) ** 2
                wanted = (miss * alive).mean() / miss.mean()
                se = (miss * (alive - wanted)).std() / miss.mean() / math.sqrt(n)
                assert abs(got[k, j].item() - wanted) < 4 * se + 2e-3


def test_it_is_at_least_survival_and_falls():
    time, drift = grid(150, 1.5), torch.tensor([0.5, 1.0, 3.0])
    bound = bounds.Weibull(1.0, 0.6, 3.0, 0.3).double()
    function = lambda t: tuple(x.detach() for x in bound(t))  # noqa: E731
    w = effective_weighting(drift, function, time)
    left = survival(density(drift, function, time), time)
    assert (w >= left - 1e-4).all()
    assert w.diff(dim=-1).max() < 1e-4
    assert w[:, 0] == pytest.approx(1.0, abs=1e-6)


def test_a_mixture_of_one_strength_is_knowing_it():
    time, drift = grid(60, 1.0), torch.tensor([1.5])
    known = effective_weighting(drift, 0.8, time)
    same = effective_weighting(drift, 0.8, time, prior=torch.ones(1))
    assert (known - same).abs().max() < 1e-10


def test_nothing_can_be_known_at_strength_zero():
    with pytest.raises(ValueError, match="wanted above 0: leave out strength 0"):
        effective_weighting(torch.tensor([0.0, 1.0]), 0.8, grid(10, 1.0))


@pytest.mark.parametrize("v", [0.7, 6.0, 20.0])
def test_evidence_of_any_strength_is_summed(v):
    """Against the killed density as a series of sines, and sums a hundred times as fine."""
    a, time = 0.9, grid(120, 2.4)
    got = effective_weighting(torch.tensor([v]), a, time)[0]
    x = torch.linspace(-a, a, 20_001)
    z = torch.linspace(-9.0, 9.0, 18_001)
    n = torch.arange(1.0, 60.0)[:, None] * math.pi / (2 * a)
    for i in (19, 59, 119):
        s = time[i]
        there = (torch.sin(n * (x + a)) * torch.sin(n * a) * torch.exp(-0.5 * n * n * s)).sum(0) / a
        left = torch.trapezoid(there / torch.cosh(v * x), x)
        normal = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        free = torch.trapezoid(normal / torch.cosh(v * s.sqrt() * z), z)
        assert got[i] == pytest.approx((left / free).item(), abs=2e-6)


def test_strong_evidence_among_weak_is_summed():
    """Against the killed density as a series of sines, in logs over a wide grid of evidence."""
    a, time, drift = 2.0, grid(50, 1.0), torch.tensor([0.64, 2.56, 10.24, 30.0])
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4])
    got = effective_weighting(drift, a, time, prior=prior)

    def log_miss(y, s):
        """Over both directions, from the posterior of all eight: log(1 - M) and log(1 + M)."""
        odds = (
            prior.log()
            - 0.5 * drift**2 * s
            + torch.stack([drift, -drift])[..., None, :] * (y[:, None])
        )
        log = (odds.logsumexp(-1) - odds.logsumexp((0, 2))).flip(0) + math.log(2.0)  # of 1 ∓ M
        told = torch.stack([drift, -drift])[..., None] * y - 0.5 * (drift**2 * s)[:, None]
        return (2 * log[:, None] + told).logsumexp(0)

    wide, x = torch.linspace(-50.0, 50.0, 100_001), torch.linspace(-a, a, 20_001)
    n = torch.arange(1.0, 60.0)[:, None] * math.pi / (2 * a)
    for i in (19, 39, 49):
        s = time[i]
        there = (torch.sin(n * (x + a)) * torch.sin(n * a) * torch.exp(-0.5 * n * n * s)).sum(0) / a
        left = torch.trapezoid(log_miss(x, s).exp() * there, x)
        normal = -0.5 * (wide * wide / s + math.log(2 * math.pi) + s.log())
        free = torch.trapezoid((log_miss(wide, s) + normal).exp(), wide)
        assert (got[:, i] - left / free).abs().max() < 1e-4
