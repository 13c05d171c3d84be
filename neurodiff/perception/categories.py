r"""Where a category begins: boundaries on a measurement x of known noise, for two tasks.

Task A has categories :math:`N(\pm\mu, \tau^2)`; 1 is chosen where x > k. Task B has
:math:`N(0, \tau_0^2)` and :math:`N(0, \tau_1^2)`; 1, the wide one, is chosen where |x| > k.

.. math::

    \text{linear:}\quad k = k_0 + m \sigma

    \text{Bayes, A:}\quad k = -b\,\frac{\tau^2 + \sigma^2}{2\mu}

    \text{Bayes, B:}\quad k^2 = \frac{v_0 v_1}{v_1 - v_0}\Big(\log\frac{v_1}{v_0} - 2b\Big),
    \quad v_c = \tau_c^2 + \sigma^2

b is the log prior odds of category 1. The observer knows σ; spreads are the true ones or learned.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, LogNormal, Normal, constraints

#: of the two tasks: means ±μ and spread, and the two spreads (Adler & Ma 2018), degrees
MEAN, SPREAD = 4.0, 5.0
NARROW, WIDE = 3.0, 12.0
TASKS = ("A", "B")


def check_task(task: str) -> str:
    """The task, if it is one.

    Raises:
        ValueError: If it is neither "A" nor "B".
    """
    if task not in TASKS:
        raise ValueError(f"got task {task!r}, wanted one of {', '.join(TASKS)}")
    return task


class Linear(nn.Module):
    r"""k = k₀ + mσ.

    Args:
        task: "A", priors k₀ Normal(0, 5), m Normal(0, 1); or "B", Normal(5, 5), Normal(1, 1), where
            a boundary below 0 is 0.

    >>> Linear("B")(torch.tensor([0.0, 1.0])).detach()
    tensor([5., 6.])
    """

    constraints: ClassVar = {"offset": constraints.real, "slope": constraints.real}

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = check_task(task)
        at, steep = (0.0, 0.0) if task == "A" else (5.0, 1.0)
        self.offset, self.slope = nn.Parameter(torch.tensor(at)), nn.Parameter(torch.tensor(steep))
        self.priors: dict[str, Distribution] = {
            "offset": Normal(at, 5.0),
            "slope": Normal(steep, 1.0),
        }

    def forward(self, sigma: Tensor) -> Tensor:
        """The boundary at noise of any shape, degrees."""
        k = self.offset + self.slope * sigma
        return k if self.task == "A" else k.clamp(min=0.0)


class PerLevel(nn.Module):
    """A boundary of its own for each level: Normal(0, 5) in task A, Normal(7, 7) in task B."""

    constraints: ClassVar = {"boundary": constraints.real_vector}

    def __init__(self, task: str, levels: int) -> None:
        super().__init__()
        self.task = check_task(task)
        at, sd = (0.0, 5.0) if task == "A" else (7.0, 7.0)
        self.boundary = nn.Parameter(torch.full((levels,), at))
        like = torch.ones(levels)
        self.priors: dict[str, Distribution] = {"boundary": Normal(at * like, sd * like)}

    def forward(self, sigma: Tensor) -> Tensor:
        """The boundary at each level (level, node)."""
        k = self.boundary[:, None].expand_as(sigma)
        return k if self.task == "A" else k.clamp(min=0.0)


class Bayes(nn.Module):
    """The posterior of the categories with a prior; spreads the true ones, or ``free``.

    Priors: b Normal(0, 1), spreads LogNormal(log of the true one, 0.5).

    >>> sigma = torch.tensor(0.0)
    >>> round(Bayes("B")(sigma).item(), 2), abs(Bayes("A")(sigma).item())
    (5.16, 0.0)
    """

    constraints: ClassVar = {
        "bias": constraints.real,
        "spread": constraints.positive,
        "narrow": constraints.positive,
        "excess": constraints.positive,
    }

    spread: Tensor
    narrow: Tensor
    excess: Tensor

    def __init__(self, task: str, free: bool = False) -> None:
        super().__init__()
        self.task = check_task(task)
        self.bias = nn.Parameter(torch.tensor(0.0))
        # the wide spread is above the narrow one, or nothing is wide
        own = {"spread": SPREAD} if task == "A" else {"narrow": NARROW, "excess": WIDE - NARROW}
        self.priors: dict[str, Distribution] = {"bias": Normal(0.0, 1.0)}
        for name, value in own.items():
            setattr(self, name, nn.Parameter(torch.tensor(value), requires_grad=free))
            self.priors[name] = LogNormal(math.log(value), 0.5)

    def forward(self, sigma: Tensor) -> Tensor:
        """The boundary at noise of any shape, degrees."""
        noise = sigma.square()
        if self.task == "A":
            return -self.bias * (self.spread.square() + noise) / (2 * MEAN)
        v0, excess = self.narrow.square() + noise, self.excess * (self.excess + 2 * self.narrow)
        ratio = excess / v0
        square = v0 * (1 + 1 / ratio) * (torch.log1p(ratio) - 2 * self.bias)
        # always wide where even x = 0 is; the root's slope at 0 would be infinite
        return square.clamp(min=1e-8).sqrt()
