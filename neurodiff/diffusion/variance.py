r"""The diffusion term of the ELBO from few network evaluations.

.. math:: \tfrac12 \int m(λ; x)\, dλ =
    E\Big[\frac{\hat m - b(λ) (\hat m_{ref} - m_{ref}) - c(λ)\, m_{ref}}{2\, p(λ)}\Big]
    + \tfrac12 \int c(λ)\, m_{ref}(λ; x)\, dλ

:math:`\hat m` is the error of the network on one ε, or on a pair ε, −ε, and
:math:`\hat m_{ref}` that of a Gaussian prior on the same noise, which costs nothing and whose
expectation over the noise is known,

.. math:: m_{ref}(λ; x) = \sum_i e^{λ} \frac{(x_i - μ_i)^2 + e^{λ} u_i^2}{(1 + u_i e^{λ})^2},

i along the axes of its covariance, u its variances. So b takes away what the noise does, and c what
tells examples apart. Both and p are learned from a pilot, on other examples: b and c by regression
in each bin, and p ∝ the root mean square of what is left. Times are spread evenly over a batch.
The estimate is unbiased whatever b, c and p are.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from neurodiff.diffusion.adaptive import AdaptiveSchedule
from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.loss import look, squared_error
from neurodiff.diffusion.prior import Gaussian
from neurodiff.diffusion.schedule import NoiseSchedule


class Control(NamedTuple):
    """A Gaussian whose error is subtracted, and how much of it in each bin of logsnr.

    Attributes:
        reference: the Gaussian.
        edges: (bin + 1,).
        share: b and c of each bin, (2, bin).
    """

    reference: Gaussian
    edges: Float[Tensor, " edge"]
    share: Float[Tensor, "2 bin"]

    def rest(self, own: Tensor, other: Tensor, known: Tensor, logsnr: Tensor) -> Tensor:
        """What is left of errors: the network's, the reference's, and its expectation."""
        b, c = self.share[:, torch.bucketize(logsnr.to(self.edges), self.edges[1:-1])].to(own)
        return own - b * (other - known) - c * known

    def integral(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """½ ∫ c m_ref dλ of each x, by three nodes in a bin."""
        node, weight = np.polynomial.legendre.leggauss(3)
        half = self.edges.diff()[:, None] / 2
        nodes = (self.edges[:-1, None] + half * (1 + half.new_tensor(node))).flatten().to(x)
        weights = (half * half.new_tensor(weight) * self.share[1, :, None]).flatten().to(x)
        many = x[:, None].expand(-1, len(nodes), *x.shape[1:]).flatten(0, 1)
        m = gaussian_error(self.reference, many, nodes.repeat(len(x)))
        return 0.5 * m.reshape(len(x), -1) @ weights


def gaussian_error(
    reference: Gaussian, x: Float[Tensor, "batch *event"], logsnr: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """The expected error of a Gaussian's denoiser at each x, in closed form, over the noise.

    >>> unit = Gaussian(torch.zeros(1), torch.ones(1))
    >>> gaussian_error(unit, torch.ones(1, 1), torch.zeros(1))      # (1 + 1) / 2²
    tensor([0.5000])
    """
    off = (x - reference.mean).reshape(len(x), -1)
    off = off if reference.axes is None else off @ reference.axes
    snr, u = logsnr.exp()[:, None], reference.variance
    return (snr * (off.square() + snr * u.square()) / (1 + u * snr).square()).sum(1)


@torch.no_grad()
def error_draws(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, " batch"],
    *,
    antithetic: bool = True,
    cond: Shaped[Tensor, "batch ..."] | None = None,
    reference: Gaussian | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The error of a network, and of a reference (0 without one), on the same noise.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z].
        x: (batch, ...).
        logsnr: (batch,).
        antithetic: the mean over ε and −ε, two evaluations; or one.
        cond: passed to the denoiser.
        reference: the Gaussian.
        generator: of the noise, on the device of x.
    """
    eps = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    pair = [eps, -eps] if antithetic else [eps]
    own = torch.stack([squared_error(denoiser, x, logsnr, e, cond) for e in pair]).mean(0)
    if reference is None:
        return own, torch.zeros_like(own)
    return own, torch.stack([squared_error(reference, x, logsnr, e) for e in pair]).mean(0)


def pilot(
    denoiser: Denoiser,
    x: Float[Tensor, "example *event"],
    reference: Gaussian | None,
    *,
    logsnr_min: float = -13.3,
    logsnr_max: float = 13.3,
    draws: int = 20_000,
    bins: int = 64,
    antithetic: bool = True,
    cond: Shaped[Tensor, "example ..."] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[AdaptiveSchedule, Control | None]:
    """Learn where to look and how much of a reference to subtract.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z].
        x: examples other than those whose ELBO is wanted.
        reference: a Gaussian, such as that of the training data; None for none.
        logsnr_min: where the integral begins.
        logsnr_max: where it ends.
        draws: looks, spread evenly over logsnr.
        bins: of equal width.
        antithetic: as in :func:`error_draws`.
        cond: passed to the denoiser.
        generator: on the device of x.
    """
    schedule = AdaptiveSchedule(logsnr_min, logsnr_max, bins=bins, rate=0.0).to(x.device)
    some = torch.randint(len(x), (draws,), generator=generator, device=x.device)
    clean, given = x[some], None if cond is None else cond[some]
    logsnr, _ = look(clean, schedule, generator, stratified=True)
    parts = []
    for rows in torch.arange(draws, device=x.device).split(1000):
        at = None if given is None else given[rows]
        parts.append(error_draws(denoiser, clean[rows], logsnr[rows], antithetic=antithetic,
                                 cond=at, reference=reference, generator=generator))  # fmt: skip
    own, other = (torch.cat(part).double() for part in zip(*parts, strict=True))
    control = None
    if reference is not None:
        known = gaussian_error(reference, clean, logsnr).double()
        share = _regressed(own, torch.stack([other - known, known], 1), schedule.seen.bin(logsnr))
        control = Control(reference, schedule.seen.edges, share)
        own = control.rest(own, other, known, logsnr)
    # each draw counts for the bins about it too: errors can be rare and large where most are small
    near = (logsnr_max - logsnr_min) / bins * torch.arange(-2, 3).to(logsnr)
    schedule.update((logsnr[:, None] + near).flatten(), own.repeat_interleave(len(near)))
    return schedule, control


def diffusion_term(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    schedule: NoiseSchedule,
    control: Control | None = None,
    *,
    antithetic: bool = True,
    stratified: bool = True,
    cond: Shaped[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    """One unbiased draw of ½∫m dλ for each x, over the range of the schedule, in nats.

    Draws of a batch are not independent where times are spread evenly: for a standard error repeat
    the whole.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z].
        x: (batch, ...).
        schedule: where to look, from :func:`pilot` or any that begins and ends.
        control: from :func:`pilot`; None for none.
        antithetic: two evaluations an x, on ε and −ε; or one.
        stratified: whether times are spread evenly over the batch.
        cond: passed to the denoiser.
        generator: on the device of x.

    >>> from neurodiff.diffusion.prior import Binary
    >>> even, _ = pilot(Binary(), torch.ones(10), None, draws=5000)
    >>> round(diffusion_term(Binary(), torch.ones(2000), even).mean().item(), 1)      # log 2
    0.7
    """
    logsnr, importance = look(x, schedule, generator, stratified)
    reference = None if control is None else control.reference
    own, other = error_draws(
        denoiser, x, logsnr, antithetic=antithetic, cond=cond, reference=reference,
        generator=generator,
    )  # fmt: skip
    if control is None:
        return 0.5 * importance * own
    rest = control.rest(own, other, gaussian_error(control.reference, x, logsnr), logsnr)
    return 0.5 * importance * rest + control.integral(x)


def _regressed(
    y: Float[Tensor, " draw"], on: Float[Tensor, "draw 2"], where: Shaped[Tensor, " draw"]
) -> Float[Tensor, "2 bin"]:
    """Least squares without an intercept, in each bin, within 0 to 1."""
    found = []
    for k in range(int(where.max()) + 1):
        here = where == k
        a, b = on[here], y[here]
        gram = a.mT @ a
        ridge = 1e-9 * gram.diagonal().mean().clamp_min(1e-300) * torch.eye(2).to(gram)
        found.append(torch.linalg.solve(gram + ridge, a.mT @ b))
    # where the reference hardly moves, or not as the network does, a pilot would say anything
    return torch.stack(found, 1).clamp(0.0, 1.0)
