r"""Sampling: the flow from noise to x that a denoiser implies, and where to halt on it.

.. math::

    \frac{d}{dη} \frac{z}{σ} = e^{η}\, \hat x(z, λ), \qquad η = λ/2, \qquad
    z_s = \frac{σ_s}{σ_t} z_t + α_s (1 - e^{-h})\, \hat x, \quad h = η_s - η_t

The step on the right is DDIM: exact where x̂ stands still, the same for every path (scales only move
z), of first order. The others differ in what they put in the place of x̂. Sampling need not go
on to the end: ``stop`` halts it at a logsnr, or at one drawn for each sample from a stopping law,
and x̂ there is the percept of an observer that stops there.

A sampler is a function ``(denoiser, z, logsnr, cond, generator) → z``: z is at ``logsnr[0]`` to
begin with and at ``logsnr[-1]`` in the end, always in VP scaling. logsnr is (step + 1,), or
(step + 1, batch) where every sample has levels of its own.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.law import Law
from neurodiff.diffusion.logsnr import alpha, sigma
from neurodiff.diffusion.parameterization import like
from neurodiff.diffusion.schedule import NoiseSchedule

Sampler = Callable[[Denoiser, Tensor, Tensor, Tensor | None, torch.Generator | None], Tensor]
LOGSNR = (-13.3, 13.3)  # where sampling begins and ends: nothing of x, and 1e-3 of noise, are left


class Sample(NamedTuple):
    """Where sampling halted.

    Attributes:
        z: the noisy value there, (batch, ...).
        x: its denoised version, E[x|z]: what an observer who stops there takes x to be.
        logsnr: (batch,), nats.
    """

    z: Tensor
    x: Tensor
    logsnr: Tensor


def ddim(
    denoiser: Denoiser,
    z: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, "level *batch"],
    cond: Shaped[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch *event"]:
    """First order: x̂ stands still in each step; the Euler method of any path. Deterministic.

    References: Song, Meng & Ermon 2021.
    """
    for now, then in pairwise(logsnr.unbind()):
        z = step(z, denoiser(z, now, cond), now, then)
    return z


def ancestral(
    denoiser: Denoiser,
    z: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, "level *batch"],
    cond: Shaped[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch *event"]:
    r"""First order, with fresh noise in every step: DDPM.

    .. math:: z_s = \frac{α_s}{α_t} (z_t - σ_t c\, \hat ε) + σ_s \sqrt c\, ξ, \qquad
        c = 1 - e^{λ_t - λ_s}

    References: Ho, Jain & Abbeel 2020.
    """
    for now, then in pairwise(logsnr.unbind()):
        xi = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        z = renoised(z, denoiser(z, now, cond), xi, now, then)
    return z


def heun(
    denoiser: Denoiser,
    z: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, "level *batch"],
    cond: Shaped[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch *event"]:
    r"""Second order, two evaluations a step: the trapezoid of :math:`dy/d\tildeσ = \hat ε`.

    y = z/α and σ̃ = σ/α, as in EDM.

    References: Karras et al. 2022.
    """
    for now, then in pairwise(logsnr.unbind()):
        x = denoiser(z, now, cond)
        guess = step(z, x, now, then)
        eps = _eps(z, x, now) + _eps(guess, denoiser(guess, then, cond), then)
        gain, scale = alpha(then) / alpha(now), (-0.5 * then).exp() - (-0.5 * now).exp()
        z = like(gain, z) * z + like(0.5 * alpha(then) * scale, z) * eps
    return z


def dpm_solver(
    denoiser: Denoiser,
    z: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, "level *batch"],
    cond: Shaped[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch *event"]:
    """Second order, one evaluation a step: x̂ goes on as from the last step. DPM-Solver++(2M).

    It goes on half as far as the last step was long, or half of this one if that is shorter. The
    original goes half of this one, and errs more in 4 evaluations than in 2: the last step of the
    cosine schedule is then 6.6 times the one before. Its authors take a last step of first order.

    References: Lu et al. 2022.
    """
    last = before = None
    for now, then in pairwise(logsnr.unbind()):
        x = denoiser(z, now, cond)
        z = step(z, _midway(x, last, now, then, before), now, then)
        last, before = x, now
    return z


def taylor(order: int = 2, every: int = 2) -> Sampler:
    r"""DPM-Solver++(2M) with x̂ evaluated in one of ``every`` steps, and forecast in between.

    .. math:: \hat x_{k} = \sum_{i=0}^{m} \binom{k/N + i - 1}{i} \nabla^i \hat x

    by Newton and Gregory's backward differences :math:`\nabla^i` of the last m + 1 evaluations, N
    steps apart: the error of a forecast is of order m + 1 (with :math:`(k/N)^i/i!` in the place
    of the binomial, as it is often written, of order 2 whatever m). The first m N steps evaluate x̂
    each, or their error would be all that is left.

    Args:
        order: m, at least 0.
        every: N, at least 1.

    References: Liu et al. 2025 (TaylorSeer), for caching; Gregory 1670.

    Raises:
        ValueError: an order below 0, or ``every`` below 1.
    """
    if order < 0 or every < 1:
        raise ValueError(f"wanted order >= 0 and every >= 1, got {order} and {every}")

    def sampler(
        denoiser: Denoiser,
        z: Tensor,
        logsnr: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        differences: list[Tensor] = []
        last = before = None
        for k, (now, then) in enumerate(pairwise(logsnr.unbind())):
            if k % every == 0:
                newest = [denoiser(z, now, cond)]
                for old in differences[:order]:
                    newest.append(newest[-1] - old)
                differences = newest
            if k < order * every and k % every:
                x = denoiser(z, now, cond)
            else:
                x, factor = differences[0], 1.0
                for i, difference in enumerate(differences[1:]):
                    factor *= (k % every / every + i) / (i + 1)
                    x = x + factor * difference
            z = step(z, _midway(x, last, now, then, before), now, then)
            last, before = x, now
        return z

    return sampler


def adaptive(tolerance: float = 1e-3) -> Sampler:
    r"""Steps as long as the error allows: x̂ linear in η over a step, against x̂ standing still.

    .. math:: z_s = \text{DDIM} + α_s \frac{h - 1 + e^{-h}}{h} (\hat x_s - \hat x_t)

    Of the levels only the first and the last count; all samples share the steps, as parts of their
    own range of logsnr.

    Args:
        tolerance: of the difference of the two in a step, root mean square over a sample, largest
            of the batch.

    Raises:
        ValueError: a tolerance that is not above 0.
    """
    if not tolerance > 0:
        raise ValueError(f"wanted a tolerance above 0, got {tolerance}")

    def sampler(
        denoiser: Denoiser,
        z: Tensor,
        logsnr: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        first, whole = logsnr[0], logsnr[-1] - logsnr[0]
        done, length = 0.0, 0.02
        x = denoiser(z, first, cond)
        while done < 1.0:
            # a last step is not left to rounding
            length = 1.0 - done if done + 1.01 * length > 1.0 else length
            now, then = first + done * whole, first + (done + length) * whole
            h = 0.5 * (then - now)
            guess = step(z, x, now, then)
            ahead = denoiser(guess, then, cond)
            bend = torch.where(h > 0, (h + torch.expm1(-h)) / torch.where(h > 0, h, 1.0), 0.0)
            change = like(alpha(then) * bend, z) * (ahead - x)
            error = float(change.reshape(len(z), -1).square().mean(1).sqrt().max()) / tolerance
            if error <= 1.0:
                z, done = guess + change, done + length
                x = denoiser(z, then, cond) if done < 1.0 else x
            length *= min(5.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.5))
        return z

    return sampler


def step(z: Tensor, x: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """From logsnr ``now`` to ``then`` with x̂ standing still: (σ_s/σ_t) z + α_s (1 − e^−h) x̂."""
    gain = -torch.expm1(0.5 * (now - then)) * alpha(then)
    return like(sigma(then) / sigma(now), z) * z + like(gain, z) * x


def renoised(z: Tensor, x: Tensor, xi: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """A draw of z at logsnr ``then``, given z now, where x is x̂: the step of :func:`ancestral`."""
    c = -torch.expm1(now - then)
    # in terms of x̂, so that nothing cancels at high logsnr
    kept = like(alpha(then) / alpha(now) * (now - then).exp(), z) * z
    return kept + like(c * alpha(then), z) * x + like(sigma(then) * c.sqrt(), z) * xi


def _eps(z: Tensor, x: Tensor, logsnr: Tensor) -> Tensor:
    return (z - like(alpha(logsnr), z) * x) / like(sigma(logsnr), z)


def _midway(
    x: Tensor, last: Tensor | None, now: Tensor, then: Tensor, before: Tensor | None
) -> Tensor:
    """X̂ half a step ahead, on the line through the last two; a step of no length has no next.

    But no farther ahead than half of the step before: schedules end in a step several times as long
    as that, over which x̂ comes to rest. Where steps grow smoothly the order is still the second.
    """
    if last is None or before is None:
        return x
    h, gone = then - now, now - before
    ratio = torch.where(gone > 0, 0.5 * h / torch.where(gone > 0, gone, 1.0), 0.0).clamp_max(0.5)
    return x + like(ratio, x) * (x - last)


def levels(
    schedule: NoiseSchedule, steps: int, stop: float | Float[Tensor, "*batch"] | None = None
) -> Float[Tensor, "level *batch"]:
    """Levels from noise to ``stop`` at equal steps of the schedule's time, float64.

    Args:
        schedule: its logsnr, as far as it reaches between -13.3 and 13.3.
        steps: at least 1.
        stop: the last logsnr; or one for each sample, and levels (steps + 1, batch). As far as
            the schedule reaches, if not given.

    Raises:
        ValueError: fewer than 1 step, or a stop that the schedule does not reach.

    >>> import neurodiff as nd
    >>> levels(nd.schedule("cosine"), 2, stop=0.0).tolist()
    [-13.3, -1.7590894938865078, 0.0]
    """
    if steps < 1:
        raise ValueError(f"wanted at least 1 step, got {steps}")
    ends = schedule.logsnr(torch.tensor([1.0, 0.0], dtype=torch.float64))
    first, most = ends[0].clamp_min(LOGSNR[0]), ends[1].clamp_max(LOGSNR[1])
    last = most if stop is None else torch.as_tensor(stop, dtype=torch.float64)
    if not ((last >= first) & (last <= most)).all():
        raise ValueError(
            f"stop is {last.flatten()[0] if last.numel() == 1 else (last.min(), last.max())}; the "
            f"schedule reaches from {first:g} to {most:g} nats, wanted it in between"
        )
    share = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    begin, end = schedule.t(first), schedule.t(last)
    between = schedule.logsnr(torch.lerp(begin, end, share.reshape(-1, *(1,) * last.dim())))
    between[0], between[-1] = first, last
    # rounding must not turn a step of no length back: ancestral would draw noise of variance < 0
    return between.clamp(first, last).cummax(0).values


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    schedule: NoiseSchedule,
    steps: int = 50,
    sampler: Sampler = dpm_solver,
    stop: float | Law | None = None,
    cond: Shaped[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> Sample:
    """Samples, or percepts: where the way from noise to x halts.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z].
        shape: (batch, ...) of the samples.
        schedule: how steps are spread: equal in its time, whatever the path.
        steps: evaluations of the denoiser (half of them, for ``heun``), and one at the end.
        sampler: ``ddim``, ``ancestral``, ``heun``, ``dpm_solver``, ``taylor()``, ``adaptive()``.
        stop: a logsnr; or a stopping law, of which every sample draws its own. Draws beyond the
            ends of the schedule stop there, and so does what is not told to stop.
        cond: (batch, ...), passed to the denoiser.
        generator: of all noise, on the device of the denoiser's parameters.
        dtype: of the samples; torch's default.

    Raises:
        ValueError: fewer than 1 step, or a stop that the schedule does not reach.

    >>> import neurodiff as nd
    >>> from neurodiff.diffusion.prior import Binary
    >>> found = sample(Binary(), (1000,), schedule=nd.schedule("cosine"), stop=nd.laws.Logistic())
    >>> found.logsnr.shape, bool((found.x.abs() <= 1).all())
    (torch.Size([1000]), True)
    """
    device = next((p.device for p in denoiser.parameters()), None)
    z = torch.randn(tuple(shape), generator=generator, dtype=dtype, device=device)
    if isinstance(stop, Law):
        u = torch.rand(len(z), generator=generator, dtype=torch.float64, device=device).cpu()
        ends = levels(schedule, 1)
        stop_at = stop().isf(u.clamp(1e-12, 1 - 1e-12)).double().clamp(ends[0], ends[1])
    else:
        stop_at = stop
    logsnr = levels(schedule, steps, stop_at).to(z)
    z = sampler(denoiser, z, logsnr, cond, generator)
    last = logsnr[-1]
    return Sample(z, denoiser(z, last, cond), last.expand(len(z)))
