r"""Leave one subject out: what a statement about a population is judged by.

With every parameter of subject s drawn from the population, :math:`u_s \sim N(\mu, \tau^2)` on the
unconstrained scale, the density of a subject who was never seen is

.. math:: \text{elpd}_s = \log \int p(y_s \mid u)\, p(u \mid y_{-s})\, du, \qquad
    p(u \mid y_{-s}) \approx \frac1D \sum_d N(u;\, \mu_d, \tau_d^2)

over draws d of the population given the others. The integral is the evidence of that subject's
trials under the mixture as a prior, found by weighing the draws of the subject by itself anew, or
where these lie elsewhere by importance sampling around its mode: averaging :math:`p(y_s \mid u)`
over draws of u would need thousands of times as many.

The population given the others comes in two stages, :mod:`~neurodiff.inference.stages`. Beyond ten
subjects, tenths of them are held out together.
"""

import math
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from neurodiff.inference.importance import importance_draws
from neurodiff.inference.join import Bound
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.proposals import systematic
from neurodiff.inference.psis import smooth
from neurodiff.inference.stages import First, Population, first_stage, populations

_FOLDS = 10
_FEW = 20  # effective components of it below which no average is to be believed


def leave_one_group_out(
    bound: Bound, draws: int, seed: int, first: First | None = None
) -> xr.Dataset:
    """The elpd of each group (subject, unit) given the others.

    Args:
        bound: A hierarchical model, joined with ``by=``.
        draws: Importance draws behind the evidence of a group that needs its own.
        seed: Of all randomness.
        first: Draws of each group, where a fit has them.

    Returns:
        ``elpd`` and ``k_hat`` along the dimension of the groups: the larger of a group's own and of
        the others'; inf where the chains of the population disagree or few of its draws explain the
        group.

    Raises:
        TypeError: If the model has no groups.
    """
    generator = torch.Generator().manual_seed(seed)
    count = 1 if bound.groups is None else len(bound.groups)
    fold = torch.arange(count) % _FOLDS
    folds = (fold[None] != torch.arange(int(fold.max()) + 1)[:, None]).to(bound.start)
    first = first_stage(bound.posterior, generator) if first is None else first
    found = populations(first, folds, generator)
    elpd, k_hat = [], []
    for j, held in enumerate(fold):
        population = Population(bound.pooled.sites, found.mean[held], found.log_sd[held].exp())
        value, own, u = _evidence(first, j, population, draws, generator)
        explained = population.effective(u) >= _FEW
        elpd.append(value)
        k_hat.append(max(own if explained else math.inf, found.k_hat[held].item()))
    dim = bound.by or "group"
    variables = {"elpd": elpd, "k_hat": k_hat}
    return xr.Dataset(
        {name: (dim, np.asarray(values)) for name, values in variables.items()},
        coords={dim: bound.groups},
    )


def _evidence(
    first: First, group: int, population: Population, draws: int, generator: torch.Generator
) -> tuple[float, float, Float[Tensor, "draw size"]]:
    """Log evidence of a group's trials under a population, its k̂, and draws of the group."""
    u, log_c = first.likelihood[group]
    log_w = log_c + population.draws_log_prior(u[None])[0]
    u, log_w = u[torch.isfinite(log_w)], log_w[torch.isfinite(log_w)]
    smoothed, k_hat = smooth(log_w.cpu().numpy())
    if max(k_hat, first.k_hat[group].item()) < 0.7:
        share = torch.as_tensor(smoothed).to(u).exp()[None]
        return torch.logsumexp(log_w, 0).item(), k_hat, u[systematic(share, draws, generator)[0]]
    # the draws lie elsewhere. Not chains: the evidence is wanted, which only weights give
    own = replace(first.groups[group], parameters=population)
    modes = find_modes(own, population.start()[None])
    result = importance_draws(own, modes, draws, generator)
    return result.log_evidence.item(), result.k_hat.item(), result.resample(draws, generator)[0]
