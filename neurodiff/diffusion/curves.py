r"""Laws given by a curve t ↦ logsnr: the noise schedules that are no member of the family.

.. math:: S(λ) = t(λ), \qquad p(λ) = -\frac{1}{dλ/dt}\Big|_{t(λ)}, \qquad t \in [0, 1],

with λ decreasing in t: t = 0 is data, t = 1 noise. They have no parameters to learn; what a recipe
lets one choose is fixed at construction.

References:
    Song et al. 2021 (VP and sub-VP SDE), Nichol & Dhariwal 2021 (iDDPM), Karras et al. 2022 (EDM),
    Hoogeboom et al. 2023 (shifted and interpolated cosine), Chen 2023 (sigmoid).
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from neurodiff.diffusion.law import Law, LawDistribution, bisect, finite


class Curve(Law):
    """A law with survival t(logsnr); subclasses give the curve, its inverse and its slope."""

    @abstractmethod
    def _logsnr(self, t: Tensor) -> Tensor:
        """The curve, decreasing."""

    @abstractmethod
    def _t(self, logsnr: Tensor) -> Tensor:
        """Its inverse; outside [0, 1] where the curve does not reach."""

    @abstractmethod
    def _slope(self, t: Tensor) -> Tensor:
        """d(logsnr)/dt < 0."""

    def forward(self) -> LawDistribution:
        """The law of logsnr for t ~ U(0, 1)."""
        return CurveDistribution(self)


class CurveDistribution(LawDistribution):
    """The distribution of a :class:`Curve`."""

    def __init__(self, curve: Curve) -> None:
        self.curve = curve
        super().__init__((), torch.tensor(0.0))

    def survival(self, logsnr: Tensor) -> Tensor:
        """P(Λ > λ) = t(λ)."""
        t = self.curve._t(finite(logsnr)).clamp(0.0, 1.0)
        return torch.where(logsnr == -torch.inf, 1.0, t)

    def log_survival(self, logsnr: Tensor) -> Tensor:
        """Log P(Λ > λ)."""
        return self.survival(logsnr).log()

    def cdf(self, value: Tensor) -> Tensor:
        """P(Λ ≤ λ)."""
        return 1 - self.survival(value)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in 1/nat; −inf where the curve does not reach."""
        t = self.curve._t(finite(value))
        density = -self.curve._slope(t.clamp(0.0, 1.0)).abs().log()
        return torch.where((t >= 0) & (t <= 1), density, -torch.inf)

    def icdf(self, value: Tensor) -> Tensor:
        """The curve at 1 − p."""
        return self.curve._logsnr(1 - value)

    def isf(self, value: Tensor) -> Tensor:
        """The curve."""
        return self.curve._logsnr(value)


class Truncated(Curve):
    """A law cut to [low, high] and renormalised."""

    def __init__(self, law: Law, low: float, high: float) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"logsnr must run from low to high, got low={low}, high={high}")
        self.law = law
        ends = law().survival(torch.tensor([high, low])).detach().tolist()
        self.start, self.mass = ends[0], ends[1] - ends[0]

    def _logsnr(self, t: Tensor) -> Tensor:
        return self.law().isf(self.start + t * self.mass)

    def _t(self, logsnr: Tensor) -> Tensor:
        return (self.law().survival(logsnr) - self.start) / self.mass

    def _slope(self, t: Tensor) -> Tensor:
        return -self.mass * (-self.law().log_prob(self._logsnr(t))).exp()


class InterpolatedCosine(Curve):
    """λ = −2 log tan(πt/2) + t·shift_low + (1 − t)·shift_high; the inverse is found by halving.

    Raises:
        ValueError: if shift_low − shift_high ≥ 2π, where λ would rise somewhere.
    """

    def __init__(self, shift_low: float, shift_high: float) -> None:
        super().__init__()
        if shift_low - shift_high >= 2 * math.pi:
            raise ValueError(
                f"shift_low - shift_high is {shift_low - shift_high:.3g}, so logsnr would rise "
                "with t somewhere; it must be below 2 pi"
            )
        self.shift_low, self.shift_high = shift_low, shift_high

    def _logsnr(self, t: Tensor) -> Tensor:
        shift = t * self.shift_low + (1 - t) * self.shift_high
        return -2 * torch.tan(0.5 * math.pi * t).log() + shift

    def _t(self, logsnr: Tensor) -> Tensor:
        def shifted(cosine: Tensor) -> Tensor:
            return self._logsnr(self._cosine_t(cosine))

        shifts = sorted((self.shift_low, self.shift_high))
        root = bisect(shifted, logsnr, logsnr - shifts[1], logsnr - shifts[0])
        t = self._cosine_t(root)
        return t + (logsnr - self._logsnr(t)) / self._slope(t)  # for the gradient

    @staticmethod
    def _cosine_t(logsnr: Tensor) -> Tensor:
        t = 2 / math.pi * torch.atan((-0.5 * logsnr).clamp(max=80.0).exp())
        return t.clamp(min=torch.finfo(t.dtype).tiny)

    def _slope(self, t: Tensor) -> Tensor:
        return -2 * math.pi / torch.sin(math.pi * t) + (self.shift_low - self.shift_high)


class LinearBeta(Curve):
    """A curve of B(t) = β₀t + (β₁ − β₀)t²/2, the integral of a rate that grows linearly."""

    def __init__(self, beta_min: float, beta_max: float) -> None:
        super().__init__()
        self.beta_min, self.beta_max = beta_min, beta_max

    def _rate(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _invert(self, integral: Tensor) -> Tensor:
        square = self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral
        return 2 * integral / (self.beta_min + square.sqrt())


class VpLinear(LinearBeta):
    """λ = −log(e^B − 1): the VP SDE, alpha² = e^{−B}."""

    def _logsnr(self, t: Tensor) -> Tensor:
        return -torch.expm1(self._integral(t)).log()

    def _t(self, logsnr: Tensor) -> Tensor:
        return self._invert(-logsigmoid(logsnr))

    def _slope(self, t: Tensor) -> Tensor:
        return self._rate(t) / torch.expm1(-self._integral(t))


class SubVp(LinearBeta):
    """λ = −B − 2 log(1 − e^{−B}): the sub-VP SDE, alpha = e^{−B/2}, sigma = 1 − e^{−B}."""

    def _logsnr(self, t: Tensor) -> Tensor:
        integral = self._integral(t)
        return -integral - 2 * (-torch.expm1(-integral)).log()

    def _t(self, logsnr: Tensor) -> Tensor:
        return self._invert(sub_vp_integral(logsnr))

    def _slope(self, t: Tensor) -> Tensor:
        return -self._rate(t) / torch.tanh(0.5 * self._integral(t))


def sub_vp_integral(logsnr: Tensor) -> Tensor:
    """B at a logsnr of the sub-VP SDE: e^{−λ} = 2 cosh B − 2 = 4 sinh²(B/2)."""
    return 2 * torch.asinh(0.5 * (-0.5 * logsnr).clamp(max=80.0).exp())


class Iddpm(Curve):
    """alpha² = cos²θ/cos²θ₀, θ = (t + s)/(1 + s)·π/2: the cosine schedule with an offset."""

    def __init__(self, s: float) -> None:
        super().__init__()
        self.s, self.theta = s, 0.5 * math.pi * s / (1 + s)

    def _angles(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """θ and, without cancellation, cos²θ₀ − cos²θ = sin(θ − θ₀) sin(θ + θ₀)."""
        moved = 0.5 * math.pi / (1 + self.s) * t
        return moved + self.theta, torch.sin(moved) * torch.sin(moved + 2 * self.theta)

    def _logsnr(self, t: Tensor) -> Tensor:
        angle, noise = self._angles(t)
        return 2 * torch.cos(angle).log() - noise.log()

    def _t(self, logsnr: Tensor) -> Tensor:
        # with sin²θ − sin²θ₀ = sigma² cos²θ₀, sin(θ − θ₀) has no cancellation either
        first_sine, first = math.sin(self.theta), math.cos(self.theta)
        noise, cosine = torch.sigmoid(-logsnr) * first**2, torch.sigmoid(logsnr).sqrt() * first
        sine = (first_sine**2 + noise).sqrt()
        # cos(θ − θ₀) beside it: near ½π the sine alone says little of the angle
        moved = torch.atan2(
            noise / (sine * first + cosine * first_sine), cosine * first + sine * first_sine
        )
        return 2 * (1 + self.s) / math.pi * moved

    def _slope(self, t: Tensor) -> Tensor:
        angle, noise = self._angles(t)
        return -math.pi / (1 + self.s) * torch.tan(angle) * math.cos(self.theta) ** 2 / noise


class EdmSample(Curve):
    """λ = −2ρ log(b + t(a − b)), a, b = sigma_max, sigma_min to the power 1/ρ."""

    def __init__(self, rho: float, sigma_min: float, sigma_max: float) -> None:
        super().__init__()
        self.rho, self.low = rho, sigma_min ** (1 / rho)
        self.width = sigma_max ** (1 / rho) - self.low

    def _logsnr(self, t: Tensor) -> Tensor:
        return -2 * self.rho * (self.low + t * self.width).log()

    def _t(self, logsnr: Tensor) -> Tensor:
        return ((-0.5 / self.rho * logsnr).clamp(max=80.0).exp() - self.low) / self.width

    def _slope(self, t: Tensor) -> Tensor:
        return -2 * self.rho * self.width / (self.low + t * self.width)


class SigmoidCurve(Curve):
    """alpha² = (S(end/τ) − S(y))/(S(end/τ) − S(start/τ)), y = (start + t(end − start))/τ."""

    def __init__(self, start: float, end: float, tau: float) -> None:
        super().__init__()
        if not (start < end and tau > 0):
            raise ValueError(f"wanted start < end and tau > 0, got {start=}, {end=}, {tau=}")
        # S(a) − S(b) = sinh((a − b)/2)/(2 cosh(a/2) cosh(b/2)): no cancellation at either end
        first, last = start / tau, end / tau
        self.width = 0.5 * (last - first)
        self.offset = math.log(math.cosh(0.5 * first) / math.cosh(0.5 * last))

    def _logsnr(self, t: Tensor) -> Tensor:
        ratio = torch.sinh(self.width * (1 - t)) / torch.sinh(self.width * t)
        return ratio.log() + self.offset

    def _t(self, logsnr: Tensor) -> Tensor:
        # sinh(width(1 − t))/sinh(width·t) = e^u, solved from the nearer end
        u = logsnr - self.offset
        low = torch.where(u > 0, -u, u).exp()
        tanh = math.sinh(self.width) * low / (1 + math.cosh(self.width) * low)
        near = torch.atanh(tanh) / self.width
        return torch.where(u > 0, near, 1 - near)

    def _slope(self, t: Tensor) -> Tensor:
        ends = 1 / torch.tanh(self.width * (1 - t)) + 1 / torch.tanh(self.width * t)
        return -self.width * ends
