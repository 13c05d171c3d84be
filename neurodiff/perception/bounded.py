r"""Kind (d), *bounded*: the observer stops because of the evidence, and answers by where it is.

.. math:: \text{rt} = T + \tau, \quad T = \inf\{t : |X_t| \ge b(t)\}, \quad
    \text{choice} = \mathrm{sgn}(X_T), \quad \tau \sim N(\text{delay}, \text{jitter}^2)

X is moved by a drift (:mod:`~neurodiff.perception.drifts`) between bounds
(:mod:`~neurodiff.perception.bounds`). Stopping depends on the evidence, so the survival of RT is
not a weighting; what the stopping does to the evidence is
:func:`~neurodiff.perception.first_passage.effective_weighting`.
"""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Uniform, constraints
from torch.distributions.constraints import Constraint
from torch.func import functional_call

from neurodiff.perception.bounds import Bound
from neurodiff.perception.delayed import LogDensity
from neurodiff.perception.drifts import Power, Steady, position
from neurodiff.perception.early import FINE, LEAST, between, early_of, outset
from neurodiff.perception.first_passage import Path, solve, through, tilt
from neurodiff.perception.interpolate import cubic
from neurodiff.perception.reaction import Later, Reaction, part
from neurodiff.perception.survivors import log_survival, sines
from neurodiff.perception.volterra import TINY

CONDITIONS = 8  # about as many strengths as experiments have
_NODES = 5  # of the quadrature over starting points


class Bounded(Reaction):
    r"""Choice and reaction time of a bounded accumulator.

    Args:
        drift: What moves the evidence, from the variables that it ``requires``.
        bound: Half-height ±b(t).
        horizon: Seconds after which no answer is taken: the deadline, or the longest time there is.
        steps: Time steps up to the horizon. At 20 ms log likelihoods of some thousand trials err by
            less than a tenth of a nat; decisions within a few ms ask for more, and fits say so.
        delay: Mean of the time not spent deciding, seconds: LogNormal(log 0.3, 0.5).
        jitter: Its s.d. over trials, at least 0.7 steps; None for a delay that is always the same.
        start: Starting point as a share of b(0), -1 to 1: Uniform; None for the middle.
        start_spread: Half-width of a uniform spread of starting points, as a share of the room
            that the bound leaves: Uniform; None for none.
        lapse: Share of trials that guess, at a time uniform up to the horizon: Beta(1, 30).

    The data need ``signed_rt`` and ``choice_known``, from
    :func:`neurodiff.data.choice_rt.choice_rt`, and may have a ``deadline`` of each trial.

    Raises:
        ValueError: If a reaction time is beyond the horizon.

    >>> from neurodiff.perception.bounds import Exponential
    >>> from neurodiff.perception.drifts import Power
    >>> model = Bounded(Power(), Exponential(), horizon=2.0)
    >>> trials = {"strength": torch.tensor([0.1, 0.1]), "choice_known": torch.ones(2)}
    >>> model(trials).log_prob(torch.tensor([0.5, -0.5])).diff() < 0
    tensor([True])
    """

    bound: Bound
    start: nn.Parameter | None
    start_spread: nn.Parameter | None
    constraints: ClassVar[dict[str, Constraint]] = Reaction.constraints | {
        "start": constraints.interval(-1.0, 1.0),
        "start_spread": constraints.unit_interval,
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
        own = {"start": start, "start_spread": start_spread}
        parts = {"drift": drift, "bound": bound}
        super().__init__(parts, horizon, steps, delay, jitter, lapse, **own)
        self.priors |= {"start": Uniform(-1.0, 1.0), "start_spread": Uniform(0.0, 1.0)}

    @property
    def cells(self) -> int:
        """Numbers in the largest temporary of one evaluation, for chunks of draws that fit."""
        steady = isinstance(self.drift, Power)
        return len(self.time) ** 2 * (2 if steady else 4 * CONDITIONS)

    def _decisions(
        self, values: dict[str, Tensor], stimulus: dict[str, Tensor]
    ) -> Float[Tensor, "condition node 2"]:
        """Densities of decision time and choice."""
        b, slope = functional_call(self.bound, part("bound.", values), (self.nodes,))
        x, weight = self._starts(values)
        strength, sizes, of = stimulus.get("strength"), None, None
        alike = all(v.dim() <= self._dims[name] for name, v in values.items())
        if strength is not None and alike and getattr(self.drift, "odd", False):
            sizes, of = torch.unique(strength[:, 0].abs(), return_inverse=True)
        if strength is None or sizes is None or len(sizes) == len(strength):
            moved = functional_call(self.drift, part("drift.", values), (stimulus, self.nodes))
            return (self._passages(b, slope, moved, x) * weight[:, None, None]).sum(-3)
        # the path of -c from x is the mirror of that of c from -x, which has the same matrix
        one = {"strength": sizes[:, None]}
        moved = functional_call(self.drift, part("drift.", values), (one, self.nodes))
        both = self._passages(b, slope, moved, torch.cat([x, -x], -1))
        up, down = (both.unflatten(-3, (2, -1)) * weight[:, None, None]).sum(-3).unbind(-3)
        return torch.where(strength[..., None] < 0, down[of].flip(-1), up[of])

    def _passages(
        self, b: Tensor, slope: Tensor, moved: Steady | Path, x: Tensor
    ) -> Float[Tensor, "condition start node 2"]:
        """Densities of passage from each starting point, solved at the times, at all nodes."""
        n, log, free = len(self.time), 0.0, moved
        if isinstance(moved, Path):
            b, slope, x = (y.expand(len(moved.slope), -1) for y in (b, slope, x))
            path = Path(moved.mean[..., -n:], moved.slope[..., -n:], moved.leak)
        else:
            v = moved.slope[:, None]
            eta = None if moved.spread is None else moved.spread[:, None]
            log = tilt(b[..., None, :], self.nodes, x, v, eta)
            path, free = None, Steady(torch.zeros_like(v[:1, 0]), None)
        found = floored(solve(b[..., -n:], slope[..., -n:], self.time, x, path))
        # early nodes and times are each in order
        each = (b > TINY).to(b).split([len(self.nodes) - n, n], -1)
        is_open = torch.cat([y.cumprod(-1) for y in each], -1)[..., None, :, None] > 0
        b = torch.where(b > TINY, b, 1.0)
        first = outset(b, slope, self.nodes, x, *position(free, self.nodes, x))
        return torch.where(is_open, (between(found, first) + log).exp(), 0.0)

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

    def _reactions(
        self,
        g: Float[Tensor, "condition node 2"],
        values: dict[str, Tensor],
        stimulus: dict[str, Tensor],
    ) -> tuple[LogDensity, Later]:
        """Log density of reaction time and choice, and the probability of none by a time."""
        if self.jitter is not None:
            return super()._reactions(g, values, stimulus)
        later, g = self._later(g, values, stimulus), g[..., -len(self.time) :, :]
        delay = values["delay"].reshape(-1).expand(len(g))
        return self._shifted(g, values, delay), later

    def _shifted(self, g: Tensor, values: dict[str, Tensor], delay: Tensor) -> LogDensity:
        """Log density where the delay is always the same.

        The density begins as t^{-3/2} exp(-d²/2t), d the distance to the bound at time 0: divided
        by that it is smooth, and is interpolated.
        """
        x = self._starts(values)[0]
        # a spread of starts begins from the nearest one, the first or the last
        height = values["bound.height"].reshape(-1, 1)
        d = torch.stack([height - x, height + x]).amin(-1).mT.expand(len(g), 2)
        smooth = g.clamp_min(LEAST).log() + 1.5 * self.time.log()[:, None]
        smooth = smooth + 0.5 * d[:, None].square() / self.time[:, None]
        dt, last = self.time[0], len(self.time) - 1

        def log_density(time: Tensor, side: Tensor, condition: Tensor) -> Tensor:
            left = time - delay[condition]
            decided = left > 1e-3 * dt
            t = torch.where(decided, left, dt)
            found = cubic(smooth, t / dt - 1, side, condition, last)
            found = found - 1.5 * t.log() - 0.5 * d[condition, side].square() / t
            return torch.where(decided, found, -torch.inf)

        return log_density

    def _log_survival(
        self,
        until: Float[Tensor, " time"],
        g: Float[Tensor, "condition node 2"],
        values: dict[str, Tensor],
        stimulus: dict[str, Tensor],
    ) -> Float[Tensor, "#condition time"]:
        """Log P(T > t) of decision times."""
        left = 1 - self._passed(g).sum(-1)
        return log_survival(left, *self._sines(until, values, stimulus))

    def _sines(
        self, until: Float[Tensor, " time"], values: dict[str, Tensor], stimulus: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Log P(T > t) by sines, and where it is right."""
        soon = torch.cat([1e-6 * until[1:2], until[1:]])  # a Weibull has no slope at 0
        b = functional_call(self.bound, part("bound.", values), (soon,))[0]
        moved = functional_call(self.drift, part("drift.", values), (stimulus, until))
        return sines(b, until, moved, *self._starts(values))

    def _parts(self, y: Float[Tensor, "*any node"]) -> tuple[Tensor, ...]:
        """What is at the early nodes, and at the times."""
        n = len(self.time)
        return y.split([len(self.nodes) - n, n], -1)

    def _passed(self, g: Float[Tensor, "condition node 2"]) -> Float[Tensor, "condition time 2"]:
        """What has passed at 0, dt/4, …."""
        each = zip(self._parts(g.mT), self._parts(self.nodes), strict=True)
        early, late = (through(y, t).mT for y, t in each)
        late, k = early_of(late, FINE * len(self.time)), early.shape[-2]
        late = late[..., k:, :] - late[..., k - 1 : k, :] + early[..., -1:, :]
        passed = torch.cat([torch.zeros_like(g[..., :1, :]), early, late], -2)
        # in all, what answers are given by: of densities that are rough they are not the same
        mass, last = self.width[:, None] * g, passed[..., -1:, :]
        whole = mass.sum(-2, keepdim=True) - 0.5 * mass[..., -1:, :]
        some = last > 1e-3
        return passed * torch.where(some, whole / torch.where(some, last, 1.0), 1.0)


def floored(g: Tensor) -> Tensor:
    """Densities no smaller than rounding makes them once they have peaked: logs stay smooth.

    >>> floored(torch.tensor([[0.0], [1.0], [0.0]]))[:, 0] > 0
    tensor([False,  True,  True])
    """
    return torch.maximum(g, 1e-13 * g.detach().cummax(-2)[0])
