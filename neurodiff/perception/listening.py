r"""Neurons that follow what a rat has heard of the clicks, on trials whose choice is known.

.. math:: r_i(t) = s\big(b_i\,(1 + u_i(t)) + g_i\, D(t - δ_i)\big), \qquad
    D(t \mid ±) = \frac{\sum_S P(S)\,\big[m(t ∧ S)\,P(± \mid S)
        ± (1 - l)\, C(t, S)\, φ(z_S)/\sqrt{V(S)}\big]}{\sum_S P(S)\,P(± \mid S)}

    C(t, S) = V(t ∧ S)\, e^{κ (S - t ∧ S)}, \qquad z_S = \frac{m(S) + b}{\sqrt{V(S)}}, \qquad
    P(± \mid S) = \tfrac{l}{2} + (1 - l)\,Φ(± z_S)

a, with mean m, variance V and leak κ, is that of :class:`~neurodiff.perception.clicks.Clicks`: a
Gaussian path, so that its mean given the side on which it ends is known, and D is
E[a(t) | choice]: who chose right had more noise to the right all along. A lapse says nothing of the
path. Who stops listening at S keeps a(S). b is what a neuron does by itself, u its course of time,
g its gain, δ its latency; s bends rates away from 0 (:func:`~neurodiff.perception.driven.firing`).
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import LogNormal, Normal, Poisson, constraints

from neurodiff.perception.clicks import Clicks
from neurodiff.perception.driven import firing


def heard_given_choice(
    model: Clicks, trials: dict[str, Tensor], time: Float[Tensor, " time"]
) -> Float[Tensor, "trial time 2"]:
    r"""E[a(t) | choice] of each trial, in clicks: [..., 0] of right choices, [..., 1] of left ones.

    Args:
        model: What is done with the clicks; its bias and lapses say what a choice tells.
        trials: ``pulse_time``, ``pulse_side``, ``duration``.
        time: Seconds; what comes after the end of a trial is what was there at its end.

    >>> shown = {"pulse_time": torch.tensor([[0.0, 0.0, 0.2]]), "duration": torch.tensor([0.5]),
    ...          "pulse_side": torch.tensor([[-1.0, 1.0, 1.0]])}
    >>> model = Clicks(adapts=False, leaks=False)
    >>> heard_given_choice(model, shown, torch.tensor([0.1, 0.5])).detach().round(decimals=2)
    tensor([[[ 0.5300, -1.2000],
             [ 1.8900, -1.0000]]])
    """
    stops, mass = model.stops(trials)
    now = torch.minimum(time.expand(len(stops), -1), trials["duration"][:, None])
    mean, variance = model.accumulated(trials, now)
    last, spread = model.accumulated(trials, stops)
    goes_on = now[:, :, None] < stops[:, None]
    ahead = (stops[:, None] - now[:, :, None]).clamp_min(0.0)
    m = torch.where(goes_on, mean[..., None], last[:, None])
    leak, bias, lapse = (v.reshape(-1, 1) for v in (model.leak, model.bias, model.lapse))
    kept = torch.exp(leak[..., None] * ahead)
    c = torch.where(goes_on, variance[..., None] * kept, spread[:, None])
    z = (last + bias) / spread.sqrt()
    pull = (1 - lapse) * torch.exp(-0.5 * z * z) / (2 * math.pi * spread).sqrt()
    found = []
    for side in (1.0, -1.0):
        p = 0.5 * lapse + (1 - lapse) * torch.special.ndtr(side * z)
        total = (mass[:, None] * (m * p[:, None] + side * c * pull[:, None])).sum(-1)
        found.append(total / (mass * p).sum(-1, keepdim=True))
    return torch.stack(found, -1)


class Heard(nn.Module):
    """What drives neurons, of an accumulator of clicks that is learned itself.

    Args:
        clicks: The accumulator.
        trials: ``pulse_time``, ``pulse_side``, ``duration`` of every trial.
        step: Between the times at which D is tabulated, from 0, seconds.
    """

    time: Tensor
    duration: Tensor

    def __init__(self, clicks: Clicks, trials: dict[str, Tensor], step: float) -> None:
        super().__init__()
        self.clicks, self.step = clicks, step
        clicks.prepare(trials)
        end = trials["duration"]
        count = int(torch.ceil(end.max() / step - 1e-6)) + 1
        self.register_buffer("time", step * torch.arange(count, dtype=end.dtype))
        for name in Clicks.requires:
            self.register_buffer(name, trials[name])

    def forward(self) -> Float[Tensor, "trial time 2"]:
        """D of every trial."""
        shown = {name: self.get_buffer(name) for name in Clicks.requires}
        return heard_given_choice(self.clicks, shown, self.time)


class Known(nn.Module):
    """A drive that is known.

    Args:
        table: D of every trial, at 0, step, 2 step, …, for right and left choices, clicks.
        step: Seconds.
    """

    table: Tensor

    def __init__(self, table: Float[Tensor, "trial time 2"], step: float) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("table", table)

    def forward(self) -> Float[Tensor, "trial time 2"]:
        """D of every trial."""
        return self.table


class Listening(nn.Module):
    r"""Spike counts of neurons with a rate :math:`b\,(1 + u(t)) + g\,D(t - δ)`.

    Args:
        drive: D of every trial: :class:`Known` or :class:`Heard`.
        knots: Times between which u is linear, seconds; u is 0 at the first.
        neurons: How many there are.

    Rows are bins of a trial and a neuron: ``number`` of the trial in D, ``neuron``, ``when`` (the
    middle of the bin, s), ``exposure`` (s), ``choice`` (1 right). Baseline LogNormal(log 10, 1)
    spikes/s; gain Normal(0, 2) spikes/s a click; u Normal(0, 1); latency LogNormal(log 0.1, 0.5) s.

    >>> drive = Known(torch.stack([torch.arange(5.0), -torch.arange(5.0)], -1)[None], step=0.1)
    >>> model = Listening(drive, knots=torch.tensor([0.0, 1.0]))
    >>> rows = {"number": torch.zeros(2), "neuron": torch.zeros(2), "choice": torch.ones(2),
    ...         "when": torch.tensor([0.05, 0.35]), "exposure": torch.ones(2)}
    >>> model(rows).rate.detach().round(decimals=1)      # 10 + 1 (.35 - .1)/.1, bent away from 0
    tensor([10.0000, 12.5000])
    """

    knots: Tensor
    response = "count"
    requires = ("number", "neuron", "choice", "when", "exposure")
    constraints: ClassVar = {
        "base": constraints.positive,
        "gain": constraints.real,
        "course": constraints.real,
        "latency": constraints.positive,
    }
    priors: ClassVar = {
        "base": LogNormal(math.log(10.0), 1.0),
        "gain": Normal(0.0, 2.0),
        "course": Normal(0.0, 1.0),
        "latency": LogNormal(math.log(0.1), 0.5),
    }

    def __init__(self, drive: Known | Heard, knots: Tensor, neurons: int = 1) -> None:
        super().__init__()
        self.drive = drive
        self.register_buffer("knots", knots)
        self.base = nn.Parameter(torch.full((neurons,), 10.0))
        self.gain = nn.Parameter(torch.full((neurons,), 1.0))
        self.course = nn.Parameter(torch.zeros(neurons, len(knots) - 1))
        self.latency = nn.Parameter(torch.full((neurons,), 0.1))

    def prepare(self, trials: dict[str, Tensor]) -> dict[str, Tensor]:
        """How the knots of u weigh at each time.

        Raises:
            ValueError: a neuron, or a trial of D, that there is not.
        """
        known = self.drive.table if isinstance(self.drive, Known) else self.drive.duration
        for name, most in (("neuron", len(self.base)), ("number", len(known))):
            wrong = (trials[name] < 0) | (trials[name] >= most)
            if wrong.any():
                first = int(wrong.nonzero()[0])
                raise ValueError(
                    f"{name} is {trials[name][first].item():g} in row {first} (from 0), wanted it "
                    f"from 0 to {most - 1}"
                )
        at = trials["when"].clamp(float(self.knots[0]), float(self.knots[-1]))
        cell = torch.searchsorted(self.knots, at).clamp(1, len(self.knots) - 1)
        share = (at - self.knots[cell - 1]) / (self.knots[cell] - self.knots[cell - 1])
        places = torch.arange(1, len(self.knots), device=at.device)
        before, after = (places == (cell - k)[:, None] for k in (1, 0))
        return {"knot_weight": before * (1 - share[:, None]) + after * share[:, None]}

    def forward(self, trials: dict[str, Tensor]) -> Poisson:
        """The counts of each row."""
        rows = trials if "knot_weight" in trials else trials | self.prepare(trials)
        own = rows["neuron"].long()
        rate = self.base[own] * (1 + (rows["knot_weight"] * self.course[own]).sum(-1))
        table = self.drive()
        last = table.shape[1] - 1
        at = ((rows["when"] - self.latency[own]) / self.drive.step).clamp(0.0, float(last))
        cell = at.detach().floor().clamp_max(last - 1.0)
        place = 2 * ((last + 1) * rows["number"] + cell).long() + (rows["choice"] < 0.5)
        here, after = (table.reshape(-1)[place + 2 * k] for k in (0, 1))
        rate = rate + self.gain[own] * (here + (at - cell) * (after - here))
        return Poisson(firing(rate) * rows["exposure"], validate_args=False)
