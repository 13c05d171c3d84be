r"""One cloud of draws for problems that differ only in what they train on.

.. math:: w_k(u) = \frac{p(u) \prod_{j \in k} p(y_j \mid u)}{q(u)}, \qquad
    q(u) = \sum_k \frac{n_k}{N}\, q_k(u)

Folds of a recording lie within a standard deviation or two of each other, and the likelihood by
unit of a draw, which is what costs, serves them all. So draws proposed about one fold are weighed
for every other against the mixture of all proposals (the balance heuristic): no worse than a
fold's own, and evidences of two problems err alike, which their ratio does not feel. The modes are
only centres of proposals, so they are found to a hundredth of a nat, with the curvature of the fit
on everything.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.inference.importance import CLOUDS, MOVES, SMALL
from neurodiff.inference.laplace import Modes
from neurodiff.inference.optimise import minimise
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.proposals import Cloud, Prior, SplitT
from neurodiff.inference.psis import smooth
from neurodiff.inference.straight import straightened

_NEAR = 1e-2  # nats from the mode at which a proposal is centred


class Shared:
    """Draws about the modes of several problems, which all of them weigh.

    Args:
        posterior: The problem that trains on everything; its parameters are pooled.
        modes: Its mode.
        generator: Source of randomness, on the CPU.

    Attributes:
        u: Draws so far, in coordinates in which ridges that the model knows of are straight.
        by_unit: Log likelihood of each unit at each.
    """

    u: Float[Tensor, "draw size"]
    by_unit: Float[Tensor, "draw unit"]

    def __init__(self, posterior: Posterior, modes: Modes, generator: torch.Generator) -> None:
        posterior, modes = straightened(posterior, modes)
        self.posterior, self.modes, self.generator = posterior, modes, generator
        self.small = posterior.size <= SMALL
        self.widths = SplitT.at(posterior, modes).widths
        self.u, self.by_unit = modes.u[:0], posterior.mask[:0]
        self._prior = self._log_q = modes.u[:0, 0]  # log prior, and log of N q, of each draw
        self._proposals: list[tuple[SplitT | Prior | Cloud, int, int]] = []

    def about(self, mask: Float[Tensor, "problem unit"], draws: int) -> None:
        """Add draws for problems: about their modes, then where these say that mass is.

        Args:
            mask: What each trains on.
            draws: Draws for each, and as many again in every round that its k̂ asks for.
        """
        proposal = self._split(mask)
        first = draws if self.small else draws // 3
        self._add(proposal, proposal.sample(first, self.generator))
        if self.small:
            prior = Prior(self.posterior.parameters)  # pyright: ignore
            self._add(prior, prior.sample(1, draws // 4, self.generator).to(self.u))
        for turn in range(CLOUDS if self.small else 1 + MOVES):
            log_w, k_hat, _ = self.weigh(mask)
            moves = turn == 0 and not self.small  # all do, once
            bad = (k_hat > (0.5 if self.small else 0.7)).to(mask.device) | moves
            if not bool(bad.any()):
                return
            mask, log_w = mask[bad], log_w[bad]
            u = self.u.expand(len(mask), -1, -1)
            if self.small:
                proposal = Cloud.about(u, log_w, self.generator)
            else:
                proposal = proposal.select(bad).moved(u, log_w, self.generator)  # pyright: ignore
            count = draws - first if moves else draws
            self._add(proposal, proposal.sample(count, self.generator))

    def _split(self, mask: Float[Tensor, "problem unit"]) -> SplitT:
        """The full fit's t₇ at the modes of problems, wider as they train on fewer units."""
        problems = self.posterior.with_mask(mask)
        spread = (mask.shape[1] / mask.sum(1)).sqrt()  # information adds up over units
        factor = self.modes.factor * spread[:, None, None]
        start = self.modes.u.expand(len(mask), -1)
        found = minimise(lambda u: -problems.log_prob(u), start, factor @ factor.mT, _NEAR)
        return SplitT(found.u, factor, self.widths.expand(len(mask), -1, -1))

    def weigh(
        self, mask: Float[Tensor, "problem unit"]
    ) -> tuple[Float[Tensor, "problem draw"], Float[Tensor, " problem"], Float[Tensor, " problem"]]:
        """Smoothed log weights of all draws, their k̂, and the log evidence, of problems."""
        trained = [self.posterior.with_mask(m[None]).trained(self.by_unit[None])[0] for m in mask]
        raw = torch.stack(trained) + self._prior - self._log_q
        raw = torch.where(torch.isfinite(raw), raw, -torch.inf)
        log_w, k_hat = raw.clone(), torch.empty(len(raw), dtype=raw.dtype)
        for i, (row, kept) in enumerate(zip(raw, torch.isfinite(raw), strict=True)):
            smoothed, k_hat[i] = smooth(row[kept].cpu().numpy())
            log_w[i, kept] = torch.as_tensor(smoothed).to(raw)
        return log_w, k_hat, torch.logsumexp(raw, -1)

    def _add(self, proposal: SplitT | Prior | Cloud, u: Float[Tensor, "problem draw size"]) -> None:
        """Add draws, and the density of their proposal to that of all others."""
        new = u.flatten(0, 1)
        prior, by_unit = self.posterior.draws_terms(new[None])
        entry = (proposal, u.shape[0], u.shape[1])
        self._proposals.append(entry)
        old = torch.logaddexp(self._log_q, _log_share(*entry, self.u))
        there = torch.stack([_log_share(*q, new) for q in self._proposals]).logsumexp(0)
        self._log_q = torch.cat([old, there])
        self._prior = torch.cat([self._prior, prior[0]])
        self.u = torch.cat([self.u, new])
        self.by_unit = torch.cat([self.by_unit, by_unit[0]])


def _log_share(
    proposal: SplitT | Prior | Cloud, problems: int, count: int, u: Float[Tensor, "draw size"]
) -> Float[Tensor, " draw"]:
    """Log of the summed density of a proposal's draws, ``count`` for each problem."""
    at = u.expand(problems, *u.shape)
    return proposal.log_prob(at).logsumexp(0) + math.log(count)
