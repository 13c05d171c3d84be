"""What transfer between two tasks of orientation costs: 19 people, four hypotheses, five folds.

python benchmarks/orientation.py     three minutes on a core

People and trials as in experiments 1 and 2 of Adler & Ma (2018), simulated. Each hypothesis is
fitted in both tasks (three starts, weighted draws, folds) and carried from A to B at 8 draws.
Writes orientation.csv: wall and processor seconds of each, and the largest memory so far.
"""

import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

import neurodiff as nd
from neurodiff.inference.join import join
from neurodiff.inference.transfer import carry, fit_parts, held_out
from neurodiff.perception.categories import Linear
from neurodiff.perception.measurement import Free, Power, Stopped
from neurodiff.perception.orientation import Categorise, strengths

PEOPLE, TRIALS, S = (11, 8), (2160, 1580), strengths(6)


def flow_matching():
    law = nd.laws.Logistic(-1.0, 2.0)
    law.scale.requires_grad_(False)
    return Stopped(S, law)


ROWS = {
    "power + floor": lambda: Power(S, floor=True),
    "logistic": lambda: Stopped(S, nd.laws.Logistic(-1.0, 0.7)),
    "flow-matching": flow_matching,
    "free levels": lambda: Free(6),
}


def people(task, count, trials, rng):
    """Choices simulated from a power law with a floor, each person's a little different."""
    for _ in range(count):
        model = Categorise(Power(S, floor=True), Linear(task)).double()
        model.measurement.shift.data += 0.5 * rng.normal()
        wide = rng.integers(0, 2, trials)
        s = rng.normal(8 * wide - 4, 5) if task == "A" else rng.normal(0, np.where(wide, 12, 3))
        columns = {"orientation": s, "level": rng.integers(0, 6, trials) * 1.0}
        p = model({k: torch.tensor(v) for k, v in columns.items()}).probs.detach().numpy()
        columns["choice"] = (rng.random(trials) < p) * 1.0
        yield xr.Dataset({name: ("trial", values) for name, values in columns.items()})


def transfer(row, parts):
    """Fits of both tasks, their folds, and B from A."""
    fold = torch.arange(max(len(d["level"]) for d in parts["B"])).expand(len(parts["B"]), -1) % 5
    fitted = {}
    for task, own in parts.items():
        each = [join(Categorise(row(), Linear(task)), data).posterior for data in own]
        fitted[task] = fit_parts(each, draws=200)
        held_out(fitted[task], fold)
    values = fitted["A"].sampled(8, seed=1)
    onto = []
    for data in parts["B"]:
        model = Categorise(row(), Linear("B"))
        model.measurement.requires_grad_(False)
        onto.append(join(model, data).posterior)
    carry({k: v for k, v in values.items() if k.startswith("measurement.")}, onto, fold)


def main():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    rng, rows = np.random.default_rng(0), []
    groups = [
        {task: list(people(task, *size, rng)) for task in "AB"}
        for size in zip(PEOPLE, TRIALS, strict=True)
    ]
    for name, row in ROWS.items():
        wall, cpu = time.perf_counter(), time.process_time()
        for parts in groups:
            transfer(row, parts)
        rows.append({
            "row": name, "people": sum(PEOPLE), "folds": 5,
            "seconds": round(time.perf_counter() - wall, 1),
            "processor_seconds": round(time.process_time() - cpu, 1),
            "peak_GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        })  # fmt: skip
        print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(Path(__file__).with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
