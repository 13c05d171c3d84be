"""Sums against counting by hand, on trials of different lengths."""

import numpy as np
import xarray as xr

from neurodiff.data.peri_stimulus import peri_stimulus


def study(seed=0, n=40):
    rng = np.random.default_rng(seed)
    time = np.arange(80) * 0.01
    rt = rng.uniform(0.35, 0.8, n).round(3)
    count = rng.poisson(0.5, (n, 80)).astype(float)
    count[time + 0.01 > rt[:, None] + 1e-9] = np.nan
    columns = {"coherence": rng.choice([-0.1, 0.1], n), "choice": rng.integers(0, 2, n) * 1.0}
    return xr.Dataset(
        {k: ("trial", v) for k, v in (columns | {"rt": rt}).items()}
        | {"count": (("trial", "time"), count)},
        {
            "unit": ("trial", rng.choice(["a", "b"], n)),
            "subject": ("trial", ["m"] * n),
            "time": time,
        },
    )


def test_every_spike_in_the_window_is_counted_once():
    data = study()
    found = peri_stimulus(data, width=0.05, since=0.2, until=0.1)
    time, count = data["time"].values, data["count"].values
    seen = (time >= 0.2 - 1e-9) & (time + 0.01 <= data["rt"].values[:, None] - 0.1 + 1e-9)
    assert float(found["count"].sum()) == count[seen].sum()
    assert float(found["exposure"].sum()) == np.round(seen.sum() * 0.01, 10)
    keys = ("unit", "coherence", "choice")
    for one in (3, 17, found.sizes["trial"] - 1):
        row = found.isel(trial=one)
        here = np.all([data[k].values == row[k].values for k in keys], 0)
        inside = seen[here] & (np.abs(time + 0.005 - float(row["when"])) < 0.025)
        assert float(row["count"]) == count[here][inside].sum()
        assert np.isclose(float(row["exposure"]), 0.01 * inside.sum())
