r"""A study: every hypothesis fitted to every part of the data, and the table that compares them.

The unit of work is (data part, front end, hypothesis): one pure call that leaves one ``.nc``, named by the hypothesis and
the hash of its inputs, written aside and renamed. What is there already is skipped on resuming, one unit that fails is
reported and stops no other, and units run in any ``concurrent.futures.Executor``.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

import neurodiff
from neurodiff.data.schema import data_hash
from neurodiff.inference.compare import alternating, compare, kfold
from neurodiff.inference.fit import explore, join, modes_of
from neurodiff.inference.hypotheses import Hypothesis, Task, build
from neurodiff.inference.laplace import Laplace
from neurodiff.inference.nuts import NUTS
from neurodiff.inference.svi import SVI
from neurodiff.inference.tree import build_tree
from neurodiff.perception.controls import permute

_FOLD_DRAWS = 250


@dataclass(frozen=True)
class Unit:
    """One unit of work: everything that its result depends on.

    Attributes:
        data: One part of a data set.
        hypothesis: What is fitted.
        task: How responses are read.
        method: How it is fitted.
        by: Grouping coordinate of hierarchical parameters, or None.
        seed: Of all randomness.
    """

    data: xr.Dataset
    hypothesis: Hypothesis
    task: Task
    method: Laplace | SVI | NUTS
    by: str | None
    seed: int

    @property
    def part(self) -> str:
        """Name of the data part."""
        return str(self.data.attrs.get("name", "data"))

    @property
    def filename(self) -> str:
        """Readable, and different whenever any input is."""
        h = self.hypothesis
        key = (data_hash(self.data), h, self.task, self.method, self.by, self.seed)
        digest = hashlib.sha256(repr((*key, neurodiff.__version__)).encode()).hexdigest()[:8]
        label = f"{self.part}--{h.front_end}--{h.gauge}--{h.name}"
        return "".join(c if c.isalnum() or c in "-." else "-" for c in label) + f"-{digest}.nc"


def solve(unit: Unit) -> xr.DataTree:
    """Fit one unit: the posterior on all data, and for a time series blocked K-fold beside it."""
    data = unit.data
    if unit.hypothesis.permuted:
        data = permute(data, unit.seed, _within(data, unit.by))
    model = build(unit.hypothesis, unit.task, data)
    bound = join(model, data, by=unit.by)
    starts = unit.method.starts if isinstance(unit.method, Laplace) else 4
    modes = modes_of(bound, starts, unit.seed)
    began = time.perf_counter()
    u, stats = explore(bound, modes, unit.method, unit.seed, None)
    wall = time.perf_counter() - began
    tree = build_tree(bound, data, u, stats, unit.method, unit.seed, "cpu", wall)
    if bound.unit_dim == "block":
        fold = alternating(len(bound.unit_names))
        elpd, k_hat = kfold(bound, modes, fold, _FOLD_DRAWS, unit.seed)
        tree["kfold"] = xr.Dataset({"elpd": ("block", elpd), "k_hat": ("fold", k_hat)})
    counts = data["count"] if "count" in data else None
    tree.attrs |= {
        "data": unit.part,
        "front_end": unit.hypothesis.front_end,
        "gauge": unit.hypothesis.gauge,
        "hypothesis": unit.hypothesis.name,
        "kind": unit.hypothesis.kind,
        "spikes": float("nan") if counts is None else float(counts.sum()),
        "unsaturated": int(_unsaturated(tree, bound)),
        "citation": str(data.attrs.get("citation", "")),
        "licence": str(data.attrs.get("licence", "")),
    }
    return tree


def _within(data: xr.Dataset, by: str | None) -> str | None:
    if "block" in data.coords:
        return "block"
    return by or ("subject" if "subject" in data.coords else None)


def _unsaturated(tree: xr.DataTree, bound) -> bool:  # noqa: ANN001
    """Whether most draws put the law's middle beyond every tested logsnr: then it is a power law."""
    posterior = tree["posterior"].dataset
    if "weighting" not in posterior:
        return False
    w = posterior["weighting"].mean([d for d in posterior["weighting"].dims if d != "logsnr"])
    tested = bound.posterior.model.front_end(bound.posterior.trials).detach()
    top = float(tested[torch.isfinite(tested)].max())
    at_top = float(np.interp(top, w["logsnr"].values, w.values))
    return at_top > 0.5


def run_unit(unit: Unit, folder: Path) -> Path:
    """Solve a unit and leave its file, whole or not at all."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
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


def _progress():  # noqa: ANN202
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    )


def run_all(
    units: Sequence[Unit], folder: Path, executor: Executor | None, label: str
) -> tuple[dict[Unit, Path], dict[str, str]]:
    """Run units side by side.

    Returns:
        The file of each unit that worked, and the message of each that did not.
    """
    done: dict[Unit, Path] = {}
    failed: dict[str, str] = {}
    with _progress() as progress:
        bar = progress.add_task(label, total=len(units))
        for unit, result in _results(units, folder, executor):
            progress.advance(bar)
            if isinstance(result, Path):
                done[unit] = result
            else:
                failed[unit.filename] = f"{type(result).__name__}: {result}"
    return done, failed


def _results(
    units: Sequence[Unit], folder: Path, executor: Executor | None
) -> Iterable[tuple[Unit, Path | Exception]]:
    if executor is None:
        for unit in units:
            try:
                yield unit, run_unit(unit, folder)
            except (ValueError, RuntimeError, ArithmeticError) as error:
                yield unit, error
        return
    futures = {executor.submit(run_unit, unit, folder): unit for unit in units}
    try:
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], future.result() if error is None else error  # pyright: ignore
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def study(
    parts: Sequence[xr.Dataset],
    hypotheses: Sequence[Hypothesis],
    task: Task,
    out: Path,
    *,
    method: Laplace | SVI | NUTS | None = None,
    by: str | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    resume: bool = False,
    command: str = "",
) -> pd.DataFrame:
    """Fit every hypothesis to every part, compare, and leave a run folder.

    Args:
        parts: The parts of the data.
        hypotheses: What to fit, controls among them; see :func:`neurodiff.inference.hypotheses.plan`.
        task: How responses are read.
        out: Run folder: new or empty, or one to resume.
        method: ``Laplace()`` by default.
        by: Coordinate whose values get hierarchical parameters.
        seed: Of all randomness.
        executor: Where units run; in this process by default.
        resume: Skip the units whose files are there.
        command: What was typed, for ``run.json``.

    Returns:
        The comparison, which is also ``comparison.csv``.

    Raises:
        ValueError: If the folder holds something else, or every unit failed.
    """
    began = time.time()
    fits = _prepare(out, resume)
    method = Laplace(draws=500, starts=2) if method is None else method
    for part in parts:  # a hypothesis that makes no sense fails here, before anything runs
        for hypothesis in hypotheses:
            build(hypothesis, task, part)
    units = [Unit(part, h, task, method, by, seed) for part in parts for h in hypotheses]
    done, failed = run_all(units, fits, executor, "fitting")
    again = [unit for unit in units if unit not in done]
    if not done:
        raise ValueError(f"every fit failed; the first: {next(iter(failed.values()))}")
    controls = [] if again else _permuted(done)
    more, more_failed = run_all(controls, fits, executor, "permuted controls")
    failed |= more_failed
    paths = [*done.values(), *more.values()]
    table = compare({path.stem: path for path in paths})
    _write(out / "comparison.csv", table.to_csv(index=False))
    facts = {
        "command": command or " ".join(sys.argv),
        "versions": versions(),
        "seed": seed,
        "method": repr(method),
        "by": by,
        "data": {unit.part: data_hash(unit.data) for unit in units},
        "files": sorted(path.name for path in paths),
        "failed": failed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(began)),
        "seconds": round(time.time() - began, 1),
    }
    _write(out / "run.json", json.dumps(facts, indent=1))
    return table


def _permuted(done: dict[Unit, Path]) -> list[Unit]:
    """For each part and front end the winner, its stimulus permuted."""
    table = compare({path.stem: path for path in done.values()})
    controls = []
    best = table[table["verdict"].str.startswith("best")]
    for row in best.itertuples():
        for unit in done:
            h = unit.hypothesis
            same = (h.name, h.front_end, h.gauge) == (row.hypothesis, row.front_end, row.gauge)
            if same and unit.part == row.data:
                name = f"{h.name}, stimulus permuted"
                changed = replace(h, name=name, kind="control", permuted=True)
                controls.append(replace(unit, hypothesis=changed))
    return controls


def _prepare(out: Path, resume: bool) -> Path:
    """The run folder, made or checked."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, wanted a folder for the run: name another with --out")
    if out.exists() and any(out.iterdir()) and not resume:
        raise ValueError(
            f"{out} is not empty: name another folder with --out, or go on there with --resume"
        )
    if out.exists() and any(out.iterdir()) and not (out / "fits").is_dir():
        raise ValueError(f"{out} holds something that is not a run: name another folder with --out")
    try:
        (out / "fits").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}; name another with --out") from None
    if not os.access(out / "fits", os.W_OK):
        raise ValueError(f"cannot write to {out}: permission denied; name another with --out")
    return out / "fits"


def _write(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text)
    aside.replace(path)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import platform
    from importlib.metadata import version

    names = ["torch", "pyro-ppl", "numpy", "xarray", "arviz-stats"]
    return {
        "neurodiff": neurodiff.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }

