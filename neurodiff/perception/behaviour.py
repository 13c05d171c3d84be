r"""A choice and its time read as a short behaviour: at each step wait, or give an answer.

.. math::

    π(s | k) = \frac{G_s(k)}{S(k - 1)}, \qquad π(\text{wait} | k) = \frac{S(k)}{S(k - 1)}, \qquad
    S(k) = 1 - \sum_{j \le k} \sum_s G_s(j)

    \underbrace{π(s | n) \prod_{k < n} π(\text{wait} | k)}_{\text{hazard × survival}} = G_s(n)
    = \int_{(n-1)Δ}^{nΔ} g_s(t)\, dt = g_s(t_n)\, Δ + O(Δ^3)

:math:`g_s` is the density of answering s at t, t_n the middle of step n. The product telescopes, so
a trial's likelihood as a behaviour *is* the probability of its step, and the log of its density
differs from that by log Δ and by the width of a step. It holds for whatever gave the density: every
law of choices and times has this policy, which knows the time and the stimulus and nothing of the
evidence. What it says to do is the average over those paths that have not stopped yet; an observer
with a bound, who does look at the evidence, has the same one.

Of two policies, the sum of the log ratios of their steps is the log ratio of their densities: the
likelihood ratio of policy gradients, of a whole trial.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

WAIT = 2  # the action beside the answers 0 (upper) and 1 (lower)


def policy(passage: Float[Tensor, "*condition step answer"]) -> Float[Tensor, "*condition step 3"]:
    """Log π of answering 0, answering 1 and waiting, at each step that is reached.

    Args:
        passage: G_s(k), the probabilities of each answer within each step; what they lack to 1 is
            the probability of no answer within all of them.

    Returns:
        Log probabilities; where no trial is left, those of waiting.

    Raises:
        ValueError: probabilities below 0, not numbers, or of more than 1 in all.

    >>> policy(torch.tensor([[0.25, 0.25], [0.25, 0.0]])).exp()
    tensor([[0.2500, 0.2500, 0.5000],
            [0.5000, 0.0000, 0.5000]])
    """
    if passage.shape[-1:] != (2,):
        raise ValueError(f"got shape {tuple(passage.shape)}, wanted (..., step, 2): two answers")
    whole = passage.sum((-1, -2))
    bad = ~(passage >= 0).all(-1).all(-1) | (whole > 1 + 1e-6)
    if bad.any():
        raise ValueError(
            f"got probabilities of answers from {passage.min():.3g}, in all up to "
            f"{whole.max():.6g}, in {int(bad.sum())} of {bad.numel()} conditions: wanted each at "
            "least 0 and at most 1 in all; a density is to be integrated over each step"
        )
    # summed from the end, so that a small rest is not a difference of large numbers
    never = (1 - whole).clamp_min(0.0)[..., None]
    later = torch.cat([passage.sum(-1), never], -1).flip(-1).cumsum(-1).flip(-1)
    before, after = later[..., :-1, None], later[..., 1:, None]
    reached = before > 0
    share = torch.cat([passage, after], -1) / torch.where(reached, before, 1.0)
    waits = share.new_tensor([0.0, 0.0, 1.0])
    return torch.where(reached, share, waits).log()


def log_prob(
    log_policy: Float[Tensor, "*#trial step 3"],
    step: Int[Tensor, "*#trial"],
    action: Int[Tensor, "*#trial"],
) -> Float[Tensor, "*trial"]:
    r""":math:`\sum_{k < n} \log π(\text{wait}|k) + \log π(a|n)`, of each trial.

    Args:
        log_policy: of :func:`policy` or another maker of log probabilities: of each trial, or of
            all; what is of one is of all.
        step: n, from 0, at which the behaviour ends.
        action: what is done there: 0, 1, or ``WAIT`` (2) where all ends without an answer.

    Raises:
        ValueError: a step that there is not.

    >>> log = policy(torch.tensor([[0.25, 0.25], [0.25, 0.0]]))
    >>> log_prob(log, torch.tensor(1), torch.tensor(0)).exp()    # G_0(1)
    tensor(0.2500)
    """
    steps = log_policy.shape[-2]
    if bool((wrong := (step < 0) | (step >= steps)).any()):
        raise ValueError(f"got the step {int(step[wrong][0])}, wanted one from 0 to {steps - 1}")
    trial = torch.broadcast_shapes(log_policy.shape[:-2], step.shape, action.shape)
    log_policy = log_policy.expand(*trial, steps, 3)
    step, action = step.expand(trial), action.expand(trial)
    waited = torch.arange(steps, device=step.device) < step[..., None]
    before = torch.where(waited, log_policy[..., WAIT], 0.0).sum(-1)
    last = log_policy.gather(-2, step[..., None, None].expand(*trial, 1, 3))[..., 0, :]
    return before + last.gather(-1, action[..., None])[..., 0]


def unroll(
    signed_rt: Float[Tensor, " trial"], width: float, steps: int
) -> tuple[Int[Tensor, " trial"], Int[Tensor, " trial"]]:
    """Step and action with which each trial ends.

    Args:
        signed_rt: of :func:`~neurodiff.data.choice_rt.choice_rt`, seconds: + for answer 0 (upper),
            inf for none within all steps.
        width: Δ, seconds.
        steps: how many there are.

    Raises:
        ValueError: a time after the last step, or not a number.

    >>> unroll(torch.tensor([0.12, -0.31, torch.inf]), 0.1, 4)
    (tensor([1, 3, 3]), tensor([0, 1, 2]))
    """
    none = torch.isposinf(signed_rt)
    # what ends a step belongs to it, and .14 s / .02 s is 7.000000000000001
    step = (signed_rt.abs() / width - 1e-5).ceil()
    late = ~(none | (step <= steps))
    if late.any():
        raise ValueError(
            f"got a time of {signed_rt[late][0]:g} s ({int(late.sum())} such), wanted it within "
            f"the {steps} steps of {width:g} s: take more steps, or inf for no answer within them"
        )
    step = torch.where(none, steps, step).long().clamp_min(1) - 1
    return step, torch.where(none, WAIT, (signed_rt < 0).long())
