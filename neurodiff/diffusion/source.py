r"""Sources: where the way to x begins, when that is not plain noise.

A Gaussian source N(μ, Σ) is plain diffusion in whitened coordinates, with L = Σ^{1/2}:

.. math:: z = α x + σ e, \quad e = μ + L ε \qquad\Leftrightarrow\qquad
    L^{-1}\big(z - (α + σ) μ\big) = α\, L^{-1}(x - μ) + σ ε,
    \qquad |\hat ε - ε|^2 = (\hat e - e)^\top Σ^{-1} (\hat e - e)

A bridge begins at a y that belongs to x (a degraded image, the other half):

.. math:: q(z | x, y) = N\big(a x + (1 - a) y,\; a^2 e^{-λ}\big), \qquad
    a = S(λ + 2 \log κ) \;\text{ or }\; S(λ/2 + \log κ)

With the first a it is Brownian, of variance κ² in all and pinned at both ends; any rate of noise β
has this law at its own times, with κ² = ∫β. With the second it is the straight line from x to
y + κ ε, the interpolant of a data-dependent coupling. Both are plain diffusion moved towards y:
(α/a)(z − (1 − a) y) = α x + σ ε. So losses, likelihoods and samplers are those of every conditional
denoiser, and ½ ∫ w m dλ with w = 1 bounds −log p(x|y). In uniform t = 1 − a, half the squared error
of I²SB's target (z − x)/(κ √t) has w = S(−λ − 2 log κ), a sigmoid; that of the velocity y + κ ε − x
of the straight line has w = ½ κ e^{−λ/2}, that of flow matching.

What a sampler of an exact denoiser draws depends on whether it sees y, beside z:

========  =============================  ================================================
\         sees y                         blind to y
========  =============================  ================================================
Brownian  p(x|y), flow or ``ancestral``  ``ancestral``: p(x) over all y, not p(x|y) (but
                                         see :class:`Bridge`); flows: neither
straight  p(x|y), flow or ``ancestral``  flows: p(x) over all y, not p(x|y);
                                         ``ancestral``: neither
========  =============================  ================================================

References: Lee et al. 2022 (PriorGrad); Liu et al. 2023 (I²SB); Albergo et al. 2023 (data-dependent
couplings); De Bortoli et al. 2023 (a blind bridge does not keep the coupling).
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from neurodiff.diffusion import curves, laws
from neurodiff.diffusion.denoiser import Denoiser, per_example
from neurodiff.diffusion.logsnr import alpha, sigma
from neurodiff.diffusion.parameterization import like
from neurodiff.diffusion.prior import Gaussian
from neurodiff.diffusion.schedule import NoiseSchedule


def whiten(x: Float[Tensor, "batch *event"], source: Gaussian) -> Float[Tensor, "batch *event"]:
    r"""Σ^{−1/2} (x − μ): coordinates in which the source is N(0, I).

    To train from a Gaussian source, whiten each batch: ``train(..., prepare=lambda x, _: whiten(x,
    source))``. To sample, ``colour(sample(...).x, source)``. To say how likely x is, log p(x) =
    log p(whitened x) − ½ Σ log ``source.variance``. The root is the symmetric one, so that a pixel
    stays in its place. A mean that depends on y is a straight :class:`Bridge` of κ = 1 from the
    whitened mean; with the mean of its class for y, the source is a mixture of Gaussians.

    Args:
        x: (batch, ...).
        source: N(μ, Σ), of the shape of one x.

    Raises:
        ValueError: x of another shape, or a source without variance in some direction.

    >>> source = Gaussian(torch.ones(2), torch.tensor([1.0, 4.0]))
    >>> whiten(torch.tensor([[2.0, 3.0]]), source)
    tensor([[1., 1.]])
    """
    return _stretch(x, source, -0.5)


def colour(z: Float[Tensor, "batch *event"], source: Gaussian) -> Float[Tensor, "batch *event"]:
    r"""μ + Σ^{1/2} z: back from whitened coordinates.

    Args:
        z: (batch, ...).
        source: N(μ, Σ), of the shape of one z.

    Raises:
        ValueError: as for :func:`whiten`.

    >>> colour(torch.ones(1, 2), Gaussian(torch.ones(2), torch.tensor([1.0, 4.0])))
    tensor([[2., 3.]])
    """
    return _stretch(z, source, 0.5)


def _stretch(value: Tensor, source: Gaussian, power: float) -> Tensor:
    if value.shape[1:] != source.event:
        raise ValueError(
            f"got {tuple(value.shape)} beside a source of {tuple(source.event)}; wanted a batch of "
            "examples of that shape"
        )
    if not (source.variance > 0).all():
        raise ValueError(
            f"the source has variance {source.variance.min():.3g} in some direction; wanted all "
            "above 0: add a floor to the diagonal, such as the variance of rounding to grey levels"
        )
    centre, scale = source.mean, source.variance**power
    flat = (value - centre if power < 0 else value).reshape(len(value), -1)
    moved = flat * scale if source.axes is None else (flat @ source.axes * scale) @ source.axes.mT
    moved = moved.reshape(value.shape)
    return moved if power < 0 else centre + moved


class Bridge(Denoiser):
    r"""A denoiser that is shown z on the way from y to x.

    .. math:: \hat x(z, λ, y) = \text{denoiser}\big(\tfrac aα z + (1 - a) y,\; λ\big)

    The outside is plain: z is in VP scaling and begins as N(0, I), and ``cond`` is y. So ``train``,
    ``sample`` (by the table above) and ``log_prob`` of x given y are called as ever. Blind to y, it
    is the Markov bridge of I²SB and draws x with the right law over all y, but not given each one,
    unless y says nothing about x beside z: as where y is x with Gaussian noise of just the variance
    κ², when the bridge is diffusion that begins midway.

    Args:
        denoiser: (z on the bridge, logsnr, y) → E[x|z, y], or without y → E[x|z].
        spread: κ > 0.
        pinned: whether Brownian, at y without noise; else straight, from y + κ ε.
        seen: whether the denoiser is also given y.

    Raises:
        ValueError: a spread that is not above 0; no y, or one that has not the shape of z.

    References: as in the module.

    >>> from neurodiff.diffusion.prior import Binary
    >>> half = Bridge(Binary((1,)), 1.0, pinned=True, seen=False)
    >>> half(torch.zeros(1, 1), torch.tensor(0.0), torch.ones(1, 1))     # tanh √2 (1 − a), a = ½
    tensor([[0.6089]])
    """

    def __init__(self, denoiser: Denoiser, spread: float, *, pinned: bool, seen: bool) -> None:
        super().__init__()
        if not spread > 0:
            raise ValueError(f"wanted a spread above 0, got {spread}")
        self.denoiser, self.spread, self.seen = denoiser, spread, seen
        self.law = laws.Logistic(-2 * math.log(spread), 1.0 if pinned else 2.0)
        self.law.requires_grad_(False)

    def share(self, logsnr: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
        """What share of z, on the bridge, is x: a."""
        return self.law().cdf(logsnr)

    def schedule(self) -> NoiseSchedule:
        """The schedule whose time is 1 − a, the share of y, in equal steps from 0.999 to x.

        Nearer to y a network has hardly looked, and its embedding of logsnr runs on. What is left
        out for it, of the start of a flow, is α x, with α² = 0.001/κ² where Brownian.
        """
        first = float(self.law().isf(torch.tensor(0.999, dtype=torch.float64)))
        return NoiseSchedule(curves.Truncated(self.law, first, math.inf)).requires_grad_(False)

    def forward(
        self,
        z: Float[Tensor, "batch *event"],
        logsnr: Float[Tensor, "..."],
        cond: Shaped[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """E[x|z], or E[x|z, y]; logsnr must be finite."""
        if cond is None or cond.shape != z.shape:
            got = "none" if cond is None else str(tuple(cond.shape))
            raise ValueError(
                f"a bridge wants cond, its y, of the shape {tuple(z.shape)}; got {got}"
            )
        level = per_example(logsnr, z)
        a = self.share(level).to(z)
        away = self.law().survival(level).to(z)
        moved = like(a / alpha(level), z) * z + like(away, z) * cond
        return self.denoiser(moved, level, cond) if self.seen else self.denoiser(moved, level)

    def extra_repr(self) -> str:
        """The spread and what is seen, for ``repr``."""
        return f"spread={self.spread}, seen={self.seen}"


def circle(
    denoiser: Denoiser,
    z: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, "level *batch"],
    cond: Shaped[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch *event"]:
    r"""First order, for data near N(0, I): Euler's method along the circle. Deterministic.

    .. math:: \frac{dz}{dφ} = v = α ε - σ x, \qquad α = \cos φ, \; σ = \sin φ

    Exact, whatever the steps, for N(0, I), where v = 0: so for whitened data that are what the
    source says. DDIM is exact for a point, and shrinks N(0, I) by cos Δφ in each step. A sampler as
    those of :mod:`~neurodiff.diffusion.sample`.

    >>> prior = Gaussian(torch.zeros(1), torch.ones(1))
    >>> circle(prior, torch.ones(1, 1), torch.tensor([-10.0, 10.0]))
    tensor([[1.]])
    """
    for now, then in pairwise(logsnr.unbind()):
        v = (like(alpha(now), z) * z - denoiser(z, now, cond)) / like(sigma(now), z)
        turn = (-0.5 * now).exp().atan() - (-0.5 * then).exp().atan()
        z = z - like(turn, z) * v
    return z
