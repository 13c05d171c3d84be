r"""The Volterra equations of first passage, and their solution as one triangular solve.

.. math:: g_\pm(t) = \mp 2\,\Psi_\pm(t \mid x_0, 0)
    \pm 2 \sum_{j = \pm} \int_0^t g_j(u)\, \Psi_\pm(t \mid S_j(u), u)\,du, \qquad
    \Psi_\pm = \tfrac12\, q\,\Big[S_\pm' + \ell S_\pm - v - \frac{d}{V}\Big]

:math:`S_\pm = \pm b` are the bounds and q the Gaussian transition density of the free path, from y
at u to S at t over a distance d in variance V. Solved is g over the free path's own density at the
bound, which a fast decision changes within a step; Ψ is then that of the bridge from the start.
From a bound to itself it begins as a root of the lag times an exponential,

.. math:: \Psi \approx \sqrt{\frac{t - u}{32 \pi}}\,(F'' - \ell^2 F)\, e^{-\kappa (t - u)}, \qquad
    F = S - m, \qquad \kappa = \tfrac12 \Big(F' + \ell F - \frac{d}{V}\Big)^2 \text{ from the start}

so the trapezoid's weights of the diagonal and of two steps from it are corrected for that, the
exponential left out of what they multiply:

.. math:: \sum_{j=0}^2 w_j\, j^k = \int_0^\infty x^{k + 1/2} e^{-\kappa dt\, x} dx
    - \sum_{j \ge 1} j^{k + 1/2} e^{-\kappa dt\, j}
    = -\sum_m \zeta(-k - \tfrac12 - m)\, \frac{(-\kappa dt)^m}{m!}, \quad k = 0, 1, 2

The error falls as dt^4.5, and is small too where paths leave a bound within a step. Without drift
each bound is the other's mirror, and the sum of their densities and the difference have equations
of their own, of half the size.

References:
    Buonocore, Nobile & Ricciardi 1987, "A new integral equation for the evaluation of
    first-passage-time probability densities". Di Nardo et al. 2001, for Gauss-Markov paths.
    Navot 1961, "An extension of the Euler-Maclaurin summation formula", for the weights at κ = 0.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import gamma, zeta
from torch import Tensor

_SERIES, _SUM, _SWITCH = 20, 12, 2.0  # terms of the series in κ dt, and of the sum, and between


def _right() -> tuple[Tensor, Tensor, Tensor]:
    """What turns powers of κ dt, its powers below 0, and exponentials into the weights."""
    k, m, j = (np.arange(n)[:, None] for n in (3, _SERIES, _SUM))
    at = 1.5 + k.T + m  # ζ(1 - at) by the reflection of ζ
    below = 2 * (2 * np.pi) ** -at * np.cos(0.5 * np.pi * at) * gamma(at) * zeta(at)
    three = np.arange(3.0)
    solved = np.linalg.inv(three[:, None] ** np.arange(3)) / np.sqrt(np.maximum(three, 1.0))
    series = -below * (-1.0) ** m / gamma(m + 1)
    parts = series, np.diag(gamma(1.5 + np.arange(3))), -((1.0 + j) ** (0.5 + k.T))
    return tuple(torch.as_tensor(part @ solved) for part in parts)  # pyright: ignore


_RIGHT = _right()
_STRAIGHT = 1.0  # nats by which a bound may leave its tangent within two steps, at most
TINY = 1e-12  # a bound that has closed


class Path(NamedTuple):
    """The free path: where noise would leave it, and the drift that moves it.

    Attributes:
        mean: m(t) from 0 at time 0, with m' = v - leak·m.
        slope: v(t), the drift that does not depend on the position.
        leak: ℓ per second; None for none.
    """

    mean: Float[Tensor, "*condition time"]
    slope: Float[Tensor, "*condition time"]
    leak: Float[Tensor, "*condition"] | None = None


def solve(
    bound: Float[Tensor, "*condition time"],
    slope: Float[Tensor, "*condition time"],
    time: Float[Tensor, " time"],
    start: Float[Tensor, "*condition node"],
    path: Path | None = None,
) -> Float[Tensor, "*condition node time 2"]:
    """Passage densities from several starting points, unchecked: inference calls this under vmap.

    Args:
        bound: Half-height b at each time. Where it is not above 0 the density is 0.
        slope: Its derivative.
        time: dt, 2 dt, …
        start: Starting points, within the bounds.
        path: Drift and leak; a driftless path if None.
    """
    is_open = (bound > TINY).to(bound).cumprod(-1)
    b = torch.where(is_open > 0, bound, 1.0)
    if path is None:
        return _driftless(b, slope, time, start, is_open)
    return _moved(b, slope, time, start, is_open, path)


def _driftless(b: Tensor, slope: Tensor, time: Tensor, start: Tensor, is_open: Tensor) -> Tensor:
    """Without drift: the sum of the two densities and the difference, each by itself."""
    distance = b[..., None, :, None] - start[..., None, None] * torch.tensor([1.0, -1.0]).to(b)
    nearest = b - start.abs().amax(-1, keepdim=True)
    energy = 0.5 * nearest.square() / time
    rise, open_ = slope[..., None, :, None], is_open[..., None, :, None]
    given = -0.5 * distance.square() / time[:, None] + energy[..., None, :, None]
    first = (distance / time[:, None] - rise) * given.exp() * open_
    lag, below = _lags(time)
    here, there = b[..., :, None], b[..., None, :]
    gain = (energy[..., :, None] - energy[..., None, :]) * below  # above it would overflow
    spread = time[:, None] / time
    same, cross = (
        _flux(d, lag, slope[..., :, None], gain, spread) for d in (here - there, here + there)
    )
    shut = 2 * is_open[..., :, None] * is_open[..., None, :]
    rate = 0.5 * (slope - nearest / time).square()
    free, moving, paid, away = (x[..., None] for x in (b, slope, energy, rate))
    near = _near(free, moving, paid, away, time, None)[..., 0, :, :]
    same, cross = (same * time[0] * below + near) * shut, cross * time[0] * below * shut
    matrix = torch.stack([same + cross, same - cross], -3)  # (…, 2, time, time)
    both = torch.stack([first.sum(-1), first[..., 0] - first[..., 1]], -3)  # (…, 2, node, time)
    total, difference = _forward(matrix, both.mT).mT.unbind(-3)
    unit = (-energy).exp() / torch.sqrt(2 * math.pi * time)
    return (
        0.5 * torch.stack([total + difference, total - difference], -1) * unit[..., None, :, None]
    )


def _moved(
    b: Tensor, slope: Tensor, time: Tensor, start: Tensor, is_open: Tensor, path: Path
) -> Tensor:
    """With a drift in time or a leak: both bounds together."""
    n = len(time)
    sign = b.new_tensor([1.0, -1.0])
    height, open_ = sign * b[..., None], is_open[..., None]  # (…, time, 2)
    rise, free = sign * slope[..., None] - path.slope[..., None], height - path.mean[..., None]
    leak = None if path.leak is None else path.leak[..., None, None]
    if leak is not None:
        rise = rise + leak * height

    # from the start: (…, node, time, 2)
    left, origin = (x[..., None] for x in decayed(time, None if leak is None else leak[..., 0]))
    nearest = torch.stack([start.amax(-1), start.amin(-1)], -1)[..., None, :]
    nearest = free - nearest * left
    energy = 0.5 * nearest.square() / origin
    distance = free[..., None, :, :] - start[..., None, None] * left[..., None, :, :]
    given = energy[..., None, :, :] - 0.5 * distance.square() / origin[..., None, :, :]
    first = sign * (distance / origin[..., None, :, :] - rise[..., None, :, :])
    first = first * given.exp() * open_[..., None, :, :]

    # from bound j at u to bound i at t: (…, time, 2, time, 2)
    lag, below = _lags(time)
    decay, variance = decayed(lag, leak)
    decay, variance = decay[..., :, None, :, None], variance[..., :, None, :, None]
    distance = free[..., :, :, None, None] - decay * free[..., None, None, :, :]
    gain = energy[..., :, :, None, None] - energy[..., None, None, :, :]
    gain = gain * below[:, None, :, None]  # above the diagonal it would overflow
    spread = origin[..., :, :, None, None] / origin[..., None, None, :, :]
    kernel = _flux(distance, variance, rise[..., :, :, None, None], gain, spread)
    near = _near(free, rise, energy, 0.5 * (rise - nearest / origin).square(), time, leak)
    near = torch.diag_embed(near.movedim(-3, -1), dim1=-3, dim2=-1)  # from a bound to itself
    shut = 2 * sign[:, None, None] * open_[..., :, None, None] * open_[..., None, None, :, :]
    matrix = (kernel * (time[0] * below)[:, None, :, None] + near) * shut
    found = _forward(matrix.flatten(-2).flatten(-3, -2), first.flatten(-2).mT)
    unit = (-energy).exp() / torch.sqrt(2 * math.pi * origin)
    return found.mT.unflatten(-1, (n, 2)) * unit[..., None, :, :]


def _forward(matrix: Tensor, right: Tensor) -> Tensor:
    """G = right + matrix g, the matrix lower triangular."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(eye - matrix, right, upper=False, unitriangular=False)


def _lags(time: Tensor) -> tuple[Tensor, Tensor]:
    """T - u below the diagonal, and where that is; elsewhere a lag that harms no exponential."""
    lag = time[:, None] - time[None, :]
    below = lag > 0.5 * time[0]
    return torch.where(below, lag, 1.0), below.to(time)


def _flux(distance: Tensor, variance: Tensor, rise: Tensor, gain: Tensor, spread: Tensor) -> Tensor:
    """Ψ, over the ratio of the free densities at its ends."""
    z = distance / variance
    bridge = torch.exp(gain - 0.5 * distance * z) * torch.sqrt(spread / (8 * math.pi * variance))
    return bridge * (rise - z)


def decayed(lag: Tensor, leak: Tensor | None) -> tuple[Tensor, Tensor]:
    """How much of a position is left after a lag, and the variance that noise has given it.

    >>> decayed(torch.tensor(1.0), torch.tensor(0.5))  # exp(-leak), (1 - exp(-2 leak)) / 2 leak
    (tensor(0.6065), tensor(0.6321))
    """
    if leak is None:
        return torch.ones_like(lag), lag
    x = 2 * leak * lag
    safe = torch.where(x.abs() < 1e-6, 1.0, x)
    return (-0.5 * x).exp(), lag * torch.where(
        x.abs() < 1e-6, 1 - 0.5 * x, -torch.expm1(-safe) / safe
    )


def _near(
    free: Float[Tensor, "*#condition time side"],
    rise: Float[Tensor, "*#condition time side"],
    energy: Float[Tensor, "*#condition time side"],
    rate: Float[Tensor, "*#condition time side"],
    time: Tensor,
    leak: Tensor | None,
) -> Float[Tensor, "*condition side time time"]:
    """What is added to dt Ψ from a bound to itself, on the diagonal and two steps from it."""
    dt = time[0]
    w = dt * weights(rate * dt)
    # Ψ begins as sqrt(lag / 8 pi) (F'' - l² F) / 2, F the bound less the mean path
    moving = rise if leak is None else rise - leak * free
    bend = _derivative(moving) / dt
    if leak is not None:
        bend = bend - leak.square() * free
    # no more than steps can tell: bounds that bend more are not resolved
    own = (bend * w[..., 0] * torch.sqrt(dt / (32 * math.pi))).clamp(-0.2, 0.2)
    added = torch.diag_embed(own.mT)
    origin = decayed(time, None if leak is None else leak[..., 0])[1][..., None]
    for j in (1, 2):
        decay, variance = decayed(j * dt, leak)
        spread = origin[..., j:, :] / origin[..., :-j, :]
        distance = free[..., j:, :] - decay * free[..., :-j, :]
        gain = energy[..., j:, :] - energy[..., :-j, :] + j * dt * rate[..., j:, :]
        # the weights are of the tangent's exponential: of a bound that falls at once they are of
        # another than there is, which times them would be without limit
        gain = torch.minimum(gain, _STRAIGHT + 0.5 * distance.square() / variance)
        bare = _flux(distance, variance, rise[..., j:, :], gain, spread)
        added = added + torch.diag_embed((bare * w[..., j:, :, j]).mT, -j)
    return added


def _derivative(y: Float[Tensor, "*any time side"]) -> Float[Tensor, "*any time side"]:
    """By differences over two steps to either side, of order four; at either end of order two."""
    second = torch.gradient(y, spacing=1.0, dim=-2, edge_order=2)[0]
    if y.shape[-2] < 5:
        return second
    near, far = y[..., 3:-1, :] - y[..., 1:-3, :], y[..., 4:, :] - y[..., :-4, :]
    inner = (8 * near - far) / 12
    return torch.cat([second[..., :2, :], inner, second[..., -2:, :]], -2)


def weights(rate: Float[Tensor, "*any"]) -> Float[Tensor, "*any 3"]:
    r"""What is added to the trapezoid of :math:`\sqrt x\,e^{-\text{rate}\,x} p(x)` at 0, 1, ….

    The first multiplies p(0), the others :math:`\sqrt x\,p(x)` at 1 and 2.

    Args:
        rate: κ dt.

    >>> weights(torch.tensor(0.0)).round(decimals=4)  # of the root alone
    tensor([ 0.1654,  0.0595, -0.0120])
    >>> x = torch.arange(1.0, 40.0)  # the integral of f is the sum, and what is added
    >>> f = x.sqrt() * torch.exp(-4 * x)
    >>> (f.sum() + weights(torch.tensor(4.0)) @ torch.tensor([1, 1, 2**0.5])) / (math.pi**0.5 / 16)
    tensor(1.)
    """
    series, power, exponential = (part.to(rate) for part in _RIGHT)
    # not 0, whose powers have no second derivative
    low, high = rate[..., None].clamp(1e-9, _SWITCH), rate[..., None].clamp_min(_SWITCH)
    soon = low ** torch.arange(_SERIES).to(rate) @ series
    steps = torch.arange(1, _SUM + 1).to(rate)
    late = high ** -(1.5 + torch.arange(3).to(rate)) @ power + (-high * steps).exp() @ exponential
    return torch.where(rate[..., None] < _SWITCH, soon, late)
