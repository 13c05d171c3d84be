"""Many small sessions under the default hypotheses, one by one against in batches.

``python benchmarks/sessions.py [--device cuda] [--sessions 40 200] [--only logistic]``. Seconds are
of the processor, a thread each, but on a GPU, where the clock says more; both ways take turns batch
by batch, so that other work on the machine slows them alike. The table is kept in ``sessions.csv``:
units solved and written (``all``), and of that the part that batches share (``solving``).
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from neurodiff.inference import together, unit
from neurodiff.inference.hypotheses import plan
from neurodiff.inference.laplace import Laplace
from neurodiff.inference.study import _BATCH, _GPU_BATCH
from neurodiff.inference.tasks import task_of

HEADER = ["device", "what", "sessions", "hypotheses", "serial", "batched", "ratio"]


def session(seed):
    """From 60 to 140 answers of a two-choice observer at eight levels, some of them missing."""
    rng = np.random.default_rng(seed)
    trials = int(rng.integers(60, 141))
    logsnr = rng.normal(0, 1) + rng.choice(np.linspace(-4, 4, 8), trials)
    right = rng.random(trials) < 0.5 + 0.45 / (1 + np.exp(-logsnr))
    correct = np.where(rng.random(trials) < 0.05, np.nan, right)
    columns = {"logsnr": ("trial", logsnr), "correct": ("trial", correct)}
    return xr.Dataset(columns, attrs={"name": f"session{seed:03d}", "n_choices": 2})


def solving(answer):
    """Adds up the seconds of the answers, which are what a batch shares."""
    spent = [0.0]

    def timed(*args):
        began = NOW()
        try:
            return answer(*args)
        finally:
            spent[0] += NOW() - began

    return timed, spent


def compare(count, device, only=None):
    """Seconds of both ways for all sessions under all hypotheses."""
    parts = [session(seed) for seed in range(count)]
    task, size = task_of(parts[0]), _BATCH if device == "cpu" else _GPU_BATCH
    total, inner = {1: 0.0, size: 0.0}, {1: 0.0, size: 0.0}
    answer = together.answer
    hypotheses = [h for h in plan(task) if only is None or h.key in only]
    for h in hypotheses:
        units = [unit.Unit(p, h, task, Laplace(500, 2), None, 0, device) for p in parts]
        for first in range(0, count, size):
            for step in total:
                together.answer, spent = solving(answer)
                with tempfile.TemporaryDirectory() as folder:
                    began = NOW()
                    for i in range(first, min(first + size, count), step):
                        job = units[i : min(i + step, first + size)]
                        results = unit.run_units(job, Path(folder))
                        assert not [r for r in results if isinstance(r, Exception)]
                    total[step] += NOW() - began
                inner[step] += spent[0]
    together.answer = answer
    for what, seconds in (("all", total), ("solving", inner)):
        a, b = seconds[1], seconds[size]
        row = [device, what, str(count), str(len(hypotheses))]
        row += [f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}"]
        print(*row, sep="  ", flush=True)
        yield row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sessions", type=int, nargs="+", default=[40, 200])
    parser.add_argument("--only", nargs="+", help="hypotheses by their keys; all by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    NOW = time.process_time if given.device == "cpu" else time.perf_counter
    list(compare(2, given.device, given.only))  # what is done once
    rows = [row for n in given.sessions for row in compare(n, given.device, given.only)]
    target, new = Path(__file__).with_suffix(".csv"), {tuple(row[:4]) for row in rows}
    old = list(csv.reader(target.open(newline="")))[1:] if target.exists() else []
    kept = [row for row in old if tuple(row[:4]) not in new]
    with target.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *kept, *rows])
