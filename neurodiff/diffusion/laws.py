r"""The family of laws on logsnr: where a model trains, where a process stops.

Each is λ = loc + scale·z, with z drawn from the standard law of its equation. Some are old friends:

====================  =====================================================================
Logistic(b, 1)        the sigmoid weighting; log-logistic time; Naka–Rushton with n = 2
Logistic(0, 2)        straight flow, t ~ U: λ = 2 log((1 − t)/t); Naka–Rushton with n = 1
HyperbolicSecant(0, 2)  the cosine schedule
Normal(2.4, 2.4)      EDM training noise
Exponential(λmin, 2)  the flow-matching weighting from λmin; Pareto(1/2) in time
GumbelMin(b, 1)       an exponential deadline, survival exp(−e^{λ−b}), seen on the log axis
====================  =====================================================================

``Exponential`` and ``Uniform`` have their lower end at ``loc``. ``Mixture`` and ``PiecewiseLinear``
come from :mod:`~neurodiff.diffusion.flexible`. Default priors: see
:class:`~neurodiff.diffusion.law.LocationScale`.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, threshold

from neurodiff.diffusion.flexible import Mixture as Mixture
from neurodiff.diffusion.flexible import PiecewiseLinear as PiecewiseLinear
from neurodiff.diffusion.law import Law as Law
from neurodiff.diffusion.law import LawDistribution as LawDistribution
from neurodiff.diffusion.law import LocationScale, Symmetric

_SATURATED, _EXP_MAX = 40.0, 80.0  # where atan e^z reaches π/2; what float32 can exponentiate


def _tail(p: Tensor) -> Tensor:
    return torch.where(p < 0.5, p, 1 - p)  # torch.minimum has slope 0 at the tie


class Logistic(Symmetric):
    r"""F(z) = 1/(1 + e^{−z}), p(z) = sech²(z/2)/4.

    >>> law = Logistic(loc=1.0, scale=2.0)
    >>> law().survival(torch.tensor([1.0, torch.inf])).tolist()
    [0.5, 0.0]
    """

    _variance = math.pi**2 / 3

    @staticmethod
    def _cdf(z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    @staticmethod
    def _log_survival(z: Tensor) -> Tensor:
        return logsigmoid(-z)

    @staticmethod
    def _log_prob(z: Tensor) -> Tensor:
        return logsigmoid(z) + logsigmoid(-z)

    @staticmethod
    def _icdf(p: Tensor) -> Tensor:
        return torch.logit(p)


class Normal(Symmetric):
    r"""F(z) = Φ(z), p(z) = e^{−z²/2}/√(2π).

    >>> round(Normal(2.4, 2.4)().cdf(torch.tensor(4.8)).item(), 6)
    0.841345
    """

    _variance = 1.0

    @staticmethod
    def _cdf(z: Tensor) -> Tensor:
        return 0.5 * torch.erfc(z * -math.sqrt(0.5))  # torch.special.ndtr cancels in the lower tail

    @staticmethod
    def _log_survival(z: Tensor) -> Tensor:
        x = z * math.sqrt(0.5)  # not log_ndtr: it has no batching rule
        tail = (0.5 * torch.special.erfcx(x.clamp(min=0.0))).log() - x * x
        return torch.where(x > 0, tail, torch.log1p(-0.5 * torch.erfc(-x.clamp(max=0.0))))

    @staticmethod
    def _log_prob(z: Tensor) -> Tensor:
        return -0.5 * z * z - 0.5 * math.log(2 * math.pi)

    @staticmethod
    def _icdf(p: Tensor) -> Tensor:
        return torch.special.ndtri(p)


class HyperbolicSecant(Symmetric):
    r"""F(z) = (2/π) atan e^z, p(z) = sech(z)/π."""

    _variance = math.pi**2 / 4

    @staticmethod
    def _cdf(z: Tensor) -> Tensor:
        return torch.atan(z.clamp(max=_SATURATED).exp()) * (2 / math.pi)

    @staticmethod
    def _log_survival(z: Tensor) -> Tensor:
        upper = (-z.clamp(0.0, _SATURATED)).exp()  # atan(u)/u → 1, so log S → log(2/π) − z
        lower = torch.atan(z.clamp(max=0.0).exp()) * (2 / math.pi)
        tail = math.log(2 / math.pi) - z + (torch.atan(upper) / upper).log()
        return torch.where(z > 0, tail, torch.log1p(-lower))

    @staticmethod
    def _log_prob(z: Tensor) -> Tensor:
        return math.log(2 / math.pi) - z + logsigmoid(2 * z)

    @staticmethod
    def _icdf(p: Tensor) -> Tensor:
        tail = torch.tan(0.5 * math.pi * _tail(p)).log()
        return torch.where(p < 0.5, tail, -tail)


class Laplace(Symmetric):
    r"""p(z) = e^{−|z|}/2."""

    _variance = 2.0

    @staticmethod
    def _cdf(z: Tensor) -> Tensor:
        tail = 0.5 * torch.where(z < 0, z, -z).exp()  # not -z.abs(): its slope at 0 is 0 in torch
        return torch.where(z < 0, tail, 1 - tail)

    @staticmethod
    def _log_survival(z: Tensor) -> Tensor:
        lower = torch.log1p(-0.5 * z.clamp(max=0.0).exp())
        return torch.where(z < 0, lower, -z - math.log(2))

    @staticmethod
    def _log_prob(z: Tensor) -> Tensor:
        return -z.abs() - math.log(2)

    @staticmethod
    def _icdf(p: Tensor) -> Tensor:
        tail = (2 * _tail(p)).log()
        return torch.where(p < 0.5, tail, -tail)


class Cauchy(Symmetric):
    r"""F(z) = 1/2 + atan(z)/π, p(z) = 1/(π(1 + z²)); it has no mean."""

    _mean = _variance = math.nan

    @staticmethod
    def _cdf(z: Tensor) -> Tensor:
        # 1e-14 is reached at 3e13 scales: only at logsnr = −inf, where the limit must be exact
        return threshold(torch.atan2(torch.ones_like(z), -z) / math.pi, 1e-14, 0.0)

    @staticmethod
    def _log_survival(z: Tensor) -> Tensor:
        return (torch.atan2(torch.ones_like(z), z) / math.pi).log()

    @staticmethod
    def _log_prob(z: Tensor) -> Tensor:
        return -torch.log1p(z * z) - math.log(math.pi)

    @staticmethod
    def _icdf(p: Tensor) -> Tensor:
        tail = 1 / torch.tan(math.pi * _tail(p))
        return torch.where(p < 0.5, -tail, tail)


class Exponential(LocationScale):
    r"""S(z) = e^{−z} for z ≥ 0: support λ ≥ loc, mean loc + scale.

    >>> Exponential(0.0, 2.0)().mean.item()
    2.0
    """

    _mean, _variance, _support = 1.0, 1.0, (0.0, torch.inf)

    @staticmethod
    def _cdf(z: Tensor) -> Tensor:
        return -torch.expm1(-z.clamp(min=0.0))

    @classmethod
    def _survival(cls, z: Tensor) -> Tensor:
        return (-z.clamp(min=0.0)).exp()

    @staticmethod
    def _log_survival(z: Tensor) -> Tensor:
        return -z.clamp(min=0.0)

    @staticmethod
    def _log_prob(z: Tensor) -> Tensor:
        return torch.where(z < 0, -torch.inf, -z)

    @staticmethod
    def _icdf(p: Tensor) -> Tensor:
        return -torch.log1p(-p)

    @classmethod
    def _isf(cls, p: Tensor) -> Tensor:
        return -p.log()


class GumbelMax(LocationScale):
    r"""F(z) = exp(−e^{−z}): the largest of many; mean loc + 0.5772·scale."""

    _mean, _variance = 0.5772156649015329, math.pi**2 / 6

    @staticmethod
    def _cdf(z: Tensor) -> Tensor:
        return (-(-z).clamp(max=_EXP_MAX).exp()).exp()

    @classmethod
    def _survival(cls, z: Tensor) -> Tensor:
        return -torch.expm1(-(-z).clamp(max=_EXP_MAX).exp())

    @staticmethod
    def _log_survival(z: Tensor) -> Tensor:
        upper = (-z.clamp(0.0, _SATURATED)).exp()  # (1 − e^{−u})/u → 1, so log S → −z
        tail = (-torch.expm1(-upper) / upper).log() - z
        lower = torch.log1p(-(-(-z).clamp(0.0, _EXP_MAX).exp()).exp())
        return torch.where(z > 0, tail, lower)

    @staticmethod
    def _log_prob(z: Tensor) -> Tensor:
        return -z - (-z).clamp(max=_EXP_MAX).exp()

    @staticmethod
    def _icdf(p: Tensor) -> Tensor:
        return -(-p.log()).log()

    @classmethod
    def _isf(cls, p: Tensor) -> Tensor:
        return -(-torch.log1p(-p)).log()


class GumbelMin(LocationScale):
    r"""S(z) = exp(−e^z): the log of an exponential deadline; mean loc − 0.5772·scale.

    >>> round(GumbelMin()().survival(torch.tensor(0.0)).item(), 6)
    0.367879
    """

    _mean, _variance = -GumbelMax._mean, GumbelMax._variance

    @staticmethod
    def _cdf(z: Tensor) -> Tensor:
        return -torch.expm1(-z.clamp(max=_EXP_MAX).exp())

    @classmethod
    def _survival(cls, z: Tensor) -> Tensor:
        return (-z.clamp(max=_EXP_MAX).exp()).exp()

    @staticmethod
    def _log_survival(z: Tensor) -> Tensor:
        return -z.clamp(max=_EXP_MAX).exp()

    @staticmethod
    def _log_prob(z: Tensor) -> Tensor:
        return z - z.clamp(max=_EXP_MAX).exp()

    @staticmethod
    def _icdf(p: Tensor) -> Tensor:
        return (-torch.log1p(-p)).log()

    @classmethod
    def _isf(cls, p: Tensor) -> Tensor:
        return (-p.log()).log()


class Uniform(LocationScale):
    r"""F(z) = z on [0, 1]: ``loc`` is the lower end, ``scale`` the width.

    >>> Uniform(-10.0, 20.0)().cdf(torch.tensor(5.0)).item()
    0.75
    """

    _mean, _variance, _support = 0.5, 1 / 12, (0.0, 1.0)

    @staticmethod
    def _cdf(z: Tensor) -> Tensor:
        return z.clamp(0.0, 1.0)

    @classmethod
    def _survival(cls, z: Tensor) -> Tensor:
        return (1 - z).clamp(0.0, 1.0)

    @staticmethod
    def _log_survival(z: Tensor) -> Tensor:
        return (1 - z).clamp(0.0, 1.0).log()

    @staticmethod
    def _log_prob(z: Tensor) -> Tensor:
        return torch.where((z < 0) | (z > 1), -torch.inf, 0.0 * z)

    @staticmethod
    def _icdf(p: Tensor) -> Tensor:
        return p

    @classmethod
    def _isf(cls, p: Tensor) -> Tensor:
        return 1 - p
