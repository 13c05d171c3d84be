"""What the likelihood of choices and reaction times costs: trials, conditions, time steps.

``python benchmarks/choice_time.py`` leaves ``choice_time.csv``: processor seconds of one log
density with its gradient (the best of three), or of a whole fit with its held-out scores, and the
peak memory of the process, of which 0.3 to 0.4 GiB are Python and torch. ``exponent`` is the slope
of log seconds on log size from the row before. Trials are ``recorded`` (to the millisecond, so that
equal ones merge) or ``distinct``; of ``gradient, missed`` one in a hundred has no answer. Each row
is a process of its own, on one thread.
"""

import argparse
import csv
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

HEADER = "kind,what,times,trials,conditions,steps,seconds,peak_gib,exponent".split(",")
KINDS = ("weibull", "leak+weibull", "time-stop", "race", "deadline")
BASE = {"times": "distinct", "trials": 10_000, "conditions": 10, "steps": 100}
SWEEPS = {
    "trials": [10_000, 100_000, 1_000_000],
    "conditions": [10, 20, 40, 80],
    "steps": [60, 120, 240, 480],
}


def trials(kind, count, conditions):
    """Answers of a crude observer: strong evidence is right and fast."""
    import numpy as np
    import xarray as xr

    rng = np.random.default_rng(0)
    size = np.linspace(0.02, 0.5, conditions // 2)
    strength = rng.choice(np.concatenate([-size, size]), count)
    upper = rng.random(count) < 1 / (1 + np.exp(-15 * strength))
    rt = 0.25 + rng.gamma(3, 0.12 - 0.12 * np.abs(strength), count)
    rt = np.minimum(rt.round(3) if kind == "recorded" else rt, 2.0)
    columns = {"strength": strength, "signed_rt": np.where(upper, rt, -rt)}
    columns |= {"choice_known": np.ones(count)}
    return xr.Dataset({k: ("trial", v) for k, v in columns.items()})


def measure(kind, what, times, count, conditions, steps):
    """Seconds and the peak of memory, GiB, of this process."""
    import numpy as np
    import torch

    import neurodiff as nd
    from neurodiff.inference import decisions
    from neurodiff.inference.fit import modes_of
    from neurodiff.inference.join import join

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    decisions._STEP = 2.0 / steps
    data, model = trials(times, count, conditions), decisions.decision(kind, 2.0)
    if "missed" in what:
        data["signed_rt"][::100] = np.inf
    assert len(model.time) == steps
    spent = []
    if what.startswith("gradient"):
        bound = join(model, data)
        u = bound.start[None].clone().requires_grad_(True)
        for _ in range(3):
            began = time.process_time()
            torch.autograd.grad(bound.posterior.log_prob(u).sum(), u)
            spent.append(time.process_time() - began)
    began = time.process_time()
    if what == "mode":
        modes_of(join(model, data), 1, 0)
    elif what == "fit":
        nd.fit(model, data, nd.Laplace(draws=500, starts=1), seed=0)
    spent.append(time.process_time() - began) if what in ("mode", "fit") else None
    return min(spent), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def row(kind, what, before=None, size=None, **change):
    """One row, measured by a process of its own."""
    case = BASE | change
    command = [sys.executable, __file__, "--one", json.dumps([kind, what, *case.values()])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind} {what} {case}: {done.stderr[-500:]}")
    seconds, peak = json.loads(done.stdout)
    exponent = ""
    if before:
        ratio = case[size] / int(before[HEADER.index(size)])
        exponent = f"{math.log(seconds / float(before[6])) / math.log(ratio):.2f}"
    found = [kind, what, *map(str, case.values()), f"{seconds:.4g}", f"{peak:.2f}", exponent]
    print(*found, flush=True)
    return found


def main(kinds):
    target = Path(__file__).with_suffix(".csv")
    old = list(csv.reader(target.open(newline="")))[1:] if target.exists() else []
    rows = [line for line in old if line[0] not in kinds]
    for kind in kinds:
        for size, values in SWEEPS.items():
            before = None
            for value in values:
                before = row(kind, "gradient", before, size, **{size: value})
                rows.append(before)
        rows.append(row(kind, "gradient, missed"))
        for what in ("mode", "fit"):
            rows.append(row(kind, what, times="recorded", trials=1_000_000))
        with target.open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *rows])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*json.loads(options.one))))
    else:
        main(options.kinds)
