r"""Where the evidence is while a decision goes on, given how it will end.

.. math:: E[D_t \mid T > t, \pm] =
    \frac{\int D(y, t)\, p(y, t)\, h_\pm(y, t)\, dy}{\int p(y, t)\, h_\pm(y, t)\, dy}, \qquad
    p = P(Y_t \in dy;\ T > t), \quad h_\pm = P(\pm \mid Y_t = y, T > t)

p runs forwards and h backwards over one killed transition density, as in a hidden Markov chain.
Over a step in which the bounds are straight lines that density is known: with W = 2b the room
between them, and primes for the end of the step,

.. math:: K(y, y') = \phi_{dt}(y' - y) \sum_r \Big[
    e^{-\frac{2}{dt}(r^2 W W' + r (W y' - W' y))} - e^{-\frac{2}{dt}(r W + b - y)(r W' + b' - y')}
    \Big]

and so is what leaves through each bound. Every term is positive, so conditional means keep their
relative accuracy where few go on. A constant drift tilts K by
:math:`v (y' - y) - \tfrac12 v^2 dt`: all strengths share it.

What others get wrong: the mean over all trials of a strength, E[D_t], is not what is seen at t,
because the strong ones have left; nor is E[D_t | T > t], because trials are sorted by their choice.

References:
    Anderson 1960, "A modification of the sequential probability ratio test to reduce the sample
    size", for two straight bounds.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_IMAGES = (-1, 0, 1)


class Killed(NamedTuple):
    """Survivors and their fates on a grid of positions that moves with the bounds.

    Attributes:
        time: 0 excluded, seconds.
        position: y of each node, within ±b(t).
        mass: P(T > t, and y within the node's cell), quadrature weights included: each in units of
            ``exp(scale)``, so that nothing underflows where few go on.
        scale: Its log unit.
        fate: P(choice by the last time | y, t): [..., 0] upper, [..., 1] lower.
    """

    time: Float[Tensor, " time"]
    position: Float[Tensor, "time node"]
    mass: Float[Tensor, "condition time node"]
    scale: Float[Tensor, "condition time 1"]
    fate: Float[Tensor, "condition time node 2"]

    def log_probability(self) -> Float[Tensor, "condition time 2"]:
        """Log P(T > t, choice); what is not decided by the last time has no choice."""
        there = (self.mass[..., None] * self.fate).sum(-2)
        return there.clamp_min(1e-300).log() + self.scale

    def mean(
        self, value: Float[Tensor, "#condition time node"] | Float[Tensor, "time node"]
    ) -> Float[Tensor, "condition time 2"]:
        """E[D | T > t, choice] of values D(y, t): [..., 0] upper, [..., 1] lower."""
        weight = self.mass[..., None] * self.fate
        return (value[..., None] * weight).sum(-2) / weight.sum(-2).clamp_min(1e-300)


def killed(
    drift: Float[Tensor, " condition"],
    bound: Callable[[Tensor], tuple[Tensor, Tensor]],
    time: Float[Tensor, " time"],
    start: float | Tensor = 0.0,
    nodes: int = 32,
) -> Killed:
    """Survivors of constant drifts between moving bounds, and how each will end.

    Args:
        drift: v, per second, in units of the noise.
        bound: A function of time that returns b and its derivative; b is straight between times,
            so that the error of a curved one falls as dt², and a straight one has none.
        time: dt, 2 dt, … up to the time by which a choice counts, seconds. A step that may reach
            both bounds, b < 3 sqrt(dt), is too long.
        start: x_0, between the bounds.
        nodes: Positions at each time; the spacing, πb/nodes, has to be below sqrt(dt).

    Returns:
        Everything at each time.

    Raises:
        ValueError: If the nodes are too far apart for the step, or a bound is not above 0.

    >>> from neurodiff.perception.bounds import Constant
    >>> found = killed(torch.tensor([0.0, 1.3]), Constant(0.9), 0.02 * torch.arange(1.0, 101.0))
    >>> found.mean(found.position)[:, 24].detach()  # at 0.5 s, for each choice
    tensor([[ 0.1893, -0.1893],
            [ 0.2403, -0.2403]])
    """
    height = bound(torch.cat([1e-6 * time[:1], time]))[0]
    check(height, time[0], nodes)
    return follow(drift, height, time, start, nodes)


def follow(
    drift: Float[Tensor, " condition"],
    height: Float[Tensor, " step"],
    time: Float[Tensor, " time"],
    start: float | Tensor,
    nodes: int,
) -> Killed:
    """:func:`killed` from b at 0, dt, …, unchecked: inference calls this under vmap."""
    dt = time[0]
    at, weight = (torch.as_tensor(x).to(time) for x in np.polynomial.legendre.leggauss(nodes))
    y = height[:, None] * at  # (1 + time, node)
    b, after = height[:-1, None, None], height[1:, None, None]
    # the first step is from the start: its rows are all the same
    first = torch.as_tensor(start).to(time) + torch.zeros_like(y[:1])
    begin = torch.cat([first, y[1:-1]])
    kernel = _kernel(begin[:, :, None], y[1:, None, :], b, after, dt)
    kernel = kernel * (height[1:, None] * weight)[:, None, :]
    log_mass = _forward(kernel, y[1:], time, start, drift)
    scale = log_mass.amax(-1, keepdim=True).detach()
    fate = _backward(kernel, y, height, drift, dt)
    return Killed(time, y[1:], (log_mass - scale).exp(), scale, fate)


def _kernel(y: Tensor, to: Tensor, b: Tensor, after: Tensor, dt: Tensor) -> Tensor:
    """K(y, y′) of each step."""
    free = torch.exp(-0.5 * (to - y) ** 2 / dt) / torch.sqrt(2 * math.pi * dt)
    stays = torch.zeros_like(free)
    for r in _IMAGES:
        through = r * (4 * r * b * after + 2 * (b * to - after * y))
        back = ((2 * r + 1) * b - y) * ((2 * r + 1) * after - to)
        stays = stays + torch.exp(-2 / dt * through) - torch.exp(-2 / dt * back)
    return free * stays.clamp_min(0.0)


def _forward(
    kernel: Float[Tensor, "time node node"],
    y: Float[Tensor, "time node"],
    time: Float[Tensor, " time"],
    start: float | Tensor,
    drift: Float[Tensor, " condition"],
) -> Float[Tensor, "condition time node"]:
    """Log mass of the survivors: driftless, then tilted."""
    mass, logs, total = kernel[0, 0], [], torch.zeros_like(time[0])
    for i in range(len(time)):
        if i:
            mass = mass @ kernel[i]
        unit = mass.sum()
        mass, total = mass / unit, total + unit.log()
        logs.append(mass.clamp_min(1e-300).log() + total)
    v = drift[:, None, None]
    return torch.stack(logs) + v * (y - start) - 0.5 * v * v * time[:, None]


def _backward(
    kernel: Float[Tensor, "time node node"],
    y: Float[Tensor, "step node"],
    height: Float[Tensor, " step"],
    drift: Float[Tensor, " condition"],
    dt: Tensor,
) -> Float[Tensor, "condition time node 2"]:
    """P(choice by the last time) of those who are at y at each time."""
    v = drift[:, None]
    fate = torch.zeros(2, len(drift), y.shape[-1], dtype=y.dtype, device=y.device)
    found = [fate]
    for i in range(len(kernel) - 1, 0, -1):
        up = (v * y[i + 1]).clamp(-300.0, 300.0)
        on = (fate * up.exp()) @ kernel[i].mT
        on = on * (-(v * y[i]).clamp(-300.0, 300.0) - 0.5 * v * v * dt).exp()
        b, after = height[i], height[i + 1]
        out = [_leaves(b - s * y[i], (after - b) / dt, s * v, dt) for s in (1.0, -1.0)]
        fate = on + torch.stack(out)
        found.append(fate)
    return torch.stack(found[::-1]).permute(2, 0, 3, 1)


def _leaves(distance: Tensor, rise: Tensor, drift: Tensor, dt: Tensor) -> Tensor:
    """P(a bound that is so far away and so steep is reached within a step)."""
    toward = (drift - rise) * dt
    near = (distance - toward) / torch.sqrt(2 * dt)
    far = (distance + toward) / torch.sqrt(2 * dt)
    return 0.5 * (torch.erfc(near) + torch.exp(-near * near) * torch.special.erfcx(far))


def log_odds(
    position: Float[Tensor, "*time node"],
    time: Float[Tensor, "*time 1"],
    speeds: Float[Tensor, " strength"],
    prior: Float[Tensor, " strength"],
) -> Float[Tensor, "*time node"]:
    r"""Log odds of the two directions for an observer who does not know the strength.

    .. math:: \log \frac{\sum_j \pi_j\, e^{v_j y - v_j^2 t / 2}}
                        {\sum_j \pi_j\, e^{-v_j y - v_j^2 t / 2}}

    What is believed is :math:`E[\theta \mid y, t] = \tanh(\tfrac12 \text{log odds})`; with one
    strength the log odds are 2 v y.

    Args:
        position: y.
        time: t, seconds, that broadcasts with it.
        speeds: v_j, at least 0.
        prior: π_j, adding up to 1.

    >>> y, t = torch.tensor([[0.5]]), torch.tensor([[1.0]])
    >>> log_odds(y, t, torch.tensor([2.0]), torch.tensor([1.0]))  # 2 v y
    tensor([[2.]])
    >>> log_odds(y, t, torch.tensor([0.0, 2.0]), torch.tensor([0.5, 0.5]))
    tensor([[0.2647]])
    """
    v = speeds
    common = prior.log() - 0.5 * v * v * time[..., None]
    plus, minus = (torch.logsumexp(common + s * v * position[..., None], -1) for s in (1, -1))
    return plus - minus


def check(height: Tensor, dt: Tensor, nodes: int) -> None:
    """Refuse a bound that is not above 0, and nodes too far apart for the step."""
    low, high, step = (float(x.detach()) for x in (height.min(), height.max(), dt))
    if not low > 0:
        raise ValueError(f"the bound falls to {low:g}, wanted it above 0 at every time")
    if math.pi * high / nodes > math.sqrt(step):
        least = math.ceil(math.pi * high / math.sqrt(step))
        raise ValueError(
            f"got {nodes} nodes for a bound of ±{high:g} and a step of {step:g} s, wanted at least "
            f"{least}, or a longer step"
        )
