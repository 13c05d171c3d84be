r"""A neuron that is driven by where the evidence is, while the decision goes on.

.. math:: r_i(t \mid \text{choice}, c) = b_i\,(1 + u(t)) + g_i\, D(t \mid \text{choice}, c), \qquad
    n \sim \text{Poisson}(r\, x)

b is what the neuron does by itself, u an urgency or dip shared by all stimuli and choices, which
the sum over choices identifies; D is one of the drives below, g its gain, x the seconds watched.

.. math::

    \text{accumulated:}\quad D = E[d(Y_{t-\delta}) \mid T > t - \delta, \text{choice}, c] \qquad
    \text{unstopped:}\quad D = \mathrm{sgn}(c)\, E[\theta M \mid \lambda = \log v_c^2 + f(t)]

d is what of the evidence the neuron reads: :func:`belief`, :func:`evidence_log_odds` or
:func:`position`; δ the latency. The unstopped drive, with f monotone and f(t_0) = log t_0, ignores
that the decision stops, and with it the choice.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import LogNormal, Normal, Poisson, Uniform, constraints

from neurodiff.perception.bounds import Bound
from neurodiff.perception.interpolate import cubic
from neurodiff.perception.killed import check, follow, log_odds

#: what is read of the evidence: of positions (time, node), times (time, 1), and the speeds |v|
Reads = Callable[[Tensor, Tensor, Tensor], Tensor]
_LOWEST, _STEP = -12.0, 0.1  # of the table of E[θ M] over logsnr
_SMOOTH = 2.0  # spikes/s: rates below a few of these are bent away from 0


def evidence_log_odds(y: Tensor, time: Tensor, speeds: Tensor) -> Tensor:
    """Log odds of the directions, all speeds being as likely."""
    return log_odds(y, time, speeds, torch.full_like(speeds, 1 / len(speeds)))


def belief(y: Tensor, time: Tensor, speeds: Tensor) -> Tensor:
    """E[θ | y, t], θ = ±1 the direction, all speeds being as likely."""
    return torch.tanh(0.5 * evidence_log_odds(y, time, speeds))


def position(y: Tensor, time: Tensor, speeds: Tensor) -> Tensor:
    """The evidence itself."""
    return y


def survivors_mean(
    drift: Float[Tensor, " strength"],
    bound: Bound,
    time: Float[Tensor, " time"],
    start: float | Tensor,
    reads: Reads,
    nodes: int = 32,
) -> Float[Tensor, "strength time 2"]:
    """E[d(Y_t) | T > t, choice] at 0, dt, … up to one step before the last time.

    Args:
        drift: v of each strength, rising and symmetric about 0: the observer knows the sizes that
            there are, not which it is.
        bound: Half-height.
        time: dt, 2 dt, …, seconds.
        start: x_0.
        reads: d.
        nodes: Of the grid of positions; the spacing, πb/nodes, has to be below sqrt(dt).

    Raises:
        ValueError: If the nodes are too far apart for the step, or a bound is not above 0.

    >>> from neurodiff.perception.bounds import Constant
    >>> time = 0.02 * torch.arange(1.0, 51.0)
    >>> mean = survivors_mean(torch.tensor([-2.0, 2.0]), Constant(), time, 0.0, position)
    >>> mean.shape, bool((mean[1, 10] + mean[0, 10].flip(0)).abs().max() < 1e-6)
    (torch.Size([2, 50, 2]), True)
    """
    height = _heights(bound, time)
    check(height, time[0], nodes)
    return _mean_between(height, drift, time, start, reads, nodes)


def _heights(bound: Bound, time: Tensor) -> Tensor:
    return bound(torch.cat([1e-6 * time[:1], time]))[0]


def _mean_between(
    height: Tensor, drift: Tensor, time: Tensor, start: float | Tensor, reads: Reads, nodes: int
) -> Float[Tensor, "strength time 2"]:
    """:func:`survivors_mean`, unchecked: inference calls this under vmap."""
    found = follow(drift, height, time, start, nodes)
    speeds = drift[len(drift) // 2 :].abs()
    mean = found.mean(reads(found.position, time[:, None], speeds))
    x0 = torch.as_tensor(start).to(time).reshape(1, 1)
    first = reads(x0, torch.zeros_like(time[:1, None]), speeds).reshape(1, 1, 1)
    return torch.cat([first.expand(len(drift), 1, 2), mean[:, :-1]], 1)


class Tabulated(nn.Module):
    r"""A drive that is known at each strength, time and choice, read a latency ago.

    Args:
        table: D at each strength, at 0, dt, …, for the upper and the lower choice.
        strengths: Signed strengths of its rows, rising.
        step: dt, seconds.
        latency: δ at first: LogNormal(log 0.2, 0.3); None for 0 that is not learned.

    >>> ramp = torch.arange(5.0)[None, :, None].expand(1, 5, 2)
    >>> drive = Tabulated(ramp, torch.tensor([0.1]), step=0.1, latency=0.1)
    >>> drive({"strength_index": torch.tensor([0]), "choice": torch.tensor([1.0]),
    ...        "when": torch.tensor([0.25])}).detach()
    tensor([1.5000])
    """

    table: Tensor
    strengths: Tensor
    constraints: ClassVar = {"latency": constraints.positive}
    priors: ClassVar = {"latency": LogNormal(math.log(0.2), 0.3)}

    def __init__(
        self, table: Tensor, strengths: Tensor, step: float, latency: float | None = 0.2
    ) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("table", table)
        self.register_buffer("strengths", strengths)
        own = 0.0 if latency is None else latency
        self.latency = nn.Parameter(torch.tensor(own), requires_grad=latency is not None)

    def forward(self, trials: dict[str, Tensor]) -> Tensor:
        """D of each row."""
        return _look_up(self.table, trials, (trials["when"] - self.latency) / self.step)


class Accumulated(nn.Module):
    """The drive of an accumulator that is learned itself: drift, bound, start and latency.

    Args:
        drift: :class:`~neurodiff.perception.drifts.Power`.
        bound: Half-height. Positions have nodes for bounds up to twice as high as it is at first;
            higher ones are not to be learned, begin from one that is nearer.
        strengths: Signed strengths, rising and symmetric about 0.
        reads: What of the evidence is read.
        horizon: Seconds by which a choice counts.
        steps: Up to the horizon.
        latency: δ at first: LogNormal(log 0.2, 0.3).
    """

    time: Tensor
    strengths: Tensor
    constraints: ClassVar = {
        "latency": constraints.positive,
        "start": constraints.interval(-1.0, 1.0),
    }
    priors: ClassVar = {"latency": LogNormal(math.log(0.2), 0.3), "start": Uniform(-1.0, 1.0)}

    def __init__(
        self,
        drift: nn.Module,
        bound: Bound,
        strengths: Tensor,
        reads: Reads,
        horizon: float,
        steps: int = 50,
        latency: float = 0.2,
    ) -> None:
        super().__init__()
        self.drift, self.bound, self.reads = drift, bound, reads
        self.register_buffer("strengths", strengths)
        self.register_buffer("time", horizon / steps * torch.arange(1, steps + 1))
        high, dt = 2 * float(_heights(bound, self.time).detach().max()), horizon / steps
        self.nodes = max(32, math.ceil(math.pi * high / math.sqrt(dt)))
        self.latency = nn.Parameter(torch.tensor(latency))
        self.start = nn.Parameter(torch.tensor(0.0))

    def forward(self, trials: dict[str, Tensor]) -> Tensor:
        """D of each row."""
        v = self.drift({"strength": self.strengths[:, None]}, self.time).slope
        x0 = self.start * self.bound.height
        height = _heights(self.bound, self.time)
        table = _mean_between(height, v, self.time, x0, self.reads, self.nodes)
        return _look_up(table, trials, (trials["when"] - self.latency) / self.time[0])


class Unstopped(nn.Module):
    r"""The drive of a belief that is never acted upon: :math:`\mathrm{sgn}(c)\, E[\theta M]`.

    E[θ M] = E[M²] = 1 - mmse(e^λ) of a ±1 source at λ = log v² + f(t), f piecewise linear and
    rising between knots, f(t_0) = log t_0.

    Args:
        speeds: v of each signed strength, per second.
        knots: Times, seconds; the first is t_0.

    >>> drive = Unstopped(torch.tensor([-2.0, 2.0]), torch.tensor([0.2, 0.5, 1.0]))
    >>> drive({"strength_index": torch.tensor([0, 1]), "when": torch.tensor([0.2, 0.2])}).detach()
    tensor([-0.4812,  0.4812])
    """

    speeds: Tensor
    knots: Tensor
    mean: Tensor
    constraints: ClassVar = {"rise": constraints.positive}
    priors: ClassVar = {"rise": LogNormal(-0.5, 1.0)}

    def __init__(self, speeds: Tensor, knots: Tensor) -> None:
        super().__init__()
        self.register_buffer("speeds", speeds)
        self.register_buffer("knots", knots)
        snr = torch.arange(_LOWEST, 7.0, _STEP, dtype=torch.float64).exp()[:, None]
        z = torch.linspace(-8.0, 8.0, 801, dtype=torch.float64)
        normal = torch.softmax(-0.5 * z * z, 0)
        self.register_buffer("mean", torch.tanh(snr + snr.sqrt() * z) @ normal)
        self.rise = nn.Parameter(knots.log().diff())

    def forward(self, trials: dict[str, Tensor]) -> Tensor:
        """D of each row."""
        v = self.speeds[trials["strength_index"].long()]
        part = ((trials["when"][:, None] - self.knots[:-1]) / self.knots.diff()).clamp(0.0, 1.0)
        f = self.knots[0].log() + (part * self.rise).sum(-1)
        logsnr = torch.where(v == 0, 1.0, v * v).log() + f
        at = ((logsnr - _LOWEST) / _STEP).clamp(0.0, len(self.mean) - 1.0)
        first = torch.zeros_like(at, dtype=torch.long)
        table = self.mean[None, :, None].expand(1, -1, 2)
        return v.sign() * cubic(table, at, first, first, len(self.mean) - 1)


class Driven(nn.Module):
    r"""Spike counts of neurons with a rate :math:`b\,(1 + u(t)) + g\,D`.

    Args:
        drive: D: :class:`Tabulated`, :class:`Accumulated`, :class:`Unstopped`; None for 0.
        strengths: Signed strengths, rising, that ``coherence`` takes.
        knots: Times between which u is linear, seconds; u is 0 at the first.
        neurons: For one baseline and gain a neuron in one fit (``neuron`` is then its number); None
            where ``nd.fit(by="unit")`` makes everything hierarchical.

    The data are those of :func:`~neurodiff.data.peri_stimulus.peri_stimulus`. Baseline
    LogNormal(log 40, 0.7) and gain LogNormal(log 15, 1), spikes/s; u Normal(0, 0.5).

    >>> model = Driven(None, torch.tensor([0.1]), torch.tensor([0.2, 1.0]))
    >>> rows = {"coherence": torch.tensor([0.1]), "when": torch.tensor([0.3]),
    ...         "exposure": torch.tensor([2.0])}
    >>> model(rows).rate.detach().round(decimals=2)  # 40 spikes/s for 2 s
    tensor([80.])
    """

    strengths: Tensor
    knots: Tensor
    response = "count"
    constraints: ClassVar = {
        "base": constraints.positive,
        "gain": constraints.positive,
        "urgency": constraints.real,
    }
    priors: ClassVar = {
        "base": LogNormal(math.log(40.0), 0.7),
        "gain": LogNormal(math.log(15.0), 1.0),
        "urgency": Normal(0.0, 0.5),
    }

    def __init__(
        self,
        drive: nn.Module | None,
        strengths: Tensor,
        knots: Tensor,
        neurons: int | None = None,
    ) -> None:
        super().__init__()
        self.drive, self.neurons = drive, neurons
        self.register_buffer("strengths", strengths)
        self.register_buffer("knots", knots)
        shape = () if neurons is None else (neurons,)
        self.base = nn.Parameter(torch.full(shape, 40.0))
        if drive is not None:
            self.gain = nn.Parameter(torch.full(shape, 15.0))
        self.urgency = nn.Parameter(torch.zeros(len(knots) - 1))

    @property
    def requires(self) -> tuple[str, ...]:
        """Stimulus, choice, time, seconds, and which neuron where there are several."""
        own = () if self.neurons is None else ("neuron",)
        return ("coherence", "choice", "when", "exposure", *own)

    def prepare(self, trials: dict[str, Tensor]) -> dict[str, Tensor]:
        """The row of each strength, and how the knots of u weigh at each time."""
        index = torch.searchsorted(self.strengths - 1e-6, trials["coherence"], right=True) - 1
        at = trials["when"].clamp(float(self.knots[0]), float(self.knots[-1]))
        cell = torch.searchsorted(self.knots, at).clamp(1, len(self.knots) - 1)
        share = (at - self.knots[cell - 1]) / (self.knots[cell] - self.knots[cell - 1])
        rows = torch.arange(len(at), device=at.device)
        weight = at.new_zeros(len(at), len(self.knots))
        weight[rows, cell - 1], weight[rows, cell] = 1 - share, share
        return {"strength_index": index.to(at), "knot_weight": weight[:, 1:]}

    def forward(self, trials: dict[str, Tensor]) -> Poisson:
        """The counts of each row."""
        rows = trials if "knot_weight" in trials else trials | self.prepare(trials)
        own = ... if self.neurons is None else rows["neuron"].long()
        rate = self.base[own] * (1 + (rows["knot_weight"] * self.urgency).sum(-1))
        if self.drive is not None:
            rate = rate + self.gain[own] * self.drive(rows)
        return Poisson(firing(rate) * rows["exposure"], validate_args=False)


def firing(rate: Tensor) -> Tensor:
    r"""A rate in spikes/s that is bent away from 0: :math:`2 \log(1 + e^{r/2})`.

    >>> firing(torch.tensor([-20.0, 0.0, 40.0])).round(decimals=3)
    tensor([ 0.0000,  1.3860, 40.0000])
    """
    return _SMOOTH * torch.nn.functional.softplus(rate / _SMOOTH)


def _look_up(
    table: Float[Tensor, "strength time 2"], trials: dict[str, Tensor], at: Tensor
) -> Tensor:
    """The table between its times, for each row's strength and choice; its ends beyond them."""
    last = table.shape[1] - 1
    side = (trials["choice"] < 0.5).long()
    return cubic(table, at.clamp(0.0, float(last)), side, trials["strength_index"].long(), last)
