r"""Parameter priors by dotted name, and the flat unconstrained vector that every method works on.

A model's ``nn.Parameter`` s hold constrained values x. Their owners name the supports in
``constraints`` and the default priors in ``priors``. With x = T(u), T the map onto the prior's
support, the density that is explored is

.. math:: \log p(u) = \log p(x) + \log |\partial T / \partial u|

In u most priors are one of two: Normal and LogNormal are normal, Uniform and Beta have density
:math:`\sigma(u)^a\, \sigma(-u)^b / B(a, b)`. These are evaluated for all parameters at once.
"Parameter prior" is this; "image prior" is :mod:`neurodiff.diffusion.prior`.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as pyro_dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import (
    Beta,
    ComposeTransform,
    Distribution,
    Independent,
    LogNormal,
    Normal,
    Transform,
    TransformedDistribution,
    Uniform,
    biject_to,
    constraints,
)
from torch.distributions.constraints import Constraint
from torch.func import vmap
from torch.nn.functional import logsigmoid

LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Site:
    """One learned parameter: dotted name, present value, map onto the support, and prior."""

    name: str
    value: Tensor
    transform: Transform
    prior: Distribution

    @property
    def inner(self) -> torch.Size:
        """Shape of the parameter on the unconstrained scale."""
        return torch.Size(self.transform.inverse_shape(self.value.shape))

    @property
    def size(self) -> int:
        """Length of the parameter on the unconstrained scale."""
        return math.prod(self.inner)

    def constrain(self, u: Float[Tensor, "*draw size"]) -> Tensor:
        """The parameter x = T(u), with leading dimensions kept."""
        return self.transform(u.reshape((*u.shape[:-1], *self.inner)))  # pyright: ignore

    def to(self, device: torch.device | str) -> "Site":
        """The same elsewhere."""
        prior = to_pyro(self.prior, device)
        return Site(self.name, self.value.to(device), biject_to(prior.support), prior)

    def unconstrain(self, x: Tensor) -> Float[Tensor, " size"]:
        """The flat u of a value."""
        return self.transform.inv(x.expand(self.value.shape)).reshape(-1)  # pyright: ignore

    def log_prior(self, u: Float[Tensor, " size"]) -> Float[Tensor, ""]:
        """Log p(T(u)) + log |dT/du|."""
        x, shaped = self.constrain(u), u.reshape(self.inner)
        jacobian = self.transform.log_abs_det_jacobian(shaped, x)
        return self.prior.log_prob(x).sum() + jacobian.sum()


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message: the closest known name, then all of them.

    >>> nearest("locc", ["loc", "scale"])
    "did you mean 'loc'? known: loc, scale"
    """
    close = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known)}"


def sites(model: nn.Module, priors: Mapping[str, Distribution] | None = None) -> list[Site]:
    """The learned parameters of a model with their priors: the modules' own unless given here.

    Args:
        model: A module whose sub-modules carry ``constraints`` and ``priors``. A parameter that
            does not require a gradient is fixed.
        priors: Replacements by dotted name.

    Raises:
        ValueError: If a name is not a learned parameter (the nearest one is named), a parameter
            has neither a default prior nor one given, a prior reaches beyond its parameter's
            support, or there is nothing to learn.

    >>> import neurodiff as nd
    >>> [site.name for site in sites(nd.laws.Logistic())]
    ['loc', 'scale']
    """
    owners = dict(model.named_modules())
    given = dict(priors or {})
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not learned:
        raise ValueError("the model has no parameter that requires a gradient: nothing to learn")
    for name in given:
        if name not in learned:
            raise ValueError(f"no learned parameter {name!r}: {nearest(name, list(learned))}")
    found = []
    for name, parameter in learned.items():
        path, _, own = name.rpartition(".")
        prior = given.get(name, getattr(owners[path], "priors", {}).get(own))
        if prior is None:
            raise ValueError(f"parameter {name!r} has no prior: give priors={{{name!r}: …}}")
        support = getattr(owners[path], "constraints", {}).get(own, constraints.real)
        value = parameter.detach().double()
        found.append(_site(name, value, support, to_pyro(prior, value.device)))
    return found


def _site(name: str, value: Tensor, support: Constraint, prior: Distribution) -> Site:
    """A parameter on its prior's support; from the prior's mean where its own value is outside."""
    shape = value.shape[: max(0, value.dim() - len(prior.event_shape))]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            drawn = prior.expand(shape).sample((64,))
        except RuntimeError:
            drawn = prior.sample((64,))
    if drawn.shape[1:] != value.shape:
        raise ValueError(
            f"the prior of {name!r} has shape {tuple(drawn.shape[1:])}, "
            f"wanted that of the parameter, {tuple(value.shape)}"
        )
    if not support.check(drawn).all():
        raise ValueError(f"the prior of {name!r}, {prior}, reaches beyond its support, {support}")
    transform = biject_to(prior.support)
    if type(prior) is pyro_dist.TransformedDistribution:
        # whose support forgets where it begins: the last transform alone says it
        transform = ComposeTransform([biject_to(prior.base_dist.support), *prior.transforms])  # pyright: ignore
    # a value on the very edge of the support is infinitely far away in u
    inside = prior.support.check(value).all() and (transform.inv(value).abs() < 30).all()  # pyright: ignore
    return Site(name, value if inside else drawn.mean(0), transform, prior)


def to_pyro(prior: Distribution, device: torch.device | str = "cpu") -> Distribution:
    """The Pyro distribution of the same name and parameters, in float64, which checks no values.

    Checks branch on data, which ``vmap`` cannot; ``pyro.sample`` takes none but Pyro's own.

    Raises:
        TypeError: If Pyro has no distribution of that name.

    >>> to_pyro(torch.distributions.Normal(0.0, 1.0))
    Normal(loc: 0.0, scale: 1.0)
    """
    kind = type(prior).__name__
    if isinstance(prior, Independent):
        return to_pyro(prior.base_dist, device).to_event(prior.reinterpreted_batch_ndims)  # pyright: ignore
    if type(prior) in (TransformedDistribution, pyro_dist.TransformedDistribution):
        base = to_pyro(prior.base_dist, device)  # pyright: ignore[reportAttributeAccessIssue]
        return pyro_dist.TransformedDistribution(base, prior.transforms, validate_args=False)  # pyright: ignore
    if not hasattr(pyro_dist, kind):
        raise TypeError(f"got a prior of type {kind}, wanted one that pyro.distributions has too")
    names = list(prior.arg_constraints)
    # several equivalent parameters are all listed (precision, covariance, …): one is kept
    if "precision_matrix" in names:
        names = ["loc", "precision_matrix"]
    names = [n for n in names if n != "logits" or "probs" not in names]
    values = {n: torch.as_tensor(getattr(prior, n)) for n in names}
    values = {n: v.to(device, torch.float64) for n, v in values.items()}
    return getattr(pyro_dist, kind)(**values, validate_args=False)


def _coefficients(site: Site) -> tuple[tuple[Tensor, ...], float] | None:
    """(loc, 1/scale, a, b) and the constant of a prior that is normal or logistic-beta in u."""
    prior = site.prior
    while isinstance(prior, Independent):
        prior = prior.base_dist
    none, one, constant = torch.zeros_like(site.value), torch.ones_like(site.value), 0.0
    if isinstance(prior, Normal | LogNormal):
        scale = prior.scale.expand(one.shape)
        constant = -(scale.log() + LOG_ROOT_TAU).sum().item()
        rows = prior.loc.expand(one.shape), 1 / scale, none, none
    elif isinstance(prior, Uniform):
        rows = none, none, one, one
    elif isinstance(prior, Beta):
        a, b = prior.concentration1.expand(one.shape), prior.concentration0.expand(one.shape)
        constant = -(torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)).sum().item()
        rows = none, none, a, b
    else:
        return None
    return tuple(row.reshape(-1) for row in rows), constant


class Pooled:
    """One value of each parameter for all trials.

    Attributes:
        sites: The parameters.
        sizes: Length of each in u.
        size: Length of the flat vector u.
        coefficients: (loc, 1/scale, a, b) of each component of u, and one constant.
    """

    def __init__(self, found: list[Site]) -> None:
        self.sites = found
        self.sizes = [site.size for site in found]
        self.size = sum(self.sizes)
        known = [_coefficients(site) for site in found]
        self._rest = [i for i, row in enumerate(known) if row is None]
        none = [(site.value.new_zeros(site.size),) * 4 for site in found]
        rows = [zero if row is None else row[0] for row, zero in zip(known, none, strict=True)]
        loc, rate, a, b = map(torch.cat, zip(*rows, strict=True))
        self._bounded = bool((a > 0).any())
        constant = loc.new_tensor(sum(row[1] for row in known if row is not None))
        self.coefficients = loc, rate, a, b, constant

    def constrain(self, u: Float[Tensor, "*draw size"]) -> dict[str, Tensor]:
        """The parameters of flat vectors, by dotted name."""
        parts = u.split(self.sizes, -1)
        return {site.name: site.constrain(part) for site, part in zip(self.sites, parts)}  # noqa: B905

    def trial_values(self, u: Float[Tensor, " size"]) -> dict[str, Tensor]:
        """What the model is called with: the same."""
        return self.constrain(u)

    def log_prior(
        self, u: Float[Tensor, " size"], coefficients: tuple[Tensor, ...] | None = None
    ) -> Float[Tensor, ""]:
        """Log p(u), with the Jacobian of the supports; under other priors where they are given."""
        loc, rate, a, b, constant = self.coefficients if coefficients is None else coefficients
        z = (u - loc) * rate
        total = constant - 0.5 * (z * z).sum()
        if self._bounded:
            # a log σ(u) + b log σ(-u)
            total = total + ((a + b) * logsigmoid(u) - b * u).sum()
        if self._rest:
            parts = u.split(self.sizes, -1)
            total = total + sum(self.sites[i].log_prior(parts[i]) for i in self._rest)
        return total

    def draws_log_prior(self, u: Float[Tensor, "batch draw size"]) -> Float[Tensor, "batch draw"]:
        """Log p(u) at many draws of each problem of a batch."""
        return vmap(self.log_prior)(u.flatten(0, 1)).reshape(u.shape[:2])

    def start(self) -> Float[Tensor, " size"]:
        """The u of the values that the modules hold."""
        return torch.cat([site.unconstrain(site.value) for site in self.sites])

    def draw_prior(self, count: int) -> Float[Tensor, "{count} size"]:
        """Draws from the priors, unconstrained; from torch's global generator."""
        columns = []
        for site in self.sites:
            batch = site.value.shape[: site.value.dim() - len(site.prior.event_shape)]
            x = site.prior.expand(batch).sample((count,)).to(site.value)
            columns.append(site.transform.inv(x).reshape(count, -1))  # pyright: ignore
        return torch.cat(columns, -1)

    def take(self, rows: Tensor) -> "Pooled":
        """The parameters of some of the trials: the same."""
        return self

    def select(self, problems: Tensor) -> "Pooled":
        """The parameters of some of the problems: the same."""
        return self

    def of_part(self, part: int) -> "Pooled":
        """The parameters of one part of a batch: the same."""
        return self
