r"""How far two denoisers are apart: likelihood ratios of one x, and score divergences over many.

.. math::

    L_w^a(x) - L_w^b(x) = ½ ∫ w(λ)\, [m^a(λ; x) - m^b(λ; x)]\, dλ
    \;\overset{w = 1}{=}\; \log \frac{p_b(x)}{p_a(x)}, \qquad
    \hat r_N = \exp\Big(\frac1N \sum_{i=1}^N d_i\Big), \quad d_i = l^a_i - l^b_i

    D_w(P, Q) = ½ E_{x ∼ P} ∫ w(λ)\, E|\hat ε_P - \hat ε_Q|^2\, dλ
    \;\overset{w = 1}{=}\; KL(P ‖ Q)

Both losses of a ratio are taken at the *same* looks (λ_i, ε_i), so that most of the noise cancels.
The ratio is one of densities for w = 1 only; under another w, log r is the expectation of a log
ratio at a random stop (where w falls) or no log ratio at all (where it rises, as that of FPO's
published policies does). r̂_N exceeds e^{E d} in expectation, by Jensen's inequality, and falls to
it: since looks are independent, :math:`E \hat r_N = (E e^{d/N})^N` exactly.

With times uniform on a schedule, the divergence of scores E_t|∇log p_P − ∇log p_Q|² of z in VP
scaling is D_w with w = 2 p(λ)(1 + e^λ): ``smiling`` of the zoo for the cosine schedule. A
discriminator between two labels takes :func:`losses` twice, with one condition and the other, at
the same looks; a cost c(x) of a state, the squared error of one score less that of another's, is
the difference of two such losses too, and its mean over x ∼ P where the second is P's own score is
D_w.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.likelihood import Estimate
from neurodiff.diffusion.logsnr import diffuse
from neurodiff.diffusion.loss import look, squared_error
from neurodiff.diffusion.schedule import NoiseSchedule


class Looks(NamedTuple):
    """Where a loss is evaluated: what is stored, so that another denoiser is held to the same.

    Attributes:
        logsnr: (batch, look), nats.
        importance: 1/p of each, (batch, look).
        eps: (batch, look, ...).
    """

    logsnr: Float[Tensor, "batch look"]
    importance: Float[Tensor, "batch look"]
    eps: Float[Tensor, "batch look *event"]

    def at(self, which: Tensor | slice) -> "Looks":
        """Those of some of the examples."""
        return Looks(*(value[which] for value in self))


@torch.no_grad()
def looks(
    x: Float[Tensor, "batch *event"],
    schedule: NoiseSchedule,
    count: int,
    generator: torch.Generator | None = None,
    stratified: bool = False,
) -> Looks:
    """Several logsnr and ε for each example, at uniform times.

    Args:
        x: (batch, ...), for its shape, device and precision.
        schedule: of the times.
        count: looks for each example.
        generator: of times and ε, on the device of x.
        stratified: whether the times of an example are 1/count apart (and those of a batch as even
            as that allows, see :func:`~neurodiff.diffusion.loss.look`): less variance, and looks
            that are not independent.

    Raises:
        ValueError: a count below 1.

    >>> import neurodiff as nd
    >>> looks(torch.zeros(5, 3), nd.schedule("flow"), 8).eps.shape
    torch.Size([5, 8, 3])
    """
    if count < 1:
        raise ValueError(f"wanted at least 1 look for each example, got {count}")
    # look-major: evenly spread times are then 1/count apart within one example
    many = x.expand(count, *x.shape).flatten(0, 1)
    logsnr, importance = look(many, schedule, generator, stratified)
    eps = torch.randn(
        (len(x), count, *x.shape[1:]), generator=generator, dtype=x.dtype, device=x.device
    )
    return Looks(logsnr.reshape(count, -1).mT, importance.reshape(count, -1).mT, eps)


def losses(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    seen: Looks,
    *,
    weighting: Callable[[Tensor], Tensor],
    cond: Shaped[Tensor, "batch ..."] | None = None,
) -> Float[Tensor, "batch look"]:
    """½ w/p |ε̂ − ε|² at each look, whose mean over looks estimates L_w(x), nats where w is 1.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z].
        x: clean examples.
        seen: the looks, of :func:`looks`.
        weighting: w(logsnr).
        cond: of each example, passed to the denoiser.

    Raises:
        ValueError: the denoiser returns another shape than that of x.

    >>> import neurodiff as nd
    >>> from neurodiff.diffusion.prior import Gaussian
    >>> x, w = torch.zeros(2, 1), nd.weighting("elbo")
    >>> seen = looks(x, nd.schedule("flow"), 4)
    >>> losses(Gaussian(torch.zeros(1), torch.ones(1)), x, seen, weighting=w).shape
    torch.Size([2, 4])
    """
    many, given = _each(x, seen), None if cond is None else _each(cond, seen)
    level = seen.logsnr.flatten()
    error = squared_error(denoiser, many, level, seen.eps.flatten(0, 1), given)
    weighted = 0.5 * seen.importance.flatten() * weighting(level) * error
    return weighted.reshape(seen.logsnr.shape)


def likelihood_ratio(
    old: Float[Tensor, "batch look"], new: Float[Tensor, "batch look"], limit: float = math.inf
) -> Float[Tensor, " batch"]:
    """Of densities new to old, exp of the mean over looks of L_old − L_new.

    Args:
        old: losses of the old denoiser.
        new: of the new one, at the same looks.
        limit: of the size of log r̂, beyond which it is held, without a gradient: a rare look of
            large 1/p overflows otherwise.

    References: McAllister et al. 2025 (FPO).

    >>> likelihood_ratio(torch.full((1, 8), math.log(3.0)), torch.zeros(1, 8))
    tensor([3.0000])
    """
    return (old - new).mean(1).clamp(-limit, limit).exp()


class Ratio(NamedTuple):
    """What an estimator of a ratio from a few looks amounts to; each (batch,).

    Attributes:
        limit: e^{E d}, which it tends to with many looks.
        mean: its expectation.
        sd: its standard deviation; infinite where E e^{2d/N} is.
    """

    limit: Float[Tensor, " batch"]
    mean: Float[Tensor, " batch"]
    sd: Float[Tensor, " batch"]


def of_few_looks(difference: Float[Tensor, "batch look"], count: int) -> Ratio:
    r"""Bias and spread of :func:`likelihood_ratio` from ``count`` independent looks.

    .. math:: E \hat r_N = (E e^{d/N})^N, \qquad E \hat r_N^2 = (E e^{2d/N})^N, \qquad
        E \hat r_N - r \approx \frac{r}{2N} \mathrm{Var}\, d

    Expectations are means over the looks at hand, of which there should be many more than
    ``count``: what rare looks contribute (e^d has heavy tails for few looks) is seen only where
    there are such.

    Args:
        difference: d = L_old − L_new at many independent looks.
        count: N.

    Raises:
        ValueError: a count below 1.

    >>> found = of_few_looks(torch.tensor([[-1.0, 0.0, 1.0]]), 1)      # mean of e^d
    >>> [round(v.item(), 4) for v in found]
    [1.0, 1.3621, 0.9931]
    """
    if count < 1:
        raise ValueError(f"wanted at least 1 look, got {count}")
    many = math.log(difference.shape[1])
    log_first = count * ((difference / count).logsumexp(1) - many)
    log_second = count * ((2 * difference / count).logsumexp(1) - many)
    # Var = E² (e^{log E r² − 2 log E r} − 1), which does not cancel
    sd = log_first.exp() * torch.expm1((log_second - 2 * log_first).clamp_min(0.0)).sqrt()
    return Ratio(difference.mean(1).exp(), log_first.exp(), sd)


@torch.no_grad()
def score_divergence(
    p: Denoiser,
    q: Denoiser,
    x: Float[Tensor, "batch *event"],
    *,
    weighting: Callable[[Tensor], Tensor],
    schedule: NoiseSchedule,
    count: int = 8,
    generator: torch.Generator | None = None,
) -> Estimate:
    """D_w(P, Q), in nats where w is 1 (then it is KL(P‖Q), between the ends of the schedule).

    Args:
        p: denoiser of P.
        q: denoiser of Q.
        x: independent draws of P, at least 2.
        weighting: w(logsnr); ``smiling`` on the cosine schedule for a plain norm of scores.
        schedule: of the looks.
        count: looks for each x.
        generator: of the looks, on the device of x.

    Returns:
        () value, and its standard error over x and looks together. Draws of x that are not
        independent (states of one trajectory) have a larger one.

    Raises:
        ValueError: fewer than 2 draws, or denoisers that return another shape than that of x.

    References: Wu et al. 2024 (SMILING), for D_DS; Kong, Brekelmans & Ver Steeg 2023, for w = 1.

    >>> import neurodiff as nd
    >>> from neurodiff.diffusion.prior import Gaussian
    >>> p, q = (Gaussian(m * torch.ones(1), torch.ones(1)) for m in (0.0, 1.0))
    >>> w, s = nd.weighting("elbo"), nd.schedule("cosine")
    >>> value, se = score_divergence(p, q, p.sample(4000), weighting=w, schedule=s)
    >>> bool((value - 0.5).abs() < 4 * se)      # KL of unit Gaussians one apart
    True
    """
    if len(x) < 2:
        raise ValueError(f"a standard error needs at least 2 draws of P, got {len(x)}")
    seen = looks(x, schedule, count, generator)
    many, level = _each(x, seen), seen.logsnr.flatten()
    z = diffuse(many, seen.eps.flatten(0, 1), level)
    found = p(z, level), q(z, level)
    for name, estimate in zip("PQ", found, strict=True):
        if estimate.shape != z.shape:
            raise ValueError(
                f"the denoiser of {name} returned {tuple(estimate.shape)} for z of {tuple(z.shape)}"
            )
    # |ε̂_P − ε̂_Q|² = e^λ |x̂_P − x̂_Q|²
    apart = level.exp() * (found[0] - found[1]).reshape(len(z), -1).square().sum(-1)
    draws = 0.5 * seen.importance.flatten() * weighting(level) * apart
    each = draws.reshape(seen.logsnr.shape).mean(1)
    return Estimate(each.mean(), each.std() / math.sqrt(len(each)))


def _each(value: Tensor, seen: Looks) -> Tensor:
    """Every example once for each of its looks."""
    return value.repeat_interleave(seen.logsnr.shape[1], 0)
