r"""Laplace's method, corrected: t₇ draws around the mode, importance-resampled against the exact
posterior.

.. math:: q(u) = t_7(\hat u, (-\nabla^2 \log p(\hat u))^{-1}), \quad
    w_s = p(u_s)/q(u_s), \quad \log p(\text{data}) \approx \log \tfrac1S \sum_s w_s

Plain Laplace undercovers where a parameter leans on its bound (a lapse near zero); so corrected it
does not. The Pareto
k̂ of the weights says whether the correction can be trusted: above 0.7 use NUTS. A Hessian that is
not negative
definite is reported, and the offending directions are given the prior's unit scale.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.inference.optimise import Minimum, minimise
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.psis import smooth

_DF = 7.0
_TOLERANCE = 1e-5  # nats that another Newton step would win


@dataclass(frozen=True)
class Modes:
    """Posterior modes of a batch of problems, with what is known of the shape around them.

    Attributes:
        u: Modes.
        log_prob: log p(u | data) there.
        gradient: Largest gradient component at the modes, nats per unit of u.
        converged: Whether the Newton decrement is below 1e-5 nats.
        factor: L with L Lᵀ the covariance.
        definite: Whether the Hessian was negative definite.
    """

    u: Float[Tensor, "batch size"]
    log_prob: Float[Tensor, " batch"]
    gradient: Float[Tensor, " batch"]
    converged: Tensor
    factor: Float[Tensor, "batch size size"]
    definite: Tensor


@dataclass(frozen=True)
class Draws:
    """Posterior draws of a batch of problems.

    Attributes:
        u: (batch, draw, size), equally weighted.
        by_unit: Log likelihood of each unit at each draw.
        log_evidence: log p(data trained on).
        k_hat: Pareto shape of the importance weights.
        ess: Effective number of draws behind the resampled ones.
    """

    u: Float[Tensor, "batch draw size"]
    by_unit: Float[Tensor, "batch draw unit"]
    log_evidence: Float[Tensor, " batch"]
    k_hat: Float[Tensor, " batch"]
    ess: Float[Tensor, " batch"]


def _factor(hessian: Float[Tensor, "batch size size"]) -> tuple[Tensor, Tensor]:
    """L of the covariance (-hessian)⁻¹, and whether the Hessian was definite."""
    values, vectors = torch.linalg.eigh(-hessian)
    definite = (values > 1e-10 * values.amax(-1, keepdim=True).clamp_min(1e-300)).all(-1)
    scale = torch.where(values > 1e-8, values.clamp_min(1e-8).rsqrt(), torch.ones_like(values))
    return vectors * scale[..., None, :], definite


def find_modes(
    posterior: Posterior,
    start: Float[Tensor, "batch size"],
    inverse: Float[Tensor, "batch size size"] | None = None,
) -> Modes:
    """Minimise, then polish by exact Newton steps until the decrement is checked, not assumed.

    Args:
        posterior: The problems.
        start: Where to begin each.
        inverse: Inverse Hessians to begin with (folds begin with the full fit's).
    """

    def negative(u: Tensor) -> Tensor:
        return -posterior.log_prob(u)

    found = minimise(negative, start, inverse, tolerance=1e-3)
    hessian = posterior.hessian(found.u)
    factor, definite = _factor(hessian)
    # from here the exact Hessian is at hand: a few more steps bring the decrement to rounding
    found = minimise(negative, found.u, factor @ factor.mT, tolerance=_TOLERANCE * 1e-1, steps=30)
    return _modes(found, factor, definite)


def _modes(found: Minimum, factor: Tensor, definite: Tensor) -> Modes:
    return Modes(
        u=found.u,
        log_prob=-found.value,
        gradient=found.gradient,
        converged=found.decrement < _TOLERANCE,
        factor=factor,
        definite=definite,
    )


def _log_t(distance: Tensor, size: int) -> Tensor:
    """Log density of the standard t₇ in ``size`` dimensions at squared distances."""
    constant = (
        math.lgamma((_DF + size) / 2) - math.lgamma(_DF / 2) - size / 2 * math.log(_DF * math.pi)
    )
    return constant - (_DF + size) / 2 * torch.log1p(distance / _DF)


def _widths(posterior: Posterior, modes: Modes) -> Float[Tensor, "batch 2 size"]:
    """Scale of the posterior along each axis of L, to the left and to the right of the mode.

    Geweke's split: the widest normal that the log density allows at 1 and 2.5 standard deviations,
    so that a
    direction with a long shoulder is proposed along it.
    """
    batch, size = modes.u.shape
    axes = modes.factor.mT  # row i is the i-th axis
    steps = torch.tensor([-2.5, -1.0, 1.0, 2.5], dtype=axes.dtype, device=axes.device)
    u = modes.u[:, None, None, :] + steps[:, None, None] * axes[:, None]
    prior, by_unit = posterior.draws_terms(u.reshape(batch, -1, size))
    log_p = prior + (by_unit * posterior.mask[:, None, :]).sum(-1)
    drop = (modes.log_prob[:, None] - log_p).reshape(batch, 4, size)
    drop = torch.where(torch.isfinite(drop), drop, torch.inf)
    width = steps.abs()[:, None] / (2 * drop.clamp_min(1e-3)).sqrt()
    sides = torch.stack([width[:, :2].amax(1), width[:, 2:].amax(1)], 1)
    return sides.clamp(0.3, 5.0)


class _SplitT:
    """t₇ about the mode, stretched along each axis of L to the left and to the right."""

    def __init__(self, posterior: Posterior, modes: Modes) -> None:
        self.modes, self.widths = modes, _widths(posterior, modes)
        self.inverse = torch.linalg.inv(modes.factor)
        log_det = torch.linalg.slogdet(modes.factor)[1]
        self.log_scale = log_det + (self.widths.sum(1) / 2).log().sum(-1)

    def sample(self, proposals: int, generator: torch.Generator) -> Tensor:
        z = _t_noise(self.modes.u, proposals, generator).abs()
        # right of the mode with the right side's share of the width: the density is continuous
        share = (self.widths[:, 1] / self.widths.sum(1)).unsqueeze(1)
        right = torch.rand(z.shape, generator=generator, dtype=torch.float64).to(z) < share
        steps = torch.where(right, z * self.widths[:, None, 1], -z * self.widths[:, None, 0])
        return self.modes.u[:, None] + steps @ self.modes.factor.mT

    def log_prob(self, u: Tensor) -> Tensor:
        steps = (u - self.modes.u[:, None]) @ self.inverse.mT
        side = torch.where(steps > 0, self.widths[:, None, 1], self.widths[:, None, 0])
        return _log_t((steps / side).square().sum(-1), u.shape[-1]) - self.log_scale[:, None]


def _t_noise(like: Float[Tensor, "batch size"], n: int, generator: torch.Generator) -> Tensor:
    """Standard t₇ vectors (batch, n, size)."""
    batch, size = like.shape
    normal = torch.randn(batch, n, size, generator=generator, dtype=torch.float64)
    chi2 = torch.randn(batch, n, int(_DF), generator=generator, dtype=torch.float64)
    return (normal * (_DF / chi2.square().sum(-1, keepdim=True)).sqrt()).to(like)


def _systematic(probs: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Indices of systematic resampling: the least noise that equal weights can have."""
    position = torch.rand(len(probs), 1, generator=generator, dtype=torch.float64).to(probs)
    points = (torch.arange(draws, device=probs.device) + position) / draws
    return torch.searchsorted(probs.cumsum(-1), points).clamp_max(probs.shape[-1] - 1)


def importance_draws(
    posterior: Posterior, modes: Modes, draws: int, generator: torch.Generator
) -> Draws:
    """Resample split-t₇ proposals around the modes against the exact posterior.

    Args:
        posterior: The problems.
        modes: Their modes.
        draws: Draws returned; twice as many are proposed.
        generator: Source of randomness, on the CPU.
    """
    proposal = _SplitT(posterior, modes)
    u = proposal.sample(2 * draws, generator)
    prior, by_unit = posterior.draws_terms(u)
    log_w = prior + (by_unit * posterior.mask[:, None, :]).sum(-1) - proposal.log_prob(u)
    log_w = torch.where(torch.isfinite(log_w), log_w, -torch.inf)
    k_hat = torch.tensor([smooth(w[torch.isfinite(w)].cpu().numpy())[1] for w in log_w])
    probs = torch.softmax(log_w, -1)
    pick = _systematic(probs, draws, generator)
    rows = torch.arange(len(u), device=u.device)[:, None]
    evidence = torch.logsumexp(log_w, -1) - math.log(u.shape[1])
    return Draws(u[rows, pick], by_unit[rows, pick], evidence, k_hat, 1 / (probs**2).sum(-1))


@dataclass(frozen=True)
class Laplace:
    """Fit by Laplace's method with importance resampling.

    Args:
        draws: Posterior draws.
        starts: Starting points: the modules' own values, and perturbations of them.
    """

    draws: int = 1000
    starts: int = 4
