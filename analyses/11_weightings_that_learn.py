# %% [markdown]
# # Rules of thumb for a training weighting, on one task
#
# The same network of v is trained on scikit-learn's digits, with the class, under weightings that
# are fixed and under three that learn: every noise level adds as much to the loss (uncertainty), as
# much noise (variance), or pulls as hard at the output (gradient). Each is asked for the likelihood
# of held-out digits, for samples (energy distance to held-out digits), and for classes by the least
# error.
#
#     python analyses/11_weightings_that_learn.py [--fit]
#
# Without `--fit` the figure is made from `results/11_*`. Runs that were stopped go on.

# %%
import argparse
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits

import neurodiff as nd
from neurodiff.diffusion.adaptive import AdaptiveSchedule
from neurodiff.diffusion.balance import GradientBalance, UncertaintyBalance, VarianceBalance
from neurodiff.diffusion.denoiser import NetworkDenoiser
from neurodiff.diffusion.likelihood import bits_per_dim, elbo, level_decoder
from neurodiff.diffusion.logsnr import alpha, sigma
from neurodiff.diffusion.networks import MLP
from neurodiff.diffusion.sample import sample
from neurodiff.diffusion.train import train

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "weightings"
STEPS, SEEDS, LEVELS = 800, (0, 1), 17
WEIGHTINGS = {
    "elbo": lambda: nd.weighting("elbo"),
    "sigmoid": lambda: nd.weighting("sigmoid"),
    "flow-matching": lambda: nd.weighting("flow-matching"),
    "ddpm": lambda: nd.weighting("ddpm"),
    "edm": lambda: nd.weighting("edm"),
    "uncertainty": UncertaintyBalance,
    "variance": VarianceBalance,
    "gradient": lambda: GradientBalance("v"),
}


# %%
def digits():
    """Images on the levels 2 (k + ½)/17 − 1, and classes: for training, and held out."""
    found = load_digits()
    x = torch.tensor(2 * (found.images + 0.5) / LEVELS - 1, dtype=torch.float32)
    y = torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return (x[order[:1437]], y[order[:1437]]), (x[order[1437:]], y[order[1437:]])


def energy(a, b):
    """Energy distance between two sets of images, without bias: around 0 for one law."""
    a, b = a.flatten(1), b.flatten(1)
    between, own = torch.cdist(a, b).mean(), torch.cdist(a, a).sum() / (len(a) * (len(a) - 1))
    return (2 * between - own - torch.cdist(b, b).sum() / (len(b) * (len(b) - 1))).item()


@torch.no_grad()
def accuracy(denoiser, x, y):
    """Share of digits whose class has the least error, under the sigmoid weighting."""
    logsnr = torch.linspace(-8, 6, 64)
    w, g = nd.weighting("sigmoid")(logsnr), torch.Generator().manual_seed(4)
    total, label = torch.zeros(len(x), 10), torch.arange(10).repeat(len(x))
    for level, weight in zip(logsnr, w, strict=True):
        z = alpha(level) * x + sigma(level) * torch.randn(x.shape, generator=g)
        off = denoiser(z.repeat_interleave(10, 0), level, label) - x.repeat_interleave(10, 0)
        total += weight * level.exp() * off.flatten(1).square().sum(1).reshape(-1, 10)
    return (total.argmin(1) == y).double().mean().item()


def judged(name, seed):
    """Train under one weighting, and three questions."""
    (train_x, train_y), (x, y) = digits()
    torch.manual_seed(seed)
    start = NetworkDenoiser(MLP((8, 8), 192, 3, classes=10, dropout=0.1), "v")
    done = train(
        start, train_x, cond=train_y, weighting=WEIGHTINGS[name](), steps=STEPS, seed=seed,
        schedule=AdaptiveSchedule(-10.0, 10.0), folder=RUNS / f"{name}-{seed}",
    )  # fmt: skip
    g = torch.Generator().manual_seed(1)
    decoder = partial(level_decoder, levels=LEVELS)
    found = bits_per_dim(
        elbo(done.denoiser, x, decoder=decoder, logsnr_max=8.0, cond=y, pairs=2, generator=g), 64
    )
    drawn = sample(done.denoiser, (len(x), 8, 8), schedule=nd.schedule("cosine"), cond=y,
                   generator=g, dtype=torch.float32).x  # fmt: skip
    row = {"weighting": name, "seed": seed, "bits": found.value.mean().item(),
           "energy": energy(drawn, x), "accuracy": accuracy(done.denoiser, x, y)}  # fmt: skip
    grid = torch.linspace(-10, 10, 81)
    w = done.weighting(grid)
    return row, pd.DataFrame({"weighting": name, "seed": seed, "logsnr": grid, "w": w})


def run():
    """All weightings, and how far held-out digits are from training digits."""
    torch.set_num_threads(1)
    (train_x, _), (x, _) = digits()
    rows, curves = [{"weighting": "training digits", "seed": 0, "energy": energy(train_x, x)}], []
    for name in WEIGHTINGS:
        for seed in SEEDS:
            row, curve = judged(name, seed)
            rows.append(row)
            curves.append(curve)
        pd.DataFrame(rows).to_csv(RESULTS / "11_weightings.csv", index=False, float_format="%.5g")
    pd.concat(curves).to_csv(RESULTS / "11_curves.csv", index=False, float_format="%.5g")


# %%
def figure():
    """The learned curves, and the three questions."""
    table, curves = (
        pd.read_csv(RESULTS / "11_weightings.csv"),
        pd.read_csv(RESULTS / "11_curves.csv"),
    )
    plt.style.use(nd.plot.STYLE)
    fig, axes = plt.subplots(1, 4, figsize=(7.2, 2.4), layout="constrained")
    colours = {"uncertainty": "#0072B2", "variance": "#D55E00", "gradient": "#009E73"}
    for name, colour in colours.items():
        for _, mine in curves[curves["weighting"] == name].groupby("seed"):
            axes[0].plot(mine["logsnr"], mine["w"], color=colour, lw=0.9)
        axes[0].plot([], [], color=colour, label=name)
    for name, dashes in (("sigmoid", ":"), ("flow-matching", "--")):
        x = np.linspace(-10, 10, 200)
        axes[0].plot(
            x, nd.weighting(name)(torch.tensor(x)), color="grey", ls=dashes, lw=0.8, label=name
        )
    axes[0].set(xlabel="log SNR (nat)", ylabel="w", yscale="log", ylim=(1e-3, 1e3))
    axes[0].legend(fontsize=5)
    names = list(WEIGHTINGS)
    asked = {"bits": "bits per dimension, held out", "energy": "energy distance of samples",
             "accuracy": "classified right, held out"}  # fmt: skip
    for ax, (column, label) in zip(axes[1:], asked.items(), strict=True):
        for name in names:
            mine = table[table["weighting"] == name]
            y = [names.index(name)] * len(mine)
            ax.plot(mine[column], y, "o", ms=3, color=colours.get(name, "#555555"))
        ax.set_yticks(range(len(names)), names if column == "bits" else [""] * len(names))
        ax.set(xlabel=label)
        ax.invert_yaxis()
    floor = table.loc[table["weighting"] == "training digits", "energy"].iloc[0]
    axes[2].axvline(floor, color="grey", lw=0.6, ls=":")
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"11_weightings.{kind}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Weightings that learn, against fixed ones")
    parser.add_argument("--fit", action="store_true", help="train again (a quarter of an hour)")
    if parser.parse_args().fit:
        run()
    figure()
