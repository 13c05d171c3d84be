r"""From images to a trained denoiser, in a folder of its own: ``neurodiff train``.

.. math:: \hat θ = \arg\min_θ\; ½ \int w(λ)\, E|\hat ε_θ - ε|^2\, dλ
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from neurodiff.terminal import next_run, status

if TYPE_CHECKING:
    import numpy as np
    import torch

    from neurodiff.diffusion.denoiser import Denoiser, NetworkDenoiser

_EVERY = 100  # steps between checkpoints: what Ctrl-C costs
_ROWS = 4  # of samples in the figure


def train_images(
    data: str,
    /,
    *,
    recipe: str = "v",
    weighting: str | None = None,
    schedule: str | None = None,
    parameterization: str | None = None,
    network: Literal["mlp", "unet"] = "mlp",
    width: int | None = None,
    classes: bool = True,
    steps: int = 2000,
    batch: int = 128,
    rate: float = 1e-3,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    out: Path | None = None,
    resume: bool = False,
) -> str:
    """Train a denoiser on images.

    Args:
        data: A data set's name with images (digits, cifar10/1), a .nc or .npz file with image (and
            label), or a .npy file of images: whole numbers, or floats in [-1, 1].
        recipe: A published loss: ddpm, l-simple, flow-matching, v, edm, vdm and others.
        weighting: A named weighting, in place of the recipe's.
        schedule: A named noise schedule, in place of the recipe's.
        parameterization: What the network is asked for (x, eps, v, score, flow, F), likewise.
        network: mlp or unet.
        width: Of the network's layers; 256 or 64.
        classes: Whether labels, if there are some, are given to the network.
        steps: Of the optimiser.
        batch: Images a step.
        rate: Learning rate.
        seed: The same seed gives the same result.
        device: cpu, cuda or auto.
        out: Run folder, new or empty; by default the next number under runs/.
        resume: Go on in a run folder from its last checkpoint.

    Returns:
        What was done, to be printed. The folder holds ``denoiser.safetensors`` (read by
        ``neurodiff.diffusion.saved.load``), ``losses.csv``, ``run.json``, the checkpoint, and
        figures of the loss and of samples.

    Raises:
        ValueError: Names, numbers or images that cannot be used, or a folder of another run.
        FloatingPointError: A loss that is not finite.
    """
    from neurodiff.diffusion.recipe import recipe as published
    from neurodiff.diffusion.saved import save
    from neurodiff.diffusion.schedule import schedule as schedule_of
    from neurodiff.diffusion.train import find_device, train
    from neurodiff.diffusion.weighting import weighting as weighting_of

    began, out = time.time(), out or next_run()
    for name, value in {"steps": steps, "batch": batch, "width": width, "rate": rate}.items():
        if value is not None and not value > 0:
            raise ValueError(f"got {name} {value}, wanted it above 0")
    here, own = find_device(device), published(recipe)
    chosen = own.weighting if weighting is None else weighting_of(weighting)
    times = own.schedule if schedule is None else schedule_of(schedule)
    with status("reading"):
        x, label = _images(data, classes)
    start = _network(network, width, parameterization or own.parameterization, x, label, seed)
    settings = {
        "data": data, "sha256": _hash(x, label), "recipe": recipe, "weighting": weighting,
        "schedule": schedule, "parameterization": start.parameterization, "network": network,
        "arguments": start.network.settings, "steps": steps, "batch": batch, "rate": rate,
        "seed": seed,
    }  # fmt: skip
    first = int(os.environ.get("RANK", "0")) == 0  # of several processes one writes
    if first:
        _begin(out, settings, resume)
    done = train(
        start, x, cond=label, weighting=chosen, schedule=times, steps=steps, batch=batch,
        rate=rate, seed=seed, device=here, folder=out, every=_EVERY,
    )  # fmt: skip
    if not first:
        return ""
    denoiser = done.denoiser.cpu()
    save(denoiser, out / "denoiser.safetensors")
    lines = "".join(f"{step},{loss:.8g}\n" for step, loss in enumerate(done.losses))
    (out / "losses.csv").write_text(f"step,loss\n{lines}")
    with status("drawing"):
        _draw(denoiser, done.losses, x, label, seed, out / "figures")
    return (
        f"{len(x)} images of {' x '.join(map(str, x.shape[1:]))}, "
        f"{0 if label is None else int(label.max()) + 1} classes; "
        f"{sum(p.numel() for p in denoiser.parameters())} weights, {steps} steps in "
        f"{time.time() - began:.0f} s, mean loss of the last twentieth "
        f"{done.losses[-max(1, steps // 20) :].mean():.4g}\n"
        f"denoiser: {out / 'denoiser.safetensors'}\nfigure: {out / 'figures' / 'training.png'}"
    )


def _images(data: str, classes: bool) -> "tuple[torch.Tensor, torch.Tensor | None]":
    """Images and, if asked for and there, their classes."""
    import torch

    from neurodiff.data.images import images

    x, label = images(data)
    given = torch.from_numpy(label) if classes and label is not None else None
    return torch.from_numpy(x), given


def _hash(x: "torch.Tensor", label: "torch.Tensor | None") -> str:
    """What a run that is resumed has to find again."""
    found = hashlib.sha256(x.numpy().tobytes())
    found.update(b"" if label is None else label.numpy().tobytes())
    return found.hexdigest()


def _network(
    kind: str,
    width: int | None,
    parameterization: str,
    x: "torch.Tensor",
    label: "torch.Tensor | None",
    seed: int,
) -> "NetworkDenoiser":
    """A network that fits the images, seen to work on one before anything is written."""
    import torch

    from neurodiff.diffusion.denoiser import NetworkDenoiser
    from neurodiff.diffusion.networks import MLP, UNet

    given: dict = {} if width is None else {"width": width}
    given["classes"] = 0 if label is None else int(label.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MLP(x.shape[1:], **given) if kind == "mlp" else UNet(x.shape[1], **given)
    denoiser = NetworkDenoiser(network, parameterization).float()
    with torch.no_grad():
        denoiser(x[:1], torch.zeros(()))
    return denoiser


def _begin(out: Path, settings: dict, resume: bool) -> None:
    """Make the folder of a new run, or see that the one there is of this run."""
    from neurodiff.inference.run_folder import versions

    about = out / "run.json"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not resume)):
        raise ValueError(f"{out} is not an empty folder: name another with --out, or --resume it")
    if resume and not about.is_file():
        raise ValueError(f"{out} holds no run.json, so there is nothing to resume")
    if resume:
        there = json.loads(about.read_text())["settings"]
        for name, value in json.loads(json.dumps(settings)).items():
            if there.get(name) != value:
                raise ValueError(
                    f"{out} is of another run: its {name} is {there.get(name)}, got {value}: name "
                    "another folder with --out"
                )
        return
    (out / "figures").mkdir(parents=True, exist_ok=True)
    facts = {"command": " ".join(sys.argv), "versions": versions(), "settings": settings}
    about.write_text(json.dumps(facts, indent=1))


def _draw(
    denoiser: "Denoiser",
    losses: "np.ndarray",
    x: "torch.Tensor",
    label: "torch.Tensor | None",
    seed: int,
    folder: Path,
) -> None:
    """The loss of every step, and samples: of ten classes at most, one a column."""
    import matplotlib.pyplot as plt
    import numpy as np
    import torch

    from neurodiff import plot
    from neurodiff.diffusion.sample import sample
    from neurodiff.diffusion.schedule import schedule

    columns = 8 if label is None else min(10, int(label.max()) + 1)
    cond = None if label is None else torch.arange(columns).repeat(_ROWS)
    drawn = sample(
        denoiser, (_ROWS * columns, *x.shape[1:]), schedule=schedule("cosine"), cond=cond,
        generator=torch.Generator().manual_seed(seed), dtype=torch.float32,
    ).x.clamp(-1, 1)  # fmt: skip
    shown = drawn if x.shape[1] == 3 else drawn[:, :1].expand(-1, 3, -1, -1)
    # a white line of a pixel between images
    tiles = torch.nn.functional.pad(0.5 * (1 + shown), (0, 1, 0, 1), value=1.0)
    tiles = tiles.reshape(_ROWS, columns, *tiles.shape[1:])
    picture = tiles.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).numpy()
    few = max(1, len(losses) // 50)
    with plt.style.context(plot.STYLE):
        fig, (left, right) = plt.subplots(
            1, 2, figsize=(6.6, 2.4), layout="constrained", width_ratios=(1, 1.4)
        )
        left.plot(losses, ".", ms=1, color="#999999", label="each step")
        mean = np.convolve(losses, np.full(few, 1 / few), "valid")
        left.plot(np.arange(few - 1, len(losses)), mean, label=f"mean of {few}")
        left.set(xlabel="step", ylabel="weighted loss (nats where w is 1)", yscale="log")
        for axis in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
            axis("{x:g}")
        left.legend()
        right.imshow(picture)
        middle = (np.arange(columns) + 0.5) * tiles.shape[-1] - 1
        right.set_xticks([] if label is None else middle, [] if label is None else range(columns))
        right.set(yticks=[], title="samples", xlabel="" if label is None else "class")
        right.tick_params(length=0)
        right.spines[:].set_visible(False)
        for kind in ("png", "pdf"):
            fig.savefig(folder / f"training.{kind}")
        plt.close(fig)
