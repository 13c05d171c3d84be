# %% [markdown]
# # Two auditory receptors stop denoising by a narrow law, under a front end that averages power
#
# The demo's comparison on both grasshopper recordings, with what the demo leaves out: every law's
# paired difference to the logistic, and the front end whose taps may be negative.
#
#     python analyses/01_receptor_weighting.py [--fit] [--workers 2]
#
# Without `--fit` the figure and the tables are made from `results/01_*`, which the fits left.

# %%
import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr

import neurodiff as nd
from neurodiff.inference.compare import elpd_of, paired
from neurodiff.inference.fit import modes_of
from neurodiff.inference.heldout import alternating, kfold
from neurodiff.inference.hypotheses import plan
from neurodiff.inference.join import join
from neurodiff.inference.study import study
from neurodiff.inference.tasks import Task
from neurodiff.inference.together import alone
from neurodiff.perception.frontend import PowerFilter

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
GROUPS = ("posterior", "constant_data", "information", "sample_stats")


# %%
def signed(data):
    """Held-out elpd of the logistic law when the power filter's taps may be negative."""
    law = nd.SurvivalWeighting(nd.laws.Logistic())
    model = nd.Threshold(law, nd.observers.Counts(), PowerFilter(signed=True))
    bound = join(model, data)
    modes = modes_of(bound, 2, 0)
    return alone(kfold(bound, modes, alternating(len(bound.unit_names)), 250, 0))


def against_logistic(folder, table):
    """Each row's paired difference to the logistic law of its own front end, over blocks."""
    elpd = {}
    for path in sorted((folder / "fits").glob("*.nc")):
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            a = tree.attrs
            key = (a["data"], a["front_end"], a["gauge"], a["hypothesis"])
            elpd[key] = elpd_of(tree)[0], a["spikes"]
    rows = []
    for key, (units, spikes) in elpd.items():
        reference = elpd[key[0], key[1], "free", "logistic"][0]
        gap, se = paired(units, reference)
        rows.append([*key, gap, se, gap / spikes / np.log(2)])
    columns = ["data", "front_end", "gauge", "hypothesis", "nats", "se", "bits_per_spike"]
    return pd.DataFrame(rows, columns=columns).sort_values([*columns[:2], "nats"])


def run(workers):
    """Fit everything and leave the tables and the winner's curves."""
    parts = [nd.load(f"grasshopper-receptor/{i}") for i in (1, 2)]
    folder = Path("runs/01-receptor-weighting")
    rows = plan(Task(), ("none", "power-filter"))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        table = study(parts, rows, Task(), folder, executor=pool, resume=folder.exists())
    table.to_csv(RESULTS / "01_comparison.csv", index=False, float_format="%.4g")
    differences = against_logistic(folder, table)
    differences.to_csv(RESULTS / "01_against_logistic.csv", index=False, float_format="%.4g")
    free = []
    for part in parts:
        elpd, k_hat = signed(part)
        own = table[(table["data"] == part.attrs["name"]) & (table["hypothesis"] == "constant")]
        gain = elpd.sum() - own["elpd"].max()
        spikes = float(part["count"].sum())
        bits = gain / spikes / np.log(2)
        free.append([part.attrs["name"], elpd.sum(), bits, k_hat.max()])
    columns = ["data", "elpd", "bits_per_spike", "largest_k_hat"]
    signed_table = pd.DataFrame(free, columns=columns)
    signed_table.to_csv(RESULTS / "01_signed_taps.csv", index=False, float_format="%.4g")
    keep(folder)


def keep(folder):
    """The logistic fits under the power filter, without what is large."""
    for path in sorted((folder / "fits").glob("*power-filter--free--logistic-????????.nc")):
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            tree.load()
        free = next((folder / "fits").glob(f"{path.name.split('--')[0]}--power*free-link*"))
        with xr.open_datatree(free, engine="h5netcdf") as link:
            tree["information"] = link["information"].to_dataset().load()
        small = {name: tree[name].to_dataset() for name in GROUPS if name in tree.children}
        kept = xr.DataTree.from_dict(small)
        kept.attrs = tree.attrs
        encoding = {"zlib": True, "complevel": 9}
        kept.to_netcdf(
            RESULTS / f"01_{path.name.split('--')[0]}.nc",
            engine="h5netcdf",
            encoding={f"/{g}": {v: encoding for v in d.data_vars} for g, d in small.items()},
        )


# %%
def figure():
    """w of the receptor over the named weightings, with where the data speak."""
    with xr.open_datatree(RESULTS / "01_grasshopper-receptor-1.nc", engine="h5netcdf") as tree:
        tree.load()
    ax = nd.plot.weighting(tree)
    for kind in ("png", "pdf"):
        ax.figure.savefig(FIGURES / f"01_receptor_weighting.{kind}", dpi=300)
    plt.close(ax.figure)
    ax = nd.plot.comparison(
        pd.read_csv(RESULTS / "01_comparison.csv").query("data.str.endswith('1')")
    )
    for kind in ("png", "pdf"):
        ax.figure.savefig(FIGURES / f"01_receptor_comparison.{kind}", dpi=300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Which weighting does this receptor use?")
    parser.add_argument("--fit", action="store_true", help="fit again (minutes)")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    FIGURES.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    if options.fit:
        run(options.workers)
    figure()
    print(pd.read_csv(RESULTS / "01_comparison.csv").to_string())
