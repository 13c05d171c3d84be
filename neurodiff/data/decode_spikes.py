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
