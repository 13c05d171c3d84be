"""What a run found and what it assumed, in words: for the terminal and the report.

Every summary states the defaults that were used: the guess rate or its prior, ceiling and lapse
with theirs, the priors of everything else that was learned, and the kind of interval.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from neurodiff.inference.unit import label

_SHOWN = 4  # winners described at most; all are in the table


def describe(out: Path) -> str:
    """Parameters of the winners of a run, its defaults, and the fits that failed.

    Args:
        out: The folder of a finished run.

    Raises:
        OSError: If it is none.
    """
    facts = json.loads((out / "run.json").read_text())
    table = pd.read_csv(out / "comparison.csv")
    best = table[table["verdict"].str.startswith("best")]
    text, defaults = [], []
    columns = [best[c] for c in ("data", "front_end", "gauge", "hypothesis")]
    for data, end, gauge, name in list(zip(*columns, strict=True))[:_SHOWN]:
        start = label(data, end, gauge, name)
        (file,) = [f for f in facts["files"] if f.rpartition("-")[0] == start]
        with xr.open_datatree(out / "fits" / file, engine="h5netcdf") as tree:
            text += [f"{data}, front end {end}: {name} ({gauge} gauge)", *_parameters(tree), ""]
            defaults = _defaults(tree)
    if len(best) > _SHOWN:
        text += [f"… and {len(best) - _SHOWN} more winners in {out / 'comparison.csv'}", ""]
    text += [*defaults, f"method: {facts['method']}, seed {facts['seed']}"]
    if facts["failed"]:
        text += ["", f"{len(facts['failed'])} failed:"]
        text += [f"  {name}: {why}" for name, why in facts["failed"].items()]
    return "\n".join([*text, f"run folder: {out}"])


def _parameters(tree: xr.DataTree) -> list[str]:
    """Median and interval of each scalar parameter, the population's where there is one."""
    posterior, priors = tree["posterior"].dataset, json.loads(tree.attrs["priors"])
    lines = []
    for name, prior in priors.items():
        whole = f"population.{name}" if f"population.{name}" in posterior else name
        draws = posterior[whole]
        if set(draws.dims) != {"chain", "draw"}:
            lines.append(f"  {whole:35} {'(array)':25} prior {prior}")
            continue
        low, middle, high = np.quantile(np.asarray(draws), [0.05, 0.5, 0.95])
        interval = f"{middle:.3g} [{low:.3g}, {high:.3g}]"
        lines.append(f"  {whole:35} {interval:25} prior {prior}")
    return lines


def _defaults(tree: xr.DataTree) -> list[str]:
    priors, fixed = json.loads(tree.attrs["priors"]), json.loads(tree.attrs["fixed"])
    lines = ["defaults: median [central 90 % interval] of the posterior"]
    for what in ("guess", "ceiling", "lapse"):
        name = f"observer.{what}" if f"observer.{what}" in {**priors, **fixed} else what
        if name in priors:
            lines.append(f"  {what} is learned, prior {priors[name]}")
        elif name in fixed:
            lines.append(f"  {what} is fixed at {fixed[name]:.4g}")
    if tree.attrs.get("by"):
        lines.append(f"  parameters by {tree.attrs['by']}: a population, spread HalfNormal(1)")
    return lines
