# %%
from pathlib import Path

import torch

import neurodiff as nd
from neurodiff.data.decode_images import grey16
from neurodiff.diffusion.adaptive import AdaptiveSchedule
from neurodiff.diffusion.denoiser import NetworkDenoiser
from neurodiff.diffusion.networks import UNet
from neurodiff.diffusion.train import train

HERE = Path(__file__).parent
RUNS = HERE.parent / "runs" / "cifar10-grey16"
ENDS, STEPS = (-10.0, 13.3), 13_000


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
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    done = trained()
    print(done.losses[-500:].mean())
