r"""Choices after a few samples of evidence, every one of them known.

.. math:: e_k = g\,(ℓ_k + q\,ℓ_k² + c\,ℓ_k³), \qquad D_n = b + \sum_{k \le n} e_k, \qquad
    P(1) = Φ(D_n / n^p)

ℓ_k is the log-likelihood ratio of a sample, in nats, and noise has the s.d. n^p after n of them (p
= ½: each sample brings its own). All samples have one SNR, so λ = log n + const: the place of a
sample and the SNR that is reached there are one axis, and a weighting says who still listens,

.. math:: P(1 | n) = \sum_{k < n} (w_k - w_{k+1})\, Φ(D_k / k^p) + w_n\, Φ(D_n / n^p), \qquad
    w_1 = 1

which is kind (c) capped at λ_n: w = 1 listens to the end. Rivals use the same samples otherwise:
by weights of position, with a leak, until a bound is reached, or only one of them. All have the
same noise, the same transducer and the same lapse, else the difference would be theirs.

References:
    Waskom & Kiani 2018.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Distribution,
    LogNormal,
    Normal,
    Uniform,
    constraints,
)

from neurodiff.diffusion.weighting import Weighting


class Pulses(nn.Module):
    """The choice after the last of some samples of evidence.

    Args:
        use: what is made of the samples: :class:`Stops` and its rivals below.

    ``gain`` g is in s.d. of the noise of one sample for each nat: LogNormal(0, 1). ``square`` q and
    ``cube`` c are of the transducer: Normal(0, 1/4) and Normal(0, 1/10). ``bias`` b: Normal(0, 1).
    ``exponent`` p: Uniform(0.1, 1.5). ``lapse``: Beta(1, 30), answered either way.

    >>> trials = {"pulse_llr": torch.tensor([[1.0, 0.0], [1.0, -2.0]]),
    ...           "pulse_count": torch.tensor([1.0, 2.0])}
    >>> Pulses(Stops())(trials).probs.detach().round(decimals=3)      # 1.0; −1.0 in √2 of noise
    tensor([0.8350, 0.2450])
    """

    response = "choice"
    requires = ("pulse_llr", "pulse_count")
    constraints: ClassVar = {
        "gain": constraints.positive,
        "square": constraints.real,
        "cube": constraints.real,
        "bias": constraints.real,
        "exponent": constraints.interval(0.1, 1.5),
        "lapse": constraints.unit_interval,
    }
    priors: ClassVar = {
        "gain": LogNormal(0.0, 1.0),
        "square": Normal(0.0, 0.25),
        "cube": Normal(0.0, 0.1),
        "bias": Normal(0.0, 1.0),
        "exponent": Uniform(0.1, 1.5),
        "lapse": Beta(1.0, 30.0),
    }

    def __init__(self, use: nn.Module) -> None:
        super().__init__()
        self.use = use
        self.gain, self.exponent = (nn.Parameter(torch.tensor(v)) for v in (1.0, 0.5))
        self.square, self.cube, self.bias = (nn.Parameter(torch.tensor(0.0)) for _ in range(3))
        self.lapse = nn.Parameter(torch.tensor(0.02))

    def prepare(self, trials: dict[str, Tensor]) -> dict[str, Tensor]:
        """Nothing, once every trial has as many samples as it says."""
        count, most = trials["pulse_count"], trials["pulse_llr"].shape[-1]
        wrong = (count < 1) | (count > most) | (count != count.round())
        if wrong.any():
            first = int(wrong.nonzero()[0])
            raise ValueError(
                f"pulse_count is {count[first].item():g} in trial {first} (from 0), wanted a whole "
                f"number from 1 to {most}, which is as many as pulse_llr has"
            )
        return {}

    def forward(self, trials: dict[str, Tensor]) -> Distribution:
        """Of answering 1, batch shape (trial,)."""
        llr, count = trials["pulse_llr"], trials["pulse_count"]
        gain, square, cube, bias = (
            v[..., None] for v in (self.gain, self.square, self.cube, self.bias)
        )
        e = gain * llr * (1 + llr * (square + cube * llr))
        place = torch.arange(1.0, llr.shape[-1] + 1, dtype=llr.dtype, device=llr.device)
        noise = place ** self.exponent[..., None]
        p = self.use(e, count, noise, bias)
        p = 0.5 * self.lapse + (1 - self.lapse) * p
        return Bernoulli(probs=p, validate_args=False)


def _phi(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-math.sqrt(0.5) * x)


def _last(values: Tensor, count: Tensor) -> Tensor:
    """Of each trial the value at its last sample."""
    return values.gather(-1, (count.long() - 1)[..., None])[..., 0]


def _shown(e: Tensor, count: Tensor) -> Tensor:
    """1 up to the last sample, 0 after it."""
    return (torch.arange(e.shape[-1], device=e.device) < count[..., None]).to(e)


def _placed(values: Tensor, e: Tensor) -> Tensor:
    """What belongs to places, if there are as many as the trials have."""
    if (got := values.shape[-1]) != (wanted := e.shape[-1]):
        raise ValueError(f"got samples={got}; wanted {wanted}, as many as pulse_llr has")
    return values


class Stops(nn.Module):
    r"""Listens to sample n with probability w(log n)/w(0), and answers from what was heard.

    Args:
        weighting: monotone; its place on log n is learned where it is a law's. None: w = 1.

    >>> import neurodiff as nd
    >>> Stops(nd.weighting("flow-matching")).heard(torch.zeros(1, 4)).round(decimals=3)   # n^−1/2
    tensor([[1.0000, 0.7070, 0.5770, 0.5000]])
    """

    def __init__(self, weighting: Weighting | None = None) -> None:
        super().__init__()
        self.weighting = weighting

    def heard(self, e: Float[Tensor, "trial pulse"]) -> Tensor:
        """Of every sample w, of all trials or of each."""
        place = torch.arange(1.0, e.shape[-1] + 1, dtype=e.dtype, device=e.device).log()
        if self.weighting is None:
            return torch.ones_like(place)
        log_w = self.weighting.log(place[:, None]).mT  # a law of each trial, or one of all
        return (log_w - log_w[..., :1]).exp()

    def forward(self, e: Tensor, count: Tensor, noise: Tensor, bias: Tensor) -> Tensor:
        """P(1), without lapses."""
        w = self.heard(e)
        answer = _phi((bias + e.cumsum(-1)) / noise)
        left = torch.cat([w[..., :-1] - w[..., 1:], torch.zeros_like(w[..., :1])], -1)
        before = _shown(e, count - 1)
        stays = _last(w.expand(e.shape) * answer, count)
        return (before * left * answer).sum(-1) + stays


class StopsFreely(Stops):
    r"""The same with any nonincreasing w: w_n = Π_{k<n} h_k, h_k ~ Uniform(0, 1).

    Args:
        samples: the most of a trial.
    """

    def __init__(self, samples: int = 5) -> None:
        super().__init__()
        self.stays = nn.Parameter(torch.full((samples - 1,), 0.9))
        self.constraints = {"stays": constraints.unit_interval}
        self.priors = {"stays": Uniform(0.0, 1.0)}

    def heard(self, e: Float[Tensor, "trial pulse"]) -> Tensor:
        """Of every sample w."""
        h = self.stays
        return _placed(torch.cat([torch.ones_like(h[..., :1]), h.cumprod(-1)], -1), e)


class Placed(nn.Module):
    r"""Every sample counts as its place does: D = b + Σ v_k e_k, v_1 = 1, v_k ~ Normal(1, 1/2).

    Args:
        samples: the most of a trial.
    """

    def __init__(self, samples: int = 5) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(samples - 1))
        self.constraints = {"weights": constraints.real_vector}
        self.priors = {"weights": Normal(1.0, 0.5)}

    def forward(self, e: Tensor, count: Tensor, noise: Tensor, bias: Tensor) -> Tensor:
        """P(1), without lapses."""
        v = torch.cat([torch.ones_like(self.weights[..., :1]), self.weights], -1)
        v = _placed(v, e)
        total = bias[..., 0] + (_shown(e, count) * v * e).sum(-1)
        return _phi(total / _last(noise.expand(e.shape), count))


class Leaky(nn.Module):
    r"""What is older has leaked: D = b + Σ e^{−leak·(n − k)} e_k, leak ~ Normal(0, 1/2)."""

    constraints: ClassVar = {"leak": constraints.real}
    priors: ClassVar = {"leak": Normal(0.0, 0.5)}

    def __init__(self) -> None:
        super().__init__()
        self.leak = nn.Parameter(torch.tensor(0.0))

    def forward(self, e: Tensor, count: Tensor, noise: Tensor, bias: Tensor) -> Tensor:
        """P(1), without lapses."""
        place = torch.arange(1.0, e.shape[-1] + 1, dtype=e.dtype, device=e.device)
        shown = _shown(e, count)
        age = (count[..., None] - place) * shown  # no exponent of what was not shown
        total = (shown * torch.exp(-self.leak[..., None] * age) * e).sum(-1)
        return _phi((bias[..., 0] + total) / _last(noise.expand(e.shape), count))


class OneSample(nn.Module):
    """Answers from one of the samples, whichever: the mean of what each by itself would say."""

    def forward(self, e: Tensor, count: Tensor, noise: Tensor, bias: Tensor) -> Tensor:
        """P(1), without lapses."""
        answer = _phi((bias + e) / noise[..., :1])
        return (_shown(e, count) * answer).sum(-1) / count


class Bounded(nn.Module):
    r"""Answers once the sum reaches ±B: stops *because* of the evidence, kind (d).

    .. math:: P(1|n) = \sum_{k < n} S_k\, Φ\Big(\frac{D_k - B}{k^p}\Big) + S_n\, Φ(D_n / n^p),
        \qquad S_k = \prod_{j < k} P(|D_j + j^p ξ_j| < B)

    The noise of each look is drawn anew, so that what is seen at the last sample is as in all the
    other rows; noise that adds up would reach the bound by itself a little less often. ``bound`` B
    is in s.d. of the noise of one sample: LogNormal(1, 1).
    """

    constraints: ClassVar = {"bound": constraints.positive}
    priors: ClassVar = {"bound": LogNormal(1.0, 1.0)}

    def __init__(self) -> None:
        super().__init__()
        self.bound = nn.Parameter(torch.tensor(4.0))

    def forward(self, e: Tensor, count: Tensor, noise: Tensor, bias: Tensor) -> Tensor:
        """P(1), without lapses."""
        total, bound = bias + e.cumsum(-1), self.bound[..., None]
        up = _phi((total - bound) / noise)
        within = _phi((bound - total) / noise) - _phi(-(bound + total) / noise)
        still = torch.cat([torch.ones_like(within[..., :1]), within[..., :-1].cumprod(-1)], -1)
        early = (_shown(e, count - 1) * still * up).sum(-1)
        return early + _last(still * _phi(total / noise), count)
