r"""Kind (d), *bounded*: the observer stops because of the evidence, and answers by where it is.

.. math:: \text{rt} = T + \tau, \quad T = \inf\{t : |X_t| \ge b(t)\}, \quad
    \text{choice} = \mathrm{sgn}(X_T), \quad \tau \sim N(\text{delay}, \text{jitter}^2)

X is moved by a drift (:mod:`~neurodiff.perception.drifts`) between bounds
(:mod:`~neurodiff.perception.bounds`). Stopping depends on the evidence, so the survival of RT is
not a weighting; what the stopping does to the evidence is
:func:`~neurodiff.perception.first_passage.effective_weighting`.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Beta,
    ExpTransform,
    LogNormal,
    Normal,
    TransformedDistribution,
    Uniform,
    constraints,
)
from torch.func import functional_call

from neurodiff.perception.bounds import Bound
from neurodiff.perception.choice_time import ChoiceTime
from neurodiff.perception.drifts import Power, Steady
from neurodiff.perception.first_passage import solve, survival, tilt
from neurodiff.perception.ideal import hermite

_FINE = 4  # points of the table of reaction times in a step of decision time
_SHARP = 0.7  # of a step: below it a sum over steps no longer is the integral over the jitter
_LEAST = 1e-140  # density below which it is 0: the second derivative of its log would overflow
_CONDITIONS = 8  # about as many strengths as experiments have
_NODES = 5  # of the quadrature over starting points


class Bounded(nn.Module):
    r"""Choice and reaction time of a bounded accumulator.

    Args:
        drift: What moves the evidence, from the variables that it ``requires``.
        bound: Half-height ±b(t).
        horizon: Seconds after which no answer is taken: the deadline, or the longest time there is.
        steps: Time steps up to the horizon; the error is below that of the data at 20 ms.
        delay: Mean of the time not spent deciding, seconds: LogNormal(log 0.3, 0.5).
        jitter: Its s.d. over trials, at least 0.7 steps; None for a delay that is always the same.
        start: Starting point as a share of b(0), -1 to 1: Uniform; None for the middle.
        start_spread: Half-width of a uniform spread of starting points, as a share of the room
            that the bound leaves: Uniform; None for none.
        lapse: Share of trials that guess, at a time uniform up to the horizon: Beta(1, 30).

    The data need ``signed_rt`` and ``choice_known``, from
    :func:`neurodiff.data.choice_rt.choice_rt`.

    Raises:
        ValueError: If a reaction time is beyond the horizon.

    >>> from neurodiff.perception.bounds import Exponential
    >>> from neurodiff.perception.drifts import Power
    >>> model = Bounded(Power(), Exponential(), horizon=2.0)
    >>> trials = {"strength": torch.tensor([0.1, 0.1]), "choice_known": torch.ones(2)}
    >>> model(trials).log_prob(torch.tensor([0.5, -0.5])).diff() < 0
    tensor([True])
    """

    time: Tensor
    jitter: nn.Parameter | None
    start: nn.Parameter | None
    start_spread: nn.Parameter | None
    response = "signed_rt"
    constraints: ClassVar = {
        "delay": constraints.positive,
        "jitter": constraints.positive,
        "start": constraints.interval(-1.0, 1.0),
        "start_spread": constraints.unit_interval,
        "lapse": constraints.unit_interval,
    }

    def __init__(
        self,
        drift: nn.Module,
        bound: Bound,
        horizon: float,
        steps: int = 100,
        *,
        delay: float = 0.3,
        jitter: float | None = 0.05,
        start: float | None = None,
        start_spread: float | None = None,
        lapse: float = 0.01,
    ) -> None:
        super().__init__()
        self.drift, self.bound, self.horizon = drift, bound, float(horizon)
        count = torch.arange(1, steps + 1, dtype=torch.float64)
        self.register_buffer("time", horizon / steps * count)
        self.delay = nn.Parameter(torch.tensor(float(delay)))
        own = {"jitter": jitter, "start": start, "start_spread": start_spread}
        for name, value in own.items():
            given = None if value is None else nn.Parameter(torch.tensor(float(value)))
            self.register_parameter(name, given)
        self.lapse = nn.Parameter(torch.tensor(float(lapse)))
        above = [ExpTransform(), AffineTransform(_SHARP * horizon / steps, 1.0)]
        self.priors = {
            "delay": LogNormal(math.log(0.3), 0.5),
            "jitter": TransformedDistribution(Normal(math.log(0.04), 0.7), above),
            "start": Uniform(-1.0, 1.0),
            "start_spread": Uniform(0.0, 1.0),
            "lapse": Beta(1.0, 30.0),
        }
        # a parameter with more dimensions than these has one value a trial
        self._dims = {name: p.dim() for name, p in self.named_parameters()}

    @property
    def requires(self) -> tuple[str, ...]:
        """The stimulus variables of the drift, whether choices count, and the times for a check."""
        return (*self.drift.requires, "choice_known", "signed_rt")  # pyright: ignore

    @property
    def cells(self) -> int:
        """Numbers in the largest temporary of one evaluation, for chunks of draws that fit."""
        steady = isinstance(self.drift, Power)
        return len(self.time) ** 2 * (2 if steady else 4 * _CONDITIONS)

    def prepare(self, trials: dict[str, Tensor]) -> dict[str, Tensor]:
        """The condition of each trial: equal stimuli are computed once."""
        if "signed_rt" in trials:
            _check_horizon(trials["signed_rt"].abs(), self.horizon)
        columns = torch.stack([trials[name] for name in self.drift.requires])  # pyright: ignore
        return {"condition": torch.unique(columns, dim=1, return_inverse=True)[1]}

    def forward(self, trials: dict[str, Tensor]) -> ChoiceTime:
        """The distribution of signed reaction times."""
        condition, first = self._conditions(trials)
        values = self._values(first)
        stimulus = {n: trials[n][first][:, None] for n in self.drift.requires}  # pyright: ignore
        g = self._decisions(values, stimulus)
        shape = (len(first),)
        lapse, delay = (values[n].reshape(-1).expand(shape) for n in ("lapse", "delay"))
        known = trials["choice_known"]
        if self.jitter is None:
            log_density = self._shifted(g, values, delay)
            missed = self._later(g, delay)
        else:
            table = self._jittered(g.expand(*shape, *g.shape[-2:]), values)
            log_density = self._tabulated(table)
            fine = self.time[0] / _FINE
            missed = 1 - fine * (table.sum((-1, -2)) - 0.5 * table[:, -1].sum(-1))
        return ChoiceTime(log_density, missed, condition, lapse, self.horizon, known)

    def _conditions(self, trials: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The condition of each trial, groups apart, and the first trial of each condition."""
        own = trials if "condition" in trials else self.prepare(trials)
        key = own["condition"]
        if "group" in trials:
            key = key * (trials["group"].max() + 1) + trials["group"]
        _, index = torch.unique(key, return_inverse=True)
        n = int(index.max()) + 1
        trial = torch.arange(len(index), device=index.device)
        first = torch.full((n,), len(index), device=index.device)
        return index, first.scatter_reduce(0, index, trial, "amin")

    def _values(self, first: Tensor) -> dict[str, Tensor]:
        """Parameters: as they are, or of each condition, (condition, 1, …)."""
        return {
            name: p[first][:, None] if p.dim() > self._dims[name] else p
            for name, p in self.named_parameters()
        }

    def _decisions(
        self, values: dict[str, Tensor], stimulus: dict[str, Tensor]
    ) -> Float[Tensor, "condition time 2"]:
        """Densities of decision time and choice."""
        b, slope = functional_call(self.bound, _of("bound.", values), (self.time,))
        moved = functional_call(self.drift, _of("drift.", values), (stimulus, self.time))
        x, weight = self._starts(values)
        if isinstance(moved, Steady):
            v = moved.slope[:, None]
            eta = None if moved.spread is None else moved.spread[:, None]
            log = tilt(b[..., None, :], self.time, x, v, eta)
            still = _floored(solve(b, slope, self.time, x))
            there = still > _LEAST
            each = torch.where(there, (torch.where(there, still, 1.0).log() + log).exp(), 0.0)
        else:
            n = len(moved.slope)
            b, slope = (y.expand(n, -1) for y in (b, slope))
            each = solve(b, slope, self.time, x.expand(n, -1), moved)
            each = _floored(each)
        return (each * weight[:, None, None]).sum(-3)

    def _starts(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Starting points, ([condition,] node), and their weights."""
        height, start = values["bound.height"], values.get("start")
        middle = torch.zeros_like(height) if start is None else start
        if self.start_spread is None:
            return (height * middle).reshape(*height.shape[:1], 1), torch.ones_like(self.time[:1])
        at, weight = np.polynomial.legendre.leggauss(_NODES)
        room = values["start_spread"] * (1 - middle.abs())
        at, weight = (torch.as_tensor(y).to(self.time) for y in (at, 0.5 * weight))
        return height * (middle + room * at), weight

    def _jittered(self, g: Tensor, values: dict[str, Tensor]) -> Float[Tensor, "condition fine 2"]:
        """Densities of reaction time at 0, dt/4, …: decision times and the jitter convolved."""
        dt, n = self.time[0], len(self.time)
        # how far a point of the table lies behind a decision, in quarters of a step: few distances
        place = torch.arange(_FINE * n + 1, device=dt.device)[:, None]
        behind = place - _FINE * (torch.arange(n, device=dt.device) + 1)
        every = dt / _FINE * torch.arange(-_FINE * n, _FINE * n + 1, device=dt.device)
        sd = values["jitter"]  # () or (condition, 1), as the delay
        z = (every - values["delay"]) / sd
        each = dt * torch.exp(-0.5 * z * z) / (math.sqrt(2 * math.pi) * sd)
        return each[..., behind + _FINE * n] @ g

    def _tabulated(self, table: Float[Tensor, "condition fine 2"]) -> Callable[..., Tensor]:
        """Log density by cubics through four points of the table."""
        fine, last = self.time[0] / _FINE, table.shape[1] - 1

        def log_density(time: Tensor, side: Tensor, condition: Tensor) -> Tensor:
            p = _cubic(table, time / fine, side, condition, last)
            return torch.where(p > 0, torch.where(p > 0, p, 1.0).log(), -torch.inf)

        return log_density

    def _shifted(
        self, g: Tensor, values: dict[str, Tensor], delay: Tensor
    ) -> Callable[..., Tensor]:
        """Log density where the delay is always the same.

        The density begins as t^{-3/2} exp(-d²/2t), d the distance to the bound at time 0: divided
        by that it is smooth, and is interpolated.
        """
        x = self._starts(values)[0]
        # a spread of starts begins from the nearest one, the first or the last
        height = values["bound.height"].reshape(-1, 1)
        d = torch.stack([height - x, height + x]).amin(-1).mT.expand(len(g), 2)
        smooth = g.clamp_min(_LEAST).log() + 1.5 * self.time.log()[:, None]
        smooth = smooth + 0.5 * d[:, None].square() / self.time[:, None]
        dt, last = self.time[0], len(self.time) - 1

        def log_density(time: Tensor, side: Tensor, condition: Tensor) -> Tensor:
            left = time - delay[condition]
            decided = left > 1e-3 * dt
            t = torch.where(decided, left, dt)
            found = _cubic(smooth, t / dt - 1, side, condition, last)
            found = found - 1.5 * t.log() - 0.5 * d[condition, side].square() / t
            return torch.where(decided, found, -torch.inf)

        return log_density

    def _later(self, g: Tensor, delay: Tensor) -> Float[Tensor, " condition"]:
        """P(T > H - delay)."""
        left, dt = survival(g, self.time), self.time[0]
        at = ((self.horizon - delay) / dt - 1).clamp(0.0, len(self.time) - 1.0)
        cell = at.detach().floor().clamp_max(len(self.time) - 2.0).long()
        row = torch.arange(len(g), device=cell.device)
        fall = -dt * g.sum(-1)
        ends = [y[row, c] for y in (left, fall) for c in (cell, cell + 1)]
        return hermite(at - cell, *ends)


def _floored(g: Tensor) -> Tensor:
    """Densities no smaller than rounding makes them once they have peaked: logs stay smooth."""
    return torch.maximum(g, 1e-13 * g.detach().cummax(-2)[0])


def _check_horizon(time: Tensor, horizon: float) -> None:
    late = (time > horizon) & torch.isfinite(time)
    if late.any():
        first = int(late.nonzero()[0])
        raise ValueError(
            f"the reaction time of trial {first} (from 0) is {time[first]:g} s, beyond the horizon "
            f"of {horizon:g} s ({int(late.sum())} of {len(time)} are): give a longer horizon"
        )


def _of(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values of one sub-module."""
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def _cubic(
    table: Float[Tensor, "condition cell 2"],
    at: Tensor,
    side: Tensor,
    condition: Tensor,
    last: int,
) -> Tensor:
    """Interpolation by the cubic through the four nearest rows of a condition and side."""
    cell = at.detach().nan_to_num().floor().clamp(1.0, last - 2.0)
    s = at - cell
    place = 2 * ((last + 1) * condition + cell.long()) + side
    flat = table.reshape(-1)
    before, here, after, later = (flat[place + 2 * k] for k in (-1, 0, 1, 2))
    outer = s * (s - 1) / 6 * ((s + 1) * later - (s - 2) * before)
    return outer + (s + 1) * (s - 2) / 2 * ((s - 1) * here - s * after)
