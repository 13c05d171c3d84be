r"""What a network outputs: one pair (p, q) each, so that every conversion is the same 2×2 solve.

.. math::

    z = α x + σ ε, \qquad value = p x + q ε, \qquad D = α q - σ p

Two linear equations in (x, ε): any other value p′ x + q′ ε follows from z and the known one,

.. math:: value' = \frac{(p' q - q' p)\, z + D'\, value}{D},

and an error in the value is passed on by the factor D′/D alone: the whole table of error ratios.

======== ==================== ==================== ==============================================
name     p                    q                    meaning
======== ==================== ==================== ==============================================
x        1                    0                    clean
eps      0                    1                    unit Gaussian noise
v        −σ                   α                    velocity on the circle
score    0                    −1/σ                 gradient of log q(z | x)
flow     α′                   σ′                   u = dz/dt; ε − x where no derivative is given
F        σ / (s r)            −s α / r             EDM's, r = √(s² α² + σ²), s = ``sigma_data``
======== ==================== ==================== ==============================================

The usual slip is to take v for the velocity of any path: α ε − σ x is that of the circle (VP);
dz/dt in general is ``flow``.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.diffusion.logsnr import alpha_sigma
from neurodiff.diffusion.named import check_name


class _Path(NamedTuple):
    """Where z lies: its scales, their derivatives in t, and the standard deviation of the data."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor
    sigma_data: float


def _edm(path: _Path) -> tuple[Tensor, Tensor]:
    r = torch.hypot(path.sigma_data * path.alpha, path.sigma)
    return path.sigma / (path.sigma_data * r), -path.sigma_data * path.alpha / r


PAIRS: dict[str, Callable[[_Path], tuple[Tensor, Tensor]]] = {
    "x": lambda path: (torch.ones_like(path.alpha), torch.zeros_like(path.alpha)),
    "eps": lambda path: (torch.zeros_like(path.alpha), torch.ones_like(path.alpha)),
    "v": lambda path: (-path.sigma, path.alpha),
    "score": lambda path: (torch.zeros_like(path.alpha), -1 / path.sigma),
    "flow": lambda path: (path.d_alpha, path.d_sigma),
    "F": _edm,
}


def _path(
    logsnr: Tensor | None,
    alpha: Tensor | None,
    sigma: Tensor | None,
    d_alpha: Tensor | None,
    d_sigma: Tensor | None,
    sigma_data: float,
) -> _Path:
    if (alpha is None) != (sigma is None) or (d_alpha is None) != (d_sigma is None):
        raise ValueError("alpha and sigma go together, and so do d_alpha and d_sigma")
    if sigma_data <= 0:
        raise ValueError(
            f"sigma_data, the data's standard deviation, must be > 0, got {sigma_data}"
        )
    if alpha is not None and sigma is not None:
        scales = alpha, sigma
    elif logsnr is not None:
        scales = alpha_sigma(logsnr)
    else:
        raise ValueError("give logsnr (z in VP scaling), or alpha and sigma (any path)")
    if d_alpha is None or d_sigma is None:
        d_alpha, d_sigma = -torch.ones_like(scales[0]), torch.ones_like(scales[0])
    return _Path(*scales, d_alpha, d_sigma, sigma_data)


def _pair(name: str, path: _Path) -> tuple[Tensor, Tensor]:
    check_name("parameterization", PAIRS, name, {})
    return PAIRS[name](path)


def like(scale: Tensor, z: Tensor) -> Tensor:
    """A value per example, shaped to multiply ``z``: its axes are the leading ones of ``z``.

    Args:
        scale: (), (batch,), or any leading part of the shape of z, axes of length 1 included.
        z: (batch, ...).

    Raises:
        ValueError: the axes of ``scale`` are not the leading ones of ``z``.

    >>> like(torch.zeros(5), torch.zeros(5, 3, 3)).shape
    torch.Size([5, 1, 1])
    """
    shape = (*scale.shape, *(1,) * (z.ndim - scale.ndim))
    if any(n not in (1, m) for n, m in zip(shape, z.shape, strict=False)) or scale.ndim > z.ndim:
        raise ValueError(
            f"got shape {tuple(scale.shape)} beside z of shape {tuple(z.shape)}; wanted one value "
            "for all, or one per example: the leading axes of z"
        )
    return scale.reshape(shape)


def convert(
    value: Float[Tensor, "*shape"],
    source: str,
    target: str,
    *,
    z: Float[Tensor, "*shape"],
    logsnr: Float[Tensor, "..."] | None = None,
    alpha: Float[Tensor, "..."] | None = None,
    sigma: Float[Tensor, "..."] | None = None,
    d_alpha: Float[Tensor, "..."] | None = None,
    d_sigma: Float[Tensor, "..."] | None = None,
    sigma_data: float = 0.5,
) -> Float[Tensor, "*shape"]:
    """The same prediction in another parameterization: one 2×2 solve, for every ordered pair.

    .. math:: value' = [(p' q - q' p) z + (α q' - σ p') value] / (α q - σ p)

    Args:
        value: what is known, in the parameterization ``source``, (batch, ...).
        source: one of ``x, eps, v, score, flow, F``.
        target: likewise.
        z: the noisy value, of the same shape.
        logsnr: (), (batch,) or leading axes of z; z is then in VP scaling.
        alpha: the path's own scale of x, instead of VP's; with ``sigma``.
        sigma: the path's own scale of eps.
        d_alpha: dα/dt of the path, for ``flow``; −1 (straight path: u = ε − x) unless given.
        d_sigma: dσ/dt; 1 unless given.
        sigma_data: standard deviation of the data, for ``F``; EDM's own value is 0.5.

    Raises:
        ValueError: an unknown name, shapes that do not fit, half of a pair of arguments.

    References: Kingma & Gao 2023, appendix; Karras et al. 2022 for F.

    >>> z, logsnr = torch.tensor([0.8, -0.1]), torch.tensor([1.0, -1.0])
    >>> v = convert(torch.tensor([1.0, -1.0]), "x", "v", z=z, logsnr=logsnr)
    >>> convert(v, "v", "x", z=z, logsnr=logsnr).allclose(torch.tensor([1.0, -1.0]))
    True
    """
    if value.shape != z.shape:
        raise ValueError(f"value {tuple(value.shape)} and z {tuple(z.shape)} must have one shape")
    path = _path(logsnr, alpha, sigma, d_alpha, d_sigma, sigma_data)
    (p, q), (to_p, to_q) = _pair(source, path), _pair(target, path)
    if source == target:
        return value
    known, wanted = path.alpha * q - path.sigma * p, path.alpha * to_q - path.sigma * to_p
    return like((to_p * q - to_q * p) / known, z) * z + like(wanted / known, z) * value


def error_ratio(
    source: str,
    target: str,
    *,
    logsnr: Float[Tensor, "*grid"] | None = None,
    alpha: Float[Tensor, "*grid"] | None = None,
    sigma: Float[Tensor, "*grid"] | None = None,
    d_alpha: Float[Tensor, "*grid"] | None = None,
    d_sigma: Float[Tensor, "*grid"] | None = None,
    sigma_data: float = 0.5,
) -> Float[Tensor, "*grid"]:
    """Squared error in ``target`` per squared error in ``source``: (D′/D)², D = α q − σ p.

    Arguments as in :func:`convert`. With target ``eps`` this is what turns a squared error into the
    one that weightings multiply.

    >>> error_ratio("v", "eps", logsnr=torch.tensor(0.0))   # α²
    tensor(0.5000)
    """
    path = _path(logsnr, alpha, sigma, d_alpha, d_sigma, sigma_data)
    (p, q), (to_p, to_q) = _pair(source, path), _pair(target, path)
    ratio = (path.alpha * to_q - path.sigma * to_p) / (path.alpha * q - path.sigma * p)
    return ratio.square()
