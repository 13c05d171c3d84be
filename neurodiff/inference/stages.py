r"""The population of a hierarchy in two stages: each group alone, then all of them together.

.. math:: u_{jk} \sim p(u \mid y_j) \propto p(y_j \mid u)\, \pi(u), \qquad
    (\mu, \tau, k) \mid \cdot \ \propto\ p(\mu)\, p(\tau)
    \prod_j \frac{N(u_{jk_j};\, \mu, \tau^2)}{\pi(u_{jk_j})}

Draws :math:`u_{jk}` of each group by itself, under a working prior π, are what a Gibbs sampler of
(μ, τ, u) then chooses from. Likelihoods are not computed again, so every fold and chain runs side
by side. A first round, under the priors, finds where groups are: a normal there is the π of the
second. Where the population then chooses among few draws of a group (one that is far from the
others, of many parameters), a normal as wide as the population is the π of another.

References:
    Lunn, Barrett, Sweeting & Thompson 2013, "Fully Bayesian hierarchical modelling in two stages".
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.inference.adaptive import EACH, adapted
from neurodiff.inference.draws import posterior_draws
from neurodiff.inference.groups import Grouped
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.priors import LOG_ROOT_TAU, Pooled, Site

_CHAINS, _WARMUP, _DRAWS = 32, 200, 400
_AGREE = 1.2  # R-hat up to which a population is believed: its elpd is then within tenths of a nat
_CENTRES = 1000  # draws of a group, and of the population that make up a mixture
_NARROW = 0.2  # least s.d. of what draws of a group are made under
_COUNT = 0.25  # of the draws of a group: fewer that count leave the population none to choose among
_CHOSEN, _AGAIN = 50, 2  # draws of a group that are chosen alike, at least, and rounds for them
_ROUGH = 500  # draws of a group in the first round, which only has to find where groups are


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


def _alone(joint: Posterior, grouped: Grouped, group: int) -> Posterior:
    """The trials of one group, their parameters no longer those of a group; together one unit."""
    rows = torch.nonzero(grouped.index == group)[:, 0]
    own = joint.take(rows)
    unit, mask = torch.zeros_like(own.unit), own.mask[:, :1]
    return replace(own, parameters=grouped.pooled, unit=unit, mask=mask, weight=joint.weight[rows])


@dataclass(frozen=True)
class First:
    r"""The first stage: draws of each group by itself, under a working prior π.

    Attributes:
        groups: Each alone.
        pooled: The parameters of one, with the prior of the population's μ.
        u: Draws of each, unconstrained.
        log_pi: log π(u).
        k_hat: Behind the draws of each.
        likelihood: Points u_i of each and log c_i, :math:`\sum_i c_i f(u_i) \approx
            \int p(y_j \mid u) f(u)\,du`: the evidence under any other prior f.
    """

    groups: list[Posterior]
    pooled: Pooled
    u: Float[Tensor, "group draw size"]
    log_pi: Float[Tensor, "group draw"]
    k_hat: Float[Tensor, " group"]
    likelihood: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Found:
    """What the chains of every fold found.

    Attributes:
        mean: μ.
        log_sd: log τ.
        groups: The groups' own parameters, unconstrained.
        k_hat: The largest of the groups' own draws; inf where chains disagree, or choose among few.
        r_hat: Of the chains: the largest over μ and log τ.
        chosen: How many draws of a group, chosen equally often, would say as much as a thousand
            choices; some 500 where all are chosen alike.
    """

    mean: Float[Tensor, "fold draw size"]
    log_sd: Float[Tensor, "fold draw size"]
    groups: Float[Tensor, "fold draw group size"]
    k_hat: Float[Tensor, " fold"]
    r_hat: Float[Tensor, " fold"]
    chosen: Float[Tensor, "fold group"]


def first_stage(joint: Posterior, generator: torch.Generator) -> First:
    """Draws of each group: under the prior, under the normal that these make, and again if need be.

    All likelihoods are computed here: what follows, whichever groups it leaves out, has them.

    Raises:
        TypeError: If the model has no groups.
    """
    grouped = joint.parameters
    if not isinstance(grouped, Grouped):
        raise TypeError("the model has no groups: a population needs join(…, by=…)")
    pooled = grouped.pooled
    groups = [_alone(joint, grouped, j) for j in range(grouped.groups)]
    start = pooled.start().expand(len(groups), -1)
    rough = _under(groups, pooled, pooled, start, _ROUGH, generator).u
    mean, sd = rough.mean((0, 1)), rough.flatten(0, 1).std(0)
    # one that all groups' draws look alike to: smooth, and never so narrow that few fit a subject
    working = Population(grouped.sites, mean[None], sd[None].clamp_min(_NARROW))
    first = _under(groups, working, pooled, rough.mean(1), _CENTRES, generator)
    for _ in range(_AGAIN):
        found = populations(first, mean.new_ones(1, len(groups)), generator)
        if bool((found.chosen >= _CHOSEN).all()):
            break
        mean, variance = found.mean[0].mean(0), (2 * found.log_sd[0]).exp().mean(0)
        sd = (variance + found.mean[0].var(0)).sqrt().clamp_min(_NARROW)
        working = Population(grouped.sites, mean[None], sd[None])
        first = _under(groups, working, pooled, found.groups[0].mean(0), _CENTRES, generator)
    return first


def _under(
    groups: list[Posterior],
    prior: Pooled,
    pooled: Pooled,
    start: Float[Tensor, "group size"],
    draws: int,
    generator: torch.Generator,
) -> First:
    """Draws of each group's parameters under a prior."""
    picked, k_hat, likelihood = [], [], []
    for group, begin in zip(groups, start, strict=True):
        own = replace(group, parameters=prior)
        found = posterior_draws(own, find_modes(own, begin[None]), draws, generator)
        poor = found.k_hat.item() > 0.7 or found.ess.item() < _COUNT * draws
        if poor and prior is not pooled:  # the first round only has to find where groups are
            learned = adapted(own, found, draws, generator)
            found = learned if learned.ess.item() > found.ess.item() else found
        picked.append(found.resample(draws, generator)[0])
        # of a proposal that is too narrow k̂ says nothing, but few of its draws count
        few = found.ess.item() < EACH * own.size
        k_hat.append(math.inf if few else found.k_hat.item())
        log_c = found.log_w + found.log_evidence[:, None] - prior.draws_log_prior(found.u)
        likelihood.append((found.u[0], log_c[0]))
    u = torch.stack(picked)
    log_pi = prior.draws_log_prior(u)
    return First(groups, pooled, u, log_pi, torch.tensor(k_hat), likelihood)


def two_stages(first: First, draws: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """Draws (draw, size) of a hierarchy's flat vector, and the k̂ behind them.

    Args:
        first: Draws of each group.
        draws: As many, at most 1000.
        generator: Source of randomness, on the CPU.
    """
    found = populations(first, first.u.new_ones(1, len(first.groups)), generator)
    draws = min(draws, _CENTRES)
    keep = torch.linspace(0, _CENTRES - 1, draws).long().to(found.mean.device)
    mean, log_sd, own = (x[0, keep] for x in (found.mean, found.log_sd, found.groups))
    z = (own - mean[:, None]) * (-log_sd[:, None]).exp()
    return torch.cat([mean, log_sd, z.flatten(1)], -1), found.k_hat.item()


def populations(
    first: First, mask: Float[Tensor, "fold group"], generator: torch.Generator
) -> Found:
    """The second stage: the populations of the groups that each fold's mask names.

    Args:
        first: Draws of each group.
        mask: 1 for the groups that a fold's population is of.
        generator: Source of randomness, on the CPU.
    """
    u = first.u
    gibbs = _Gibbs(u, first.log_pi, first.pooled, mask, generator)
    for _ in range(_WARMUP):
        gibbs.sweep()
    kept, picks = [], []
    for _ in range(_DRAWS):
        gibbs.sweep()
        kept.append(torch.cat([gibbs.mean, gibbs.log_sd], -1))
        picks.append(gibbs.pick)
    found = torch.stack(kept, 2)
    keep = torch.linspace(0, _CHAINS * _DRAWS - 1, _CENTRES).long().to(found.device)
    mean, log_sd = found.flatten(1, 2)[:, keep].chunk(2, -1)
    pick = torch.stack(picks, 2).flatten(1, 2)[:, keep]
    r_hat = _r_hat(found).cpu()
    often = u.new_zeros(len(mask), *u.shape[:2])
    often.scatter_add_(-1, pick.mT, torch.ones_like(pick.mT, dtype=u.dtype))
    chosen = often.sum(-1).square() / often.square().sum(-1)
    # a fold rests on the groups that it trains on
    used, own = mask.cpu() > 0, first.k_hat.to(r_hat)
    few = (used & (chosen.cpu() < _CHOSEN)).any(-1) | ~(r_hat < _AGREE)
    k_hat = torch.where(few, torch.inf, torch.where(used, own, -torch.inf).amax(-1))
    return Found(mean, log_sd, u[gibbs.group, pick], k_hat, r_hat, chosen)


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
        self.draws, self.pooled, self.generator = u, pooled, generator
        # with these a normal density of every draw is one product of matrices
        self.features = torch.cat([-0.5 * u * u, u, -log_pi[..., None]], -1)
        self.mask, self.shape = mask[:, None, :, None], (len(mask), _CHAINS, len(u))
        self.count = self.mask.sum(2)
        # a spread below 0.02 says what 0.02 says, and chains would be stuck there
        self.log_grid = torch.linspace(-4.0, 3.0, 121).to(u)
        self.group = torch.arange(len(u), device=u.device)
        self.pick = (self._uniform(self.shape) * u.shape[1]).long()
        self.mean = self._own().mean(2)
        self.log_sd = torch.zeros_like(self.mean)

    def _uniform(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).to(self.draws)

    def _own(self) -> Float[Tensor, "fold chain group size"]:
        return self.draws[self.group, self.pick]

    def _choose(self) -> Tensor:
        """Each group's draw, with probability proportional to N(u; μ, τ²)/π(u)."""
        precision = (-2 * self.log_sd).exp()
        one = torch.ones_like(precision[..., :1])
        given = torch.cat([precision, precision * self.mean, one], -1).flatten(0, 1)
        score = given @ self.features.mT  # group, fold and chain, draw
        cumulative = torch.softmax(score, -1).cumsum(-1)
        point = self._uniform(cumulative.shape[:2])[..., None] * cumulative[..., -1:]
        pick = torch.searchsorted(cumulative, point)[..., 0].clamp_max(score.shape[-1] - 1)
        return pick.mT.reshape(self.shape)

    def sweep(self) -> None:
        """Update each group's u, then μ given them, then τ."""
        self.pick = self._choose()
        own = self._own() * self.mask
        noise = torch.randn(self.mean.shape, generator=self.generator, dtype=torch.float64)
        spread = self.log_sd.exp() / self.count.sqrt()
        mean = own.sum(2) / self.count + spread * noise.to(own)
        prior = torch.vmap(torch.vmap(self.pooled.log_prior))
        here, level = prior(self.mean), self._uniform(mean.shape).log()
        for i in range(mean.shape[-1]):  # of many at once hardly any move would be accepted
            there = torch.cat(
                [self.mean[..., :i], mean[..., i : i + 1], self.mean[..., i + 1 :]], -1
            )
            log_p = prior(there)
            move = level[..., i] < log_p - here
            self.mean = torch.where(move[..., None], there, self.mean)
            here = torch.where(move, log_p, here)
        squares = ((own - self.mean[:, :, None]).square() * self.mask).sum(2)[..., None]
        # HalfNormal(1) on τ, in log τ
        variance = (2 * self.log_grid).exp()
        log_p = (1 - self.count[..., None]) * self.log_grid - 0.5 * (variance + squares / variance)
        cumulative = torch.softmax(log_p, -1).cumsum(-1)
        cell = (cumulative < self._uniform(squares.shape)).sum(-1).clamp_max(len(variance) - 1)
        jitter = self._uniform(cell.shape) - 0.5
        self.log_sd = self.log_grid[cell] + jitter * (self.log_grid[1] - self.log_grid[0])
