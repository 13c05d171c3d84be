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
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.distributions import Beta, Distribution, Independent
from torch.func import functional_call

import neurodiff
from neurodiff.data.schema import data_hash
from neurodiff.inference.curves import contraction
from neurodiff.inference.fit import choose_device, explore, modes_of
from neurodiff.inference.heldout import alternating, by_trial, kfold, refit
from neurodiff.inference.hypotheses import Hypothesis, Task, build, priors_of
from neurodiff.inference.join import Bound, join
from neurodiff.inference.laplace import Laplace, Modes
from neurodiff.inference.loso import leave_one_group_out
from neurodiff.inference.nuts import NUTS
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.svi import SVI
from neurodiff.inference.tree import build_tree
from neurodiff.perception.beta_binomial import by_level, cell_of
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
    if isinstance(prior, Beta):  # whose constraints name its parameters the other way round
        names = ["concentration1", "concentration0"]
    else:
        other = ("logits", "covariance_matrix", "precision_matrix")  # the same by another name
        names = [name for name in prior.arg_constraints if name not in other]
    numbers = [torch.unique(torch.as_tensor(getattr(prior, name))).tolist() for name in names]
    text = ", ".join(f"{n[0]:.3g}" if len(n) == 1 else "…" for n in numbers)
    return f"{type(prior).__name__}({text})"


@on_one_thread
def run_unit(unit: Unit, folder: Path) -> Path:
    """Solve a unit, unless its file is there, and leave the file: whole or not at all."""
    target = folder / unit.filename
    if target.exists():
        return target
    tree = solve(unit)
    aside = target.with_suffix(f".{os.getpid()}.part")
    try:
        tree.to_netcdf(aside, engine="h5netcdf")
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def solve(unit: Unit) -> xr.DataTree:
    """Fit one unit: the posterior on all of its data, and the elpd of what is held out."""
    data = unit.data
    if unit.hypothesis.permuted:
        data = permute(data, unit.seed, _within(data, unit.by))
    trials, cells = data, unit.hypothesis.key == "beta-binomial"
    data = by_level(data) if cells else data
    model = build(unit.hypothesis, unit.task, data)
    device = choose_device(unit.device, max(data.sizes.values(), default=0))
    bound = join(model, data, priors_of(model), by=unit.by, device=device)
    began = time.perf_counter()
    starts = unit.method.starts if isinstance(unit.method, Laplace) else 4
    modes = modes_of(bound, starts, unit.seed)
    u, stats = explore(bound, modes, unit.method, unit.seed, None)
    wall = time.perf_counter() - began
    tree = build_tree(bound, data, u, stats, unit.method, unit.seed, device, wall)
    if cells and unit.by is None:
        tree["loo"] = by_trial(
            bound, u.reshape(-1, u.shape[-1]), cell_of(trials), trials["correct"].values
        )
    else:
        _score(tree, unit, bound, modes)
    if unit.hypothesis.key == "free link":
        flat = u.reshape(-1, u.shape[-1])
        tree["information"] = contraction(bound, flat[:: max(1, len(flat) // 500)], unit.seed)
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


def _score(tree: xr.DataTree, unit: Unit, bound: Bound, modes: Modes) -> None:
    """Add the held-out elpd that goes with the unit of generalisation."""
    nuts = unit.method if isinstance(unit.method, NUTS) else None
    if unit.by is not None:
        tree["loso"] = leave_one_group_out(bound, 4 * _HELD_OUT_DRAWS, unit.seed)
    elif bound.unit_dim == "block":
        fold = alternating(len(bound.unit_names))
        elpd, k_hat = kfold(bound, modes, fold, _FOLD_DRAWS, unit.seed, nuts)
        tree["kfold"] = xr.Dataset({"elpd": ("block", elpd), "k_hat": ("block", k_hat)})
    elif "loo" in tree.children:
        loo = tree["loo"].to_dataset()
        tree["loo"] = refit(bound, modes, loo, 2 * _HELD_OUT_DRAWS, unit.seed, nuts)


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

    With it stays what tells trials apart: their block or group, and the width of a bin.
    """
    model = bound.posterior.model
    if not hasattr(model, "front_end"):
        logsnr = bound.posterior.trials["logsnr"]
    else:
        logsnr = _front_end(bound, u.reshape(-1, u.shape[-1]).mean(0))
    kept = {"logsnr": (bound.dim, logsnr.cpu().numpy()[bound.rows], {"units": "nats"})}
    for name in {"block", by} - {None}:
        if name in data.variables and data[name].dims == (bound.dim,):
            kept[name] = (bound.dim, data[name].values, {})
    attrs = {k: v for k, v in data.attrs.items() if k == "bin_width"}
    return xr.Dataset(kept, attrs=attrs)


def _unsaturated(bound: Bound, u: Tensor) -> bool:
    """Whether most draws put the law beyond every tested logsnr: then it is a power law."""
    model = bound.posterior.model
    weighting = getattr(model, "weighting", None)
    if weighting is None or not any(p.requires_grad for p in weighting.parameters()):
        return False
    flat = u.reshape(-1, u.shape[-1])
    beyond = []
    for one in flat[:: max(1, len(flat) // 50)]:
        logsnr = _front_end(bound, one)
        w = functional_call(weighting, _values(bound, one, "weighting."), (logsnr,))
        beyond.append(bool(w[torch.isfinite(logsnr)].min() > 0.5))
    return bool(np.mean(beyond) > 0.5)
