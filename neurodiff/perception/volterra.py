r"""The Volterra equations of first passage, and their solution as one triangular solve.

.. math:: g_\pm(t) = \mp 2\,\Psi_\pm(t \mid x_0, 0)
    \pm 2 \sum_{j = \pm} \int_0^t g_j(u)\, \Psi_\pm(t \mid S_j(u), u)\,du, \qquad
    \Psi_\pm = \tfrac12\, q\,\Big[S_\pm' + \ell S_\pm - v - \frac{d}{V}\Big]

:math:`S_\pm = \pm b` are the bounds and q the Gaussian transition density of the free path, from y
at u to S at t over a distance d in variance V. The kernel between points of one bound grows as the
root of their distance, so the trapezoid's weights next to the diagonal are corrected for it: the
error falls as dt^4.5. Without drift each bound is the other's mirror, and the sum of their
densities and the difference have equations of their own, of half the size.

References:
    Buonocore, Nobile & Ricciardi 1987, "A new integral equation for the evaluation of
    first-passage-time probability densities". Di Nardo et al. 2001, for Gauss-Markov paths.
    Navot 1961, "An extension of the Euler-Maclaurin summation formula", for the weights.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# corrections of the weights one, two and three steps from the diagonal, where the integrand is
# sqrt(t - u) (c0 + c1 (t - u) + c2 (t - u)²): sum_j w_j j^(k + 1/2) = -zeta(-k - 1/2), k = 0, 1, 2
_NEAR = (0.5556872058185559, -0.3628878637917415, 0.0954937101330398)
_TINY = 1e-12


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
    is_open = (bound > _TINY).to(bound).cumprod(-1)
    b = torch.where(is_open > 0, bound, 1.0)
    if path is None:
        return _driftless(b, slope, time, start, is_open)
    return _moved(b, slope, time, start, is_open, path)


def _driftless(b: Tensor, slope: Tensor, time: Tensor, start: Tensor, is_open: Tensor) -> Tensor:
    """Without drift: the sum of the two densities and the difference, each by itself."""
    distance = b[..., None, :, None] - start[..., None, None] * torch.tensor([1.0, -1.0]).to(b)
    rise, open_ = slope[..., None, :, None], is_open[..., None, :, None]
    first = -2 * _flux(distance, time[:, None], rise) * open_
    lag, below = _lags(time)
    here, there = b[..., :, None], b[..., None, :]
    same, cross = (_flux(d, lag, slope[..., :, None]) for d in (here - there, here + there))
    shut = is_open[..., :, None] * is_open[..., None, :]
    plain, near = _weights(len(time), below, time[0])
    same, cross = 2 * same * (plain + near) * shut, 2 * cross * plain * shut
    matrix = torch.stack([same + cross, same - cross], -3)  # (…, 2, time, time)
    both = torch.stack([first.sum(-1), first[..., 0] - first[..., 1]], -3)  # (…, 2, node, time)
    total, difference = _forward(matrix, both.mT).mT.unbind(-3)
    return 0.5 * torch.stack([total + difference, total - difference], -1)


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
    decay, variance = decayed(time, None if leak is None else leak[..., 0])
    distance = free[..., None, :, :] - start[..., None, None] * decay[..., None, :, None]
    first = _flux(distance, variance[..., None, :, None], rise[..., None, :, :])
    first = -2 * sign * first * open_[..., None, :, :]

    # from bound j at u to bound i at t: (…, time, 2, time, 2)
    lag, below = _lags(time)
    decay, variance = decayed(lag, leak)
    decay, variance = decay[..., :, None, :, None], variance[..., :, None, :, None]
    distance = free[..., :, :, None, None] - decay * free[..., None, None, :, :]
    kernel = _flux(distance, variance, rise[..., :, :, None, None])
    plain, near = (w[:, None, :, None] for w in _weights(n, below, time[0]))
    same = torch.eye(2, dtype=b.dtype, device=b.device)[:, None, :]
    shut = open_[..., :, None, None] * open_[..., None, None, :, :]
    matrix = kernel * 2 * sign[:, None, None] * (plain + near * same) * shut
    found = _forward(matrix.flatten(-2).flatten(-3, -2), first.flatten(-2).mT)
    return found.mT.unflatten(-1, (n, 2))


def _forward(matrix: Tensor, right: Tensor) -> Tensor:
    """G = right + matrix g, the matrix strictly lower triangular."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(eye - matrix, right, upper=False, unitriangular=True)


def _lags(time: Tensor) -> tuple[Tensor, Tensor]:
    """T - u below the diagonal, and where that is; elsewhere a lag that harms no exponential."""
    lag = time[:, None] - time[None, :]
    below = lag > 0.5 * time[0]
    return torch.where(below, lag, 1.0), below.to(time)


def _flux(distance: Tensor, variance: Tensor, rise: Tensor) -> Tensor:
    """Ψ."""
    z = distance / variance
    q = torch.exp(-0.5 * distance * z) / torch.sqrt(2 * math.pi * variance)
    return 0.5 * q * (rise - z)


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


def _weights(n: int, below: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (time, time) of the trapezoid over u, and what is added from a bound to itself."""
    near = torch.zeros_like(below)
    for j, w in enumerate(_NEAR[: n - 1], 1):
        near = near + w * torch.diag(dt.new_ones(n - j), -j)
    return dt * below, dt * near
