"""The hypotheses of a comparison: named weightings, learned laws, and the controls that keep them honest.

A named weighting is a hypothesis about shape and, in the gauge κ = 1, about scale; beside it stands its free-scale
rival (the law of the same family, or the weighting with κ free). The controls are no weightings: constant, history only,
the free monotone link that is the ceiling, and for choices the noise floor, which is the null.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from torch import nn

from neurodiff.diffusion import laws
from neurodiff.diffusion.law import Law
from neurodiff.diffusion.weighting import SurvivalWeighting, canonical, weighting
from neurodiff.inference.priors import nearest
from neurodiff.perception.controls import Constant, NoiseFloor
from neurodiff.perception.free_link import FreeLink
from neurodiff.perception.frontend import InternalNoise, Nominal, PowerFilter
from neurodiff.perception.observers import Choice, Counts
from neurodiff.perception.stopping import Gauge, Limited, Threshold

LAWS: dict[str, type[Law]] = {
    "logistic": laws.Logistic,
    "normal": laws.Normal,
    "gumbel-max": laws.GumbelMax,
    "gumbel-min": laws.GumbelMin,
    "exponential": laws.Exponential,
    "laplace": laws.Laplace,
    "cauchy": laws.Cauchy,
    "hyperbolic-secant": laws.HyperbolicSecant,
}
DEFAULT_LAWS = ("logistic", "normal", "gumbel-max", "gumbel-min", "exponential")
DEFAULT_NAMED = ("sigmoid", "flow-matching", "edm-monotonic", "deadline", "step")
FRONT_ENDS = ("none", "power-filter", "internal-noise")
_STEP = 0.05  # nats over which `step` is smoothed, so that its place has a gradient
# in its own coordinate these begin to stop at 0, so that the shift is -λ_min
_EXPONENTIALS = ("flow-matching", "v-cosine", "indi")


@dataclass(frozen=True)
class Hypothesis:
    """One row of a comparison.

    Attributes:
        name: As in the table; names that are one hypothesis are joined.
        kind: ``named``, ``law`` or ``control``.
        front_end: ``none``, ``power-filter`` or ``internal-noise``.
        gauge: ``fixed`` (κ = 1) or ``free``.
        key: What :func:`build` makes: a weighting, a law or a control by its plain name.
        permuted: Whether the stimulus is permuted first.
    """

    name: str
    kind: str
    front_end: str
    gauge: str
    key: str
    permuted: bool = False


@dataclass(frozen=True)
class Task:
    """How the responses of a data set are read.

    Attributes:
        model: ``threshold`` or ``limited``.
        response: ``count`` or ``correct``.
        choices: Number of alternatives, if known.
        guess: Guess rate, if known otherwise.
        history: Bins of spike history.
        most: Most spikes that a bin can hold (1), or None.
    """

    model: str = "threshold"
    response: str = "count"
    choices: int | None = None
    guess: float | None = None
    history: int = 15
    most: int | None = 1


def task_of(
    data: xr.Dataset, model: str = "threshold", choices: int | None = None, guess: float | None = None
) -> Task:
    """The task that a data set's variables suggest: counts where there are any, else right and wrong.

    Raises:
        ValueError: If the data hold neither ``count`` nor ``correct``.
    """
    if "count" in data:
        many = bool((data["count"] > 1).any())
        return Task(model, "count", most=None if many else 1)
    if "correct" not in data:
        found = ", ".join(str(v) for v in data.data_vars)
        raise ValueError(f"the data hold neither 'count' nor 'correct', found: {found}")
    if choices is None and guess is None and "n_choices" in data.attrs:
        choices = int(data.attrs["n_choices"])
    return Task(model, "correct", choices, guess)


def named_laws(names: Sequence[str]) -> list[str]:
    """Check law names.

    Raises:
        ValueError: If a name is unknown; the nearest is named.
    """
    for name in names:
        if name not in LAWS:
            raise ValueError(f"unknown law {name!r}: {nearest(name, list(LAWS))}")
    return list(names)


def plan(
    task: Task,
    front_ends: Sequence[str] = ("none",),
    named: Sequence[str] | None = None,
    law_names: Sequence[str] | None = None,
    controls: bool = True,
) -> list[Hypothesis]:
    """The rows of a comparison, duplicates joined.

    Args:
        task: How responses are read.
        front_ends: Each runs with all hypotheses.
        named: Weightings by name; by default those whose stopping law the threshold kind can use.
        law_names: Laws by name.
        controls: Whether the control rows are added.

    >>> [h.name for h in plan(Task(), named=["sigmoid", "debiased"], law_names=[], controls=False)]
    ['sigmoid/debiased']
    """
    chosen = DEFAULT_NAMED if named is None and law_names is None else named or ()
    learned = DEFAULT_LAWS if named is None and law_names is None else law_names or ()
    rows = []
    for end in front_ends:
        if end not in FRONT_ENDS:
            raise ValueError(f"unknown front end {end!r}: {nearest(end, list(FRONT_ENDS))}")
        for key in {canonical(name): name for name in chosen}.values():
            weighting(key)  # an unknown name fails here, naming the nearest
            rows.append(Hypothesis(canonical(key), "named", end, "fixed", key))
        if "edm-monotonic" in chosen:  # the one default whose family is no law of its own
            rows.append(Hypothesis("edm-monotonic", "named", end, "free", "edm-monotonic"))
        rows += [Hypothesis(name, "law", end, "free", name) for name in named_laws(learned)]
        if controls:
            rows += [Hypothesis(c, "control", end, "free", c) for c in _controls(task, end)]
    return rows


def _controls(task: Task, front_end: str) -> list[str]:
    if task.response == "count":
        return ["constant", "history only", "free link"]
    floor = ["noise floor"] if task.choices is not None else []
    return ["constant", "free link", *floor]


def front_end_of(name: str) -> nn.Module:
    """The front end of a name."""
    return {"none": Nominal, "power-filter": PowerFilter, "internal-noise": InternalNoise}[name]()


def observer_of(task: Task, history: bool = True) -> nn.Module:
    """The observer of a task."""
    if task.response == "count":
        return Counts(history=task.history if history else 0, most=task.most)
    return Choice(choices=task.choices, guess=task.guess)


def build(hypothesis: Hypothesis, task: Task, data: xr.Dataset) -> nn.Module:
    """The model of a hypothesis.

    Raises:
        ValueError: If a weighting has no stopping law; the message names where it rises.
    """
    key, end = hypothesis.key, front_end_of(hypothesis.front_end)
    if key in ("constant", "history only"):
        return Constant(observer_of(task, history=key == "history only"))
    if key == "noise floor":
        internal = hypothesis.front_end != "internal-noise"
        return NoiseFloor(task.choices or 2, internal=internal, front_end=end)
    if key == "free link":
        w = SurvivalWeighting(FreeLink.on(torch.as_tensor(data["logsnr"].values)))
    elif hypothesis.kind == "law" or (hypothesis.permuted and key in LAWS):
        w = SurvivalWeighting(LAWS[key]())
    elif key == "step":
        w = SurvivalWeighting(laws.Logistic(scale=_STEP))
        w.law.scale.requires_grad_(False)
    else:
        start = 0.0 if key in _EXPONENTIALS else None
        w = weighting(key)
        if task.model == "threshold" or key != "elbo":
            w = Gauge(w, free=hypothesis.gauge == "free", logsnr_min=start)
    if task.model == "threshold":
        return Threshold(w, observer_of(task), end)
    if task.model == "limited":
        from neurodiff.perception.ideal import Binary, alternatives

        ideal = Binary() if (task.choices or 2) == 2 else alternatives(task.choices or 2)
        return Limited(w, ideal, front_end=end)
    raise ValueError(f"unknown model {task.model!r}: {nearest(task.model, ['threshold', 'limited'])}")
