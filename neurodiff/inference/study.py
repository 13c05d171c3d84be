r"""A study: every hypothesis fitted to every part of the data, and the table that compares them.

.. math:: \text{study} = \text{compare}\big(\{\text{unit}(d, h)\}_{d \in \text{parts},
          h \in \text{hypotheses}} \cup \{\text{winners, stimulus permuted}\}\big)

Small parts under one hypothesis are one job, which solves them as one batch; jobs run in any
``concurrent.futures.Executor``. What is there already is skipped on resuming, and one unit that
fails is reported and stops no other. The table does not depend on where or in which order units
ran.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from neurodiff.data.schema import data_hash
from neurodiff.inference.compare import compare
from neurodiff.inference.fit import choose_device
from neurodiff.inference.hypotheses import Hypothesis, build
from neurodiff.inference.join import join
from neurodiff.inference.labels import KINDS
from neurodiff.inference.laplace import Laplace
from neurodiff.inference.nuts import NUTS
from neurodiff.inference.run_folder import check, make, versions, write
from neurodiff.inference.svi import SVI
from neurodiff.inference.tasks import Task
from neurodiff.inference.unit import Unit, run_units

_BLOCKS = 20  # that a recording without blocks of its own is cut into
_BATCH, _GPU_BATCH = 32, 512  # parts solved at once; what does not fit is cut again
# Trials or bins up to which that pays on a CPU. Eight parts at once took, of the time that they
# take one by one, 0.6 at 100 trials or 500 bins, 1.0 at 500 trials or 2,000 bins and 1.2 at 5,000.
_SMALL = 400


class Unfinished(RuntimeError):
    """Some units never ran, because a worker died; what did run is kept for ``resume``."""


def study(
    parts: Sequence[xr.Dataset],
    hypotheses: Sequence[Hypothesis],
    task: Task,
    out: Path,
    *,
    method: Laplace | SVI | NUTS | None = None,
    by: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    executor: Executor | None = None,
    resume: bool = False,
    unread: Mapping[str, str] | None = None,
    command: str = "",
    read: Mapping | None = None,
) -> pd.DataFrame:
    """Fit every hypothesis to every part, compare, and leave a run folder.

    Args:
        parts: The parts of the data, with different names in their attribute ``name``.
        hypotheses: What to fit, controls among them; see
            :func:`neurodiff.inference.hypotheses.plan`.
        task: How responses are read.
        out: Run folder: new or empty, or one to resume.
        method: ``Laplace(draws=500, starts=3)`` by default.
        by: Coordinate whose values get hierarchical parameters.
        seed: Of all randomness.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        executor: Where units run; in this process by default.
        resume: Skip the units whose files are there.
        unread: Parts that could not be read, and why: reported with the units that failed.
        command: What was typed, for ``run.json``.
        read: How the parts were read, for ``run.json``: what :func:`neurodiff.runs.read_for` takes.

    Returns:
        The comparison, which is also ``comparison.csv``. ``run.json`` says which units failed.

    Raises:
        ValueError: If a hypothesis, the device or every part makes no sense, the folder holds
            something else, or every unit failed. Nothing is written then but fits that are whole.
        Unfinished: If a worker died.
    """
    began = time.time()
    choose_device(device, 0)  # which refuses one that is none
    check(out, resume)
    usable, failed = _check_parts([blocked(p) for p in parts], hypotheses, task, by)
    failed = {**(unread or {}), **failed}
    fits = make(out)
    method = Laplace(draws=500, starts=3) if method is None else method
    units = [Unit(part, h, task, method, by, seed, device) for part in usable for h in hypotheses]
    done, more = run_all(units, fits, executor, "fitting")
    failed |= more
    if not done:
        raise ValueError(f"every fit failed; the first: {next(iter(failed.values()))}")
    controls, more = run_all(_permuted(done), fits, executor, "permuted controls")
    failed |= more
    paths = [*done.values(), *controls.values()]
    table = compare({path.stem: path for path in paths})
    write(out / "comparison.csv", table.to_csv(index=False))
    facts = {
        "command": command or " ".join(sys.argv),
        "versions": versions(),
        "seed": seed,
        "method": repr(method),
        "by": by,
        "task": repr(task),
        "data": {str(part.attrs["name"]): data_hash(part) for part in usable},
        "files": sorted(path.name for path in paths),
        "failed": failed,
        **({} if read is None else {"read": dict(read)}),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(began)),
        "seconds": round(time.time() - began, 1),
    }
    write(out / "run.json", json.dumps(facts, indent=1))
    return table


def run_all(
    units: Sequence[Unit], folder: Path, executor: Executor | None, label: str
) -> tuple[dict[Unit, Path], dict[str, str]]:
    """Run units side by side.

    Returns:
        The file of each unit that worked, in the order of ``units``, and the message of each that
        did not.

    Raises:
        Unfinished: If a worker died, so that some units never ran.
    """
    done: dict[Unit, Path] = {}
    failed: dict[str, str] = {}
    lost = 0
    with _progress() as progress:
        bar = progress.add_task(label, total=len(units))
        for unit, result in _results(units, folder, executor):
            progress.advance(bar)
            if isinstance(result, Path):
                done[unit] = result
            elif isinstance(result, BrokenExecutor):
                lost += 1
            else:
                h = unit.hypothesis
                name = f"{unit.part}, {h.front_end}, {h.gauge}: {h.name}"
                failed[name] = f"{type(result).__name__}: {result}"
    if lost:
        raise Unfinished(
            f"{lost} of {len(units)} fits did not run: a worker process died (killed, or out of "
            f"memory); the {len(done)} that are done are kept: run again with --resume"
        )
    return {unit: done[unit] for unit in units if unit in done}, failed


def _results(
    units: Sequence[Unit], folder: Path, executor: Executor | None
) -> Iterator[tuple[Unit, Path | BaseException]]:
    if executor is None:
        for job in _jobs(units):
            yield from zip(job, run_units(job, folder), strict=True)
        return
    futures: dict[Future[list[Path | Exception]], list[Unit]] = {}
    try:
        for job in _jobs(units):
            try:
                futures[executor.submit(run_units, job, folder)] = job
            except BrokenExecutor as error:
                yield from ((unit, error) for unit in job)
        for future in as_completed(futures):
            job, error = futures[future], future.exception()
            yield from zip(job, [error] * len(job) if error else future.result(), strict=True)
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _jobs(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units in jobs: parts under one hypothesis, as many as one batch gains from."""
    jobs: list[list[Unit]] = []
    latest: dict[Hypothesis, list[Unit]] = {}
    for unit in units:
        job, gpu = latest.get(unit.hypothesis), choose_device(unit.device, sys.maxsize) != "cpu"
        small = gpu or max(unit.data.sizes.values(), default=0) <= _SMALL
        if job is None or not small or len(job) >= (_GPU_BATCH if gpu else _BATCH):
            jobs.append(job := [])
        job.append(unit)
        if small:
            latest[unit.hypothesis] = job
    return jobs


def _progress():  # noqa: ANN202
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)


def _permuted(done: Mapping[Unit, Path]) -> list[Unit]:
    """For each part and front end the winner, its stimulus permuted, where that changes it."""
    table = compare({path.stem: path for path in done.values()})
    best = table[table["verdict"].str.startswith("best")]
    rows = zip(*(best[c] for c in ("data", "front_end", "gauge", "hypothesis")), strict=True)
    winners, controls = set(rows), []
    for unit in done:
        h = unit.hypothesis
        if h.key == "elbo" and unit.task.model in KINDS:
            continue  # a sum over all noise levels is the same in any order
        if (unit.part, h.front_end, h.gauge, h.name) in winners and h.kind != "control":
            name = f"{h.name}, stimulus permuted"
            changed = replace(h, name=name, kind="control", permuted=True)
            controls.append(replace(unit, hypothesis=changed))
    return controls


def _check_parts(
    parts: Sequence[xr.Dataset], hypotheses: Sequence[Hypothesis], task: Task, by: str | None
) -> tuple[list[xr.Dataset], dict[str, str]]:
    """Build what will be fitted: what makes no sense fails here, before anything runs."""
    names = [str(part.attrs.get("name", "")) for part in parts]
    if not hypotheses or not all(names) or len(set(names)) < len(names):
        raise ValueError(
            f"got {len(hypotheses)} hypotheses and parts called {names}; wanted at least one "
            "hypothesis, and a different attribute 'name' on each part"
        )
    for h in hypotheses:
        if h.key != "free link":  # whose knots depend on the data
            build(h, task, parts[0])
    firsts = {h.front_end: h for h in reversed(hypotheses)}.values()
    usable, failed = [], {}
    for part, name in zip(parts, names, strict=True):
        try:
            for h in firsts:
                join(build(h, task, part), part, by=by)
        except (ValueError, KeyError) as error:
            failed[name] = f"{name}: {error}"
        else:
            usable.append(part)
    if not usable:
        raise ValueError("\n".join(failed.values()))
    return usable, failed


def blocked(data: xr.Dataset) -> xr.Dataset:
    """A recording whose bins have no blocks, cut into 20 of equal length: bins are no units.

    Raises:
        ValueError: If it is too short for that.
    """
    if "time" not in data.sizes or "block" in data.coords:
        return data
    bins, samples = data.sizes["time"], data.sizes.get("sample", 0)
    length = bins // _BLOCKS
    if length < 2:
        raise ValueError(
            f"{data.attrs.get('name', 'the recording')}: got {bins} time bins, wanted at least "
            f"{2 * _BLOCKS}: predictions are scored on blocks that are held out"
        )
    kept = {"time": slice(_BLOCKS * length)}
    if samples:
        kept["sample"] = slice(_BLOCKS * length * samples // bins)
    block = ("time", np.arange(_BLOCKS * length) // length)
    return data.isel(kept).assign_coords(block=block)
