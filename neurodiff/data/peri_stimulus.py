r"""Spikes of trials that are alike, added up along the time since the stimulus.

.. math:: n_{icsk} = \sum_{\text{trials}} \text{count}_k, \qquad
    x_{icsk} = \Delta \cdot \#\{\text{trials that still go on}\}

For a Poisson rate that depends on the neuron i, the stimulus c, the choice s and the time alone,
the sums n and the seconds x that they were watched say all that the trials say.
"""

import numpy as np
import pandas as pd
import xarray as xr

from neurodiff.data.schema import require


def peri_stimulus(
    data: xr.Dataset, width: float = 0.05, since: float = 0.2, until: float = 0.1
) -> xr.Dataset:
    """Counts by neuron, stimulus, choice and time since the stimulus.

    Args:
        data: One study with ``count`` [trial, time], ``coherence``, ``choice``, ``rt`` and the
            coordinates ``unit`` and ``subject`` of the trials.
        width: Of a bin, seconds: a multiple of that of the counts.
        since: Seconds after the stimulus from which bins begin.
        until: Seconds before the response by which what is counted has ended; a bin that it cuts
            short counts for the seconds that are left.

    Returns:
        One row a sum, along ``trial``: ``count``, ``exposure`` (s), ``when`` (the middle of the
        bin, s), ``coherence``, ``choice``.

    Raises:
        DataError: If a variable is missing.

    >>> trials = xr.Dataset(
    ...     {"count": (("trial", "time"), [[1.0, 0.0, 2.0], [3.0, 1.0, np.nan]]),
    ...      "coherence": ("trial", [0.1, 0.1]), "choice": ("trial", [1.0, 1.0]),
    ...      "rt": ("trial", [0.35, 0.25])},
    ...     {"unit": ("trial", ["a", "a"]), "subject": ("trial", ["m", "m"]),
    ...      "time": [0.0, 0.1, 0.2]})
    >>> found = peri_stimulus(trials, width=0.1, since=0.0, until=0.05)
    >>> found["count"].values, found["exposure"].values.round(3)
    (array([4., 1., 2.]), array([0.2, 0.2, 0.1]))
    """
    require(data, ["count", "coherence", "choice", "rt", "unit", "subject", "time"])
    fine = float(data["time"][1] - data["time"][0])
    time, rt = data["time"].values, data["rt"].values
    count = data["count"].values
    seen = (time >= since - 1e-9) & (time + fine <= rt[:, None] - until + 1e-9)
    seen &= np.isfinite(count)
    trial, at = np.nonzero(seen)
    bin_ = np.floor((time[at] - since) / width + 1e-6).astype(int)
    names = ["subject", "unit", "coherence", "choice"]
    columns = {name: data[name].values[trial] for name in names}
    frame = pd.DataFrame(columns | {"bin": bin_, "count": count[trial, at], "exposure": fine})
    rows = pd.DataFrame(frame.groupby([*names, "bin"]).sum()).reset_index()
    rows["when"] = since + (rows["bin"] + 0.5) * width
    units = {"count": "1", "exposure": "s", "when": "s", "coherence": "1", "choice": "1"}
    return xr.Dataset(
        {name: ("trial", rows[name].to_numpy(), {"units": u}) for name, u in units.items()},
        {name: ("trial", rows[name].to_numpy(str)) for name in ("unit", "subject")},
    )
