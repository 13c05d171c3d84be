r"""The unit of work of a study: one pure call that leaves one file.

.. math:: (\text{data part}, \text{hypothesis}, \text{method}, \text{seed}) \mapsto
          \text{posterior, held-out elpd}

The file is named by the hypothesis and the hash of all inputs and of the code, written aside and
renamed, so it is there whole or not at all, and what is there need not be computed again. Held-out
scores follow what a claim generalises over: blocks of a time series by K-fold, subjects by leaving
each out of the population, exchangeable trials by leave-one-out.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
import xarray as xr
from torch import Tensor
from torch.distributions import Beta, Distribution, Independent
from torch.func import functional_call

import neurodiff
from neurodiff.data.schema import data_hash
from neurodiff.inference.curves import contraction
from neurodiff.inference.fit import choose_device, fitting
from neurodiff.inference.heldout import alternating, by_trial, kfold, refit
from neurodiff.inference.hypotheses import Hypothesis, build, priors_of
from neurodiff.inference.join import Bound, join
from neurodiff.inference.laplace import Laplace, Modes
from neurodiff.inference.loso import leave_one_group_out
from neurodiff.inference.nuts import NUTS
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.stages import First
from neurodiff.inference.stopping_curves import stopping_curves
from neurodiff.inference.svi import SVI
from neurodiff.inference.tasks import Task
from neurodiff.inference.together import Steps, alone, together
from neurodiff.inference.tree import build_tree
from neurodiff.perception.beta_binomial import by_level, cell_of
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.controls import permute

_LAYERS = ("diffusion", "perception", "inference")  # whose code a fit depends on
_HELD_OUT_DRAWS = 256  # a power of two, for which Sobol points are most even
_FOLD_DRAWS = 192  # a third and two thirds are powers of two


@dataclass(frozen=True, eq=False)
class Unit:
    """One unit of work: everything that its result depends on.

    Attributes:
        data: One part of a data set; its attribute ``name`` is the part's.
        hypothesis: What is fitted.
        task: How responses are read.
        method: How it is fitted.
        by: Grouping coordinate of hierarchical parameters, or None.
        seed: Of all randomness.
        device: ``cpu``, ``cuda`` or ``auto``.
    """

    data: xr.Dataset
    hypothesis: Hypothesis
    task: Task
    method: Laplace | SVI | NUTS
    by: str | None
    seed: int
    device: str = "cpu"

    @property
    def part(self) -> str:
        """Name of the data part."""
        return str(self.data.attrs.get("name", "data"))

    @cached_property
    def filename(self) -> str:
        """Readable, and different whenever any input or the code is."""
        h = self.hypothesis
        key = (data_hash(self.data), h, self.task, self.method, self.by, self.seed)
        code = (neurodiff.__version__, source_digest())
        digest = hashlib.sha256(repr((*key, *code)).encode()).hexdigest()[:8]
        return f"{label(self.part, h.front_end, h.gauge, h.name)}-{digest}.nc"


@cache
def source_digest() -> str:
    """Hash of the code that a result depends on: two states of it never share a file."""
    digest, root = hashlib.sha256(), Path(neurodiff.__file__).parent
    for path in sorted(p for layer in _LAYERS for p in (root / layer).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def label(part: str, front_end: str, gauge: str, hypothesis: str) -> str:
    """The readable part of a file's name.

    >>> label("cell/1", "none", "fixed", "sigmoid/debiased")
    'cell-1--none--fixed--sigmoid-debiased'
    """
    text = f"{part}--{front_end}--{gauge}--{hypothesis}"
    return "".join(c if c.isalnum() or c in "-." else "-" for c in text)


def told(prior: Distribution) -> str:
    """A prior with its numbers, which not all distributions print.

    >>> told(torch.distributions.Beta(1.0, 30.0))
    'Beta(1, 30)'
    """
    if isinstance(prior, Independent):
        return told(prior.base_dist)
    if type(prior).__name__ == "TransformedDistribution":
        _, above = prior.transforms  # pyright: ignore  # exp, and what it is added to
        inner = told(prior.base_dist)  # pyright: ignore
        return f"{float(above.loc):.3g} + Log{inner}"
    if isinstance(prior, Beta):  # whose constraints name its parameters the other way round
        names = ["concentration1", "concentration0"]
    else:
        other = ("logits", "covariance_matrix", "precision_matrix")  # the same by another name
        names = [name for name in prior.arg_constraints if name not in other]
    numbers = [torch.unique(torch.as_tensor(getattr(prior, name))).tolist() for name in names]
    text = ", ".join(f"{n[0]:.3g}" if len(n) == 1 else "…" for n in numbers)
    return f"{type(prior).__name__}({text})"


@on_one_thread
def run_units(units: Sequence[Unit], folder: Path) -> list[Path | Exception]:
    """Solve units side by side, and leave the file of each, or say why there is none.

    Args:
        units: Parts under one hypothesis make one batch, see
            :mod:`~neurodiff.inference.together`; other units share nothing.
        folder: Where the files are; a unit whose file is there is not solved again.
    """
    rows = sum(max(unit.data.sizes.values(), default=0) for unit in units)
    device = choose_device(units[0].device, rows)
    return together([_running(unit, folder, device) for unit in units], device)


def run_unit(unit: Unit, folder: Path) -> Path:
    """Solve a unit, unless its file is there, and leave the file: whole or not at all."""
    (result,) = run_units([unit], folder)
    if isinstance(result, Exception):
        raise result
    return result


def _running(unit: Unit, folder: Path, device: str) -> Steps[Path]:
    target = folder / unit.filename
    if target.exists():
        return target
    tree = yield from solving(unit, device)
    aside = target.with_suffix(f".{os.getpid()}.part")
    try:
        tree.to_netcdf(aside, engine="h5netcdf")
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def solve(unit: Unit) -> xr.DataTree:
    """Fit one unit: the posterior on all of its data, and the elpd of what is held out."""
    device = choose_device(unit.device, max(unit.data.sizes.values(), default=0))
    return alone(solving(unit, device), device)


def solving(unit: Unit, device: str) -> Steps[xr.DataTree]:
    """The steps of a fit.

    Args:
        unit: What is fitted.
        device: Where draws are made.
    """
    data = unit.data
    if unit.hypothesis.permuted:
        data = permute(data, unit.seed, _within(data, unit.by))
    trials, cells = data, unit.hypothesis.key == "beta-binomial"
    data = by_level(data) if cells else data
    model = build(unit.hypothesis, unit.task, data)
    # what asks is answered on the device, many parts at once; what is left to do here is small
    home = "cpu" if unit.by is None and isinstance(unit.method, Laplace) else device
    bound = join(model, data, priors_of(model), by=unit.by, device=home)
    began = time.perf_counter()
    modes, u, stats = yield from fitting(bound, unit.method, unit.seed)
    wall = time.perf_counter() - began
    tree = build_tree(bound, data, u, stats, unit.method, unit.seed, device, wall)
    if cells and unit.by is None:
        tree["loo"] = by_trial(
            bound, u.reshape(-1, u.shape[-1]), cell_of(trials), trials["correct"].values
        )
    else:
        yield from _score(tree, unit, bound, modes)
    if unit.hypothesis.key == "free link":
        flat = u.reshape(-1, u.shape[-1])
        tree["information"] = contraction(bound, flat[:: max(1, len(flat) // 500)], unit.seed)
    if isinstance(model, Bounded) and unit.by is None:
        tree["stopping"] = stopping_curves(bound, u.reshape(-1, u.shape[-1]))
    if "constant_data" not in tree.children:
        tree["constant_data"] = _tested(bound, u, data, unit.by)
    h, counts = unit.hypothesis, data.get("count")
    tree.attrs |= {
        "data": unit.part,
        "data_hash": data_hash(unit.data),
        "front_end": h.front_end,
        "gauge": h.gauge,
        "hypothesis": h.name,
        "kind": h.kind,
        "by": unit.by or "",
        "priors": json.dumps({site.name: told(site.prior) for site in bound.pooled.sites}),
        "task": repr(unit.task),
        "spikes": float("nan") if counts is None else float(counts.sum()),
        "unsaturated": int(_unsaturated(bound, u)),
        "citation": str(data.attrs.get("citation", "")),
        "licence": str(data.attrs.get("licence", "")),
    }
    return tree


def _score(tree: xr.DataTree, unit: Unit, bound: Bound, modes: Modes | First) -> Steps[None]:
    """Add the held-out elpd that goes with the unit of generalisation."""
    nuts = unit.method if isinstance(unit.method, NUTS) else None
    if unit.by is not None or isinstance(modes, First):
        first = modes if isinstance(modes, First) else None
        tree["loso"] = leave_one_group_out(bound, 4 * _HELD_OUT_DRAWS, unit.seed, first)
    elif bound.unit_dim != bound.dim:
        dim, fold = bound.unit_dim, alternating(len(bound.unit_names))
        elpd, k_hat = yield from kfold(bound, modes, fold, _FOLD_DRAWS, unit.seed, nuts)
        tree["kfold"] = xr.Dataset({"elpd": (dim, elpd), "k_hat": (dim, k_hat)})
    elif "loo" in tree.children:
        loo = tree["loo"].to_dataset()
        tree["loo"] = yield from refit(bound, modes, loo, 2 * _HELD_OUT_DRAWS, unit.seed, nuts)


def _within(data: xr.Dataset, by: str | None) -> str | None:
    if "block" in data.coords:
        return "block"
    return by or ("subject" if "subject" in data.coords else None)


def _values(bound: Bound, u: Tensor, part: str) -> dict[str, Tensor]:
    """The parameters of one sub-module in each row, at one draw."""
    own = bound.posterior.parameters.trial_values(u).items()
    return {name.removeprefix(part): value for name, value in own if name.startswith(part)}


def _front_end(bound: Bound, u: Tensor) -> Tensor:
    model = bound.posterior.model
    values = _values(bound, u, "front_end.")
    return functional_call(model.front_end, values, (bound.posterior.trials,)).detach()  # pyright: ignore


def _tested(bound: Bound, u: Tensor, data: xr.Dataset, by: str | None) -> xr.Dataset:
    """The logsnr of every trial as the fitted front end has it, at the mean of the draws.

    Of choices and reaction times the strength. With it stays what tells trials apart: their block
    or group, and the width of a bin.
    """
    model, trials = bound.posterior.model, bound.posterior.trials
    if hasattr(model, "front_end"):
        shown, stimulus = "logsnr", _front_end(bound, u.reshape(-1, u.shape[-1]).mean(0))
        values = stimulus.cpu().numpy()[bound.rows]
    elif "logsnr" in trials:
        shown, values = "logsnr", trials["logsnr"].cpu().numpy()[bound.rows]
    else:  # of choices and times the strength, of labels the stimulus
        shown = "strength" if "strength" in data else "shown"
        values = data[shown].values
    units = "nats" if shown == "logsnr" else str(data[shown].attrs.get("units", "1"))
    kept = {shown: (bound.dim, values, {"units": units})}
    for name in {"block", "choice_known", by} - {None}:
        if name in data.variables and data[name].dims == (bound.dim,):
            kept[name] = (bound.dim, data[name].values, {})
    attrs = {k: v for k, v in data.attrs.items() if k == "bin_width"}
    return xr.Dataset(kept, attrs=attrs)


def _unsaturated(bound: Bound, u: Tensor) -> bool:
    """Whether most draws put the law beyond every tested logsnr: then it is a power law."""
    model = bound.posterior.model
    weighting = getattr(model, "weighting", None)
    if (
        weighting is None
        or not hasattr(model, "front_end")
        or not any(p.requires_grad for p in weighting.parameters())
    ):
        return False
    flat = u.reshape(-1, u.shape[-1])

    def least(one: Tensor) -> Tensor:
        logsnr = _front_end(bound, one)
        w = functional_call(weighting, _values(bound, one, "weighting."), (logsnr,))
        return torch.where(torch.isfinite(logsnr), w, torch.inf).min()

    with torch.no_grad():
        beyond = torch.vmap(least, chunk_size=10)(flat[:: max(1, len(flat) // 50)]) > 0.5
    return bool(beyond.double().mean() > 0.5)
