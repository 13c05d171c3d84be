r"""A race: each answer has an accumulator of its own, and the first to its bound is given.

.. math:: dX_i = v_i\,dt + dB_i, \quad v_\pm = v_0 \pm \tfrac12 v, \qquad
    f_i(t) = \frac{a}{\sqrt{2\pi t^3}}\, e^{-(a - v_i t)^2 / 2t}, \qquad
    S_i(t) = \Phi\!\Big(\frac{a - v_i t}{\sqrt t}\Big)
    - e^{2 a v_i}\, \Phi\!\Big(\!-\frac{a + v_i t}{\sqrt t}\Big)

The density of the upper answer is :math:`f_+ S_-`. The noises are independent, so that evidence
for one answer is none against the other, unlike in a bounded accumulator of their difference
(which the leaky competing accumulator is, to first order: see
:class:`~neurodiff.perception.drifts.Leak`, leak less inhibition being its leak).

References:
    Logan, Van Zandt, Verbruggen & Wagenmakers 2014, Psychol. Rev. 121; Tweedie 1957, for f and S.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import LogNormal, Normal, Uniform, constraints
from torch.distributions.constraints import Constraint
from torch.func import functional_call
from torch.nn.functional import pad

from neurodiff.perception.drifts import Power
from neurodiff.perception.reaction import Reaction, part


def first_passage(
    bound: Tensor, drift: Tensor, time: Tensor
) -> tuple[Float[Tensor, "*condition time"], Float[Tensor, "*condition time"]]:
    """Density of passage through one bound, an inverse Gaussian, and the share not yet through.

    Args:
        bound: Distance to it, above 0; broadcasts with time.
        drift: Towards it, per second.
        time: Seconds.

    >>> f, left = first_passage(torch.tensor(1.0), torch.tensor(2.0), torch.tensor([0.5]))
    >>> f, left
    (tensor([1.1284]), tensor([0.3723]))
    """
    root = time.sqrt()
    y, z = (bound - drift * time) / root, (bound + drift * time) / root
    gauss = torch.exp(-0.5 * y * y)
    density = bound / (math.sqrt(2 * math.pi) * time * root) * gauss
    # erfcx keeps e^{2av} from overflow, and both terms of S from cancelling in its tail
    ahead, behind = torch.where(z > 0, z, 0.0), torch.where(y < 0, -y, 0.0)
    second = torch.special.erfcx(math.sqrt(0.5) * ahead)
    tail = 0.5 * gauss * (torch.special.erfcx(math.sqrt(0.5) * behind) - second)
    below = 0.5 * torch.erfc(-math.sqrt(0.5) * y)
    away = torch.exp(2 * bound * torch.where(z > 0, 0.0, drift))
    whole = torch.where(
        z > 0,
        below - 0.5 * gauss * second,
        below - 0.5 * away * torch.erfc(math.sqrt(0.5) * z),
    )
    return density, torch.where(y < 0, tail, whole)


class Race(Reaction):
    r"""Two independent accumulators, each with a bound.

    Args:
        drift: v, the difference of the two drifts, without a spread.
        horizon: Seconds after which no answer is taken.
        steps: Time steps up to the horizon.
        height: a, in units of the noise of one second: LogNormal(0, 0.5).
        base: v_0, the drift that both have, per second: Normal(1, 2).
        delay: Mean of the time not spent deciding, seconds.
        jitter: Its s.d. over trials.
        start: Head start of the upper accumulator as a share of its bound, taken from the other:
            Uniform(-1, 1); None for none.
        lapse: Share of trials that guess.

    Raises:
        ValueError: If the drift has a spread over trials.

    >>> model = Race(Power(), horizon=2.0)
    >>> trials = {"strength": torch.tensor([0.1, 0.1]), "choice_known": torch.ones(2)}
    >>> model(trials).log_prob(torch.tensor([0.8, -0.8])).diff() < 0
    tensor([True])
    """

    start: nn.Parameter | None
    constraints: ClassVar[dict[str, Constraint]] = Reaction.constraints | {
        "height": constraints.positive,
        "base": constraints.real,
        "start": constraints.interval(-1.0, 1.0),
    }

    def __init__(
        self,
        drift: Power,
        horizon: float,
        steps: int = 100,
        *,
        height: float = 1.0,
        base: float = 1.5,
        delay: float = 0.3,
        jitter: float = 0.05,
        start: float | None = None,
        lapse: float = 0.01,
    ) -> None:
        if drift.spread is not None:
            raise ValueError("a race takes no spread of drifts: give Power(spread=None)")
        own = {"height": height, "base": base, "start": start}
        super().__init__({"drift": drift}, horizon, steps, delay, jitter, lapse, **own)
        self.priors |= {
            "height": LogNormal(0.0, 0.5),
            "base": Normal(1.0, 2.0),
            "start": Uniform(-1.0, 1.0),
        }

    def _decisions(
        self, values: dict[str, Tensor], stimulus: dict[str, Tensor]
    ) -> Float[Tensor, "condition node 2"]:
        """Densities of decision time and choice."""
        (upper, up), (lower, down) = self._both(self.nodes, values, stimulus)
        return torch.stack([upper * down, lower * up], -1)

    def _both(
        self, time: Tensor, values: dict[str, Tensor], stimulus: dict[str, Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Density of passage and share not yet through, of the upper and the lower accumulator."""
        moved = functional_call(self.drift, part("drift.", values), (stimulus, time))
        half, base, height = 0.5 * moved.slope[:, None], values["base"], values["height"]
        shift = values.get("start", torch.zeros_like(height))
        return [first_passage(height * (1 - s * shift), base + s * half, time) for s in (1.0, -1.0)]

    def _log_survival(
        self,
        until: Float[Tensor, " time"],
        g: Float[Tensor, "condition node 2"],
        values: dict[str, Tensor],
        stimulus: dict[str, Tensor],
    ) -> Float[Tensor, "#condition time"]:
        """Log P(T > t) of decision times: neither is through."""
        each = [left for _, left in self._both(until[1:], values, stimulus)]
        log = torch.stack(each).clamp_min(1e-300).log().sum(0)
        return pad(log, (1, 0))
