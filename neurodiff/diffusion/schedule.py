r"""Noise schedules: t ↦ logsnr, decreasing from data (t = 0) to noise (t = 1).

A schedule is a law read by its survival function,

.. math:: λ(t) = S^{-1}(t), \qquad t(λ) = S(λ), \qquad p(λ) = -1/(dλ/dt) \text{ for } t \sim U(0,1),

together with a path, the choice of the scales (alpha, sigma) at a given logsnr. Many recipes are
the family itself: cosine is HyperbolicSecant(0, 2), the straight flow Logistic(0, 2), EDM training
Normal(2.4, 2.4), VE Uniform; DDPM is PiecewiseLinear through its 1000 levels. The rest are the
curves of :mod:`~neurodiff.diffusion.curves`. Time exists only here: all else speaks logsnr.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from neurodiff.diffusion import curves, laws
from neurodiff.diffusion.law import Law
from neurodiff.diffusion.logsnr import alpha_sigma, exploding, straight
from neurodiff.diffusion.named import check_name

Path = Callable[[Tensor], tuple[Tensor, Tensor]]


class NoiseSchedule(nn.Module):
    """The schedule whose logsnr has this law when t ~ U(0, 1). A law that learns is a learned one.

    Args:
        law: of logsnr.
        path: logsnr ↦ (alpha, sigma); variance preserving if not given.

    >>> schedule = NoiseSchedule(laws.Logistic(0.0, 2.0))
    >>> schedule.logsnr(torch.tensor([0.0, 0.5])).tolist()
    [inf, 0.0]
    """

    def __init__(self, law: Law, path: Path = alpha_sigma) -> None:
        super().__init__()
        self.law, self._path = law, path

    def logsnr(self, t: Tensor) -> Tensor:
        """λ(t), nats; may be ±inf at t = 0 and 1."""
        return self.law().isf(t)

    def t(self, logsnr: Tensor) -> Tensor:
        """The t in [0, 1] of a logsnr; 0 and 1 beyond the range of the schedule."""
        return self.law().survival(logsnr)

    def log_density(self, logsnr: Tensor) -> Tensor:
        """Log p(λ), 1/nat, for t ~ U(0, 1); −inf beyond the range of the schedule."""
        return self.law().log_prob(logsnr)

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """dλ/dt = −1/p(λ(t)) < 0, nats."""
        return -(-self.log_density(self.logsnr(t))).exp()

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The scales of signal and noise on the schedule's own path."""
        return self._path(self.logsnr(t))


def sub_vp_path(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha = e^{−B/2}, sigma = 1 − e^{−B}: less than unit variance in between."""
    integral = curves.sub_vp_integral(logsnr)
    return (-0.5 * integral).exp(), -torch.expm1(-integral)


def cosine() -> NoiseSchedule:
    """−2 log tan(πt/2): the law HyperbolicSecant(0, 2)."""
    return NoiseSchedule(laws.HyperbolicSecant(0.0, 2.0))


def cosine_shifted(shift: float = 2 * math.log(0.5)) -> NoiseSchedule:
    """Cosine + shift, with shift = 2 log(64/d) for images of width d; here d = 128."""
    return NoiseSchedule(laws.HyperbolicSecant(shift, 2.0))


def truncated_cosine(logsnr_min: float = -15.0, logsnr_max: float = 15.0) -> NoiseSchedule:
    """Cosine cut to [logsnr_min, logsnr_max]: −2 log tan(t₀ + t(t₁ − t₀))."""
    return NoiseSchedule(curves.Truncated(laws.HyperbolicSecant(0.0, 2.0), logsnr_min, logsnr_max))


def interpolated_cosine(
    shift_low: float = 2 * math.log(2.0), shift_high: float = 2 * math.log(0.25)
) -> NoiseSchedule:
    """Cosine + t·shift_low + (1 − t)·shift_high; here from noise of width 32 to 256."""
    return NoiseSchedule(curves.InterpolatedCosine(shift_low, shift_high))


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> NoiseSchedule:
    """−log(e^B − 1), B = beta_min t + (beta_max − beta_min)t²/2: the VP SDE."""
    return NoiseSchedule(curves.VpLinear(beta_min, beta_max))


def ddpm() -> NoiseSchedule:
    """DDPM's 1000 levels, beta from 1e-4 to 0.02; t = 0 is level 1, t = 1 level 1000.

    Between levels logsnr is linear in t, so its law is PiecewiseLinear through the levels.
    """
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    log_alpha2 = torch.log1p(-beta).cumsum(0)
    levels = log_alpha2 - (-torch.expm1(log_alpha2)).log()
    return NoiseSchedule(laws.PiecewiseLinear(levels.flip(0), torch.zeros(999)))


def iddpm(s: float = 0.008) -> NoiseSchedule:
    """alpha² = cos²θ/cos²θ₀, θ = (t + s)/(1 + s)·π/2."""
    return NoiseSchedule(curves.Iddpm(s))


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> NoiseSchedule:
    """The sub-VP SDE: alpha = e^{−B/2}, sigma = 1 − e^{−B}."""
    return NoiseSchedule(curves.SubVp(beta_min, beta_max), sub_vp_path)


def flow() -> NoiseSchedule:
    """2 log((1 − t)/t), alpha = 1 − t, sigma = t: the law Logistic(0, 2)."""
    return NoiseSchedule(laws.Logistic(0.0, 2.0), straight)


def flow_shifted(ratio: float = 3.0) -> NoiseSchedule:
    """Flow at t' = ratio·t/(1 + (ratio − 1)t): logsnr − 2 log ratio (SD3's resolution shift)."""
    return NoiseSchedule(laws.Logistic(-2 * math.log(ratio), 2.0), straight)


def sd3(m: float = 0.0, s: float = 1.0) -> NoiseSchedule:
    """Logit of the flow's time ~ N(m, s²): the law Normal(−2m, 2s) on the straight path."""
    return NoiseSchedule(laws.Normal(-2 * m, 2 * s), straight)


def edm_train() -> NoiseSchedule:
    """Log sigma ~ N(−1.2, 1.2²), alpha = 1: the law Normal(2.4, 2.4)."""
    return NoiseSchedule(laws.Normal(2.4, 2.4), exploding)


def edm_sample(
    rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> NoiseSchedule:
    """Sigma^{1/rho} linear in t, alpha = 1."""
    return NoiseSchedule(curves.EdmSample(rho, sigma_min, sigma_max), exploding)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> NoiseSchedule:
    """Sigma geometric in t, alpha = 1: the law Uniform."""
    width = 2 * math.log(sigma_max / sigma_min)
    return NoiseSchedule(laws.Uniform(-2 * math.log(sigma_max), width), exploding)


def sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> NoiseSchedule:
    """alpha² = (S(b) − S(a + t(b − a)))/(S(b) − S(a)), a = start/tau, b = end/tau."""
    return NoiseSchedule(curves.SigmoidCurve(start, end, tau))


def laplace(loc: float = 0.0, scale: float = 0.5) -> NoiseSchedule:
    """Loc − scale·sgn(½ − t) log(1 − 2|t − ½|): the law Laplace."""
    return NoiseSchedule(laws.Laplace(loc, scale))


def cauchy(loc: float = 0.0, scale: float = 1.0) -> NoiseSchedule:
    """Loc + scale·tan(π(½ − t)): the law Cauchy."""
    return NoiseSchedule(laws.Cauchy(loc, scale))


SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
    "cosine": cosine,
    "cosine-shifted": cosine_shifted,
    "truncated-cosine": truncated_cosine,
    "interpolated-cosine": interpolated_cosine,
    "vp-linear": vp_linear,
    "ddpm": ddpm,
    "iddpm": iddpm,
    "sub-vp": sub_vp,
    "flow": flow,
    "flow-shifted": flow_shifted,
    "sd3": sd3,
    "edm-train": edm_train,
    "edm-sample": edm_sample,
    "ve": ve,
    "sigmoid": sigmoid,
    "laplace": laplace,
    "cauchy": cauchy,
}


def schedule(name: str, **constants: float) -> NoiseSchedule:
    """A published schedule by name; its constants are fixed (not learned).

    Raises:
        ValueError: for an unknown name; lists the known ones and the nearest.
        TypeError: for a constant that it does not read; lists those it does.

    >>> schedule("cosine").t(torch.tensor([0.0, torch.inf])).tolist()
    [0.5, 0.0]
    """
    check_name("schedule", SCHEDULES, name, constants)
    return SCHEDULES[name](**constants).requires_grad_(False)
