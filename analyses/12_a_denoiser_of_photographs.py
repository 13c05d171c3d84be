# %% [markdown]
# # A denoiser of photographs, small enough for a CPU
#
# CIFAR-10's photographs as 16×16 pixels of 256 greys. A class-conditional U-Net of 2.1 million
# parameters is asked for v and trained for about an hour and a half on one core on 20,000 of them
# (batches 1 and 2, mirrored at random); it stands in for a larger one in colour, which needs a GPU.
# What is shown, on test photographs: bits a pixel beside a histogram and a Gaussian, the error at
# each noise level, samples, and how often the class of least weighted error is right, for every
# named weighting and beside a plain classifier of the pixels. The weights, in half precision, are
# what `nd.load("cifar10-grey16")` gives.
#
#     python analyses/12_a_denoiser_of_photographs.py [--fit]
#
# Without `--fit` the figures are made from `results/12_*`. With it the network is trained, and what
# was there is gone on from; then everything is measured with the weights of the card.

# %%
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import neurodiff as nd
from neurodiff import panels
from neurodiff.data.decode_images import CLASSES, grey16
from neurodiff.diffusion import saved
from neurodiff.diffusion.adaptive import AdaptiveSchedule
from neurodiff.diffusion.denoiser import NetworkDenoiser
from neurodiff.diffusion.guidance import ClassifierFree
from neurodiff.diffusion.likelihood import (
    bits_per_dim,
    denoising_error,
    elbo,
    information,
    level_decoder,
)  # fmt: skip
from neurodiff.diffusion.networks import UNet
from neurodiff.diffusion.prior import Gaussian
from neurodiff.diffusion.sample import sample
from neurodiff.diffusion.train import train
from neurodiff.diffusion.weighting import names
from neurodiff.inference.pool import workers
from neurodiff.perception.evidence import evidence

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "cifar10-grey16"
ENDS, STEPS = (-10.0, 13.3), 13_000
HELD_OUT, JUDGED = 150, 600  # test photographs for the likelihood, and for the classes
GRID = torch.linspace(-6.0, 9.0, 16, dtype=torch.float32)


# %%
def pictures(*names):
    """Grey 16×16 in [-1, 1], and classes."""
    found = [nd.load(name) for name in names]
    x = torch.cat([torch.from_numpy(grey16(d["image"].values)) for d in found])
    y = torch.cat([torch.from_numpy(d["label"].values) for d in found]).long()
    return 2 * (x[:, None].float() + 0.5) / 256 - 1, y


def mirrored(x, generator):
    """Half of them left for right."""
    flip = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], x.flip(-1), x)


def trained():
    """A U-Net of 2.1 million parameters that is asked for v."""
    x, y = pictures("cifar10/1", "cifar10/2")
    torch.manual_seed(0)
    net = UNet(1, 24, (1, 2, 4), 2, attention=(2,), classes=10, dropout=0.1)
    return train(
        NetworkDenoiser(net, "v"), x, cond=y, weighting=nd.weighting("sigmoid", bias=3.0),
        schedule=AdaptiveSchedule(*ENDS), steps=STEPS, batch=64, folder=RUNS, prepare=mirrored,
    ).denoiser  # fmt: skip


# %%
def bits(denoiser, train_x, x, y):
    """Bits a pixel of held-out photographs, of the network and of what it has to beat."""
    flat = train_x.flatten(1).double()
    covariance = torch.cov(flat.T).float() + 1e-5 * torch.eye(256)
    normal = Gaussian(flat.mean(0).float().reshape(1, 16, 16), 0.5 * (covariance + covariance.T))
    rows = [{"model": "histogram of each pixel", "given": "nothing", **_histogram(train_x, x)}]
    for name, model, given, cond in (
        ("Gaussian", normal, "nothing", None),
        ("U-Net", denoiser, "nothing", None),
        ("U-Net", denoiser, "class", y),
    ):
        found = elbo(model, x, decoder=level_decoder, logsnr_min=ENDS[0], logsnr_max=ENDS[1],
                     cond=cond, pairs=2, generator=seeded(1))  # fmt: skip
        each = bits_per_dim(found, 256)
        rows.append({
            "model": name, "given": given, "bits": each.value.mean().item(),
            "se": each.value.std().item() / len(x) ** 0.5,
            "monte_carlo": each.se.square().sum().sqrt().item() / len(x),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _histogram(train_x, x):
    place, at = (((v + 1) * 128 - 0.5).round().long().flatten(1) for v in (train_x, x))
    counts = torch.stack([torch.bincount(p, minlength=256) for p in place.T]) + 1.0
    log_p = (counts / counts.sum(1, keepdim=True)).log2()
    each = -log_p.T.gather(0, at).mean(1)
    return {"bits": each.mean().item(), "se": each.std().item() / len(x) ** 0.5,
            "monte_carlo": 0.0}  # fmt: skip


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def errors(denoiser, x, y):
    """The error at each logsnr, and the information in nats, means over held-out photographs."""
    logsnr = torch.linspace(-9.5, 12.5, 45)
    m = denoising_error(denoiser, x, logsnr, cond=y, pairs=2, generator=seeded(3)).value
    nats = information(denoiser, x[:50], logsnr, cond=y[:50], pairs=2, generator=seeded(4)).value
    return pd.DataFrame({
        "logsnr": logsnr, "error": m.mean(0), "se": m.std(0) / len(x) ** 0.5,
        "information": nats.mean(0), "information_se": nats.std(0) / 50**0.5,
    })  # fmt: skip


def accuracy(table, label, train_x, train_y, x):
    """How often the class of least weighted error is right; and a classifier of the pixels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = table["error"].values @ np.stack([nd.weighting(n)(GRID).numpy() for n in names()], 1)
    right = {f"error, {n}": found[..., j].argmin(1) == label for j, n in enumerate(names())}
    plain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.01))
    plain.fit(train_x.flatten(1).numpy(), train_y.numpy())
    right["logistic regression on pixels"] = plain.predict(x.flatten(1).numpy()) == label
    rows = [
        {"by": k, "accuracy": v.mean(), "se": v.std() / len(v) ** 0.5} for k, v in right.items()
    ]
    return pd.DataFrame(rows).sort_values("accuracy")


def samples(denoiser):
    """Eight of each class, plainly and pushed towards the class."""
    label, made = torch.arange(10).repeat_interleave(8), {}
    schedule = nd.schedule("truncated-cosine", logsnr_min=ENDS[0], logsnr_max=ENDS[1])
    for scale in (1.0, 2.0):
        guided = denoiser if scale == 1.0 else ClassifierFree(denoiser, scale)
        with torch.no_grad():
            found = sample(guided, (80, 1, 16, 16), schedule=schedule, steps=60, cond=label,
                           generator=seeded(5), dtype=torch.float32)  # fmt: skip
        made[scale] = found.x.clamp(-1, 1).reshape(10, 8, 16, 16).numpy()
    return made


def run():
    """Train, keep the weights, measure, and save the tables."""
    torch.set_num_threads(1)
    saved.save(trained(), RUNS / "cifar10-grey16.safetensors", half=True)
    print(f"weights: {RUNS / 'cifar10-grey16.safetensors'}; beside their card they are loaded")
    denoiser = nd.load("cifar10-grey16")
    train_x, train_y = pictures("cifar10/1", "cifar10/2")
    x, y = pictures("cifar10h")
    table = evidence(denoiser, x[:JUDGED], range(10), GRID, pairs=2, seed=0,
                     path=RUNS / "evidence.nc", executor=POOL)  # fmt: skip
    kept = {v: {"zlib": True, "complevel": 9, "dtype": "float32"} for v in ("error", "se", "width")}
    table.to_netcdf(RESULTS / "12_evidence.nc", engine="h5netcdf", encoding=kept)
    accuracy(table, y[:JUDGED].numpy(), train_x, train_y, x[:JUDGED]).to_csv(
        RESULTS / "12_accuracy.csv", index=False, float_format="%.4g"
    )
    np.savez_compressed(
        RESULTS / "12_samples.npz",
        **{f"scale{k:g}": np.uint8(127.5 * (v + 1)) for k, v in samples(denoiser).items()},
    )
    errors(denoiser, x[:HELD_OUT], y[:HELD_OUT]).to_csv(
        RESULTS / "12_errors.csv", index=False, float_format="%.5g"
    )
    bits(denoiser, train_x, x[:HELD_OUT], y[:HELD_OUT]).to_csv(
        RESULTS / "12_bits.csv", index=False, float_format="%.4g"
    )


# %%
def figure():
    """Samples; the error at each logsnr; accuracy by weighting."""
    made = np.load(RESULTS / "12_samples.npz", allow_pickle=False)
    curve, right = (pd.read_csv(RESULTS / f"12_{n}.csv") for n in ("errors", "accuracy"))
    number = pd.read_csv(RESULTS / "12_bits.csv")
    plt.style.use(nd.plot.STYLE)
    fig, axes = plt.subplots(
        1, 4, figsize=(7.2, 2.9), layout="constrained", width_ratios=[1, 1, 1.1, 1.1]
    )
    for ax, scale in zip(axes, (1, 2), strict=False):
        tiles = made[f"scale{scale}"]
        ax.imshow(tiles.transpose(0, 2, 1, 3).reshape(160, 128), cmap="gray", vmin=0, vmax=255)
        ax.set_title(f"samples, s = {scale}")
        ax.set(xticks=[], yticks=np.arange(10) * 16 + 8)
        ax.set_yticklabels(CLASSES if scale == 1 else [])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    low, high = (curve["error"] + s * curve["se"] for s in (-2, 2))
    axes[2].fill_between(curve["logsnr"], low, high, color=panels.BLUE, alpha=0.3, lw=0)
    axes[2].plot(curve["logsnr"], curve["error"], color=panels.BLUE)
    said = [
        f"{r.model}{', class' if r.given == 'class' else ''} {r.bits:.2f}"
        for r in number.itertuples()
    ]
    axes[2].text(0.03, 0.97, "bits/dim\n" + "\n".join(said), transform=axes[2].transAxes, va="top",
                 fontsize=5.5)  # fmt: skip
    axes[2].set(xlabel="log SNR (nat)", ylabel="error m (summed over 256 pixels)", ylim=(0, None))
    axes[3].errorbar(right["accuracy"], np.arange(len(right)), xerr=right["se"], fmt="o", ms=2.2,
                     lw=0.7, color=panels.BLUE)  # fmt: skip
    axes[3].set_yticks(range(len(right)), right["by"].str.removeprefix("error, "), fontsize=4.5)
    axes[3].axvline(0.1, color="grey", lw=0.6, ls=":")
    axes[3].set(xlabel="test photographs\nclassified right")
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"12_photographs.{kind}", dpi=300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A denoiser of photographs, trained on a CPU")
    parser.add_argument("--fit", action="store_true", help="train and measure anew")
    if parser.parse_args().fit:
        with workers(2) as POOL:
            run()
    figure()
