r"""The coordinate: logsnr λ, and the scales of a noisy signal as functions of it.

.. math:: z = α x + σ ε, \qquad λ = \log(α^2/σ^2)

λ alone fixes α and σ up to one common factor, which no inference from z depends on; a *path* is a
choice of it. Larger λ is cleaner. Three paths:

===============  ==================  ==================  =========================================
``alpha_sigma``  α² = S(λ)           σ² = S(−λ)          variance preserving (VP), S the logistic
``straight``     α = S(λ/2)          σ = S(−λ/2)         α + σ = 1: flow matching, z = (1−t)x + tε
``exploding``    α = 1               σ = e^{−λ/2}        variance exploding (VE), EDM
===============  ==================  ==================  =========================================

With a second, independent noise ξ, z = αx + σε + σ_ξ ξ, variances add and λ becomes
λ* = log α²/(σ² + σ_ξ²): internal noise on top of external noise makes λ saturate.
"""

import torch
from torch import Tensor


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """The variance-preserving scales, α² + σ² = 1; each is accurate however small it is.

    Args:
        logsnr: any shape; ±inf gives (1, 0) and (0, 1).

    >>> [round(scale.item(), 6) for scale in alpha_sigma(torch.tensor(0.0))]
    [0.707107, 0.707107]
    """
    return alpha(logsnr), sigma(logsnr)


def alpha(logsnr: Tensor) -> Tensor:
    """The VP scale of the signal, √S(λ)."""
    return torch.nn.functional.logsigmoid(logsnr).mul(0.5).exp()


def sigma(logsnr: Tensor) -> Tensor:
    """The VP scale of the noise, √S(−λ)."""
    return alpha(-logsnr)


def straight(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """The scales of the straight path, α = 1 − t and σ = t with t = S(−λ/2).

    >>> [round(scale.item(), 6) for scale in straight(torch.tensor(0.0))]
    [0.5, 0.5]
    """
    return torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)


def exploding(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """The scales that leave the signal alone, α = 1 and σ = e^{−λ/2}.

    >>> [scale.item() for scale in exploding(torch.tensor(0.0))]
    [1.0, 1.0]
    """
    return torch.ones_like(logsnr), (-0.5 * logsnr).exp()


def from_scales(alpha: Tensor, sigma: Tensor) -> Tensor:
    """λ = log(α²/σ²), nats; +inf where σ = 0.

    >>> from_scales(torch.tensor(1.0), torch.tensor(0.0)).item()
    inf
    """
    return 2 * (alpha.log() - sigma.log())


def diffuse(x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """The noisy z = αx + σε on the VP path.

    Args:
        x: clean, (*batch, *event).
        eps: unit Gaussian noise, like x.
        logsnr: (*batch), one level an example; or any shape that broadcasts with x from the left.

    >>> diffuse(torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([0.0, torch.inf]))[1].tolist()
    [1.0, 1.0, 1.0]
    """
    level = logsnr.reshape(logsnr.shape + (1,) * (x.ndim - logsnr.ndim))
    return alpha(level) * x + sigma(level) * eps


def rescale(z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Put a z of any path on the VP path: z/√(α² + σ²) has the same logsnr.

    >>> rescale(torch.tensor(10.0), torch.tensor(3.0), torch.tensor(4.0)).item()
    2.0
    """
    return z / torch.hypot(alpha, sigma)


def with_extra_noise(alpha: Tensor, sigma: Tensor, sigma_xi: Tensor) -> tuple[Tensor, Tensor]:
    """λ* of z = αx + σε + σ_ξ ξ, and the share of ε in the noise that a denoiser sees.

    Only the sum σε + σ_ξ ξ is a Gaussian channel, at λ* = log α²/(σ² + σ_ξ²). If ε itself matters
    (as the endpoint of a coupling), E[ε|z] = share · E[unit noise|z], share = σ/√(σ² + σ_ξ²).

    Returns:
        λ* in nats, and the share in [0, 1]; both of the broadcast shape.

    >>> one, three, four = torch.tensor([1.0, 3.0, 4.0])
    >>> [round(v.item(), 3) for v in with_extra_noise(one, three, four)]
    [-3.219, 0.6]
    """
    total = torch.hypot(sigma, sigma_xi)
    return from_scales(alpha, total), sigma / total
