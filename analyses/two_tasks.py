"""What the analyses of two tasks of orientation share: hypotheses, rules, people, folds.

Nineteen people sorted the same gratings by which way they are turned (task A) and by how far (task
B), in experiments 1 and 2 of Adler & Ma (2018).
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

import neurodiff as nd
from neurodiff.diffusion.flexible import PiecewiseLinear
from neurodiff.inference.join import join
from neurodiff.perception.categories import Bayes, Linear, PerLevel
from neurodiff.perception.confidence import Cuts, Reports
from neurodiff.perception.measurement import Free, Power, Stopped, Variable
from neurodiff.perception.orientation import Categorise, of_task, strengths

RESULTS = Path(__file__).parent / "results"
NAME = "adler2018-orientation-confidence"
FOLDS, DRAWS, CARRIED, PROPOSED = 5, 200, 24, 40
MORE = 400  # draws where there are twenty parameters


def logistic(scale=None):
    """A logistic law; its scale fixed if given (2: a time drawn evenly along the straight path)."""
    law = nd.laws.Logistic(-1.0, 0.7 if scale is None else scale)
    law.scale.requires_grad_(scale is None)
    return law


def tail():
    """The law of the flow-matching weighting e^{−λ/2} from where it begins."""
    law = nd.laws.Exponential(-4.0, 2.0)
    law.scale.requires_grad_(False)
    return law


ROWS = {
    "power + floor": lambda s: Power(s, floor=True),
    "logistic": lambda s: Stopped(s, logistic()),
    "flow-matching": lambda s: Stopped(s, logistic(2.0)),
    "free levels": lambda s: Free(len(s)),
    "power": Power,
    "flexible": lambda s: Stopped(s, PiecewiseLinear(torch.linspace(-7.0, 2.0, 7))),
    "e^(-λ/2) tail": lambda s: Stopped(s, tail()),
    "variable precision": Variable,
    "power + floor, oblique": lambda s: Power(s, floor=True, oblique=True),
    "logistic, oblique": lambda s: Stopped(s, logistic(), oblique=True),
}
RULES = {
    "linear": Linear,
    "Bayes, free spreads": lambda task: Bayes(task, free=True),
    "Bayes": Bayes,
    "per level": lambda task: PerLevel(task, 6),
}


def people(task, part):
    """The trials of each person of an experiment."""
    data = of_task(nd.load(f"{NAME}/{part}"), task)
    return [data.isel(trial=data["subject"].values == s) for s in np.unique(data["subject"])]


def folds(parts, seed=0):
    """A fold for each trial, at random."""
    rng, most = np.random.default_rng(seed), max(len(p["level"]) for p in parts)
    return torch.stack([torch.as_tensor(rng.permutation(np.arange(most) % FOLDS)) for _ in parts])


def constant(parts, fold):
    """Elpd of each person where all that is learned is how often 1 is chosen."""
    found = []
    for data, own in zip(parts, fold.numpy(), strict=True):
        y, f = data["choice"].values, own[: len(data["choice"])]
        p = np.array([(y[f != k].sum() + 0.5) / ((f != k).sum() + 1) for k in range(FOLDS)])[f]
        found.append(np.log(np.where(y > 0.5, p, 1 - p)).sum())
    return np.array(found)


def bound(parts, measurement, rule, task, carried=False, levels=6):
    """Each person's posterior; with ``carried`` the measurement is given, not learned."""
    found = []
    for data in parts:
        own = measurement(strengths(levels))
        cut = rule == "cut-points"
        model = Reports(own, Cuts(task)) if cut else Categorise(own, RULES[rule](task))
        if carried:
            model.measurement.requires_grad_(False)
        found.append(join(model, data).posterior)
    return found


def measured(fitted, count, seed=1):
    """Draws of everything that says how a stimulus is measured."""
    values = fitted.sampled(count, seed)
    return {k: v for k, v in values.items() if k.startswith("measurement.")}


def experiments():
    """The people of the two experiments with both tasks, task by task."""
    for part in ("expt1", "expt2"):
        parts = {task: people(task, part) for task in "AB"}
        yield part, parts, [f"{part}/{data['subject'].values[0]}" for data in parts["A"]]


def saved(path, keys):
    """What a run that was stopped had written, and which rows of a plan it holds."""
    old = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=keys)
    return old, set(map(tuple, old[list(keys)].drop_duplicates().values))


def summed(difference):
    """Sum over people and its standard error."""
    d = np.asarray(difference, float)
    return d.sum(), np.sqrt(len(d) * d.var(ddof=1))
