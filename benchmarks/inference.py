"""Time of inference on one core, as ratios to floors: ``python benchmarks/inference.py [--long]``.

The floor of the grasshopper recording (10,000 bins, 31 parameters) is one forward and backward pass
of the same log likelihood written by hand; that of a small design is one such pass over its rows.
Times are of the processor, not of the clock: other work on the machine hardly matters. The table is
kept in ``inference.csv``.
"""

import csv
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr

import neurodiff as nd
from neurodiff.data.schema import DataError
from neurodiff.inference.fit import modes_of
from neurodiff.inference.heldout import alternating, kfold
from neurodiff.inference.hmc import many_chains
from neurodiff.inference.importance import importance_draws
from neurodiff.inference.join import join
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.nuts import NUTS, run_chain
from neurodiff.inference.stages import first_stage, two_stages
from neurodiff.inference.tree import _loo
from neurodiff.perception.frontend import InternalNoise, PowerFilter

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
ROWS = []


def clock(function, repeats=5):
    """Least processor time of a call, after one that warms up; and what it returned."""
    result, times = function(), []
    for _ in range(repeats):
        began = time.process_time()
        result = function()
        times.append(time.process_time() - began)
    return min(times), result


def note(what, seconds, floor, target=""):
    ROWS.append([what, f"{seconds:.4g}", f"{seconds / floor:.1f}", target])
    print(f"{what:58s} {seconds:9.4f} s {seconds / floor:10.1f} floors   {target}", flush=True)


def gradient(function, u):
    leaf = u.clone().requires_grad_(True)
    return torch.autograd.grad(function(leaf).sum(), leaf)


def by_hand(joint):
    """The log likelihood of the recording in seven lines of torch."""
    power, past, level = (joint.trials[k] for k in ("power_lags", "count_lags", "log_mean_power"))
    spikes = joint.response.nonzero()[:, 0]

    def log_likelihood(u):
        history, taps = u[4:19], u[19:31]
        logsnr = torch.log(power @ torch.softmax(taps, 0)) + level
        drive = torch.sigmoid((logsnr - u[0]) * torch.exp(-u[1]))
        m = 1e-3 * (torch.exp(u[2]) + torch.exp(u[3]) * drive) * torch.exp(past @ history)
        return torch.log(torch.expm1(m[spikes])).sum() - m.sum()

    return log_likelihood


def recording(long):
    data = nd.load("grasshopper-receptor/1")
    law = nd.SurvivalWeighting(nd.laws.Logistic())
    model = nd.Threshold(law, nd.observers.Counts(), PowerFilter(signed=False))
    bound = join(model, data)
    joint, start = bound.posterior, bound.start[None]
    floor, _ = clock(lambda: gradient(by_hand(joint), bound.start), 40)
    note("recording: forward and backward by hand (the floor)", floor, floor)
    seconds, _ = clock(lambda: gradient(joint.log_prob, start), 40)
    note("recording: gradient of the log density", seconds, floor)
    modes = find_modes(joint, start)
    note("recording: Hessian", clock(lambda: joint.hessian(modes.u))[0], floor)
    cold, _ = clock(lambda: find_modes(joint, start))
    note("recording: mode from a cold start", cold, floor)
    draws, _ = clock(lambda: importance_draws(joint, modes, 1000, torch.Generator().manual_seed(0)))
    note("recording: 1000 proposals weighed", draws, floor)
    note("recording: Laplace fit, 500 draws", cold + draws, floor, "0.3 s")
    held, _ = clock(lambda: kfold(bound, modes, alternating(len(bound.unit_names)), 192, 0), 2)
    note("recording: held-out scores of five folds", held, floor)
    draws = 1000 if long else 50
    began = time.process_time()
    run_chain(joint, modes, NUTS(draws=draws, warmup=200 if long else 100), 0)
    seconds = (time.process_time() - began) * 4 * 1200 / (draws + (200 if long else 100))
    kind = "" if long else f", extrapolated from {draws}"
    note(f"recording: NUTS, 4 chains of 1000 in turn{kind}", seconds, floor, "60 s")


def people():
    try:
        data = nd.load("geirhos2018-degraded-objects/noise")
    except DataError as error:
        print(f"skipped: {error}")
        return
    data = data.isel(trial=data["observer_kind"].values == "human")
    law = nd.SurvivalWeighting(nd.laws.Logistic())
    model = nd.Threshold(law, nd.observers.Choice(choices=16), InternalNoise())
    bound = join(model, data)
    joint, start = bound.posterior, bound.start[None]
    floor, _ = clock(lambda: gradient(joint.log_prob, start), 40)
    note(f"people, pooled: gradient, {len(joint.unit)} rows (the floor)", floor, floor)
    modes = modes_of(bound, 2, 0)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 100, joint.size, generator=generator)
    begin = modes.u[:, None] + 1.5 * noise @ modes.factor.mT
    began = time.process_time()
    chains = many_chains(joint, modes.u, modes.factor, begin, generator)
    seconds = time.process_time() - began
    note(f"people, pooled: 100 chains, R-hat {chains.r_hat.item():.3f}", seconds, floor)
    bound = join(model, data, by="subject")
    began = time.process_time()
    _, k_hat = two_stages(first_stage(bound.posterior, generator), 1000, generator)
    seconds = time.process_time() - began
    note(f"people, by subject: two stages, k-hat {k_hat:.2f}", seconds, floor)


def million():
    """Leave-one-out of a million trials at 4,000 draws: distinct rows, whatever the trials."""
    rng = np.random.default_rng(0)
    logsnr = rng.choice(np.linspace(-4, 4, 40), 1_000_000)
    correct = (rng.random(1_000_000) < 0.5 + 0.45 / (1 + np.exp(-logsnr))).astype(float)
    data = xr.Dataset({"logsnr": ("trial", logsnr), "correct": ("trial", correct)})
    law = nd.SurvivalWeighting(nd.laws.Logistic())
    model = nd.Threshold(law, nd.observers.Choice(choices=2))
    began = time.process_time()
    bound = join(model, data)
    u = bound.start + 0.1 * torch.randn(4000, bound.posterior.size)
    elpd = _loo(bound.posterior, u)[0][bound.rows]
    seconds = time.process_time() - began
    assert np.isfinite(elpd.sum())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    note(f"a million trials: elpd of each, {peak:.1f} GiB at most", seconds, seconds, "2 GiB")


def imports():
    """``import neurodiff`` after ``import torch``, in a fresh process."""
    code = "import time, torch; t = time.perf_counter(); import neurodiff; "
    code += "print(time.perf_counter() - t)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    note("import neurodiff, after torch", float(out.stdout), 1.0, "0.3 s")


if __name__ == "__main__":
    imports()
    recording("--long" in sys.argv)
    people()
    million()
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([["what", "seconds", "floors", "target"], *ROWS])
