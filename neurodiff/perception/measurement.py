r"""Where the measurement of a stimulus ends: a mixture over logsnr for each level of its strength.

.. math:: x = s + N(0, \sigma^2), \qquad \lambda = -2 \log \sigma

    \text{power:}\quad \lambda_s = \text{shift} + \text{power} \cdot \text{strength}
    \qquad \text{floor:}\quad e^{-\lambda} = e^{-\lambda_s} + e^{-\text{floor}}

    \text{stopping:}\quad \lambda = \min(\Lambda, \lambda_s), \quad
    E\,g(\lambda) = S(\lambda_s)\,g(\lambda_s) + \int_0^{F(\lambda_s)} g(F^{-1}(u))\,du

s and σ are in the units of the stimulus (degrees), so that λ has one meaning in every task with
that stimulus. The strength is the logarithm of what sets the noise, twice over (2 log contrast).
What a response does with a measurement, g, is in :mod:`~neurodiff.perception.orientation`.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, LogNormal, Normal, constraints

from neurodiff.diffusion.law import Law

_NODES = 12  # of the quadrature over a stopping law
_LEAST = -40.0  # nats: below, a stimulus is not seen at all, and squares of σ stay finite


class Measurement(nn.Module):
    r"""What all measurements share: noise that grows away from the cardinal orientations.

    Args:
        oblique: Whether ψ of :math:`\sigma + \psi |\sin 2s|` is learned; else there is none.
    """

    constraints: ClassVar = {
        "shift": constraints.real,
        "power": constraints.positive,
        "floor": constraints.real,
        "logsnr": constraints.real_vector,
        "oblique": constraints.positive,
        "tau": constraints.positive,
    }
    priors: ClassVar[dict[str, Distribution]] = {
        "shift": Normal(-3.0, 2.0),
        "power": LogNormal(-0.5, 0.7),
        "floor": Normal(-2.0, 3.0),
        "oblique": LogNormal(0.0, 1.0),
        "tau": LogNormal(-1.0, 1.0),
    }

    def __init__(self, oblique: bool = False) -> None:
        super().__init__()
        self.oblique = nn.Parameter(torch.tensor(1.0)) if oblique else None


class Free(Measurement):
    """A logsnr of its own for each level: Normal(-3, 2).

    Args:
        levels: Their number.
        oblique: See :class:`Measurement`.
    """

    def __init__(self, levels: int, oblique: bool = False) -> None:
        super().__init__(oblique)
        self.logsnr = nn.Parameter(torch.linspace(-5.0, -1.5, levels))
        prior = Normal(torch.full((levels,), -3.0), torch.full((levels,), 2.0))
        self.priors = {**Measurement.priors, "logsnr": prior}  # pyright: ignore

    def forward(self) -> tuple[Tensor, Tensor]:
        """One node a level, of mass 1."""
        return self.logsnr[:, None], torch.ones_like(self.logsnr)[:, None]


class Power(Measurement):
    r"""A power law of strength, and with ``floor`` internal noise of a constant variance.

    .. math:: e^{-\lambda} = e^{-(\text{shift} + \text{power} \cdot \text{strength})}
        + e^{-\text{floor}}

    Args:
        strength: Of each level, nats (2 log contrast).
        floor: Whether the internal noise is there.
        oblique: See :class:`Measurement`.

    >>> logsnr, mass = Power([0.0, 2.0], floor=True)()
    >>> logsnr.detach().numpy().round(2)[:, 0]
    array([-3.13, -2.17])
    """

    strength: Tensor

    def __init__(
        self,
        strength: Sequence[float] | np.ndarray,
        floor: bool = False,
        oblique: bool = False,
    ) -> None:
        super().__init__(oblique)
        self.register_buffer("strength", torch.as_tensor(strength, dtype=torch.float64))
        self.shift = nn.Parameter(torch.tensor(-3.0))
        self.power = nn.Parameter(torch.tensor(0.6))
        self.floor = nn.Parameter(torch.tensor(-1.0)) if floor else None

    def reached(self) -> Float[Tensor, " level"]:
        """λ of the stimulus at each level."""
        own = self.shift + self.power * self.strength
        return own if self.floor is None else -torch.logaddexp(-own, -self.floor)

    def forward(self) -> tuple[Tensor, Tensor]:
        """One node a level, of mass 1."""
        logsnr = self.reached()[:, None]
        return logsnr, torch.ones_like(logsnr)


class Variable(Power):
    r"""A power law with a floor whose logsnr varies from trial to trial, unlimited by the stimulus.

    .. math:: \lambda = \lambda_{\text{power + floor}} + \tau z, \qquad z \sim N(0, 1)

    The rival of a stopping law where reports follow the noise of the moment: precision that varies,
    for whatever reason. Prior: τ LogNormal(-1, 1), nats.

    Args:
        strength: Of each level, nats.
        nodes: Of Gauss and Hermite.

    >>> logsnr, mass = Variable([0.0, 2.0])()
    >>> (logsnr * mass).sum(-1).detach().numpy().round(2)
    array([-3.13, -2.17])
    """

    z: Tensor
    mass: Tensor

    def __init__(self, strength: Sequence[float] | np.ndarray, nodes: int = 9) -> None:
        super().__init__(strength, floor=True)
        self.tau = nn.Parameter(torch.tensor(0.4))
        z, weight = np.polynomial.hermite_e.hermegauss(nodes)
        self.register_buffer("z", torch.as_tensor(z))
        self.register_buffer("mass", torch.as_tensor(weight / weight.sum()))

    def forward(self) -> tuple[Tensor, Tensor]:
        """The same nodes about each level's logsnr."""
        logsnr = self.reached()[:, None] + self.tau * self.z
        return logsnr.clamp(min=_LEAST), self.mass.expand_as(logsnr)


class Stopped(Power):
    r"""A measurement that ends where denoising stops, or where the stimulus does if that is before.

    .. math:: \lambda = \min(\Lambda, \lambda_s), \qquad w(\lambda) = P(\Lambda > \lambda)

    An observer who answers from the SNR at which they stop (kind c, capped by the stimulus) and one
    whose evidence is w-limited (kind a′) make the same choices: by parts both are
    :math:`g(-\infty) + \int_{-\infty}^{\lambda_s} w\, g'\, d\lambda`.

    Args:
        strength: Of each level, nats.
        law: Of Λ; its priors are those of its module but for ``loc``, Normal(-2, 3).
        oblique: See :class:`Measurement`.
        nodes: Of the quadrature; with 12 a probability is right to 2e-5 for logistic laws of up to
            one nat, 1e-4 of two, and 3e-4 of three.

    >>> from neurodiff.diffusion.laws import Logistic
    >>> logsnr, mass = Stopped([0.0, 2.0], Logistic(-2.0, 1.0))()
    >>> logsnr.shape, mass.sum(-1).detach().numpy().round(6)
    (torch.Size([2, 13]), array([1., 1.]))
    """

    u: Tensor
    du: Tensor

    def __init__(
        self,
        strength: Sequence[float] | np.ndarray,
        law: Law,
        oblique: bool = False,
        nodes: int = _NODES,
    ) -> None:
        super().__init__(strength, oblique=oblique)
        self.law = law
        if hasattr(law, "loc"):
            law.priors = {**law.priors, "loc": Normal(-2.0, 3.0)}  # pyright: ignore
        # u = U t²(3 − 2t): at both ends of a law the noise is a power of u, which this smooths
        t, weight = np.polynomial.legendre.leggauss(nodes)
        t, weight = 0.5 * (t + 1), 0.5 * weight
        self.register_buffer("u", torch.as_tensor(t * t * (3 - 2 * t)))
        self.register_buffer("du", torch.as_tensor(6 * t * (1 - t) * weight))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Nodes below the logsnr of each level's stimulus, and an atom there."""
        law, most = self.law(), self.reached()[:, None]
        below = law.cdf(most)
        # where nobody has stopped yet a quantile would be −∞
        stop = torch.minimum(law.icdf((below * self.u).clamp(1e-30)), most)
        logsnr = torch.cat([stop.clamp(min=_LEAST), most], -1)
        return logsnr, torch.cat([below * self.du, law.survival(most)], -1)
