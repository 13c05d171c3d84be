"""What a loss and a sampler cost beside their network, and beside azula and diffusers.

pip install azula; python benchmarks/diffusion.py     three minutes on a quiet core

One network (a U-Net, 32×32), one batch, one thread, turns taken within one run; each number is a
median over turns, relative to the bare network in the same turn. Peaks of memory are of a process
each, less one that only imports. Writes diffusion.csv.
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

import neurodiff as nd
from neurodiff.diffusion.denoiser import NetworkDenoiser
from neurodiff.diffusion.loss import denoising_loss
from neurodiff.diffusion.networks import UNet
from neurodiff.diffusion.sample import ddim, dpm_solver, heun, levels

BATCH, STEPS, TURNS = 16, 10, 9


def network():
    torch.manual_seed(0)
    return UNet(3, 32, (1, 2, 2), 1)


class Expanded(torch.nn.Module):
    """The network for a library that says one time for all."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t):
        return self.net(x, t.expand(len(x)))


def losses(net, x):
    """Loss and backward, by library."""
    weighting, schedule = nd.weighting("sigmoid"), nd.schedule("cosine")
    ours = NetworkDenoiser(net, "v")

    def bare():
        return net(x, torch.zeros(len(x))).square().sum()

    def neurodiff():
        return denoising_loss(ours, x, weighting=weighting, schedule=schedule).mean()

    def azula():
        from azula.denoise import KarrasDenoiser
        from azula.noise import CosineSchedule

        own = KarrasDenoiser(net, CosineSchedule())
        return own.loss(x, torch.rand(len(x))).mean()

    def diffusers():
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler()
        t, eps = torch.randint(0, 1000, (len(x),)), torch.randn_like(x)
        return (net(scheduler.add_noise(x, eps, t), t.to(x)) - eps).square().mean()

    return {"bare": bare, "neurodiff": neurodiff, "azula": azula, "diffusers": diffusers}


def samplers(net, x):
    """DDIM and more from noise, by library; and as many bare evaluations."""
    schedule = nd.schedule("cosine")
    ours, logsnr = NetworkDenoiser(net, "v"), levels(schedule, STEPS).float()

    def bare():
        for level in logsnr[:-1]:
            net(x, level.expand(len(x)))

    def azula():
        from azula.denoise import KarrasDenoiser
        from azula.noise import CosineSchedule
        from azula.sample import DDIMSampler

        DDIMSampler(KarrasDenoiser(Expanded(net), CosineSchedule()), steps=STEPS, silent=True)(x)

    def diffusers():
        from diffusers import DDIMScheduler

        scheduler, z = DDIMScheduler(), x
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            z = scheduler.step(net(z, t.to(z).expand(len(z))), t, z).prev_sample

    return {
        "bare": bare,
        "neurodiff": lambda: ddim(ours, x, logsnr),
        "neurodiff DPM-Solver++(2M)": lambda: dpm_solver(ours, x, logsnr),
        "neurodiff Heun, half the steps": lambda: heun(ours, x, logsnr[::2]),
        "azula": azula,
        "diffusers": diffusers,
    }


def timed(calls, backward):
    """Median processor seconds of each, turns taken."""
    seconds = {name: [] for name in calls}
    for turn in range(TURNS + 1):
        for name, call in calls.items():
            began = time.process_time()
            with torch.set_grad_enabled(backward):
                found = call()
                if backward:
                    found.backward()
            if turn:  # the first warms up
                seconds[name].append(time.process_time() - began)
    return {name: np.array(s) for name, s in seconds.items()}


def one(name):
    """A single loss step and its peak of memory, in MiB."""
    net, x = network(), torch.rand(4 * BATCH, 3, 32, 32)
    if name != "nothing":
        losses(net, x)[name]().backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", default="")
    chosen = parser.parse_args().one
    torch.set_num_threads(1)
    if chosen:
        one(chosen)
        return
    net, x = network(), torch.rand(BATCH, 3, 32, 32) * 2 - 1
    rows = []
    for what, calls, backward in (
        ("loss", losses(net, x), True),
        ("sample", samplers(net, x), False),
    ):
        seconds = timed(calls, backward)
        for name, each in seconds.items():
            ratio = each / seconds["bare"]
            row = {"what": what, "by": name, "seconds": np.median(each), "ratio": np.median(ratio)}
            rows.append(row | {"low": ratio.min(), "high": ratio.max()})
    peaks = {}
    for name in ("nothing", "bare", "neurodiff", "azula", "diffusers"):
        command = [sys.executable, __file__, "--one", name]
        peaks[name] = float(subprocess.run(command, check=True, capture_output=True).stdout)
    for name in ("bare", "neurodiff", "azula", "diffusers"):
        mib = peaks[name] - peaks["nothing"]
        ratio = mib / (peaks["bare"] - peaks["nothing"])
        rows.append({"what": "peak of memory (MiB)", "by": name, "seconds": mib, "ratio": ratio,
                     "low": ratio, "high": ratio})  # fmt: skip
    table = pd.DataFrame(rows)
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
