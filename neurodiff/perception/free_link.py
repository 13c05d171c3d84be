r"""The free monotone link: a law that can take any shape, and so the ceiling of a comparison.

.. math::

    F(\lambda) = \sum_{k=1}^K m_k I_k(\lambda), \qquad
    m = \mathrm{softmax}\Big(\text{smoothness} \cdot \sum_{i<k} z_i\Big), \quad z_i \sim N(0, 1)

:math:`I_k` are I-splines: integrals of quadratic M-splines, cubic between fixed knots, rising from
0 to 1. Any mixture of them is a cdf with a continuous density. The log masses are a random walk
whose step ``smoothness`` is itself learned, so how smooth the link is gets chosen on the training
data of each fold (a study integrates it out, see :mod:`neurodiff.inference.hypotheses`). Survival
is summed from the upper end, never 1 − F.

References:
    Ramsay 1988, "Monotone regression splines in action".
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from scipy.interpolate import BSpline, PPoly
from torch import Tensor
from torch.distributions import Distribution, Independent, LogNormal, Normal
from torch.distributions import constraints as supports
from torch.distributions.constraints import Constraint

from neurodiff.diffusion.law import Law, LawDistribution, bisect, finite, parameter

_MARGIN = 2.0  # nats that the knots reach beyond the tested logsnr


def _pieces(knots: np.ndarray) -> np.ndarray:
    """Coefficients (power 1..3, cell, basis) of I_k in the position 0..1 within each cell."""
    ends = np.r_[[knots[0]] * 3, knots, [knots[-1]] * 3]
    width = np.diff(knots)
    columns = []
    for k in range(1, len(knots) + 2):
        # I_k is the sum of the cubic B-splines from k on
        spline = PPoly.from_spline(BSpline(ends, (np.arange(len(knots) + 2) >= k) * 1.0, 3))
        columns.append(spline.c[2::-1, 3 : 3 + len(width)] * width ** np.arange(1, 4)[:, None])
    return np.stack(columns, -1)


class FreeLink(Law):
    r"""A law of free shape on fixed knots, for use as ``SurvivalWeighting(FreeLink.on(logsnr))``.

    ``z`` is the standardised random walk over the log masses, Normal(0, 1) each, and ``smoothness``
    its step, LogNormal(0, 1): non-centred, so that both can be learned together.

    Args:
        knots: (knot,) increasing, nats; not learned. There is one basis function more than knots.

    Raises:
        ValueError: if knots are not at least two increasing finite numbers.

    >>> law = FreeLink([-2.0, 0.0, 2.0])
    >>> law().cdf(torch.tensor([-torch.inf, 0.0, 2.0])).tolist()
    [0.0, 0.5, 1.0]
    """

    constraints: ClassVar[dict[str, Constraint]] = {
        "smoothness": supports.positive,
        "z": supports.real_vector,
    }
    knots: Tensor
    rising: Tensor
    falling: Tensor

    def __init__(self, knots: Sequence[float] | np.ndarray | Tensor) -> None:
        super().__init__()
        at = np.asarray(knots, dtype=float)
        if at.ndim != 1 or len(at) < 2 or not np.isfinite(at).all() or not (np.diff(at) > 0).all():
            raise ValueError(
                f"knots are {at.tolist()}, wanted at least two finite, increasing numbers"
            )
        # mirrored, the same splines count from the upper end
        mirrored = _pieces(-at[::-1])[:, ::-1, ::-1].copy()
        self.register_buffer("knots", torch.as_tensor(at))
        self.register_buffer("rising", torch.as_tensor(_pieces(at)).flatten(0, 1))
        self.register_buffer("falling", torch.as_tensor(mirrored).flatten(0, 1))
        self.smoothness = parameter(1.0)
        self.z = parameter(torch.zeros(len(at)))

    @classmethod
    def on(cls, logsnr: Tensor | np.ndarray, basis: int = 10) -> "FreeLink":
        """Knots at quantiles of the tested finite logsnr, and two nats beyond on either side.

        Args:
            logsnr: tested values, any shape, ±inf allowed.
            basis: number K of basis functions at most; ties among few tested levels leave fewer.

        Raises:
            ValueError: if no value is finite, or ``basis`` is below 4.
        """
        if basis < 4:
            raise ValueError(f"got basis={basis}, wanted at least 4 basis functions")
        values = np.asarray(torch.as_tensor(logsnr).detach().cpu(), dtype=float)
        values = values[np.isfinite(values)]
        if not len(values):
            raise ValueError("none of the tested logsnr is finite: there is nowhere to put knots")
        inner = np.quantile(values, np.linspace(0, 1, basis - 1)[1:-1])
        knots = np.r_[values.min() - _MARGIN, inner, values.max() + _MARGIN]
        apart = np.r_[True, np.diff(knots) > 1e-3 * np.ptp(knots)]
        return cls(knots[apart])

    @property
    def priors(self) -> dict[str, Distribution]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """LogNormal(0, 1) on the step, standard normal steps."""
        z, step = torch.zeros_like(self.z.detach()), torch.zeros_like(self.smoothness.detach())
        return {
            "smoothness": LogNormal(step, 1.0, validate_args=False),
            "z": Independent(Normal(z, 1.0, validate_args=False), 1, validate_args=False),
        }

    def forward(self) -> LawDistribution:
        """The law at the present (..., ) ``smoothness`` and (..., K − 1) ``z``."""
        walk = (self.smoothness[..., None] * self.z).cumsum(-1)
        logits = torch.cat([torch.zeros_like(walk[..., :1]), walk], -1)
        return FreeLinkDistribution(self, logits.softmax(-1))


class FreeLinkDistribution(LawDistribution):
    """The distribution of a :class:`FreeLink` with masses (..., K).

    Masses are mixed into the cubic of each cell first, so a value costs one cell and not K splines.
    """

    def __init__(self, law: FreeLink, mass: Tensor) -> None:
        self.knots = law.knots
        self.width = law.knots.diff()
        self.mass = mass = mass.to(law.rising)
        shape = (*mass.shape[:-1], 3, len(self.width))
        self.rising = (mass @ law.rising.mT).reshape(shape)
        self.falling = (mass @ law.falling.mT).reshape(shape)
        super().__init__(mass.shape[:-1], mass)

    def _cell(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Finite values, their cells (a value on a knot is in the one above), and v = 0..1."""
        x = finite(value).expand(torch.broadcast_shapes(value.shape, self.batch_shape))
        inner = self.knots[1:-1].clone()  # contiguous even where vmap runs over knots
        cell = torch.bucketize(x.detach().contiguous(), inner, right=True)
        return x, cell, (x - self._at(self.knots, cell)) / self._at(self.width, cell)

    def _cubic(self, coefficients: Tensor, start: Tensor, cell: Tensor, v: Tensor) -> Tensor:
        """Start + c₁v + c₂v² + c₃v³ with the coefficients of each value's cell."""
        c1, c2, c3 = (self._at(row, cell) for row in coefficients.unbind(-2))
        return self._at(start, cell) + v * (c1 + v * (c2 + v * c3))

    def _at(self, table: Tensor, cell: Tensor) -> Tensor:
        if table.dim() == 1:
            return table.gather(0, cell.reshape(-1)).reshape(cell.shape)
        return table.expand(*cell.shape, -1).gather(-1, cell[..., None])[..., 0]

    def cdf(self, value: Tensor) -> Tensor:
        """P(Λ ≤ λ)."""
        x, cell, v = self._cell(value)
        rise = self.rising.sum(-2)
        inside = self._cubic(self.rising, rise.cumsum(-1) - rise, cell, v)
        below = torch.where(x < self.knots[0], 0.0, inside)
        return torch.where(x >= self.knots[-1], 1.0, below)

    def survival(self, logsnr: Tensor) -> Tensor:
        """P(Λ > λ), summed from the upper end."""
        x, cell, v = self._cell(logsnr)
        fall = self.falling.sum(-2)
        above = fall.flip(-1).cumsum(-1).flip(-1) - fall
        inside = self._cubic(self.falling, above, cell, 1 - v)
        below = torch.where(x < self.knots[0], 1.0, inside)
        return torch.where(x >= self.knots[-1], 0.0, below)

    def log_survival(self, logsnr: Tensor) -> Tensor:
        """Log P(Λ > λ); −inf from the last knot on."""
        return self.survival(logsnr).log()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in 1/nat; −inf outside the knots."""
        x, cell, v = self._cell(value)
        c1, c2, c3 = (self._at(row, cell) for row in self.rising.unbind(-2))
        density = (c1 + v * (2 * c2 + 3 * v * c3)) / self._at(self.width, cell)
        somewhere = (x >= self.knots[0]) & (x < self.knots[-1])
        return torch.where(somewhere, torch.where(somewhere, density, 1.0).log(), -torch.inf)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function, by halving; implicit gradients."""
        root = bisect(self.cdf, value, self.knots[0], self.knots[-1])
        return self._implicit(root, self.cdf(root) - value)

    def isf(self, value: Tensor) -> Tensor:
        """The inverse survival function, by halving; implicit gradients."""
        root = bisect(lambda x: -self.survival(x), -value, self.knots[0], self.knots[-1])
        return self._implicit(root, value - self.survival(root))

    @property
    def support(self) -> Constraint:
        """From the first knot to the last."""
        return supports.interval(self.knots[0], self.knots[-1])
