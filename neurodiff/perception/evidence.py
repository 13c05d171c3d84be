r"""Tables of evidence: how well each label explains a stimulus, at each noise level.

.. math:: m_k(λ) = E\,|\hat ε_k(z_λ) - ε|², \qquad z_λ = α x + σ ε, \qquad
    \log p_k(x) = c - \tfrac12 \int m_k(λ)\,dλ

A picture y that is shown in noise, at its own logsnr λ_s, has no SNR above that. It can be made
noisier only, by the variance that is missing, of which the observer knows ε:

.. math:: z_λ = α y + σ \sqrt r\,ε, \quad r = 1 - e^{λ - λ_s}, \qquad
    m_k(λ) = E\big[|ε|² - \tfrac{2}{\sqrt r}\,ε·\hat ε_k + |\hat ε_k|²\big], \qquad
    \log p_k(y) = c - \tfrac12 \int_{-\infty}^{λ_s} m_k\,dλ

c is the same for all k. So a label's part of the integral is its log-likelihood, exactly so for an
exact denoiser, and a weighting or a stopping law says how an observer uses it
(:mod:`~neurodiff.perception.classify`). Noise is shared over labels, and drawn in pairs ε, −ε: at
λ_s their mean is a divergence, and single draws have no variance to speak of.
"""

import contextlib
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Shaped
from torch import Tensor

from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.logsnr import alpha, sigma
from neurodiff.diffusion.parameterization import like
from neurodiff.diffusion.progress import progress
from neurodiff.perception.elimination import behind, fill, quarters
from neurodiff.perception.stored import digest, even, read, write

_PART = 64  # stimuli in one part of a table: what a kill can lose
_NOISE = 2**28  # bytes of noise at a time


def evidence(
    denoiser: Denoiser,
    stimuli: Shaped[Tensor, "stimulus *event"],
    labels: Sequence[int],
    logsnr: Float[Tensor, " logsnr"],
    *,
    stimulus_logsnr: Float[Tensor, " stimulus"] | None = None,
    pairs: int = 2,
    seed: int = 0,
    batch: int = 512,
    lag: float = math.inf,
    path: Path | str | None = None,
    device: str = "cpu",
    executor: Executor | None = None,
) -> xr.Dataset:
    """The error of denoising each stimulus as each label, at each logsnr.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z], with the label as the condition.
        stimuli: pictures in [-1, 1]; or pictures plus noise of variance exp(−stimulus_logsnr).
        labels: those to try.
        logsnr: middles of the cells of the table, evenly spaced, nats.
        stimulus_logsnr: of each picture that is shown in noise; inf (the default) where clean.
        pairs: of noise, ε and −ε, at every level; the standard error needs at least 2.
        seed: the noise of a stimulus depends on it and on the stimulus's place alone.
        batch: pictures a call of the denoiser, which bounds the memory, beside 256 MiB of noise.
        lag: nats by which a label may lie behind the best, in ½ Σ error, before it is looked at no
            more (:func:`~neurodiff.perception.elimination.safe_lag`); what is left out is filled
            with the error of the label that wins. For the label of least error alone: how far
            others lie behind in the end, which graded answers hang on, is not known.
        path: a netCDF file. What is done lies beside it, in parts, and a run that was stopped goes
            on from there; a file that is there is read. Parts of other settings stay.
        device: where the denoiser runs.
        executor: where parts are made side by side; in this process by default.

    Returns:
        ``error`` and its standard error ``se`` (stimulus, label, logsnr), NaN above a stimulus's
        own logsnr; and ``width`` (stimulus, logsnr), the nats of each cell that lie below it. A
        cell that it divides is looked at in the middle of what is left.

    Raises:
        ValueError: noisy pictures without their logsnr, a grid that is not even, labels that are
            not different whole numbers, no stimuli, pairs, batch or a lag that are too small; a
            file of other weights, stimuli, labels, grid or noise.

    References: Clark & Jaini 2023 and Li et al. 2023, for clean pictures.

    >>> from neurodiff.diffusion.denoiser import ByLabel
    >>> from neurodiff.diffusion.prior import Gaussian
    >>> p, grid = Gaussian(torch.zeros(3), torch.ones(3)), torch.linspace(-4.0, 4.0, 9)
    >>> table = evidence(ByLabel(p, p), torch.zeros(2, 3), [0, 1], grid, pairs=2000)
    >>> table["error"].shape, round(float(table["error"][0, 0, 4]), 1)    # 3 sig(0)²
    ((2, 2, 9), 0.8)
    """
    _refuse(stimuli, labels, logsnr, stimulus_logsnr, pairs, batch, lag)
    path = None if path is None else Path(path)
    own = torch.full((len(stimuli),), torch.inf) if stimulus_logsnr is None else stimulus_logsnr
    own = own.to(stimuli if stimuli.is_floating_point() else logsnr)
    at, width = _cells(logsnr.to(own), own)
    _refuse_noise(stimuli, own)
    # tables that were filled otherwise, with each level's least error, must not be read
    how = () if math.isinf(lag) else ("filled by the winner",)
    wanted = digest(denoiser, stimuli, own, labels, logsnr, pairs, seed, lag, *how)
    if path is not None and path.exists():
        return read(path, wanted)
    denoiser = denoiser.eval()
    coords = {"label": list(labels), "logsnr": logsnr.numpy()}
    home = contextlib.nullcontext(None) if path is not None else tempfile.TemporaryDirectory()
    with home as aside, progress(len(stimuli), "evidence") as advance:
        folder = Path(aside) if path is None else path.with_suffix(".parts")  # pyright: ignore
        parts = torch.arange(len(stimuli)).split(_PART)
        looks = (_Look(some, stimuli[some], own[some], at[some], width[some]) for some in parts)
        make = partial(_make, denoiser, coords, pairs, seed, batch, lag, device, folder, wanted)
        files = []
        for file, some in zip((executor or _Here).map(make, looks), parts, strict=True):
            files.append(file)
            advance(len(some))
        whole = xr.concat([read(file, wanted) for file in files], "stimulus")
        if path is not None:
            write(whole, path)
            for file in files:
                file.unlink()
            if not any(folder.iterdir()):  # parts of other settings may be hours of work: they stay
                folder.rmdir()
    return whole


class _Here:
    """This process, as an executor."""

    map = staticmethod(map)


class _Look(NamedTuple):
    """Some of the stimuli: their places, their own logsnr, and where each is looked at."""

    some: Tensor  # (stimulus,)
    stimuli: Tensor  # (stimulus, *event)
    own: Tensor  # (stimulus,)
    at: Tensor  # (stimulus, logsnr)
    width: Tensor  # (stimulus, logsnr), 0 where it is not looked at


def _make(
    denoiser: Denoiser, coords: dict, pairs: int, seed: int, batch: int, lag: float, device: str,
    folder: Path, wanted: str, look: _Look,
) -> Path:  # fmt: skip
    """One part of a table: the file that holds it, made unless it is there."""
    file = folder / f"{int(look.some[0]):08d}-{wanted[:12]}.nc"
    if not file.exists():
        denoiser, labels = denoiser.to(device), coords["label"]
        # a large picture's noise, at every level, is large: that of a few stimuli at a time
        few = max(1, _NOISE // (pairs * look.at.shape[1] * look.stimuli[0].nbytes))
        looks = (_Look(*some) for some in zip(*(v.split(few) for v in look), strict=True))
        asked = (_asked(denoiser, some, labels, pairs, seed, batch, lag, device) for some in looks)
        write(_table(torch.cat(list(asked), 1).mT, look, coords, wanted), file)
    return file


def _asked(
    denoiser: Denoiser, look: _Look, labels: Sequence[int], pairs: int, seed: int, batch: int,
    lag: float, device: str,
) -> Tensor:  # fmt: skip
    """The errors, (pair, stimulus, logsnr, label); labels that lag are given up on the way."""
    noise = _noise(look, pairs, seed)
    errors = look.stimuli.new_full((pairs, *look.at.shape, len(labels)), torch.nan)
    kept = torch.ones(len(look.some), len(labels), dtype=torch.bool)
    for some in quarters(look.at.shape[1]):
        _errors(denoiser, look, noise, labels, batch, device, some, kept, errors)
        kept &= ~(behind(errors.mean(0), look.width, kept) > lag)
    return fill(errors, look.width, kept)


def _cells(logsnr: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Where each stimulus is looked at in each cell, and the nats of it: (stimulus, logsnr)."""
    step = logsnr.diff()
    if logsnr.ndim != 1 or not even(logsnr.numpy()):
        raise ValueError(
            f"got the grid {logsnr.tolist()}, wanted at least two values of logsnr, increasing by "
            "equal steps: the middles of cells, such as torch.linspace(-8, 6, 29)"
        )
    low = logsnr - 0.5 * step[0]
    width = (torch.minimum(low + step[0], own[:, None]) - low).clamp_min(0.0)
    # of a sliver, which says nothing, the middle is at λ_s but for rounding, and 1/√r is infinite
    sliver = (width < 1e-5 * step[0]) | (low + 0.5 * width >= own[:, None])
    width = width.masked_fill(sliver, 0.0)
    if (empty := (width.sum(1) == 0).nonzero()).numel():
        raise ValueError(
            f"stimulus {int(empty[0])} has a logsnr of {own[empty[0]].item():g}, below the whole "
            f"grid, which begins at {low[0]:g}: begin lower"
        )
    return low + 0.5 * width, width


def _refuse(
    stimuli: Tensor, labels: Sequence[int], logsnr: Tensor, own: Tensor | None, pairs: int,
    batch: int, lag: float,
) -> None:  # fmt: skip
    for name, value in {"stimuli": stimuli, "logsnr": logsnr, "stimulus_logsnr": own}.items():
        if not isinstance(value, Tensor) and (value is not None or name != "stimulus_logsnr"):
            raise ValueError(f"got {name} of {type(value)}, wanted a tensor: torch.tensor({name})")
    shape, named = tuple(stimuli.shape), np.asarray(labels)
    whole = named.ndim == 1 and named.dtype.kind in "iu" and len(named) > 0
    for wrong, words in (
        (
            0 in shape or not shape,
            f"stimuli of shape {shape}, wanted (stimulus, *event), at least one",
        ),
        (
            own is not None and tuple(own.shape) != shape[:1],
            f"a stimulus_logsnr of shape {() if own is None else tuple(own.shape)} for stimuli of "
            f"shape {shape}, wanted one value for each stimulus, inf where it is clean",
        ),
        (
            not whole or named.min() < 0 or len(set(named.tolist())) < len(named),
            f"the labels {named.tolist()}, wanted whole numbers from 0, each once, as the denoiser "
            "takes them, such as range(10): name them afterwards, table.assign_coords(label=names)",
        ),
        (pairs < 1, f"{pairs} pairs of noise, wanted at least 1, or 2 for a standard error"),
        (batch < 1, f"a batch of {batch}, wanted at least 1"),
        (not lag >= 0, f"a lag of {lag} nats, wanted 0 or more, inf to look at every label"),
    ):
        if wrong:
            raise ValueError(f"got {words}")


def _refuse_noise(stimuli: Tensor, own: Tensor) -> None:
    clean = stimuli[torch.isinf(own)]
    if not stimuli.is_floating_point() or (len(clean) and clean.abs().max() > 1):
        raise ValueError(
            f"got pictures of {stimuli.dtype} from {stimuli.min():g} to {stimuli.max():g} without "
            "a logsnr, wanted float in [-1, 1]. A picture in noise must come with its "
            "stimulus_logsnr: it cannot be queried as if it were clean"
        )
    if torch.isnan(own).any() or not torch.isfinite(stimuli).all():
        raise ValueError("got NaN or infinite pixels, or a NaN stimulus_logsnr; wanted numbers")


def _noise(look: _Look, pairs: int, seed: int) -> Tensor:
    """(stimulus, logsnr, pair, *event), of each stimulus by its place alone."""
    x, levels = look.stimuli, look.at.shape[1]
    made = []
    for i in look.some.tolist():
        g = torch.Generator().manual_seed(1_000_003 * seed + i)
        made.append(torch.randn((levels, pairs, *x.shape[1:]), generator=g, dtype=x.dtype))
    return torch.stack(made)


@torch.no_grad()
def _errors(
    denoiser: Denoiser, look: _Look, noise: Tensor, labels: Sequence[int], batch: int,
    device: str, some: Tensor, kept: Tensor, errors: Tensor,
) -> None:  # fmt: skip
    """Fill in the error by pair, mean over ε and −ε, of the kept labels at some of the levels."""
    pairs, known = noise.shape[2], torch.tensor(labels, device=device)
    there = (look.width[:, some, None] > 0) & kept[:, None]
    for pair, n, j, k in (
        c.unbind(1) for c in there.expand(pairs, *there.shape).nonzero().split(max(1, batch // 2))
    ):
        j = some[j]
        eps, y = noise[n, j, pair].to(device), look.stimuli[n].to(device)
        level, own = look.at[n, j].to(device), look.own[n].to(device)
        eps, y = torch.cat([eps, -eps]), torch.cat([y, y])
        level, over = level.repeat(2), (level - own).exp().repeat(2)  # e^(λ − λ_s) is 1 − r
        root = (-torch.expm1(level - own.repeat(2))).sqrt()
        z = like(alpha(level), y) * y + like(sigma(level) * root, y) * eps
        # D = (α/σ)(y − x̂) is √r ε less than ε̂; where the picture is clean the error is |D|²
        off = like((0.5 * level).exp(), y) * (y - denoiser(z, level, known[k.to(device)].repeat(2)))
        off, eps = off.flatten(1), eps.flatten(1)
        cross = eps.square().sum(1) + 2 / root * (eps * off).sum(1)
        error = off.square().sum(1) - torch.where(over > 0, over * cross, 0.0)
        errors[pair, n, j, k] = error.reshape(2, -1).mean(0).to(errors)


def _table(errors: Tensor, look: _Look, coords: dict, wanted: str) -> xr.Dataset:
    dims, pairs = ("stimulus", "label", "logsnr"), len(errors)
    se = errors.std(0) / pairs**0.5 if pairs > 1 else torch.full_like(errors[0], torch.nan)
    table = xr.Dataset(
        {
            "error": (dims, errors.mean(0).numpy(), {"units": "1", "long_name": "denoising error"}),
            "se": (dims, se.numpy(), {"units": "1", "long_name": "standard error of the error"}),
            "width": (("stimulus", "logsnr"), look.width.numpy(), {"units": "nats"}),
        },
        {"stimulus": look.some.numpy(), **coords},
        {"of": wanted, "pairs": pairs},
    )
    table["logsnr"].attrs["units"] = "nats"
    return table
