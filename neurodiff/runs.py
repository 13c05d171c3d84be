"""What a fit reads and fits, as its command said it, and the same again from its run folder.

A run folder holds no data. ``run.json`` says under ``read`` where they came from and how they were
read, and under ``data`` the hash of each part: what is there now must be what was fitted.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from neurodiff.data.choice_rt import choice_rt
from neurodiff.data.gather import gather
from neurodiff.data.schema import DataError, data_hash
from neurodiff.inference.hypotheses import Hypothesis, build, plan
from neurodiff.inference.labels import attach
from neurodiff.inference.share import Part, part_of
from neurodiff.inference.study import blocked
from neurodiff.inference.tasks import Task, common_task, task_of
from neurodiff.perception.stored import read_table


class Reading(NamedTuple):
    """Parts of data, hypotheses of them, and how responses are read."""

    parts: Sequence[xr.Dataset]
    unread: Mapping[str, str]
    rows: Sequence[Hypothesis]
    task: Task


def found_again(data: str) -> str:
    """A name of data, or the path of files from wherever it is read next.

    >>> found_again("grasshopper-receptor/1")
    'grasshopper-receptor/1'
    """
    path = Path(data)
    named = any(c in data for c in "*?[") or path.exists() or path.suffix
    return str(path.absolute()) if named else data


def table_of(model: str, path: Path | None) -> xr.Dataset | None:
    """The table of evidence that a kind needs.

    Raises:
        ValueError: If it needs one and there is none, needs none and there is one, or the file is
            none.
    """
    if model not in ("averaged", "stopped") and path is not None:
        raise ValueError(
            f"--evidence belongs to --model averaged and stopped: leave it out with --model {model}"
        )
    if model in ("averaged", "stopped") and path is None:
        raise ValueError(f"--model {model} needs --evidence TABLE.nc")
    return None if path is None else read_table(path)


def read_for(how: Mapping) -> Reading:
    """What a fit needs, from what its command said.

    Args:
        how: ``data, model, choices, guess, observers, deadline, evidence, front_end, weighting,
            law, bound`` as :func:`neurodiff.cli.fit` takes them.

    Raises:
        ValueError: If they do not go together, or the data cannot be read.
    """
    model, evidence = how["model"], how["evidence"]
    table = table_of(model, evidence and Path(evidence))
    labels = how["choices"] if table is None else table.sizes["label"]
    parts, unread = gather(how["data"], labels, how["observers"])
    if model == "bounded":
        parts = [choice_rt(part, deadline=how["deadline"]) for part in parts]
    parts = parts if table is None else [attach(part, table) for part in parts]
    if model != "bounded" and (how["bound"] or how["deadline"]):
        raise ValueError("--bound and --deadline are of --model bounded")
    if model == "bounded" and how["law"]:
        raise ValueError("the bounded kind has bounds in place of laws: --bound NAME")
    task = common_task([task_of(part, model, how["choices"], how["guess"]) for part in parts])
    ends = how["front_end"] or ("none",)
    rows = plan(task, ends, how["weighting"], how["bound"] or how["law"])
    return Reading(parts, unread, rows, task)


def shared_parts(folders: Sequence[Path]) -> dict[tuple[str, str], list[Part]]:
    """Of every hypothesis that all runs have fitted, each person's data in each run.

    A person is a value of the coordinate that a run was fitted ``--by``, or a part of its data.

    Args:
        folders: Run folders of :func:`neurodiff.cli.fit`.

    Returns:
        By hypothesis and front end: those that learn a weighting, controls not among them.

    Raises:
        ValueError: If a folder is no finished run or does not say what it has read, the data are
            gone or no longer what was fitted, or no hypothesis is common to all.
    """
    runs = {folder: _restored(folder) for folder in folders}
    common = set.intersection(*({_key(row) for row in r.rows} for r, _ in runs.values()))
    if not common:
        each = "; ".join(
            f"{f}: {sorted({k[0] for k in map(_key, r.rows)})}" for f, (r, _) in runs.items()
        )
        raise ValueError(f"the runs have no learned weighting in common ({each})")
    found = {}
    for key in sorted(common):
        found[key[:2]] = parts = []
        for folder, (reading, by) in runs.items():
            row = next(row for row in reading.rows if _key(row) == key)
            for person, data in _persons(reading.parts, by):
                name, own = f"{person}, {folder}", blocked(data)
                parts.append(part_of(own, build(row, reading.task, own), name, person))
    return found


def _restored(folder: Path) -> tuple[Reading, str | None]:
    """What a run has read, and by which coordinate it was grouped."""
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run.json; wanted the folder of a finished run")
    facts = json.loads(path.read_text())
    if "read" not in facts:
        raise ValueError(
            f"{path} does not say what the run has read (it was made from Python, or by an older "
            "version): fit again from the command line, or use neurodiff.inference.share"
        )
    if facts["read"]["model"] == "bounded":
        raise ValueError(f"{folder} is of the bounded kind, which has no weighting to share")
    try:
        reading = read_for(facts["read"])
    except DataError as error:
        raise ValueError(f"the data of {folder} cannot be read again: {error}") from error
    now = {str(part.attrs["name"]): data_hash(blocked(part)) for part in reading.parts}
    changed = [name for name, was in facts["data"].items() if now.get(name) != was]
    if changed:
        raise ValueError(f"{folder}: the data {changed} are not those that were fitted: fit again")
    rows = [r for r in reading.rows if r.kind == "law" or (r.kind == "named" and r.key != "elbo")]
    parts = [part for part in reading.parts if str(part.attrs["name"]) in facts["data"]]
    return reading._replace(rows=rows, parts=parts), facts["by"]


def _key(row: Hypothesis) -> tuple[str, str, str]:
    return f"{row.name} ({row.gauge} gauge)", row.front_end, row.key


def _persons(parts: Sequence[xr.Dataset], by: str | None) -> list[tuple[str, xr.Dataset]]:
    """The data of each person, and who that is."""
    if by is None:
        return [(str(part.attrs["name"]), part) for part in parts]
    found = []
    for part in parts:
        (dim,) = part[by].dims
        for who in np.unique(part[by].values):
            found.append((str(who), part.isel({dim: part[by].values == who})))
    return found
