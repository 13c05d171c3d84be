r"""Hierarchical parameters: each group's (subject's, unit's) is drawn from a learned population.

Non-centred on the unconstrained scale, so that groups with few trials do not make a funnel:

.. math:: x_s = T(\mu + \tau z_s), \quad z_s \sim N(0, 1), \quad \tau \sim
    \text{HalfNormal}(1), \quad T(\mu) \sim \text{prior}
"""

import math
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.inference.priors import LOG_ROOT_TAU, Pooled, Site


class Grouped:
    """Parameters of each group, and of the population that they are drawn from.

    u holds the population's values μ (d), log τ (d), and the deviations z (group, d).

    Args:
        found: The sites of the model.
        index: The group of each trial, 0 … groups - 1.
        groups: Number of groups; by default as many as the index names.
    """

    def __init__(self, found: list[Site], index: Tensor, groups: int | None = None) -> None:
        self.pooled = Pooled(found)
        self.index = index
        self.groups = int(index.max()) + 1 if groups is None else groups
        d = self.pooled.size
        self.sizes = [d, d, self.groups * d]  # mean, log s.d., deviations
        self.size = sum(self.sizes)

    @property
    def sites(self) -> list[Site]:
        """The parameters of one group."""
        return self.pooled.sites

    @cached_property
    def rows(self) -> list[Tensor]:
        """The rows of each group that has any."""
        each = (torch.nonzero(self.index == j)[:, 0] for j in range(self.groups))
        return [rows for rows in each if len(rows)]

    def deviations(self, u: Float[Tensor, "*draw size"]) -> tuple[Tensor, Tensor, Tensor]:
        """Population mean and s.d. (…, d), and the groups' own (…, group, d), unconstrained."""
        mean, log_sd, z = u.split(self.sizes, -1)
        z, sd = z.reshape(*z.shape[:-1], self.groups, -1), log_sd.exp()
        return mean, sd, mean[..., None, :] + sd[..., None, :] * z

    def constrain(self, u: Float[Tensor, "*draw size"]) -> dict[str, Tensor]:
        """Each group's parameters, and the population's under ``population.`` and ``spread.``."""
        mean, sd, groups = self.deviations(u)
        spread = zip(self.sites, sd.split(self.pooled.sizes, -1), strict=True)
        return (
            self.pooled.constrain(groups)
            | {f"population.{k}": v for k, v in self.pooled.constrain(mean).items()}
            | {f"spread.{site.name}": s.squeeze(-1) if site.size == 1 else s for site, s in spread}
        )

    def trial_values(self, u: Float[Tensor, " size"]) -> dict[str, Tensor]:
        """The parameters of each trial: its group's."""
        values = self.pooled.constrain(self.deviations(u)[2])
        return {name: value[self.index] for name, value in values.items()}

    def log_prior(self, u: Float[Tensor, " size"]) -> Float[Tensor, ""]:
        """Log p(u): priors on the population, HalfNormal(1) on its spread, z standard normal."""
        mean, log_sd, z = u.split(self.sizes, -1)
        # -½ log_sd.exp()² + log_sd, and -½ z², with their constants
        spread = log_sd.sum() - 0.5 * (2 * log_sd).exp().sum() + len(log_sd) * math.log(2)
        both = spread - 0.5 * (z * z).sum() - (len(z) + len(log_sd)) * LOG_ROOT_TAU
        return self.pooled.log_prior(mean) + both

    def draws_log_prior(self, u: Float[Tensor, "batch draw size"]) -> Float[Tensor, "batch draw"]:
        """Log p(u) at many draws of each problem of a batch."""
        return torch.vmap(self.log_prior)(u.flatten(0, 1)).reshape(u.shape[:2])

    def start(self) -> Float[Tensor, " size"]:
        """Groups alike, with a spread of a quarter nat."""
        mean = self.pooled.start()
        rest = mean.new_zeros(self.sizes[2])
        return torch.cat([mean, torch.full_like(mean, math.log(0.25)), rest])

    def take(self, rows: Tensor) -> "Grouped":
        """The parameters of some of the trials."""
        return Grouped(self.sites, self.index[rows], self.groups)

    def select(self, problems: Tensor) -> "Grouped":
        """The parameters of some of the problems: the same."""
        return self
