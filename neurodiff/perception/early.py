r"""Densities of passage between the times that they are solved for, where decisions are fast.

.. math:: g_\pm(t) = \frac{h_\pm(t)}{t}\, N\big(\pm b(t);\, m(t), V(t)\big)\; e^{s_\pm(t)}, \qquad
    h_\pm = b(t) \mp x_0 - t\, b'(t), \qquad s_\pm(0) = 0

m and V are the mean and variance of the free path. Without s this is what passes a bound for the
first time soon after the start, when no path has yet come back: it rises from nothing to its peak
within a step where the drift is strong, while s, all that the equations of
:mod:`~neurodiff.perception.volterra` have to add, changes no faster than the bound. So s is
interpolated, by the cubic through the nearest times, one of which is 0.

Decision times are summed at nodes that lie closer where decisions can be that fast,

.. math:: \int f\,g\,dt \approx \sum_{k \le 4K} f g\,\phi \Big|_{k\,dt/4} \frac{dt}{4}
    + \sum_j f g\,(1 - \phi)\Big|_{j\,dt}\, dt, \qquad \phi = \Phi(6 - t/dt), \quad K = 11

with an error of 3e-9 where f g is smooth: a Gaussian edge one step wide is to sums over steps.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

FINE = 4  # early nodes in a step
_EARLY, _EDGE = 11, 6.0  # steps that have them, and where they give way
LEAST = 1e-140  # a density below it is the outset's: the second derivative of its log overflows
BEND = 0.1  # nats of s within a step, at most, beside a straight line
_ROOM = 0.01  # of the bound: least h, where the bound has come down past the start


def nested(time: Float[Tensor, " time"]) -> tuple[Float[Tensor, " node"], Float[Tensor, " node"]]:
    """Nodes of the quadrature over decision times, the early ones and all times; their weights.

    >>> nodes, width = nested(0.02 * torch.arange(1.0, 101.0))
    >>> len(nodes), nodes[:2], (width * torch.exp(-((nodes - 0.05) / 0.01) ** 2)).sum()  # 0.01 √π
    (144, tensor([0.0050, 0.0100]), tensor(0.0177))
    """
    dt = time[0]
    early = dt / FINE * torch.arange(1, FINE * min(_EARLY, len(time)) + 1).to(time)
    # of both tails, so that neither is a difference from 1
    soon, late = (
        0.5 * torch.erfc(sign * (t / dt - _EDGE) * math.sqrt(0.5))
        for t, sign in ((early, 1.0), (time, -1.0))
    )
    return torch.cat([early, time]), torch.cat([dt / FINE * soon, dt * late])


def outset(
    bound: Float[Tensor, "*#condition time"],
    slope: Float[Tensor, "*#condition time"],
    time: Float[Tensor, "*#condition time"],
    start: Float[Tensor, "*#condition node"],
    mean: Float[Tensor, "*#condition node time"],
    variance: Float[Tensor, "*#time"],
) -> Float[Tensor, "*condition node time 2"]:
    """Log g where s is 0.

    Args:
        bound: b > 0.
        slope: b'.
        time: Seconds, of each condition or of all.
        start: x_0.
        mean: m(t) from each start.
        variance: V(t), with the dimensions of the mean or fewer.

    >>> one = torch.ones(1)
    >>> time = torch.tensor([0.01])
    >>> log = outset(one, 0 * one, time, torch.zeros(1), torch.zeros(1, 1), time)
    >>> log.exp() / (time**-1.5 * (-0.5 / time).exp())  # a single bound's: over the root of 2 pi
    tensor([[[0.3989, 0.3989]]])
    """
    sign = bound.new_tensor([1.0, -1.0])
    b = bound[..., None, :, None]
    room = b - sign * start[..., None, None] - (time * slope.clamp_max(0.0))[..., None, :, None]
    distance = sign * b - mean[..., None]
    v, t = variance[..., None], time[..., None, :, None]
    log = torch.maximum(room, _ROOM * b).log() - t.log() - 0.5 * (2 * math.pi * v).log()
    return log - 0.5 * distance.square() / v


def between(
    g: Float[Tensor, "*#condition time 2"], first: Float[Tensor, "*#condition node 2"]
) -> Float[Tensor, "*condition node 2"]:
    """Log densities at the early nodes, then at all times.

    Args:
        g: Densities at dt, 2 dt, ….
        first: :func:`outset` at the early nodes, dt/4, dt/2, …, then at all times.

    >>> first = torch.zeros(8 + 4, 2)  # eight early nodes before four times
    >>> between(torch.full((4, 2), 1.1), first)[[1, 3, 7, 8], 0]  # a half, one, two steps; one
    tensor([0.0655, 0.0953, 0.0953, 0.0953])
    """
    early = first.shape[-2] - g.shape[-2]
    there = g > LEAST
    at = first[..., early:, :]
    s = torch.where(there, torch.where(there, g, 1.0).log() - at, 0.0)
    return torch.cat([first[..., :early, :] + early_of(s, early), at + s], -2)


def early_of(y: Float[Tensor, "*any time 2"], early: int) -> Float[Tensor, "*any {early} 2"]:
    """What is 0 at time 0, at the early nodes, by cubics through the four nearest times.

    A cubic departs from the straight line between its times by 0.1 at most.

    Args:
        y: At dt, 2 dt, ….
        early: Number of early nodes.

    >>> early_of(0.1 * torch.arange(1.0, 5.0)[:, None].expand(4, 2) ** 3, 8)[[1, 7], 0]  # of t³/10
    tensor([0.0125, 0.8000])
    """
    steps = early // FINE
    y = torch.cat([torch.zeros_like(y[..., :1, :]), y], -2)[..., : steps + 2, :]
    ends = [4 * (y[..., i, :] + y[..., k, :]) - 6 * y[..., j, :] - y[..., m, :]
            for i, j, k, m in ((0, 1, 2, 3), (-1, -2, -3, -4))]  # fmt: skip
    # the cubics at either end go on
    y = torch.cat([ends[0][..., None, :], y, ends[1][..., None, :]], -2)
    x = torch.arange(1, FINE + 1).to(y) / FINE
    weight = torch.stack([
        -x * (x - 1) * (x - 2) / 6,
        (x + 1) * (x - 1) * (x - 2) / 2,
        -(x + 1) * x * (x - 2) / 2,
        (x + 1) * x * (x - 1) / 6,
    ])  # fmt: skip
    four = y.unfold(-2, 4, 1)[..., :steps, :, :]
    chord = torch.lerp(four[..., 1:2], four[..., 2:3], x)
    # once nothing is left s falls by many nats a step, and cubics would overshoot before it does
    bent = (four @ weight - chord).clamp(-BEND, BEND)
    return (chord + bent).mT.flatten(-3, -2)
