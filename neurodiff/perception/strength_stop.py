r"""Stopping at a time whose law lies elsewhere for each strength of the stimulus.

.. math:: \log T - m_{|c|} \sim \text{law}, \qquad
    g_\pm(t) = f_T(t)\; \Phi\!\left(\pm \frac{\mathrm{E} X_t}{\mathrm{sd}\,X_t}\right)

Each strength has a weighting of its own: whatever the survival of decision times, read as a
weighting, can say. Delay and places share what the times show, so that the posterior bends.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal, constraints
from torch.nn.functional import logsigmoid

from neurodiff.diffusion.law import LocationScale
from neurodiff.perception.drifts import Steady
from neurodiff.perception.first_passage import Path
from neurodiff.perception.on_clock import parted, summed
from neurodiff.perception.timed import TimeStop


class StrengthStop(TimeStop):
    r"""Stop at a time whose law lies elsewhere for each strength: :math:`\log T - m_{|c|}` ~ law.

    With all m equal it is a :class:`TimeStop`, with :math:`m = -2 \log |v|` a :class:`SnrStop`.

    Args:
        drift: What moves the evidence.
        law: Of log T less m; its loc is held at 0.
        strengths: Each size |c| that the data hold; their places m have the prior
            Normal(log 0.5, 1), of seconds.
        horizon: Seconds after which no answer is taken.
        steps: Time steps up to the horizon.
        **nuisances: ``delay``, ``jitter``, ``start`` and ``lapse`` of a :class:`TimeStop`.

    Raises:
        ValueError: If a trial has another strength.

    >>> from neurodiff.diffusion.laws import Normal
    >>> from neurodiff.perception.drifts import Power
    >>> model = StrengthStop(Power(), Normal(0.0, 0.3), [0.1, 0.5], horizon=2.0)
    >>> trials = {"strength": torch.tensor([0.1, 0.5]), "choice_known": torch.ones(2)}
    >>> _ = model.place.data.copy_(torch.tensor([-0.5, -2.0]))  # the stronger is sooner
    >>> model(trials).log_prob(torch.full((2,), 0.5)).diff() > 0
    tensor([True])
    """

    strengths: Tensor
    ridges = "delay", "jitter", "place", "law.scale"

    def __init__(
        self,
        drift: nn.Module,
        law: LocationScale,
        strengths: Sequence[float],
        horizon: float,
        steps: int = 100,
        **nuisances: float | None,
    ) -> None:
        super().__init__(drift, law, horizon, steps, **nuisances)  # pyright: ignore
        law.loc.data.zero_()
        law.loc.requires_grad_(False)
        self.register_buffer("strengths", torch.as_tensor(strengths, dtype=torch.float64))
        self.place = nn.Parameter(torch.full((len(strengths),), math.log(0.5)))
        self._dims["place"] = 1
        self.constraints = self.constraints | {"place": constraints.real}  # pyright: ignore
        self.priors |= {"place": Normal(math.log(0.5), 1.0)}

    def prepare(self, trials: dict[str, Tensor]) -> dict[str, Tensor]:
        """The condition of each trial."""
        off = (trials["strength"].abs()[:, None] - self.strengths).abs().amin(1)
        if bool((off > 1e-9).any()):
            i = int(off.argmax())
            raise ValueError(
                f"trial {i} (from 0) has strength {float(trials['strength'][i]):g}, which is none "
                f"of {self.strengths.tolist()}: give every |strength| of the data"
            )
        return super().prepare(trials)

    def _clock(
        self,
        log_time: Float[Tensor, " time"],
        moved: Steady | Path,
        values: dict[str, Tensor],
        stimulus: dict[str, Tensor],
    ) -> Float[Tensor, "condition time"]:
        which = (stimulus["strength"].abs() - self.strengths).abs().argmin(1, keepdim=True)
        place = values["place"].reshape(-1, len(self.strengths)).expand(len(which), -1)
        return log_time - place.gather(1, which)

    def straight(self, u: dict[str, Tensor]) -> dict[str, Tensor]:
        r"""The sums of delay and place that each strength's times show, and one ratio.

        .. math:: s_j = \log(\text{delay} + e^{m_j}), \qquad
            r = \log \text{delay} - \min_j m_j, \qquad
            \Big|\frac{\partial(r, s)}{\partial(\log\text{delay}, m)}\Big| =
            \prod_{j \ne \arg\min m} \sigma(m_j - \log\text{delay})

        Args:
            u: As of a :class:`TimeStop`, with one place for each strength.

        >>> from neurodiff.diffusion.laws import Normal
        >>> from neurodiff.perception.drifts import Power
        >>> model = StrengthStop(Power(), Normal(0.0, 0.3), [0.1, 0.5], horizon=2.0)
        >>> u = dict.fromkeys(model.ridges, torch.zeros(1)) | {"place": torch.zeros(2)}
        >>> model.straight(u)["place"].exp(), model.bent(model.straight(u))["place"]
        (tensor([2., 2.]), tensor([0., 0.]))
        """
        delay, jitter, place, scale = (u[name] for name in self.ridges)
        jitter, scale = summed(jitter, scale + place.mean(-1, keepdim=True), 2.0)
        ratio = delay - place.amin(-1, keepdim=True)
        each = ratio, jitter, torch.logaddexp(delay, place), scale
        return dict(zip(self.ridges, each, strict=True))

    def bent(self, v: dict[str, Tensor]) -> dict[str, Tensor]:
        """What :meth:`straight` was given."""
        ratio, jitter, total, scale = (v[name] for name in self.ridges)
        delay = total.amin(-1, keepdim=True) + logsigmoid(ratio)
        place = total + (-torch.expm1(delay - total)).log()
        jitter, scale = parted(jitter, scale, 2.0)
        each = delay, jitter, place, scale - place.mean(-1, keepdim=True)
        return dict(zip(self.ridges, each, strict=True))

    def stretch(self, u: dict[str, Tensor]) -> Tensor:
        """Log of the determinant of :meth:`straight`."""
        apart = u["place"] - u["delay"]
        return logsigmoid(apart).sum(-1) - logsigmoid(apart.amin(-1))
