r"""Choosing the category of an orientation from a noisy measurement of it.

.. math::

    P(1 \mid s) = \tfrac{l}{2} + (1 - l)\, E_\lambda\, g(s, \sigma), \qquad \sigma = e^{-\lambda/2}
        + \psi\,|\sin 2s|

    \text{task A:}\quad g = \Phi\Big(\frac{s - k}{\sigma}\Big) \qquad
    \text{task B:}\quad g = \Phi\Big(\frac{s - k}{\sigma}\Big) + \Phi\Big(\frac{-s - k}{\sigma}\Big)

λ is where the measurement ends (:mod:`~neurodiff.perception.measurement`), k the boundary that goes
with it (:mod:`~neurodiff.perception.categories`), l a lapse: Beta(1, 30). One measurement serves
both tasks: what it is learned to be in one predicts the other.
"""

import math
from typing import ClassVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Bernoulli, Beta, Distribution, constraints
from torch.nn.functional import one_hot

from neurodiff.data.schema import DataError
from neurodiff.perception.categories import check_task
from neurodiff.perception.measurement import Measurement

#: what sets the strength of a level in the data, and whether more of it is stronger
STRENGTHS = {"contrast": 1, "stimulus_level": -1, "cue_validity": 1}
#: nats between levels: contrasts of experiment 2 are e^.7 apart
STEP = 1.4


class Categorise(nn.Module):
    """Choices (0 or 1) of a task, of trials with an ``orientation`` (degrees) and a ``level``.

    Args:
        measurement: Of the stimulus.
        rule: The boundary; its task is the model's.

    >>> from neurodiff.perception.categories import Linear
    >>> from neurodiff.perception.measurement import Power
    >>> model = Categorise(Power([-1.0, 1.0], floor=True), Linear("A"))
    >>> trials = {"level": torch.tensor([0.0, 1.0]), "orientation": torch.tensor([4.0, 4.0])}
    >>> model(trials).probs.detach().numpy().round(2)
    array([0.73, 0.85])
    """

    response = "choice"
    requires = ("level", "orientation")
    single = True  # lapses keep log probabilities far from where rounding matters
    constraints: ClassVar = {"lapse": constraints.unit_interval}
    priors: ClassVar = {"lapse": Beta(1.0, 30.0)}

    def __init__(self, measurement: Measurement, rule: nn.Module) -> None:
        super().__init__()
        self.measurement, self.rule = measurement, rule
        self.lapse = nn.Parameter(torch.tensor(0.02))
        levels, nodes = measurement()[0].shape
        self.levels, self._nodes, self.cells = levels, nodes, 0

    def prepare(self, trials: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each trial's level as a row of 0 and 1, and |sin 2s|: computed once."""
        self.cells = len(trials["level"]) * self._nodes  # numbers in a temporary
        return by_level(trials, self.levels)

    def forward(self, trials: dict[str, Tensor]) -> Distribution:
        """The probability of choosing 1."""
        if "level_is" not in trials:
            trials = trials | self.prepare(trials)
        logsnr, mass = self.measurement()
        sigma = torch.exp(-0.5 * logsnr)
        which, s = trials["level_is"], trials["orientation"][:, None]
        k, half = self.rule(sigma), math.sqrt(0.5)
        if self.measurement.oblique is None:  # nothing is divided trial by trial
            rate, at = which @ (half / sigma), which @ (half * k / sigma)
        else:
            rate = half / (which @ sigma + self.measurement.oblique * trials["oblique"][:, None])
            at = (which @ k) * rate
        # Φ(z) = (1 + erf(z/√2))/2: a third of the cost of erfc, whose tail a lapse hides
        twice = 1 + torch.erf(s * rate - at)
        if self.rule.task == "B":
            twice = twice + 1 - torch.erf(s * rate + at)
        p = 0.5 * ((twice @ mass.mT) * which).sum(-1)
        return Bernoulli(probs=0.5 * self.lapse + (1 - self.lapse) * p, validate_args=False)


def by_level(trials: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """``level_is`` (trial, level), 1 at each trial's level and else 0; ``oblique``, |sin 2s|."""
    # a product with a row of 0 and 1 costs less than picking rows does, going back
    rows = one_hot(trials["level"].long(), levels).to(trials["level"])
    return {"level_is": rows, "oblique": torch.sin(trials["orientation"] * (math.pi / 90)).abs()}


def strengths(levels: int) -> Float[np.ndarray, " level"]:
    """2 log contrast of equally spaced levels, hardest first, about its middle.

    Where a study gives codes of levels and no contrast the same spacing stands in: the power law
    then absorbs the true one, as long as levels are equally spaced in log contrast.

    >>> strengths(3)
    array([-1.4,  0. ,  1.4])
    """
    return STEP * (np.arange(levels) - (levels - 1) / 2)


def of_task(data: xr.Dataset, task: str) -> xr.Dataset:
    """The trials of one task with ``level``, 0 the hardest, of all data sets of this kind.

    Args:
        data: With ``orientation``, ``choice``, and a ``contrast``, a ``stimulus_level`` or a
            ``cue_validity``; ``task`` where there are two (else all are of task B).
        task: "A" or "B".

    Raises:
        ValueError: If the task is unknown.
        DataError: If a variable is missing, or no trial is of that task.

    >>> columns = {"orientation": [1.0, 2.0], "choice": [0.0, 1.0], "contrast": [0.1, 0.5]}
    >>> data = xr.Dataset({k: ("trial", v) for k, v in columns.items()})
    >>> of_task(data, "B")["level"].values
    array([0., 1.])
    """
    check_task(task)
    name = next((n for n in STRENGTHS if n in data), None)
    missing = [n for n in ("orientation", "choice") if n not in data]
    if name is None or missing:
        wanted = "orientation, choice and one of " + ", ".join(STRENGTHS)
        raise DataError(f"the data have {', '.join(map(str, data))}; wanted {wanted}")
    # levels of the whole study: a task, or a person, that lacks one keeps the numbers of the others
    level = np.unique(STRENGTHS[name] * data[name].values, return_inverse=True)[1] * 1.0
    data = data.assign(level=("trial", level))
    mine = data["task"].values == task if "task" in data else np.full(len(level), task == "B")
    if not mine.any():
        raise DataError(f"no trial is of task {task}")
    return data.isel(trial=mine)
