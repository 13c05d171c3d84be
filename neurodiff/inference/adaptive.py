r"""Draws from a proposal that learned: a t₇ refitted to all weighted draws, then drawn from afresh.

.. math:: q_{r + 1} = t_7(m_r, C_r), \qquad
    w_s = p(u_s) \Big/ \tfrac1r \textstyle\sum_{j \le r} q_j(u_s), \qquad
    m_r, C_r: \text{ mean and covariance under } w^{\beta_r}

A mode's curvature says how wide a posterior is where it is highest. Where sums over time steps make
a log density rough, by a thousandth of a nat, that may be the curvature of the roughness: too
narrow by several times, or of the wrong sign. The covariance of draws is not misled, but theirs
alone where few of them count, so β is the largest up to 1 at which ten do for each parameter.

Every round is weighed against all proposals so far. These are fitted to the very draws that they
weigh, which makes evidence come out low (a tenth of a nat at 22 parameters), so the draws
returned are fresh ones of the last. It is one t₇: a scale is learned, not a shape, and a posterior
that is curved in many dimensions keeps its k̂, or is too narrow at k̂ below 0.7: by a fifth, or by
half where few draws count.

References:
    Cornuet, Marin, Mira & Robert 2012, "Adaptive multiple importance sampling".
    Koblents & Míguez 2015, "A population Monte Carlo scheme with transformed weights", for β.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.inference.importance import Draws, Mixture
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.proposals import SplitT
from neurodiff.inference.streams import Source

_ROUNDS = 10  # at most
EACH = 10  # draws that count for each parameter, of which a covariance is taken
_GOOD = 0.5  # k̂ at which rounds end


def adapted(posterior: Posterior, found: Draws, draws: int, source: Source) -> Draws:
    """Twice as many draws as a round has, after at most ten rounds.

    Rounds end where all problems have k̂ up to 0.5 and as many draws as a round has count.

    Args:
        posterior: The problems.
        found: Weighted draws of them, however poor, that the first proposal is fitted to.
        draws: Draws of a round.
        source: Of randomness, on the CPU.
    """
    mixture = Mixture(posterior)
    for _ in range(_ROUNDS):
        proposal = _fitted(found)
        mixture.add(proposal, proposal.sample(draws, source))
        found = mixture.weigh()
        if bool((found.k_hat <= _GOOD).all() and (found.ess >= draws).all()):
            break
    fresh, proposal = Mixture(posterior), _fitted(found)
    fresh.add(proposal, proposal.sample(2 * draws, source))
    return fresh.weigh()


def _fitted(found: Draws) -> SplitT:
    """The t₇ with the mean and covariance of tempered draws."""
    size = found.u.shape[-1]
    share = tempered(found.log_w, EACH * size)[..., None]
    mean = (share * found.u).sum(1)
    apart = found.u - mean[:, None]
    covariance = (share * apart).mT @ apart
    ridge = torch.diag_embed(1e-6 * covariance.diagonal(dim1=-2, dim2=-1) + 1e-12)
    widths = mean.new_ones(len(mean), 2, size)
    return SplitT(mean, torch.linalg.cholesky(covariance + ridge), widths)


def tempered(log_w: Float[Tensor, "batch draw"], least: int) -> Float[Tensor, "batch draw"]:
    r"""Weights :math:`w^\beta`, normalised, β the largest up to 1 at which ``least`` draws count.

    >>> share = tempered(torch.tensor([[0.0, -50.0, -100.0, -150.0]]), 2)
    >>> torch.allclose(1 / share.square().sum(), torch.tensor(2.0), atol=1e-3)
    True
    """

    def count(beta: Tensor) -> Tensor:
        return 1 / torch.softmax(beta * log_w, -1).square().sum(-1, keepdim=True)

    high = torch.ones_like(log_w[:, :1])
    low = 1e-9 * high  # all that weigh anything, alike
    low = torch.where(count(high) >= least, high, low)
    for _ in range(30):
        middle = 0.5 * (low + high)
        enough = count(middle) >= least
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.softmax(low * log_w, -1)
