r"""What a law is: a module whose ``forward()`` is a distribution of Λ on logsnr.

The parameters live in the module, the behaviour in the distribution:

.. math:: F(λ) = P(Λ \le λ), \qquad S(λ) = P(Λ > λ), \qquad p(λ) = F'(λ) = -S'(λ).

The same object says where a model trains (:mod:`~neurodiff.diffusion.schedule`: t = S(logsnr)) and
where an observer stops (:mod:`~neurodiff.diffusion.weighting`: w = S). The convention that others
get wrong: S is never computed as 1 − F, because the weighting lives in that tail.

``nn.Parameter`` values are the constrained ones (scale > 0). ``constraints`` names their supports
and ``priors`` their default parameter priors, in nats of logsnr; both by the parameter's name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, LogNormal, Normal
from torch.distributions import constraints as supports
from torch.distributions.constraints import Constraint

_FAR = 1e18  # nats; its square still fits in float32


def finite(logsnr: Tensor) -> Tensor:
    """Replace ±inf by ±1e18 nats: values are the limits, gradients 0 instead of 0·inf = NaN.

    >>> finite(torch.tensor([-torch.inf, 2.0]))[1].item()
    2.0
    """
    return logsnr.clamp(-_FAR, _FAR)


def bisect(cdf: Callable[[Tensor], Tensor], p: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Solve cdf(x) = p for x in [low, high] by halving; no branch on data, so it can be vmapped.

    Args:
        cdf: nondecreasing, elementwise.
        p: probabilities, any shape.
        low: where cdf ≤ p, broadcastable with p; finite.
        high: where cdf ≥ p, broadcastable with p; finite.
    """
    with torch.no_grad():
        low, high, p = torch.broadcast_tensors(low.detach(), high.detach(), p.detach())
        for _ in range(80):  # 80 halvings of 1e8 nats reach the last bit of float64
            middle = 0.5 * (low + high)
            below = cdf(middle) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


class LawDistribution(Distribution):
    """A distribution on logsnr with stable tails. Everything is elementwise and broadcasts.

    ``logsnr`` may be ±inf (no noise, no signal): cdf(−inf) = survival(+inf) = 0 exactly. There,
    logarithms are hugely negative but finite, so that gradients stay numbers.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    has_rsample = True

    def __init__(self, batch_shape: Sequence[int], like: Tensor) -> None:
        self._like = like
        super().__init__(torch.Size(batch_shape), validate_args=False)

    @abstractmethod
    def survival(self, logsnr: Tensor) -> Tensor:
        """S(λ) = P(Λ > λ), with full relative accuracy in the upper tail."""

    @abstractmethod
    def log_survival(self, logsnr: Tensor) -> Tensor:
        """Log S(λ), finite where S underflows."""

    @abstractmethod
    def isf(self, value: Tensor) -> Tensor:
        """The inverse of ``survival``; for small values more accurate than ``icdf(1 - value)``."""

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draw icdf(u) with u ~ U(0, 1): gradients reach the parameters."""
        like = self._like
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=like.dtype, device=like.device)
        return self.icdf(uniform.clamp(min=torch.finfo(like.dtype).tiny))

    def _implicit(self, root: Tensor, residual: Tensor) -> Tensor:
        """One Newton step from a detached root of F(x) − p = 0: implicit gradients at no cost."""
        density = self.log_prob(root).exp().detach()
        step = residual / torch.where(density > 0, density, 1.0)
        return torch.where(density > 0, root - step, root)


class Law(nn.Module, ABC):
    """A law on logsnr with learnable parameters: a module in, a distribution out."""

    constraints: ClassVar[dict[str, Constraint]] = {}
    priors: ClassVar[dict[str, Distribution]] = {}

    @abstractmethod
    def forward(self) -> LawDistribution:
        """The distribution under the present parameters, which may carry batch and sample dims."""


def parameter(value: float | Tensor) -> nn.Parameter:
    """A parameter of the default dtype that owns its memory."""
    return nn.Parameter(torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone())


class LocationScale(Law):
    r"""A law of Λ = loc + scale·Z, given by functions of the standardised z = (λ − loc)/scale.

    Subclasses give the standard law (``_cdf``, ``_survival``, ``_log_survival``, ``_log_prob``,
    ``_icdf``, ``_isf``; all elementwise), its mean, variance and support.

    Args:
        loc: nats; prior Normal(0, 5).
        scale: nats, > 0; prior LogNormal(0, 1).

    Raises:
        ValueError: if ``scale`` is not positive.
    """

    constraints: ClassVar[dict[str, Constraint]] = {
        "loc": supports.real,
        "scale": supports.positive,
    }
    priors: ClassVar[dict[str, Distribution]] = {
        "loc": Normal(0.0, 5.0, validate_args=False),
        "scale": LogNormal(0.0, 1.0, validate_args=False),
    }
    _mean: float
    _variance: float
    _support: tuple[float, float] = (-torch.inf, torch.inf)

    def __init__(self, loc: float | Tensor = 0.0, scale: float | Tensor = 1.0) -> None:
        super().__init__()
        self.loc, self.scale = parameter(loc), parameter(scale)
        if not bool((self.scale > 0).all()):
            raise ValueError(f"scale is {scale}, but must be positive (nats of logsnr)")

    def forward(self) -> LawDistribution:
        """The law at (loc, scale); either may be any broadcastable shape."""
        return LocationScaleDistribution(type(self), self.loc, self.scale)

    def extra_repr(self) -> str:
        """The parameters, when they are single numbers."""
        return ", ".join(f"{k}={v.item():g}" for k, v in self.named_parameters() if v.numel() == 1)

    @staticmethod
    @abstractmethod
    def _cdf(z: Tensor) -> Tensor: ...

    @classmethod
    @abstractmethod
    def _survival(cls, z: Tensor) -> Tensor: ...

    @staticmethod
    @abstractmethod
    def _log_survival(z: Tensor) -> Tensor: ...

    @staticmethod
    @abstractmethod
    def _log_prob(z: Tensor) -> Tensor: ...

    @staticmethod
    @abstractmethod
    def _icdf(p: Tensor) -> Tensor: ...

    @classmethod
    @abstractmethod
    def _isf(cls, p: Tensor) -> Tensor: ...


class Symmetric(LocationScale):
    """A location–scale law with Z and −Z alike, so that both tails are one function."""

    _mean = 0.0

    @classmethod
    def _survival(cls, z: Tensor) -> Tensor:
        return cls._cdf(-z)

    @classmethod
    def _isf(cls, p: Tensor) -> Tensor:
        return -cls._icdf(p)


class LocationScaleDistribution(LawDistribution):
    """The distribution of a :class:`LocationScale` law."""

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "loc": supports.real,
        "scale": supports.positive,
    }

    def __init__(self, standard: type[LocationScale], loc: Tensor, scale: Tensor) -> None:
        self.standard, self.loc, self.scale = standard, loc, scale
        super().__init__(torch.broadcast_shapes(loc.shape, scale.shape), loc)

    def _z(self, logsnr: Tensor) -> Tensor:
        return (finite(logsnr) - self.loc) / self.scale

    def cdf(self, value: Tensor) -> Tensor:
        """P(Λ ≤ λ)."""
        return self.standard._cdf(self._z(value))

    def survival(self, logsnr: Tensor) -> Tensor:
        """P(Λ > λ)."""
        return self.standard._survival(self._z(logsnr))

    def log_survival(self, logsnr: Tensor) -> Tensor:
        """Log P(Λ > λ)."""
        return self.standard._log_survival(self._z(logsnr))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in 1/nat; −inf outside the support."""
        return self.standard._log_prob(self._z(value)) - self.scale.log()

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function, nats."""
        return self.loc + self.scale * self.standard._icdf(value)

    def isf(self, value: Tensor) -> Tensor:
        """The inverse survival function, nats."""
        return self.loc + self.scale * self.standard._isf(value)

    @property
    def mean(self) -> Tensor:
        """E Λ, nats (NaN for Cauchy)."""
        return self.loc + self.scale * self.standard._mean

    @property
    def variance(self) -> Tensor:
        """Var Λ, nats² (NaN for Cauchy)."""
        return (self.scale**2 * self.standard._variance).expand(self.batch_shape)

    @property
    def support(self) -> Constraint:
        """Where the density is positive."""
        low, high = self.standard._support
        if high < torch.inf:
            return supports.interval(self.loc + low * self.scale, self.loc + high * self.scale)
        if low > -torch.inf:
            return supports.greater_than_eq(self.loc + low * self.scale)
        return supports.real
