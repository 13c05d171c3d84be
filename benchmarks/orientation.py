"""What transfer between two tasks of orientation costs: 19 people, four hypotheses, five folds.

python benchmarks/orientation.py [--workers 2]

People and trials as in experiments 1 and 2 of Adler & Ma (2018), simulated. Each hypothesis is
fitted in both tasks (three starts, weighted draws, modes and draws of every fold) and carried from
A to B at 8 draws, by choices alone and by choices with confidence. Hypotheses run side by side.
Writes orientation.csv: wall and processor seconds of each, those of all, and the largest memory of
its process so far.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

import neurodiff as nd
from neurodiff.inference.join import join
from neurodiff.inference.pool import workers
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.transfer import carry, fit_parts, held_out
from neurodiff.perception.categories import Linear
from neurodiff.perception.confidence import Cuts, Reports
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
SLOWEST_FIRST = ("logistic", "flow-matching", "power + floor", "free levels")


def model(row, task, answer):
    """By choices alone, or by choices with confidence."""
    if answer == "choice":
        return Categorise(ROWS[row](), Linear(task))
    return Reports(ROWS[row](), Cuts(task))


def people(task, count, trials, rng):
    """Reports simulated from a power law with a floor, each person's a little different."""
    for _ in range(count):
        own = model("power + floor", task, "report").double()
        own.measurement.shift.data += 0.5 * rng.normal()
        wide = rng.integers(0, 2, trials)
        s = rng.normal(8 * wide - 4, 5) if task == "A" else rng.normal(0, np.where(wide, 12, 3))
        columns = {"orientation": s, "level": rng.integers(0, 6, trials) * 1.0}
        p = own({k: torch.tensor(v) for k, v in columns.items()}).probs.detach().numpy()
        report = (rng.random((trials, 1)) > p.cumsum(1)).sum(1).clip(max=7)
        columns |= {"report": report * 1.0, "choice": (report > 3) * 1.0}
        yield xr.Dataset({name: ("trial", values) for name, values in columns.items()})


@on_one_thread
def transfer(row, answer):
    """Fits of both tasks, their folds, and B from A; the row of the table."""
    wall, cpu, rng = time.perf_counter(), time.process_time(), np.random.default_rng(0)
    draws = 200 if answer == "choice" else 400
    for count, trials in zip(PEOPLE, TRIALS, strict=True):
        fold, fitted = torch.arange(trials).expand(count, -1) % 5, {}
        parts = {task: list(people(task, count, trials, rng)) for task in "AB"}
        for task, own in parts.items():
            each = [join(model(row, task, answer), data).posterior for data in own]
            fitted[task] = fit_parts(each, draws)
            held_out(fitted[task], fold)
        values, onto = fitted["A"].sampled(8, seed=1), []
        for data in parts["B"]:
            given = model(row, "B", answer)
            given.measurement.requires_grad_(False)
            onto.append(join(given, data).posterior)
        carry({k: v for k, v in values.items() if k.startswith("measurement.")}, onto, fold)
    return {
        "answer": answer, "row": row, "people": sum(PEOPLE), "folds": 5,
        "seconds": round(time.perf_counter() - wall, 1),
        "processor_seconds": round(time.process_time() - cpu, 1),
        "peak_GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    rows, count = [], parser.parse_args().workers
    for answer in ("choice", "report"):
        wall = time.perf_counter()
        with workers(count) as pool:
            made = (pool.map if pool else map)(transfer, SLOWEST_FIRST, [answer] * len(ROWS))
            own = list(made)
        whole = {"seconds": round(time.perf_counter() - wall, 1), "workers": count}
        spent = round(sum(row["processor_seconds"] for row in own), 1)
        most = max(row["peak_GiB"] for row in own)
        whole |= {"processor_seconds": spent, "peak_GiB": most}
        rows += [*own, {"answer": answer, "row": "all", "people": sum(PEOPLE), "folds": 5} | whole]
        print(rows[-1], flush=True)
        pd.DataFrame(rows).to_csv(Path(__file__).with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
