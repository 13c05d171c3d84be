r"""Importance weights: the exact posterior, from t₇ proposals around its mode.

.. math:: w_s = p(u_s)/q(u_s), \qquad \log p(\text{data}) \approx \log \tfrac1S \sum_s w_s

Plain Laplace undercovers where a parameter leans on its bound (a lapse near zero); so corrected it
does not. q is a mixture: t₇ split along each axis (Geweke 1989), the prior, and where these do not
suffice clouds of t₇ about the draws so far (Cappé et al. 2004). The largest weights are smoothed,
and the Pareto k̂ of their tail says whether to trust the result: above 0.7 use chains.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.inference.laplace import Modes
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.priors import Pooled
from neurodiff.inference.proposals import Cloud, Prior, SplitT, systematic
from neurodiff.inference.psis import smooth
from neurodiff.inference.straight import straightened
from neurodiff.inference.streams import Source, some

SMALL = 12  # parameters up to which the prior and clouds of draws are worth proposing from
CLOUDS = 4  # at most
MOVES = 2  # of the t₇, beyond the first, at most


@dataclass(frozen=True)
class Draws:
    """Weighted posterior draws of a batch of problems.

    Attributes:
        u: (batch, draw, size).
        log_w: Smoothed log weights; their exponentials sum to one.
        by_unit: Log likelihood of each unit at each draw.
        log_evidence: log p(data trained on).
        k_hat: Pareto shape of the weights.
    """

    u: Float[Tensor, "batch draw size"]
    log_w: Float[Tensor, "batch draw"]
    by_unit: Float[Tensor, "batch draw unit"]
    log_evidence: Float[Tensor, " batch"]
    k_hat: Float[Tensor, " batch"]

    @property
    def ess(self) -> Float[Tensor, " batch"]:
        """How many draws of equal weight would say as much."""
        return 1 / (2 * self.log_w).exp().sum(-1)

    def select(self, problems: Tensor) -> "Draws":
        """Those of some of the problems, a mask."""
        if bool(problems.all()):
            return self
        return Draws(
            **{name: value[problems.to(value.device)] for name, value in vars(self).items()}
        )

    def put(self, problems: Tensor, others: "Draws") -> "Draws":
        """These with those of some of the problems replaced; what one lacks in draws weighs 0."""
        if bool(problems.all()):
            return others
        count = max(self.u.shape[1], others.u.shape[1])

        def widened(draws: Draws) -> dict[str, Tensor]:
            more = count - draws.u.shape[1]
            pad = torch.nn.functional.pad
            return vars(draws) | {
                "u": pad(draws.u, (0, 0, 0, more)),
                "log_w": pad(draws.log_w, (0, more), value=-math.inf),
                "by_unit": pad(draws.by_unit, (0, 0, 0, more)),
            }

        both = widened(self), widened(others)
        merged = {name: value.clone() for name, value in both[0].items()}
        for name, value in both[1].items():
            merged[name][problems.to(value.device)] = value
        return Draws(**merged)

    def resample(self, draws: int, source: Source) -> Tensor:
        """Draws (batch, draw, size) of equal weight."""
        pick = systematic(self.log_w.exp(), draws, source)
        return self.u[torch.arange(len(pick), device=pick.device)[:, None], pick]


class Mixture:
    """Draws from several proposals, weighted against their mixture (the balance heuristic)."""

    def __init__(self, posterior: Posterior) -> None:
        self.posterior = posterior
        self.proposals: list[SplitT | Prior | Cloud] = []
        self.counts: list[int] = []
        self.parts: list[tuple[Tensor, ...]] = []

    def add(self, proposal: "SplitT | Prior | Cloud", u: Tensor) -> None:
        """Draws u of a proposal."""
        self.proposals.append(proposal)
        self.counts.append(u.shape[1])
        self.parts.append((u, *self.posterior.draws_terms(u)))

    def select(self, problems: Tensor) -> "Mixture":
        """The same draws, of some of the problems."""
        few = Mixture(self.posterior.select(problems))
        few.proposals = [proposal.select(problems) for proposal in self.proposals]
        few.counts = list(self.counts)
        whole = bool(problems.all())  # then no copies: they may fill the memory
        few.parts = [part if whole else tuple(x[problems] for x in part) for part in self.parts]
        return few

    def weigh(self) -> Draws:
        """All draws so far."""
        u, prior, by_unit = (torch.cat(part, 1) for part in zip(*self.parts, strict=True))
        log_p = prior + self.posterior.trained(by_unit)
        total = sum(self.counts)
        log_q = torch.stack(
            [
                q.log_prob(u) + math.log(n / total)
                for q, n in zip(self.proposals, self.counts, strict=True)
            ]
        ).logsumexp(0)
        raw = torch.where(torch.isfinite(log_p - log_q), log_p - log_q, -torch.inf)
        log_w, k_hat = raw.clone(), torch.empty(len(raw))
        for i, (row, kept) in enumerate(zip(raw, torch.isfinite(raw), strict=True)):
            smoothed, k_hat[i] = smooth(row[kept].cpu().numpy())
            log_w[i, kept] = torch.as_tensor(smoothed).to(raw)
        evidence = torch.logsumexp(raw, -1) - math.log(total)
        return Draws(u, log_w, by_unit, evidence, k_hat)


def importance_draws(posterior: Posterior, modes: Modes, draws: int, source: Source) -> Draws:
    """Weigh split-t₇ proposals around the modes against the exact posterior.

    With at most twelve parameters some draws come from the prior, and problems whose k̂ exceeds 0.5
    get clouds about their draws so far. In more dimensions neither would help: a second t₇ moves to
    the mean of the first draws, and again where k̂ exceeds 0.7. Ridges that a model knows of are
    drawn along in coordinates that straighten them (:mod:`~neurodiff.inference.straight`).

    Args:
        posterior: The problems.
        modes: Their modes.
        draws: Draws proposed around the mode (or it and the mean), and as many by each cloud or
            further move.
        source: Of randomness, on the CPU.
    """
    by_v, there = straightened(posterior, modes)
    if by_v is not posterior:
        found = importance_draws(by_v, there, draws, source)
        return replace(found, u=by_v.parameters.bent(found.u))  # pyright: ignore
    mixture = Mixture(posterior)
    around = SplitT.at(posterior, modes)
    small = isinstance(posterior.parameters, Pooled) and posterior.size <= SMALL
    mixture.add(around, around.sample(draws if small else draws // 3, source))
    if small:
        prior = Prior(posterior.parameters)  # pyright: ignore
        mixture.add(prior, prior.sample(posterior.batch, draws // 4, source).to(modes.u))
        return _improved(mixture, draws, source, CLOUDS, None)
    first = mixture.weigh()
    moved = around.moved(first.u, first.log_w, source)
    mixture.add(moved, moved.sample(draws - draws // 3, source))
    return _improved(mixture, draws, source, MOVES, moved)


def _improved(
    mixture: Mixture,
    draws: int,
    source: Source,
    rounds: int,
    moved: "SplitT | None",
) -> Draws:
    """Weighted draws, those of the problems that need it improved by further proposals."""
    found = mixture.weigh()
    bad = (found.k_hat > (0.5 if moved is None else 0.7)).to(found.u.device)
    if not rounds or not bool(bad.any()):
        return found
    part, few, source = mixture.select(bad), found.select(bad), some(source, bad)
    if moved is not None:
        moved = moved.select(bad).moved(few.u, few.log_w, source)
    proposal = Cloud.about(few.u, few.log_w, source) if moved is None else moved
    part.add(proposal, proposal.sample(draws, source))
    return found.put(bad, _improved(part, draws, source, rounds - 1, moved))
