"""What a table of evidence costs beside its network, and what a fit to a large one takes.

python benchmarks/evidence.py     two minutes on a quiet core

Tables: the same forward passes bare and by ``evidence``, in turns, one thread; peaks of memory are
of a process each, for few stimuli and for many. Fits: modes and curvature of a law (kinds b, c) on
a table of 10,000 stimuli × 10 labels × 32 levels, 50 answers each. Writes evidence.csv.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

import neurodiff as nd
from neurodiff.diffusion.denoiser import NetworkDenoiser
from neurodiff.diffusion.networks import UNet
from neurodiff.inference.join import join
from neurodiff.inference.laplace import best_modes
from neurodiff.inference.posterior import on_one_thread
from neurodiff.perception.classify import AveragedEvidence, StoppedEvidence
from neurodiff.perception.evidence import evidence

STIMULI, LEVELS, BATCH, TURNS = 8, 8, 320, 5


def network():
    torch.manual_seed(0)
    return NetworkDenoiser(UNet(1, 24, (1, 2, 4), 2, attention=(2,), classes=10), "v").eval()


def tables():
    """Seconds of a table over those of its forward passes."""
    denoiser, x = network(), torch.rand(STIMULI, 1, 16, 16) * 2 - 1
    grid = torch.linspace(-4.0, 4.0, LEVELS)
    calls = STIMULI * LEVELS * 2 * 2 * 10 // BATCH
    z, logsnr = torch.randn(BATCH, 1, 16, 16), torch.zeros(BATCH)
    label = torch.arange(10).repeat(BATCH // 10)
    ratios, bare_seconds = [], []
    for _ in range(TURNS):
        began = time.perf_counter()
        with torch.no_grad():
            for _ in range(calls):
                denoiser(z, logsnr, label)
        bare = time.perf_counter() - began
        began = time.perf_counter()
        evidence(denoiser, x, range(10), grid, pairs=2, batch=BATCH)
        ratios.append((time.perf_counter() - began) / bare)
        bare_seconds.append(bare)
    low, middle, high = np.quantile(ratios, [0, 0.5, 1])
    yield {"what": "table / bare passes", "value": middle, "low": low, "high": high,
           "unit": "1"}  # fmt: skip


def peak(stimuli):
    """Peak memory of a process that makes a table of so many stimuli, MiB."""
    command = [sys.executable, __file__, "--peak", str(stimuli)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory():
    for stimuli in (64, 512):
        yield {"what": f"peak memory, {stimuli} stimuli", "value": peak(stimuli), "unit": "MiB"}


@on_one_thread
def fits():
    """Modes on a large table."""
    rng = np.random.default_rng(0)
    error = rng.gamma(2.0, 0.05, (10_000, 10, 32)).astype(np.float32)
    dims = ("stimulus", "label", "logsnr")
    width = np.full((10_000, 32), 0.5, np.float32)
    table = xr.Dataset(
        {"error": (dims, error), "width": (dims[::2], width)},
        {"stimulus": np.arange(10_000), "logsnr": np.linspace(-8, 7.5, 32)},
    )
    for kind in (AveragedEvidence, StoppedEvidence):
        truth = kind(nd.SurvivalWeighting(nd.laws.Logistic(0.0, 1.0)), table)
        shown = torch.arange(10_000).repeat_interleave(50)
        choice = truth({"row": shown.double()}).sample().double()
        data = xr.Dataset(
            {"shown": ("trial", shown.double().numpy()), "choice": ("trial", choice.numpy())}
        )
        began = time.perf_counter()
        bound = join(kind(nd.SurvivalWeighting(nd.laws.Logistic()), table), data)
        met = time.perf_counter()
        found = best_modes(bound.posterior, bound.start[None, None])
        if not bool(found.converged.all()):
            raise RuntimeError("the mode was not found")
        name = kind.__name__
        yield {"what": f"{name}, 500,000 answers met", "value": met - began, "unit": "s"}
        yield {"what": f"{name}, mode and curvature", "value": time.perf_counter() - met,
               "unit": "s"}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", type=int)
    own = parser.parse_args().peak
    torch.set_num_threads(1)
    if own:
        x = torch.rand(own, 1, 16, 16) * 2 - 1
        evidence(network(), x, [0, 1], torch.linspace(-1.0, 1.0, 2), pairs=1, batch=BATCH)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    table = pd.DataFrame([*tables(), *memory(), *fits()])
    print(table.to_string(index=False))
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
