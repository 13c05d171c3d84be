"""What loading a published data set takes beside xarray reading the same content from netCDF.

NEURODIFF_DATA=folder python benchmarks/loading.py     half a minute

Loading verifies the sha256 of every file, decodes it, checks the data set and hashes its content;
xarray only reads. Processor seconds, in turns, the median of five; a data set should take at most
two seconds. Those whose files are not there are left out. Writes loading.csv.
"""

import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
import xarray as xr

from neurodiff.data import datasets
from neurodiff.data.decode import DECODERS
from neurodiff.data.schema import DataError

TURNS, WANTED = 5, 2.0


def seconds(read, *of, **options):
    began = time.process_time()
    read(*of, **options)
    return time.process_time() - began


def main():
    rows = []
    names = [f"{n}/{part}".rstrip("/") for n in DECODERS for part in datasets.card(n).parts or [""]]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.nc"
        for name in names:
            try:
                datasets.load(name).to_netcdf(file, engine="h5netcdf")
            except DataError as error:
                print(f"{name} is left out: {error}")
                continue
            turns = [
                (seconds(datasets.load, name), seconds(xr.load_dataset, file, engine="h5netcdf"))
                for _ in range(TURNS)
            ]
            ours, bare = (statistics.median(column) for column in zip(*turns, strict=True))
            rows.append({"data": name, "seconds": ours, "wanted": WANTED, "netcdf": bare,
                         "ratio": ours / bare})  # fmt: skip
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.3g")


if __name__ == "__main__":
    main()
