r"""The kinds of stopping: what a weighting says about a response.

A monotone weighting is the survival function of a stopping law,
:math:`w(\lambda) = P(\Lambda > \lambda)`. *Threshold*, kind (a), lets the response need the SNR Λ:

.. math:: P(\text{respond} \mid \lambda) = F_\Lambda(\lambda) = 1 - w(\lambda)

*Limited*, kind (a′), lets the stimulus end at λ; the observer halts at the smaller of Λ and λ and
answers ideally from there. With A the accuracy of :mod:`~neurodiff.perception.ideal`,

.. math:: P(\text{correct} \mid \lambda) = E\,A(\min(\Lambda, \lambda))
          = A(-\infty) + \int_{-\infty}^{\lambda} w(l)\,A'(l)\,dl

so w = 1, the ELBO, is the ideal observer and w ≤ 1 an efficiency at each SNR. The threshold kind
is descriptive only: any monotone psychometric function or level-response curve is some 1 - w (the
logistic law is exactly Naka-Rushton), so a good fit says nothing about diffusion. The stimulus
fixes logsnr only up to a gauge,

.. math:: \lambda_{true} = \kappa\,(\lambda_{stim} + \text{shift})

A named weighting therefore carries ``shift``, and ``kappa`` in the free gauge; a law with ``loc``
and ``scale`` carries these, and then κ = 1, shift = 0.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, LogNormal, Normal, constraints

from neurodiff.diffusion.law import bisect, finite
from neurodiff.diffusion.weighting import SurvivalWeighting, Weighting, to_stopping
from neurodiff.perception.frontend import Nominal, middle
from neurodiff.perception.ideal import Ideal, hermite
from neurodiff.perception.observers import Choice

_CELLS = 512  # of the quadrature over accuracy


class Gauge(Weighting):
    r"""A named weighting on the scale of a stimulus: :math:`w(\kappa(\lambda + \text{shift}))`.

    Args:
        weighting: A monotone weighting, without parameters of its own to learn.
        free: Whether κ is learned; else κ = 1, and the weighting's own scale is a hypothesis.
        logsnr_min: Where a weighting that grows without bound is cut, in its own coordinate.

    Raises:
        ValueError: If the weighting has no stopping law; the message names where it rises.

    >>> import neurodiff as nd
    >>> Gauge(nd.weighting("sigmoid", bias=0.0))(torch.tensor(0.0)).detach()
    tensor(0.5000)
    """

    monotone = True
    constraints: ClassVar = {"shift": constraints.real, "kappa": constraints.positive}
    priors: ClassVar = {"shift": Normal(0.0, 5.0), "kappa": LogNormal(0.0, 1.0)}

    def __init__(
        self, weighting: Weighting, free: bool = False, logsnr_min: float | None = None
    ) -> None:
        super().__init__()
        self.law = to_stopping(weighting, logsnr_min=logsnr_min).requires_grad_(False)
        self.name = weighting.name
        self.shift = nn.Parameter(torch.tensor(0.0))
        self.kappa = nn.Parameter(torch.tensor(1.0), requires_grad=free)

    def stopped(self, logsnr: Tensor) -> Tensor:
        """P(Λ ≤ logsnr), accurate where it is small."""
        return self.law().cdf(self.kappa * (logsnr + self.shift))

    def forward(self, logsnr: Tensor) -> Tensor:
        """P(Λ > logsnr)."""
        return self.law().survival(self.kappa * (logsnr + self.shift))


def stopped(weighting: SurvivalWeighting | Gauge, logsnr: Tensor) -> Tensor:
    """1 - w, from the law's own cdf: exact where few have stopped, and at ±inf.

    >>> import neurodiff as nd
    >>> w = nd.SurvivalWeighting(nd.laws.Logistic())
    >>> stopped(w, torch.tensor([-torch.inf, 0.0, torch.inf])).detach()
    tensor([0.0000, 0.5000, 1.0000])
    """
    # at ±inf a derivative would be inf·0 = NaN, so the law never sees them
    inside = finite(logsnr)
    if isinstance(weighting, Gauge):
        return weighting.stopped(inside)
    return weighting.law().cdf(inside)


def places(
    weighting: Weighting, front_end: nn.Module, trials: dict[str, Tensor]
) -> dict[str, Distribution]:
    """Default priors of what has a place on logsnr: they follow the tested values."""
    own = getattr(front_end, "centre", None)
    found = {} if own is None else {f"front_end.{k}": v for k, v in own(trials).items()}
    if isinstance(weighting, Gauge):
        found["weighting.shift"] = Normal(-middle(front_end, trials), 5.0)
    elif hasattr(getattr(weighting, "law", None), "loc"):
        found["weighting.law.loc"] = Normal(middle(front_end, trials), 5.0)
    return found


class Threshold(nn.Module):
    """Kind (a): the response needs the SNR at which denoising stops; drive = 1 - w(logsnr).

    Args:
        weighting: A :class:`~neurodiff.SurvivalWeighting` of a law to learn, or a named weighting,
            which is given its gauge (κ = 1; wrap it in :class:`Gauge` for the free one).
        observer: What turns the drive into responses: :class:`~neurodiff.observers.Choice` or
            :class:`~neurodiff.observers.Counts`.
        front_end: What turns the stimulus into logsnr; by default the logsnr of the data.

    Raises:
        ValueError: If the weighting has no stopping law.

    >>> import neurodiff as nd
    >>> model = Threshold(nd.SurvivalWeighting(nd.laws.Logistic()), nd.observers.Choice(choices=2))
    >>> model({"logsnr": torch.tensor([-torch.inf])}).probs.detach()
    tensor([0.5000])
    """

    def __init__(
        self, weighting: Weighting, observer: nn.Module, front_end: nn.Module | None = None
    ) -> None:
        super().__init__()
        known = isinstance(weighting, SurvivalWeighting | Gauge)
        self.weighting = weighting if known else Gauge(weighting)
        self.observer = observer
        self.front_end = Nominal() if front_end is None else front_end

    @property
    def requires(self) -> tuple[str, ...]:
        """The variables of the data that the model reads, besides the response."""
        return tuple(dict.fromkeys([*self.front_end.requires, *self.observer.requires]))  # pyright: ignore

    @property
    def response(self) -> str:
        """The variable that the model is a distribution of."""
        return self.observer.response  # pyright: ignore

    def centre(self, trials: dict[str, Tensor]) -> dict[str, Distribution]:
        """Default priors of the law's place: Normal(middle of the tested logsnr, 5 nats)."""
        return places(self.weighting, self.front_end, trials)

    def forward(self, trials: dict[str, Tensor]) -> Distribution:
        """The distribution of the responses, batch shape (trial,)."""
        return self.observer(stopped(self.weighting, self.front_end(trials)), trials)


class Limited(nn.Module):
    r"""Kind (a′): the stimulus ends at logsnr, and the observer stops there or before.

    .. math:: P = A(-\infty) + \int_{-\infty}^{\lambda} w\,A'\,d\lambda,
              \qquad P(\text{correct}) = \text{lapse} \cdot \text{chance} + (1 - \text{lapse})\,P

    The integral runs over accuracy, on a fixed grid that is finer at both ends; its error is below
    1e-6 for laws at least 0.2 nats wide. A weighting with a jump (step) is right to 1e-3 only.

    Args:
        weighting: A :class:`~neurodiff.SurvivalWeighting`, a :class:`Gauge`, or a named weighting,
            which is given its gauge (κ = 1); ``elbo`` has none: it is the ideal observer.
        ideal: The ideal observer of the task. It reads logsnr as it stands: where the stimulus
            gives logsnr up to a constant only, :class:`~neurodiff.perception.frontend.Sensitivity`
            learns that constant.
        observer: Adds guesses and slips. By default a lapse and no ceiling below 1; give a
            :class:`~neurodiff.observers.Choice` to have the ceiling learned too.
        front_end: What turns the stimulus into logsnr; by default the logsnr of the data.

    Raises:
        ValueError: If the weighting has no stopping law (but for the ELBO), or the observer's guess
            rate is not the ideal observer's chance.

    >>> import neurodiff as nd
    >>> model = Limited(nd.weighting("elbo"), nd.perception.ideal.Binary())
    >>> model({"logsnr": torch.tensor([-torch.inf, 0.0])}).probs.detach().numpy().round(3)
    array([0.5  , 0.835])
    """

    nodes: Tensor
    edges: Tensor

    def __init__(
        self,
        weighting: Weighting,
        ideal: Ideal,
        observer: Choice | None = None,
        front_end: nn.Module | None = None,
    ) -> None:
        super().__init__()
        known = isinstance(weighting, SurvivalWeighting | Gauge) or weighting.name == "elbo"
        self.weighting = weighting if known else Gauge(weighting)
        self.ideal = ideal
        self.observer = _lapses_only(ideal.chance) if observer is None else observer
        self.front_end = Nominal() if front_end is None else front_end
        if abs(self.observer.guess.item() - ideal.chance) > 1e-6:
            raise ValueError(
                f"the observer guesses right at a rate of {self.observer.guess.item():g}, the "
                f"ideal at {ideal.chance:g}: wanted the same, Choice(guess={ideal.chance:g})"
            )
        u = torch.linspace(0.0, 1.0, _CELLS + 1, dtype=torch.float64)
        # even in accuracy but for both ends, where logsnr runs off to ±inf: there steps shrink as
        # u² and (1 − u)³
        part = u * u * (6 - 8 * u + 3 * u * u)
        edges = ideal.chance + (ideal.best - ideal.chance) * part
        between = torch.stack([edges[:-1], 0.5 * (edges[:-1] + edges[1:])], -1).flatten()
        accuracy = torch.cat([between, edges[-1:]])
        ends = accuracy.new_tensor([-160.0, 160.0])
        self.register_buffer("edges", edges)
        self.register_buffer("nodes", bisect(ideal, accuracy, ends[0], ends[1]))

    @property
    def requires(self) -> tuple[str, ...]:
        """The variables of the data that the model reads, besides the response."""
        return tuple(dict.fromkeys([*self.front_end.requires, *self.observer.requires]))  # pyright: ignore

    @property
    def response(self) -> str:
        """``correct``."""
        return self.observer.response

    def centre(self, trials: dict[str, Tensor]) -> dict[str, Distribution]:
        """Default priors of the law's place: Normal(middle of the tested logsnr, 5 nats)."""
        return places(self.weighting, self.front_end, trials)

    def reached(self, accuracy: Tensor) -> Tensor:
        """P(correct) without slips, where the ideal observer's accuracy is ``accuracy``.

        The integral is cumulated by Simpson's rule at the edges of the cells, and the cubic with
        those values and the slopes w leads to each trial.
        """
        # one w for all trials is a vector over nodes; one per trial (subjects) a column for each
        each = self.weighting(self.nodes[0]).dim() > 0
        w = self.weighting(self.nodes[:, None] if each else self.nodes)
        width = self.edges.diff()
        edge, step = w[::2], width[:, None] if each else width
        area = step / 6 * (edge[:-1] + 4 * w[1::2] + edge[1:])
        total = torch.cat([torch.zeros_like(area[:1]), area.cumsum(0)])
        cell = torch.bucketize(accuracy.detach(), self.edges[1:-1], right=True)

        def at(values: Tensor, index: Tensor) -> Tensor:
            if each:
                return values.gather(0, index[None])[0]
            return values.index_select(0, index.reshape(-1)).reshape(index.shape)

        t = (accuracy - self.edges[cell]) / width[cell]
        left, right = at(edge, cell) * width[cell], at(edge, cell + 1) * width[cell]
        return self.ideal.chance + hermite(t, at(total, cell), at(total, cell + 1), left, right)

    def forward(self, trials: dict[str, Tensor]) -> Distribution:
        """The probability of a correct answer."""
        correct = self.reached(self.ideal(self.front_end(trials)))
        chance = self.ideal.chance
        return self.observer((correct - chance) / (1 - chance), trials)


def _lapses_only(chance: float) -> Choice:
    """An observer whose ceiling is 1."""
    observer = Choice(guess=chance)
    observer.ceiling.requires_grad_(False).fill_(1.0)
    return observer
