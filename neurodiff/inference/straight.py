r"""Coordinates in which a ridge of the posterior is straight, for draws that follow straight lines.

.. math:: v = v(u), \qquad p(v \mid \text{data}) = p(u(v) \mid \text{data})\,
    \Big|\frac{\partial v}{\partial u}\Big|^{-1}, \qquad
    L_v = \frac{\partial v}{\partial u}\, L_u \ \text{at the mode}

Where data fix the sum of two positive parameters and say little of their ratio, their logarithms
lie on a curve that a normal about the mode leaves after one standard deviation; draws about it then
miss what lies further along, and their weights cannot say so. A model that knows of such sums names
the parameters (``ridges``), gives the sums by ``straight(u)``, takes them back by ``bent(v)``, and
says by ``stretch(u)`` what the log of the determinant is: unconstrained parameters by dotted name.
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
    >>> from neurodiff.perception.on_clock import places
    >>> from neurodiff.perception.timed import TimeStop
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

    def stretch(self, u: Float[Tensor, "*draw size"]) -> Float[Tensor, "*draw"]:
        """Log of the determinant of v(u)."""
        return self.model.stretch(self._named(u))  # pyright: ignore

    def _each(self, move: Callable[[dict[str, Tensor]], dict[str, Tensor]], u: Tensor) -> Tensor:
        """A map of some parameters, the others as they are."""
        parts = self._named(u)
        return torch.cat(list((parts | move(parts)).values()), -1)

    def _named(self, u: Tensor) -> dict[str, Tensor]:
        names = [site.name for site in self.sites]
        return dict(zip(names, u.split(self.sizes, -1), strict=True))

    def constrain(self, u: Float[Tensor, "*draw size"]) -> dict[str, Tensor]:
        """The parameters of flat vectors v, by dotted name."""
        return super().constrain(self.bent(u))

    def log_prior(
        self, u: Float[Tensor, " size"], *coefficients: tuple[Tensor, ...]
    ) -> Float[Tensor, ""]:
        """Log p(v)."""
        bent = self.bent(u)
        return self.inner.log_prior(bent, *coefficients) - self.stretch(bent)

    def start(self) -> Float[Tensor, " size"]:
        """The v of the values that the modules hold."""
        return self.straight(self.inner.start())

    def draw_prior(self, count: int) -> Float[Tensor, "{count} size"]:
        """Draws from the priors, by v."""
        return self.straight(self.inner.draw_prior(count))


def straightened(posterior: Posterior, modes: Modes) -> tuple[Posterior, Modes]:
    """A posterior and its modes by v, where all that the ridges of its model are about is free.

    Otherwise they are as given. Where the determinant is not one the mode by v is a little beside.
    """
    inner, ridges = posterior.parameters, getattr(posterior.model, "ridges", ())
    if not ridges or isinstance(inner, Straight | Grouped):
        return posterior, modes
    if not {site.name for site in inner.sites}.issuperset(ridges):
        return posterior, modes
    own = Straight(inner, posterior.model)
    axes = [
        torch.func.jvp(own.straight, (modes.u,), (axis,))[1] for axis in modes.factor.unbind(-1)
    ]
    moved = replace(
        modes,
        u=own.straight(modes.u),
        factor=nearest_root(torch.stack(axes, -1)),
        log_prob=modes.log_prob - own.stretch(modes.u),
    )
    return replace(posterior, parameters=own), moved
