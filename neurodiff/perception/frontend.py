r"""Stimulus front ends: from what was shown to the logsnr that an observer works with.

The stimulus gives logsnr only up to a gauge. A front end settles how power is pooled before the
log:

.. math::

    \text{none:}\quad \lambda_t = \log P_{t - \text{latency}}
    \qquad
    \text{power filter:}\quad \lambda_t = \log \sum_k a_k\, P_{t,k}, \quad \sum_k a_k = 1

    \text{internal noise:}\quad
    \lambda = \log\frac{s^2}{\sigma_{ext}^2 + \sigma_{int}^2}
    = -\log\big(e^{-\lambda_{ext}} + e^{-\lambda_{int}}\big)

Averages are of power, and the log comes last: the mean of decibels is never taken. The filter is a
part of the model, so it is learned on the training folds alone; its taps sum to one, which leaves
the gauge to the law.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, constraints
from torch.nn.functional import softplus

_REFERENCE = (2e-5) ** 2  # Pa² or V²: logsnr = ln(power / reference), 0 dB SPL


def power_lags(
    power: Float[Tensor, " sample"], bins: int, taps: int, per_tap: int
) -> Float[Tensor, "bins {taps}"]:
    """Mean power in ``taps`` windows reaching back from the end of each bin.

    Bin i covers samples [i·n, (i+1)·n) with n = samples per bin; tap k is the mean over ``per_tap``
    samples that end k·per_tap samples before the bin does. Before the recording the first sample is
    taken to have lasted.

    >>> power_lags(torch.arange(8.0), bins=4, taps=2, per_tap=2)
    tensor([[0.5000, 0.0000],
            [2.5000, 0.5000],
            [4.5000, 2.5000],
            [6.5000, 4.5000]])
    """
    n = len(power) // bins
    padded = torch.cat([power[:1].expand(taps * per_tap), power])
    sums = torch.cat([padded.new_zeros(1), padded.cumsum(0)])
    end = taps * per_tap + n * (torch.arange(bins, device=power.device) + 1)
    edges = end[:, None] - per_tap * torch.arange(taps + 1, device=power.device)
    return (sums[edges[:, :-1]] - sums[edges[:, 1:]]) / per_tap


class Nominal(nn.Module):
    """The logsnr of the data as it stands, ±inf included.

    >>> Nominal()({"logsnr": torch.tensor([1.0, 2.0])})
    tensor([1., 2.])
    """

    requires = ("logsnr",)

    def forward(self, trials: dict[str, Tensor]) -> Tensor:
        """The variable ``logsnr`` of the trials."""
        return trials["logsnr"]


class PowerFilter(nn.Module):
    r"""A learned temporal filter on power, then the log.

    .. math:: \lambda_t = \log \sum_k a_k P_{t,k} - \log P_{ref}, \qquad \textstyle\sum_k a_k = 1

    Signed taps :math:`a_k = b_k - \bar b + 1/K` weigh power against the power of a moment before;
    the filtered power is kept positive by :math:`\mathrm{softplus}(20\,x)/20` in units of the mean
    power. Unsigned ones, :math:`a = \mathrm{softmax}(b)`, make logsnr the log of a true average.
    Priors: b Normal(0, 1/2) for signed taps, Normal(0, 1) for logits.

    Args:
        taps: Number of taps K. The default, 12 of a millisecond each, reaches back 12 ms at 0.25 ms
            a sample.
        per_tap: Samples averaged in one tap.
        signed: Whether taps may be negative.

    >>> filter = PowerFilter(taps=2, per_tap=1, signed=False)
    >>> trials = {"power": torch.full((4,), 8e-10), "logsnr": torch.zeros(2)}
    >>> filter(trials).detach()
    tensor([0.6931, 0.6931])
    """

    requires = ("power", "logsnr")
    constraints: ClassVar = {"taps": constraints.real_vector}

    def __init__(self, taps: int = 12, per_tap: int = 4, signed: bool = False) -> None:
        super().__init__()
        self.per_tap, self.signed = per_tap, signed
        self.taps = nn.Parameter(torch.zeros(taps))
        self.priors = {"taps": Normal(0.0, 0.5 if signed else 1.0)}

    def weights(self) -> Tensor:
        """The taps a, which sum to one."""
        b = self.taps
        if self.signed:
            return b - b.mean(-1, keepdim=True) + 1.0 / b.shape[-1]
        return torch.softmax(b, -1)

    def prepare(self, trials: dict[str, Tensor]) -> dict[str, Tensor]:
        """The lagged power, in units of its mean: built once for a data set."""
        power, bins = trials["power"], len(trials["logsnr"])
        mean = power.mean()
        lags = power_lags(power / mean, bins, self.taps.shape[-1], self.per_tap)
        return {"power_lags": lags, "log_mean_power": torch.log(mean / _REFERENCE)}

    def forward(self, trials: dict[str, Tensor]) -> Tensor:
        """The logsnr of each bin, in nats above (2e-5)²."""
        if "power_lags" not in trials:
            trials = trials | self.prepare(trials)
        a = self.weights()
        lags = trials["power_lags"]
        # one filter for all bins is a product with a matrix; one per bin (units) a sum
        filtered = lags @ a if a.dim() == 1 else (lags * a).sum(-1)
        if self.signed:
            filtered = softplus(filtered, beta=20.0)
        return torch.log(filtered) + trials["log_mean_power"]


class InternalNoise(nn.Module):
    r"""Noise of the observer's own, added to the noise that is shown.

    .. math:: \lambda = -\log(e^{-\lambda_{ext}} + e^{-\lambda_{int}})

    A clean picture (:math:`\lambda_{ext} = \infty`) is seen at :math:`\lambda_{int}`, so logsnr
    saturates.

    >>> InternalNoise(logsnr_int=1.0)({"logsnr": torch.tensor([torch.inf, -50.0])}).detach()
    tensor([  1., -50.])
    """

    requires = ("logsnr",)
    constraints: ClassVar = {"logsnr_int": constraints.real}
    priors: ClassVar = {"logsnr_int": Normal(0.0, 3.0)}

    def __init__(self, logsnr_int: float = 1.0) -> None:
        super().__init__()
        self.logsnr_int = nn.Parameter(torch.tensor(logsnr_int))

    def centre(self, trials: dict[str, Tensor]) -> dict[str, Distribution]:
        """Default prior: within reach of the tested logsnr, Normal(their middle, 3 nats)."""
        return {"logsnr_int": Normal(middle(self, trials), 3.0)}

    def forward(self, trials: dict[str, Tensor]) -> Tensor:
        """The logsnr after both noises."""
        # not logaddexp: at ±inf its second derivative is NaN
        return self.logsnr_int - softplus(self.logsnr_int - trials["logsnr"])


class Sensitivity(nn.Module):
    r"""A logsnr that is known up to a constant, :math:`\lambda + \text{shift}`.

    The threshold kind needs none: there the gauge belongs to the weighting. The limited kind does,
    since the ideal observer's accuracy stands at a place of its own.

    >>> Sensitivity()({"logsnr": torch.tensor([-torch.inf, 2.0])}).detach()
    tensor([-inf, 2.])
    """

    requires = ("logsnr",)
    constraints: ClassVar = {"shift": constraints.real}
    priors: ClassVar = {"shift": Normal(0.0, 5.0)}

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.0))

    def centre(self, trials: dict[str, Tensor]) -> dict[str, Distribution]:
        """Default prior: the middle of the tested logsnr is at 0, give or take 5 nats."""
        return {"shift": Normal(-middle(self, trials), 5.0)}

    def forward(self, trials: dict[str, Tensor]) -> Tensor:
        """The logsnr of the trials, shifted."""
        return trials["logsnr"] + self.shift


def middle(front_end: nn.Module, trials: dict[str, Tensor]) -> Tensor:
    """Median of the tested finite logsnr, before any loss inside the observer.

    Raises:
        ValueError: If no logsnr is finite.
    """
    inner = isinstance(front_end, InternalNoise | Sensitivity)
    tested = trials["logsnr"] if inner else front_end(trials).detach()
    tested = tested[torch.isfinite(tested)]
    if not len(tested):
        raise ValueError(
            "none of the tested logsnr is finite: wanted at least one level of noise "
            "between no signal (-inf) and no noise (inf)"
        )
    return tested.median()
