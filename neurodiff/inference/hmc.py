r"""Many short Hamiltonian chains at once, for the posteriors that a mode does not describe.

.. math:: u = \hat u + L z, \qquad
    z' = z + \epsilon\, p_{1/2}, \quad p_{1/2} = p + \tfrac{\epsilon}{2} \nabla_z \log p(u), \ldots

Every problem of a batch (fold, subject, data set) runs a hundred chains side by side under one
``vmap``: where a design has few distinct rows a leapfrog step of all of them costs hardly more than
one. Chains start at overdispersed t₇ draws, the step size of each problem is adapted while warming
up, trajectories are jittered, and R-hat over chains says whether they have met.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.inference.posterior import Posterior


@dataclass(frozen=True)
class Chains:
    """What the chains of a batch of problems delivered.

    Attributes:
        u: (batch, chain, draw, size).
        r_hat: Largest R-hat over components, per problem.
        accepted: Mean acceptance, per problem.
    """

    u: Float[Tensor, "batch chain draw size"]
    r_hat: Float[Tensor, " batch"]
    accepted: Float[Tensor, " batch"]


def r_hat(u: Float[Tensor, "batch chain draw size"]) -> Float[Tensor, " batch"]:
    """Largest potential scale reduction over components.

    >>> generator = torch.Generator().manual_seed(0)
    >>> bool(r_hat(torch.randn(1, 50, 20, 2, generator=generator)) < 1.02)
    True
    """
    draws = u.shape[2]
    within = u.var(2).mean(1)
    between = u.mean(2).var(1)
    ratio = (draws - 1) / draws + between / within.clamp_min(1e-300)
    # means of short chains scatter by within/draws even when all is well: that is not disagreement
    return ratio.clamp_min(1.0).sqrt().amax(-1)


class _Walk:
    """Positions of all chains in z, with log density and gradient."""

    def __init__(self, posterior: Posterior, centre: Tensor, factor: Tensor, z: Tensor) -> None:
        self.posterior, self.centre, self.factor = posterior, centre, factor
        self.z = z
        self.log_p, self.slope = self.evaluate(z)

    def positions(self, z: Tensor) -> Tensor:
        return self.centre[:, None] + z @ self.factor.mT

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        leaf = z.detach().requires_grad_(True)
        log_p = self.posterior.draws_log_prob(self.positions(leaf))
        (slope,) = torch.autograd.grad(log_p.sum(), leaf)
        bad = ~(torch.isfinite(log_p) & torch.isfinite(slope).all(-1))
        return log_p.detach().masked_fill(bad, -torch.inf), slope.masked_fill(bad[..., None], 0.0)

    def remetric(self) -> None:
        """Take the chains' own covariance as the metric: that of the mode may mislead."""
        u = self.positions(self.z)
        mean = u.mean(1, keepdim=True)
        covariance = (u - mean).mT @ (u - mean) / (u.shape[1] - 1)
        scale = covariance.diagonal(dim1=-2, dim2=-1)
        ridge = torch.diag_embed(0.1 * scale)  # a hundred chains leave small eigenvalues uncertain
        self.factor = torch.linalg.cholesky(0.9 * covariance + ridge)
        self.centre = mean[:, 0]
        self.z = (u - mean) @ torch.linalg.inv(self.factor).mT
        self.log_p, self.slope = self.evaluate(self.z)

    def step(self, epsilon: Tensor, leaps: int, generator: torch.Generator) -> Tensor:
        """One trajectory of every chain; returns the acceptance probabilities."""

        def noise(draw: Callable[..., Tensor], *shape: int) -> Tensor:
            return draw(*shape, generator=generator, dtype=torch.float64).to(self.z)

        momentum = noise(torch.randn, *self.z.shape)
        jitter = 0.8 + 0.4 * noise(torch.rand, *self.log_p.shape)
        size = (epsilon[:, None] * jitter)[..., None]
        z, log_p, slope, p = self.z, self.log_p, self.slope, momentum
        for _ in range(leaps):
            p = p + 0.5 * size * slope
            z = z + size * p
            log_p, slope = self.evaluate(z)
            p = p + 0.5 * size * slope
        energy = log_p - self.log_p + 0.5 * (momentum.square() - p.square()).sum(-1)
        chance = torch.where(torch.isnan(energy), -torch.inf, energy).exp().clamp_max(1.0)
        move = noise(torch.rand, *chance.shape) < chance
        self.z = torch.where(move[..., None], z, self.z)
        self.log_p = torch.where(move, log_p, self.log_p)
        self.slope = torch.where(move[..., None], slope, self.slope)
        return chance


def many_chains(
    posterior: Posterior,
    centre: Float[Tensor, "batch size"],
    factor: Float[Tensor, "batch size size"],
    start: Float[Tensor, "batch chain size"],
    generator: torch.Generator,
    warmup: int = 80,
    draws: int = 20,
) -> Chains:
    """Run all chains of all problems.

    Args:
        posterior: The problems.
        centre: Modes.
        factor: L of the Laplace covariance: the metric.
        start: Where the chains begin.
        generator: Source of randomness.
        warmup: Trajectories that adapt the step size and are not kept.
        draws: Trajectories kept.
    """
    z = (start - centre[:, None]) @ torch.linalg.inv(factor).mT
    walk = _Walk(posterior, centre, factor, z)
    epsilon = torch.full((len(centre),), 0.6 * centre.shape[-1] ** -0.25).to(centre)
    kept, chances = [], []
    for i in range(warmup + draws):
        leaps = int(torch.randint(5, 16, (1,), generator=generator))
        chance = walk.step(epsilon, leaps, generator)
        if i < warmup:
            epsilon = epsilon * torch.exp(0.5 * (chance.mean(-1) - 0.8))
            if i in (warmup // 4, warmup // 2):
                walk.remetric()
        else:
            kept.append(walk.positions(walk.z))
            chances.append(chance.mean(-1))
    u = torch.stack(kept, 2)
    return Chains(u, r_hat(u), torch.stack(chances).mean(0))
