r"""From decision times to reaction times: what every model of choice and time has in common.

.. math:: \text{rt} = T + \tau, \quad \tau \sim N(\text{delay}, \text{jitter}^2), \qquad
    p_\pm(t) = \int g_\pm(u)\, N(t - u;\, \text{delay}, \text{jitter}^2)\,du

A model says with which density :math:`g_\pm` it decides, at the nodes of a quadrature up to the
horizon and for each distinct stimulus; the delay, its jitter, lapses and the horizon are here, so
that rivals differ in how they decide and in nothing else.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Beta,
    Distribution,
    ExpTransform,
    LogNormal,
    Normal,
    TransformedDistribution,
    constraints,
)
from torch.distributions.constraints import Constraint

from neurodiff.perception.choice_time import ChoiceTime
from neurodiff.perception.delayed import LogDensity, jittered, late, tabulated
from neurodiff.perception.early import FINE, nested
from neurodiff.perception.interpolate import cubic

_SHARP = 0.7  # of a step: below it a sum over steps no longer is the integral over the jitter

_OVER = 1e-4  # of all: a mass above 1 by no more is divided by, so that late densities are kept

Later = Callable[[Tensor, Tensor], Tensor]


class Reaction(nn.Module, ABC):
    """Choice and reaction time, given the densities with which a model decides.

    Args:
        parts: Sub-modules by name; ``drift`` moves the evidence, from what it ``requires``.
        horizon: Seconds after which no answer is taken: the deadline, or the longest time there is.
            Where the data have a variable ``deadline`` each trial has its own, within the horizon.
        steps: Time steps up to the horizon.
        delay: Mean of the time not spent deciding, seconds: LogNormal(log 0.3, 0.5).
        jitter: Its s.d. over trials, at least 0.7 steps. Times are above 0: where the delay is
            twice the jitter, 0.02 of those who decide at once would not be.
        lapse: Share of trials that guess, at a time uniform up to the horizon: Beta(1, 30).
        own: Parameters of the model itself by name; None for those that it does without.
    """

    time: Tensor
    nodes: Tensor
    width: Tensor
    drift: nn.Module
    jitter: nn.Parameter | None
    response = "signed_rt"
    optional = ("deadline",)
    apart = True  # parts are not stacked into one batch: equal stimuli are found by sorting
    constraints: ClassVar[dict[str, Constraint]] = {
        "delay": constraints.positive,
        "jitter": constraints.positive,
        "lapse": constraints.unit_interval,
    }

    def __init__(
        self,
        parts: dict[str, nn.Module],
        horizon: float,
        steps: int,
        delay: float,
        jitter: float | None,
        lapse: float,
        **own: float | None,
    ) -> None:
        super().__init__()
        self.horizon = float(horizon)
        self._grid(steps)
        for name, value in {"delay": delay, "jitter": jitter, **own, "lapse": lapse}.items():
            given = None if value is None else nn.Parameter(torch.tensor(float(value)))
            self.register_parameter(name, given)
        for name, module in parts.items():
            self.add_module(name, module)
        # a parameter with more dimensions than these has one value a trial
        self._dims = {name: p.dim() for name, p in self.named_parameters()}
        above = [ExpTransform(), AffineTransform(_SHARP * horizon / steps, 1.0)]
        self.priors: dict[str, Distribution] = {
            "delay": LogNormal(math.log(0.3), 0.5),
            "jitter": TransformedDistribution(Normal(math.log(0.04), 0.7), above),
            "lapse": Beta(1.0, 30.0),
        }

    def _grid(self, steps: int) -> None:
        """Time steps up to the horizon, and the nodes that decisions are summed at."""
        count = torch.arange(1, steps + 1, dtype=torch.float64)
        self.register_buffer("time", self.horizon / steps * count)
        nodes, width = nested(self.time)
        self.register_buffer("nodes", nodes)
        self.register_buffer("width", width)

    def finer(self) -> "Reaction":
        """The same on steps half as long: how far its answers are from these is what steps cost.

        >>> from neurodiff.perception.drifts import Power
        >>> from neurodiff.perception.race import Race
        >>> trials = {"strength": torch.tensor([0.1, 0.3]), "choice_known": torch.ones(2)}
        >>> model = Race(Power(), 2.0, steps=40)
        >>> model(trials).distance(model.finer()(trials)) < 1e-3
        tensor([True, True])
        """
        twin = copy.deepcopy(self)
        twin._grid(2 * len(self.time))
        return twin.to(self.time)

    @property
    def requires(self) -> tuple[str, ...]:
        """The stimulus variables of the drift, whether choices count, and the times for a check."""
        return (*self.drift.requires, "choice_known", "signed_rt")  # pyright: ignore

    def prepare(self, trials: dict[str, Tensor]) -> dict[str, Tensor]:
        """The condition of each trial: equal stimuli are computed once."""
        if "deadline" in trials:
            _check_horizon("deadline", trials["deadline"], self.horizon)
        if "signed_rt" in trials:
            _check_horizon("reaction time", trials["signed_rt"].abs(), self.horizon)
        columns = torch.stack([trials[name] for name in self.drift.requires])  # pyright: ignore
        return {"condition": torch.unique(columns, dim=1, return_inverse=True)[1]}

    def forward(self, trials: dict[str, Tensor]) -> ChoiceTime:
        """The distribution of signed reaction times."""
        condition, first = self._conditions(trials)
        values = self._values(first)
        stimulus = {n: trials[n][first][:, None] for n in self.drift.requires}  # pyright: ignore
        g = self._decisions(values, stimulus)
        g = g.expand(len(first), *g.shape[-2:])
        g = self._at_most_one(g)
        log_density, later = self._reactions(g, values, stimulus)
        lapse = values["lapse"].reshape(-1).expand(len(first))
        given = lapse, self.horizon, trials["choice_known"], trials.get("deadline")
        return ChoiceTime(log_density, later, condition, *given)

    @abstractmethod
    def _decisions(
        self, values: dict[str, Tensor], stimulus: dict[str, Tensor]
    ) -> Float[Tensor, "condition node 2"]:
        """Densities of decision time and choice."""

    def _at_most_one(self, g: Float[Tensor, "condition node 2"]) -> Tensor:
        """Densities that end where all have decided.

        Each is found from those before it, so what is wrong on steps that are too long is the end.
        Without this a fit runs to where they are, and is rewarded for it.
        """
        mass = self.width * g.sum(-1)
        order = self.nodes.argsort(stable=True)
        before = mass[..., order].cumsum(-1)[..., order.argsort()] - mass
        room = (1 + _OVER - before).clamp_min(0.0)
        over = mass > room
        kept = torch.where(over, room / torch.where(over, mass, 1.0), 1.0)
        mass = mass * kept
        whole = (mass.sum(-1) - 0.5 * mass[..., -1]).clamp_min(1.0)
        return g * (kept / whole[..., None])[..., None]

    def _reactions(
        self,
        g: Float[Tensor, "condition node 2"],
        values: dict[str, Tensor],
        stimulus: dict[str, Tensor],
    ) -> tuple[LogDensity, Later]:
        """Log density of reaction time and choice, and the probability of none by a time."""
        delay, jitter = (
            x.expand(len(g))[:, None]
            for x in (self._delay(values, stimulus), values["jitter"].reshape(-1))
        )
        # what the jitter takes below time 0 is not there, and the rest is all there is
        below = 0.5 * torch.erfc(math.sqrt(0.5) * (self.nodes + delay) / jitter)
        kept = 1 - (self.width * g.sum(-1) * below).sum(-1)
        table = self._delayed(g, values, stimulus) / kept[:, None, None]
        later = self._later(g, values, stimulus)

        def log_later(time: Tensor, condition: Tensor) -> Tensor:
            return later(time, condition) - kept.log()[condition]

        return tabulated(table, self.time[0] / FINE), log_later

    def _later(
        self,
        g: Float[Tensor, "condition node 2"],
        values: dict[str, Tensor],
        stimulus: dict[str, Tensor],
    ) -> Later:
        """Log P(rt > t), found when it is asked for."""
        n = len(g)
        fine = self.time[0] / FINE
        until = fine * torch.arange(FINE * len(self.time) + 1, device=fine.device)

        def log_later(time: Tensor, condition: Tensor) -> Tensor:
            left = self._log_survival(until, g, values, stimulus)
            left = left.expand(n, -1)[condition]
            delay = self._delay(values, stimulus).expand(n)[condition]
            if self.jitter is None:
                at = ((time - delay) / fine).clamp(0.0, len(until) - 1.0)
                both = left.reshape(-1, len(until), 1).expand(-1, -1, 2)
                row = torch.arange(len(both), device=at.device)
                return cubic(both, at, 0 * row, row, len(until) - 1).clamp_max(0.0)
            time = time.reshape(-1)
            return late(left, until, time, delay, values["jitter"].reshape(-1).expand(n)[condition])

        return log_later

    @abstractmethod
    def _log_survival(
        self,
        until: Float[Tensor, " time"],
        g: Float[Tensor, "condition node 2"],
        values: dict[str, Tensor],
        stimulus: dict[str, Tensor],
    ) -> Float[Tensor, "#condition time"]:
        """Log P(T > t) of decision times, at 0, dt/4, …."""

    def _delay(self, values: dict[str, Tensor], stimulus: dict[str, Tensor]) -> Tensor:
        """Mean delay of each condition, or of all."""
        return values["delay"].reshape(-1)

    def _delayed(
        self, g: Tensor, values: dict[str, Tensor], stimulus: dict[str, Tensor]
    ) -> Float[Tensor, "condition fine 2"]:
        """Densities of reaction time."""
        mass = self.width[:, None] * g
        return jittered(mass, self.nodes, self.time, values["delay"], values["jitter"])

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


def part(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values of one sub-module.

    >>> part("drift.", {"drift.gain": torch.tensor(1.0), "lapse": torch.tensor(0.1)})
    {'gain': tensor(1.)}
    """
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def _check_horizon(what: str, time: Tensor, horizon: float) -> None:
    late = (time > horizon) & torch.isfinite(time)
    if late.any():
        first = int(late.nonzero()[0])
        raise ValueError(
            f"the {what} of trial {first} (from 0) is {time[first]:g} s, beyond the horizon "
            f"of {horizon:g} s ({int(late.sum())} of {len(time)} are): give a longer horizon"
        )
