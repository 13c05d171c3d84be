r"""Posterior draws of a batch of problems: importance weights where they hold, chains where not.

.. math:: \hat k \le 0.7: \ \sum_s w_s\, \delta_{u_s}; \qquad
    \hat k > 0.7: \ \tfrac1S \sum_s \delta_{u_s}, \quad u_s \text{ from many short chains}

A thin curved ridge (one person, whose internal noise trades against the law's place and scale)
leaves importance sampling with a handful of distinct draws. Chains follow it, at a cost that grows
with the rows, so a long recording keeps its weights and the k̂ that says what they are worth.
"""

import math

import torch

from neurodiff.inference.hmc import many_chains
from neurodiff.inference.importance import Draws, importance_draws
from neurodiff.inference.laplace import Modes
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.streams import Source, draw, some

ROWS = 2_000  # of a design for which chains are affordable
_CHAINS = 100
_AGREE = 1.1  # nested R-hat up to which chains are believed


def posterior_draws(posterior: Posterior, modes: Modes, draws: int, source: Source) -> Draws:
    """Weighted draws of every problem; those from chains have equal weights and k̂ = -inf.

    Args:
        posterior: The problems.
        modes: Their modes.
        draws: Importance draws around each mode.
        source: Of randomness, on the CPU.

    Returns:
        Draws; k̂ is +inf where chains took over and did not agree.
    """
    found = importance_draws(posterior, modes, draws, source)
    bad = found.k_hat > 0.7
    # a hundred chains of a model that solves for its densities would take hours
    dear = posterior.response.shape[-1] > ROWS or getattr(posterior.model, "apart", False)
    if dear or not bool(bad.any()):
        return found
    here = bad.to(found.u.device)
    part, centre, factor = posterior.select(here), modes.u[here], modes.factor[here]
    source = some(source, bad)
    noise = draw(torch.randn, len(centre), _CHAINS, posterior.size, source=source)
    start = centre[:, None] + 1.5 * noise.to(centre) @ factor.mT
    chains = many_chains(part, centre, factor, start, source)
    u = chains.u.flatten(1, 2)
    log_w = u.new_full(u.shape[:2], -math.log(u.shape[1]))
    agree = torch.where(chains.r_hat.to(found.k_hat) < _AGREE, -math.inf, math.inf)
    by_unit, evidence = part.draws_terms(u)[1], found.log_evidence[here]
    return found.put(here, Draws(u, log_w, by_unit, evidence, agree.to(found.k_hat)))
