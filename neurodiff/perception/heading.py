r"""Evidence that comes and goes: heading from vision, self-motion, or both.

A cue is as reliable as the motion is strong. Momentary evidence of sensitivity k p(t) is weighted
by p(t) and added up (Drugowitsch et al. 2014):

.. math:: dX = p\,\big(k \sin(h + h_0)\, p\,dt + dB\big), \qquad
    s(t) = \int_0^t p^2, \qquad dX = k \sin(h + h_0)\,ds + dB_s

so in the clock s of information X has a constant drift: one driftless solve for each bound serves
all headings, and :math:`g(t) = g(s(t))\, p(t)^2`. (With a varying drift in time, every heading and
coherence would need a solve, and noise, which is weighted too, would be a second function of time.)
A bound is a function of s: constant in X, as in the paper, or collapsing as evidence comes in.
log SNR at t is :math:`\lambda = \log (k \sin h)^2 s(t)`.

Vision goes with velocity, self-motion with acceleration, each of mean square 1 over the trial. Two
cues weighted by :math:`k_j^2 p_j^2` add in information, so their clock is a mixture:

.. math:: k_{both}^2 = e_c^2\,(k_c^2 + k_{vest}^2), \qquad
    s_{both} = \rho_c\, s_{vis} + (1 - \rho_c)\, s_{vest}, \qquad
    \rho_c = \frac{k_c^2}{k_c^2 + k_{vest}^2}

with e_c = 1 where they are combined optimally: nothing is then free. With e_c free the paper's
question, whether combination is optimal, is asked of e_c.

References:
    Drugowitsch, DeAngelis, Klier, Angelaki & Pouget 2014, eLife 3:e03005. Velocity is Gaussian with
    s.d. 1/(2·8^{1/4}) = 0.297 s about 1 s of 2 s (``va_profile.m`` of DrugowitschLab/CoSMo2017);
    sensitivities, a bound for each cue and coherence, and delays for each cue are as in its fits.
"""

import math
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import LogNormal, Normal, constraints
from torch.func import functional_call

from neurodiff.perception.bounded import Bounded, floored
from neurodiff.perception.bounds import Bound
from neurodiff.perception.delayed import jittered
from neurodiff.perception.drifts import Steady
from neurodiff.perception.early import BEND, LEAST, outset
from neurodiff.perception.first_passage import solve, tilt
from neurodiff.perception.interpolate import cubic
from neurodiff.perception.reaction import part
from neurodiff.perception.survivors import sines
from neurodiff.perception.volterra import TINY

_LATEST = 12.0  # b_0² of the clock after which fewer than one in a million paths go on
_SOONEST = 1e-9  # of the clock, seconds
WIDTH, CENTRE, DURATION = 0.5 * 8**-0.25, 1.0, 2.0  # seconds, of the velocity


class Motion(NamedTuple):
    r"""A Gaussian velocity, and what squares of it and of its derivative add up to.

    .. math:: \int e^{-z^2} = \tfrac{\sqrt\pi}{2}\,\mathrm{erf}\,z, \qquad
        \int z^2 e^{-z^2} = \tfrac{\sqrt\pi}{4}\,\mathrm{erf}\,z - \tfrac12 z e^{-z^2}, \qquad
        z = (t - \text{centre}) / \text{width}

    Attributes:
        width: S.d. of the velocity, seconds.
        centre: Its peak, seconds.
    """

    width: float = WIDTH
    centre: float = CENTRE

    def clocks(
        self, time: Float[Tensor, " time"], horizon: float
    ) -> tuple[Float[Tensor, "2 time"], Float[Tensor, "2 time"]]:
        """S and p² of velocity and acceleration: s is 0 at time 0 and the horizon at the horizon.

        >>> s, rate = Motion().clocks(torch.tensor([1.0, 2.0]), 2.0)
        >>> s.round(decimals=3)
        tensor([[1., 2.],
                [1., 2.]])
        """
        ends = torch.tensor([0.0, horizon]).to(time)
        (first, last), at = self._sums(ends).unbind(-1), self._sums(time)
        scale = horizon / (last - first)
        z = (time - self.centre) / self.width
        bell = torch.exp(-z * z) / self.width
        rate = torch.stack([bell, z * z * bell])
        return (at - first[:, None]) * scale[:, None], rate * scale[:, None]

    def _sums(self, time: Tensor) -> Tensor:
        z = (time - self.centre) / self.width
        bell = 0.5 * math.sqrt(math.pi) * torch.erf(z)
        return torch.stack([bell, 0.5 * bell - 0.5 * z * torch.exp(-z * z)])


class Clocked(NamedTuple):
    """A drift that is constant in the clock of information.

    Attributes:
        slope: Drift per unit of the clock, of each condition.
        place: Which cue and coherence, as :meth:`Cues.place` counts them.
        elapsed: s(t) of each condition, in seconds: the horizon at the horizon.
        rate: Its derivative.
    """

    slope: Float[Tensor, " condition"]
    place: Int[Tensor, " condition"]
    elapsed: Float[Tensor, "condition time"]
    rate: Float[Tensor, "condition time"]


class Cues(nn.Module):
    """What moves the evidence about a heading: optic flow, the movement of a chair, or both.

    Args:
        coherences: Those of the optic flow, above 0, as the data have them.
        horizon: Seconds over which the clocks run.
        motion: The motion; None for reliabilities that do not change in time.
        combined: Whether what both cues give together is free (e_c); else it is optimal.

    Parameters: ``visual`` k_c, ``vestibular`` k, per root second at a heading of 90°;
    ``bias`` h_0 in degrees of vision, self-motion, both; ``efficiency`` e_c.

    >>> drift = Cues((0.25, 0.7), 2.0)
    >>> columns = {"heading": [30.0, 30.0], "coherence": [0.0, 0.7], "vestibular": [1.0, 1.0]}
    >>> given = {name: torch.tensor(values)[:, None] for name, values in columns.items()}
    >>> drift(given, torch.tensor([1.0])).slope.detach()  # the root of 10² + 10², times sin 30°
    tensor([5.0000, 7.0711])
    """

    levels: Tensor
    efficiency: nn.Parameter | None
    requires = ("heading", "coherence", "vestibular")
    constraints: ClassVar = {
        "visual": constraints.positive,
        "vestibular": constraints.positive,
        "bias": constraints.real,
        "efficiency": constraints.positive,
    }
    priors: ClassVar = {
        "visual": LogNormal(math.log(15.0), 1.0),
        "vestibular": LogNormal(math.log(15.0), 1.0),
        "bias": Normal(0.0, 2.0),
        "efficiency": LogNormal(0.0, 0.5),
    }

    def __init__(
        self,
        coherences: tuple[float, ...],
        horizon: float,
        motion: Motion | None = Motion(),  # noqa: B008  # immutable
        combined: bool = False,
    ) -> None:
        super().__init__()
        self.horizon, self.motion = horizon, motion
        self.register_buffer("levels", torch.tensor(sorted(coherences), dtype=torch.float64))
        n = len(coherences)
        self.visual = nn.Parameter(torch.full((n,), 10.0))
        self.vestibular = nn.Parameter(torch.tensor(10.0))
        self.bias = nn.Parameter(torch.zeros(3))
        self.register_parameter("efficiency", nn.Parameter(torch.ones(n)) if combined else None)

    @property
    def places(self) -> int:
        """Number of cues and coherences: vision at each, self-motion, both at each."""
        return 2 * len(self.levels) + 1

    def place(self, stimulus: dict[str, Tensor]) -> Int[Tensor, " condition"]:
        """0 to n - 1 vision at each coherence, n self-motion, n + 1 to 2 n both."""
        n, seen = len(self.levels), stimulus["coherence"][:, 0]
        level = (seen[:, None] - self.levels).abs().argmin(-1)
        both = (n + 1 + level) * (seen > 0) + n * (seen == 0)
        return torch.where(stimulus["vestibular"][:, 0] > 0, both, level)

    def cue(self, place: Int[Tensor, "*place"]) -> Int[Tensor, "*place"]:
        """0 vision, 1 self-motion, 2 both."""
        n = len(self.levels)
        return (place >= n).long() + (place > n).long()

    def forward(self, stimulus: dict[str, Tensor], time: Tensor) -> Clocked:
        """Drift and clock of each condition."""
        seen, moved = self.visual.square(), self.vestibular.square()
        none = torch.zeros_like(moved)[None]
        vision = torch.cat([seen, none, seen])  # information at each place
        inner = torch.cat([torch.zeros_like(seen), moved + none, moved + torch.zeros_like(seen)])
        gain, share = (vision + inner).sqrt(), vision / (vision + inner)
        if self.efficiency is not None:
            gain = gain * torch.cat([torch.ones_like(vision[: -len(seen)]), self.efficiency])
        place = self.place(stimulus)
        h = torch.deg2rad(stimulus["heading"][:, 0] + self.bias[self.cue(place)])
        elapsed, rate = self._clocks(time)
        mixed = [
            share[place, None] * x[0] + (1 - share[place, None]) * x[1] for x in (elapsed, rate)
        ]
        return Clocked(gain[place] * torch.sin(h), place, *mixed)

    def _clocks(self, time: Tensor) -> tuple[Tensor, Tensor]:
        if self.motion is None:
            return time.expand(2, -1), torch.ones_like(time).expand(2, -1)
        return self.motion.clocks(time, self.horizon)


class Heading(Bounded):
    """Choice and reaction time of a bounded accumulator of cues that come and go.

    One observer at a time: parameters are not given for each trial.

    Args:
        cues: What moves the evidence; its horizon is the model's.
        bound: Half-height ±b(s), in the clock of information. Its height is one for each cue and
            coherence.
        steps: Time steps up to the horizon, and steps of the clock.

    Parameters are those of a :class:`~neurodiff.perception.bounded.Bounded` without a start; the
    delay is one for each cue.

    >>> from neurodiff.perception.bounds import Constant
    >>> model = Heading(Cues((0.25, 0.7), 2.0), Constant(0.7))
    >>> columns = {"heading": 10.0, "coherence": 0.7, "vestibular": 0.0, "choice_known": 1.0}
    >>> trials = {name: torch.tensor([value, value]) for name, value in columns.items()}
    >>> model(trials).log_prob(torch.tensor([1.0, -1.0])).diff() < 0
    tensor([True])
    """

    drift: Cues

    def __init__(self, cues: Cues, bound: Bound, steps: int = 100) -> None:
        super().__init__(cues, bound, cues.horizon, steps)
        self.bound.height = nn.Parameter(self.bound.height.detach().expand(cues.places).clone())
        self.delay = nn.Parameter(self.delay.detach().expand(3).clone())
        self._dims = {name: p.dim() for name, p in self.named_parameters()}

    @property
    def cells(self) -> int:
        """Numbers in the largest temporary of one evaluation."""
        return 2 * self.drift.places * len(self.time) ** 2

    def _decisions(
        self, values: dict[str, Tensor], stimulus: dict[str, Tensor]
    ) -> Float[Tensor, "condition node 2"]:
        """Densities of decision time and choice."""
        own = part("bound.", values)
        own["height"] = height = own["height"][:, None]
        moved: Clocked = functional_call(self.drift, part("drift.", values), (stimulus, self.nodes))
        # of each place, on a grid of its own: a low bound is passed long before the clock ends
        unit = (_LATEST * height.square() / self.horizon).clamp_max(1.0)
        clock, root, zero = unit * self.time, unit.sqrt(), torch.zeros_like(height)
        b, slope = functional_call(self.bound, own, (clock,))
        still = floored(solve(b / root, slope * root, self.time, zero)[:, 0]) / unit[..., None]
        # over what it begins as it is smooth, however low the bound or fast its fall; 1 at time 0
        there = still > LEAST
        more = torch.where(there, still, 1.0).log() - _outset(b, slope, clock)
        more = torch.cat([zero[..., None].expand(-1, 1, 2), torch.where(there, more, 0.0)], -2)
        # when a short motion begins its clock is 0 to the last digit, and nothing is decided
        of, s = moved.place, moved.elapsed.clamp_min(_SOONEST)
        b, slope = functional_call(self.bound, own | {"height": height[of]}, (s,))
        condition = torch.arange(len(of), device=of.device)[:, None, None]
        side, last = torch.arange(2, device=of.device), len(self.time)
        cell = (s / clock[of, :1])[..., None]
        log = cubic(more[of], cell.clamp_max(last), side, condition, last, BEND)
        log = log + _outset(b, slope, s) + tilt(b, s, torch.zeros_like(s[:, 0]), moved.slope)
        there = (cell < last + 0.5) & (b > TINY)[..., None]
        return torch.where(there, log, -torch.inf).exp() * moved.rate[..., None]

    def _sines(
        self, until: Float[Tensor, " time"], values: dict[str, Tensor], stimulus: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Log P(T > t) by sines, place by place: each has one clock and one bound."""
        own = part("bound.", values)
        moved: Clocked = functional_call(self.drift, part("drift.", values), (stimulus, until))
        rows = [torch.nonzero(moved.place == j)[:, 0] for j in range(self.drift.places)]
        found, one = [], torch.ones_like(until[:1])
        for row, height in zip(rows, own["height"], strict=True):
            if len(row):
                s = moved.elapsed[row[0]]
                at = own | {"height": height}
                b = functional_call(self.bound, at, (s.clamp_min(_SOONEST),))[0]
                found.append(sines(b, s, Steady(moved.slope[row], None), 0 * one, one))
        order = torch.cat(rows).argsort()
        log, trusted = (torch.cat(each)[order] for each in zip(*found, strict=True))
        return log, trusted

    def _delay(self, values: dict[str, Tensor], stimulus: dict[str, Tensor]) -> Tensor:
        """Of each condition, that of its cue."""
        return values["delay"][self.drift.cue(self.drift.place(stimulus))]

    def _delayed(
        self, g: Tensor, values: dict[str, Tensor], stimulus: dict[str, Tensor]
    ) -> Float[Tensor, "condition fine 2"]:
        """Densities of reaction time, cue by cue: each has one delay."""
        cue = self.drift.cue(self.drift.place(stimulus))
        rows = [torch.nonzero(cue == j)[:, 0] for j in range(3)]
        each = [
            jittered(self.width[:, None] * g[own], self.nodes, self.time, delay, values["jitter"])
            for own, delay in zip(rows, values["delay"], strict=True)
            if len(own)
        ]
        return torch.cat(each)[torch.cat(rows).argsort()]


def _outset(b: Tensor, slope: Tensor, s: Tensor) -> Float[Tensor, "condition time 2"]:
    """What the log of a density of passage begins as, without a drift."""
    still = torch.zeros_like(s[:, None])
    return outset(torch.where(b > TINY, b, 1.0), slope, s, still[..., 0], still, s[:, None])[:, 0]
