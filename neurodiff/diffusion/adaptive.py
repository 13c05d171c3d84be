r"""A noise schedule that learns where to look, from the losses that it meets.

.. math:: \mathrm{Var} = \frac14 \int \frac{w^2\, E[m^2]}{p}\,dλ - L^2 \quad
    \text{is least at} \quad p^* \propto w \sqrt{E[m^2]}, \qquad \text{not at } w\, E[m]

:math:`m(λ; x)` is the squared error at one x. The two targets are one where the coefficient of
variation of m does not depend on logsnr (images, nearly); for data of few dimensions the
mean of the error can be worse than any fixed schedule.
"""

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from neurodiff.diffusion.flexible import PiecewiseLinear
from neurodiff.diffusion.logsnr import alpha_sigma
from neurodiff.diffusion.schedule import NoiseSchedule, Path

_FLOOR = 0.02  # share of the looks that are spread evenly, whatever was met


class Running(nn.Module):
    """An average over each bin of logsnr of what was seen there: of all, later of the most recent.

    Args:
        edges: (bin + 1,), increasing.
        rate: share of the old that stays at each update, in the long run.
    """

    edges: Tensor
    mean: Tensor
    count: Tensor

    def __init__(self, edges: Float[Tensor, " edge"], rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("edges", edges)
        self.register_buffer("mean", torch.zeros(len(edges) - 1, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(len(edges) - 1, dtype=torch.float64))

    def bin(self, logsnr: Float[Tensor, " batch"]) -> Shaped[Tensor, " batch"]:
        """The bin of each logsnr; beyond the ends the outermost."""
        return torch.bucketize(logsnr.detach().to(self.edges), self.edges[1:-1])

    @torch.no_grad()
    def update(self, logsnr: Float[Tensor, " batch"], value: Float[Tensor, " batch"]) -> None:
        """Take in one batch."""
        where, zero = self.bin(logsnr), torch.zeros_like(self.mean)
        total = zero.index_add(0, where, value.detach().to(zero))
        seen = zero.index_add(0, where, torch.ones_like(value, dtype=zero.dtype))
        self.count += (seen > 0).to(zero)
        share = (1 / self.count.clamp_min(1.0)).clamp_min(1 - self.rate)
        new = torch.lerp(self.mean, total / seen.clamp_min(1.0), share)
        self.mean.copy_(torch.where(seen > 0, new, self.mean))

    def filled(self) -> Float[Tensor, " bin"]:
        """The averages; of a bin that was never seen that of the nearest which was, 1 at first."""
        seen = (self.count > 0).nonzero()[:, 0]
        if not len(seen):
            return torch.ones_like(self.mean)
        every = torch.arange(len(self.mean), device=seen.device)
        nearest = (every[:, None] - seen).abs().argmin(1)
        return self.mean[seen[nearest]]


class AdaptiveSchedule(NoiseSchedule):
    r"""Piecewise linear in time, with a density that follows the loss.

    .. math:: p \propto E[(w m)^k]^{1/k}

    Args:
        logsnr_min: where it begins, finite.
        logsnr_max: where it ends.
        moment: k: 2 gives the least variance, 1 is the target of Kingma & Gao (2023).
        bins: of equal width.
        rate: of the running average, an update a batch.
        path: as in :class:`~neurodiff.diffusion.schedule.NoiseSchedule`.

    Raises:
        ValueError: ends that are not in order.

    References: Kingma & Gao 2023, appendix; Kingma et al. 2021 for the variance.

    >>> schedule = AdaptiveSchedule(-2.0, 2.0, bins=2)
    >>> schedule.update(torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 3.0]))
    >>> schedule.t(torch.tensor(0.0))      # three of four looks are above 0, but for a floor
    tensor(0.7450)
    """

    law: PiecewiseLinear

    def __init__(
        self,
        logsnr_min: float = -13.3,
        logsnr_max: float = 13.3,
        *,
        moment: Literal[1, 2] = 2,
        bins: int = 64,
        rate: float = 0.999,
        path: Path = alpha_sigma,
    ) -> None:
        if not -torch.inf < logsnr_min < logsnr_max < torch.inf:
            raise ValueError(
                f"wanted finite logsnr_min < logsnr_max, got {logsnr_min} and {logsnr_max}"
            )
        edges = torch.linspace(logsnr_min, logsnr_max, bins + 1, dtype=torch.float64)
        super().__init__(PiecewiseLinear(edges, torch.zeros(bins)).requires_grad_(False), path)
        self.moment, self.seen = moment, Running(edges, rate)

    @torch.no_grad()
    def update(self, logsnr: Float[Tensor, " batch"], loss: Float[Tensor, " batch"]) -> None:
        """Learn from a batch.

        Args:
            logsnr: where it was.
            loss: w m there, *not* divided by the density of this schedule.
        """
        self.seen.update(logsnr, loss.abs().pow(self.moment))
        p = self.seen.filled().clamp_min(0.0).pow(1 / self.moment)
        p = torch.lerp(p / p.sum(), torch.full_like(p, 1 / len(p)), _FLOOR)
        self.law.logits.copy_(p.log())
