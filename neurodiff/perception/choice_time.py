r"""The joint distribution of choice and reaction time, from densities tabulated by condition.

.. math:: p_i(\pm, t) = (1 - \text{lapse})\, g_\pm(t) + \frac{\text{lapse}}{2 H_i}, \qquad
    P(\text{no answer by } H_i) = (1 - \text{lapse})\,\Big(1 - \int_0^{H_i} g_+ + g_-\Big)

H_i is the deadline of a trial: its own, or the horizon. Lapses guess a choice at a time uniform up
to it, so the mixture integrates to one over choices, times and the missing answer. A response is
one number: +rt for the upper choice, -rt for the lower, inf for no answer within H_i. Where a
trial's choice says nothing (``known`` is 0), both choices count.

What others get wrong: trials without an answer are not to be left out, their probability says how
slow the observer is; and it is that of each trial's own deadline.
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
        log_later: Log P(T > t) at times and conditions that broadcast, lapses apart.
        condition: Of each trial.
        lapse: Of each condition.
        horizon: Seconds up to which times are modelled.
        known: 1 where a trial's choice counts, 0 where only its time does.
        deadline: H_i of each trial, within the horizon; None where all are the horizon.
    """

    arg_constraints: ClassVar = {}  # pyright: ignore
    support = constraints.real  # pyright: ignore

    def __init__(
        self,
        log_density: Callable[[Tensor, Tensor, Tensor], Tensor],
        log_later: Callable[[Tensor, Tensor], Tensor],
        condition: Int[Tensor, " trial"],
        lapse: Float[Tensor, " condition"],
        horizon: float,
        known: Float[Tensor, " trial"],
        deadline: Float[Tensor, " trial"] | None = None,
    ) -> None:
        self.log_density, self.log_later, self.lapse = log_density, log_later, lapse
        self.deadline = lapse.new_tensor(horizon) if deadline is None else deadline
        self.condition, self.horizon, self.known = condition, horizon, known
        super().__init__(condition.shape, validate_args=False)

    def _one(self, time: Tensor, side: Tensor) -> Tensor:
        """Log density of one choice, lapses included."""
        lapse = self.lapse[self.condition]
        guess = torch.log(0.5 * lapse / self.deadline)
        found = torch.log1p(-lapse) + self.log_density(time, side, self.condition)
        never = torch.isneginf(found)
        return torch.where(never, guess, _logaddexp(torch.where(never, 0.0, found), guess))

    def _missed(self, some: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        """Log P(T > H_i) of some trials: where all are the horizon, once for each condition."""
        if self.deadline.dim():
            return self.log_later(self.deadline[some], self.condition[some])
        each = torch.arange(len(self.lapse), device=self.lapse.device)
        return self.log_later(self.deadline, each)[self.condition[some]]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density per second; of inf, the log probability of no answer."""
        none = torch.isinf(value)
        time = torch.where(none, 0.5 * self.deadline, value.abs())
        side = (value < 0).long()
        found = self._one(time, side)
        if not bool(self.known.all()):
            both = _logaddexp(found, self._one(time, 1 - side))
            found = torch.where(self.known > 0.5, found, both)
        found = torch.where(time > self.deadline, -torch.inf, found)
        # of the few trials that it takes, since it costs as much as all the others
        try:
            some = none.reshape(-1, none.shape[-1]).any(0).nonzero()[:, 0]
        except RuntimeError:  # answers of several problems under vmap, which does not tell
            some = torch.arange(none.shape[-1], device=none.device)
        if not len(some):
            return found
        missed = torch.log1p(-self.lapse)[self.condition[some]] + self._missed(some)
        return torch.where(none, torch.zeros_like(found).index_copy(-1, some, missed), found)

    def _masses(self) -> Float[Tensor, "condition cell"]:
        """P of each cell of time, of the upper choice and then of the lower, and of no answer."""
        width = self.horizon / _CELLS
        time = width * (torch.arange(_CELLS, device=self.lapse.device) + 0.5).to(self.lapse)
        rows = torch.arange(len(self.lapse), device=time.device)[:, None]
        sides = [torch.full_like(rows, s) for s in (0, 1)]
        density = torch.cat([self.log_density(time, s, rows).exp() for s in sides], -1)
        rest = self.log_later(time.new_tensor(self.horizon), rows[:, 0]).exp()
        return torch.cat([density * width, rest[:, None]], -1)

    def distance(self, other: "ChoiceTime") -> Float[Tensor, " condition"]:
        r"""The most by which the probability of anything differs from another's: total variation.

        .. math:: \tfrac12 \Big(\sum_\pm \int_0^H |g_\pm - g'_\pm|\,dt
            + |P(T > H) - P'(T > H)|\Big)

        Lapses apart.

        Args:
            other: Of the same conditions, up to the same horizon.
        """
        return 0.5 * (self._masses() - other._masses()).abs().sum(-1)

    def omission_distance(
        self, other: "ChoiceTime", some: Int[Tensor, " some"]
    ) -> Float[Tensor, " some"]:
        r"""Of some trials :math:`|\log P(T > H_i) - \log P'(T > H_i)|`, lapses apart.

        Args:
            other: Of the same trials.
            some: Which trials.
        """
        return (self._missed(some) - other._missed(some)).abs()

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Signed times, uniform within small cells of time."""
        with torch.no_grad():
            lapse, n, width = self.lapse, len(self.lapse), self.horizon / _CELLS
            cumulative = self._masses().cumsum(-1)
            shape = self._extended_shape(sample_shape)
            point, guess = torch.rand(2, *shape, dtype=lapse.dtype, device=lapse.device)
            drawn = torch.empty_like(point)
            for c in range(n):  # a row at a time: all trials' rows together would not fit
                here = (self.condition == c).nonzero()[:, 0]
                own = point[..., here] * cumulative[c, -1]
                cell = torch.searchsorted(cumulative[c], own).clamp_max(2 * _CELLS)
                side = torch.where(cell >= _CELLS, -1.0, 1.0).to(own)
                signed = side * width * (cell % _CELLS + torch.rand_like(own).clamp(1e-6, 1 - 1e-6))
                drawn[..., here] = torch.where(cell == 2 * _CELLS, torch.inf, signed)
            drawn = torch.where(drawn.abs() > self.deadline, torch.inf, drawn)
            any_time = self.deadline * (2 * torch.rand_like(drawn) - 1)
            return torch.where(guess < lapse[self.condition], any_time, drawn)
