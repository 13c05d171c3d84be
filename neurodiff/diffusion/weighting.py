r"""Weightings and stopping laws: two sides of one thing.

A weighting that falls with logsnr is the survival function of the Λ at which denoising stops,

.. math:: w(λ)/w(λ_{min}) = P(Λ > λ), \qquad p_w(λ) = -w'(λ),

and then L_w/w(λ_min) = E_Λ[½ ∫_{λ_min}^{Λ} m dλ]: w is the probability of still integrating at λ.
Where w rises, −w′ is a signed measure and there is no stopping law. A weighting unbounded towards
λ → −∞ (flow matching) has one only from a stated ``logsnr_min`` on.

Up to scale, shift and truncation some names are one hypothesis: σ(bias − λ) and debiased, which is
(2/π)σ(−λ); e^{−λ/2} and v-cosine, which is (2/π)e^{−λ/2}; ddpm and its shifted self. ``canonical``
joins them.
"""

import torch
from torch import Tensor

from neurodiff.diffusion.law import Law, LawDistribution, bisect
from neurodiff.diffusion.named import check_name
from neurodiff.diffusion.zoo import ZOO, Named, Weighting

__all__ = [
    "SurvivalWeighting",
    "Weighting",
    "WeightingLaw",
    "canonical",
    "names",
    "stopping_density",
    "to_stopping",
    "weighting",
]

_JOINED = ("sigmoid/debiased", "flow-matching/v-cosine", "ddpm/ddpm-shifted")
_SPAN = (-60.0, 60.0)  # nats: where rises are looked for


def names() -> tuple[str, ...]:
    """The zoo.

    >>> names()[:3]
    ('elbo', 'ddpm', 'ddpm-linear')
    """
    return tuple(ZOO)


def weighting(name: str, **constants: float) -> Weighting:
    """A weighting of the zoo by name, in the convention of :mod:`~neurodiff.diffusion.zoo`.

    Raises:
        ValueError: for an unknown name; lists the known ones and the nearest.
        TypeError: for a constant that it does not read; lists those it does.

    >>> weighting("flow-matching")(torch.tensor([0.0, torch.inf])).tolist()
    [1.0, 0.0]
    >>> weighting("sigmoid", bias=0.0).monotone
    True
    """
    check_name("weighting", {key: row.log for key, row in ZOO.items()}, name, constants)
    return Named(name, **constants)


def canonical(name: str) -> str:
    """The joined name of the weightings that differ by scale, shift or truncation only.

    >>> canonical("debiased"), canonical("edm")
    ('sigmoid/debiased', 'edm')
    """
    weighting(name)
    return next((joined for joined in _JOINED if name in joined.split("/")), name)


class SurvivalWeighting(Weighting):
    """w = the survival function of a law, and so monotone: the learnable weighting.

    >>> from neurodiff.diffusion.laws import Logistic
    >>> SurvivalWeighting(Logistic(1.0))(torch.tensor(1.0)).item()
    0.5
    """

    monotone = True

    def __init__(self, law: Law) -> None:
        super().__init__()
        self.law = law
        self.name = type(law).__name__

    def forward(self, logsnr: Tensor) -> Tensor:
        """P(Λ > logsnr)."""
        return self.law().survival(logsnr)

    def log(self, logsnr: Tensor) -> Tensor:
        """Log P(Λ > logsnr)."""
        return self.law().log_survival(logsnr)

    def exact_law(self, logsnr_min: float | None) -> Law | None:
        """The law itself, unless it is cut."""
        return self.law if logsnr_min is None else None


def stopping_density(w: Weighting, logsnr: Tensor) -> Tensor:
    """−w′(logsnr), per nat: the stopping density where w falls, negative where it rises.

    >>> stopping_density(weighting("ddpm"), torch.tensor([-2.0, 2.0])).sign().tolist()
    [-1.0, 1.0]
    """
    if isinstance(w, SurvivalWeighting):
        return w.law().log_prob(logsnr).exp()
    return -torch.func.grad(lambda value: w(value).sum())(logsnr)


class WeightingLaw(Law):
    """The law with survival w(max(λ, logsnr_min))/w(logsnr_min), whatever monotone w is.

    Args:
        weighting: nonincreasing from ``logsnr_min`` on; its parameters stay learnable.
        logsnr_min: nats; −inf where w is bounded.
    """

    logsnr_min: Tensor

    def __init__(self, weighting: Weighting, logsnr_min: float = -torch.inf) -> None:
        super().__init__()
        self.weighting = weighting
        self.register_buffer("logsnr_min", torch.tensor(logsnr_min))

    def forward(self) -> LawDistribution:
        """The law under the weighting's present parameters."""
        return WeightingLawDistribution(self.weighting, self.logsnr_min)


class WeightingLawDistribution(LawDistribution):
    """The distribution of a :class:`WeightingLaw`."""

    def __init__(self, weighting: Weighting, low: Tensor) -> None:
        self.weighting, self.low = weighting, low
        self.log_top = weighting.log(low)
        super().__init__(self.log_top.shape, low)

    def log_survival(self, logsnr: Tensor) -> Tensor:
        """Log P(Λ > λ)."""
        return self.weighting.log(logsnr.clamp(min=self.low)) - self.log_top

    def survival(self, logsnr: Tensor) -> Tensor:
        """P(Λ > λ)."""
        return self.log_survival(logsnr).exp()

    def cdf(self, value: Tensor) -> Tensor:
        """P(Λ ≤ λ)."""
        return -torch.expm1(self.log_survival(value))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in 1/nat, by autograd; −inf where w is flat and at an atom."""
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))
        slope = torch.func.grad(lambda x: self.log_survival(x).sum())(value)
        return torch.where(value >= self.low, (-slope).log() + self.log_survival(value), -torch.inf)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function, by halving; implicit gradients."""
        root = bisect(self.cdf, value, *self._bracket())
        return self._implicit(root, self.cdf(root) - value)

    def isf(self, value: Tensor) -> Tensor:
        """The inverse survival function, by halving; implicit gradients."""
        root = bisect(lambda x: -self.survival(x), -value, *self._bracket())
        return self._implicit(root, value - self.survival(root))

    def _bracket(self) -> tuple[Tensor, Tensor]:
        far = torch.full_like(self.log_top, 1e6)
        return torch.maximum(-far, self.low), far


def _refuse_rise(w: Weighting, low: float) -> None:
    logsnr = torch.linspace(max(low, _SPAN[0]), _SPAN[1], 24001, dtype=torch.float64)
    values = w(logsnr).detach()
    rise = values - values.cummin(0).values
    peak = int(rise.argmax())
    if rise[peak] > 1e-9 * values[peak]:
        raise ValueError(
            f"weighting {w.name!r} rises at logsnr = {logsnr[peak].item():.1f} "
            f"(by {rise[peak].item():.2g}), so no stopping law exists; "
            "use stopping_density for the signed density"
        )


def to_stopping(w: Weighting, logsnr_min: float | None = None) -> Law:
    """The stopping law of a weighting: the Λ with P(Λ > λ) = w(max(λ, logsnr_min))/w(logsnr_min).

    It is a law of the family where there is one (sigmoid: Logistic, flow-matching: Exponential,
    deadline: GumbelMin), else a :class:`WeightingLaw`.

    Args:
        w: nonincreasing from ``logsnr_min`` on.
        logsnr_min: where integration begins, nats; needed where w grows without bound below.

    Raises:
        ValueError: if w rises (says where and by how much), if it is unbounded or zero at the
            lower end, or if it does not fall to 0 (the ELBO never stops).

    >>> to_stopping(weighting("flow-matching"), logsnr_min=0.0)
    Exponential(loc=0, scale=2)
    """
    low = -torch.inf if logsnr_min is None else float(logsnr_min)
    _refuse_rise(w, low)
    top, rest = w(torch.tensor([low, torch.inf])).detach().tolist()
    if not 0 < top < torch.inf:
        raise ValueError(
            f"weighting {w.name!r} is {top} at logsnr = {low}, so it is no survival function from "
            "there; give logsnr_min, where the observer begins to integrate"
        )
    if rest > 0:
        raise ValueError(
            f"weighting {w.name!r} is still {rest / top:.3g} of its height at logsnr = inf: with "
            "that probability it never stops, so no stopping law exists; take one that falls to 0"
        )
    return w.exact_law(logsnr_min) or WeightingLaw(w, low)
