r"""Laws without a fixed shape: mixtures, and a piecewise-linear cdf with a smoothness prior.

.. math:: F(λ) = \sum_k π_k F_k(λ), \qquad
          F(λ) = \sum_k m_k\, \mathrm{clamp}\Big(\frac{λ - κ_k}{κ_{k+1} - κ_k}, 0, 1\Big),
          \quad m = \mathrm{softmax}(\text{logits}).

The second is the law that says where data inform the weighting at all: between two knots its mass
is spread evenly, and its default prior is a random walk on the log density, so that what the data
do not reach follows its neighbours. Survival is summed from the upper end, never 1 − F.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet, Distribution, MultivariateNormal
from torch.distributions import constraints as supports
from torch.distributions.constraints import Constraint

from neurodiff.diffusion.law import Law, LawDistribution, bisect, finite, parameter


class Mixture(Law):
    r"""The law of Λ = Λ_k with probability π_k.

    Args:
        laws: the components, at least one.
        weights: π (component,), on the simplex; equal if not given. Prior Dirichlet(1).

    Raises:
        ValueError: if there is no law, or the weights are not a probability vector of that length.

    >>> from neurodiff.diffusion.laws import Logistic, Normal
    >>> Mixture([Logistic(-3.0), Normal(3.0)])().cdf(torch.tensor(0.0)).item() > 0.47
    True
    """

    constraints: ClassVar[dict[str, Constraint]] = {"weights": supports.simplex}

    def __init__(
        self, laws: Sequence[Law], weights: Sequence[float] | Tensor | None = None
    ) -> None:
        super().__init__()
        if not laws:
            raise ValueError("a mixture needs at least one law, got none")
        self.laws = nn.ModuleList(laws)
        equal = torch.full((len(laws),), 1 / len(laws))
        self.weights = parameter(equal if weights is None else torch.as_tensor(weights))
        ok = self.weights.shape == (len(laws),) and bool((self.weights >= 0).all())
        if not ok or abs(self.weights.detach().sum().item() - 1) > 1e-5:
            raise ValueError(
                f"weights are {self.weights.tolist()}, wanted {len(laws)} nonnegative numbers "
                "(one a law) that sum to 1"
            )

    @property
    def priors(self) -> dict[str, Distribution]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Dirichlet(1) on the weights; each component has its own."""
        ones = torch.ones_like(self.weights.detach())
        return {"weights": Dirichlet(ones, validate_args=False)}

    def forward(self) -> LawDistribution:
        """The mixture at the present parameters; ``weights`` is (..., component)."""
        return MixtureDistribution([law() for law in self.laws], self.weights)


class MixtureDistribution(LawDistribution):
    """The distribution of a :class:`Mixture`."""

    def __init__(self, parts: Sequence[LawDistribution], weights: Tensor) -> None:
        self.parts, self.weights = parts, weights
        shapes = [part.batch_shape for part in parts]
        super().__init__(torch.broadcast_shapes(weights.shape[:-1], *shapes), weights)

    def _sum(self, method: str, value: Tensor) -> Tensor:
        pairs = zip(self.weights.unbind(-1), self.parts, strict=True)
        return torch.stack(
            torch.broadcast_tensors(*(w * getattr(part, method)(value) for w, part in pairs))
        ).sum(0)

    def _logsumexp(self, method: str, value: Tensor) -> Tensor:
        pairs = zip(self.weights.log().unbind(-1), self.parts, strict=True)
        terms = [w + getattr(part, method)(value) for w, part in pairs]
        return torch.logsumexp(torch.stack(torch.broadcast_tensors(*terms)), 0)

    def cdf(self, value: Tensor) -> Tensor:
        """P(Λ ≤ λ)."""
        return self._sum("cdf", value)

    def survival(self, logsnr: Tensor) -> Tensor:
        """P(Λ > λ)."""
        return self._sum("survival", logsnr)

    def log_survival(self, logsnr: Tensor) -> Tensor:
        """Log P(Λ > λ)."""
        return self._logsumexp("log_survival", logsnr)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in 1/nat."""
        return self._logsumexp("log_prob", value)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function, between the components' quantiles; implicit gradients."""
        root = bisect(self.cdf, value, *self._bracket("icdf", value))
        return self._implicit(root, self.cdf(root) - value)

    def isf(self, value: Tensor) -> Tensor:
        """The inverse survival function, as ``icdf``."""
        root = bisect(lambda x: -self.survival(x), -value, *self._bracket("isf", value))
        return self._implicit(root, value - self.survival(root))

    def _bracket(self, method: str, p: Tensor) -> tuple[Tensor, Tensor]:
        ends = torch.broadcast_tensors(*(getattr(part, method)(p) for part in self.parts))
        stacked = torch.stack(ends).detach()
        return stacked.amin(0), stacked.amax(0)


class PiecewiseLinear(Law):
    r"""A cdf that is linear between fixed knots: the flexible law.

    The default prior of the logits is log(width) plus a Gaussian random walk of the log density
    with one nat² of variance per nat of logsnr between bin centres, and a weak pull (sd 10) of
    every bin to that level, since a constant added to all logits changes nothing.

    Args:
        knots: (knot,) increasing, nats; not learned.
        logits: (bin,) with one bin fewer than knots; a uniform density if not given.

    Raises:
        ValueError: if knots are not at least two increasing finite numbers, or logits do not fit.

    >>> law = PiecewiseLinear(torch.tensor([-4.0, 0.0, 2.0]), torch.tensor([0.0, 0.0]))
    >>> law().survival(torch.tensor([0.0, 1.0])).tolist()
    [0.5, 0.25]
    """

    constraints: ClassVar[dict[str, Constraint]] = {"logits": supports.real_vector}
    knots: Tensor

    def __init__(
        self, knots: Sequence[float] | Tensor, logits: Sequence[float] | Tensor | None = None
    ) -> None:
        super().__init__()
        knots = torch.as_tensor(knots, dtype=torch.get_default_dtype())
        if knots.ndim != 1 or len(knots) < 2 or not bool(knots.isfinite().all()):
            raise ValueError(f"knots are {knots.tolist()}, wanted at least two finite numbers")
        if not bool((knots.diff() > 0).all()):
            raise ValueError(f"knots must increase, got {knots.tolist()}")
        self.register_buffer("knots", knots.clone())
        self.logits = parameter(knots.diff().log() if logits is None else torch.as_tensor(logits))
        if self.logits.shape[-1:] != (len(knots) - 1,):
            raise ValueError(
                f"logits have shape {tuple(self.logits.shape)}, wanted {len(knots) - 1} bins "
                f"between {len(knots)} knots"
            )

    @property
    def priors(self) -> dict[str, Distribution]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The random walk on the log density, as one multivariate normal over bins."""
        width = self.knots.diff()
        steps = torch.eye(len(width), dtype=width.dtype, device=width.device).diff(dim=0)
        distance = 0.5 * (width[1:] + width[:-1])
        precision = steps.T @ (steps / distance[:, None])
        precision.diagonal().add_(0.01)
        walk = MultivariateNormal(width.log(), precision_matrix=precision, validate_args=False)
        return {"logits": walk}

    def forward(self) -> LawDistribution:
        """The law at the present ``logits`` (..., bin), which may carry leading dims."""
        return PiecewiseLinearDistribution(self.knots, self.logits)


def _pick(table: Tensor, here: Tensor) -> Tensor:
    """table[..., here] for one table (bin,), or one for each element of ``here``."""
    if table.ndim == 1:
        # not table[here], which reads a single index as a number and so cannot be vmapped
        return table.index_select(0, here.reshape(-1)).reshape(here.shape)
    shape = torch.broadcast_shapes(table.shape[:-1], here.shape)
    table, here = table.expand(*shape, table.shape[-1]), here.expand(shape)
    return table.take_along_dim(here[..., None], -1)[..., 0]


class PiecewiseLinearDistribution(LawDistribution):
    """The distribution of a :class:`PiecewiseLinear` law."""

    def __init__(self, knots: Tensor, logits: Tensor) -> None:
        self.knots = knots
        self.left, self.right = knots[:-1], knots[1:]
        self.log_mass = logits.log_softmax(-1)
        self.mass = self.log_mass.exp()
        self.before = self.mass.cumsum(-1) - self.mass
        self.after = self.mass.flip(-1).cumsum(-1).flip(-1) - self.mass
        super().__init__(logits.shape[:-1], logits)

    def _bin(self, value: Tensor) -> Tensor:
        return torch.bucketize(value.detach(), self.knots[1:-1], right=True)

    def cdf(self, value: Tensor) -> Tensor:
        """P(Λ ≤ λ)."""
        here = self._bin(value)
        left, right = _pick(self.left, here), _pick(self.right, here)
        part = ((finite(value) - left) / (right - left)).clamp(0.0, 1.0)
        return _pick(self.before, here) + _pick(self.mass, here) * part

    def survival(self, logsnr: Tensor) -> Tensor:
        """P(Λ > λ), summed from the upper end."""
        here = self._bin(logsnr)
        left, right = _pick(self.left, here), _pick(self.right, here)
        part = ((right - finite(logsnr)) / (right - left)).clamp(0.0, 1.0)
        return _pick(self.after, here) + _pick(self.mass, here) * part

    def log_survival(self, logsnr: Tensor) -> Tensor:
        """Log P(Λ > λ); −inf from the last knot on."""
        return self.survival(logsnr).log()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in 1/nat, a step function; −inf outside the knots."""
        here = self._bin(value)
        density = _pick(self.log_mass, here) - _pick((self.right - self.left).log(), here)
        inside = (value >= self.knots[0]) & (value <= self.knots[-1])
        return torch.where(inside, density, -torch.inf)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function: each bin adds its width times the part of its mass below p."""
        part = ((value[..., None] - self.before) / self.mass).clamp(0.0, 1.0)
        return self.left[0] + ((self.right - self.left) * part).sum(-1)

    def isf(self, value: Tensor) -> Tensor:
        """The inverse survival function, summed from the upper end."""
        part = ((value[..., None] - self.after) / self.mass).clamp(0.0, 1.0)
        return self.right[-1] - ((self.right - self.left) * part).sum(-1)

    @property
    def support(self) -> Constraint:
        """From the first knot to the last."""
        return supports.interval(self.left[0], self.right[-1])
