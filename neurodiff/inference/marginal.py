r"""The likelihood of a law with everything else integrated out, and of its held-out parts.

.. math:: Z_p(θ) = \int p(φ) \prod_u p(y_u \mid θ, φ)\,dφ, \qquad
    Z_p^{-k}(θ), \qquad Z_p^{-k(u)+u}(θ)

θ is the weighting, φ what a part has beside it (a lapse, a front end). Given θ parts know nothing
of each other, however many share it; so φ is integrated part by part, and what remains has the few
dimensions of a law. One pool of φ serves all θ: some about where the part by itself has φ, some
about where the parts together put it, some from its prior, each weighed at every θ by the mixture
of all three. So at neighbouring θ the integrals err alike, which their ratios do not feel. Without
fold k, and with one of its units u back, the same pool is weighed anew.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.inference.posterior import Posterior
from neurodiff.inference.priors import Pooled
from neurodiff.inference.proposals import Cloud, Prior, SplitT
from neurodiff.inference.stack import Stacked
from neurodiff.inference.tied import FOLDS, Part, of_weighting

_CELLS = 20_000_000  # log likelihoods at a time


def marginals(
    part: Part,
    law: Float[Tensor, "point size"],
    pool: Float[Tensor, "draw rest"],
    log_q: Float[Tensor, " draw"],
) -> Float[Tensor, "point term"]:
    """Log Z of all, of all without each fold, and with one unit of the fold back.

    Args:
        part: One read-out.
        law: Unconstrained parameters of its weighting, side by side.
        pool: Draws of what it has beside the weighting.
        log_q: Log of the density that they were drawn with.

    Returns:
        (point, 1 + folds + units).
    """
    joint = part.posterior
    cells = len(pool) * max(joint.response.shape[-1], joint.mask.shape[1])
    return torch.cat(
        [_some(part, some, pool, log_q) for some in law.split(max(1, _CELLS // cells))]
    )


def _some(part: Part, law: Tensor, pool: Tensor, log_q: Tensor) -> Tensor:
    given = _given(part.posterior, law)
    prior, by_unit = given.draws_terms(pool.expand(len(law), -1, -1))
    by_unit = by_unit.clamp_min(-1e300)
    log_w = prior + by_unit.sum(-1) - log_q - math.log(len(pool))
    inside = torch.nn.functional.one_hot(part.fold, FOLDS).to(by_unit)
    without = log_w[..., None] - by_unit @ inside  # (point, draw, fold)
    back = without[..., part.fold] + by_unit / part.copies
    return torch.cat([log_w.logsumexp(1, keepdim=True), without.logsumexp(1), back.logsumexp(1)], 1)


def pooled(
    part: Part,
    mean: Float[Tensor, " rest"],
    covariance: Float[Tensor, "rest rest"],
    draws: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "draw rest"], Float[Tensor, " draw"]]:
    """Draws of what a part has beside its weighting, and the log of the density they come from.

    Args:
        part: One read-out.
        mean: Where the parts together put it.
        covariance: How sure they are.
        draws: Of which half are about where the part by itself has it.
        generator: Of the draws.
    """
    ours = torch.tensor(part.columns(ours=False))
    rest = Pooled([s for s in part.posterior.parameters.sites if not of_weighting(s.name)])
    factor = torch.linalg.cholesky(covariance)[None]
    proposals = (
        Cloud.about(part.draws.u[..., ours], part.draws.log_w, generator),
        SplitT(mean[None], factor, torch.full((1, 2, len(mean)), 1.5).double()),
        Prior(rest),
    )
    u = [
        proposals[0].sample(draws // 2, generator),
        proposals[1].sample(draws // 4, generator),
        proposals[2].sample(1, draws // 4, generator),
    ]
    counts = [x.shape[1] for x in u]
    u = torch.cat(u, 1)
    log_q = [q.log_prob(u)[0] + math.log(n) for q, n in zip(proposals, counts, strict=True)]
    return u[0], torch.stack(log_q).logsumexp(0) - math.log(sum(counts))


def _given(joint: Posterior, law: Tensor) -> Posterior:
    """A problem for each law, of everything else."""
    sites = joint.parameters.sites
    ours = Pooled([site for site in sites if of_weighting(site.name)])
    rest = Pooled([site for site in sites if not of_weighting(site.name)])
    n = len(law)

    def each(value: Tensor) -> Tensor:
        return value.expand(n, *value.shape)

    return replace(
        joint,
        parameters=Stacked([rest], torch.zeros(n, dtype=torch.int64), "cpu"),
        trials={name: each(value) for name, value in joint.trials.items()},
        response=each(joint.response),
        mask=joint.mask.expand(n, -1),
        weight=each(joint.weight),
        buffers=ours.constrain(law),
    )
