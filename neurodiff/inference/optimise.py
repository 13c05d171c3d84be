r"""Many small minimisations at once: BFGS over a batch of problems that share nothing but the call.

.. math:: u \leftarrow u - \alpha H g, \qquad
    H \leftarrow (I - \rho s y^T) H (I - \rho y s^T) + \rho s s^T, \quad \rho = 1/(y^T s)

The inverse Hessian H is kept dense: the problems here have tens of parameters, folds and subjects
start from the full fit's own H, and the Newton decrement g·Hg then says in nats how far from its
minimum a problem still is. One that has arrived stays there, so that it ends where it would alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_FIRST, _LONGEST = (
    1.0,
    10.0,
)  # length of the first step, which knows nothing of scale, and of others
_ARMIJO = 1e-4
_NOISE = 1e-14  # relative error of a value


@dataclass(frozen=True)
class Minimum:
    """Where each problem of a batch came to rest.

    Attributes:
        u: Positions.
        value: Values there.
        gradient: Largest absolute component of the gradient.
        decrement: What another Newton step would still win, in the units of the value.
        inverse: BFGS's estimate of the inverse Hessian.
        steps: Iterations made.
    """

    u: Float[Tensor, "batch size"]
    value: Float[Tensor, " batch"]
    gradient: Float[Tensor, " batch"]
    decrement: Float[Tensor, " batch"]
    inverse: Float[Tensor, "batch size size"]
    steps: int

    def lower(self, other: "Minimum") -> "Minimum":
        """Of each problem the lower of two minima."""
        better = other.value < self.value
        mine, theirs = vars(self), vars(other)
        chosen = {
            name: torch.where(
                better.reshape(-1, *[1] * (mine[name].dim() - 1)), theirs[name], mine[name]
            )
            for name in ("u", "value", "gradient", "decrement", "inverse")
        }
        return Minimum(**chosen, steps=self.steps + other.steps)

    def converged(self, tolerance: float) -> Bool[Tensor, " batch"]:
        """Whether each problem is within ``tolerance`` of its minimum."""
        return self.decrement < tolerance


@dataclass
class _Point:
    """Positions, values and gradients of the batch."""

    u: Tensor
    value: Tensor
    gradient: Tensor

    @classmethod
    def at(cls, function: Callable[[Tensor], Tensor], u: Tensor) -> "_Point":
        leaf = u.detach().requires_grad_(True)
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        bad = ~(torch.isfinite(value) & torch.isfinite(gradient).all(-1))
        value = value.detach().masked_fill(bad, torch.inf)
        return cls(u.detach(), value, gradient.masked_fill(bad[:, None], 0.0))

    def where(self, moved: Tensor, new: "_Point") -> "_Point":
        return _Point(
            torch.where(moved[:, None], new.u, self.u),
            torch.where(moved, new.value, self.value),
            torch.where(moved[:, None], new.gradient, self.gradient),
        )


def minimise(
    function: Callable[[Tensor], Tensor],
    u: Float[Tensor, "batch size"],
    inverse: Float[Tensor, "batch size size"] | None = None,
    tolerance: float = 1e-7,
    steps: int = 500,
) -> Minimum:
    """Minimise every problem of a batch by BFGS.

    Args:
        function: Values (batch,) at positions (batch, size), each depending on its own row alone.
        u: Starting positions.
        inverse: Inverse Hessians to start with; by default the identity, scaled after the first
            step.
        tolerance: Stop when the Newton decrement of every problem is below it.
        steps: Iterations at most.

    Raises:
        ValueError: If a value at the start is not finite.

    >>> best = minimise(lambda u: ((u - 3.0) ** 2).sum(-1), torch.zeros(1, 2))
    >>> best.u.round(decimals=6)
    tensor([[3., 3.]])
    """
    point = _Point.at(function, u)
    if not torch.isfinite(point.value).all():
        raise ValueError("the log density is not finite at the starting point")
    eye = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    h = eye.expand(len(u), -1, -1) if inverse is None else inverse
    still = torch.zeros(len(u), dtype=torch.int64, device=u.device)
    count = 0
    while count < steps:
        h, step, slope = _direction(h, point.gradient, eye)
        scaled = inverse is not None or count > 0
        there = (-slope < tolerance) | (still > 2) if scaled else torch.zeros_like(slope).bool()
        if there.all():
            break
        shrink = ((_LONGEST if scaled else _FIRST) / step.norm(dim=-1)).clamp_max(1.0)
        new = _line_search(function, point, step * shrink[:, None], slope * shrink, there)
        moved = (new.u != point.u).any(-1)
        gained = moved & (point.value - new.value > tolerance * 1e-2)
        still = torch.where(there, still, torch.where(gained, 0, still + 1))
        updated = _update(h, new.u - point.u, new.gradient - point.gradient, first=not scaled)
        # a problem that could not move is tried once more from steepest descent
        updated = torch.where((~moved & (still < 2))[:, None, None], eye * 1e-3, updated)
        h = torch.where(there[:, None, None], h, updated)
        point, count = new, count + 1
    decrement = ((h @ point.gradient[..., None])[..., 0] * point.gradient).sum(-1)
    return Minimum(point.u, point.value, point.gradient.abs().amax(-1), decrement, h, count)


def _direction(h: Tensor, gradient: Tensor, eye: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """H, the step -Hg and its slope; a problem whose step would climb is restarted."""
    step = -(h @ gradient[..., None])[..., 0]
    lost = (step * gradient).sum(-1) >= 0
    h = torch.where(lost[:, None, None], eye, h)
    step = torch.where(lost[:, None], -gradient, step)
    return h, step, (step * gradient).sum(-1)


def _line_search(
    function: Callable[[Tensor], Tensor], point: _Point, step: Tensor, slope: Tensor, there: Tensor
) -> _Point:
    """Backtrack each problem until Armijo holds; one that finds no descent stays where it is.

    Those that are ``there`` stay too.
    """
    scale = torch.where(there, 0.0, 1.0).to(slope)
    for _ in range(30):
        new = _Point.at(function, point.u + scale[:, None] * step)
        # what rounding may do counts as descent, or the last digits are never reached
        bound = point.value + _ARMIJO * scale * slope + _NOISE * point.value.abs()
        descended = new.value <= bound
        if (descended | there).all():
            break
        scale = torch.where(descended, scale, scale * 0.4)
    return point.where(descended & ~there, new)


def _update(h: Tensor, s: Tensor, y: Tensor, first: bool) -> Tensor:
    """BFGS update of the inverse Hessian, where the curvature along the step was positive."""
    sy = (s * y).sum(-1)
    good = sy > 1e-10 * s.norm(dim=-1) * y.norm(dim=-1)
    rho = 1 / torch.where(good, sy, 1.0)
    if first:
        scale = torch.where(good, sy / (y * y).sum(-1).clamp_min(1e-300), 1.0)
        h = h * scale[:, None, None]
    hy = (h @ y[..., None])[..., 0]
    gain = (1 + rho * (y * hy).sum(-1)) * rho
    cross = hy[:, :, None] * (rho[:, None] * s)[:, None, :]
    updated = h - cross - cross.mT + (gain[:, None] * s)[:, :, None] * s[:, None, :]
    return torch.where(good[:, None, None], updated, h)
