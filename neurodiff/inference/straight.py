r"""Coordinates in which a ridge of the posterior is straight, for draws that follow straight lines.

.. math:: v = v(u), \quad |\partial v / \partial u| = 1, \qquad p(v \mid \text{data}) =
    p(u(v) \mid \text{data}), \qquad L_v = \frac{\partial v}{\partial u}\, L_u \ \text{at the mode}

Where data fix the sum of two positive parameters and say little of their ratio, their logarithms
lie on a curve that a normal about the mode leaves after one standard deviation; draws about it then
miss what lies further along, and their weights cannot say so. A model that knows of such sums names
the parameters (``ridges``), gives the sums by ``straight(u)`` and takes them back by ``bent(v)``:
unconstrained parameters by dotted name, in maps whose determinant is one, so that a density is the
same number in u and in v.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neurodiff.inference.groups import Grouped
from neurodiff.inference.laplace import Modes, nearest_root
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.priors import Pooled


class Straight(Pooled):
    """Parameters by the coordinates v of a model: wherever others take u, these take v.

    Args:
        inner: By u.
        model: With ``ridges``, ``straight`` and ``bent``.

    >>> from neurodiff.diffusion.laws import Logistic
    >>> from neurodiff.inference.priors import sites
    >>> from neurodiff.perception.drifts import Power
    >>> from neurodiff.perception.timed import TimeStop, places
    >>> model = TimeStop(Power(), Logistic(), horizon=2.0)
    >>> own = Straight(Pooled(sites(model, places(model.law))), model)
    >>> torch.allclose(own.bent(own.straight(torch.ones(own.size))), torch.ones(own.size))
    True
    """

    def __init__(self, inner: Pooled, model: nn.Module) -> None:
        super().__init__(inner.sites)
        self.inner, self.model = inner, model

    def straight(self, u: Float[Tensor, "*draw size"]) -> Float[Tensor, "*draw size"]:
        """v(u)."""
        return self._each(self.model.straight, u)  # pyright: ignore

    def bent(self, v: Float[Tensor, "*draw size"]) -> Float[Tensor, "*draw size"]:
        """u(v)."""
        return self._each(self.model.bent, v)  # pyright: ignore

    def _each(self, move: Callable[[dict[str, Tensor]], dict[str, Tensor]], u: Tensor) -> Tensor:
        """A map of some parameters, the others as they are."""
        names = [site.name for site in self.sites]
        parts = dict(zip(names, u.split(self.sizes, -1), strict=True))
        return torch.cat(list((parts | move(parts)).values()), -1)

    def constrain(self, u: Float[Tensor, "*draw size"]) -> dict[str, Tensor]:
        """The parameters of flat vectors v, by dotted name."""
        return super().constrain(self.bent(u))

    def log_prior(
        self, u: Float[Tensor, " size"], *coefficients: tuple[Tensor, ...]
    ) -> Float[Tensor, ""]:
        """Log p(v)."""
        return self.inner.log_prior(self.bent(u), *coefficients)

    def start(self) -> Float[Tensor, " size"]:
        """The v of the values that the modules hold."""
        return self.straight(self.inner.start())

    def draw_prior(self, count: int) -> Float[Tensor, "{count} size"]:
        """Draws from the priors, by v."""
        return self.straight(self.inner.draw_prior(count))


def straightened(posterior: Posterior, modes: Modes) -> tuple[Posterior, Modes]:
    """A posterior and its modes by v, where all that the ridges of its model are about is free.

    Otherwise they are as given. As the determinant is one modes stay modes.
    """
    inner, ridges = posterior.parameters, getattr(posterior.model, "ridges", ())
    if not ridges or isinstance(inner, Straight | Grouped):
        return posterior, modes
    free = {site.name for site in inner.sites if site.size == 1}
    if not free.issuperset(ridges):
        return posterior, modes
    own = Straight(inner, posterior.model)
    axes = [
        torch.func.jvp(own.straight, (modes.u,), (axis,))[1] for axis in modes.factor.unbind(-1)
    ]
    moved = replace(modes, u=own.straight(modes.u), factor=nearest_root(torch.stack(axes, -1)))
    return replace(posterior, parameters=own), moved
