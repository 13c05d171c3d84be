r"""Parameter priors by dotted name, and the flat unconstrained vector that every method works on.

A model's ``nn.Parameter`` s hold constrained values x; each owner names their supports in
``constraints`` and their
default priors in ``priors``. With x = T(u) the density that is explored is

.. math:: \log p(u) = \log p(x) + \log |\partial T / \partial u|

and with groups s (subjects, units) every parameter is hierarchical, non-centred on the
unconstrained scale:

.. math:: x_s = T(\mu + \tau z_s), \quad z_s \sim N(0, 1), \quad \tau \sim \text{HalfNormal}(1),
\quad T(\mu) \sim \text{prior}

"parameter prior" is this; "image prior" is :mod:`neurodiff.diffusion.prior`.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as pyro_dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, HalfNormal, Transform, biject_to


@dataclass(frozen=True)
class Site:
    """One learned parameter: its dotted name, support and prior."""

    name: str
    value: Tensor
    transform: Transform
    prior: Distribution

    @property
    def size(self) -> int:
        """Length of the parameter on the unconstrained scale."""
        return math.prod(self.transform.inverse_shape(self.value.shape))

    def constrain(self, u: Tensor) -> Tensor:
        """X = T(u), u flat in its last dimension."""
        inner = self.transform.inverse_shape(self.value.shape)
        return self.transform(u.reshape((*u.shape[:-1], *inner)))

    def log_prior(self, u: Float[Tensor, " size"]) -> Tensor:
        """Log p(T(u)) + log |dT/du|."""
        shaped = u.reshape(self.transform.inverse_shape(self.value.shape))
        x = self.transform(shaped)
        jacobian = self.transform.log_abs_det_jacobian(shaped, x)
        return self.prior.log_prob(x).sum() + jacobian.sum()


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message: the closest known name, then all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known)}"


def sites(model: nn.Module, priors: Mapping[str, Distribution] | None = None) -> list[Site]:
    """The learned parameters of a model with their priors: the modules' own unless given here.

    Args:
        model: A module whose sub-modules carry ``constraints`` and ``priors``. A parameter that
        does not
            require a gradient is fixed.
        priors: Replacements by dotted name.

    Raises:
        ValueError: If a name is not a learned parameter (the nearest one is named), or a parameter
        has neither a
            default prior nor one given.
    """
    owners = {name: module for name, module in model.named_modules()}
    found = []
    given = dict(priors or {})
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for name in given:
        if name not in learned:
            raise ValueError(f"no learned parameter {name!r}: {nearest(name, list(learned))}")
    for name, parameter in learned.items():
        path, _, own = name.rpartition(".")
        owner = owners[path]
        prior = given.get(name, getattr(owner, "priors", {}).get(own))
        if prior is None:
            raise ValueError(f"parameter {name!r} has no prior: give priors={{{name!r}: …}}")
        support = getattr(owner, "constraints", {}).get(own, torch.distributions.constraints.real)
        found.append(Site(name, parameter.detach(), biject_to(support), _unchecked(prior)))
    return found


def _unchecked(prior: Distribution) -> Distribution:
    """A copy that checks no values: checks branch on data, which vmap cannot."""
    copy = prior.expand(prior.batch_shape)
    copy._validate_args = False
    return copy


def to_pyro(prior: Distribution) -> Distribution:
    """The Pyro distribution of the same name and parameters, which ``pyro.sample`` needs.

    >>> to_pyro(torch.distributions.Normal(0.0, 1.0))
    Normal(loc: 0.0, scale: 1.0)
    """
    if isinstance(prior, pyro_dist.torch_distribution.TorchDistributionMixin):
        return prior
    if isinstance(prior, torch.distributions.Independent):
        return to_pyro(prior.base_dist).to_event(prior.reinterpreted_batch_ndims)  # pyright: ignore
    kind = getattr(pyro_dist, type(prior).__name__)
    names = prior.arg_constraints
    # a distribution with several equivalent parameters (precision, covariance) lists them all; one
    # is kept
    if "precision_matrix" in names:
        return kind(prior.loc, precision_matrix=prior.precision_matrix, validate_args=False)  # pyright: ignore
    names = [n for n in names if n != "logits" or "probs" not in names]
    return kind(**{n: getattr(prior, n) for n in names}, validate_args=False)


class Pooled:
    """One value of each parameter for all trials.

    Attributes:
        size: Length of the flat vector u.
    """

    def __init__(self, found: list[Site]) -> None:
        self.sites = found
        self.sizes = [site.size for site in found]
        self.size = sum(self.sizes)

    def constrain(self, u: Float[Tensor, "*draw size"]) -> dict[str, Tensor]:
        """The parameters of flat vectors, by dotted name."""
        parts = u.split(self.sizes, -1)
        return {
            site.name: site.constrain(part) for site, part in zip(self.sites, parts, strict=True)
        }

    trial_values = constrain  # what the model is called with

    def log_prior(self, u: Float[Tensor, " size"]) -> Tensor:
        """Log p(u), with the Jacobian of the supports."""
        parts = u.split(self.sizes, -1)
        terms = [site.log_prior(part) for site, part in zip(self.sites, parts, strict=True)]
        return torch.stack(terms).sum()

    def start(self) -> Float[Tensor, " size"]:
        """U of the values that the modules hold."""
        return torch.cat([site.transform.inv(site.value).reshape(-1) for site in self.sites])


class Grouped:
    """Hierarchical parameters: one value for each group, drawn from a population that is learned with them.

    Args:
        found: The sites of the model.
        index: The group of each trial, 0 … groups - 1.
    """

    def __init__(self, found: list[Site], index: Tensor) -> None:
        self.pooled = Pooled(found)
        self.index, self.groups = index, int(index.max()) + 1
        d = self.pooled.size
        self.sizes = [d, d, self.groups * d]  # mean, log s.d., deviations
        self.size = sum(self.sizes)

    def deviations(self, u: Float[Tensor, "*draw size"]) -> tuple[Tensor, Tensor, Tensor]:
        """Population mean and s.d. (…, d) and the groups' own values (…, group, d), unconstrained."""
        mean, log_sd, z = u.split(self.sizes, -1)
        z = z.reshape(*z.shape[:-1], self.groups, -1)
        return mean, log_sd.exp(), mean[..., None, :] + log_sd.exp()[..., None, :] * z

    def constrain(self, u: Float[Tensor, "*draw size"]) -> dict[str, Tensor]:
        """Each group's parameters, and the population's under ``population.`` and ``spread.``."""
        mean, sd, groups = self.deviations(u)
        spread = zip(self.pooled.sites, sd.split(self.pooled.sizes, -1), strict=True)
        return (
            self.pooled.constrain(groups)
            | {f"population.{k}": v for k, v in self.pooled.constrain(mean).items()}
            | {f"spread.{site.name}": s.squeeze(-1) if site.size == 1 else s for site, s in spread}
        )

    def trial_values(self, u: Float[Tensor, " size"]) -> dict[str, Tensor]:
        """The parameters of each trial: its group's."""
        values = self.pooled.constrain(self.deviations(u)[2])
        return {name: value[self.index] for name, value in values.items()}

    def log_prior(self, u: Float[Tensor, " size"]) -> Tensor:
        """Log p(u): the default priors on the population, HalfNormal(1) on its spread, z standard normal."""
        mean, log_sd, z = u.split(self.sizes, -1)
        spread = (
            HalfNormal(torch.ones_like(log_sd), validate_args=False).log_prob(log_sd.exp()) + log_sd
        )
        return self.pooled.log_prior(mean) + spread.sum() - 0.5 * (z * z).sum()

    def start(self) -> Float[Tensor, " size"]:
        """Groups alike, with a spread of a quarter nat."""
        mean = self.pooled.start()
        rest = mean.new_zeros(self.sizes[2])
        return torch.cat([mean, torch.full_like(mean, math.log(0.25)), rest])
