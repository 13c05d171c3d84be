r"""Drifts: how the strength of a stimulus moves the evidence.

.. math::

    \text{power:}\quad v = k\,\mathrm{sgn}(c)\,|c|^n + v_0 \qquad
    \text{leak:}\quad dX = (k c - \ell X)\,dt + dB

    \text{urgency:}\quad v(t) = k c\,(1 + t/\tau)

c is the signed strength of the stimulus; n = 1 makes the drift linear. A constant drift may differ
from trial to trial, normal with s.d. η. It is a tilt of the driftless process, so that all
strengths share one solve (:func:`~neurodiff.perception.first_passage.tilt`); the others are solved
for each strength. A leak below 0 is instability: to first order the difference of two leaky
competing accumulators, with ℓ their leak less their inhibition (Bogacz et al. 2006).

A drift is called as ``drift(stimulus, time)``, the variables that it ``requires`` of shape
(condition, 1).
"""

import math
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import LogNormal, Normal, constraints

from neurodiff.perception.volterra import Path, decayed

_GAIN = LogNormal(math.log(10.0), 1.0)  # per second at strength 1


class Steady(NamedTuple):
    """A drift that does not change within a trial: its mean, and its s.d. over trials or None."""

    slope: Tensor
    spread: Tensor | None


def position(
    moved: Steady | Path, time: Float[Tensor, " time"], start: Float[Tensor, "*#condition node"]
) -> tuple[Float[Tensor, "*condition node time"], Float[Tensor, "*spread time"]]:
    r"""Mean and variance of :math:`X_t` where no bound is in the way.

    Args:
        moved: The drift at these times.
        time: Seconds.
        start: :math:`X_0`.

    >>> moved = Power(10.0)({"strength": torch.tensor([[0.1]])}, torch.ones(1))
    >>> mean, variance = position(moved, torch.tensor([0.5]), torch.zeros(1))
    >>> mean.detach(), variance
    (tensor([[[0.5000]]]), tensor([0.5000]))
    """
    x = start[..., None]
    if isinstance(moved, Path):
        leak = None if moved.leak is None else moved.leak[..., None, None]
        left, variance = decayed(time, leak)
        return x * left + moved.mean[..., None, :], variance
    mean = x + moved.slope[..., None, None] * time
    if moved.spread is None:
        return mean, time
    return mean, time + (moved.spread[..., None, None] * time).square()


class Power(nn.Module):
    r"""A constant drift, :math:`k\,\mathrm{sgn}(c)\,|c|^n + v_0`.

    Args:
        gain: k, per second at strength 1: LogNormal(log 10, 1).
        exponent: n: LogNormal(0, 0.5); None for a linear drift.
        bias: v_0, per second: Normal(0, 1); None for none.
        spread: η, s.d. over trials, per second: LogNormal(log 0.5, 0.7); None for none.

    >>> Power(10.0)({"strength": torch.tensor([[-0.5], [0.1]])}, torch.ones(3)).slope.detach()
    tensor([-5.,  1.])
    """

    exponent: nn.Parameter | None
    bias: nn.Parameter | None
    spread: nn.Parameter | None
    requires = ("strength",)
    constraints: ClassVar = {
        "gain": constraints.positive,
        "exponent": constraints.positive,
        "bias": constraints.real,
        "spread": constraints.positive,
    }
    priors: ClassVar = {
        "gain": _GAIN,
        "exponent": LogNormal(0.0, 0.5),
        "bias": Normal(0.0, 1.0),
        "spread": LogNormal(math.log(0.5), 0.7),
    }

    def __init__(
        self,
        gain: float = 10.0,
        exponent: float | None = None,
        bias: float | None = None,
        spread: float | None = None,
    ) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(float(gain)))
        for name, value in {"exponent": exponent, "bias": bias, "spread": spread}.items():
            own = None if value is None else nn.Parameter(torch.tensor(float(value)))
            self.register_parameter(name, own)

    def forward(self, stimulus: dict[str, Tensor], time: Tensor) -> Steady:
        """V and η of each condition."""
        strength = stimulus["strength"]
        if self.exponent is not None:
            size = torch.where(strength == 0, 1.0, strength.abs())  # 0 to a power has no gradient
            strength = strength.sign() * size**self.exponent
        slope = self.gain * strength
        if self.bias is not None:
            slope = slope + self.bias
        spread = None if self.spread is None else (self.spread + 0.0 * slope)[..., 0]
        return Steady(slope[..., 0], spread)


class Leak(nn.Module):
    r"""A drift that forgets: :math:`dX = (k c - \ell X)\,dt + dB`, an Ornstein-Uhlenbeck process.

    Args:
        gain: k, per second at strength 1.
        leak: ℓ per second: Normal(0, 3); below 0 the path runs away from where it is.

    >>> path = Leak(10.0, leak=2.0)({"strength": torch.tensor([[0.1]])}, torch.tensor([50.0]))
    >>> path.mean.detach()  # gain · strength / leak, in the end
    tensor([[0.5000]])
    """

    requires = ("strength",)
    odd = True  # the path of -c is the mirror of that of c
    constraints: ClassVar = {"gain": constraints.positive, "leak": constraints.real}
    priors: ClassVar = {"gain": _GAIN, "leak": Normal(0.0, 3.0)}

    def __init__(self, gain: float = 10.0, leak: float = 0.5) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(float(gain)))
        self.leak = nn.Parameter(torch.tensor(float(leak)))

    def forward(self, stimulus: dict[str, Tensor], time: Tensor) -> Path:
        """The mean path k c (1 - e^{-ℓt})/ℓ of each condition."""
        slope = self.gain * stimulus["strength"]
        x = self.leak * time
        safe = torch.where(x.abs() < 1e-6, 1.0, x)
        so_far = time * torch.where(x.abs() < 1e-6, 1 - 0.5 * x, -torch.expm1(-safe) / safe)
        slope, leak = slope + 0.0 * time, self.leak + 0.0 * slope
        return Path(slope * so_far, slope, leak[..., 0])


class Urgency(nn.Module):
    r"""A drift that grows: :math:`v(t) = k c\,(1 + t/\tau)`, evidence gaining weight with time.

    Args:
        gain: k at time 0, per second at strength 1.
        tau: Seconds in which the drift doubles: LogNormal(0, 1).

    >>> Urgency(10.0, tau=1.0)({"strength": torch.tensor([[0.1]])}, torch.ones(1)).slope.detach()
    tensor([[2.]])
    """

    requires = ("strength",)
    odd = True  # the path of -c is the mirror of that of c
    constraints: ClassVar = {"gain": constraints.positive, "tau": constraints.positive}
    priors: ClassVar = {"gain": _GAIN, "tau": LogNormal(0.0, 1.0)}

    def __init__(self, gain: float = 10.0, tau: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(float(gain)))
        self.tau = nn.Parameter(torch.tensor(float(tau)))

    def forward(self, stimulus: dict[str, Tensor], time: Tensor) -> Path:
        """The mean path k c (t + t²/2τ) of each condition."""
        slope = self.gain * stimulus["strength"]
        grown = time / self.tau
        return Path(slope * time * (1 + 0.5 * grown), slope * (1 + grown))
