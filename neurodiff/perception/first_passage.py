r"""First passage of a noisy path through two moving bounds: when, and through which.

.. math:: dX = (v(t) - \ell X)\,dt + dB, \quad X_0 = x_0, \qquad
    T = \inf\{t : |X_t| \ge b(t)\}

The densities :math:`g_\pm(t)` of passage through the two bounds solve two integral equations
(:mod:`~neurodiff.perception.volterra`), on a uniform grid one triangular solve for all conditions,
subjects and draws at once. Cost is linear in conditions and quadratic in time steps; the error
falls as dt^4.5. A constant drift is only a tilt of the driftless densities, so that conditions
which differ in nothing else share one solve.

What others get wrong: noise here has unit variance per second and bounds are half-heights ±b, so a
"boundary separation" of 2 b; time is in seconds; RT survival is not a weighting (see
:mod:`~neurodiff.perception.effective`).

References:
    Smith 2000, "Stochastic dynamic models of response time and accuracy", for the equations;
    Girsanov 1960 for the tilt.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.perception.volterra import Path as Path
from neurodiff.perception.volterra import solve as solve

Drift = float | Tensor | Path | Callable[[Tensor], Path]
Bound = float | Tensor | Callable[[Tensor], tuple[Tensor, Tensor]]


def tilt(
    bound: Float[Tensor, "*#condition time"],
    time: Float[Tensor, "*#condition time"],
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
    v, t = drift[..., None, None], time[..., None]
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
    b, slope = bound_of(bound, time)
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
    return 1 - through(density.sum(-1), time)


def through(
    g: Float[Tensor, "*any time"], time: Float[Tensor, " time"]
) -> Float[Tensor, "*any time"]:
    r"""What has passed by each time, :math:`\int_0^t g`, to the fourth order in dt.

    >>> time = torch.linspace(0.1, 1.0, 10)
    >>> through(time**3, time)[[4, 9]]  # t⁴/4
    tensor([0.0156, 0.2500])
    """
    zero = g.new_zeros(*g.shape[:-1], 1)
    # cubics through four points; the density vanishes at 0 with all its derivatives
    g = torch.cat([zero, zero, g, 3 * (g[..., -1:] - g[..., -2:-1]) + g[..., -3:-2]], -1)
    cells = 13 * (g[..., 1:-2] + g[..., 2:-1]) - g[..., :-3] - g[..., 3:]
    return (time[0] / 24 * cells).cumsum(-1)


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


def bound_of(bound: Bound, time: Tensor) -> tuple[Tensor, Tensor]:
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


def __getattr__(name: str) -> object:
    # it is one thing with first passage to those who use it, and rests on it
    if name == "effective_weighting":
        from neurodiff.perception.effective import effective_weighting

        return effective_weighting
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
