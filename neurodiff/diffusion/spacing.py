r"""Where to put the levels: how straight a path is, and where its curvature lies, for given data.

.. math::

    ∫_0^1 E\,|(z_1 - z_0) - z'(t)|^2 \, dt, \qquad
    \text{levels per } dη \;∝\; \Big(a(λ) \big(E\,|d^p \hat x / dη^p|^2\big)^{1/2}\Big)^{1/(p+1)},
    \quad η = λ/2

The left, the straightness of a path, is 0 where a single step would do. It depends on the data, not
on the path alone: for x of variance 1 the variance-preserving path is straight and the straight
path is not; for x of variance 0 the other way round.

The right equidistributes the local error of a sampler of order p. In a step of h = Δη a sampler
errs by c h^{p+1} |d^p x̂/dη^p| in z/α, and by a times that in z on a path of scale a = α(λ). For
so many steps over a range of η the sum of errors is least where all are equal. How the flow carries
an error on to the end is left out (weighting by its adjoint was tried on mixtures and on digits,
and no error fell much).

References: Liu et al. 2023 (straightness); Xue et al. 2024, Sabour et al. 2024 (levels from the
data); de Boor 1973 (equidistribution).
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.logsnr import straight
from neurodiff.diffusion.parameterization import like
from neurodiff.diffusion.sample import dpm_solver, levels
from neurodiff.diffusion.schedule import NoiseSchedule, Path

SPREAD = 0.1  # of the steps as the pilot's: where x̂ stands still for all, none would be left


@torch.no_grad()
def straightness(
    denoiser: Denoiser,
    z: Float[Tensor, "batch *event"],
    schedule: NoiseSchedule,
    cond: Shaped[Tensor, "batch ..."] | None = None,
    *,
    steps: int = 200,
) -> Float[Tensor, " batch"]:
    r"""How far the flow of each sample is from a straight line at constant speed; 0 if it is one.

    .. math:: ∫_0^1 |z_1 - z_0 - z'|^2 dt = ∫_0^1 |z'|^2 dt - |z_1 - z_0|^2

    summed over dimensions; the mean over z ~ N(0, I) is the number at the head of this module. z is
    on the schedule's own path, and t its time, from -13.3 to 13.3 nats or as far as it reaches.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z].
        z: noise, in VP scaling.
        schedule: a path and its time.
        cond: (batch, ...).
        steps: of the pilot; the error falls as their square.

    >>> import neurodiff as nd
    >>> from neurodiff.diffusion.prior import Gaussian
    >>> unit, z = Gaussian(torch.zeros(1), torch.ones(1)), torch.ones(1, 1)
    >>> [round(straightness(unit, z, nd.schedule(name)).item(), 2) for name in ("cosine", "flow")]
    [0.0, 0.43]
    """
    logsnr = levels(schedule, steps).to(z)
    time, scale = schedule.t(logsnr), torch.hypot(*schedule._path(logsnr))
    path = trajectory(denoiser, z, logsnr, cond)[0]
    path = (like(scale, path) * path).reshape(len(logsnr), len(z), -1)
    lengths = time.diff().abs()
    speed = path.diff(dim=0).square().sum(2) / lengths[:, None]
    return lengths.sum() * speed.sum(0) - (path[-1] - path[0]).square().sum(1)


@torch.no_grad()
def equidistributed(
    denoiser: Denoiser,
    z: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, " pilot"],
    steps: int,
    cond: Shaped[Tensor, "batch ..."] | None = None,
    *,
    order: int = 1,
    path: Path = straight,
) -> Float[Tensor, " level"]:
    r"""Levels at which every step of a sampler of this order errs alike, along pilot trajectories.

    On the straight path, a = α = 1 - t and σ = t, these are for order 1 the levels that its
    curvature asks for: there :math:`z'' = (d\hat x/dη) / (α σ^2)` and :math:`dη = -dt/(ασ)`, hence
    levels per dt :math:`∝ |z''|^{1/2}`, few where curvature is low. On the VP path a is the same
    within √2; with ``exploding``, a = 1, errors of x̂ at high noise count as those at low noise.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z].
        z: of the pilots, at ``logsnr[0]``: some tens are enough.
        logsnr: of the pilots, increasing, finer than what is asked for, such as 200 steps of
            ``levels``: it gives the two ends, and a tenth of the steps is spread as it is.
        steps: at least 1.
        cond: (batch, ...).
        order: p: 1 for ``ddim`` and ``ancestral``, 2 for ``dpm_solver``. Not for ``heun``: its step
            is one in σ/α, and if there are few it wants the levels of EDM.
        path: on whose scale errors are counted.

    Returns:
        Increasing, (steps + 1,), for any sampler.

    Raises:
        ValueError: fewer than 1 step, an order below 1, or pilots that do not increase or have not
            more levels than their order.

    >>> import neurodiff as nd
    >>> from neurodiff.diffusion.prior import Binary
    >>> pilot = levels(nd.schedule("cosine"), 200)
    >>> found = equidistributed(Binary(), torch.randn(50).to(pilot), pilot, 8)
    >>> found.shape, bool((found.diff() > 0).all())
    (torch.Size([9]), True)
    """
    if steps < 1 or order < 1:
        raise ValueError(f"wanted steps >= 1 and order >= 1, got {steps} and {order}")
    if logsnr.ndim != 1 or len(logsnr) < order + 2 or not (logsnr.diff() > 0).all():
        raise ValueError(
            f"the pilot's logsnr has shape {tuple(logsnr.shape)}; wanted more than {order + 1} "
            "increasing values, the same for all samples: give levels(schedule, 200)"
        )
    eta = at = 0.5 * logsnr
    slope = trajectory(denoiser, z, logsnr, cond)[1].reshape(len(logsnr), -1)
    for _ in range(order):
        slope, at = slope.diff(dim=0) / at.diff()[:, None], 0.5 * (at[1:] + at[:-1])
    error = path(2 * at)[0] * slope.square().mean(1).sqrt()
    density = _interpolate(0.5 * (eta[1:] + eta[:-1]), at, error ** (1 / (order + 1)))
    mass = density * eta.diff()
    mass = (1 - SPREAD) * mass / mass.sum().clamp_min(1e-300) + SPREAD / len(mass)
    reached = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
    share = torch.linspace(0, 1, steps + 1, dtype=logsnr.dtype, device=logsnr.device)
    found = _interpolate(share, reached / reached[-1], logsnr)
    found[0], found[-1] = logsnr[0], logsnr[-1]
    return found


def trajectory(
    denoiser: Denoiser, z: Tensor, logsnr: Tensor, cond: Tensor | None = None
) -> tuple[Float[Tensor, "level batch *event"], Float[Tensor, "level batch *event"]]:
    """Z and x̂ at every level on the way from ``logsnr[0]``, to second order in the step."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(Denoiser):
        def forward(self, z: Tensor, logsnr: Tensor, cond: Tensor | None = None) -> Tensor:
            seen.append((z, denoiser(z, logsnr, cond)))
            return seen[-1][1]

    # this sampler looks at every level once, in order
    Watched()(dpm_solver(Watched(), z, logsnr, cond), logsnr[-1], cond)
    z_of, x_of = zip(*seen, strict=True)
    return torch.stack(z_of), torch.stack(x_of)


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Linear between the points (x, y), x increasing, and constant beyond."""
    right = torch.searchsorted(x, at.contiguous()).clamp(1, len(x) - 1)
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    return torch.lerp(y[right - 1], y[right], share.clamp(0, 1))
