r"""First passage of a noisy path through two moving bounds: when, and through which.

.. math:: dX = (v(t) - \ell X)\,dt + dB, \quad X_0 = x_0, \qquad
    T = \inf\{t : |X_t| \ge b(t)\}

With :math:`S_\pm = \pm b` and q the Gaussian transition density of the free path, from y at u to S
at t over a distance d in variance V, the densities :math:`g_\pm` of passage solve two Volterra
equations whose kernel vanishes on the diagonal,

.. math:: g_\pm(t) = \mp 2\,\Psi_\pm(t \mid x_0, 0)
    \pm 2 \sum_{j = \pm} \int_0^t g_j(u)\, \Psi_\pm(t \mid S_j(u), u)\,du, \qquad
    \Psi_\pm = \tfrac12\, q\,\Big[S_\pm' + \ell S_\pm - v - \frac{d}{V}\Big]

On a uniform grid that is one unit-lower-triangular solve, for all conditions, subjects and draws
at once. The kernel between points of one bound grows as the root of their distance, so the
trapezoid's weights next to the diagonal are corrected for it: the error falls as dt^4.5. Cost is
linear in conditions and quadratic in time steps.

What others get wrong: noise here has unit variance per second and bounds are half-heights ±b, so a
"boundary separation" of 2 b; time is in seconds; RT survival is not a weighting (see
:mod:`~neurodiff.perception.effective`).

References:
    Buonocore, Nobile & Ricciardi 1987, "A new integral equation for the evaluation of
    first-passage-time probability densities". Smith 2000, "Stochastic dynamic models of response
    time and accuracy". Di Nardo et al. 2001, for Gauss-Markov paths. Navot 1961, for the weights.
"""

import math
from collections.abc import Callable
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


Drift = float | Tensor | Path | Callable[[Tensor], Path]
Bound = float | Tensor | Callable[[Tensor], tuple[Tensor, Tensor]]


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
    n, dt = len(time), time[0]
    sign = bound.new_tensor([1.0, -1.0])
    is_open = (bound > _TINY).to(bound).cumprod(-1)[..., None]
    b = torch.where(is_open > 0, bound[..., None], 1.0)
    height, rise = sign * b, sign * slope[..., None]  # (…, time, 2)
    if path is not None:
        rise = rise - path.slope[..., None]
    leak = None if path is None or path.leak is None else path.leak[..., None, None]
    if leak is not None:
        rise = rise + leak * height
    free = height if path is None else height - path.mean[..., None]

    # from the start: (…, node, time, 2)
    decay, variance = decayed(time, None if leak is None else leak[..., 0])
    distance = free[..., None, :, :] - start[..., None, None] * decay[..., None, :, None]
    first = _flux(distance, variance[..., None, :, None], rise[..., None, :, :])
    first = -2 * sign * first * is_open[..., None, :, :]

    # from bound j at u to bound i at t: (…, time, 2, time, 2)
    lag = time[:, None] - time[None, :]
    below = lag > 0.5 * dt
    # the lag is made harmless before it meets an exponential, or gradients are NaN
    decay, variance = decayed(torch.where(below, lag, 1.0), leak)
    decay, variance = decay[..., :, None, :, None], variance[..., :, None, :, None]
    distance = free[..., :, :, None, None] - decay * free[..., None, None, :, :]
    kernel = _flux(distance, variance, rise[..., :, :, None, None])
    weight = 2 * sign[:, None, None] * _weights(n, below, dt)
    shut = is_open[..., :, None, None] * is_open[..., None, None, :, :]
    matrix = (kernel * weight * shut).flatten(-2).flatten(-3, -2)
    eye = torch.eye(2 * n, dtype=bound.dtype, device=bound.device)
    rhs = first.flatten(-2).mT
    found = torch.linalg.solve_triangular(eye - matrix, rhs, upper=False, unitriangular=True)
    return found.mT.unflatten(-1, (n, 2))


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


def _weights(n: int, below: Tensor, dt: Tensor) -> Float[Tensor, "time 2 time 2"]:
    """Weights of the quadrature over u, from a bound to itself corrected near the diagonal."""
    whole = below.to(dt)
    near = sum(
        (
            w * torch.diag(dt.new_ones(max(0, n - j)), -j)[:n, :n]
            for j, w in enumerate(_NEAR, 1)
            if j < n
        ),
        torch.zeros_like(whole),
    )
    same = torch.eye(2, dtype=whole.dtype, device=whole.device)
    return dt * (whole[:, None, :, None] + near[:, None, :, None] * same[:, None, :])


def tilt(
    bound: Float[Tensor, "*#condition time"],
    time: Float[Tensor, " time"],
    start: Float[Tensor, "*#condition"],
    drift: Float[Tensor, "*#condition"],
    spread: Float[Tensor, "*#condition"] | None = None,
) -> Float[Tensor, "*#condition time 2"]:
    r"""Log ratio of passage densities with a constant drift to those without (Girsanov 1960).

    .. math:: \log \frac{g_v}{g_0} = v\,(\pm b - x_0) - \tfrac12 v^2 t

    so that conditions which differ in a constant drift share one solve. A drift that is normal over
    trials with s.d. ``spread`` (η) is integrated out,
    :math:`\big[2 v d - v^2 t + \eta^2 d^2\big] / 2 (1 + \eta^2 t) - \tfrac12 \log(1 + \eta^2 t)`
    with :math:`d = \pm b - x_0`.
    """
    sign = bound.new_tensor([1.0, -1.0])
    d = sign * bound[..., None] - start[..., None, None]
    v, t = drift[..., None, None], time[:, None]
    if spread is None:
        return v * d - 0.5 * v * v * t
    eta2 = spread[..., None, None].square()
    whole = 1 + eta2 * t
    return (2 * v * d - v * v * t + eta2 * d * d) / (2 * whole) - 0.5 * torch.log(whole)


def density(
    drift: Drift, bound: Bound, time: Float[Tensor, " time"], start: float | Tensor = 0.0
) -> Float[Tensor, "*condition time 2"]:
    """Density of choice and decision time.

    Args:
        drift: v, per second in units of the noise: a number or a tensor (condition) that does not
            change in time; or a :class:`Path`, or a function of time that returns one.
        bound: b: a number, a tensor (condition, time), or a function of time that returns b and its
            derivative. Where b reaches 0 nothing is left to decide: from there the density is 0.
        time: dt, 2 dt, …, seconds.
        start: x_0: a number or a tensor (condition).

    Returns:
        [..., 0] at the upper bound, [..., 1] at the lower, per second.

    Raises:
        ValueError: If the times are not dt, 2 dt, …, something is not finite, or the start is not
            between the bounds.

    >>> time = torch.linspace(0.01, 2.0, 200, dtype=torch.float64)
    >>> g = density(1.0, 0.8, time)
    >>> chosen = g.sum(0) / g.sum()
    >>> round(chosen[0].item(), 2)  # 1 / (1 + exp(-2 v b)) once all have answered
    0.83
    """
    _check_time(time)
    b, slope = _bound(bound, time)
    path = drift(time) if callable(drift) and not isinstance(drift, Path) else drift
    x0 = torch.as_tensor(start, dtype=time.dtype, device=time.device)
    _check(b, slope, x0, path)
    if isinstance(path, Path):
        shape = torch.broadcast_shapes(b.shape[:-1], x0.shape, path.slope.shape[:-1])
        b, slope = (x.expand(*shape, len(time)) for x in (b, slope))
        mean, moved = (x.expand(*shape, len(time)) for x in (path.mean, path.slope))
        path = Path(mean, moved, path.leak)
        return solve(b, slope, time, x0.expand(shape)[..., None], path)[..., 0, :, :].clamp_min(0.0)
    shape = torch.broadcast_shapes(b.shape[:-1], x0.shape)
    b, slope = (x.expand(*shape, len(time)) for x in (b, slope))
    x0 = x0.expand(shape)
    g = solve(b, slope, time, x0[..., None])[..., 0, :, :]
    v = torch.as_tensor(path, dtype=time.dtype, device=time.device)
    whole = torch.broadcast_shapes(shape, v.shape)
    log = tilt(b.expand(*whole, len(time)), time, x0.expand(whole), v.expand(whole))
    # in logs: a tilt may overflow where what it tilts has all but vanished
    there = g > 0
    return torch.where(there, (torch.where(there, g, 1.0).log() + log).exp(), 0.0)


def survival(
    density: Float[Tensor, "*condition time 2"], time: Float[Tensor, " time"]
) -> Float[Tensor, "*condition time"]:
    r"""P(T > t) at each time, :math:`1 - \int_0^t (g_+ + g_-)`, to the fourth order in dt."""
    g = density.sum(-1)
    zero = g.new_zeros(*g.shape[:-1], 1)
    # cubics through four points; the density vanishes at 0 with all its derivatives
    g = torch.cat([zero, zero, g, 3 * (g[..., -1:] - g[..., -2:-1]) + g[..., -3:-2]], -1)
    cells = 13 * (g[..., 1:-2] + g[..., 2:-1]) - g[..., :-3] - g[..., 3:]
    return 1 - (time[0] / 24 * cells).cumsum(-1)


def error(
    drift: Drift, bound: Bound, time: Float[Tensor, " time"], start: float | Tensor = 0.0
) -> Float[Tensor, "*condition half 2"]:
    """What doubling the step changes: :func:`density` at 2 dt, 4 dt, … with both steps.

    The error of the finer one is smaller by more than an order of magnitude. A bound that is a
    tensor is taken at every second time.

    >>> time = torch.linspace(0.01, 1.0, 100, dtype=torch.float64)
    >>> bool(error(1.0, 0.8, time).max() < 1e-3)
    True
    """
    wide = bound
    if isinstance(bound, Tensor) and bound.dim():
        wide = bound[..., 1::2]
    fine = density(drift, bound, time, start)[..., 1::2, :]
    return (fine - density(drift, wide, time[1::2], start)).abs()


def _bound(bound: Bound, time: Tensor) -> tuple[Tensor, Tensor]:
    """B and b′ at each time."""
    if callable(bound) and not isinstance(bound, Tensor):
        b, slope = bound(time)
        return torch.broadcast_tensors(b, slope)
    b = torch.as_tensor(bound, dtype=time.dtype, device=time.device)
    if not b.dim():
        b = b.expand(len(time))
        return b, torch.zeros_like(b)
    if b.shape[-1] != len(time):
        raise ValueError(
            f"got a bound of shape {tuple(b.shape)} for {len(time)} times: its last dimension is "
            "time; for one constant bound a condition give bound[:, None].expand(-1, len(time))"
        )
    return b, torch.gradient(b, spacing=float(time[0]), dim=-1, edge_order=2)[0]


def _check_time(time: Tensor) -> None:
    n = len(time)
    if n < 3 or not torch.allclose(time, time[0] * torch.arange(1, n + 1).to(time), rtol=1e-5):
        shown = ", ".join(f"{t:g}" for t in time[:3].tolist())
        raise ValueError(
            f"got times {shown}, … ({n} of them), wanted dt, 2 dt, 3 dt, … without 0: "
            "dt * torch.arange(1, n + 1)"
        )
    if not time[0] > 0:
        raise ValueError(f"got a time step of {time[0]:g} s, wanted it positive")


def _check(b: Tensor, slope: Tensor, x0: Tensor, drift: object) -> None:
    parts = {"bound": b, "slope of the bound": slope, "start": x0}
    if isinstance(drift, Path):
        parts |= {"drift": drift.slope, "mean path": drift.mean}
    else:
        parts["drift"] = torch.as_tensor(drift)
    for name, value in parts.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"the {name} is not finite: {value[~torch.isfinite(value)][0]}")
    first = b[..., 0]
    if (first <= 0).any():
        raise ValueError(f"the bound begins at {first.min():g}, wanted it above 0")
    outside = x0.abs() >= first
    if outside.any():
        at = torch.broadcast_tensors(x0, first)
        raise ValueError(
            f"the start {at[0][outside].flatten()[0]:g} is not between the bounds "
            f"±{at[1][outside].flatten()[0]:g}"
        )
