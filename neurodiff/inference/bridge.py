r"""Bridge sampling: log evidence from draws of the posterior and draws of a density like it.

.. math:: Z = \frac{E_g[h(u)\,p(u, y)]}{E_{p(u \mid y)}[h(u)\,g(u)]}, \qquad
    h \propto \big(s_1\,p(u, y) / Z + s_2\,g(u)\big)^{-1}

with s the shares of the two sorts of draws, and h, which is the best there is, found by iteration.
Neither tails of g that are too light nor any that are too heavy let the variance explode, which
one-sided estimates suffer from.

References:
    Meng & Wong 1996, "Simulating ratios of normalizing constants via a simple identity".
    Gronau et al. 2017, "A tutorial on bridge sampling".
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDS = 1000


def bridge(
    own: Float[Tensor, " draw"], other: Float[Tensor, " proposed"], ess: float | None = None
) -> tuple[float, float]:
    """Log evidence and its standard error.

    Args:
        own: log p(u, y) − log g(u) at draws of the posterior.
        other: The same at draws of g.
        ess: How many independent draws the former are worth; all by default.

    >>> u, g = (torch.randn(4000, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    >>> log_p, log_g = lambda u: 3 - u**2 / 2, torch.distributions.Normal(0.0, 1.5).log_prob
    >>> log_z, se = bridge(log_p(u) - log_g(u), log_p(1.5 * g) - log_g(1.5 * g))
    >>> abs(log_z - (3 + math.log(2 * math.pi) / 2)) < 4 * se    # the integral of exp(3 - u²/2)
    True
    """
    other = torch.where(torch.isnan(other), -torch.inf, other)
    worth = float(len(own)) if ess is None else min(ess, float(len(own)))
    one, two = (math.log(n / (worth + len(other))) for n in (worth, len(other)))
    log_z, above, below = own.median(), other, own
    for _ in range(_ROUNDS):
        above = other - torch.logaddexp(one + other - log_z, other.new_tensor(two))
        below = -torch.logaddexp(one + own - log_z, own.new_tensor(two))
        new = _log_mean(above) - _log_mean(below)
        done, log_z = bool((new - log_z).abs() < 1e-10), new
        if done:
            break
    return float(log_z), math.hypot(_error(above, float(len(other))), _error(below, worth))


def _log_mean(values: Tensor) -> Tensor:
    return torch.logsumexp(values, 0) - math.log(len(values))


def _error(values: Tensor, count: float) -> float:
    """Standard error of the log of a mean of exponentials, of so many that are independent."""
    scaled = (values - values.max()).exp()
    return float(scaled.std() / scaled.mean()) / math.sqrt(count)
