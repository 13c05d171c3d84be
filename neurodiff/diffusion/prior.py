r"""Image priors p(x) whose denoiser is exact: what networks and estimates are held against.

.. math:: \hat x = E[x | z], \qquad p_λ(z) = ∫ N(z; α x, σ² I) p(x) dx

For a Gaussian each principal axis of variance u is shrunk by itself, x̂ = α u z / (α² u + σ²), and z
has variance α² u + σ² there; a mixture averages its components under their posterior probabilities;
the ±1 source gives tanh(α z / σ²). The word prior here means p(x): priors on parameters are
``inference/priors.py``.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import softplus

from neurodiff.diffusion.denoiser import Denoiser, per_example
from neurodiff.diffusion.logsnr import alpha_sigma
from neurodiff.diffusion.parameterization import like


class Prior(Denoiser):
    """An exact denoiser, with the density of the noisy z that it belongs to.

    An implementation gives ``_posterior`` and ``_draw`` and sets ``event``, the shape of one x.
    There is no condition: a class is a prior of its own.
    """

    event: torch.Size

    @abstractmethod
    def _posterior(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[x|z] and log p(z), for scales that are shaped to multiply z."""

    @abstractmethod
    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Independent draws of the clean x."""

    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "count *event"]:
        """Independent draws of the clean x."""
        return self._draw(count, generator)

    def forward(
        self,
        z: Float[Tensor, "batch *event"],
        logsnr: Float[Tensor, "..."],
        cond: Shaped[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """E[x|z].

        Raises:
            ValueError: z has not the prior's shape, or a condition was given.
        """
        if cond is not None:
            raise ValueError(f"{type(self).__name__} has no condition; use one prior a class")
        return self._posterior(z, *self._scales(z, logsnr))[0]

    def log_prob(
        self, z: Float[Tensor, "batch *event"], logsnr: Float[Tensor, "..."]
    ) -> Float[Tensor, " batch"]:
        """Log density of z in VP scaling, nats; at logsnr = ∞ that of x, where it has one."""
        return self._posterior(z, *self._scales(z, logsnr))[1]

    def _scales(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        if z.shape[1:] != self.event:
            raise ValueError(
                f"z has shape {tuple(z.shape)}; wanted (batch, *event), event {tuple(self.event)}"
            )
        alpha, sigma = alpha_sigma(per_example(logsnr, z))
        return like(alpha, z), like(sigma, z)


def _shrink(
    coordinate: Tensor, variance: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Posterior mean and log density of centred coordinates of z, along axes of these variances."""
    total = alpha.square() * variance + sigma.square()
    log_prob = -0.5 * (coordinate.square() / total + (2 * math.pi * total).log())
    return alpha * variance / total * coordinate, log_prob


def _axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Variances along the principal axes, and the axes as columns.

    Raises:
        ValueError: not symmetric, or not positive semi-definite.
    """
    if not torch.allclose(covariance, covariance.mT):
        raise ValueError("the covariance is not symmetric")
    variance, axes = torch.linalg.eigh(covariance)
    floor = -covariance.shape[-1] * torch.finfo(variance.dtype).eps * variance.abs().amax()
    if (variance < floor).any():
        raise ValueError(
            f"the covariance has a negative eigenvalue, {variance.min():.3g}; wanted none below 0"
        )
    return variance.clamp_min(0.0), axes


class Gaussian(Prior):
    r"""x ~ N(mean, covariance), of any shape, shrunk along the principal axes.

    Args:
        mean: of the shape of one x.
        covariance: (d, d) over the d numbers of an event laid flat, or of the shape of the mean:
            variances of independent numbers.

    >>> prior = Gaussian(torch.zeros(2), torch.tensor([1.0, 4.0]))
    >>> prior(torch.ones(1, 2), torch.tensor(0.0))     # √2 u / (u + 1)
    tensor([[0.7071, 1.1314]])
    """

    mean: Tensor
    variance: Tensor
    axes: Tensor | None

    def __init__(self, mean: Float[Tensor, "*event"], covariance: Float[Tensor, "..."]) -> None:
        super().__init__()
        self.event, size = mean.shape, mean.numel()
        if covariance.shape not in (mean.shape, (size, size)):
            raise ValueError(
                f"covariance {tuple(covariance.shape)} does not fit a mean of shape "
                f"{tuple(mean.shape)}; wanted ({size}, {size}), or the shape of the mean"
            )
        if covariance.shape == mean.shape:
            if (covariance < 0).any():
                raise ValueError(f"variances must not be negative, got {covariance.min():.3g}")
            variance, axes = covariance.flatten(), None
        else:
            variance, axes = _axes(covariance)
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)
        self.register_buffer("axes", axes)

    def _posterior(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        scales = alpha.reshape(-1, 1), sigma.reshape(-1, 1)
        coordinate = (z - alpha * self.mean).reshape(len(z), -1)
        coordinate = coordinate if self.axes is None else coordinate @ self.axes
        shrunk, log_prob = _shrink(coordinate, self.variance, *scales)
        shrunk = shrunk if self.axes is None else shrunk @ self.axes.mT
        return self.mean + shrunk.reshape(z.shape), log_prob.sum(-1)

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        coordinate = self.variance.sqrt() * _randn(
            (count, len(self.variance)), self.mean, generator
        )
        flat = coordinate if self.axes is None else coordinate @ self.axes.mT
        return self.mean + flat.reshape(count, *self.event)


class PowerLaw(Prior):
    """Stationary Gaussian images (or signals) of spectrum S(f) ∝ f^−exponent, periodic, of mean 0.

    The axes are the Fourier basis, real: the Hartley transform Re F − Im F is orthonormal and its
    own inverse. Frequency 0 has the power of the lowest other one.

    Args:
        shape: of one x: (height, width), or (length,).
        exponent: of the power spectrum; 2 is the 1/f amplitude of natural images, 0 is white.
        variance: of one pixel.

    References: Field 1987.

    >>> PowerLaw((8, 8)).log_prob(torch.zeros(1, 8, 8), torch.tensor(-torch.inf))   # N(0, I)
    tensor([-58.8121])
    """

    spectrum: Tensor

    def __init__(self, shape: Sequence[int], exponent: float = 2.0, variance: float = 1.0) -> None:
        super().__init__()
        if not shape or max(shape) < 2 or variance <= 0:
            raise ValueError(f"wanted a shape and a positive variance, got {shape} and {variance}")
        self.event = torch.Size(shape)
        grid = torch.meshgrid(*(torch.fft.fftfreq(n) for n in shape), indexing="ij")
        frequency = torch.stack(grid).square().sum(0).sqrt().clamp_min(1 / max(shape))
        spectrum = frequency**-exponent
        self.register_buffer("spectrum", variance * spectrum / spectrum.mean())

    def _posterior(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        shrunk, log_prob = _shrink(self._hartley(z), self.spectrum, alpha, sigma)
        return self._hartley(shrunk), log_prob.flatten(1).sum(-1)

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        white = _randn((count, *self.event), self.spectrum, generator)
        return self._hartley(self.spectrum.sqrt() * white)

    def _hartley(self, value: Tensor) -> Tensor:
        fourier = torch.fft.fftn(value, dim=tuple(range(1, value.ndim)), norm="ortho")
        return fourier.real - fourier.imag


class GaussianMixture(Prior):
    """x ~ Σ_k weight_k N(mean_k, covariance_k), a vector.

    Args:
        weights: (component), positive; divided by their sum.
        means: (component, d).
        covariances: (component, d, d), or (component, d): variances of independent numbers.

    >>> prior = GaussianMixture(torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1))
    >>> prior(torch.tensor([[1.0]]), torch.tensor(0.0))      # tanh(α z / σ²)
    tensor([[0.8884]])
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor | None

    def __init__(
        self,
        weights: Float[Tensor, " component"],
        means: Float[Tensor, "component d"],
        covariances: Float[Tensor, "component d d"] | Float[Tensor, "component d"],
    ) -> None:
        super().__init__()
        if not (weights > 0).all():
            raise ValueError(f"weights must be positive, got {weights.min():.3g}")
        full = covariances.ndim == 3
        variances, axes = _axes(covariances) if full else (covariances, None)
        if (variances < 0).any():
            raise ValueError(f"variances must not be negative, got {variances.min():.3g}")
        self.event = means.shape[1:]
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("variances", variances)
        self.register_buffer("axes", axes)

    def _posterior(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = alpha[:, None], sigma[:, None]
        coordinate = self._rotate(z[:, None] - alpha * self.means, back=False)
        shrunk, log_prob = _shrink(coordinate, self.variances, alpha, sigma)
        joint = self.weights.log() + log_prob.sum(-1)
        each = self.means + self._rotate(shrunk, back=True)
        return (joint.softmax(-1)[..., None] * each).sum(1), joint.logsumexp(-1)

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        white = _randn((count, *self.event), self.means, generator)
        coordinate = self.variances[which].sqrt() * white
        if self.axes is not None:
            coordinate = (self.axes[which] @ coordinate[..., None])[..., 0]
        return self.means[which] + coordinate

    def _rotate(self, value: Tensor, *, back: bool) -> Tensor:
        if self.axes is None:
            return value
        return torch.einsum("kde,nke->nkd" if back else "kde,nkd->nke", self.axes, value)


class Binary(Prior):
    r"""The ±1 source: every number of x is −1 or 1, equally likely and independent.

    .. math:: \hat x = \tanh(α z / σ²)

    Args:
        shape: of one x; () for a single number.

    >>> Binary()(torch.tensor([1.0]), torch.tensor(0.0))     # tanh √2
    tensor([0.8884])
    """

    def __init__(self, shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.event = torch.Size(shape)

    def _posterior(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        drift, variance = alpha * z / sigma.square(), sigma.square()
        nearest = -0.5 * ((z.abs() - alpha).square() / variance + (2 * math.pi * variance).log())
        log_prob = nearest + softplus(-2 * drift.abs()) - math.log(2)
        return drift.tanh(), log_prob.reshape(len(z), -1).sum(-1)

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        device = None if generator is None else generator.device
        return torch.randn((count, *self.event), generator=generator, device=device).sign()


class Empirical(Prior):
    r"""x is one of the examples of a data set, equally likely: the denoiser that only remembers.

    .. math:: \hat x = Σ_i softmax_i(−½ e^λ |z/α − x_i|²) x_i

    Defined for finite logsnr: at ∞ the density is a sum of atoms.

    Args:
        data: (example, ...).

    >>> Empirical(torch.tensor([-1.0, 1.0]))(torch.tensor([1.0]), torch.tensor(0.0))
    tensor([0.8884])
    """

    data: Tensor

    def __init__(self, data: Float[Tensor, "example *event"]) -> None:
        super().__init__()
        if len(data) == 0:
            raise ValueError("an empirical prior needs at least one example, got none")
        self.event = data.shape[1:]
        self.register_buffer("data", data)

    def _posterior(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        examples, scaled = self.data.reshape(len(self.data), -1), (z / alpha).reshape(len(z), -1)
        # differences, not |a|² − 2ab + |b|²: the distances cancel where e^λ is large
        distance = torch.cdist(scaled, examples, compute_mode="donot_use_mm_for_euclid_dist")
        snr = (alpha / sigma).square().reshape(-1, 1)
        joint = -0.5 * snr * distance.square() - math.log(len(examples))
        constant = 0.5 * examples.shape[1] * (2 * math.pi * sigma.square()).log().reshape(-1)
        mean = (joint.softmax(-1) @ examples).reshape(z.shape)
        return mean, joint.logsumexp(-1) - constant

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        many, device = len(self.data), self.data.device
        return self.data[torch.randint(many, (count,), generator=generator, device=device)]


def _randn(shape: Sequence[int], as_in: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=as_in.dtype, device=as_in.device)
