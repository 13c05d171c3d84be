r"""How the responses of a data set are read: what was answered, and what is known of the answers.

.. math:: \text{task} = (\text{kind of stopping}, \text{response}, \text{what chance gives},
          \text{bins or horizon})

What the variables of a data set say is not asked again, and what does not go together is refused
before anything is fitted. All parts of a study have one task.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from neurodiff.inference.decisions import horizon_of
from neurodiff.inference.priors import nearest

MODELS = ("threshold", "limited", "averaged", "stopped", "bounded")


@dataclass(frozen=True)
class Task:
    """How the responses of a data set are read.

    Attributes:
        model: ``threshold``, ``limited``, ``averaged``, ``stopped`` or ``bounded``.
        response: ``count``, ``correct``, ``choice`` or ``signed_rt``.
        choices: Number of alternatives, if known.
        guess: Guess rate, if known otherwise.
        history: Bins of spike history.
        most: Most spikes that a bin can hold (1), or None.
        width: Width of a bin in seconds.
        horizon: Seconds up to which reaction times are modelled.
    """

    model: str = "threshold"
    response: str = "count"
    choices: int | None = None
    guess: float | None = None
    history: int = 15
    most: int | None = 1
    width: float = 1e-3
    horizon: float = 0.0


def task_of(
    data: xr.Dataset,
    model: str = "threshold",
    choices: int | None = None,
    guess: float | None = None,
) -> Task:
    """The task that a data set's variables suggest: counts if there are any, else right and wrong.

    Raises:
        ValueError: If the model is unknown or does not go with the data, or the data hold neither
            ``count`` nor ``correct``.

    >>> task_of(xr.Dataset({"correct": ("trial", [1.0])}), choices=2).response
    'correct'
    """
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r}: {nearest(model, list(MODELS))}")
    if model == "bounded":
        return _decision_task(data, choices, guess)
    if model in ("averaged", "stopped"):
        return _label_task(data, model, choices, guess)
    if "count" in data:
        return _count_task(data, model, choices, guess)
    if "correct" not in data:
        found = ", ".join(str(v) for v in data.variables) or "nothing"
        raise ValueError(
            f"the data hold neither 'count' nor 'correct' (they hold: {found}): add a column "
            "'correct' of 1 (right), 0 (wrong) and empty (no answer), or 'count' of spikes"
        )
    if choices is None and guess is None and "n_choices" in data.attrs:
        choices = int(data.attrs["n_choices"])
    if model == "limited" and choices is None:
        raise ValueError(
            "the limited kind needs the number of alternatives, which gives the ideal observer: "
            "give --choices N"
        )
    return Task(model, "correct", choices, guess, history=0, most=None)


def _count_task(data: xr.Dataset, model: str, choices: int | None, guess: float | None) -> Task:
    count = data["count"]
    if model != "threshold" or choices is not None or guess is not None:
        raise ValueError(
            "the data hold counts, which have no guess rate and no ideal observer: use "
            "--model threshold without --choices and --guess"
        )
    if count.ndim != 1:
        raise ValueError(f"'count' has dimensions {count.dims}, wanted one unit: data.isel(unit=0)")
    ordered = count.dims == ("time",)
    step = float(np.diff(data["time"][:2])[0]) if ordered and "time" in data.indexes else 1.0
    width = float(data.attrs.get("bin_width", step))
    most = None if bool((count > 1).any()) else 1
    return Task(model, "count", history=15 if ordered else 0, most=most, width=width)


def _label_task(data: xr.Dataset, model: str, choices: int | None, guess: float | None) -> Task:
    if "error" not in data:
        raise ValueError(
            f"the {model} kind reads a table of evidence, and the data have none: give --evidence "
            "TABLE.nc, which neurodiff.perception.evidence makes"
        )
    labels = data.sizes["label"]
    if choices not in (None, labels) or guess is not None:
        raise ValueError(
            f"the table has {labels} labels, any of which a lapse can be: leave out choices and "
            "guess"
        )
    return Task(model, "choice", labels, history=0, most=None)


def _decision_task(data: xr.Dataset, choices: int | None, guess: float | None) -> Task:
    if "signed_rt" not in data:
        found = ", ".join(str(v) for v in data.variables) or "nothing"
        raise ValueError(
            f"the bounded kind needs reaction times (the data hold: {found}): columns 'rt' in "
            "seconds, 'choice' or 'correct', and 'strength'; then neurodiff.data.choice_rt"
        )
    if choices not in (None, 2) or guess is not None:
        raise ValueError("the bounded kind chooses between two bounds: leave out choices and guess")
    return Task("bounded", "signed_rt", history=0, most=None, horizon=horizon_of(data))


def common_task(tasks: Sequence[Task]) -> Task:
    """One task for all parts: a bin may hold several spikes in all if it does in one.

    Reaction times are modelled up to the longest of all.

    Raises:
        ValueError: If the parts differ in anything else.
    """
    most = None if any(task.most is None for task in tasks) else 1
    horizon = max(task.horizon for task in tasks)
    alike = {replace(task, most=most, horizon=horizon) for task in tasks}
    if len(alike) > 1:
        raise ValueError(
            f"the parts differ in their task, fit them apart: {sorted(map(str, alike))}"
        )
    return alike.pop()
