r"""Stopping that asks nothing of the evidence's sign: at a time, or at a signal-to-noise ratio.

.. math::

    \text{time:}\quad \log T \sim \text{law} \qquad
    \text{SNR:}\quad \log(v^2 T) \sim \text{law}

    g_\pm(t) = f_T(t)\; \Phi\!\left(\pm \frac{\mathrm{E} X_t}{\mathrm{sd}\,X_t}\right), \qquad
    \text{and}\quad \Phi(\pm v\sqrt t) = \Phi(\pm e^{\lambda/2})
    \quad\text{at}\quad \lambda = \log(v^2 t)

The observer answers by the sign of the evidence where it stops: the ideal answer at that SNR. Here
the survival of decision times *is* a weighting, :math:`w(\lambda) = P(\log(v^2 T) > \lambda)`. A
time stop (urgency without evidence, a deadline of one's own) has one law on the clock, so the
weightings of two strengths differ by a shift of :math:`2 \log|v|`; an SNR stop has one weighting
for all strengths, so that mean decision time goes as 1/v² and strength 0 is never answered: it is
the floor of a comparison. :mod:`~neurodiff.perception.strength_stop` is between and beyond both.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, constraints
from torch.distributions.constraints import Constraint
from torch.func import functional_call
from torch.nn.functional import pad

from neurodiff.diffusion.law import Law, LocationScale
from neurodiff.perception.drifts import Power, Steady, position
from neurodiff.perception.early import FINE
from neurodiff.perception.first_passage import Path
from neurodiff.perception.on_clock import OnClock, masses
from neurodiff.perception.reaction import Reaction, part

_SOON, _OCTAVE = 48, 4  # cells, and in an octave, about the first nodes: an SNR may take a µs
_NEAR = 4  # the last of these nodes
_NEVER = -500.0  # log SNR of no drift


def normal_cdf(z: Tensor) -> Tensor:
    """Φ, accurate in the lower tail.

    >>> normal_cdf(torch.tensor(0.0))
    tensor(0.5000)
    """
    return 0.5 * torch.erfc(-math.sqrt(0.5) * z)


class TimeStop(OnClock, Reaction):
    r"""Stop at a time that does not depend on the evidence, and answer by its sign.

    Args:
        drift: What moves the evidence.
        law: Of log T, T in seconds; its loc has the prior Normal(log 0.5, 1) and its scale
            LogNormal(log 0.3, 0.7).
        horizon: Seconds after which no answer is taken.
        steps: Time steps up to the horizon.
        delay: Mean of the time not spent deciding, seconds.
        jitter: Its s.d. over trials.
        start: Evidence at time 0, in units of the noise of one second: Normal(0, 0.5); None for 0.
        lapse: Share of trials that guess.

    >>> from neurodiff.diffusion.laws import Logistic
    >>> model = TimeStop(Power(), Logistic(-0.7, 0.3), horizon=2.0)
    >>> trials = {"strength": torch.tensor([0.1, 0.1]), "choice_known": torch.ones(2)}
    >>> model(trials).log_prob(torch.tensor([0.8, -0.8])).diff() < 0
    tensor([True])
    """

    law: Law
    edges: Tensor
    inside: Tensor
    share: Tensor
    start: nn.Parameter | None
    constraints: ClassVar[dict[str, Constraint]] = Reaction.constraints | {
        "start": constraints.real
    }

    def __init__(
        self,
        drift: nn.Module,
        law: Law,
        horizon: float,
        steps: int = 100,
        *,
        delay: float = 0.3,
        jitter: float = 0.05,
        start: float | None = None,
        lapse: float = 0.01,
    ) -> None:
        parts = {"drift": drift, "law": law}
        super().__init__(parts, horizon, steps, delay, jitter, lapse, start=start)
        self.priors |= {"start": Normal(0.0, 0.5)}

    def _grid(self, steps: int) -> None:
        """Nodes at 0 and each quarter of a step, and the cells about them; the first have many."""
        super()._grid(steps)
        quarter = self.time[0] / FINE
        self.register_buffer("nodes", quarter * torch.arange(FINE * steps + 1).to(quarter))
        self.register_buffer("width", quarter.repeat(len(self.nodes)))
        # up to half a quarter past the last of these, each larger by as much than the one before
        top, late = quarter * (_NEAR + 0.5), self.nodes[_NEAR + 1 :]
        soon = top * 2.0 ** (-torch.arange(_SOON, -1, -1).to(quarter) / _OCTAVE)
        within = soon * 2.0 ** (-0.5 / _OCTAVE)
        self.register_buffer("edges", torch.cat([soon, late + 0.5 * quarter]))
        self.register_buffer("inside", torch.cat([within, late]))
        away = within[:, None] / quarter - torch.arange(_NEAR + 2).to(quarter)
        self.register_buffer("share", (1 - away.abs()).clamp_min(0.0))

    def _clock(
        self,
        log_time: Float[Tensor, " time"],
        moved: Steady | Path,
        values: dict[str, Tensor],
        stimulus: dict[str, Tensor],
    ) -> Float[Tensor, "#condition time"]:
        """What the law is about."""
        return log_time[None]

    def _log_survival(
        self,
        until: Float[Tensor, " time"],
        g: Float[Tensor, "condition node 2"],
        values: dict[str, Tensor],
        stimulus: dict[str, Tensor],
    ) -> Float[Tensor, "#condition time"]:
        """Log P(T > t) of decision times."""
        moved = functional_call(self.drift, part("drift.", values), (stimulus, until))
        law = functional_call(self.law, part("law.", values), ())
        at = self._clock(until[1:].log(), moved, values, stimulus)
        return pad(law.log_survival(at.clamp_min(_NEVER)), (1, 0))

    def _decisions(
        self, values: dict[str, Tensor], stimulus: dict[str, Tensor]
    ) -> Float[Tensor, "condition node 2"]:
        """Densities of decision time and choice: what the law gives to each cell of time."""
        moved = functional_call(self.drift, part("drift.", values), (stimulus, self.inside))
        law = functional_call(self.law, part("law.", values), ())
        left = law.survival(self._clock(self.edges.log(), moved, values, stimulus))
        mass = masses(left, left.shape[-1:])
        start = values.get("start", torch.zeros_like(values["delay"]))
        mean, variance = position(moved, self.inside, start.reshape(-1, 1))
        z = (mean / variance.sqrt())[:, 0]
        each = mass[..., None] * normal_cdf(torch.stack([z, -z], -1))
        soon, late = each.split([_SOON + 1, each.shape[1] - _SOON - 1], 1)
        # the first nodes share what is between them, its mean time kept
        first = (soon.mT @ self.share).mT
        both = first[:, :-1], first[:, -1:] + late[:, :1], late[:, 1:]
        return torch.cat(both, 1) / self.width[:, None]


class SnrStop(TimeStop):
    r"""Stop where log SNR, :math:`\log(v^2 t)`, crosses a threshold drawn from a law.

    A :class:`TimeStop` whose clock is logsnr: P(correct) is :math:`\Phi(e^{\lambda/2})`. Only
    lapses answer where v is 0.

    Args:
        drift: Without a spread: the observer knows the SNR.
        law: Of logsnr, nats; its loc has the prior Normal(0, 2).
        horizon: Seconds after which no answer is taken.
        steps: Time steps up to the horizon.
        **nuisances: ``delay``, ``jitter``, ``start`` and ``lapse`` of a :class:`TimeStop`.

    Raises:
        ValueError: If the drift has a spread over trials.

    >>> from neurodiff.diffusion.laws import Logistic
    >>> model = SnrStop(Power(), Logistic(0.0, 0.5), horizon=2.0)
    >>> trials = {"strength": torch.tensor([0.0, 0.5]), "choice_known": torch.ones(2)}
    >>> never = torch.full((2,), torch.inf)
    >>> [round(p, 2) for p in model(trials).log_prob(never).exp().tolist()]
    [0.99, 0.0]
    """

    def __init__(
        self, drift: Power, law: Law, horizon: float, steps: int = 100, **nuisances: float | None
    ) -> None:
        if drift.spread is not None:
            raise ValueError(
                "the drift has a spread over trials, so its SNR is not known to the observer: "
                "give Power(spread=None)"
            )
        super().__init__(drift, law, horizon, steps, **nuisances)  # pyright: ignore

    ridges = ()  # of the law's place accuracy says more than time does

    def centre(self, trials: dict[str, Tensor]) -> dict[str, Distribution]:
        """Default prior of the law's place, where the ideal observer is between 0.6 and 1 right."""
        return {"law.loc": Normal(0.0, 2.0)} if isinstance(self.law, LocationScale) else {}

    def _clock(
        self,
        log_time: Float[Tensor, " time"],
        moved: Steady | Path,
        values: dict[str, Tensor],
        stimulus: dict[str, Tensor],
    ) -> Float[Tensor, "condition time"]:
        v = moved.slope[:, None]
        moves = v != 0
        logsnr = 2 * torch.where(moves, v, 1.0).abs().log() + log_time
        return torch.where(moves, logsnr, -torch.inf)
