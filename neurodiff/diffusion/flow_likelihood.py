r"""Log p(x) along the probability flow: change of variables, with an estimate of the trace.

.. math:: \log p(x) = \log N(z_1; 0, I) + d \log α_1
    + \tfrac12 \int_{λ_1}^{λ_0} \Big[d - α\, \mathrm{tr} \frac{\partial \hat x}{\partial z}\Big] dλ

along the path of DDIM in the limit of many steps, backwards from z = α x at the highest logsnr λ_0
to noise at the lowest, λ_1. In y = z/α the flow is :math:`dy/d\tilde σ = \hat ε`, whose
divergence is the bracket over :math:`\tilde σ = e^{-λ/2}`. Where the denoiser is exact this is the
density of x with noise of variance :math:`e^{-λ_0}` on it, and agrees with the estimate from
errors, :func:`~neurodiff.diffusion.likelihood.log_prob`; of a network they are densities of two
models.

References:
    Chen et al. 2018 and Grathwohl et al. 2019 for the trace; Song et al. 2021 for the flow.
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.likelihood import Estimate
from neurodiff.diffusion.logsnr import alpha
from neurodiff.diffusion.sample import heun, levels
from neurodiff.diffusion.schedule import NoiseSchedule


@torch.no_grad()
def flow_log_prob(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    *,
    schedule: NoiseSchedule,
    steps: int = 100,
    probes: int = 2,
    cond: Shaped[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Log p(x), (batch,), nats, by Heun's steps and Hutchinson's trace.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z], differentiable in z.
        x: (batch, ...).
        schedule: how steps are spread; its ends are those of the flow.
        steps: the error of the discretisation falls as their square, and is not in ``se``.
        probes: random signs at each level, whose mean of v'Jv is the trace; ``se`` is of them.
        cond: passed to the denoiser.
        generator: of the signs, on the device of x.

    Raises:
        ValueError: fewer than 2 probes.

    >>> import neurodiff as nd
    >>> from neurodiff.diffusion.prior import Gaussian
    >>> unit = Gaussian(torch.zeros(1), torch.ones(1))
    >>> value, se = flow_log_prob(unit, torch.zeros(1, 1), schedule=nd.schedule("cosine"))
    >>> round(value.item(), 2)      # −½ log 2π
    -0.92
    """
    if probes < 2:
        raise ValueError(f"a standard error needs at least 2 probes of the trace, got {probes}")
    logsnr = levels(schedule, steps).flip(0).to(x)
    d, z = x[0].numel(), alpha(logsnr[0]) * x
    traces, errors = [], []
    for now, then in [*pairwise(logsnr), (logsnr[-1], None)]:
        each = _trace(denoiser, z, now, cond, probes, generator)
        traces.append(d - alpha(now) * each.mean(0))
        errors.append(alpha(now) * each.std(0) / math.sqrt(probes))
        if then is not None:
            z = heun(denoiser, z, torch.stack([now, then]), cond)
    width = -logsnr.diff()
    weight = 0.25 * (torch.cat([width, width[:1] * 0]) + torch.cat([width[:1] * 0, width]))
    gained = weight @ torch.stack(traces)
    flat = z.reshape(len(z), -1)
    end = -0.5 * (flat.square() + math.log(2 * math.pi)).sum(1) + d * alpha(logsnr[-1]).log()
    return Estimate(end + gained, (weight.square() @ torch.stack(errors).square()).sqrt())


def _trace(
    denoiser: Denoiser,
    z: Tensor,
    logsnr: Tensor,
    cond: Tensor | None,
    probes: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "probe batch"]:
    """V' ∂x̂/∂z v of each probe."""
    shape = (probes, *z.shape)
    sign = torch.randint(0, 2, shape, generator=generator, device=z.device).to(z) * 2 - 1
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)
        x = denoiser(leaf, logsnr, cond)
        back = [torch.autograd.grad(x, leaf, v, retain_graph=True)[0] for v in sign]
    return (torch.stack(back) * sign).flatten(2).sum(2)
