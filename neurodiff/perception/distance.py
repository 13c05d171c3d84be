r"""How far apart two stimuli are for an observer who stops at λ.

.. math:: D_λ(x, x') = e^λ\, E_ε\, |\hat x(α x + σ ε) - \hat x(α x' + σ ε)|²

What is compared is what can be known of each stimulus at λ, in units of the noise there; what a
denoiser takes away, both stimuli lose. Noise is shared by all stimuli, so that a difference is one
of stimuli. For a linear denoiser D is a quadratic form in x − x', a filter; a learned one makes of
it a metric that depends on where the stimuli are. A blur in place of noise is the rival,
|G_s * x − G_s * x'|².

References:
    Ohayon et al. 2025 (distances of scores, integrated up to one noise level).
"""

import torch
import xarray as xr
from jaxtyping import Float, Shaped
from torch import Tensor

from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.logsnr import diffuse
from neurodiff.diffusion.progress import progress


def distances(
    denoiser: Denoiser,
    stimuli: Shaped[Tensor, "stimulus *event"],
    logsnr: Float[Tensor, " logsnr"],
    *,
    pairs: int = 2,
    seed: int = 0,
    batch: int = 128,
) -> xr.Dataset:
    """Distances between all pairs of stimuli, at each noise level.

    Args:
        denoiser: (z, logsnr) → E[x|z].
        stimuli: x, on the scale that the denoiser knows: of images [-1, 1].
        logsnr: levels, nats.
        pairs: of noise, ε and −ε; at least 2 for a standard error.
        seed: of the noise.
        batch: stimuli a call, which bounds the memory of the denoiser.

    Returns:
        ``distance`` and its Monte-Carlo standard error ``se`` (stimulus, other, logsnr); squared,
        summed over the event.

    Raises:
        ValueError: fewer than 2 pairs, or stimuli that are not floats or not finite.

    >>> from neurodiff.diffusion.prior import Gaussian
    >>> p = Gaussian(torch.zeros(3), torch.ones(3))
    >>> found = distances(p, torch.eye(3)[:2], torch.tensor([0.0]))
    >>> round(float(found["distance"][0, 1, 0]), 4)         # e^λ sig(λ)² |x − x'|², exactly
    0.5
    """
    if pairs < 2:
        raise ValueError(f"got pairs={pairs}, wanted at least 2: the standard error needs them")
    if not stimuli.is_floating_point():
        raise ValueError(f"got stimuli of {stimuli.dtype}, wanted floats, of images in [-1, 1]")
    if (bad := ~torch.isfinite(stimuli)).any():
        at = bad.nonzero()[0].tolist()
        raise ValueError(f"got {stimuli[tuple(at)].item()} at {at} of the stimuli, wanted numbers")
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(pairs, *stimuli.shape[1:], generator=g, dtype=stimuli.dtype)
    means, errors = [], []
    with torch.no_grad(), progress(len(logsnr), "distances") as advance:
        for level in logsnr.to(stimuli):
            found = torch.stack([
                (_apart(denoiser, stimuli, level, eps, batch)
                 + _apart(denoiser, stimuli, level, -eps, batch)) / 2
                for eps in noise
            ])  # fmt: skip
            means.append(found.mean(0))
            errors.append(found.std(0) / pairs**0.5)
            advance(1)
    dims = ("stimulus", "other", "logsnr")
    return xr.Dataset(
        {
            "distance": (dims, torch.stack(means, -1).numpy()),
            "se": (dims, torch.stack(errors, -1).numpy()),
        },
        {"logsnr": logsnr.numpy()},
    )


def _apart(denoiser: Denoiser, x: Tensor, level: Tensor, eps: Tensor, batch: int) -> Tensor:
    """e^λ |x̂ − x̂'|² of all pairs under one noise."""
    known = torch.cat([
        denoiser(diffuse(some, eps.expand(some.shape), at), at).flatten(1)
        for some in x.split(batch)
        for at in [level.expand(len(some))]
    ])  # fmt: skip
    # differences of what is near are lost in single precision, and by the square of a sum
    return level.exp() * torch.cdist(known.double(), known.double(), compute_mode=_DIRECT).square()


_DIRECT = "donot_use_mm_for_euclid_dist"
