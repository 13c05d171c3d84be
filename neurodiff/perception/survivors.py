r"""How many have not decided yet: a positive number of its own, not what is left of one.

.. math:: P(T > t) = \int_{-b}^{b} p(y, t)\,dy, \qquad
    p = b^{-1/2}\, e^{-b' y^2 / 2b + U(y, t) - U(x_0, 0)}\; \psi(y/b, s), \quad ds = dt/b^2

.. math:: \partial_s \psi = \tfrac12\, \partial_z^2 \psi
    + b^2 \big[\tfrac12\, b\, b'' z^2 - U_t - \tfrac12 U_{yy} - \tfrac12 U_y^2\big] \psi,
    \qquad \psi(\pm 1, s) = 0, \qquad U = v(t)\, y - \tfrac12 \ell y^2

for a path with drift v and leak ℓ. Between straight bounds nothing is left of the bracket that a
constant drift does not take out, and sines :math:`\sin \tfrac{n\pi}{2}(z + 1)` decay by themselves,
as :math:`e^{-n^2 \pi^2 s / 8}`. So a bound is taken for straight within a step and turns between
steps, where ψ is multiplied by :math:`e^{\frac12 b\,\Delta b' z^2}`, and by what else there is.
Long after, the first sine is all: what is lost is of its size, however small that is. Soon after
the start, s < 0.04, no path has reached both bounds, and what passed each is known.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from neurodiff.perception.drifts import Steady
from neurodiff.perception.killed import leaves
from neurodiff.perception.volterra import Path

_SINES, _NODES, _SOON = 18, 40, 0.04
_STEEP = 40.0  # most by which b² falls in a second: with more, ψ would lose its digits
_SHUT = 1e-4  # of b_0²: a bound that has closed
_LEAST = 1e-12  # seconds
_LOST = -14.0  # log of a share that does not matter
_SPREAD = 7  # nodes over drifts that differ, soon after the start


def log_survival(
    bound: Float[Tensor, "*#condition step"],
    time: Float[Tensor, "*#condition step"],
    moved: Steady | Path,
    start: Float[Tensor, "*#condition start"],
    weight: Float[Tensor, " start"],
) -> Float[Tensor, "condition step"]:
    """Log P(T > t), for moving bounds and any drift of :mod:`~neurodiff.perception.drifts`.

    Args:
        bound: b at 0 (or soon after it) and each time.
        time: 0 and the times, seconds, or those of a clock.
        moved: The drift at these times.
        start: x_0.
        weight: Of each starting point, adding up to 1.

    >>> time, one = torch.linspace(0.0, 5.0, 501), torch.ones(1)
    >>> log_survival(torch.full((501,), 0.5), time, Steady(0 * one, None), 0 * one, one)[0, -1]
    tensor(-24.4324)
    >>> round(math.log(4 / math.pi) - math.pi**2 * 5 / (8 * 0.25), 4)  # of the first sine
    -24.4324
    """
    b, soon = _walked(bound, time)
    dt = time.diff()
    z, part, sine = (torch.as_tensor(x).to(b) for x in _basis())
    rise, step = b.diff() / dt.clamp_min(_LEAST), dt / (b[..., :-1] * b[..., 1:])
    s = step.cumsum(-1)
    # what ψ is multiplied by where the bound turns, and what p is over ψ where a step ends
    turn = 0.5 * (rise.diff() * b[..., 1:-1])[..., None] * z.square()
    over = -0.5 * (rise * b[..., 1:])[..., None] * z.square()
    begin = 0.5 * rise[..., :1] * start.square() / b[..., :1]
    y = b[..., 1:, None] * z
    if isinstance(moved, Path):
        kicks, ends, begins = _pushed(moved, time, y, start)
        turn, over, begin = turn + kicks, over + ends, begin + begins
    log = over[..., None] + begin[..., None, None, :]
    if isinstance(moved, Steady):
        log = log + _tilted(moved, time[..., 1:], y, start)
    top = log.detach().amax(-2, keepdim=True)
    psi = _sines(start / b[..., :1], turn, step, sine, part)
    total = (part[:, None] * (log - top).exp() * psi).sum(-2).clamp_min(1e-300).log()
    total = total + top[..., 0, :] - (math.pi**2 / 8 * s)[..., None]
    total = total + 0.5 * (b[..., 1:] / b[..., :1]).log()[..., None]
    # a strong drift weighs up what is left out: the first sine that is not there
    missing = top[..., 0, :] - (math.pi**2 / 8 * (_SINES + 1) ** 2 * s)[..., None]
    soon = soon[..., None] | (missing > _LOST)
    total = torch.where(soon, _soon(b, time, moved, start, soon), total)
    found = (total + weight.log()).logsumexp(-1).clamp_max(0.0)
    return pad(found, (1, 0))


def _walked(bound: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """A bound that sines can follow, and in which steps no path has been at both of it.

    It is straight then, as sines do not resolve the start; later no steeper than leaves ψ its
    digits, and never quite closed.
    """
    b = torch.maximum(bound, _SHUT**0.5 * bound[..., :1])
    soon = time[..., 1:] < _SOON * b[..., :1] * b[..., 1:]
    last = soon.sum(-1, keepdim=True)
    time = time.expand_as(b)
    end, then = b.gather(-1, last), time.gather(-1, last).clamp_min(_LEAST)
    line = b[..., :1] + (end - b[..., :1]) * time / then
    b = torch.cat([b[..., :1], torch.where(soon, line[..., 1:], b[..., 1:])], -1)
    return ((b.square() + _STEEP * time).cummax(-1)[0] - _STEEP * time).sqrt(), soon


def _basis() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, their weights, and sines (sine, node) of norm one."""
    z, part = np.polynomial.legendre.leggauss(_NODES)
    n = np.arange(1, _SINES + 1)[:, None]
    return z, part, np.sin(0.5 * np.pi * n * (z + 1))


def _sines(
    first: Float[Tensor, "*#condition start"],
    turn: Float[Tensor, "*#condition turn node"],
    step: Float[Tensor, "*#condition step"],
    sine: Float[Tensor, "sine node"],
    part: Float[Tensor, " node"],
) -> Float[Tensor, "*every step node start"]:
    """ψ at the nodes where each step ends, over what is left of the first sine."""
    n = torch.arange(1, len(sine) + 1).to(sine)
    decay = torch.exp(-(math.pi**2) / 8 * (n.square() - 1) * step[..., None])
    begin = torch.sin(0.5 * math.pi * n[:, None] * (first[..., None, :] + 1))
    pairs = (part * sine[:, None] * sine).flatten(0, 1).mT  # one product for all turns
    turned = (turn.exp() @ pairs).unflatten(-1, (len(sine), -1))
    turned = torch.cat([torch.eye(len(sine)).to(sine).expand_as(turned[..., :1, :, :]), turned], -3)
    return sine.mT @ _chained(decay[..., None] * turned, begin)


def _chained(
    matrix: Float[Tensor, "*#condition step sine sine"],
    first: Float[Tensor, "*#condition sine start"],
) -> Float[Tensor, "*every step sine start"]:
    """The products of the first matrices with a vector: as many products as steps, few in turn."""
    at_first = matrix[..., :1, :, :] @ first[..., None, :, :]
    if (steps := matrix.shape[-3]) == 1:
        return at_first
    pairs = matrix[..., 1::2, :, :] @ matrix[..., : steps - 1 : 2, :, :]
    even = _chained(pairs, first)  # after two steps, four, …
    odd = matrix[..., 2::2, :, :] @ even[..., : (steps - 1) // 2, :, :]
    odd = torch.cat([at_first, odd], -3)
    if steps % 2:
        even = torch.cat([even, odd[..., -1:, :, :]], -3)
    return torch.stack([odd, even], -3).flatten(-4, -3)[..., :steps, :, :]


def _tilted(
    moved: Steady, time: Tensor, y: Tensor, start: Tensor
) -> Float[Tensor, "condition step node start"]:
    """Log ratio to a path without drift (:func:`~neurodiff.perception.first_passage.tilt`)."""
    d = y[..., None] - start[..., None, None, :]
    v, t = moved.slope[..., None, None, None], time[..., None, None]
    if moved.spread is None:
        return v * d - 0.5 * v * v * t
    eta2 = moved.spread[..., None, None, None].square()
    whole = 1 + eta2 * t
    return (2 * v * d - v * v * t + eta2 * d * d) / (2 * whole) - 0.5 * torch.log(whole)


def _pushed(
    moved: Path, time: Tensor, y: Float[Tensor, "*#condition step node"], start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Turns, ends and the beginning of a drift that is constant within a step, and of a leak."""
    dt = time.diff()
    v = 0.5 * (moved.slope[..., 1:] + moved.slope[..., :-1])
    turn = -v.diff()[..., None] * y[..., :-1, :]
    over = v[..., None] * y - (0.5 * v.square() * dt).cumsum(-1)[..., None]
    begin = -v[..., :1] * start
    if moved.leak is None:
        return turn, over, begin
    leak = moved.leak[..., None, None]

    def lost(x: Tensor, at: Tensor) -> Tensor:
        return 0.5 * leak.square() * x.square() - leak * at[..., None] * x

    here, whole = lost(y, moved.slope[..., 1:]), dt[..., None]
    turn = turn - 0.5 * (whole[..., 1:, :] + whole[..., :-1, :]) * here[..., :-1, :]
    over = over - 0.5 * leak * (y.square() - time[..., 1:, None]) - 0.5 * whole * here
    at = start[..., None, :]
    begin = (
        begin + (0.5 * leak * at.square() - 0.5 * dt[0] * lost(at, moved.slope[..., :1]))[..., 0, :]
    )
    return turn, over, begin


def _soon(
    b: Float[Tensor, "*#condition point"],
    time: Float[Tensor, "*#condition point"],
    moved: Steady | Path,
    start: Float[Tensor, "*#condition start"],
    soon: Bool[Tensor, "*#condition step start"],
) -> Float[Tensor, "*every step start"]:
    """Log P(T > t) where no path has been at both bounds, which are straight until then."""
    # elsewhere anything that harms no gradient
    first, x = b[..., :1, None], start[..., None, :]
    t = torch.where(soon, time[..., 1:, None], 1e-3 * first.square()).clamp_min(_LEAST)
    rise = (torch.where(soon, b[..., 1:, None], first) - first) / t
    if isinstance(moved, Path):
        left = 1.0 if moved.leak is None else torch.exp(-moved.leak[..., None, None] * t)
        v = (x * (left - 1) + torch.where(soon, moved.mean[..., 1:, None], 0.0)) / t
        each = [(v, 1.0)]
    elif moved.spread is None:
        each = [(moved.slope[..., None, None], 1.0)]
    else:
        at, weight = np.polynomial.hermite_e.hermegauss(_SPREAD)
        own = [(moved.slope + float(a) * moved.spread)[..., None, None] for a in at]
        each = list(zip(own, weight / weight.sum(), strict=True))
    gone = torch.zeros_like(t)
    for v, share in each:
        for sign in (1.0, -1.0):
            gone = gone + float(share) * leaves(first - sign * x, rise, sign * v, t)
    return torch.log1p(-gone.clamp_max(1 - 1e-9))
