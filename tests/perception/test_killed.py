"""Survivors against the series, closed forms, martingales and simulation."""

import math

import numpy as np
import pytest
import torch

from neurodiff.perception import bounds
from neurodiff.perception.killed import follow, killed, log_odds


def grid(n, end):
    return end / n * torch.arange(1, n + 1)


def weibull():
    return bounds.Weibull(1.1, 0.6, 3.0, 0.4).double().requires_grad_(False)


def constant(height=0.9):
    return bounds.Constant(height).double().requires_grad_(False)


def survivors(found):
    return found.mass.sum(-1) * found.scale[..., 0].exp()


def series(t, mu, a):
    """P(T > t) between ±a from 0 (formulas of Navarro and Fuss, long times)."""
    k, A = np.arange(1, 400)[:, None], 2 * a
    rate = k * math.pi / A
    whole = rate * (np.exp(-mu * a) - (-1.0) ** k * np.exp(mu * a)) / (mu**2 + rate**2)
    each = np.sin(k * math.pi / 2) * whole * np.exp(-(rate**2) * t / 2)
    return np.exp(-(mu**2) * t / 2) * 2 / A * each.sum(0)


@pytest.mark.parametrize("mu", [0.0, 1.3, -4.0])
def test_constant_bounds_are_exact_at_any_step(mu):
    time = grid(100, 2.0)
    got = survivors(killed(torch.tensor([mu]), constant(), time))[0].numpy()
    wanted = series(time.numpy(), mu, 0.9)
    np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-13)
    # and as the room narrows to 2 sqrt(dt): images are three, and both bounds may be met in a step
    got = survivors(killed(torch.tensor([mu]), constant(0.28), time[:20]))[0].numpy()
    np.testing.assert_allclose(got, series(time[:20].numpy(), mu, 0.28), rtol=2e-4, atol=1e-13)


def test_fate_between_constant_bounds_is_the_closed_form():
    v, b = torch.tensor([0.4, 3.0]), 0.9
    found = killed(v, constant(), grid(500, 10.0))
    y = found.position[0]
    wanted = -torch.expm1(-2 * v[:, None] * (y + b)) / -torch.expm1(-4 * v[:, None] * b)
    got = found.fate[:, 0]
    torch.testing.assert_close(got[..., 0], wanted, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got.sum(-1), torch.ones_like(wanted), rtol=0, atol=1e-6)


def test_straight_bounds_are_exact_at_any_step():
    def cone(time):
        return 1.2 - 0.4 * time, -0.4 + 0 * time

    v = torch.tensor([0.0, 2.0])
    coarse, fine = (killed(v, cone, grid(n, 1.5), 0.3, k) for n, k in ((50, 32), (300, 64)))
    for one, other in zip(
        (survivors(coarse), coarse.mean(coarse.position)),
        (survivors(fine)[:, 5::6], fine.mean(fine.position)[:, 5::6]),
        strict=True,
    ):
        torch.testing.assert_close(one[:, :-1], other[:, :-1], rtol=1e-4, atol=1e-5)


def test_curved_bounds_converge_as_the_square_of_the_step():
    v = torch.tensor([0.5])
    found = [
        killed(v, weibull(), grid(n, 1.2), 0.0, k) for n, k in ((60, 32), (120, 48), (480, 80))
    ]
    coarse, half, fine = (
        f.mean(f.position)[0, n // 60 - 1 :: n // 60][:-1]
        for f, n in zip(found, (60, 120, 480), strict=True)
    )
    error = (coarse - fine).abs().max()
    assert error < 2e-3
    assert (half - fine).abs().max() < 0.35 * error


def test_choices_add_up_to_those_who_answer():
    time = grid(100, 2.0)
    found = killed(torch.tensor([0.0, 2.0]), weibull(), time, 0.1)
    weight = found.log_probability().exp()
    left = survivors(found)
    # who has answered by the last time, and who has not
    torch.testing.assert_close(weight.sum(-1), left - left[:, -1:], rtol=1e-5, atol=1e-6)
    value = torch.tanh(found.position)
    whole = (found.mass * value * found.fate.sum(-1)).sum(-1) / (
        found.mass * found.fate.sum(-1)
    ).sum(-1)
    share = weight / weight.sum(-1, keepdim=True)
    got = (found.mean(value) * share).sum(-1)
    torch.testing.assert_close(got[:, :-1], whole[:, :-1])


def test_belief_is_a_martingale_up_to_the_bound():
    v, b, x0 = 1.3, 0.9, 0.2
    found = killed(torch.tensor([v, -v]), constant(b), grid(600, 12.0), x0)
    first = math.tanh(v * x0)  # the start says what was believed at first
    prior = 0.5 * torch.tensor([1 + first, 1 - first])
    going = (found.mass * torch.tanh(v * found.position)).sum(-1) * found.scale[..., 0].exp()
    one = torch.exp(-2 * torch.tensor([v, -v]) * (x0 + b))
    upper = (1 - one) / (1 - torch.exp(-4 * torch.tensor([v, -v]) * b))
    ends = torch.stack([upper, 1 - upper], -1)[:, None] - found.log_probability().exp()
    stopped = math.tanh(v * b) * (ends[..., 0] - ends[..., 1])
    got = prior @ (going + stopped)
    torch.testing.assert_close(got, torch.full_like(got, first), rtol=0, atol=1e-6)


def test_error_of_those_who_go_on_exceeds_survival():
    mu = 1.3
    found = killed(torch.tensor([mu]), constant(), grid(50, 1.0))
    error = (found.mass[0] / torch.cosh(mu * found.position) ** 2).sum(-1)
    error = error * found.scale[0, :, 0].exp()
    z = torch.linspace(-9, 9, 4001)
    phi = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    for s, survive, weight in ((0.5, 0.44, 0.69), (1.0, 0.14, 0.38)):
        i = round(s / 0.02) - 1
        mmse = (phi / torch.cosh(mu * (mu * s + math.sqrt(s) * z)) ** 2).sum()
        assert survivors(found)[0, i] == pytest.approx(survive, abs=5e-3)
        assert error[i] / mmse == pytest.approx(weight, abs=5e-3)


def simulate(drift, bound, end, paths, seed, dt=2e-3):
    """Euler paths with the chance of a crossing between steps; positions kept every 0.1 s."""
    rng = np.random.default_rng(seed)
    b = bound(torch.cat([torch.tensor([1e-9]), grid(round(end / dt), end)]))[0].numpy()
    x, side, kept = np.zeros(paths), np.zeros(paths), []
    for i in range(1, len(b)):
        moved = x + drift * dt + math.sqrt(dt) * rng.standard_normal(paths)
        for s in (1.0, -1.0):
            near, far = b[i - 1] - s * x, b[i] - s * moved
            hit = (far <= 0) | (rng.random(paths) < np.exp(-2 * near * np.maximum(far, 0) / dt))
            side = np.where((side == 0) & hit, s, side)
        x = moved
        if i % round(0.1 / dt) == 0:
            kept.append(np.where(side == 0, x, np.nan))
    return np.array(kept), side


@pytest.mark.parametrize("drift", [0.0, 1.5])
def test_conditional_means_match_simulation(drift):
    kept, side = simulate(drift, weibull(), 1.5, 40_000, 1)
    found = killed(torch.tensor([drift]), weibull(), grid(150, 1.5), nodes=48)
    got = found.mean(torch.tanh(found.position))[0, 9::10].numpy()
    for j, s in enumerate((1.0, -1.0)):
        for i in range(8):
            value = np.tanh(kept[i][(side == s) & np.isfinite(kept[i])])
            error = value.std() / math.sqrt(len(value))
            assert abs(value.mean() - got[i, j]) < 4 * error


def test_log_odds_are_bayes_rule():
    v, prior = torch.tensor([0.0, 1.0, 4.0]), torch.tensor([0.2, 0.5, 0.3])
    y, t = 0.7, 0.4

    def likelihood(sign):
        return sum(
            p * math.exp(-((y - sign * s * t) ** 2) / (2 * t))
            for p, s in zip(prior.tolist(), v.tolist(), strict=True)
        )

    got = log_odds(torch.tensor([y]), torch.tensor([t]), v, prior)
    assert got.item() == pytest.approx(math.log(likelihood(1) / likelihood(-1)))
    # no overflow, and no NaN in second derivatives, far out
    far = torch.tensor([40.0], requires_grad=True)
    (slope,) = torch.autograd.grad(
        log_odds(far, torch.tensor([0.1]), 10 * v, prior).sum(), far, create_graph=True
    )
    assert torch.isfinite(torch.autograd.grad(slope.sum(), far)[0]).all()


def test_gradients_match_differences():
    time, v = grid(50, 1.0), torch.tensor([0.0, 1.0])

    def drive(p):
        height = p[0] * torch.exp(-((torch.cat([0 * time[:1], time]) / p[1]) ** 2))
        found = follow(p[2] * v, height, time, 0.0, 32)
        return found.mean(found.position)[1, 20, 0] + found.log_probability()[1, 20, 1]

    at = torch.tensor([1.0, 0.9, 2.0])
    assert torch.autograd.gradcheck(drive, at.requires_grad_(True))
    second = torch.func.jacrev(torch.func.jacrev(drive))(at.detach())
    assert torch.isfinite(second).all()
    torch.testing.assert_close(second, second.mT)
    both = torch.vmap(drive)(torch.stack([at, 1.1 * at]).detach())
    torch.testing.assert_close(both[0], drive(at).detach())


def test_what_cannot_be_resolved_is_said():
    with pytest.raises(ValueError, match=r"got 8 nodes .* at least 20"):
        killed(torch.zeros(1), constant(), grid(100, 2.0), nodes=8)
    with pytest.raises(ValueError, match="falls to 0, wanted it above 0"):
        killed(torch.zeros(1), bounds.Linear(0.9, 1.0).double(), grid(100, 2.0))
