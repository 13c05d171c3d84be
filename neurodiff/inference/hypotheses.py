r"""The hypotheses of a comparison: named weightings, learned laws, and the controls beside them.

.. math:: w_{name}(\lambda + \text{shift}) \;\text{(gauge fixed)}, \quad
          w_{name}(\kappa(\lambda + \text{shift})) \;\text{or its family's law} \;\text{(free)}

A named weighting is a hypothesis about shape and, in the gauge κ = 1, about scale; beside it stands
its free-scale rival: the law of the same family, or the weighting with κ free. The controls keep
them honest: constant, history only, the free monotone link that is the ceiling, and for choices the
noise floor, which is the null, and the beta-binomial fit that a psychophysicist would make.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from pyro.distributions import MultivariateStudentT
from torch import nn
from torch.distributions import Distribution

from neurodiff.diffusion import laws
from neurodiff.diffusion.law import Law
from neurodiff.diffusion.weighting import SurvivalWeighting, Weighting, canonical, weighting
from neurodiff.inference.decisions import RIVALS, decision, keys_of
from neurodiff.inference.labels import CONTROLS, labelled
from neurodiff.inference.labels import DEFAULT_NAMED as LABEL_NAMED
from neurodiff.inference.priors import nearest
from neurodiff.inference.tasks import Task
from neurodiff.perception.beta_binomial import BetaBinomial
from neurodiff.perception.controls import Constant, NoiseFloor
from neurodiff.perception.free_link import FreeLink
from neurodiff.perception.frontend import InternalNoise, Nominal, PowerFilter, Sensitivity
from neurodiff.perception.ideal import Binary, alternatives
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
# the law that has a named weighting's shape and a free scale
_FAMILY = {
    "sigmoid": "logistic",
    "flow-matching": "exponential",
    "indi": "exponential",
    "deadline": "gumbel-min",
}
# in its own coordinate these begin to stop at 0, so that the shift is -λ_min
_EXPONENTIALS = ("flow-matching", "indi")
_SCALELESS = ("step", "elbo")


@dataclass(frozen=True)
class Hypothesis:
    """One row of a comparison.

    Attributes:
        name: As in the table; names that are one hypothesis are joined.
        kind: ``named``, ``law`` or ``control``; of decisions ``bound``, ``rival`` or ``control``.
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


def plan(
    task: Task,
    front_ends: Sequence[str] = ("none",),
    named: Sequence[str] | None = None,
    law_names: Sequence[str] | None = None,
    controls: bool = True,
) -> list[Hypothesis]:
    """The rows of a comparison, duplicates joined, each named weighting with its free-scale rival.

    Args:
        task: How responses are read.
        front_ends: Each runs with all hypotheses.
        named: Weightings by name; by default those whose stopping law the threshold kind can use
            (and the ELBO for the limited kind). ``DEFAULT_NAMED`` and ``DEFAULT_LAWS`` both, if
            neither is given.
        law_names: Laws by name; of the bounded kind bounds, drifts and bounds, or rivals.
        controls: Whether the control rows are added.

    Raises:
        ValueError: If a name is unknown; the nearest is named.

    >>> rows = plan(Task(), named=["sigmoid", "debiased"], law_names=[], controls=False)
    >>> [(row.name, row.gauge) for row in rows]
    [('sigmoid/debiased', 'fixed'), ('logistic', 'free')]
    """
    if task.model == "bounded":
        return _decision_rows(front_ends, named, law_names, controls)
    both = named is None and law_names is None
    extra = ("elbo",) if task.model == "limited" else ()
    usual = LABEL_NAMED.get(task.model, (*extra, *DEFAULT_NAMED))
    chosen = usual if both else tuple(named or ())
    learned = list(DEFAULT_LAWS if both else law_names or ())
    for name in learned:
        if name not in LAWS:
            raise ValueError(f"unknown law {name!r}: {nearest(name, list(LAWS))}")
    joined = list(dict.fromkeys(canonical(name) for name in chosen))  # unknown names fail here
    keys = {name: name.split("/")[0] for name in joined}
    learned += [_FAMILY[key] for key in keys.values() if key in _FAMILY]
    alone = {n: k for n, k in keys.items() if k not in _FAMILY and k not in _SCALELESS}
    if task.model in LABEL_NAMED and tuple(front_ends) != ("none",):
        raise ValueError("a table of evidence has no front end: leave it out")
    rows = []
    for end in front_ends:
        if end not in FRONT_ENDS:
            raise ValueError(f"unknown front end {end!r}: {nearest(end, list(FRONT_ENDS))}")
        rows += [Hypothesis(name, "named", end, "fixed", key) for name, key in keys.items()]
        rows += [Hypothesis(name, "named", end, "free", key) for name, key in alone.items()]
        rows += [Hypothesis(name, "law", end, "free", name) for name in dict.fromkeys(learned)]
        if controls:
            rows += [Hypothesis(c, "control", end, "free", c) for c in _controls(task)]
    return rows


def _decision_rows(
    front_ends: Sequence[str],
    named: Sequence[str] | None,
    keys: Sequence[str] | None,
    controls: bool,
) -> list[Hypothesis]:
    if tuple(front_ends) != ("none",) or named:
        raise ValueError(
            "the bounded kind has bounds in place of weightings and no front end: choose among its "
            "hypotheses with --bound"
        )
    rows = [
        Hypothesis(key, "rival", "none", "free", key)
        if key in RIVALS
        else Hypothesis(f"{key} bound", "bound", "none", "free", key)
        for key in keys_of(keys)
    ]
    last = Hypothesis("no stimulus", "control", "none", "free", "no stimulus")
    return [*rows, last] if controls else rows


def _controls(task: Task) -> Sequence[str]:
    if task.model in CONTROLS:
        return CONTROLS[task.model]
    if task.response == "count":
        return ["constant", *(["history only"] if task.history else []), "free link"]
    floor = ["noise floor"] if task.choices is not None else []
    return ["constant", "free link", *floor, "beta-binomial"]


def build(hypothesis: Hypothesis, task: Task, data: xr.Dataset) -> nn.Module:
    """The model of a hypothesis.

    Args:
        hypothesis: What to build.
        task: How responses are read.
        data: Whose logsnr places the knots of the free link.

    Raises:
        ValueError: If a weighting has no stopping law; the message names where it rises.

    >>> row = Hypothesis("logistic", "law", "none", "free", "logistic")
    >>> build(row, Task(), xr.Dataset()).weighting
    SurvivalWeighting(...)
    """
    key = hypothesis.key
    if task.model == "bounded":
        return decision(key, task.horizon, data)
    if task.model in LABEL_NAMED:
        own = _weighting(hypothesis) if key in LAWS or key == "step" else None
        return labelled(task.model, key, own, hypothesis.gauge == "free", data)
    end = _front_end(hypothesis.front_end, task)
    if key in ("constant", "history only"):
        return Constant(_observer(task, history=key == "history only"))
    if key == "noise floor":
        internal = hypothesis.front_end != "internal-noise"
        return NoiseFloor(task.choices or 2, internal=internal, front_end=_plain(end))
    if key == "beta-binomial":  # of data by level
        return BetaBinomial(task.choices, task.guess, _plain(end))
    if key == "free link":  # the ceiling is any monotone curve, whatever the kind
        link = FreeLink.on(data["logsnr"].values, basis=8)
        link.smoothness.requires_grad_(False)  # see priors_of
        return Threshold(SurvivalWeighting(link), _observer(task), _plain(end))
    w = _weighting(hypothesis)
    if task.model == "threshold":
        return Threshold(w, _observer(task), end)
    ideal = Binary() if task.choices == 2 else alternatives(task.choices or 2)
    observer = Choice(choices=task.choices)  # the ceiling and lapse that the controls have
    return Limited(w, ideal, observer, end)


def priors_of(model: nn.Module) -> dict[str, Distribution]:
    """Priors that take the place of a model's own in a study.

    The smoothness of the free link is integrated out, so that training data alone settle it: the
    steps of its random walk are t₃ together, a normal walk of unknown scale. Sampled beside the
    steps that scale makes a funnel, which no proposal about a mode describes.
    """
    law = getattr(getattr(model, "weighting", None), "law", None)
    if not isinstance(law, FreeLink):
        return {}
    zero = torch.zeros_like(law.z.detach())
    walk = MultivariateStudentT(zero.new_tensor(3.0), zero, torch.eye(len(zero), dtype=zero.dtype))
    return {"weighting.law.z": walk}


def _weighting(hypothesis: Hypothesis) -> Weighting:
    key, free = hypothesis.key, hypothesis.gauge == "free"
    if key in LAWS:
        return SurvivalWeighting(LAWS[key]())
    if key == "step":
        w = SurvivalWeighting(laws.Logistic(scale=_STEP))
        w.law.scale.requires_grad_(False)
        return w
    w = weighting(key)
    if key == "elbo":  # the limited kind alone has a use for it; Threshold says why
        return w
    return Gauge(w, free=free, logsnr_min=0.0 if key in _EXPONENTIALS else None)


def _front_end(name: str, task: Task) -> nn.Module:
    """The front end of a name; the limited kind also learns where on logsnr the task stands."""
    if name == "none":
        return Sensitivity() if task.model == "limited" else Nominal()
    return PowerFilter() if name == "power-filter" else InternalNoise()


def _plain(end: nn.Module) -> nn.Module:
    """Controls have a place of their own on logsnr, and need no sensitivity."""
    return Nominal() if isinstance(end, Sensitivity) else end


def _observer(task: Task, history: bool = True) -> nn.Module:
    if task.response == "count":
        bins = task.history if history else 0
        return Counts(history=bins, width=task.width, most=task.most)
    return Choice(choices=task.choices, guess=task.guess)
