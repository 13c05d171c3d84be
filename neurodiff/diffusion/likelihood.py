r"""From a denoiser's error to information and log-likelihood, in nats.

.. math::

    m(λ; x) = E|\hat ε − ε|², \qquad L(λ; x) = KL(q(z_λ|x) ‖ p(z_λ)) = ½ ∫_{−∞}^{λ} m(l; x) dl

    −\log p(x) = −\log N_{ref}(x) − ½ ∫ [m_{ref} − m] dl
    = \tfrac d2 \log 2πe − ½ ∫ [d\,sig(l) − m(l; x)] dl

    −ELBO(x) = KL(q(z_{λ_{min}}|x) ‖ N(0, I)) + ½ ∫_{λ_{min}}^{λ_{max}} m\, dl
    + E[−\log p(x | z_{λ_{max}})]

The first three lines are equalities for a denoiser that is the exact posterior mean of a density p;
for a network they are estimates of the p that it implies. Noise is drawn in pairs ε, −ε (odd terms
cancel), afresh at every node of a Gauss–Legendre rule; ``se`` is the Monte Carlo error alone, and
too small where rare draws carry the mean. Nothing here is differentiated.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.logsnr import alpha, diffuse
from neurodiff.diffusion.loss import squared_error
from neurodiff.diffusion.parameterization import like
from neurodiff.diffusion.prior import Gaussian, Prior

LEVELS = 256  # of an 8-bit image; level k stands at 2 (k + ½) / 256 − 1
_FLOOR = -8.0  # below, the error per unit of SNR is smooth enough for one panel in SNR
_Statistic = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Estimate(NamedTuple):
    """A Monte Carlo estimate and its standard error, of one shape."""

    value: Tensor
    se: Tensor


@torch.no_grad()
def denoising_error(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, " logsnr"],
    *,
    cond: Shaped[Tensor, "batch ..."] | None = None,
    pairs: int = 16,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The error m(λ; x) = E|ε̂ − ε|², summed over dimensions: (batch, logsnr).

    Args:
        denoiser: (z, logsnr, cond) → E[x|z].
        x: (batch, ...).
        logsnr: (logsnr,), finite.
        cond: passed to the denoiser.
        pairs: of noise, ε and −ε, at every logsnr and for every x; at least 2.
        generator: of the noise, on the device of x.

    Raises:
        ValueError: fewer than 2 pairs, an infinite logsnr.

    >>> from neurodiff.diffusion.prior import Binary
    >>> denoising_error(Binary(), torch.ones(3), torch.linspace(-4.0, 4.0, 5)).se.shape
    torch.Size([3, 5])
    """

    def statistic(x: Tensor, logsnr: Tensor, eps: Tensor, cond: Tensor | None) -> Tensor:
        return squared_error(denoiser, x, logsnr, eps, cond)

    return _monte_carlo(statistic, x, logsnr, cond, pairs, generator)


@torch.no_grad()
def information(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, " logsnr"],
    *,
    cond: Shaped[Tensor, "batch ..."] | None = None,
    pairs: int = 16,
    generator: torch.Generator | None = None,
) -> Estimate:
    """L(λ; x), what z says about x by the time it has reached logsnr: (batch, logsnr), nats.

    The integral of m / 2 from −∞; the grid may be coarse, since panels are at most 1 wide. Errors
    along the grid are cumulative, hence correlated. The mean over x ~ p is the mutual information
    of x and z.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z].
        x: (batch, ...).
        logsnr: (logsnr,), finite and increasing.
        cond: passed to the denoiser.
        pairs: of noise at every node (three in a panel); at least 2.
        generator: of the noise, on the device of x.

    Raises:
        ValueError: a grid that is not finite and increasing, fewer than 2 pairs.

    References: Guo, Shamai & Verdú 2005; Kingma & Gao 2023.

    >>> from neurodiff.diffusion.prior import Binary
    >>> nats, se = information(Binary(), torch.ones(500), torch.tensor([0.0, 5.0]))
    >>> [round(bits, 1) for bits in (nats.mean(0) / math.log(2)).tolist()]
    [0.5, 1.0]
    """
    if not len(logsnr) or not torch.isfinite(logsnr).all() or (logsnr.diff() <= 0).any():
        raise ValueError(
            f"logsnr must be at least one value, finite and increasing, got {logsnr.tolist()}"
        )
    nodes, weights, owner = _rule(logsnr.to(x))
    m = denoising_error(denoiser, x, nodes, cond=cond, pairs=pairs, generator=generator)
    empty = x.new_zeros(len(x), len(logsnr))
    value = empty.index_add(1, owner, 0.5 * weights * m.value).cumsum(1)
    variance = empty.index_add(1, owner, (0.5 * weights * m.se).square()).cumsum(1)
    return Estimate(value, variance.sqrt())


@torch.no_grad()
def log_prob(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    *,
    reference: Prior | None = None,
    logsnr_max: float = 14.0,
    cond: Shaped[Tensor, "batch ..."] | None = None,
    pairs: int = 16,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Log p(x) of the density that the denoiser implies, pointwise, (batch,), nats.

    The difference m_ref − m is taken at the same z, so that a reference near p leaves little
    variance, and none where they are equal. What lies beyond logsnr_max, of order exp(−logsnr_max)
    for a smooth p, is left out.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z], of a p that has a density.
        x: (batch, ...).
        reference: a prior with a density at logsnr = ∞, such as a Gaussian with the mean and
            covariance of the data; N(0, I) unless given.
        logsnr_max: where the integral ends.
        cond: passed to the denoiser, not to the reference.
        pairs: of noise at every node; at least 2.
        generator: of the noise, on the device of x.

    References: Kong, Brekelmans & Ver Steeg 2023.

    >>> p = Gaussian(torch.zeros(1), torch.ones(1))
    >>> log_prob(p, torch.zeros(1, 1)).value      # −½ log 2π
    tensor([-0.9189])
    """
    near = reference or Gaussian(torch.zeros_like(x[0]), torch.ones_like(x[0]))

    def statistic(x: Tensor, logsnr: Tensor, eps: Tensor, cond: Tensor | None) -> Tensor:
        excess = squared_error(near, x, logsnr, eps)
        return excess - squared_error(denoiser, x, logsnr, eps, cond)

    nodes, weights, _ = _rule(x.new_tensor([logsnr_max]))
    gain = _monte_carlo(statistic, x, nodes, cond, pairs, generator)
    value = near.log_prob(x, x.new_tensor(math.inf)) + (0.5 * weights * gain.value).sum(1)
    return Estimate(value, (0.5 * weights * gain.se).square().sum(1).sqrt())


def prior_kl(x: Float[Tensor, "batch *event"], logsnr: float) -> Float[Tensor, " batch"]:
    """KL(q(z|x) ‖ N(0, I)) at this logsnr: ½[α²|x|² + d(σ² − 1 − log σ²)], nats.

    >>> prior_kl(torch.ones(1, 2), -10.0) * math.exp(10.0)      # ½ e^λ |x|²
    tensor([1.0000])
    """
    flat, power = x.reshape(len(x), -1), alpha(x.new_tensor(logsnr)).square()
    # σ² − 1 = −α², and log σ² through α², so that nothing cancels at low logsnr
    spread = -torch.log1p(-power) - power
    return 0.5 * (power * flat.square().sum(1) + flat.shape[1] * spread)


@torch.no_grad()
def elbo(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    *,
    decoder: Callable[[Tensor, Tensor, Tensor], Tensor],
    logsnr_min: float = -13.3,
    logsnr_max: float = 13.3,
    cond: Shaped[Tensor, "batch ..."] | None = None,
    pairs: int = 16,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The evidence lower bound on log p(x): −(prior KL + ½∫m + reconstruction), (batch,), nats.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z].
        x: (batch, ...).
        decoder: (x, z, logsnr) → log p(x|z), (batch,): ``level_decoder`` or ``flat_decoder``.
        logsnr_min: where p(z) is taken to be N(0, I).
        logsnr_max: where the decoder takes over.
        cond: passed to the denoiser.
        pairs: of noise at every node and for the reconstruction; at least 2.
        generator: of the noise, on the device of x.

    Raises:
        ValueError: logsnr_min is not below logsnr_max.

    References: Kingma et al. 2021 (VDM).
    """
    if not logsnr_min < logsnr_max:
        raise ValueError(f"wanted logsnr_min < logsnr_max, got {logsnr_min} and {logsnr_max}")

    def statistic(x: Tensor, logsnr: Tensor, eps: Tensor, cond: Tensor | None) -> Tensor:
        return decoder(x, diffuse(x, eps, logsnr), logsnr)

    nodes, weights = _panels(logsnr_min, logsnr_max, x)
    m = denoising_error(denoiser, x, nodes, cond=cond, pairs=pairs, generator=generator)
    end = x.new_tensor([logsnr_max])
    reconstruction = _monte_carlo(statistic, x, end, None, pairs, generator)
    diffusion = 0.5 * (weights * m.value).sum(1)
    variance = (0.5 * weights * m.se).square().sum(1) + reconstruction.se[:, 0].square()
    value = reconstruction.value[:, 0] - diffusion - prior_kl(x, logsnr_min)
    return Estimate(value, variance.sqrt())


def level_decoder(
    x: Float[Tensor, "batch *event"],
    z: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, " batch"],
    levels: int = LEVELS,
) -> Float[Tensor, " batch"]:
    """Log P(x|z) of images of few levels: N(z/α; level, e^−λ), normalised over those of a pixel.

    Args:
        x: on the levels.
        z: its noisy version.
        logsnr: (batch,).
        levels: K; 256 of an 8-bit image. Others by ``functools.partial``.

    Raises:
        ValueError: x is not on the levels 2 (k + ½) / K − 1.
    """
    place = (x + 1) * levels / 2 - 0.5
    on = torch.allclose(place, place.round(), atol=1e-3)
    if not on or place.min() < -0.5 or place.max() > levels - 0.5:
        raise ValueError(
            f"x must lie on the levels 2 (k + ½) / {levels} − 1, k = 0 … {levels - 1}; use "
            "flat_decoder for dequantised or continuous x"
        )
    level = (2 * torch.arange(levels, dtype=x.dtype, device=x.device) + 1) / levels - 1
    scaled, snr = z / like(alpha(logsnr), z), like(logsnr.exp(), z)
    total = (-0.5 * snr[..., None] * (scaled[..., None] - level).square()).logsumexp(-1)
    return (-0.5 * snr * (scaled - x).square() - total).reshape(len(x), -1).sum(1)


def flat_decoder(
    x: Float[Tensor, "batch *event"],
    z: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Log density of a continuous x given z under a flat prior: N(x; z/α, e^−λ)."""
    squared = (z / like(alpha(logsnr), z) - x).reshape(len(x), -1).square().sum(1)
    dims = x[0].numel()
    return -0.5 * (logsnr.exp() * squared + dims * (math.log(2 * math.pi) - logsnr))


def bits_per_dim(log_prob: Estimate, dims: int, *, width: float = 1.0) -> Estimate:
    """Nats of log p(x) as bits a dimension: −log₂ p / d − log₂ width.

    Args:
        log_prob: a log-probability (``elbo`` with the level decoder), or a log density.
        dims: numbers in one x.
        width: of one level, where log_prob is a density at uniformly dequantised x, that is level +
            U(−½, ½)·width: 2/256 on [−1, 1], which adds 7 bits.

    >>> zero = torch.zeros(1)
    >>> bits_per_dim(Estimate(zero, zero), 3072, width=2 / 256).value
    tensor([7.])
    """
    scale = 1 / (dims * math.log(2))
    return Estimate(-log_prob.value * scale - math.log2(width), log_prob.se * scale)


def _monte_carlo(
    statistic: _Statistic,
    x: Tensor,
    logsnr: Tensor,
    cond: Tensor | None,
    pairs: int,
    generator: torch.Generator | None,
) -> Estimate:
    """Mean of statistic(x, logsnr, ε, cond) over antithetic pairs: (batch, logsnr)."""
    if pairs < 2:
        raise ValueError(f"a standard error needs at least 2 pairs of noise, got {pairs}")
    if not torch.isfinite(logsnr).all():
        raise ValueError(f"logsnr must be finite, got {logsnr.tolist()}")
    many = torch.cat([x] * 2 * pairs)
    condition = None if cond is None else torch.cat([cond] * 2 * pairs)
    means, errors = [], []
    for value in logsnr.to(x):  # one noise level at a time bounds the memory
        eps = torch.randn(
            (pairs * len(x), *x.shape[1:]), generator=generator, dtype=x.dtype, device=x.device
        )
        draws = statistic(many, value.expand(len(many)), torch.cat([eps, -eps]), condition)
        draws = draws.reshape(2, pairs, len(x)).mean(0)
        means.append(draws.mean(0))
        errors.append(draws.std(0) / math.sqrt(pairs))
    return Estimate(torch.stack(means, 1), torch.stack(errors, 1))


def _panels(low: float, high: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the three-point Gauss–Legendre rule in panels at most 1 wide."""
    edges = np.linspace(low, high, max(1, math.ceil(high - low)) + 1)
    node, weight = np.polynomial.legendre.leggauss(3)
    half = np.diff(edges)[:, None] / 2
    nodes, weights = edges[:-1, None] + half * (1 + node), half * weight
    return x.new_tensor(nodes.ravel()), x.new_tensor(weights.ravel())


def _rule(grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, weights and the grid point that owns each, for ∫ m dλ from −∞ to points of a grid.

    Below the floor it is ∫ (m / SNR) dSNR over one panel: m / SNR has a limit there.
    """
    points, (node, weight) = grid.tolist(), np.polynomial.legendre.leggauss(3)
    start = min(points[0], _FLOOR)
    parts = [
        (grid.new_tensor(start + np.log((1 + node) / 2)), grid.new_tensor(weight / (1 + node)))
    ]
    parts += [_panels(*ends, grid) for ends in itertools.pairwise([start, *points])]
    nodes, weights = (torch.cat(part) for part in zip(*parts, strict=True))
    owner = [max(k - 1, 0) for k, part in enumerate(parts) for _ in part[0]]
    return nodes, weights, torch.tensor(owner, device=grid.device)
