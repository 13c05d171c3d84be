r"""Leave one subject out: what a statement about a population is judged by.

With every parameter of subject s drawn from the population, :math:`u_s \sim N(\mu, \tau^2)` on the
unconstrained scale, the density of a subject who was never seen is

.. math:: \text{elpd}_s = \log \int p(y_s \mid u)\, p(u \mid y_{-s})\, du, \qquad
    p(u \mid y_{-s}) \approx \frac1D \sum_d N(u;\, \mu_d, \tau_d^2)

over draws d of the population given the others. The integral is the evidence of that subject's
trials under the mixture as a prior, found by importance sampling around its mode: averaging
:math:`p(y_s \mid u)` over draws of u would need thousands of times as many. Beyond ten subjects,
tenths of them are held out together.
"""

import math
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from neurodiff.inference.groups import Grouped
from neurodiff.inference.hmc import many_chains
from neurodiff.inference.importance import importance_draws
from neurodiff.inference.join import Bound
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.priors import LOG_ROOT_TAU, Pooled, Site
from neurodiff.inference.psis import smooth

_FOLDS = 10
_CHAINS, _WARMUP, _DRAWS = 64, 100, 60
_CENTRES = 1000  # draws of the population that make up a mixture
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

    def k_hat(self, u: Float[Tensor, "draw size"]) -> float:
        """Pareto k̂ of the components' shares in a subject: high where a few draws explain it."""
        shares = torch.softmax(torch.vmap(self.components)(u), -1).mean(0)
        effective = shares.sum() ** 2 / shares.square().sum()
        return math.inf if effective < _FEW else smooth(shares.log().cpu().numpy())[1]

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
        ``elpd`` and ``k_hat`` of each group, and ``r_hat`` of the population it was predicted from,
        along the dimension of the groups.

    Raises:
        TypeError: If the model has no groups.
    """
    joint, grouped = bound.posterior, bound.posterior.parameters
    if not isinstance(grouped, Grouped) or bound.groups is None:
        raise TypeError("the model has no groups: leave-one-subject-out needs join(…, by=…)")
    generator = torch.Generator().manual_seed(seed)
    fold = np.arange(grouped.groups) % _FOLDS
    mean, sd, r_hat = _populations(bound, torch.as_tensor(fold), generator)
    elpd, k_hat = [], []
    for group, held in enumerate(fold):
        rows = torch.nonzero(grouped.index == group)[:, 0]
        population = Population(grouped.sites, mean[held], sd[held])
        own = replace(joint.take(rows), parameters=population, weight=joint.weight[rows])
        result = importance_draws(own, find_modes(own, population.start()[None]), draws, generator)
        elpd.append(result.log_evidence.item())
        k_hat.append(max(result.k_hat.item(), population.k_hat(result.u[0])))
    dim = bound.by or "group"
    variables = {"elpd": elpd, "k_hat": k_hat, "r_hat": r_hat.cpu().numpy()[fold]}
    return xr.Dataset(
        {name: (dim, np.asarray(values)) for name, values in variables.items()},
        coords={dim: bound.groups},
    )


def _populations(
    bound: Bound, fold: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of μ and τ (fold, centre, size) without the groups of each fold, and their R-hat."""
    joint, grouped = bound.posterior, bound.posterior.parameters
    assert isinstance(grouped, Grouped)
    count = int(fold.max()) + 1
    mask = (fold[None] != torch.arange(count)[:, None]).to(joint.mask)
    folds = replace(joint, unit=grouped.index, mask=mask)
    modes = find_modes(folds, bound.start.expand(count, -1))
    start = _starts(folds, modes.u, modes.factor, generator)
    chains = many_chains(folds, modes.u, modes.factor, start, generator, _WARMUP, _DRAWS)
    u = chains.u.flatten(1, 2)
    keep = torch.linspace(0, u.shape[1] - 1, _CENTRES).long().to(u.device)
    mean, sd, _ = grouped.deviations(u[:, keep])
    return mean, sd, chains.r_hat


def _starts(
    folds: Posterior, centre: Tensor, factor: Tensor, generator: torch.Generator
) -> Float[Tensor, "batch chain size"]:
    """Where chains begin: about the modes, closer than the Laplace fit is wide.

    From afar, where τ is large and deviations are pinned down by the data, a chain whose step is
    fit for the rest would never come back.
    """
    shape = (folds.batch, _CHAINS, folds.size)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(centre)
    return centre[:, None] + 0.4 * noise @ factor.mT
