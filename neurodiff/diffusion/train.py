r"""Training: one loop, that goes on where it was killed.

.. math:: θ \leftarrow θ - η\,\text{Adam}\Big(\nabla_θ \frac1n \sum_i \tfrac12 \frac{w(λ_i)}{p(λ_i)}
    |\hat ε_i - ε_i|^2\Big), \qquad \barθ \leftarrow ρ \barθ + (1 - ρ) θ

The recipe is in the arguments: a denoiser (with its parameterization), a schedule and a weighting.
Either of the last two may learn from the losses. What is returned has the averaged weights
:math:`\barθ`. On a CPU a run that was killed and resumed has the same losses, to the bit, as one
that was not.
"""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from neurodiff.diffusion.adaptive import AdaptiveSchedule
from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.loss import look, over_kinds, squared_error
from neurodiff.diffusion.progress import progress
from neurodiff.diffusion.schedule import NoiseSchedule
from neurodiff.diffusion.shared import Shared

_CHECKPOINT = "checkpoint.safetensors"


class Training(NamedTuple):
    """What training leaves.

    Attributes:
        denoiser: with averaged weights.
        losses: mean loss of every step, nats.
        schedule: as it was given, or what became of it.
        weighting: likewise.
    """

    denoiser: Denoiser
    losses: np.ndarray
    schedule: NoiseSchedule
    weighting: Callable[[Tensor], Tensor]


class _State(NamedTuple):
    """All that a step changes."""

    modules: nn.ModuleDict  # denoiser, its average, and what else learns
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    losses: list[float]
    shared: Shared


def train(
    denoiser: Denoiser,
    x: Shaped[Tensor, "example *event"],
    *,
    weighting: Callable[[Tensor], Tensor],
    schedule: NoiseSchedule,
    steps: int,
    cond: Shaped[Tensor, "example ..."] | None = None,
    batch: int = 128,
    rate: float = 1e-3,
    average: float = 0.999,
    clip: float = 1.0,
    seed: int = 0,
    folder: Path | None = None,
    every: int = 500,
    device: str = "auto",
    prepare: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Training:
    """Train a denoiser.

    Args:
        denoiser: with parameters; a copy is trained.
        x: examples in [-1, 1].
        weighting: w(logsnr); one with a method ``update(logsnr, error)`` learns; one with
            ``sizes`` weights each kind of data in x by itself.
        schedule: where to look; an :class:`AdaptiveSchedule` learns.
        steps: of the optimiser.
        cond: passed to the denoiser with each example.
        batch: examples a step, in all processes together (see
            :mod:`~neurodiff.diffusion.shared`).
        rate: learning rate: risen to in the first 2 % of the steps, then falling to 0 as a cosine.
        average: ρ of the exponential average of the weights, less in the first steps.
        clip: largest norm of the gradient.
        seed: the same seed gives the same result.
        folder: for ``checkpoint.safetensors``: a run that finds one goes on from there.
        every: steps between checkpoints.
        device: ``cpu``, ``cuda`` or ``auto``; on a GPU that has them, products are in bfloat16.
        prepare: (x, generator) → x, changes each batch: dequantisation, mirroring.

    Raises:
        ValueError: examples that are not float in [-1, 1], a device that is not there, a checkpoint
            that is broken or of another run.
        FloatingPointError: a loss that is not finite. The last checkpoint stays.

    >>> from neurodiff.diffusion.denoiser import NetworkDenoiser
    >>> from neurodiff.diffusion.networks import MLP
    >>> import neurodiff as nd
    >>> w, s = nd.weighting("sigmoid"), nd.schedule("cosine")
    >>> start = NetworkDenoiser(MLP((2,), width=8, depth=1), "v")
    >>> done = train(start, torch.zeros(64, 2), weighting=w, schedule=s, steps=3, batch=8)
    >>> done.losses.shape
    (3,)
    """
    check_images(x)
    shared = Shared(find_device(device))
    here = shared.device
    own = copy.deepcopy(denoiser).to(here).train()
    modules = nn.ModuleDict({"denoiser": own, "average": copy.deepcopy(own).eval()})
    modules["schedule"], weighting = copy.deepcopy(schedule).to(here), copy.deepcopy(weighting)
    if isinstance(weighting, nn.Module):
        modules["weighting"] = weighting.to(here)
    optimizer = torch.optim.Adam(own.parameters(), lr=rate, betas=(0.9, 0.99))
    shared.alike(modules)
    state = _State(modules, optimizer, torch.Generator(here).manual_seed(seed), [], shared)
    grid = torch.linspace(-10.0, 10.0, 9, device=here)
    with torch.no_grad():
        weights, times = weighting(grid), modules["schedule"].t(grid)  # pyright: ignore
    settings = {
        "recipe": [f"{v:.6g}" for v in (*weights.flatten().tolist(), *times.tolist())],
        "steps": steps, "batch": batch, "rate": rate, "average": average, "clip": clip,
        "seed": seed, "examples": list(x.shape), "model": str(own),
        "prepare": prepare and getattr(prepare, "__qualname__", type(prepare).__name__),
    }  # fmt: skip
    data, labels = x.to(here), None if cond is None else cond.to(here)
    with _seeded(seed), progress(steps, "training", shared.rank == 0) as advance:
        path = None if folder is None else Path(folder) / _CHECKPOINT
        if path is not None and path.exists():
            _restore(state, path, settings)
        if shared.rank:  # its own dropout, of no checkpoint
            torch.manual_seed(seed + 1_000_003 * shared.rank + len(state.losses))
        advance(len(state.losses))
        for step in range(len(state.losses), steps):
            _step(state, data, labels, weighting, step, prepare, settings)
            advance(1)
            due = (step + 1) % every == 0 or step + 1 == steps
            if path is not None and due and shared.rank == 0:
                _save(state, path, settings)
    done = modules["average"].requires_grad_(False)
    return Training(done, np.array(state.losses), modules["schedule"], weighting)  # pyright: ignore


def _step(
    state: _State,
    x: Tensor,
    cond: Tensor | None,
    weighting: Callable[[Tensor], Tensor],
    step: int,
    prepare: Callable[[Tensor, torch.Generator], Tensor] | None,
    settings: dict,
) -> None:
    """One batch, one step of the optimiser, and what learns beside it."""
    own, schedule, generator = state.modules["denoiser"], state.modules["schedule"], state.generator
    size, mine = settings["batch"], state.shared.mine
    some = torch.randint(len(x), (size,), generator=generator, device=x.device)
    clean = x[some] if prepare is None else prepare(x[some], generator)
    given = None if cond is None else cond[some][mine]
    logsnr, importance = look(clean, schedule, generator, stratified=True)  # pyright: ignore
    eps = torch.randn(clean.shape, generator=generator, dtype=x.dtype, device=x.device)
    half = x.is_cuda and torch.cuda.is_bf16_supported()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        sizes = getattr(weighting, "sizes", None)
        error = squared_error(own, clean[mine], logsnr[mine], eps[mine], given, sizes)  # pyright: ignore
    met, w = state.shared.whole(error, size), weighting(logsnr).to(error)
    weighted = over_kinds(w * met)
    loss = (0.5 * importance * weighted).mean()
    if not torch.isfinite(loss):
        bad = logsnr[~torch.isfinite(weighted)]
        where = f"logsnr {bad.min():.3g} to {bad.max():.3g}" if len(bad) else "every logsnr"
        raise FloatingPointError(
            f"the loss of step {step} is {loss.item()}, at {where}; the last checkpoint is kept: "
            "go on from there with a lower rate or clip"
        )
    rise, t = max(1, settings["steps"] // 50), step / settings["steps"]
    for group in state.optimizer.param_groups:
        fall = 0.5 * (1 + np.cos(np.pi * t))
        group["lr"] = settings["rate"] * float(min(1.0, (step + 1) / rise) * fall)
    state.optimizer.zero_grad()
    (0.5 * importance[mine] * over_kinds(w[mine] * error)).sum().div(size).backward()
    state.shared.add(own.parameters())
    nn.utils.clip_grad_norm_(own.parameters(), settings["clip"])
    state.optimizer.step()
    keep = min(settings["average"], (1 + step) / (10 + step))
    with torch.no_grad():
        for mine, now in zip(state.modules["average"].parameters(), own.parameters(), strict=True):
            mine.lerp_(now, 1 - keep)
        for mine, now in zip(state.modules["average"].buffers(), own.buffers(), strict=True):
            mine.copy_(now)
    if isinstance(schedule, AdaptiveSchedule):
        schedule.update(logsnr, weighted)
    if hasattr(weighting, "update"):
        weighting.update(logsnr, met)  # pyright: ignore
    state.losses.append(loss.item())


def find_device(device: str) -> str:
    """``cuda`` if there is one, for ``auto``.

    Raises:
        ValueError: ``cuda`` where there is none.

    >>> find_device("cpu")
    'cpu'
    """
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ValueError("device is 'cuda', and torch finds none here: 'auto' takes what there is")
    return ("cuda" if there else "cpu") if device == "auto" else device


def check_images(x: Tensor) -> None:
    """Refuse what is no batch of examples in [-1, 1].

    Raises:
        ValueError: integers, or numbers outside.
    """
    if not x.is_floating_point():
        raise ValueError(
            f"got examples of {x.dtype}, wanted float in [-1, 1]: 8-bit images are "
            "2 * (x.float() + 0.5) / 256 - 1"
        )
    low, high = float(x.min()), float(x.max())
    if not (low >= -1 and high <= 1):
        raise ValueError(f"got examples from {low:g} to {high:g}, wanted them in [-1, 1]")


def _tensors(state: _State) -> dict[str, Tensor]:
    """Everything as tensors by name."""
    found = {f"modules.{k}": v for k, v in state.modules.state_dict().items()}
    for i, slot in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in slot.items()}
    found["random.own"], found["random.torch"] = state.generator.get_state(), torch.get_rng_state()
    found["losses"] = torch.tensor(state.losses, dtype=torch.float64)
    return {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}


def _save(state: _State, path: Path, settings: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    save_file(_tensors(state), aside, {"settings": json.dumps(settings)})
    aside.replace(path)


def _restore(state: _State, path: Path, settings: dict) -> None:
    """Go on from a checkpoint of the same run."""
    try:
        with safe_open(path, "pt") as file:
            there = json.loads(file.metadata()["settings"])
            found = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no whole checkpoint ({error}): remove it to begin") from error
    for name, value in settings.items():
        if there.get(name) != value:
            raise ValueError(
                f"{path} is of another run: its {name} is {there.get(name)}, got {value}; name "
                "another folder, or remove it"
            )
    modules = {k.removeprefix("modules."): v for k, v in found.items() if k.startswith("modules.")}
    try:
        state.modules.load_state_dict(modules)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this denoiser: {error}") from error
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in found.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            slots.setdefault(int(i), {})[key] = value
    whole = state.optimizer.state_dict()
    state.optimizer.load_state_dict({**whole, "state": slots})
    state.generator.set_state(found["random.own"])
    torch.set_rng_state(found["random.torch"])
    state.losses[:] = found["losses"].tolist()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Dropout draws from torch's own generator: it is seeded here, and put back after."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
