r"""Observers: from a drive in [0, 1] to the distribution of a response.

The drive is what the stopping kinds of :mod:`~neurodiff.perception.stopping` deliver: the
probability that the stimulus carries the SNR at which denoising stops. An observer turns it into
responses. With guess g, ceiling c and lapse l,

.. math::

    \text{Choice:}\quad P(\text{correct}) = l g + (1 - l)\,[g + (c - g)\,\text{drive}]

    \text{Categories:}\quad P(k) = l/K + (1 - l)\,\mathrm{softmax}_k(s \cdot \text{evidence})

    \text{Counts:}\quad m_t = \Delta\,(r_0 + r_{max}\,\text{drive}_t)\,
        \exp\Big(\sum_k h_k\, y_{t-k}\Big)

A bin of width Δ that can hold at most one spike answers Bernoulli(1 - exp(-m)) (complementary
log-log), one that can hold more Poisson(m), or negative binomial with mean m and variance
m + dispersion·m². The lapse mass is spread over all the answers at the guess rate, so that
probabilities sum to one.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    LogNormal,
    NegativeBinomial,
    Normal,
    Poisson,
    Uniform,
    constraints,
)


class Choice(nn.Module):
    r"""Right or wrong, among ``choices`` alternatives.

    .. math:: P = l g + (1 - l)\,[g + (c - g)\,\text{drive}]

    Args:
        choices: Number of alternatives: fixes the guess rate at 1/choices.
        guess: The guess rate itself, when it is not 1/choices. With neither, it is learned.

    All are probabilities. The ceiling is what item difficulty leaves at best: Uniform(guess, 1).
    The lapse is an attention slip: Beta(1, 30). A learned guess is Uniform(0, 1/2), its ceiling
    Uniform(1/2, 1).

    Raises:
        ValueError: If the guess rate is not in [0, 1), or both arguments are given.

    >>> observer = Choice(choices=2)
    >>> observer(torch.tensor([0.0, 1.0]), {}).probs.detach().round(decimals=3)
    tensor([0.5000, 0.9310])
    """

    response = "correct"
    requires = ()

    def __init__(self, choices: int | None = None, guess: float | None = None) -> None:
        super().__init__()
        if choices is not None and guess is not None:
            raise ValueError(f"got choices={choices} and guess={guess}: give one of them")
        if choices is not None:
            if choices < 2:
                raise ValueError(f"got choices={choices}, wanted at least 2 alternatives")
            guess = 1.0 / choices
        if guess is not None and not 0.0 <= guess < 1.0:
            raise ValueError(f"got a guess rate of {guess}, wanted a probability in [0, 1)")
        low = 0.5 if guess is None else guess
        self.guess = nn.Parameter(
            torch.tensor(0.25 if guess is None else guess), requires_grad=guess is None
        )
        self.ceiling = nn.Parameter(torch.tensor(low + 0.88 * (1 - low)))
        self.lapse = nn.Parameter(torch.tensor(0.02))
        self.constraints = {
            "guess": constraints.interval(0.0, 0.5),
            "ceiling": constraints.interval(low, 1.0),
            "lapse": constraints.unit_interval,
        }
        self.priors = {
            "guess": Uniform(0.0, 0.5),
            "ceiling": Uniform(low, 1.0),
            "lapse": Beta(1.0, 30.0),
        }

    def forward(self, drive: Float[Tensor, "*trial"], trials: dict[str, Tensor]) -> Distribution:
        """The probability of a correct answer."""
        reached = self.guess + (self.ceiling - self.guess) * drive
        p = self.lapse * self.guess + (1 - self.lapse) * reached
        return Bernoulli(probs=p, validate_args=False)


class Categories(nn.Module):
    r"""One of K labels, by the evidence for each.

    .. math:: P(k) = \text{lapse}/K + (1 - \text{lapse})\, p_k, \qquad
        p = \mathrm{softmax}(s \cdot \text{evidence})

    Args:
        labels: K.

    The sensitivity s is 1 where evidence is used in full: LogNormal(0, 2). The lapse is an
    attention slip, answered with any label: Beta(1, 30).

    Raises:
        ValueError: Fewer than 2 labels.

    >>> observer = Categories(4)
    >>> observer(observer.answer(torch.zeros(1, 4)), {}).probs.detach()
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    response = "choice"
    requires = ()
    constraints: ClassVar = {
        "sensitivity": constraints.positive,
        "lapse": constraints.unit_interval,
    }
    priors: ClassVar = {"sensitivity": LogNormal(0.0, 2.0), "lapse": Beta(1.0, 30.0)}

    def __init__(self, labels: int) -> None:
        super().__init__()
        if labels < 2:
            raise ValueError(f"got labels={labels}, wanted at least 2")
        self.labels = labels
        self.sensitivity = nn.Parameter(torch.tensor(1.0))
        self.lapse = nn.Parameter(torch.tensor(0.02))

    def answer(self, evidence: Float[Tensor, "*any"], dim: int = -1) -> Float[Tensor, "*any"]:
        """Probability of each label, which are along ``dim``, without lapses."""
        return (self.sensitivity * evidence).softmax(dim)

    def forward(self, p: Float[Tensor, "*trial label"], trials: dict[str, Tensor]) -> Distribution:
        """The distribution of the label that is chosen."""
        p = self.lapse / self.labels + (1 - self.lapse) * p
        return Categorical(probs=p, validate_args=False)


def _indices(spiked: Bool[Tensor, " time"]) -> Int[Tensor, " spike"] | None:
    """Where the few bins with a spike are; None where that differs between problems under vmap."""
    try:
        return spiked.nonzero()[:, 0]
    except RuntimeError:
        return None


class OneSpike(Distribution):
    """Bernoulli(1 - exp(-mean)): a Poisson process seen through a bin that holds at most one spike.

    log P(0) = -mean exactly, so silent bins, nearly all of them, cost nothing beyond the mean.

    >>> OneSpike(torch.tensor(0.7)).log_prob(torch.tensor(0.0))
    tensor(-0.7000)
    """

    arg_constraints: ClassVar = {"rate": constraints.positive}  # pyright: ignore
    support = constraints.boolean  # pyright: ignore

    def __init__(self, rate: Float[Tensor, "*trial"]) -> None:
        self.rate = rate
        super().__init__(rate.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """P(1)."""
        return -torch.expm1(-self.rate)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of 0 or 1."""
        spiked, tiny = value > 0.5, torch.finfo(self.rate.dtype).tiny
        at = _indices(spiked) if value.dim() == 1 and value.shape == self.rate.shape else None
        if at is None:
            # the inner where keeps log(0) out of both the value and the gradient of silent bins
            safe = torch.where(spiked, self.rate.clamp_min(tiny), 1.0)
            return torch.where(spiked, torch.log(-torch.expm1(-safe)), -self.rate)
        rate = self.rate[at].clamp_min(tiny)
        return (-self.rate).index_put((at,), torch.log(-torch.expm1(-rate)))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """0 or 1."""
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(self._extended_shape(sample_shape)))


def lagged(values: Float[Tensor, " time"], lags: int) -> Float[Tensor, "time {lags}"]:
    """The values 1, 2, …, ``lags`` bins ago, zero before the recording began.

    >>> lagged(torch.tensor([1.0, 2.0, 3.0]), 2)
    tensor([[0., 0.],
            [1., 0.],
            [2., 1.]])
    """
    padded = torch.cat([values.new_zeros(lags), values])
    return padded.unfold(0, lags, 1)[: len(values)].flip(-1)


class Counts(nn.Module):
    r"""Spike counts in bins, with a spike-history filter.

    .. math:: m_t = \Delta\,(r_0 + r_{max}\,\text{drive}_t)\,\exp(\textstyle\sum_k h_k y_{t-k})

    Args:
        history: Number of past bins that the history filter sees (0: none).
        width: Bin width Δ in seconds.
        most: 1 where a bin holds at most one spike (Bernoulli, cloglog); None for Poisson counts.
        dispersion: Initial dispersion of a negative binomial; None leaves the counts Poisson.

    ``base`` r₀ and ``gain`` r_max are in spikes/s. The prior of r_max is refractory:
    LogNormal(log 500, 0.7), since a neuron with a dead time of a millisecond or two cannot answer
    faster, so the law cannot run away along an ever higher ceiling.

    Raises:
        ValueError: If ``most`` is neither 1 nor None, or is combined with a dispersion.

    >>> Counts(history=0)(torch.tensor([0.0, 1.0]), {}).rate.detach()
    tensor([0.0050, 0.4050])
    """

    response = "count"
    constraints: ClassVar = {
        "base": constraints.positive,
        "gain": constraints.positive,
        "history": constraints.real_vector,
        "dispersion": constraints.positive,
    }
    priors: ClassVar = {
        "base": LogNormal(math.log(5.0), 1.5),
        "gain": LogNormal(math.log(500.0), 0.7),
        "history": Normal(0.0, 3.0),
        "dispersion": LogNormal(-1.0, 1.0),
    }

    def __init__(
        self,
        history: int = 15,
        width: float = 1e-3,
        most: int | None = 1,
        dispersion: float | None = None,
    ) -> None:
        super().__init__()
        if most not in (1, None):
            raise ValueError(
                f"got most={most}, wanted 1 (at most one spike a bin) or None (any count)"
            )
        if most == 1 and dispersion is not None:
            raise ValueError("a bin that holds at most one spike has no dispersion: use most=None")
        self.width, self.most, self.lags = width, most, history
        # one spike or none: no difference of large numbers, as in the log factorials of counts
        self.single = most == 1
        self.base = nn.Parameter(torch.tensor(5.0))
        self.gain = nn.Parameter(torch.tensor(400.0))
        if history:
            # the first bins after a spike are refractory: start there
            start = -4.0 * torch.exp(-torch.arange(float(history)) / 2)
            self.history = nn.Parameter(start)
        if dispersion is not None:
            self.dispersion = nn.Parameter(torch.tensor(dispersion))

    @property
    def requires(self) -> tuple[str, ...]:
        """Counts themselves are needed where their history is."""
        return ("count",) if self.lags else ()

    def prepare(self, trials: dict[str, Tensor]) -> dict[str, Tensor]:
        """The lagged counts, built once for a data set rather than at every call."""
        if self.most == 1 and "count" in trials and (trials["count"] > 1).any():
            first = int((trials["count"] > 1).nonzero()[0])
            raise ValueError(
                f"bin {first} holds {int(trials['count'][first])} spikes, wanted at most 1: "
                "use narrower bins, or Counts(most=None)"
            )
        return {"count_lags": lagged(trials["count"], self.lags)} if self.lags else {}

    def forward(self, drive: Float[Tensor, "*trial"], trials: dict[str, Tensor]) -> Distribution:
        """The counts of each bin given the drive and the counts before it."""
        m = self.width * self.base + (self.width * self.gain) * drive
        if self.lags:
            past = (
                trials["count_lags"]
                if "count_lags" in trials
                else lagged(trials["count"], self.lags)
            )
            h = self.history
            # one filter for all bins is a product with a matrix; one per bin (units) a sum
            m = m * torch.exp(past @ h if h.dim() == 1 else (past * h).sum(-1))
        if self.most == 1:
            return OneSpike(m)
        if hasattr(self, "dispersion"):
            total = 1 / self.dispersion
            return NegativeBinomial(
                total, logits=torch.log(m * self.dispersion), validate_args=False
            )
        return Poisson(m, validate_args=False)
