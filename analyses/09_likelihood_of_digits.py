# %% [markdown]
# # Digits: how likely, how surely known, and which weighting classifies them
#
# scikit-learn's 1,797 handwritten digits, 8×8 of 17 grey levels; 360 are held out. Two networks
# of 1.6 million parameters are trained on the others with the class: one says how likely each level
# of each pixel is, one is asked for v. What is shown: bits a pixel of held-out digits, by the ELBO
# with a discrete decoder; how much the variance of that estimate falls, for equal network
# evaluations, with each means; and how often the class of least weighted error is right, for every
# named weighting.
#
#     python analyses/09_likelihood_of_digits.py [--fit]
#
# Without `--fit` the figure is made from `results/09_*`. With it the networks are trained (two
# minutes each on one core; a run that was stopped goes on).

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
from neurodiff.diffusion.denoiser import LevelDenoiser, NetworkDenoiser
from neurodiff.diffusion.likelihood import bits_per_dim, denoising_error, elbo, level_decoder
from neurodiff.diffusion.networks import MLP
from neurodiff.diffusion.prior import Gaussian
from neurodiff.diffusion.train import train
from neurodiff.diffusion.variance import diffusion_term, pilot
from neurodiff.diffusion.weighting import names

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "digits"
LEVELS, ENDS = 17, (-13.3, 8.0)  # beyond, levels 2/17 apart are told by themselves
STEPS, REPEATS, GRID = 1500, 400, 128


# %%
def digits():
    """Images on the levels 2 (k + ½)/17 − 1, and classes: for training, and held out."""
    found = load_digits()
    x = torch.tensor(2 * (found.images + 0.5) / LEVELS - 1, dtype=torch.float32)
    y, order = torch.tensor(found.target), torch.randperm(len(x), generator=seeded(0))
    return (x[order[:1437]], y[order[:1437]]), (x[order[1437:]], y[order[1437:]])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def trained(kind, x, y):
    """A network that says levels, or v, by the ELBO."""
    torch.manual_seed(0)
    if kind == "levels":
        net = MLP((8, 8), 256, 3, classes=10, outputs=LEVELS, dropout=0.2)
        start = LevelDenoiser(net, LEVELS)
    else:
        start = NetworkDenoiser(MLP((8, 8), 288, 3, classes=10, dropout=0.1), "v")
    return train(
        start, x, cond=y, weighting=nd.weighting("elbo"), schedule=AdaptiveSchedule(*ENDS),
        steps=STEPS, folder=RUNS / kind,
    ).denoiser  # fmt: skip


def bits(name, denoiser, x, y):
    """Bits a pixel of held-out digits, with the class and without, and their s.e. over digits."""
    decoder = partial(level_decoder, levels=LEVELS)
    for known, cond in (("class", y), ("nothing", None)):
        found = elbo(denoiser, x, decoder=decoder, logsnr_min=ENDS[0], logsnr_max=ENDS[1],
                     cond=cond, pairs=8, generator=seeded(1))  # fmt: skip
        each = bits_per_dim(found, 64)
        se = each.value.std().item() / len(x) ** 0.5
        noise = each.se.square().sum().sqrt().item() / len(x)
        yield {"model": name, "given": known, "bits": each.value.mean().item(), "se": se,
               "monte_carlo": noise}  # fmt: skip


def histogram(train_x, x):
    """The frequency of each level of each pixel, one count added: no model at all."""
    place = ((train_x + 1) * LEVELS / 2 - 0.5).round().long()
    counts = torch.nn.functional.one_hot(place, LEVELS).sum(0) + 1.0
    log_p = (counts / counts.sum(-1, keepdim=True)).log()
    at = ((x + 1) * LEVELS / 2 - 0.5).round().long()
    each = -log_p.expand(len(x), *log_p.shape).gather(-1, at[..., None])[..., 0].flatten(1).mean(1)
    each = each / np.log(2)
    return {"model": "histogram", "given": "nothing", "bits": each.mean().item(),
            "se": each.std().item() / len(x) ** 0.5, "monte_carlo": 0.0}  # fmt: skip


# %%
def variances(name, denoiser, train_x, train_y, x, y):
    """Variance of the mean ELBO of held-out digits times evaluations, by means."""
    flat = train_x.flatten(1)
    covariance = torch.cov(flat.T.double()).float() + 1e-4 * torch.eye(64)
    reference = Gaussian(flat.mean(0).reshape(8, 8), 0.5 * (covariance + covariance.T))
    learn = partial(pilot, denoiser, train_x, cond=train_y, logsnr_min=ENDS[0], logsnr_max=ENDS[1])
    cosine = nd.schedule("truncated-cosine", logsnr_min=ENDS[0], logsnr_max=ENDS[1])
    looked, _ = learn(None, antithetic=False, generator=seeded(1))
    pairs, _ = learn(None, antithetic=True, generator=seeded(1))
    ways = {
        "cosine": (cosine, None, False, False),
        "uniform": (AdaptiveSchedule(*ENDS, bins=1), None, False, False),
        "importance": (looked, None, False, False),
        "even times": (looked, None, False, True),
        "even times, pairs": (pairs, None, True, True),
        "even times, reference": (
            *learn(reference, antithetic=False, generator=seeded(1)), False, True,
        ),
        "all": (*learn(reference, antithetic=True, generator=seeded(1)), True, True),
    }  # fmt: skip
    for way, (schedule, control, antithetic, stratified) in ways.items():
        g = seeded(2)
        draws = [
            diffusion_term(denoiser, x, schedule, control, antithetic=antithetic,
                           stratified=stratified, cond=y, generator=g).double().mean()
            for _ in range(REPEATS)
        ]  # fmt: skip
        draws = torch.stack(draws)
        cost = (2 if antithetic else 1) * len(x)
        # kurtosis says how surely a variance of so many draws is known
        z = (draws - draws.mean()) / draws.std()
        se = ((z**4).mean() - 1).clamp_min(0).sqrt().item() / REPEATS**0.5
        yield {"model": name, "means": way, "nats": draws.mean().item(),
               "variance": draws.var().item() * cost, "relative_se": se}  # fmt: skip


def errors(name, denoiser, x, y):
    """The error at each logsnr, the mean over held-out digits."""
    logsnr = torch.linspace(*ENDS, 54)
    m = denoising_error(denoiser, x, logsnr, cond=y, pairs=2, generator=seeded(3)).value
    return pd.DataFrame({"model": name, "logsnr": logsnr, "error": m.mean(0), "se": m.std(0) / 19})


@torch.no_grad()
def accuracies(name, denoiser, x, y):
    """Share of digits whose class has the least weighted error, noise shared over classes."""
    logsnr = torch.linspace(-10, 10, GRID)
    g, table = seeded(4), torch.empty(len(x), 10, GRID)
    for j, level in enumerate(logsnr):
        eps = torch.randn(x.shape, generator=g)
        a, s = (f(level) for f in (nd.diffusion.logsnr.alpha, nd.diffusion.logsnr.sigma))
        many, label = (a * x + s * eps).repeat_interleave(10, 0), torch.arange(10).repeat(len(x))
        off = denoiser(many, level, label) - x.repeat_interleave(10, 0)
        table[:, :, j] = (level.exp() * off.flatten(1).square().sum(1)).reshape(-1, 10)
    for weighting in names():
        w = nd.weighting(weighting)(logsnr)
        right = (table @ w).argmin(1) == y
        p = right.double().mean().item()
        yield {"model": name, "weighting": weighting, "accuracy": p,
               "se": (p * (1 - p) / len(x)) ** 0.5}  # fmt: skip


def run():
    """Train, measure, and save the tables."""
    torch.set_num_threads(1)
    (train_x, train_y), (x, y) = digits()
    tables = {"bits": [histogram(train_x, x)], "variance": [], "accuracy": []}
    curves = []
    for kind in ("levels", "v"):
        denoiser = trained(kind, train_x, train_y)
        tables["bits"] += bits(kind, denoiser, x, y)
        tables["variance"] += variances(kind, denoiser, train_x, train_y, x, y)
        tables["accuracy"] += accuracies(kind, denoiser, x, y)
        curves.append(errors(kind, denoiser, x, y))
        for name, rows in tables.items():
            pd.DataFrame(rows).to_csv(RESULTS / f"09_{name}.csv", index=False, float_format="%.5g")
    pd.concat(curves).to_csv(RESULTS / "09_errors.csv", index=False, float_format="%.5g")


# %%
COLOURS = {"levels": "#0072B2", "v": "#D55E00"}


def figure():
    """Error per logsnr, variance by means, accuracy by weighting."""
    read = {
        n: pd.read_csv(RESULTS / f"09_{n}.csv") for n in ("bits", "variance", "accuracy", "errors")
    }
    plt.style.use(nd.plot.STYLE)
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.7), layout="constrained")
    for name, mine in read["errors"].groupby("model"):
        axes[0].plot(mine["logsnr"], mine["error"], color=COLOURS[name], label=name)
        middle = mine["error"]
        axes[0].fill_between(mine["logsnr"], middle - mine["se"], middle + mine["se"],
                             color=COLOURS[name], alpha=0.25, lw=0)  # fmt: skip
    given = read["bits"][read["bits"]["given"] == "class"].set_index("model")
    said = "\n".join(f"{m}: {r['bits']:.2f} ± {r['se']:.2f} bits/dim" for m, r in given.iterrows())
    axes[0].set(xlabel="log SNR (nat)", ylabel="error m (summed over 64 pixels)", title=said)
    axes[0].legend()
    order = list(dict.fromkeys(read["variance"]["means"]))
    for name, mine in read["variance"].groupby("model"):
        mine = mine.set_index("means").loc[order]
        ratio = mine.loc["uniform", "variance"] / mine["variance"]
        y = np.arange(len(order)) + (0.12 if name == "v" else -0.12)
        axes[1].errorbar(ratio, y, xerr=ratio * mine["relative_se"], fmt="o", ms=3, lw=0.8,
                         color=COLOURS[name])  # fmt: skip
    axes[1].set_yticks(range(len(order)), order)
    axes[1].invert_yaxis()
    axes[1].set(xscale="log", xlabel="variance of uniform log SNR\nover this, equal evaluations")
    axes[1].axvline(1.0, color="grey", lw=0.6, ls=":")
    best = read["accuracy"].groupby("weighting")["accuracy"].max().sort_values()
    for name, mine in read["accuracy"].groupby("model"):
        mine = mine.set_index("weighting").loc[best.index]
        axes[2].errorbar(mine["accuracy"], np.arange(len(best)), xerr=mine["se"], fmt="o", ms=2.5,
                         lw=0.6, color=COLOURS[name])  # fmt: skip
    axes[2].set_yticks(range(len(best)), best.index, fontsize=5)
    axes[2].set(xlabel="held-out digits classified right")
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"09_digits.{kind}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="How likely digits are, and how surely it is known"
    )
    parser.add_argument("--fit", action="store_true", help="train and measure again (ten minutes)")
    if parser.parse_args().fit:
        run()
    figure()
