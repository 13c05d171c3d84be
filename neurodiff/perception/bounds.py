r"""Bounds ±b(t) on accumulated evidence, and how they come down as a decision drags on.

.. math::

    \text{constant:}\quad b = b_0 \qquad
    \text{exponential:}\quad b = b_0\, e^{-t/\tau} \qquad
    \text{linear:}\quad b = b_0\,(1 - t/\tau)_+

    \text{Weibull:}\quad b = b_0\,\big[f + (1 - f)\, e^{-(t/\tau)^k}\big] \qquad
    \text{spline:}\quad b = b_0\, \exp\Big(-\sum_j c_j\, \mathrm{I}_j(t)\Big), \quad c_j > 0

Each is called as ``bound(time)`` and returns b and its derivative: parameters of shape (condition,
1) give (condition, time). b_0 is the half-height at time 0, in units of the noise of one second.
I_j are smooth steps, so a spline may come down at any times, and never rises.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Beta, LogNormal, constraints


class Bound(nn.Module, ABC):
    """A half-height and its derivative, of time.

    Attributes:
        height: b_0.
    """

    height: nn.Parameter

    @abstractmethod
    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """B and b′ at times in seconds."""


_HEIGHT = LogNormal(0.0, 0.5)
_SOON = LogNormal(0.0, 1.0)  # seconds


class Constant(Bound):
    """A bound that stays: the Wiener or drift-diffusion model.

    >>> Constant(0.8)(torch.tensor([0.5, 1.0]))[0].detach()
    tensor([0.8000, 0.8000])
    """

    constraints: ClassVar = {"height": constraints.positive}
    priors: ClassVar = {"height": _HEIGHT}

    def __init__(self, height: float = 1.0) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(float(height)))

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """b_0, and 0."""
        flat = torch.zeros_like(time)
        return self.height + flat, 0.0 * self.height + flat


class Exponential(Bound):
    r"""Collapse at a constant rate: :math:`b_0\, e^{-t/\tau}`.

    >>> Exponential(1.0, tau=2.0)(torch.tensor([2.0]))[0].detach()
    tensor([0.3679])
    """

    constraints: ClassVar = {"height": constraints.positive, "tau": constraints.positive}
    priors: ClassVar = {"height": _HEIGHT, "tau": _SOON}

    def __init__(self, height: float = 1.2, tau: float = 1.5) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(float(height)))
        self.tau = nn.Parameter(torch.tensor(float(tau)))

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """B and -b/τ."""
        b = self.height * torch.exp(-time / self.tau)
        return b, -b / self.tau


class Linear(Bound):
    r"""Collapse along a line, to 0 at τ: the bound that HSSM calls ``angle``, θ = atan(b_0/τ).

    >>> Linear(1.0, tau=2.0)(torch.tensor([1.0, 3.0]))[0].detach()
    tensor([0.5000, 0.0000])
    """

    constraints: ClassVar = {"height": constraints.positive, "tau": constraints.positive}
    priors: ClassVar = {"height": _HEIGHT, "tau": LogNormal(1.0, 0.7)}

    def __init__(self, height: float = 1.2, tau: float = 3.0) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(float(height)))
        self.tau = nn.Parameter(torch.tensor(float(tau)))

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """B and its slope; both 0 from τ on."""
        left = 1 - time / self.tau
        slope = -self.height / self.tau + torch.zeros_like(time)
        return self.height * left.clamp_min(0.0), torch.where(left > 0, slope, 0.0)


class Weibull(Bound):
    r"""Collapse that may set in late: :math:`b_0\,[f + (1 - f)\,e^{-(t/\tau)^k}]`.

    ``shape`` k sets how suddenly, ``floor`` f what remains. Hawkins et al. 2015, J. Neurosci. 35.

    >>> b, slope = Weibull(1.0, tau=1.0, shape=3.0, floor=0.0)(torch.tensor([0.1, 1.0]))
    >>> b.detach(), slope.detach()
    (tensor([0.9990, 0.3679]), tensor([-0.0300, -1.1036]))
    """

    constraints: ClassVar = {
        "height": constraints.positive,
        "tau": constraints.positive,
        "shape": constraints.positive,
        "floor": constraints.unit_interval,
    }
    priors: ClassVar = {
        "height": _HEIGHT,
        "tau": _SOON,
        "shape": LogNormal(math.log(2.0), 0.5),
        "floor": Beta(1.0, 3.0),
    }

    def __init__(
        self, height: float = 1.2, tau: float = 0.8, shape: float = 2.0, floor: float = 0.1
    ) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(float(height)))
        self.tau = nn.Parameter(torch.tensor(float(tau)))
        self.shape = nn.Parameter(torch.tensor(float(shape)))
        self.floor = nn.Parameter(torch.tensor(float(floor)))

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """B and b′."""
        power = (time / self.tau) ** self.shape
        part = (1 - self.floor) * torch.exp(-power)
        return self.height * (self.floor + part), -self.height * part * self.shape * power / time


class Spline(Bound):
    r"""A bound that falls as it will: :math:`b_0 \exp(-\sum_j c_j\,\mathrm{sig}((t - t_j)/h))`.

    Smooth steps of log b at evenly spaced times, each of its own size c_j > 0, so that log b is a
    monotone function with as many degrees of freedom as steps.

    Args:
        horizon: Seconds over which the steps are spread.
        steps: How many.
        height: b_0.

    >>> Spline(2.0, steps=4)(torch.tensor([0.1, 1.9]))[0].detach().diff() < 0
    tensor([True])
    """

    at: Tensor
    constraints: ClassVar = {"height": constraints.positive, "fall": constraints.positive}
    priors: ClassVar = {"height": _HEIGHT, "fall": LogNormal(math.log(0.2), 1.0)}

    def __init__(self, horizon: float, steps: int = 5, height: float = 1.2) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(float(height)))
        self.fall = nn.Parameter(torch.full((steps,), 0.2))
        self.width = horizon / steps
        self.register_buffer("at", self.width * (torch.arange(steps) + 0.5))

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """B and b′."""
        step = torch.sigmoid((time[..., None] - self.at) / (0.4 * self.width))
        zero = torch.sigmoid(-self.at / (0.4 * self.width))
        b = self.height * torch.exp(-(self.fall * (step - zero)).sum(-1))
        rate = (self.fall * step * (1 - step)).sum(-1) / (0.4 * self.width)
        return b, -b * rate
