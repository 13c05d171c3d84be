r"""Many small minimisations at once: BFGS over a batch of problems that share nothing but the call.

.. math:: u \leftarrow u - \alpha H g, \qquad
    H \leftarrow (I - \rho s y^T) H (I - \rho y s^T) + \rho s s^T, \quad \rho = 1/(y^T s)

The inverse Hessian H is kept dense: the problems here have tens of parameters, folds and subjects
start from the full
fit's own H, and the Newton decrement g·Hg then says in nats how far from its minimum a problem
still is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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

    def converged(self, tolerance: float) -> Bool[Tensor, " batch"]:
        """Whether each problem is within ``tolerance`` of its minimum."""
        return self.decrement < tolerance


def _value_and_gradient(function: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    leaf = u.detach().requires_grad_(True)
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    bad = ~(torch.isfinite(value) & torch.isfinite(gradient).all(-1))
    return value.detach().masked_fill(bad, torch.inf), gradient.masked_fill(bad[:, None], 0.0)


def _line_search(
    function: Callable[[Tensor], Tensor], u: Tensor, value: Tensor, slope: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Backtrack each problem until Armijo holds; problems that find no descent stay where they are."""
    scale = torch.ones_like(value)
    for _ in range(30):
        new_value, new_gradient = _value_and_gradient(function, u + scale[:, None] * step)
        # differences at the level of rounding count as descent, or the last digits are never
        # reached
        noise = 1e-14 * value.abs()
        descended = new_value <= value + 1e-4 * scale * slope + noise
        if descended.all():
            break
        scale = torch.where(descended, scale, scale * 0.4)
    scale = torch.where(descended, scale, 0.0)
    return scale, u + scale[:, None] * step, new_value, new_gradient


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

    >>> best = minimise(lambda u: ((u - 3.0) ** 2).sum(-1), torch.zeros(1, 2))
    >>> best.u
    tensor([[3., 3.]])
    """
    u = u.detach()
    eye = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    scaled = inverse is not None
    h = eye.expand(len(u), -1, -1).clone() if inverse is None else inverse.clone()
    value, gradient = _value_and_gradient(function, u)
    if not torch.isfinite(value).all():
        raise ValueError("the log density is not finite at the starting point")
    count, still = 0, torch.zeros(len(u), dtype=torch.int64, device=u.device)
    for count in range(1, steps + 1):
        step = -(h @ gradient[..., None])[..., 0]
        slope = (step * gradient).sum(-1)
        # a lost descent direction restarts that problem from the identity
        lost = slope >= 0
        h = torch.where(lost[:, None, None], eye, h)
        step = torch.where(lost[:, None], -gradient, step)
        slope = torch.where(lost, -(gradient**2).sum(-1), slope)
        if scaled and (((-slope < tolerance) | (still > 2)).all()):
            break
        length = step.norm(dim=-1, keepdim=True)
        limit = 1.0 if not scaled else 10.0  # the first step knows nothing of scale
        step, slope = (
            step * (limit / length).clamp_max(1.0),
            slope * (limit / length[:, 0]).clamp_max(1.0),
        )
        taken, new_u, new_value, new_gradient = _line_search(function, u, value, slope, step)
        moved = taken > 0
        still = torch.where(moved & (value - new_value > tolerance * 1e-2), 0, still + 1)
        s, y = new_u - u, new_gradient - gradient
        sy = (s * y).sum(-1)
        good = moved & (sy > 1e-10 * s.norm(dim=-1) * y.norm(dim=-1))
        if not scaled:
            first = torch.where(good, sy / (y * y).sum(-1).clamp_min(1e-300), 1.0)
            h, scaled = h * first[:, None, None], True
        h = torch.where(good[:, None, None], _update(h, s, y, sy), h)
        # a problem that could not move is restarted from steepest descent
        h = torch.where((~moved & (still < 2))[:, None, None], eye * 1e-3, h)
        u = torch.where(moved[:, None], new_u, u)
        gradient = torch.where(moved[:, None], new_gradient, gradient)
        value = torch.where(moved, new_value, value)
    decrement = ((h @ gradient[..., None])[..., 0] * gradient).sum(-1)
    return Minimum(u, value, gradient.abs().amax(-1), decrement, h, count)


def _update(h: Tensor, s: Tensor, y: Tensor, sy: Tensor) -> Tensor:
    """BFGS update of the inverse Hessian, in the form that costs two outer products."""
    rho = 1 / torch.where(sy > 0, sy, 1.0)
    hy = (h @ y[..., None])[..., 0]
    gain = (1 + rho * (y * hy).sum(-1)) * rho
    cross = hy[:, :, None] * s[:, None, :]
    return (
        h
        - rho[:, None, None] * (cross + cross.mT)
        + gain[:, None, None] * s[:, :, None] * s[:, None, :]
    )
