r"""The per-example weighted denoising loss, importance sampled over noise levels.

.. math::

    L_w(x) = ½ E_{t, ε}\Big[ \frac{w(λ)}{p(λ)} |\hat ε − ε|² \Big] = ½ ∫ w(λ) m(λ; x) dλ,
    \qquad t ∼ U(0, 1), \; p = −dt/dλ

The schedule decides how often a noise level is visited, the weighting how much it counts: another
schedule changes the variance, not the expectation, as long as it reaches the same logsnr. Sums over
dimensions (not means), with the ½: w = 1 is the ELBO. A plain loss c·E_t|ε̂ − ε|² has w = 2 c p.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.logsnr import diffuse
from neurodiff.diffusion.schedule import NoiseSchedule


def denoising_loss(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    *,
    weighting: Callable[[Tensor], Tensor],
    schedule: NoiseSchedule,
    cond: Shaped[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
    stratified: bool = False,
) -> Float[Tensor, " batch"]:
    """One unbiased draw of L_w(x) for every example, nats where w is 1.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z].
        x: clean examples, (batch, ...).
        weighting: w(logsnr), in the convention above; (batch, kind) if it has ``sizes``.
        schedule: where to look; gets no gradient.
        cond: passed to the denoiser.
        generator: of t and ε, on the device of x.
        stratified: whether the times of a batch are spread evenly, see :func:`look`.

    Returns:
        (batch,), to be averaged and differentiated.

    Raises:
        ValueError: the denoiser returns another shape than that of x.

    References: Kingma & Gao 2023.

    >>> import neurodiff as nd
    >>> from neurodiff.diffusion.prior import Binary
    >>> w, s = nd.weighting("elbo"), nd.schedule("cosine")
    >>> loss = denoising_loss(Binary(), torch.ones(100_000), weighting=w, schedule=s)
    >>> round(loss.mean().item(), 1)      # log 2
    0.7
    """
    logsnr, importance = look(x, schedule, generator, stratified)
    sizes = getattr(weighting, "sizes", None)
    error = squared_error(denoiser, x, logsnr, _normal(x, generator), cond, sizes)
    return 0.5 * importance * over_kinds(weighting(logsnr) * error)


def squared_error(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, " batch"],
    eps: Float[Tensor, "batch *event"],
    cond: Shaped[Tensor, "batch ..."] | None = None,
    sizes: Sequence[int] | None = None,
) -> Float[Tensor, "batch ..."]:
    """|ε̂ − ε|² at z = α x + σ ε, which is e^λ |x̂ − x|², summed over the event.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z].
        x: clean examples.
        logsnr: of each.
        eps: its noise.
        cond: passed to the denoiser.
        sizes: numbers of x, flattened, that are of each kind.

    Returns:
        (batch,); with ``sizes`` one error for each kind, (batch, kind).

    Raises:
        ValueError: the denoiser returns another shape than that of x, or sizes have another sum.
    """
    estimate = denoiser(diffuse(x, eps, logsnr), logsnr, cond)
    if estimate.shape != x.shape:
        raise ValueError(
            f"the denoiser returned {tuple(estimate.shape)} for x of shape {tuple(x.shape)}"
        )
    off = (estimate - x).reshape(len(x), -1).square()
    if sizes is None:
        return logsnr.exp() * off.sum(-1)
    if sum(sizes) != off.shape[1]:
        raise ValueError(
            f"kinds of {', '.join(map(str, sizes))} numbers are {sum(sizes)} in all, and one x has "
            f"{off.shape[1]}, of shape {tuple(x.shape[1:])}"
        )
    return logsnr.exp()[:, None] * torch.stack([k.sum(-1) for k in off.split([*sizes], 1)], -1)


def over_kinds(error: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    """Of (batch, kind) the sum over kinds; (batch,) is of one kind already."""
    return error.reshape(len(error), -1).sum(-1)


@torch.no_grad()
def look(
    x: Float[Tensor, "batch *event"],
    schedule: NoiseSchedule,
    generator: torch.Generator | None = None,
    stratified: bool = False,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """A logsnr for each example, at a uniform time, and 1/p of it.

    The expectation of the loss does not depend on the schedule, and the schedule gets no gradient.

    Args:
        x: (batch, ...), for its length, device and precision.
        schedule: of the times.
        generator: on the device of x.
        stratified: times (u + i/n) mod 1 with one uniform u: each is uniform, and together they
            miss nothing, so that the mean over a batch varies less.

    References: Kingma et al. 2021, for stratified times.
    """
    n, edge = len(x), torch.finfo(x.dtype).eps
    u = torch.rand(1 if stratified else n, generator=generator, dtype=x.dtype, device=x.device)
    t = (u + torch.arange(n, device=x.device) / n) % 1.0 if stratified else u
    # the open interval: most schedules are infinite at an end, where w / p is 0 / 0
    logsnr = schedule.logsnr(edge + (1 - 2 * edge) * t).to(x.dtype)
    return logsnr, (-schedule.log_density(logsnr)).exp().to(x.dtype)


def _normal(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
