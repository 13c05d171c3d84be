r"""Several read-outs of one posterior: parts whose parameters are linear in one vector.

.. math:: \log p(v \mid \text{data}) = \log p(v)
    + \sum_p \log p(y_p \mid x(u_p)), \qquad u_p = A_p v

Parts that share a weighting take it from the same components of v, and what is their own (a lapse,
a front end) from others; a shift by person is one more component that is added to the place of the
law. All on the unconstrained scale, so that each part's own map onto its supports follows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from pyro.distributions import LogNormal, Normal
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.distributions.constraints import real

from neurodiff.inference.importance import Draws
from neurodiff.inference.laplace import Modes
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.priors import Pooled, Site, nearest

FOLDS = 5


def of_weighting(name: str) -> bool:
    """Whether a parameter is of a weighting, or of the law of a measurement: what may be shared.

    >>> [of_weighting(n) for n in ("weighting.shift", "measurement.law.loc", "observer.lapse")]
    [True, True, False]
    """
    return "weighting" in name.split(".")[:-1] or name.startswith("measurement.law.")


@dataclass(frozen=True)
class Part:
    """One read-out of one person.

    Attributes:
        name: Different for each.
        person: Whose it is; several parts may be one person's.
        posterior: One problem.
        modes: Where it is by itself,
        draws: and draws of it.
        fold: Of each unit of generalisation.
        copies: How many trials each of these units is.
    """

    name: str
    person: str
    posterior: Posterior
    modes: Modes
    draws: Draws
    fold: Int[Tensor, " unit"]
    copies: Float[Tensor, " unit"]

    def columns(self, ours: bool) -> list[int]:
        """Where in u the parameters of the weighting are, or all others."""
        parameters, found, at = self.posterior.parameters, [], 0
        for site in parameters.sites:
            here = of_weighting(site.name) == ours
            found += range(at, at + site.size) if here else ()
            at += site.size
        return found


@dataclass(frozen=True)
class Tied(Posterior):
    """Parts as one problem, or as a batch of problems that differ in what they train on.

    Attributes:
        parts: One problem each.
        maps: (size of u, size of v) of each part.
    """

    parts: tuple[Posterior, ...] = ()
    maps: tuple[Tensor, ...] = ()

    def _rows(self, u: Float[Tensor, " size"], case: dict[str, Any]) -> Tensor:
        """Log p(y_i | x(A_p v)) of the rows of all parts."""
        each = zip(self.parts, self.maps, strict=True)
        return torch.cat([part._rows(to @ u, part._first) for part, to in each])

    def columns(self, owner: str) -> list[int]:
        """Where in v the parameters of a weighting are, by whose it is."""
        parameters, found, at = self.parameters, [], 0
        for site in parameters.sites:
            whose, _, name = site.name.rpartition(": ")
            here = whose == owner and of_weighting(name)
            found += range(at, at + site.size) if here else ()
            at += site.size
        return found


def tie(
    parts: Sequence[Part],
    owner: Callable[[Part], str],
    shifted: bool = False,
    width: float = 1.0,
) -> Tied:
    """One posterior of parts that share the weighting of the same owner.

    A law has one prior whoever it belongs to: the mean of what the parts would have given it.

    Args:
        parts: Of models with the same parameters of the weighting.
        owner: Whose weighting a part has.
        shifted: Whether each person adds a shift of their own to its place, Normal(0, 1) nats.
        width: Factor on the standard deviations of the priors of the weighting and of the shift,
            on the unconstrained scale.

    Raises:
        ValueError: If the parts' weightings have no parameters, or different ones.
    """
    prior = common(parts, width)
    found: dict[str, Site] = {}
    slots = []  # of each part: the name in v of every parameter
    for part in parts:
        own = []
        for site in part.posterior.parameters.sites:
            ours = site.name in prior
            name = f"{owner(part) if ours else part.name}: {site.name}"
            own.append(name)
            found[name] = replace(prior[site.name] if ours else site, name=name)
        slots.append(own)
    if shifted:
        zero = torch.zeros((), dtype=torch.float64)
        for part in parts:
            name = f"{part.person}: shift"
            found[name] = Site(name, zero, biject_to(real), Normal(zero, zero + width))
    parameters = Pooled(list(found.values()))
    where = dict(
        zip(found, torch.eye(parameters.size).double().split(parameters.sizes), strict=True)
    )
    maps = []
    for part, own in zip(parts, slots, strict=True):
        maps.append(torch.cat([where[name] for name in own]))
        if shifted:
            maps[-1][place(part)] += where[f"{part.person}: shift"][0]
    posteriors = tuple(part.posterior for part in parts)
    units = [p.mask.shape[1] for p in posteriors]
    before = [sum(units[:i]) for i in range(len(units))]
    return Tied(
        nn.Module(),
        parameters,
        {},
        torch.cat([p.response for p in posteriors]),
        torch.cat([p.unit + b for p, b in zip(posteriors, before, strict=True)]),
        torch.ones(1, sum(units), dtype=torch.float64),
        torch.cat([p.weight for p in posteriors]),
        parts=posteriors,
        maps=tuple(maps),
    )


def common(parts: Sequence[Part], width: float = 1.0) -> dict[str, Site]:
    """The parameters of the weighting under one prior for all parts.

    Args:
        parts: Whose models have the same parameters of the weighting.
        width: Factor on the standard deviations of the priors, on the unconstrained scale.

    Raises:
        ValueError: If the parts' weightings have no parameters, or different ones, or priors
            without a width.
    """
    each = [
        {s.name: s for s in part.posterior.parameters.sites if of_weighting(s.name)}
        for part in parts
    ]
    for part, own in zip(parts, each, strict=True):
        if not own or {(n, s.inner) for n, s in own.items()} != {
            (n, s.inner) for n, s in each[0].items()
        }:
            raise ValueError(
                f"{part.name} has the weighting's parameters {sorted(own) or 'none'}, "
                f"{parts[0].name} {sorted(each[0]) or 'none'}: wanted the same, at least one"
            )
    found = {}
    for name, site in each[0].items():
        kind = type(site.prior)
        if kind not in (Normal, LogNormal):
            raise ValueError(f"the prior of {name}, {site.prior}, has no width: wanted a Normal")
        loc, scale = (
            torch.stack([getattr(own[name].prior, k) for own in each]).mean(0)
            for k in ("loc", "scale")
        )
        found[name] = replace(site, prior=kind(loc, width * scale, validate_args=False))
    return found


def place(part: Part) -> int:
    """Where in u the place of the law is.

    Raises:
        ValueError: If there is none.
    """
    at = 0
    for site in part.posterior.parameters.sites:
        if of_weighting(site.name) and site.name.endswith((".law.loc", ".shift")):
            return at
        at += site.size
    names = [site.name for site in part.posterior.parameters.sites]
    near = nearest("weighting.law.loc", names)
    raise ValueError(f"the weighting of {part.name} has no place: {near}")


def least_squares(tied: Tied, each: Sequence[Float[Tensor, " _"]]) -> Float[Tensor, " size"]:
    """The v whose parts are nearest to given values of u: their mean where they share."""
    both = torch.cat(tied.maps), torch.cat(list(each))
    return torch.linalg.lstsq(both[0], both[1][:, None], driver="gelsd").solution[:, 0]
