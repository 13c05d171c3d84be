r"""Choice and confidence as one report: seven cut-points on the measurement of an orientation.

.. math::

    P(r \mid s) = \tfrac{l}{8} + (1 - l)\, E_\lambda\, P(k_r < y \le k_{r+1}), \qquad
    y = x \ (\text{task A}), \quad y = |x| \ (\text{task B})

    k_4 = k_0 + m \sigma, \qquad k_{j+1} - k_j = a_j\,(\sigma / 5°)^{b_j}

Reports 0 to 7 are choice 0 with confidence 4, 3, 2, 1 and choice 1 with 1, 2, 3, 4, so that k₄
parts the choices. Where the measurement ends is :mod:`~neurodiff.perception.measurement`, the same
as that of choices alone.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor, nn
from torch.distributions import Beta, Categorical, Distribution, LogNormal, Normal, constraints

from neurodiff.data.schema import DataError
from neurodiff.perception.categories import Linear
from neurodiff.perception.measurement import Measurement
from neurodiff.perception.orientation import by_level

REPORTS = 8
_FAR = 1e12  # degrees: beyond any measurement, however noisy
MIDDLE = 5.0  # degrees: the noise at which distances of cut-points are a


class Cuts(Linear):
    """Boundaries of the eight reports, which never cross.

    Args:
        task: "A" or "B".
        slopes: Whether distances follow σ, else b is 0 and so is m. Priors: a LogNormal(log 3, 1)
            degrees, b Normal(0.5, 0.5).

    >>> Cuts("A")(torch.tensor([5.0])).detach().numpy().round(1)
    array([[-9., -6., -3.,  0.,  3.,  6.,  9.]])
    """

    constraints: ClassVar = {
        **Linear.constraints,
        "gap": constraints.independent(constraints.positive, 1),
        "growth": constraints.real_vector,
    }

    def __init__(self, task: str, slopes: bool = True) -> None:
        super().__init__(task)
        self.gap = nn.Parameter(torch.full((6,), 3.0))
        self.growth = nn.Parameter(torch.full((6,), 0.5 if slopes else 0.0), requires_grad=slopes)
        if not slopes:
            self.slope.requires_grad_(False).fill_(0.0)
        like = torch.ones(6)
        self.priors["gap"] = LogNormal(math.log(3.0) * like, like)
        self.priors["growth"] = Normal(0.5 * like, 0.5 * like)

    def forward(self, sigma: Tensor) -> Tensor:
        """Seven boundaries at noise of any shape, in a last dimension, degrees."""
        middle = (self.offset + self.slope * sigma)[..., None]
        # a product, not a sum of two positive parts: what is left of one could then be anything
        step = self.gap * (sigma / MIDDLE)[..., None] ** self.growth
        low = middle - step[..., :3].flip(-1).cumsum(-1).flip(-1)
        k = torch.cat([low, middle, middle + step[..., 3:].cumsum(-1)], -1)
        return k if self.task == "A" else k.clamp(min=0.0)


class Reports(nn.Module):
    """Reports (0 to 7) of trials with an ``orientation`` (degrees) and a ``level``.

    Args:
        measurement: Of the stimulus.
        rule: The boundaries; their task is the model's.

    >>> from neurodiff.perception.measurement import Power
    >>> model = Reports(Power([0.0]), Cuts("A"))
    >>> trials = {"level": torch.tensor([0.0]), "orientation": torch.tensor([4.0])}
    >>> model(trials).probs.sum(-1).detach().numpy().round(6)
    array([1.])
    """

    response = "report"
    requires = ("level", "orientation")
    single = True  # lapses keep log probabilities far from where rounding matters
    constraints: ClassVar = {"lapse": constraints.unit_interval}
    priors: ClassVar[dict[str, Distribution]] = {"lapse": Beta(1.0, 30.0)}

    def __init__(self, measurement: Measurement, rule: Cuts) -> None:
        super().__init__()
        self.measurement, self.rule = measurement, rule
        self.lapse = nn.Parameter(torch.tensor(0.02))
        self.levels, self._nodes = measurement()[0].shape
        self.cells = 0

    def prepare(self, trials: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each trial's level as a row of 0 and 1, and |sin 2s|: computed once."""
        self.cells = 2 * len(trials["level"]) * self._nodes
        return by_level(trials, self.levels)

    def forward(self, trials: dict[str, Tensor]) -> "Report":
        """The distribution of the reports."""
        if "level_is" not in trials:
            trials = trials | self.prepare(trials)
        logsnr, mass = self.measurement()
        sigma = torch.exp(-0.5 * logsnr)
        k = self.rule(sigma).clamp(-_FAR, _FAR)
        low, high = (torch.full_like(k[..., :1], x) for x in (-_FAR, _FAR))
        ends = torch.cat([low if self.rule.task == "A" else 0 * low, k, high], -1)
        return Report(self, trials, sigma, mass, ends)


class Report(Distribution):
    """Only the two boundaries of what was reported are computed, not all of them."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, model: Reports, trials: dict[str, Tensor], sigma: Tensor, mass: Tensor, ends: Tensor
    ) -> None:
        self.model, self.trials = model, trials
        self.sigma, self.mass, self.ends = sigma, mass, ends
        super().__init__(trials["orientation"].shape, validate_args=False)

    def prob(self, value: Tensor) -> Tensor:
        """P(report) of one report a trial."""
        which, half = self.trials["level_is"], math.sqrt(0.5)
        oblique, psi = self.trials["oblique"][:, None], self.model.measurement.oblique
        rate = half / (which @ self.sigma + (0.0 if psi is None else psi * oblique))
        s = self.trials["orientation"][:, None] * rate
        # (trial, level × report) @ (level × report, node)
        chosen = (value[:, None] == torch.arange(REPORTS, device=value.device)).to(which)
        pair = (which[:, :, None] * chosen[:, None, :]).flatten(1)
        low, high = (
            (pair @ e.transpose(1, 2).flatten(0, 1)) * rate
            for e in (self.ends[..., :-1], self.ends[..., 1:])
        )
        twice = torch.erf(high - s) - torch.erf(low - s)
        if self.model.rule.task == "B":
            twice = twice + torch.erf(high + s) - torch.erf(low + s)
        p = 0.5 * ((twice @ self.mass.mT) * which).sum(-1)
        lapse = self.model.lapse
        return lapse / REPORTS + (1 - lapse) * p

    def log_prob(self, value: Tensor) -> Tensor:
        """Log P(report)."""
        return self.prob(value).log()

    @property
    def probs(self) -> Tensor:
        """(trial, report)."""
        one = torch.ones_like(self.trials["orientation"])
        return torch.stack([self.prob(r * one) for r in range(REPORTS)], -1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Reports, as whole numbers."""
        some = torch.Size(sample_shape)
        return Categorical(self.probs.detach(), validate_args=False).sample(some)


def reported(data: xr.Dataset) -> xr.Dataset:
    """The data with ``report``, from ``choice`` 0 or 1 and ``confidence`` 1 to 4.

    Raises:
        DataError: If a variable is missing or a confidence is none of the four.

    >>> columns = {"choice": [0.0, 0.0, 1.0], "confidence": [4.0, 1.0, 2.0]}
    >>> data = xr.Dataset({k: ("trial", v) for k, v in columns.items()})
    >>> reported(data)["report"].values
    array([0., 3., 5.])
    """
    missing = [n for n in ("choice", "confidence") if n not in data]
    if missing:
        raise DataError(f"the data have no {' and no '.join(missing)}: wanted both in each trial")
    choice, sure = data["choice"].values, data["confidence"].values
    if not set(sure.tolist()) <= {1.0, 2.0, 3.0, 4.0}:
        raise DataError(f"got confidence from {sure.min():g} to {sure.max():g}, wanted 1, 2, 3, 4")
    return data.assign(report=("trial", choice * (3 + sure) + (1 - choice) * (4 - sure)))
