r"""Local energy of an image at every level of what is done to it: the features of neurons that see.

.. math:: φ_{c,o}(x) = \log\Big(ε + \frac{1}{|c|} \sum_{r \in c} |(h_o * x)(r)|²\Big), \qquad
    \tilde h_o(f) = 2\,R(|f|)\, \max(0, \cos(\angle f - o))³

c is a cell of a grid over the image, o an orientation, and R the radial filter: |f|, which whitens
photographs, or one band of a steerable pyramid. Half a cycle a pixel is f and −f at once: there
:math:`\tilde h_o` is the mean over both signs, so that orientations of all gratings sum to 5/4, and
those of a mirrored image are the mirrored ones. A level is what comes before:

.. math:: φ(x; λ) = φ(\hat x(α x + σ ε, λ)), \qquad φ(x; s) = φ(G_s * x), \qquad
    φ(x; k) = φ(x) \text{ with } R = R_k

a noise level, with a denoiser that says what can be known of x there (the mean over ε is taken of
energies, before the logarithm); a blur; or a scale. Energy is not linear: with linear features, a
Gaussian image prior and fixed weights all three are one low-pass filter, and nothing could tell
them apart.

References:
    Simoncelli & Freeman 1995, the steerable pyramid; Adelson & Bergen 1985, energy.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.logsnr import diffuse
from neurodiff.diffusion.progress import progress

_FLOOR = 1e-6  # of energy, far below what 256 greys can show
_POWER = 3  # of the cosine: with four orientations energies sum to 5/4, whatever the angle


def whitening(frequency: Tensor) -> Tensor:
    """R = |f|, in cycles a pixel: photographs, whose power falls as 1/f², come out white."""
    return frequency


def band(centre: float) -> Callable[[Tensor], Tensor]:
    r"""R = cos(½ π log₂(|f|/centre)) within an octave to either side: a band of the pyramid.

    Args:
        centre: cycles a pixel.

    >>> band(0.25)(torch.tensor([0.125, 0.25, 0.5])).round(decimals=3).tolist()
    [0.0, 1.0, 0.0]
    """

    def radial(frequency: Tensor) -> Tensor:
        octaves = (frequency.clamp_min(1e-9) / centre).log2().clamp(-1.0, 1.0)
        return torch.cos(0.5 * math.pi * octaves)

    return radial


def local_energy(
    image: Float[Tensor, "*batch height width"],
    radial: Callable[[Tensor], Tensor] = whitening,
    orientations: int = 4,
    cells: int = 4,
) -> Float[Tensor, "*batch feature"]:
    """Energy of the image in each cell and orientation; before the logarithm.

    Args:
        image: any number of greys; mirrored at the edges.
        radial: |f| in cycles a pixel → gain.
        orientations: of ``f``, from 0 to π.
        cells: along each side.

    Returns:
        cells² × orientations values, the orientations of a cell together.

    >>> x = torch.linspace(0.0, 63.0, 64).mul(0.5 * torch.pi).sin().expand(64, 64)
    >>> found = local_energy(x, band(0.25))          # a grating at the centre of the band: 1
    >>> found.reshape(16, 4)[5].round(decimals=1).tolist()
    [1.0, 0.1, 0.0, 0.1]
    """
    side = image.shape[-2:]
    edge = min(16, *(s - 1 for s in side))
    flat = image.reshape(-1, 1, *side)
    padded = pad(flat, (edge,) * 4, mode="reflect")
    size = padded.shape[-2:]
    fy = torch.fft.fftfreq(size[0], dtype=image.dtype, device=image.device)[:, None]
    fx = torch.fft.fftfreq(size[1], dtype=image.dtype, device=image.device)
    radius = torch.hypot(fy, fx)
    turn = math.pi * torch.arange(orientations, dtype=image.dtype, device=image.device)
    turn = (turn / orientations)[:, None, None]
    ways = [
        ((x * turn.cos() + y * turn.sin()) / radius.clamp_min(1e-12)).clamp_min(0.0) ** _POWER
        for x in (fx, _other(fx))
        for y in (fy, _other(fy))
    ]
    gain = 2 * radial(radius) * torch.stack(ways).mean(0)
    response = torch.fft.ifft2(torch.fft.fft2(padded) * gain)
    inside = response[..., edge : edge + side[0], edge : edge + side[1]]
    energy = inside.real.square() + inside.imag.square()
    pooled = adaptive_avg_pool2d(energy, cells)
    return pooled.flatten(2).mT.reshape(*image.shape[:-2], -1)


def _other(frequency: Tensor) -> Tensor:
    """Half a cycle by its other sign; n/2 of an even n, and nothing of an odd one."""
    n = frequency.numel()
    return torch.where((2 * n * frequency.abs()).round() == n, -frequency, frequency)


def denoised_energy(
    denoiser: Denoiser,
    image: Float[Tensor, "stimulus 1 height width"],
    logsnr: Float[Tensor, " level"],
    *,
    pairs: int = 1,
    seed: int = 0,
    batch: int = 64,
) -> Float[Tensor, "stimulus level feature"]:
    r"""Log E φ(x̂(z_λ)): what a denoiser makes of each image at each noise level.

    The mean is over noise, ε and −ε; the noise of an image is the same at all levels, so that what
    differs between levels is the level.

    Args:
        denoiser: (z, logsnr) → E[x|z].
        image: in [-1, 1].
        logsnr: levels, nats a pixel.
        pairs: of noise for each image.
        seed: of the noise.
        batch: images a call; with several pairs the noise drawn depends on it.

    Returns:
        As :func:`local_energy`, its logarithm.

    Raises:
        ValueError: images that are not floats of one channel, finite and in [-1, 1].

    >>> from neurodiff.diffusion.prior import Gaussian
    >>> p = Gaussian(torch.zeros(1, 32, 32), 0.1 * torch.ones(1, 32, 32))
    >>> images = 0.3 * torch.randn(2, 1, 32, 32).tanh()
    >>> denoised_energy(p, images, torch.tensor([-4.0, 8.0])).shape
    torch.Size([2, 2, 64])
    """
    _grey(image)
    if image.numel() and image.abs().max() > 1:
        raise ValueError(
            f"got images from {image.min():g} to {image.max():g}; wanted them in [-1, 1], where "
            "denoisers know them: of 256 greys take 2 (x + 0.5) / 256 - 1"
        )
    g, rows = torch.Generator().manual_seed(seed), []
    with torch.no_grad(), progress(len(image), "denoising") as advance:
        for x in image.split(batch):
            total = torch.zeros(())
            for eps in torch.randn(pairs, *x.shape, generator=g, dtype=x.dtype):
                for noise in (eps, -eps):
                    total = total + torch.stack([
                        local_energy(denoiser(diffuse(x, noise, at), at)[:, 0])
                        for at in (level.expand(len(x)) for level in logsnr.to(x))
                    ], 1)  # fmt: skip
            rows.append((_FLOOR + total / (2 * pairs)).log())
            advance(len(x))
    return torch.cat(rows)


def blurred_energy(
    image: Float[Tensor, "stimulus 1 height width"], sd: Float[Tensor, " level"]
) -> Float[Tensor, "stimulus level feature"]:
    """Log φ(G_s * x): the same of images blurred by Gaussians, of s.d. ``sd`` in pixels.

    >>> blurred_energy(torch.randn(2, 1, 32, 32), torch.tensor([0.0, 2.0, 4.0])).shape
    torch.Size([2, 3, 64])
    """

    def radial(s: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda f: f * torch.exp(-2 * (math.pi * f * s) ** 2)

    _grey(image)
    levels = [local_energy(image[:, 0], radial(s)) for s in sd.to(image)]
    return (_FLOOR + torch.stack(levels, 1)).log()


def band_energy(
    image: Float[Tensor, "stimulus 1 height width"], centre: Float[Tensor, " level"]
) -> Float[Tensor, "stimulus level feature"]:
    """Log φ(x) in bands of a steerable pyramid, at ``centre`` cycles a pixel.

    >>> band_energy(torch.randn(2, 1, 32, 32), torch.tensor([0.06, 0.12, 0.25])).shape
    torch.Size([2, 3, 64])
    """
    _grey(image)
    levels = [local_energy(image[:, 0], band(c)) for c in centre.tolist()]
    return (_FLOOR + torch.stack(levels, 1)).log()


def _grey(image: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 1 or not image.is_floating_point():
        raise ValueError(
            f"got {image.dtype} images of shape {tuple(image.shape)}; wanted floats of shape "
            "(stimulus, 1, height, width): take the luma of colours, in [-1, 1]"
        )
    if (bad := ~torch.isfinite(image)).any():
        at = bad.nonzero()[0].tolist()
        raise ValueError(f"got {image[tuple(at)].item()} at {at} of the images; wanted numbers")
