r"""A delay after a decision that differs from trial to trial: densities, and how many are left.

.. math:: \text{rt} = T + \tau, \quad \tau \sim N(\text{delay}, \text{jitter}^2), \qquad
    p_\pm(t) = \int g_\pm(u)\, N(t - u)\,du, \qquad
    P(\text{rt} > t) = P(\tau > t) + \int P(T > u)\, N(t - u)\,du

Both are sums of positive parts, in quarters of a step.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.perception.early import FINE
from neurodiff.perception.interpolate import cubic

LogDensity = Callable[[Tensor, Tensor, Tensor], Tensor]


def jittered(
    mass: Float[Tensor, "condition node 2"],
    nodes: Float[Tensor, " node"],
    time: Float[Tensor, " time"],
    delay: Tensor,
    jitter: Tensor,
) -> Float[Tensor, "condition fine 2"]:
    """Densities of reaction time at 0, dt/4, …: decision times and the jitter convolved.

    Args:
        mass: Of decisions at each node.
        nodes: Multiples of dt/4, up to the last time.
        time: dt, 2 dt, …
        delay: () or (condition, 1).
        jitter: () or (condition, 1).
    """
    fine, size = time[0] / FINE, FINE * len(time)
    every = fine * torch.arange(-size, size + 1, device=time.device)
    z = (every - delay) / jitter
    each = torch.exp(-0.5 * z * z) / (math.sqrt(2 * math.pi) * jitter)
    # how far the table lies behind a decision is a window of these, earlier for a later one
    window = size - (nodes / fine).round().long()
    behind = each.unfold(-1, size + 1, 1)[..., window, :].mT
    if behind.dim() > 2:
        return behind @ mass
    # one delay for all conditions is one product: a batch of them would copy the matrix for each
    return (behind @ mass.transpose(0, 1).flatten(1)).unflatten(1, (len(mass), 2)).transpose(0, 1)


def log_normal_cdf(z: Tensor) -> Tensor:
    """Log Φ, where torch's own has no rule for batches.

    >>> log_normal_cdf(torch.tensor([-40.0]))
    tensor([-804.6084])
    """
    below = z < -1
    low, high = torch.where(below, z, -1.0), torch.where(below, -1.0, z)
    tail = 0.5 * torch.special.erfcx(-math.sqrt(0.5) * low)
    rest = torch.log1p(-0.5 * torch.erfc(math.sqrt(0.5) * high))
    return torch.where(below, tail.log() - 0.5 * low.square(), rest)


def late(
    left: Float[Tensor, "condition time"],
    until: Float[Tensor, " time"],
    time: Float[Tensor, "#condition"],
    delay: Float[Tensor, " condition"],
    jitter: Float[Tensor, " condition"],
) -> Float[Tensor, " condition"]:
    r"""Log P(T + τ > t), of positive parts.

    .. math:: P(\tau > t) + \int_0^H P(T > u)\, N(t - u)\,du + P(T > H)\, P(\tau < t - H)

    Args:
        left: Log P(T > u).
        until: u: 0, …, H in equal steps.
        time: t.
        delay: Mean of τ.
        jitter: Its s.d., at least 2.5 steps.

    >>> u = torch.linspace(0.0, 2.0, 401, dtype=torch.float64)
    >>> one = torch.ones(1).to(u)
    >>> late(-10 * u[None], u, one, 0.3 * one, 0.05 * one)  # -10 · 0.7, and (10 · 0.05)² / 2
    tensor([-6.8750])
    """
    delay, jitter, t, step = delay[:, None], jitter[:, None], time[:, None], until[1]
    z = (t - until - delay) / jitter
    # the trapezoid, and what the slope at 0 adds to it: of the normal, as nobody decides at once
    first = (0.5 + step / 12 * z[:, :1] / jitter).clamp_min(0.05)
    share = torch.cat([first, torch.ones_like(z[:, 2:]), torch.full_like(first, 0.5)], -1)
    log_normal = (share * step).log() - 0.5 * z * z - (math.sqrt(2 * math.pi) * jitter).log()
    beyond = log_normal_cdf((delay - t) / jitter)
    past = left[:, -1:] + log_normal_cdf((t - until[-1] - delay) / jitter)
    parts = [beyond, left + log_normal, past]
    return torch.cat([part.expand(len(left), -1) for part in parts], -1).logsumexp(-1)


def tabulated(table: Float[Tensor, "condition fine 2"], fine: Tensor) -> LogDensity:
    """Log density of times, sides and conditions, by cubics through four points of a table.

    Args:
        table: Densities at 0, ``fine``, ….
        fine: Seconds.

    >>> table = torch.ones(1, 9, 2)
    >>> none = torch.tensor([0])
    >>> tabulated(table, torch.tensor(0.1))(torch.tensor([0.25]), none, none)
    tensor([0.])
    """
    last = table.shape[1] - 1

    def log_density(time: Tensor, side: Tensor, condition: Tensor) -> Tensor:
        p = cubic(table, time / fine, side, condition, last)
        return torch.where(p > 0, torch.where(p > 0, p, 1.0).log(), -torch.inf)

    return log_density
