r"""A law of log seconds after which a delay comes, and coordinates that straighten its ridges.

.. math:: \text{rt} = T + \tau, \quad \log T \sim \text{law}, \qquad
    \mathrm{median} \approx \text{delay} + e^{\text{loc}}, \quad
    \mathrm{var} \approx \text{jitter}^2 + (\text{scale}\, e^{\text{loc}})^2

Times show the sums, and hardly what they are made of: the posterior bends about delay and loc, and
about jitter and scale (:mod:`neurodiff.inference.straight`).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, LogNormal, Normal
from torch.nn.functional import logsigmoid

from neurodiff.diffusion.law import Law, LocationScale


def places(law: Law) -> dict[str, Distribution]:
    """Parameter priors of a law on log seconds: half a second, with an s.d. of 0.3, or so.

    >>> from neurodiff.diffusion.laws import Logistic
    >>> sorted(places(Logistic()))
    ['law.loc', 'law.scale']
    """
    if not isinstance(law, LocationScale):
        return {}
    return {
        "law.loc": Normal(math.log(0.5), 1.0),
        "law.scale": LogNormal(math.log(0.3), 0.7),
    }


def masses(left: Float[Tensor, "*any edge"], parts: Sequence[int]) -> Float[Tensor, "*any edge"]:
    """What falls before each edge and after the one before it, in each part of the edges.

    Args:
        left: Survival at the edges.
        parts: Lengths of the parts; each begins with a survival of 1.

    >>> masses(torch.tensor([0.9, 0.5, 0.8]), (2, 1))
    tensor([0.1000, 0.4000, 0.2000])
    """
    each = (torch.cat([torch.ones_like(y[..., :1]), y], -1) for y in left.split(list(parts), -1))
    return torch.cat([-y.diff() for y in each], -1)


def summed(x: Tensor, y: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Log ratio and log sum, x - y and log(e^{px} + e^{py})/p: a map of determinant one.

    >>> ratio, total = summed(torch.tensor(0.0), torch.tensor(0.0), 1.0)
    >>> ratio, total.exp()
    (tensor(0.), tensor(2.))
    """
    return x - y, torch.logaddexp(power * x, power * y) / power


def parted(ratio: Tensor, total: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """The x and y of a ratio and a sum.

    >>> parted(torch.tensor(0.0), torch.tensor(2.0).log(), 1.0)
    (tensor(0.), tensor(0.))
    """
    return tuple(total + logsigmoid(s * power * ratio) / power for s in (1, -1))  # pyright: ignore


class OnClock:
    """A law of log seconds, after which a delay comes: of both the times show the sum."""

    law: Law
    ridges = "delay", "jitter", "law.loc", "law.scale"  # the posterior bends about these

    def centre(self, trials: dict[str, Tensor]) -> dict[str, Distribution]:
        """Default priors of the law, which is one of log seconds."""
        return places(self.law)

    def straight(self, u: dict[str, Tensor]) -> dict[str, Tensor]:
        r"""Sums that the times show, and ratios that they hardly do, by their logarithms.

        .. math:: \text{delay} + e^{\text{loc}}, \qquad
            \text{jitter}^2 + (\text{scale}\, e^{\text{loc}})^2

        about the median of the reaction times and their variance.

        Args:
            u: Logarithms of delay, jitter (above its least) and scale, and the loc.

        >>> from neurodiff.diffusion.laws import Logistic
        >>> from neurodiff.perception.drifts import Power
        >>> from neurodiff.perception.timed import TimeStop
        >>> model = TimeStop(Power(), Logistic(), horizon=2.0)
        >>> v = model.straight(dict.fromkeys(model.ridges, torch.tensor(0.0)))
        >>> v["law.loc"].exp(), model.bent(v)["law.loc"]
        (tensor(2.), tensor(0.))
        """
        delay, jitter, loc, scale = (u[name] for name in self.ridges)
        delay, loc = summed(delay, loc, 1.0)
        jitter, scale = summed(jitter, scale + u["law.loc"], 2.0)
        return dict(zip(self.ridges, (delay, jitter, loc, scale), strict=True))

    def bent(self, v: dict[str, Tensor]) -> dict[str, Tensor]:
        """What :meth:`straight` was given."""
        delay, jitter, loc, scale = (v[name] for name in self.ridges)
        delay, loc = parted(delay, loc, 1.0)
        jitter, scale = parted(jitter, scale, 2.0)
        return dict(zip(self.ridges, (delay, jitter, loc, scale - loc), strict=True))

    def stretch(self, u: dict[str, Tensor]) -> Tensor:
        """Log of the determinant of :meth:`straight`: 0."""
        return torch.zeros_like(u["delay"][..., 0])
