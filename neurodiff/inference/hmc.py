r"""Many short Hamiltonian chains at once, for the posteriors that a mode does not describe.

.. math:: u = \bar u + L z, \qquad
    z' = z + \epsilon\, p_{1/2}, \quad p_{1/2} = p + \tfrac{\epsilon}{2} \nabla_z \log p(u), \ldots

Every problem of a batch (fold, subject, data set) runs a hundred chains side by side under one
``vmap``: where a design has few distinct rows a leapfrog step of all of them costs hardly more than
one. While warming up, the step size of each problem is adapted and the metric L is retaken from
where the chains have been; a trajectory is as long as the posterior is wide, jittered. Ten chains
each begin at one of ten scattered draws; the nested R-hat says whether they have forgotten which.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neurodiff.inference.posterior import Posterior
from neurodiff.inference.streams import Source, draw

_STARTS = 10
_CLOUD = 400  # Laplace draws behind the first metric
_ACCEPT = 0.8
_FAR = 20.0  # nats below the best start, and 2 more for each parameter
_LENGTH = 0.5 * math.pi  # of a trajectory in z: a quarter turn forgets where it began
_MOST = 32  # leapfrog steps of one trajectory


@dataclass(frozen=True)
class Chains:
    """What the chains of a batch of problems delivered.

    Attributes:
        u: (batch, chain, draw, size).
        r_hat: Largest nested R-hat over components, per problem.
        accepted: Mean acceptance, per problem.
    """

    u: Float[Tensor, "batch chain draw size"]
    r_hat: Float[Tensor, " batch"]
    accepted: Float[Tensor, " batch"]


def r_hat(u: Float[Tensor, "batch chain draw size"], starts: int) -> Float[Tensor, " batch"]:
    r"""Largest nested R-hat over components: have chains forgotten where they began?

    .. math:: \hat R^2 = 1 + B / W

    B is the variance of the means of superchains (chains with one start, side by side in u), W the
    variance within them. Short chains that mix need many draws each before the usual R-hat is near
    1; this one needs them together, and tends to at most 1 + 1/(2M) with M chains a start.

    Args:
        u: Draws.
        starts: Number of superchains.

    References:
        Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari & Gelman 2024, "Nested R-hat".

    >>> generator = torch.Generator().manual_seed(0)
    >>> bool(r_hat(torch.randn(1, 50, 20, 2, generator=generator), 10) < 1.02)
    True
    """
    by_start = u.unflatten(1, (starts, -1))  # batch, start, chain, draw, size
    between = by_start.mean((2, 3)).var(1)
    chains = by_start.mean(3)
    within = (chains.var(2) + by_start.var(3).mean(2)).mean(1)
    return (1 + between / within.clamp_min(1e-300)).sqrt().amax(-1)


class _Walk:
    """Positions of all chains in z, with log density and gradient."""

    def __init__(self, posterior: Posterior, u: Tensor, cloud: Tensor) -> None:
        self.posterior = posterior
        self.settle(u, cloud)

    def settle(self, u: Tensor, cloud: Float[Tensor, "batch draw size"]) -> None:
        """Stand at u, in the metric of a cloud: its mean and the factor of its covariance."""
        self.centre = cloud.mean(1, keepdim=True)
        covariance = (cloud - self.centre).mT @ (cloud - self.centre) / (cloud.shape[1] - 1)
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        ridge = torch.diag_embed(0.02 * diagonal + 1e-12)  # few draws leave small axes uncertain
        self.factor = torch.linalg.cholesky(0.98 * covariance + ridge)
        self.z = torch.linalg.solve_triangular(self.factor, (u - self.centre).mT, upper=False).mT
        self.log_p, self.slope = self.evaluate(self.z)

    def places(self) -> Float[Tensor, "batch chain size"]:
        """Where the chains are."""
        return self.centre + self.z @ self.factor.mT

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        leaf = z.detach().requires_grad_(True)
        log_p = self.posterior.draws_log_prob(self.centre + leaf @ self.factor.mT)
        (slope,) = torch.autograd.grad(log_p.sum(), leaf)
        bad = ~(torch.isfinite(log_p) & torch.isfinite(slope).all(-1))
        return log_p.detach().masked_fill(bad, -torch.inf), slope.masked_fill(bad[..., None], 0.0)

    def step(self, epsilon: Tensor, leaps: Int[Tensor, " batch"], source: Source) -> Tensor:
        """One trajectory of every chain; returns the acceptance probabilities."""

        def noise(function: Callable[..., Tensor], *shape: int) -> Tensor:
            return draw(function, *shape, source=source).to(self.z)

        momentum = noise(torch.randn, *self.z.shape)
        jitter = 0.8 + 0.4 * noise(torch.rand, *self.log_p.shape)
        size = (epsilon[:, None] * jitter)[..., None]
        z, slope, p = self.z, self.slope, momentum + 0.5 * size * self.slope
        for i in range(int(leaps.max())):
            on = size * (i < leaps)[:, None, None]  # those that have arrived wait for the others
            z = z + on * p
            log_p, slope = self.evaluate(z)
            p = p + on * slope
        p = p - 0.5 * size * slope
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
    source: Source,
    warmup: int = 80,
    draws: int = 30,
) -> Chains:
    """Run all chains of all problems.

    Args:
        posterior: The problems.
        centre: Modes.
        factor: L of the Laplace covariance, from which the first metric comes.
        start: Scattered draws, one for each chain, of which the first ten (or fewer, so that they
            divide the chains) are used, each by several chains.
        source: Of randomness, on the CPU.
        warmup: Trajectories that adapt step size and metric and are not kept.
        draws: Trajectories kept.

    Raises:
        ValueError: If the number of chains has no divisor up to ten.
    """
    chains = start.shape[1]
    starts = max(k for k in range(1, _STARTS + 1) if chains % k == 0)
    if not 1 < starts < chains:
        raise ValueError(f"got {chains} chains, wanted several from each of several starts, as 100")
    noise = draw(torch.randn, len(centre), _CLOUD, centre.shape[1], source=source)
    cloud = centre[:, None] + noise.to(centre) @ factor.mT
    begin = _feasible(posterior, start, starts).repeat_interleave(chains // starts, 1)
    walk = _Walk(posterior, begin, cloud)
    epsilon = _warm_up(walk, warmup, source)
    kept, chances = [], []
    for _ in range(draws):
        chances.append(walk.step(epsilon, _leaps(epsilon, _MOST), source).mean(-1))
        kept.append(walk.places())
    u = torch.stack(kept, 2)
    return Chains(u, r_hat(u, starts), torch.stack(chances).mean(0))


def _feasible(posterior: Posterior, start: Tensor, count: int) -> Tensor:
    """Starts that are scattered, but not so far out that no step size suits them and the others."""
    prior, by_unit = posterior.draws_terms(start)
    log_p = prior + posterior.trained(by_unit)
    log_p = torch.where(torch.isfinite(log_p), log_p, -torch.inf)
    far = log_p < log_p.amax(1, keepdim=True) - _FAR - 2 * start.shape[-1]
    order = torch.where(far, log_p, torch.inf).argsort(dim=1, descending=True, stable=True)
    return start.gather(1, order[:, :count, None].expand(-1, -1, start.shape[-1]))


def _leaps(epsilon: Float[Tensor, " batch"], most: int) -> Int[Tensor, " batch"]:
    """Steps of a trajectory as long as the posterior is wide."""
    return torch.ceil(_LENGTH / epsilon).clamp(3, most).long()


def _warm_up(walk: _Walk, count: int, source: Source) -> Float[Tensor, " batch"]:
    """Adapt the step size, and four times take the metric from where the chains have been."""
    batch, _, size = walk.z.shape
    epsilon = torch.full((batch,), 0.6 * size**-0.25).to(walk.z)
    quarter, seen = max(1, count // 4), []
    for i in range(count):
        most = _MOST if i >= quarter else _MOST // 4  # short steps at first: where do they lead
        chance = walk.step(epsilon, _leaps(epsilon, most), source)
        # as fast up, where all is accepted, as down, where nothing is
        excess = chance.mean(-1) - _ACCEPT
        gain = torch.where(excess > 0, excess / (1 - _ACCEPT), excess / _ACCEPT)
        epsilon = epsilon * torch.exp(0.7 * gain * (1 + i % quarter) ** -0.5)
        seen.append(walk.places())
        if (i + 1) % quarter == 0:
            walk.settle(seen[-1], torch.cat(seen[len(seen) // 2 :], 1))
            seen = []
    return epsilon
