r"""How many have not decided yet: where few are left a number of its own, not a difference from 1.

.. math:: P(T > t) = \int_{-b}^{b} p(y, t)\,dy, \qquad
    p = b^{-1/2}\, e^{-b' y^2 / 2b + U(y, t) - U(x_0, 0)}\; \psi(y/b, s), \quad ds = dt/b^2

.. math:: \partial_s \psi = \tfrac12\, \partial_z^2 \psi
    + b^2 \big[\tfrac12\, b\, b'' z^2 - U_t - \tfrac12 U_{yy} - \tfrac12 U_y^2\big] \psi,
    \qquad \psi(\pm 1, s) = 0, \qquad U = v(t)\, y - \tfrac12 \ell y^2

for a path with drift v and leak ℓ. Between straight bounds nothing is left of the bracket that a
constant drift does not take out, and sines :math:`\sin \tfrac{n\pi}{2}(z + 1)` decay by themselves,
as :math:`e^{-n^2 \pi^2 s / 8}`. So a bound turns between steps only, where ψ is multiplied by
:math:`e^{\frac12 b\,\Delta b' z^2}`, and by what else there is; s is of the bound itself. Long
after, the first sine is all: what is lost is of its size, however small that is. Soon after the
start many are needed, but nearly all go on, and what passages leave of one is right.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from neurodiff.perception.drifts import Steady
from neurodiff.perception.early import FINE
from neurodiff.perception.volterra import Path

_SINES, _NODES, _SOON = 18, 40, 0.04
_FEWER, _APART = 14, 0.01  # sines, and nats by which they may differ from all
_STEEP = 40.0  # most by which b² falls in a second: with more, ψ would lose its digits
_SHUT = 1e-4  # of b_0²: a bound that has closed
_LEAST = 1e-12  # seconds
_FASTEST = 200.0  # most of a drift times the bound
_MUCH, _LITTLE, _NONE = 0.1, 0.02, 1e-10  # left: of one is right, sines are, a difference says 0


def log_survival(
    left: Float[Tensor, "condition time"],
    log: Float[Tensor, "#condition time"],
    trusted: Bool[Tensor, "#condition time"],
) -> Float[Tensor, "condition time"]:
    """Log P(T > t): of what passages leave of one while much is left, of sines once little is.

    Args:
        left: P(T > t) as a difference.
        log: Its logarithm by :func:`sines`.
        trusted: Where these are right.

    >>> left, log = torch.tensor([[0.5, 1e-6]]), torch.tensor([[-9.0, -14.0]])
    >>> log_survival(left, log, log < 0)
    tensor([[ -0.6931, -14.0000]])
    """
    told = left.clamp_min(_NONE).log()
    much = ((left - _LITTLE) / (_MUCH - _LITTLE)).clamp(0.0, 1.0)
    much = torch.where(trusted, much * much * (3 - 2 * much), 1.0)
    # a bound that falls within a step is not straight in it, and more might be left in the end
    return torch.lerp(log, told, much).clamp_max(0.0).cummin(-1)[0]


def sines(
    bound: Float[Tensor, "*#condition time"],
    time: Float[Tensor, "*#condition time"],
    moved: Steady | Path,
    start: Float[Tensor, "*#condition start"],
    weight: Float[Tensor, " start"],
) -> tuple[Float[Tensor, "condition time"], Bool[Tensor, "condition time"]]:
    """Log P(T > t), for moving bounds and any drift of :mod:`~neurodiff.perception.drifts`.

    Args:
        bound: b at 0 (or soon after it) and each time.
        time: 0 and quarters of steps, seconds, or those of a clock: four times a step, and one.
        moved: The drift at these times.
        start: x_0.
        weight: Of each starting point, adding up to 1.

    Returns:
        It, and where it can be trusted: not soon after the start, nor where a strong drift weighs
        up what is left out of ψ. Fewer sines say something else there.

    >>> time, one = torch.linspace(0.0, 5.0, 501), torch.ones(1)  # 125 steps
    >>> bound = torch.full((501,), 0.5)
    >>> log, trusted = sines(bound, time, Steady(0 * one, None), 0 * one, one)
    >>> log[0, -1], trusted[0, -1]
    (tensor(-24.4324), tensor(True))
    >>> round(math.log(4 / math.pi) - math.pi**2 * 5 / (8 * 0.25), 4)  # of the first sine
    -24.4324
    """
    b = _walked(bound, time)
    z, part, sine = (torch.as_tensor(x).to(b) for x in _basis())
    knot = b[..., ::FINE]
    rise = knot.diff() / time[..., ::FINE].diff().clamp_min(_LEAST)
    step = time.diff() / (b[..., :-1] * b[..., 1:])
    # what ψ is multiplied by where the bound turns, and what p is over ψ at each time
    turn = 0.5 * (rise.diff() * knot[..., 1:-1])[..., None] * z.square()
    over = -0.5 * (_each(rise) * b[..., 1:])[..., None] * z.square()
    begin = 0.5 * rise[..., :1] * start.square() / b[..., :1]
    y = b[..., 1:, None] * z
    if isinstance(moved, Path):
        kicks, ends, begins = _pushed(moved, time, y, start)
        turn, over, begin = turn + kicks, over + ends, begin + begins
    log = over[..., None] + begin[..., None, None, :]
    if isinstance(moved, Steady):
        log = log + _tilted(moved, time[..., 1:], y, start)
    top = log.detach().amax(-2, keepdim=True)
    size = top[..., 0, :] - (math.pi**2 / 8 * step.cumsum(-1))[..., None]
    size = size + 0.5 * (b[..., 1:] / b[..., :1]).log()[..., None] + weight.log()
    share = part[:, None] * (log - top).exp()

    def total(sine: Tensor) -> tuple[Tensor, Tensor]:
        found = (share * _sines(start / b[..., :1], turn, step, sine, part)).sum(-2)
        positive = found > 1e-250  # less has no gradient left
        each = torch.where(positive, found, 1e-300).log() + size
        return pad(each.logsumexp(-1), (1, 0)), pad(positive.all(-1), (1, 0))

    found, positive = total(sine)
    with torch.no_grad():
        fewer, also = total(sine[:_FEWER])
        return found, positive & also & ((found - fewer).abs() < _APART)


def _walked(bound: Tensor, time: Tensor) -> Tensor:
    """A bound that sines can follow.

    It is straight soon after the start, which sines do not resolve; later no steeper than leaves ψ
    its digits, and never quite closed.
    """
    b = torch.maximum(bound, _SHUT**0.5 * bound[..., :1])
    soon = time[..., 1:] < _SOON * b[..., :1] * b[..., 1:]
    last = soon.sum(-1, keepdim=True)
    time = time.expand_as(b)
    end, then = b.gather(-1, last), time.gather(-1, last).clamp_min(_LEAST)
    line = b[..., :1] + (end - b[..., :1]) * time / then
    b = torch.cat([b[..., :1], torch.where(soon, line[..., 1:], b[..., 1:])], -1)
    return ((b.square() + _STEEP * time).cummax(-1)[0] - _STEEP * time).sqrt()


def _basis() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, their weights, and sines (sine, node) of norm one."""
    z, part = np.polynomial.legendre.leggauss(_NODES)
    n = np.arange(1, _SINES + 1)[:, None]
    return z, part, np.sin(0.5 * np.pi * n * (z + 1))


def _each(step: Float[Tensor, "*any step"]) -> Float[Tensor, "*any time"]:
    """What a step has, at each of its quarters."""
    return step.repeat_interleave(FINE, -1)


def _sines(
    first: Float[Tensor, "*#condition start"],
    turn: Float[Tensor, "*#condition turn node"],
    step: Float[Tensor, "*#condition time"],
    sine: Float[Tensor, "sine node"],
    part: Float[Tensor, " node"],
) -> Float[Tensor, "*every time node start"]:
    """ψ at the nodes at each time, over what is left of the first sine."""
    n = torch.arange(1, len(sine) + 1).to(sine)
    passed = step.unflatten(-1, (-1, FINE)).cumsum(-1)[..., None]
    decay = torch.exp(-(math.pi**2) / 8 * (n.square() - 1) * passed)
    begin = torch.sin(0.5 * math.pi * n[:, None] * (first[..., None, :] + 1))
    pairs = (part * sine[:, None] * sine).flatten(0, 1).mT  # one product for all turns
    turned = (turn.exp() @ pairs).unflatten(-1, (len(sine), -1))
    turned = torch.cat([torch.eye(len(sine)).to(sine).expand_as(turned[..., :1, :, :]), turned], -3)
    ends = _chained(decay[..., -1, :, None] * turned, begin)
    begins = torch.cat([begin.expand_as(ends[..., 0, :, :])[..., None, :, :], ends], -3)
    kept = decay[..., None] * (turned @ begins[..., :-1, :, :])[..., None, :, :]
    return sine.mT @ kept.flatten(-4, -3)


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
    moved: Path, time: Tensor, y: Float[Tensor, "*#condition time node"], start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Turns, ends and the beginning of a drift that is constant within a step, and of a leak."""
    # drifts that nobody could trust sines with would overflow
    most = _FASTEST / y.detach().abs().amax()
    slope = moved.slope.clamp(-most, most)
    dt, knot = time.diff(), slope[..., ::FINE]
    v = 0.5 * (knot[..., 1:] + knot[..., :-1])
    there = y[..., FINE - 1 :: FINE, :][..., :-1, :]
    turn = -v.diff()[..., None] * there
    over, begin = _each(v)[..., None] * y, -v[..., :1] * start
    if moved.leak is None:
        return turn, over - (0.5 * _each(v).square() * dt).cumsum(-1)[..., None], begin
    leak, width = moved.leak[..., None, None], time[::FINE].diff()

    def lost(x: Tensor, at: Tensor) -> Tensor:
        return 0.5 * (at[..., None] - leak * x).square()

    turn = turn - 0.5 * (width[1:] + width[:-1])[:, None] * lost(there, knot[..., 1:-1])
    # half of what a whole step takes is taken where it begins: of what is to come, it is given back
    gone = (torch.arange(1, FINE + 1).to(y) / FINE).repeat(len(width))
    back = (1 - gone)[:, None] * lost(y, _each(knot[..., :-1]))
    taken = gone[:, None] * lost(y, slope[..., 1:]) - back
    over = over - 0.5 * leak * (y.square() - time[1:, None]) - 0.5 * _each(width)[:, None] * taken
    x = start[..., None, :]
    first = 0.5 * leak * x.square() - 0.5 * width[0] * lost(x, knot[..., :1])
    return turn, over, begin + first[..., 0, :]
