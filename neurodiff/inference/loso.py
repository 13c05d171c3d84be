r"""Leave one subject out: what a statement about a population is judged by.

With every parameter of subject s drawn from the population, :math:`u_s \sim N(\mu, \tau^2)` on the
unconstrained scale, the density of a subject who was never seen is

.. math:: \text{elpd}_s = \log \int p(y_s \mid u)\, p(u \mid y_{-s})\, du, \qquad
    p(u \mid y_{-s}) \approx \frac1D \sum_d N(u;\, \mu_d, \tau_d^2)

over draws d of the population given the others. The integral is the evidence of that subject's
trials under the mixture as a prior, found by importance sampling around its mode: averaging
:math:`p(y_s \mid u)` over draws of u would need thousands of times as many.

The population given the others comes in two stages, :mod:`~neurodiff.inference.stages`. Beyond ten
subjects, tenths of them are held out together.
"""

import math
from dataclasses import replace

import numpy as np
import torch
import xarray as xr

from neurodiff.inference.importance import importance_draws
from neurodiff.inference.join import Bound
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.stages import Population, populations

_FOLDS = 10
_FEW = 20  # effective components of it below which no average is to be believed


def leave_one_group_out(bound: Bound, draws: int, seed: int) -> xr.Dataset:
    """The elpd of each group (subject, unit) given the others.

    Args:
        bound: A hierarchical model, joined with ``by=``.
        draws: Importance draws behind each group's evidence.
        seed: Of all randomness.

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
    groups, found = populations(bound.posterior, folds, generator)
    elpd, k_hat = [], []
    for alone, held in zip(groups, fold, strict=True):
        population = Population(bound.pooled.sites, found.mean[held], found.log_sd[held].exp())
        own = replace(alone, parameters=population)
        modes = find_modes(own, population.start()[None])
        # not chains: the evidence is wanted, which only weights give
        result = importance_draws(own, modes, 2 * draws, generator)
        elpd.append(result.log_evidence.item())
        explained = population.effective(result.resample(draws, generator)[0]) >= _FEW
        own = result.k_hat.item() if explained else math.inf
        k_hat.append(max(own, found.k_hat[held].item()))
    dim = bound.by or "group"
    variables = {"elpd": elpd, "k_hat": k_hat}
    return xr.Dataset(
        {name: (dim, np.asarray(values)) for name, values in variables.items()},
        coords={dim: bound.groups},
    )
