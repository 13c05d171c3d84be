r"""From spike times on a laboratory's clock to counts in bins that begin with the stimulus.

.. math:: \text{count}_k = \#\{\text{spikes in } [t_k, t_k + \Delta)\}, \qquad
    t_k + \Delta \le \text{rt}

A bin that the response cuts short, or that comes after it, is NaN: nothing was asked of the neuron
there. Times are seconds from the onset of the stimulus. The spike times themselves are kept beside
the counts, since what is aligned to the response cannot be had from bins aligned to the stimulus.
"""

from pathlib import Path

import numpy as np
import scipy.io
import xarray as xr

_BIN = 10  # ms
_AROUND = 0.5  # s of spikes before and after a stimulus: what is further off is of other trials


def roitman_spikes(files: dict[str, Path], part: str, attrs: dict) -> xr.Dataset:
    """Spikes of 54 LIP neurons with the direction of random-dot motion, choice and reaction time.

    ``count`` [trial, time] is NaN outside the dots; ``spike_time`` [trial, spike] is NaN after the
    last. ``unit`` names the neuron of each trial, its first letter the animal.
    """
    content = scipy.io.loadmat(files["T1RT.mat"])
    x = content["x"].astype(float)  # the file is big-endian
    animal = np.array([str(np.squeeze(name))[0] for name in content["f"].ravel()])
    unit, coherence, direction, target, correct, onset = x[:, [0, 2, 3, 4, 5, 6]].T
    rt = x[:, 8]
    times = [
        np.sort(s.ravel().astype(float)) - t
        for s, t in zip(content["s"].ravel(), onset, strict=True)
    ]
    signed = np.where(direction == 1, coherence, -coherence) / 1000 + 0.0  # -0 into 0
    with np.errstate(divide="ignore"):
        logsnr = 2 * np.log(np.abs(signed))
    columns = {
        "logsnr": logsnr,
        "coherence": signed,
        "choice": (target == 1).astype(float),
        "correct": np.where(signed == 0, np.nan, correct),
        "rt": rt / 1000,
        "serial": x[:, 30],
    }
    count = _binned(times, rt)
    longest = max(map(len, times))
    padded = np.array([np.pad(t, (0, longest - len(t)), constant_values=np.nan) for t in times])
    labels = [f"{a}{u:.0f}" for a, u in zip(animal, unit, strict=True)]
    return xr.Dataset(
        {name: ("trial", values) for name, values in columns.items()}
        | {"count": (("trial", "time"), count), "spike_time": (("trial", "spike"), padded / 1000)},
        coords={
            "subject": ("trial", animal),
            "unit": ("trial", np.array(labels)),
            "time": np.arange(count.shape[1]) * _BIN / 1000,
        },
    )


def _binned(times: list[np.ndarray], rt: np.ndarray) -> np.ndarray:
    """Counts of each trial in bins of 10 ms from 0; NaN where a bin is not over by the response."""
    n = int(rt.max() // _BIN)
    found = np.empty((len(times), n))
    for i, t in enumerate(times):
        inside = t[(t >= 0) & (t < n * _BIN)]
        found[i] = np.bincount((inside // _BIN).astype(int), minlength=n)
    found[(np.arange(n) + 1) * _BIN > rt[:, None]] = np.nan
    return found


def brody_clicks(files: dict[str, Path], part: str, attrs: dict) -> xr.Dataset:
    """Clicks on either side, the rat's choice, and the spikes of some units about the stimulus.

    ``pulse_time`` and ``pulse_side`` (+1 right) [trial, pulse] are in the order of time, NaN after
    the last; ``spike_time`` [trial, unit, spike] from half a second before the stimulus to half a
    second after it. ``logsnr`` is log((R − L)²/(R + L)) of the clicks after the pair that begins
    every trial, −inf where there are as many on both sides.
    """
    (path,) = files.values()
    raw = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)["rawdata"]
    sides = [[np.atleast_1d(x).astype(float) for x in (t.leftbups, t.rightbups)] for t in raw]
    clicks, spikes = [], []
    for trial, (left, right) in zip(raw, sides, strict=True):
        time = np.concatenate([left, right])
        side = np.concatenate([-np.ones(len(left)), np.ones(len(right))])
        order = np.argsort(time, kind="stable")
        clicks.append((time[order], side[order]))
        # the times of a single unit come without its cell
        cells = trial.spike_times if np.size(trial.cellID) > 1 else [trial.spike_times]
        near = [np.atleast_1d(s).astype(float) for s in cells]
        spikes.append([s[(s >= -_AROUND) & (s < trial.T + _AROUND)] for s in near])
    left, right = (np.array([len(pair[k]) - 1 for pair in sides]) for k in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = np.where(left == right, 0.0, (right - left) ** 2 / (right + left))
        logsnr = np.log(snr)
    choice = np.array([t.pokedR for t in raw], float)
    towards = np.array([t.correct_dir for t in raw], float)
    columns = {
        "logsnr": logsnr,
        "choice": choice,
        "correct": np.where(left == right, np.nan, choice == towards),
        "duration": np.array([t.T for t in raw]),
    }
    padded = np.stack([_padded(units, max(len(s) for t in spikes for s in t)) for units in spikes])
    most = max(len(time) for time, _ in clicks)
    return xr.Dataset(
        {name: ("trial", values) for name, values in columns.items()}
        | {
            "pulse_time": (("trial", "pulse"), _padded([time for time, _ in clicks], most)),
            "pulse_side": (("trial", "pulse"), _padded([side for _, side in clicks], most)),
            "spike_time": (("trial", "unit", "spike"), padded),
        },
        coords={
            "subject": ("trial", np.full(len(raw), "T103")),
            "unit": np.atleast_1d(raw[0].cellID).astype(str),
        },
    )


def _padded(rows: list[np.ndarray], most: int) -> np.ndarray:
    """Rows of one length, NaN after the last."""
    return np.array([np.pad(r, (0, most - len(r)), constant_values=np.nan) for r in rows])
