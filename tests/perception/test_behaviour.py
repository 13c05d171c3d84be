"""A policy of waiting and answering against the density of first passage, and by counting."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from neurodiff.perception.behaviour import WAIT, log_prob, policy, unroll
from neurodiff.perception.first_passage import density, through

DRIFT, BOUND = 1.3, 0.8


def series(t, sign):
    """The small-time series of the density at +a and -a."""
    k = np.arange(-40, 41)
    z = BOUND + 4 * k * BOUND
    free = (z * np.exp(-(z**2) / (2 * t)) / math.sqrt(2 * math.pi * t**3)).sum()
    return free * math.exp(sign * DRIFT * BOUND - DRIFT * DRIFT * t / 2)


def passages(width, steps, fine=50):
    """Probabilities of each answer within each step, by the package's first passage."""
    time = width / fine * torch.arange(1, fine * steps + 1, dtype=torch.float64)
    passed = through(density(DRIFT, BOUND, time).mT, time).mT[fine - 1 :: fine]
    return passed.diff(dim=0, prepend=torch.zeros(1, 2, dtype=torch.float64))


def every(steps):
    """Every step with every answer."""
    step = torch.arange(steps).repeat_interleave(2)
    return step, torch.tensor([0, 1]).repeat(steps)


def test_a_behaviour_is_as_likely_as_its_step():
    width, steps = 0.05, 40
    step, answer = every(steps)
    found = log_prob(policy(passages(width, steps)), step, answer)
    # quadrature of the series, which shares no code with the integral equations
    wanted = [
        math.log(quad(series, width * n, width * (n + 1), args=(sign,), epsabs=1e-14)[0])
        for n, sign in zip(step.tolist(), (1 - 2 * answer).tolist(), strict=True)
        if n  # nothing arrives within the first step: 1e-5, of which errors are a part
    ]
    np.testing.assert_allclose(found[2:].numpy(), wanted, atol=1e-6)


def test_it_tends_to_the_density_times_the_width():
    apart = []
    for width in (0.1, 0.05, 0.025):
        steps = round(2.0 / width)
        step, answer = every(steps)
        late = step >= round(0.4 / width)  # the density is smooth there
        found = log_prob(policy(passages(width, steps)), step, answer)[late]
        middle = [
            math.log(series(width * (n + 0.5), 1 - 2 * a) * width)
            for n, a in zip(step[late].tolist(), answer[late].tolist(), strict=True)
        ]
        apart.append((found - torch.tensor(middle)).abs().max().item())
    orders = np.log2(np.divide(apart[:-1], apart[1:]))
    np.testing.assert_allclose(orders, 2.0, atol=0.1)


def test_steps_are_probabilities_and_count_as_trials_do():
    passage = passages(0.1, 12)
    log = policy(passage)
    torch.testing.assert_close(log.exp().sum(-1), torch.ones(12, dtype=torch.float64))
    # walk the policy: shares of walks that end at each step, with each answer
    generator = torch.Generator().manual_seed(0)
    alive, ends, walks = 100_000, [], 100_000
    for row in log.exp():
        drawn = torch.multinomial(row, alive, True, generator=generator)
        ends.append([(drawn == a).sum().item() / walks for a in (0, 1)])
        alive = int((drawn == WAIT).sum())
    se = (passage * (1 - passage) / walks).sqrt()
    assert ((torch.tensor(ends, dtype=torch.float64) - passage).abs() <= 4.5 * se + 1e-9).all()


def test_a_ratio_of_policies_is_one_of_densities():
    g = torch.rand(2, 30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one, other = 0.9 * g / g.sum((1, 2), keepdim=True)
    step, answer = every(30)
    ratio = log_prob(policy(one), step, answer) - log_prob(policy(other), step, answer)
    wanted = (one.log() - other.log()).flatten()
    torch.testing.assert_close(ratio, wanted, rtol=0, atol=1e-12)


def test_no_answer_is_to_wait_to_the_end():
    passage = torch.full((5, 2), 0.04, dtype=torch.float64)
    step, action = unroll(torch.tensor([torch.inf]), 0.2, 5)
    found = log_prob(policy(passage), step, action)
    assert found.item() == pytest.approx(math.log(0.6), abs=1e-14)


def test_where_nobody_is_left_one_waits():
    log = policy(torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    assert log[1].tolist() == [-math.inf, -math.inf, 0.0]


def test_a_step_holds_its_end():
    times = torch.tensor([0.02, -0.0201, 0.06, 0.14], dtype=torch.float64)
    step, action = unroll(times, 0.02, 7)  # 0.14 / 0.02 is above 7
    assert step.tolist() == [0, 1, 2, 6]
    assert action.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("passage", "said"),
    [
        (torch.tensor([[0.6, 0.6]]), "in all up to 1.2"),
        (torch.tensor([[-0.1, 0.2]]), "from -0.1"),
        (torch.tensor([[math.nan, 0.2]]), "in 1 of 1 conditions"),
        (torch.zeros(4, 3), "two answers"),
    ],
)
def test_what_are_no_probabilities_is_refused(passage, said):
    with pytest.raises(ValueError, match=said):
        policy(passage)


@pytest.mark.parametrize("time", [0.51, -0.51, math.nan, -math.inf])
def test_times_after_the_last_step_are_refused(time):
    with pytest.raises(ValueError, match="take more steps"):
        unroll(torch.tensor([0.2, time]), 0.1, 5)


def test_what_is_of_one_is_of_all():
    g = torch.Generator().manual_seed(0)
    log_policy = torch.randn(4, 5, 3, generator=g).log_softmax(-1)
    step, action = torch.tensor([0, 3, 4, 1]), torch.tensor([0, 1, 2, 1])
    each = [log_prob(log_policy[i], step[i], action[0]) for i in range(4)]
    assert torch.allclose(log_prob(log_policy, step, action[:1]), torch.stack(each))
    each = [log_prob(log_policy[i], step[1], action[i]) for i in range(4)]
    assert torch.allclose(log_prob(log_policy, step[1], action), torch.stack(each))
    each = [log_prob(log_policy[0], step[i], action[i]) for i in range(4)]
    assert torch.allclose(log_prob(log_policy[:1], step, action), torch.stack(each))
    with pytest.raises(ValueError, match="got the step 5, wanted one from 0 to 4"):
        log_prob(log_policy, step + 1, action)
