r"""Laplace's method: posterior modes of a batch of problems, with the curvature around them.

.. math:: \hat u = \arg\max_u \log p(u \mid \text{data}), \qquad
    L L^T = (-\nabla^2 \log p(\hat u))^{-1}

The gradient at the mode is checked, not assumed: the minimiser's Newton decrement, in nats, says
how much another step would still win. A Hessian that is not negative definite is reported, and the
offending directions are given unit scale. What corrects the normal approximation is
:mod:`neurodiff.inference.importance`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.inference.optimise import Minimum, minimise
from neurodiff.inference.posterior import Posterior

_TOLERANCE = 1e-5  # nats that another Newton step would win
_ROUNDS = 4  # of polishing, at most
_NEAR = 1e-2  # nats from its minimum to which each start is followed; the best goes on


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


def _factor(hessian: Float[Tensor, "batch size size"]) -> tuple[Tensor, Tensor]:
    """L of the covariance (-hessian)⁻¹, and whether the Hessian was definite."""
    values, vectors = torch.linalg.eigh(-hessian)
    definite = (values > 1e-10 * values.amax(-1, keepdim=True).clamp_min(1e-300)).all(-1)
    scale = torch.where(values > 1e-8, values.clamp_min(1e-8).rsqrt(), torch.ones_like(values))
    return nearest_root(vectors * scale[..., None, :]), definite


def nearest_root(root: Float[Tensor, "batch size size"]) -> Float[Tensor, "batch size size"]:
    """Of all L with the covariance L Lᵀ of one, that whose axes lie nearest to the parameters.

    What is skewed is a parameter, not an eigenvector.

    >>> turned = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
    >>> nearest_root(turned)
    tensor([[[2., 0.],
             [0., 1.]]])
    """
    sd = root.square().sum(-1).sqrt()
    values, vectors = torch.linalg.eigh((root / sd[..., None]) @ (root / sd[..., None]).mT)
    root = (vectors * values.clamp_min(1e-12).sqrt()[..., None, :]) @ vectors.mT
    return sd[..., None] * root


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

    found = minimise(negative, start, inverse, tolerance=1e-2)
    factor, definite = _factor(posterior.hessian(found.u))
    for again in range(_ROUNDS):
        # with the exact Hessian at hand a few more steps bring the decrement to rounding, unless
        # they lead to where it is another
        inverse, tolerance = factor @ factor.mT, _TOLERANCE * 1e-1
        found = minimise(negative, found.u, inverse, tolerance=tolerance, steps=30)
        # on a ridge those steps are enough to change an s.d. by half: what is returned is here
        factor, definite = _factor(posterior.hessian(found.u))
        if bool((found.decrement < _TOLERANCE).all()) and (again or bool(definite.all())):
            break
    return _modes(found, factor, definite)


def best_modes(
    posterior: Posterior,
    start: Float[Tensor, "start batch size"],
    inverse: Float[Tensor, "batch size size"] | None = None,
) -> Modes:
    """The best mode of each problem from several starts.

    Raises:
        ValueError: If the log density is not finite at any start of a single problem, or at some
            start of several.
    """
    best = None
    for u in start:
        try:
            # later starts have the scale that the best one so far has found
            scale = inverse if best is None else best.inverse
            found = minimise(lambda u: -posterior.log_prob(u), u, scale, tolerance=_NEAR)
        except ValueError:
            if posterior.batch > 1:
                raise
            continue  # another start may be finite
        best = found if best is None else best.lower(found)
    if best is None:
        raise ValueError(
            "the log density is not finite at any starting point: check the data and the priors"
        )
    return find_modes(posterior, best.u, best.inverse)


def _modes(found: Minimum, factor: Tensor, definite: Tensor) -> Modes:
    return Modes(
        u=found.u,
        log_prob=-found.value,
        gradient=found.gradient,
        converged=found.decrement < _TOLERANCE,
        factor=factor,
        definite=definite,
    )


@dataclass(frozen=True)
class Laplace:
    """Fit by Laplace's method with importance resampling.

    Args:
        draws: Posterior draws.
        starts: Starting points: the modules' own values, and perturbations of them.
    """

    draws: int = 1000
    starts: int = 4
