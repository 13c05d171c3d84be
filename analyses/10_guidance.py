# %% [markdown]
# # Guidance: a good network has nothing to win, a poor one a little
#
# scikit-learn's 8 x 8 digits, 360 held out. One network is trained with the class and, one time in
# ten, without; a smaller one half as long, and one so little that it does not know the classes
# yet. 200 samples of each class, by 32 steps of `ddim`, for every guide and scale: how many a
# support-vector machine calls the class asked for, and how far they are from held-out digits of it.
#
# Past a scale of 1.25 classifier-free guidance makes caricatures: all are called right, more than
# of real digits, and the distance grows tenfold and more. CFG-Zero* is a little nearer at every
# scale. Auto-guidance leaves the class alone and comes nearer by .010 ± .004 at 1.5, if the bad
# network knows the classes. The poor network gains six points in a hundred at 1.25.
#
# A classifier of noisy digits needs a scale of 2 to be as good at the class (98.8 %) as the network
# that was told it at 1; samples are then as diverse as training digits (a Vendi score of 11.2 for
# 9.5), and farther away (.069 ± .022 for .033 ± .014). It has to be shown alpha z. Shown z, it
# errs in directions that guidance divides by alpha, and few samples are of the class.
#
#     python analyses/10_guidance.py [--fit]
#
# Without `--fit` the figure is made from `results/10_guidance.csv`.

# %%
import argparse
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import neurodiff as nd
from neurodiff.diffusion.adaptive import AdaptiveSchedule
from neurodiff.diffusion.classifier import NoisyClassifier
from neurodiff.diffusion.denoiser import NetworkDenoiser
from neurodiff.diffusion.diversity import vendi
from neurodiff.diffusion.guidance import Auto, CfgZero, Classifier, ClassifierFree
from neurodiff.diffusion.logsnr import diffuse
from neurodiff.diffusion.maximum import most_likely
from neurodiff.diffusion.networks import MLP
from neurodiff.diffusion.sample import ddim, levels
from neurodiff.diffusion.train import train
from neurodiff.panels import BLUE, GREEN, ORANGE, PINK, RED, SKY

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "guidance"
EACH, STEPS, SCALES = 200, 32, (1.0, 1.25, 1.5, 2.0, 3.0)
FEWEST = 28  # held-out digits of the rarest class: a Vendi score depends on how many there are


def digits():
    """Images in [-1, 1] and classes: for training, and held out."""
    found = load_digits()
    x, y = torch.tensor(found.images / 8 - 1, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return (x[order[:1437]], y[order[:1437]]), (x[order[1437:]], y[order[1437:]])


def trained(name, x, y, width, steps):
    """One training of both, with and without the class: one condition in ten is dropped."""
    torch.manual_seed(0)
    start = NetworkDenoiser(MLP((8, 8), width, 3, classes=10, dropout=0.1, drop=0.1), "v")
    return train(
        start, x, cond=y, weighting=nd.weighting("sigmoid"), schedule=AdaptiveSchedule(),
        steps=steps, folder=RUNS / name,
    ).denoiser  # fmt: skip


class OfZ(NoisyClassifier):
    """One that is shown z in place of α z."""

    def forward(self, z, logsnr):
        return self.head(self.network(z, logsnr).flatten(1)).log_softmax(1)


def noisy_classifier(kind, x, y):
    """p(y|z) at every noise level, at the times of the cosine schedule."""
    torch.manual_seed(0)
    start = kind(MLP((8, 8), 128, 2, dropout=0.1), 64, 10)
    how = partial(NoisyClassifier.noisy_log_prob, schedule=nd.schedule("cosine"))
    return most_likely(start, how, x, y, steps=1000)


@torch.no_grad()
def known(classifier, x, y):
    """How often a classifier of z is right, and log p of the right class, by noise level."""
    g = torch.Generator().manual_seed(2)
    for level in range(-8, 9, 2):
        logsnr = torch.full((len(x),), float(level))
        log_p = classifier(diffuse(x, torch.randn(x.shape, generator=g), logsnr), logsnr)
        right = (log_p.argmax(1) == y).double().mean().item()
        told = log_p.gather(1, y[:, None]).mean().item()
        yield {"logsnr": level, "right": right, "log_p": told}


def different(samples):
    """Effective number of different digits: Vendi score, similar within 3 pixels' units."""
    flat = samples.flatten(1).double()
    return vendi((-torch.cdist(flat, flat).square() / (2 * 3.0**2)).exp())


def energy_distance(a, b):
    """2 E|A − B| − E|A − A′| − E|B − B′|, in pixels' units, without pairs of one with itself."""
    a, b = a.flatten(1), b.flatten(1)

    def within(v):
        return torch.cdist(v, v).sum() / (len(v) * (len(v) - 1))

    return float(2 * torch.cdist(a, b).mean() - within(a) - within(b))


def scored(samples, asked, classifier, x, y):
    """For each class, how many the classifier calls that, and how far they are from held-out x."""
    called = classifier.predict(samples.flatten(1).numpy())
    for c in range(10):
        mine = (asked == c).numpy()
        apart = np.nan if samples is x else energy_distance(samples[mine], x[y == c])
        yield {"class": c, "right": (called[mine] == c).mean(), "distance": apart,
               "vendi": different(samples[mine][:FEWEST])}  # fmt: skip


@torch.no_grad()
def sampled(denoiser, asked):
    """Digits of the class asked for, from the same noise whatever the guide, by Euler's steps."""
    z = torch.randn(len(asked), 8, 8, generator=torch.Generator().manual_seed(1))
    return ddim(denoiser, z, levels(nd.schedule("cosine"), STEPS).float(), asked)


def run():
    """Train, sample with each guide and scale, and save the table."""
    torch.set_num_threads(1)
    (train_x, train_y), (x, y) = digits()
    classifier = SVC(gamma=1 / 64).fit(train_x.flatten(1).numpy(), train_y.numpy())
    good = trained("good", train_x, train_y, 192, 2000)
    bad = trained("bad", train_x, train_y, 128, 1000)
    classless = trained("classless", train_x, train_y, 64, 300)  # has not learned them yet
    # nothing moves in the first of the steps, 3 % of them
    still = float(levels(nd.schedule("cosine"), STEPS)[:2].mean())
    noisy, of_z = (noisy_classifier(k, train_x, train_y) for k in (NoisyClassifier, OfZ))
    pd.DataFrame(known(noisy, x, y)).to_csv(
        RESULTS / "10_classifier.csv", index=False, float_format="%.5g"
    )
    guides = {
        "classifier-free": lambda s: ClassifierFree(good, s),
        "classifier": lambda s: Classifier(good, noisy.log_prob, s),
        "classifier of z": lambda s: Classifier(good, of_z.log_prob, s),
        "CFG-Zero*": lambda s: CfgZero(good, s, still),
        "auto-guidance": lambda s: Auto(good, bad, s),
        "auto-guidance, classless": lambda s: Auto(good, classless, s),
        "classifier-free, poor network": lambda s: ClassifierFree(bad, s),
    }
    asked = torch.arange(10).repeat(EACH)
    sets = {("held-out digits", np.nan): (x, y), ("training digits", np.nan): (train_x, train_y)}
    for name, guide in guides.items():
        sets |= {(name, s): (sampled(guide(s), asked), asked) for s in SCALES}
    rows = [
        {"guide": name, "scale": scale} | row
        for (name, scale), (samples, label) in sets.items()
        for row in scored(samples, label, classifier, x, y)
    ]
    table = pd.DataFrame(rows)
    table.to_csv(RESULTS / "10_guidance.csv", index=False, float_format="%.5g")


# %%
COLOURS = {
    "classifier-free": BLUE,
    "classifier": SKY,
    "CFG-Zero*": GREEN,
    "auto-guidance": RED,
    "auto-guidance, classless": PINK,
    "classifier-free, poor network": ORANGE,
}


def figure():
    """Share in class, distance and Vendi score against the scale, with the s.e. over classes."""
    table = pd.read_csv(RESULTS / "10_guidance.csv")
    plt.style.use(nd.plot.STYLE)
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.8), layout="constrained")
    for ax, what in zip(axes, ("right", "distance", "vendi"), strict=True):
        for k, (name, colour) in enumerate(COLOURS.items()):
            mine = table[table["guide"] == name].groupby("scale")[what]
            at = mine.mean().index + 0.015 * (k - 2.5)
            ax.errorbar(at, mine.mean(), mine.std() / 10**0.5, fmt="o-", ms=3, lw=1, color=colour,
                        label=name)  # fmt: skip
        for name, dash in (("held-out digits", ":"), ("training digits", "--")):
            level = table[table["guide"] == name][what].mean()
            if np.isfinite(level):
                ax.axhline(level, color="grey", lw=0.8, ls=dash, label=name)
        ax.set(xlabel="guidance scale s", xticks=(1, 1.5, 2, 3))
    axes[0].set(ylabel="called the class asked for")
    axes[1].set(ylabel="energy distance to held-out digits\nof that class (pixels in [−1, 1])")
    axes[2].set(ylabel=f"Vendi score of {FEWEST} of a class")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=6)

    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"10_guidance.{kind}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What guidance wins and loses")
    parser.add_argument("--fit", action="store_true", help="train and measure again (a minute)")
    if parser.parse_args().fit:
        run()
    figure()
