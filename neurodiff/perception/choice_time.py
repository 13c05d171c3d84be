r"""The joint distribution of choice and reaction time, from densities tabulated by condition.

.. math:: p(\pm, t) = (1 - \text{lapse})\, g_\pm(t) + \frac{\text{lapse}}{2 H}, \qquad
    P(\text{no answer by } H) = (1 - \text{lapse})\,\Big(1 - \int_0^H g_+ + g_-\Big)

Lapses guess a choice at a time uniform up to the horizon H, so the mixture integrates to one over
choices, times and the missing answer. A response is one number: +rt for the upper choice, -rt for
the lower, inf for no answer within H. Where a trial's choice says nothing (``known`` is 0), both
choices count.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution, constraints

_CELLS = 2000  # of time, of the inverse distribution function that samples are drawn by


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """log(e^a + e^b), whose second derivative is finite however far apart (torch's is not)."""
    return torch.maximum(a, b) + torch.log1p(torch.exp(-(a - b).abs()))


class ChoiceTime(Distribution):
    """Choice and reaction time of each trial, as a signed time in seconds.

    Args:
        log_density: log g(t) at times, sides (0 upper, 1 lower) and conditions that broadcast.
        missed: P(T > H) of each condition, lapses apart.
        condition: Of each trial.
        lapse: Of each condition.
        horizon: H, seconds.
        known: 1 where a trial's choice counts, 0 where only its time does.
    """

    arg_constraints: ClassVar = {}  # pyright: ignore
    support = constraints.real  # pyright: ignore

    def __init__(
        self,
        log_density: Callable[[Tensor, Tensor, Tensor], Tensor],
        missed: Float[Tensor, " condition"],
        condition: Int[Tensor, " trial"],
        lapse: Float[Tensor, " condition"],
        horizon: float,
        known: Float[Tensor, " trial"],
    ) -> None:
        self.log_density, self.missed, self.lapse = log_density, missed, lapse
        self.condition, self.horizon, self.known = condition, horizon, known
        super().__init__(condition.shape, validate_args=False)

    def _one(self, time: Tensor, side: Tensor, condition: Tensor) -> Tensor:
        """Log density of one choice, lapses included."""
        guess = torch.log(0.5 * self.lapse / self.horizon)[condition]
        found = torch.log1p(-self.lapse)[condition] + self.log_density(time, side, condition)
        never = torch.isneginf(found)
        return torch.where(never, guess, _logaddexp(torch.where(never, 0.0, found), guess))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density per second; of inf, the log probability of no answer."""
        none = torch.isinf(value)
        time = torch.where(none, 0.5 * self.horizon, value.abs())
        side = (value < 0).long()
        found = self._one(time, side, self.condition)
        if not bool(self.known.all()):
            both = _logaddexp(found, self._one(time, 1 - side, self.condition))
            found = torch.where(self.known > 0.5, found, both)
        missed = torch.log1p(-self.lapse) + self.missed.clamp_min(1e-300).log()
        found = torch.where(time > self.horizon, -torch.inf, found)
        return torch.where(none, missed[self.condition], found)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Signed times, uniform within small cells of time."""
        with torch.no_grad():
            n = len(self.missed)
            width = self.horizon / _CELLS
            time = width * (torch.arange(_CELLS, device=self.missed.device) + 0.5)
            rows = torch.arange(n, device=time.device)[:, None]
            sides = [torch.full_like(rows, s) for s in (0, 1)]
            density = torch.cat([self._one(time.to(self.missed), s, rows).exp() for s in sides], -1)
            missed = (1 - self.lapse) * self.missed
            mass = torch.cat([density * width, missed.clamp_min(0.0)[:, None]], -1)
            cumulative = mass.cumsum(-1)
            shape = self._extended_shape(sample_shape)
            point = torch.rand(shape, dtype=time.dtype, device=time.device).to(self.missed)
            drawn = torch.empty_like(point)
            for c in range(n):  # a row at a time: all trials' rows together would not fit
                here = (self.condition == c).nonzero()[:, 0]
                own = point[..., here] * cumulative[c, -1]
                cell = torch.searchsorted(cumulative[c], own).clamp_max(2 * _CELLS)
                side = torch.where(cell >= _CELLS, -1.0, 1.0).to(own)
                signed = side * width * (cell % _CELLS + torch.rand_like(own).clamp(1e-6, 1 - 1e-6))
                drawn[..., here] = torch.where(cell == 2 * _CELLS, torch.inf, signed)
            return drawn
