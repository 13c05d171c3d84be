r"""Choices between two streams of clicks, every one of them known.

.. math:: a(S) = \sum_{t_j \le S} s_j\, C_j\, e^{κ (S - t_j)}, \qquad
    V(S) = σ_a²\, \frac{e^{2κS} - 1}{2κ} + σ_s² \sum_{t_j \le S} C_j²\, e^{2κ(S - t_j)}

    P(\text{right}) = w(\log T)\, Φ\Big(\frac{a(T) + b}{\sqrt{V(T)}}\Big)
        + \int_0^T Φ\Big(\frac{a(S) + b}{\sqrt{V(S)}}\Big)\, dF(\log S)

s_j is the side of a click and C_j what adaptation leaves of it: after each click C falls to φ C (or
rises, φ > 1) and returns to 1 with the time constant τ; the pair that begins a trial counts once
and cancels. κ < 0 leaks. The stimulus ends when the rat may answer, so nothing stops *because of*
the evidence; but the rat may stop listening before: at log S drawn from a law, λ = log S + const.
w = 1 listens to the end.

References:
    Brunton, Botvinick & Brody 2013 (without its bound and its initial noise).
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Bernoulli, Beta, Distribution, LogNormal, Normal, constraints

from neurodiff.diffusion.law import Law

_CELLS = 24  # of the time of a trial, in which a rat may stop
_CLICKS = 1000 * 60  # numbers: of a thousand trials what is heard by every click


class Clicks(nn.Module):
    """The side that is chosen after two streams of clicks.

    Args:
        law: of the log of the seconds after which nothing more is heard; None: w = 1.
        adapts: whether clicks adapt; without, C = 1.
        leaks: whether κ is learned; without, κ = 0.

    Clicks are in the order of time; what fills up a shorter trial is at its end, on side 0.
    ``leak`` κ is per second: Normal(0, 3). ``adaptation`` φ: LogNormal(−1, 1); ``recovery`` τ in s:
    LogNormal(log 0.1, 1). ``click_noise`` σ_s, in clicks: LogNormal(0, 1); ``noise`` σ_a in clicks
    per √s: LogNormal(0, 1). ``bias`` b in clicks: Normal(0, 3). ``lapse``: Beta(1, 10), answered
    either way.

    >>> trials = {"pulse_time": torch.tensor([[0.0, 0.0, 0.2]]), "duration": torch.tensor([0.5]),
    ...           "pulse_side": torch.tensor([[-1.0, 1.0, 1.0]])}
    >>> model = Clicks(adapts=False, leaks=False)
    >>> model(trials).probs.detach().round(decimals=3)         # Φ(1/√(3 + .5)), and lapses
    tensor([0.6930])
    """

    response = "choice"
    requires = ("pulse_time", "pulse_side", "duration")
    constraints: ClassVar = {
        "leak": constraints.real,
        "adaptation": constraints.positive,
        "recovery": constraints.positive,
        "click_noise": constraints.positive,
        "noise": constraints.positive,
        "bias": constraints.real,
        "lapse": constraints.unit_interval,
    }
    priors: ClassVar = {
        "leak": Normal(0.0, 3.0),
        "adaptation": LogNormal(-1.0, 1.0),
        "recovery": LogNormal(math.log(0.1), 1.0),
        "click_noise": LogNormal(0.0, 1.0),
        "noise": LogNormal(0.0, 1.0),
        "bias": Normal(0.0, 3.0),
        "lapse": Beta(1.0, 10.0),
    }

    def __init__(self, law: Law | None = None, adapts: bool = True, leaks: bool = True) -> None:
        super().__init__()
        self.law = law
        self.cells = _CLICKS  # how many draws fit into memory
        self.leak = nn.Parameter(torch.tensor(0.0), requires_grad=leaks)
        self.adaptation = nn.Parameter(torch.tensor(0.5 if adapts else 1.0), requires_grad=adapts)
        self.recovery = nn.Parameter(torch.tensor(0.1), requires_grad=adapts)
        self.click_noise, self.noise = (nn.Parameter(torch.tensor(1.0)) for _ in range(2))
        self.bias = nn.Parameter(torch.tensor(0.0))
        self.lapse = nn.Parameter(torch.tensor(0.05))

    def prepare(self, trials: dict[str, Tensor]) -> dict[str, Tensor]:
        """Nothing, once clicks are in order.

        Raises:
            ValueError: a time that is not finite, or below the one before.
        """
        if "pulse_time" not in trials:  # rows of something that has its clicks elsewhere
            return {}
        time = trials["pulse_time"]
        wrong = ~torch.isfinite(time) | torch.nn.functional.pad(time.diff(dim=1) < 0, (1, 0))
        if wrong.any():
            i, j = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"pulse_time of trial {i}, click {j} (from 0), is {time[i, j].item():g} s after "
                f"{time[i, max(j - 1, 0)].item():g} s: wanted clicks in the order of time, and "
                "after the last one the duration of the trial, with pulse_side 0"
            )
        return {}

    def accumulated(
        self, trials: dict[str, Tensor], until: Float[Tensor, "trial time"]
    ) -> tuple[Float[Tensor, "trial time"], Float[Tensor, "trial time"]]:
        """Mean a (clicks) and variance V (clicks²) of what is heard until some times (seconds).

        From click to click, and from the last one to the time asked for: nothing is as large as
        clicks times times, but which is the last.
        """
        time, side = trials["pulse_time"], trials["pulse_side"]
        c = torch.ones_like(time[:, 0] * self.recovery)
        mean = square = torch.zeros_like(c)
        means, squares = [mean], [square]
        gaps = torch.nn.functional.pad(time.diff(dim=1), (1, 0))  # none before the first
        for j, gap in enumerate(gaps.unbind(1)):
            back = 1 - (1 - self.adaptation * c) * torch.exp(-gap / self.recovery)
            c = torch.where(gap > 0, back, c)  # those at one time share it
            kept = torch.exp(self.leak * gap)
            mean = mean * kept + c * side[:, j]
            square = square * kept.square() + c.square() * (side[:, j] != 0)
            means.append(mean)
            squares.append(square)
        last = (time[:, None] <= until[..., None]).sum(-1)
        age = (until - time.gather(1, (last - 1).clamp_min(0))).clamp_min(0.0)
        kappa = self.leak.reshape(-1, 1)
        kept = torch.exp(kappa * age)
        # ∫ e^{2κt} dt, whose limit at κ = 0 is the time itself
        rate = 2 * kappa * until
        small = rate.abs() < 1e-6
        grown = until * torch.where(
            small, 1 + rate / 2, torch.expm1(rate) / torch.where(small, 1.0, rate)
        )
        variance = self.noise.reshape(-1, 1) ** 2 * grown
        heard = torch.stack(squares, 1).gather(1, last) * kept.square()
        variance = variance + self.click_noise.reshape(-1, 1) ** 2 * heard
        return torch.stack(means, 1).gather(1, last) * kept, variance

    def stops(
        self, trials: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "trial stop"], Float[Tensor, "trial stop"]]:
        """Times S (s) until which is listened, the last the end of the trial, and P(S)."""
        end = trials["duration"][:, None]
        if self.law is None:
            return end, torch.ones_like(end)
        edges = torch.arange(1.0, _CELLS + 1, dtype=end.dtype, device=end.device) / _CELLS * end
        stopped = self.law().cdf(edges.log().T).T
        mass = torch.cat([stopped[:, :1], stopped.diff(dim=1), 1 - stopped[:, -1:]], 1)
        return torch.cat([edges - 0.5 * end / _CELLS, end], 1), mass

    def z(
        self, trials: dict[str, Tensor], until: Float[Tensor, "trial time"]
    ) -> Float[Tensor, "trial time"]:
        """(a + b)/√V of who listens until each of some times (seconds)."""
        mean, variance = self.accumulated(trials, until)
        return (mean + self.bias.reshape(-1, 1)) / variance.sqrt()

    def forward(self, trials: dict[str, Tensor]) -> Distribution:
        """Of answering right, batch shape (trial,)."""
        until, mass = self.stops(trials)
        p = (mass * 0.5 * torch.erfc(-math.sqrt(0.5) * self.z(trials, until))).sum(1)
        p = 0.5 * self.lapse + (1 - self.lapse) * p
        return Bernoulli(probs=p, validate_args=False)
