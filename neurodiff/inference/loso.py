r"""Leave one subject out: what a statement about a population is judged by.

With every parameter of subject s drawn from the population, :math:`u_s \sim N(\mu, \tau^2)` on the
unconstrained scale, the density of a subject who was never seen is

.. math:: \text{elpd}_s = \log \int p(y_s \mid u)\, p(u \mid y_{-s})\, du, \qquad
    p(u \mid y_{-s}) \approx \frac1D \sum_d N(u;\, \mu_d, \tau_d^2)

over draws d of the population given the others. The integral is the evidence of that subject's
trials under the mixture as a prior, found by importance sampling around its mode: averaging
:math:`p(y_s \mid u)` over draws of u would need thousands of times as many.

The population is found in two stages (Lunn et al. 2013). Draws :math:`u_{jk}` of each subject by
itself, under a working prior π, are what a Gibbs sampler of (μ, τ, u) then proposes, accepted by
:math:`N(u; \mu, \tau^2)/\pi(u)`: likelihoods are not computed again, so every fold and chain runs
side by side. A first round finds the population that is the π of the second. Beyond ten subjects,
tenths of them are held out together.

References:
    Lunn, Barrett, Sweeting & Thompson 2013, "Fully Bayesian hierarchical modelling in two stages".
"""

import math
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from neurodiff.inference.groups import Grouped
from neurodiff.inference.importance import Draws, importance_draws
from neurodiff.inference.join import Bound
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.priors import LOG_ROOT_TAU, Pooled, Site

_FOLDS = 10
_CHAINS, _WARMUP, _DRAWS, _TRIES = 32, 200, 300, 8
_CENTRES = 1000  # draws of a subject, and of the population that make up a mixture
_FEW = 20  # effective components of it below which no average is to be believed


class Population(Pooled):
    r"""A new subject's parameters, given draws of the population that they come from.

    .. math:: p(u) = \tfrac1D \textstyle\sum_d N(u;\, \mu_d, \tau_d^2)

    Args:
        sites: The parameters of one subject.
        mean: μ, unconstrained.
        sd: τ.
    """

    def __init__(
        self,
        sites: list[Site],
        mean: Float[Tensor, "centre size"],
        sd: Float[Tensor, "centre size"],
    ) -> None:
        super().__init__(sites)
        self.mean, self.sd = mean, sd

    def log_prior(self, u: Float[Tensor, " size"]) -> Float[Tensor, ""]:
        """Log density of the mixture."""
        return torch.logsumexp(self.components(u), 0) - math.log(len(self.mean))

    def components(self, u: Float[Tensor, " size"]) -> Float[Tensor, " centre"]:
        """Log density of each component."""
        z = (u - self.mean) / self.sd
        return (-0.5 * z * z - self.sd.log() - LOG_ROOT_TAU).sum(-1)

    def effective(self, u: Float[Tensor, "draw size"]) -> float:
        """How many components explain a subject: few where only rare populations hold its like."""
        shares = torch.softmax(torch.vmap(self.components)(u), -1).mean(0)
        return (1 / shares.square().sum()).item()

    def start(self) -> Float[Tensor, " size"]:
        """The middle of the population."""
        return self.mean.mean(0)

    def draw_prior(self, count: int) -> Float[Tensor, "{count} size"]:
        """Draws of new subjects, unconstrained; from torch's global generator."""
        pick = torch.randint(len(self.mean), (count,))
        noise = torch.randn(count, self.size, dtype=self.mean.dtype).to(self.mean)
        return self.mean[pick] + self.sd[pick] * noise


def leave_one_group_out(bound: Bound, draws: int, seed: int) -> xr.Dataset:
    """The elpd of each group (subject, unit) given the others.

    Args:
        bound: A hierarchical model, joined with ``by=``.
        draws: Importance draws behind each group's evidence.
        seed: Of all randomness.

    Returns:
        ``elpd`` and ``k_hat`` of each group (inf where few draws of the population explain it), and
        ``r_hat`` of the population it was predicted from, along the dimension of the groups.

    Raises:
        TypeError: If the model has no groups.
    """
    grouped = bound.posterior.parameters
    if not isinstance(grouped, Grouped) or bound.groups is None:
        raise TypeError("the model has no groups: leave-one-subject-out needs join(…, by=…)")
    generator = torch.Generator().manual_seed(seed)
    groups = [_alone(bound.posterior, grouped, j) for j in range(grouped.groups)]
    fold = torch.arange(grouped.groups) % _FOLDS
    folds = (fold[None] != torch.arange(int(fold.max()) + 1)[:, None]).to(bound.start)
    pooled, everyone = grouped.pooled, torch.ones_like(folds[:1])
    mean, sd, _ = _population(groups, pooled, pooled, everyone, generator)
    working = Population(grouped.sites, mean[0, ::5], sd[0, ::5])  # a proposal: a few will do
    mean, sd, agreement = _population(groups, working, pooled, folds, generator)
    elpd, k_hat = [], []
    for own, held in zip(groups, fold, strict=True):
        population = Population(grouped.sites, mean[held], sd[held])
        result = _draws(own, population, draws, generator)
        elpd.append(result.log_evidence.item())
        believable = population.effective(result.u[0]) >= _FEW
        k_hat.append(result.k_hat.item() if believable else math.inf)
    dim = bound.by or "group"
    variables = {"elpd": elpd, "k_hat": k_hat, "r_hat": agreement[fold].cpu().numpy()}
    return xr.Dataset(
        {name: (dim, np.asarray(values)) for name, values in variables.items()},
        coords={dim: bound.groups},
    )


def _alone(joint: Posterior, grouped: Grouped, group: int) -> Posterior:
    """The trials of one group, their parameters no longer those of a group."""
    rows = torch.nonzero(grouped.index == group)[:, 0]
    return replace(joint.take(rows), parameters=grouped.pooled, weight=joint.weight[rows])


def _draws(own: Posterior, prior: Pooled, draws: int, generator: torch.Generator) -> Draws:
    own = replace(own, parameters=prior)
    return importance_draws(own, find_modes(own, prior.start()[None]), draws, generator)


def _population(
    groups: list[Posterior],
    working: Pooled,
    pooled: Pooled,
    mask: Float[Tensor, "fold group"],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of μ and τ (fold, centre, size) from the groups in each fold's mask, and R-hat."""
    u = torch.stack([_draws(g, working, _CENTRES, generator).u[0] for g in groups])
    log_pi = torch.vmap(torch.vmap(working.log_prior))(u)
    gibbs = _Gibbs(u, log_pi, pooled, mask, generator)
    for _ in range(_WARMUP):
        gibbs.sweep()
    kept = []
    for _ in range(_DRAWS):
        gibbs.sweep()
        kept.append(torch.cat([gibbs.mean, gibbs.log_sd], -1))
    found = torch.stack(kept, 2)
    flat = found.flatten(1, 2)
    keep = torch.linspace(0, flat.shape[1] - 1, _CENTRES).long().to(flat.device)
    mean, log_sd = flat[:, keep].chunk(2, -1)
    return mean, log_sd.exp(), _r_hat(found)


def _r_hat(found: Float[Tensor, "fold chain draw value"]) -> Float[Tensor, " fold"]:
    """Largest potential scale reduction of the chains."""
    draws = found.shape[2]
    ratio = found.mean(2).var(1) / found.var(2).mean(1).clamp_min(1e-300)
    return ((draws - 1) / draws + ratio).sqrt().amax(-1)


class _Gibbs:
    """Chains of (μ, log τ, u) for every fold, u among draws of each group alone."""

    def __init__(
        self, u: Tensor, log_pi: Tensor, pooled: Pooled, mask: Tensor, generator: torch.Generator
    ) -> None:
        self.draws, self.log_pi, self.pooled, self.generator = u, log_pi, pooled, generator
        self.mask, shape = mask[:, None, :, None], (len(mask), _CHAINS, len(u))
        self.count = self.mask.sum(2)
        self.log_grid = torch.linspace(-6.0, 3.0, 121).to(u)
        self.group = torch.arange(len(u), device=u.device)
        self.pick = self._index(shape)
        self.mean = self._own().mean(2)
        self.log_sd = torch.zeros_like(self.mean)

    def _uniform(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).to(self.draws)

    def _index(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        return (self._uniform(shape) * self.draws.shape[1]).long()

    def _own(self) -> Float[Tensor, "fold chain group size"]:
        return self.draws[self.group, self.pick]

    def sweep(self) -> None:
        """Update each group's u, then μ given them, then τ."""
        score = self._score(self.pick)
        for _ in range(_TRIES):
            other = self._index(self.pick.shape)
            new = self._score(other)
            move = self._uniform(score.shape).log() < new - score
            self.pick = torch.where(move, other, self.pick)
            score = torch.where(move, new, score)
        own = self._own() * self.mask
        noise = torch.randn(self.mean.shape, generator=self.generator, dtype=torch.float64)
        spread = self.log_sd.exp() / self.count.sqrt()
        mean = own.sum(2) / self.count + spread * noise.to(own)
        prior = torch.vmap(torch.vmap(self.pooled.log_prior))
        move = self._uniform(mean.shape[:2]).log() < prior(mean) - prior(self.mean)
        self.mean = torch.where(move[..., None], mean, self.mean)
        squares = ((own - self.mean[:, :, None]).square() * self.mask).sum(2)[..., None]
        # HalfNormal(1) on τ, in log τ
        variance = (2 * self.log_grid).exp()
        log_p = (1 - self.count[..., None]) * self.log_grid - 0.5 * (variance + squares / variance)
        cumulative = torch.softmax(log_p, -1).cumsum(-1)
        cell = (cumulative < self._uniform(squares.shape)).sum(-1).clamp_max(len(variance) - 1)
        jitter = self._uniform(cell.shape) - 0.5
        self.log_sd = self.log_grid[cell] + jitter * (self.log_grid[1] - self.log_grid[0])

    def _score(self, pick: Tensor) -> Float[Tensor, "fold chain group"]:
        """Log N(u; μ, τ²)/π(u), up to a constant."""
        z = (self.draws[self.group, pick] - self.mean[:, :, None]) / self.log_sd.exp()[:, :, None]
        return -0.5 * z.square().sum(-1) - self.log_pi[self.group, pick]
