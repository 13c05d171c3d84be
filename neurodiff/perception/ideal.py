r"""The ideal observer: how often the best possible answer is right, the stimulus ending at logsnr.

.. math::

    \text{±1 source:}\quad A(\lambda) = \Phi(e^{\lambda/2})
    \qquad
    \text{m alternatives:}\quad A(\lambda) = \int \phi(x - e^{\lambda/2})\,\Phi(x)^{m-1}\,dx

    \text{two Gaussians:}\quad
    A(\lambda) = \tfrac12 + \tfrac14 \int |p_1(y) - p_0(y)|\,dy,
    \quad p_c = N(\mu_c,\ \sigma_c^2 + e^{-\lambda})

    \text{known log-likelihood ratios:}\quad A(\lambda) = E\,\mathrm{sig}(|\mathrm{LLR}_\lambda|)

A stimulus that ends at logsnr limits what any observer can do to A, and an observer who stops
earlier gets less. What others get wrong: with two alternatives that are both shown (2AFC) the
answer is :math:`\Phi(e^{\lambda/2}/\sqrt2)`; the ±1 source, one stimulus of either sign, is
:math:`\Phi(e^{\lambda/2})`. A(−∞) is chance, exactly.

The same stimulus carries information; for the ±1 source the eps-error is

.. math:: m(\lambda) = \gamma\,(1 - E\tanh(\gamma + \sqrt\gamma\,Z)),\quad \gamma = e^\lambda,
          \qquad \tfrac12 \int_{-\infty}^{\infty} m\,d\lambda = \log 2 .
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.special import ndtr
from torch import Tensor, nn

from neurodiff.diffusion.weighting import Weighting

_LOW, _HIGH, _STEP = -60.0, 30.0, 0.05  # nats: the grid of a table; its error is of order step⁴


class Ideal(nn.Module, ABC):
    """A(logsnr), the accuracy of the ideal observer, nondecreasing; and its slope A′.

    Attributes:
        chance: A(−∞).
        best: A(+∞).
    """

    chance: float
    best: float

    @abstractmethod
    def forward(self, logsnr: Tensor) -> Tensor:
        """A at any shape of logsnr; ±inf gives the limits."""

    @abstractmethod
    def slope(self, logsnr: Tensor) -> Tensor:
        """A′, per nat; 0 at ±inf."""


class Binary(Ideal):
    r"""The ±1 source in Gaussian noise: :math:`A = \Phi(e^{\lambda/2})`, in closed form.

    >>> Binary()(torch.tensor([-torch.inf, 0.0, torch.inf]))
    tensor([0.5000, 0.8413, 1.0000])
    """

    chance, best = 0.5, 1.0

    def forward(self, logsnr: Tensor) -> Tensor:
        """Φ(d), d = e^{λ/2}."""
        return 0.5 * torch.erfc(-self._d(logsnr) * math.sqrt(0.5))

    def slope(self, logsnr: Tensor) -> Tensor:
        """φ(d) d/2."""
        d = self._d(logsnr)
        return torch.exp(-0.5 * d * d) * d / math.sqrt(8 * math.pi)

    @staticmethod
    def _d(logsnr: Tensor) -> Tensor:
        # at −160 the accuracy is chance and at 8 it is 1, both to the last bit
        return (0.5 * logsnr.clamp(-160.0, 8.0)).exp()


class Tabulated(Ideal):
    """A on a uniform grid of logsnr, cubic Hermite in between.

    Below the grid A falls to chance as e^{λ/2}, which is how any small signal is seen; above, it
    stays. Tables are float64.

    Args:
        logsnr: (node,) uniform and increasing, nats.
        accuracy: (node,) nondecreasing.
        slope: (node,) A′; by default the monotone (PCHIP) one.
        chance: A(−∞).

    Raises:
        ValueError: If the grid is not uniform, or the accuracy falls or lies outside [chance, 1].
    """

    cells: Tensor

    def __init__(
        self,
        logsnr: np.ndarray,
        accuracy: np.ndarray,
        slope: np.ndarray | None = None,
        chance: float = 0.5,
    ) -> None:
        super().__init__()
        step = np.diff(logsnr)
        if len(logsnr) < 2 or not (step > 0).all() or np.ptp(step) > 1e-6 * step[0]:
            raise ValueError(f"logsnr must be a uniform, increasing grid; its steps are {step}")
        if (fall := np.diff(accuracy)).min() < -1e-12:
            at = logsnr[int(fall.argmin())]
            raise ValueError(f"the accuracy falls by {-fall.min():.3g} after logsnr = {at:g}")
        if accuracy[0] < chance - 1e-12 or accuracy[-1] > 1 + 1e-12:
            raise ValueError(
                f"the accuracy goes from {accuracy[0]:g} to {accuracy[-1]:g}, "
                f"wanted it within chance = {chance:g} and 1"
            )
        if slope is None:
            slope = np.asarray(PchipInterpolator(logsnr, accuracy)(logsnr, 1))
        self.chance, self.best = float(chance), float(accuracy[-1])
        self.low, self.step = float(logsnr[0]), float(step.mean())
        self.high = float(logsnr[-1])
        # a row for each cell: values and slopes at its two ends
        ends = np.stack([accuracy[:-1], accuracy[1:], slope[:-1] * step, slope[1:] * step], -1)
        self.register_buffer("cells", torch.as_tensor(ends, dtype=torch.float64))

    def _place(self, logsnr: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The position of each logsnr in its cell, 0 to 1, and the row of the cell."""
        last = len(self.cells)
        position = ((logsnr - self.low) / self.step).clamp(0.0, float(last))
        # a diverging chain asks at nan: any row will do, the answer stays nan
        cell = position.detach().nan_to_num().floor().clamp(max=float(last - 1))
        # plain indexing by a scalar asks for its value, which vmap cannot give
        rows = self.cells.index_select(0, cell.long().reshape(-1))
        return position - cell, rows.reshape(*cell.shape, 4).unbind(-1)

    def _below(self, logsnr: Tensor) -> Tensor:
        """A − chance under the grid."""
        fall = (0.5 * (logsnr - self.low).clamp(max=0.0)).exp()
        return (self.cells[0, 0] - self.chance) * fall

    def forward(self, logsnr: Tensor) -> Tensor:
        """A, with a continuous first derivative inside the grid."""
        t, ends = self._place(logsnr)
        return torch.where(logsnr < self.low, self.chance + self._below(logsnr), hermite(t, *ends))

    def slope(self, logsnr: Tensor) -> Tensor:
        """A′ of the interpolant."""
        t, (low, high, left, right) = self._place(logsnr)
        chord = 6 * t * (1 - t) * (high - low)
        curve = chord + (1 - t) * (1 - 3 * t) * left + t * (3 * t - 2) * right
        inside = torch.where(logsnr > self.high, 0.0, curve / self.step)
        return torch.where(logsnr < self.low, 0.5 * self._below(logsnr), inside)


def hermite(t: Tensor, left: Tensor, right: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The cubic on [0, 1] with given values and slopes at its ends."""
    chord = right - left
    return left + t * (start + t * (3 * chord - 2 * start - end + t * (start + end - 2 * chord)))


def _grid() -> np.ndarray:
    return np.linspace(_LOW, _HIGH, round((_HIGH - _LOW) / _STEP) + 1)


def _smooth(accuracy: np.ndarray, chance: float) -> Tabulated:
    """A table of a smooth function: slopes of the cubic spline, rounding taken out."""
    accuracy = np.maximum.accumulate(accuracy.clip(chance, 1.0))
    spline = CubicSpline(_grid(), accuracy)
    return Tabulated(_grid(), accuracy, np.asarray(spline(_grid(), 1)).clip(min=0.0), chance)


def alternatives(m: int) -> Tabulated:
    r"""Which of m places holds the signal: :math:`\int \phi(x - e^{\lambda/2}) \Phi(x)^{m-1} dx`.

    The error against quadrature is below 1e-7 (1e-8 up to 16 alternatives).

    Raises:
        ValueError: If there are fewer than two alternatives.

    >>> alternatives(16)(torch.tensor([-torch.inf, 2.0, torch.inf]).double()).numpy().round(4)
    array([0.0625, 0.8065, 1.    ])
    """
    if m < 2:
        raise ValueError(f"got {m} alternatives, wanted at least 2")
    d = np.exp(0.5 * _grid())
    accuracy = np.zeros_like(d)
    # the trapezoid rule is spectrally accurate for an analytic function that vanishes at both ends
    for u in np.arange(-9.0, 9.0, 0.1):
        accuracy += 0.1 * math.exp(-0.5 * u * u) / math.sqrt(2 * math.pi) * ndtr(u + d) ** (m - 1)
    accuracy[d > 40.0] = 1.0
    return _smooth(accuracy, 1.0 / m)


def gaussians(
    means: tuple[float, float] = (-1.0, 1.0), sds: tuple[float, float] = (0.0, 0.0)
) -> Tabulated:
    r"""Which of two Gaussians the signal came from, seen in noise of variance :math:`e^{-\lambda}`.

    With equal spread it is :math:`\Phi(|\mu_1 - \mu_0| / 2\sqrt{\sigma^2 + e^{-\lambda}})`. Where
    the classes overlap, A(+∞) is below 1.

    Args:
        means: of the two classes, in units of the signal to which logsnr refers.
        sds: spread of each class, 0 for a fixed signal.

    Raises:
        ValueError: If a spread is negative, or the classes are the same.

    >>> ideal = gaussians((-1.0, 1.0), (1.0, 1.0))
    >>> round(ideal.best, 4), round(gaussians((0.0, 0.0), (0.0, 1.0)).chance, 4)
    (0.8413, 0.5)
    """
    if min(sds) < 0:
        raise ValueError(f"got spreads {sds}, wanted standard deviations")
    if means[0] == means[1] and sds[0] == sds[1]:
        raise ValueError(f"both classes have mean {means[0]} and s.d. {sds[0]}: nothing to tell")
    noise = np.exp(-_grid())
    (v0, m0), (v1, m1) = sorted(zip(np.square(sds), means, strict=True))
    v0, v1 = v0 + noise, v1 + noise
    gap, excess = m1 - m0, v1 - v0
    # the narrow class 0 is chosen where |y − centre| < half (the two densities cross at the ends)
    with np.errstate(divide="ignore", invalid="ignore"):
        square = v0 * v1 * (gap**2 + excess * np.log1p(excess / v0))
        half, centre = np.sqrt(square) / excess, -v0 * gap / excess
        inside0 = _between(centre, half, np.sqrt(v0))
        inside1 = _between(centre - gap, half, np.sqrt(v1))
        equal = ndtr(0.5 * abs(gap) / np.sqrt(v0))
    # as the variances come together a crossing runs off and loses its digits; from where that costs
    # more than forgetting the excess does, only the shift of means is left
    crossing = (excess / v0) ** 2 > np.finfo(float).eps * abs(gap) / np.sqrt(v0)
    accuracy = np.where(crossing, 0.5 + 0.5 * (inside0 - inside1), equal)
    return _smooth(accuracy, 0.5)


def _between(centre: np.ndarray, half: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """P(|N(0, sd²) − centre| < half)."""
    return ndtr((centre + half) / sd) - ndtr((centre - half) / sd)


def from_ratios(
    logsnr: Sequence[float] | np.ndarray, ratios: Float[Tensor, "logsnr sample"]
) -> Tabulated:
    """The ideal observer of two equally likely classes whose log-likelihood ratios are known.

    The posterior is sig(LLR), so the accuracy at a logsnr is the mean of sig(|LLR|), which needs no
    labels. Sampling noise that would make it fall is taken out by a running maximum.

    Args:
        logsnr: where the ratios were drawn, increasing, nats.
        ratios: LLR of stimuli drawn from both classes.

    Raises:
        ValueError: If logsnr does not increase, or does not match the ratios.

    >>> ideal = from_ratios([0.0, 1.0], torch.tensor([[0.0, 0.0], [-2.0, 2.0]]))
    >>> ideal(torch.tensor(1.0)).item() == torch.sigmoid(torch.tensor(2.0).double()).item()
    True
    """
    at = np.asarray(logsnr, dtype=float)
    if at.ndim != 1 or len(at) < 2 or not (np.diff(at) > 0).all() or len(ratios) != len(at):
        raise ValueError(
            f"got {len(ratios)} rows of ratios at logsnr = {at.tolist()}, "
            "wanted one row at each of at least two increasing logsnr"
        )
    accuracy = torch.sigmoid(ratios.double().abs()).mean(1).numpy()
    accuracy = np.maximum.accumulate(accuracy)
    nodes = 1 + math.ceil((at[-1] - at[0]) / min(_STEP, float(np.diff(at).min())))
    grid = np.linspace(at[0], at[-1], nodes)
    curve = PchipInterpolator(at, accuracy)
    smooth = np.maximum.accumulate(np.asarray(curve(grid)).clip(max=accuracy[-1]))
    return Tabulated(grid, smooth)


def binary_error(logsnr: Tensor) -> Tensor:
    r"""The eps-error of the ±1 source, :math:`m = \gamma (1 - E\tanh(\gamma + \sqrt\gamma Z))`.

    >>> round(binary_error(torch.tensor(0.0).double()).item(), 4)
    0.4496
    """
    z = torch.arange(-9.0, 9.01, 0.1, dtype=logsnr.dtype, device=logsnr.device)
    density = 0.1 / math.sqrt(2 * math.pi) * torch.exp(-0.5 * z * z)
    snr = logsnr.clamp(-160.0, 8.0).exp()[..., None]
    # 1 − tanh x = 2 sig(−2x) keeps its digits where the error is small
    return (snr * 2 * torch.sigmoid(-2 * (snr + snr.sqrt() * z)) * density).sum(-1)


def information(
    weighting: Weighting,
    logsnr: Float[Tensor, "*trial"],
    error: Callable[[Tensor], Tensor] = binary_error,
) -> Float[Tensor, "*trial"]:
    r"""What an observer with weighting w takes in, :math:`\tfrac12\int_{-\infty}^{\lambda} w\,m`.

    Args:
        weighting: w; the ELBO takes in everything there is.
        logsnr: where the stimulus ends, nats; ±inf allowed.
        error: m(λ), the eps-error of the source: falls as e^λ to the left and is 0 above λ = 8.

    Returns:
        Nats.

    >>> import neurodiff as nd
    >>> round(information(nd.weighting("elbo"), torch.tensor(torch.inf).double()).item(), 6)
    0.693147
    """
    x, weight = np.polynomial.legendre.leggauss(8)
    depth = (np.arange(45)[:, None] + 0.5 * (1 + x)).reshape(-1)  # 45 panels of one nat
    below = torch.as_tensor(depth).to(logsnr)
    at = logsnr.clamp(-100.0, 8.0)[..., None] - below
    each = torch.as_tensor(np.tile(0.5 * weight, 45)).to(logsnr)
    return 0.5 * (weighting(at) * error(at) * each).sum(-1)
