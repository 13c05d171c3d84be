r"""A file of one's own → a checked data set.

.. math:: \lambda = \frac{\ln 10}{10} \, \mathrm{SNR_{dB}}

Tables (.csv, .tsv, the trials of .nwb, the vectors of .mat) have one row a trial, or one row a time
bin where there are columns ``time`` and ``count`` and none called ``trial``. Column names are read
in lower case, and some are translated: ``response_time`` (BIDS) is ``rt``, ``participant_id`` is
``subject``, and ``snr_db`` or ``db`` becomes ``logsnr`` in nats. Choices -1 and 1, or left and
right, lower and upper, down and up, no and yes, become 0 and 1. A missing answer is an empty cell,
``n/a`` or NaN. Without a column ``subject`` the name is taken from ``sub-<name>`` in the file's
name. A .nc file is a data set already and is only checked.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from neurodiff.data.schema import ANSWER, NATS_PER_DB, STIMULUS, DataError, check

_RENAME = {"response_time": "rt", "participant_id": "subject"}
_DECIBEL = ("snr_db", "db")
_NUMBERS = {*STIMULUS, *ANSWER, *_DECIBEL}
_WORDS = {"true": 1.0, "false": 0.0, "": np.nan}
#: two choices by other codes: the first of each pair is 0
_PAIRS = (("-1", "1"), ("left", "right"), ("lower", "upper"), ("down", "up"), ("no", "yes"))


def read(path: str | Path, n_choices: int | None = None) -> xr.Dataset:
    r"""Read a file and check it.

    Args:
        path: a .csv, .tsv (tab separated, as BIDS events), .nc, .nwb or .mat file.
        n_choices: the number of alternatives, coded 0 to n_choices - 1 in ``choice``; 2 unless the
            file states it.

    Raises:
        DataError: the file is missing, empty, cut short or of another kind, or its content has
            problems; the message lists all of them with line, column and fix.

    >>> path = getfixture("tmp_path") / "trials.csv"
    >>> _ = path.write_text("snr_db,correct\n0,0\n10,1\n")
    >>> read(path)["logsnr"].values.round(3)
    array([0.   , 2.303])
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'}; wanted one of "
            f"{', '.join(_READERS)}"
        )
    if not path.is_file():
        raise DataError(f"{path}: there is no such file (looked in {path.parent.resolve()})")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; wanted a table with a heading, or a data set")
    data, lines = reader(path)
    if n_choices is not None:
        data.attrs["n_choices"] = n_choices
    return check(data, str(path), lines)


def _text_table(path: Path) -> tuple[xr.Dataset, np.ndarray]:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            heading = stream.readline().lower()
        sep = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=heading.count)
        frame = pd.read_csv(
            path,
            sep=sep,
            # a subject called 007 keeps its zeros
            converters=dict.fromkeys(_subject_columns(heading, sep), str),
            na_values=["n/a", "na"],
            skipinitialspace=True,
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not a table ({str(error).strip()}); wanted text in UTF-8 with equally many "
            "cells in each line"
        ) from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(f"{path}: the lines have more cells than the heading; name every column")
    # a blank line is no row, but counts as a line; the heading is line 1
    blank = (frame.isna() | frame.isin([""])).all(axis=1).to_numpy()
    frame = frame.iloc[np.flatnonzero(~blank)] if len(frame.columns) > 1 else frame
    return _table(frame, path), frame.index.to_numpy() + 2


def _subject_columns(heading: str, sep: str) -> list[int]:
    names = [name.strip().strip('"') for name in heading.split(sep)]
    return [i for i, name in enumerate(names) if _RENAME.get(name, name) == "subject"]


def _table(frame: pd.DataFrame, path: Path) -> xr.Dataset:
    """Columns to variables of the agreed names."""
    names = [str(name).strip().lower() for name in frame.columns]
    names = [_RENAME.get(name, name) for name in names]
    levels = [name for name in names if name in ("logsnr", *_DECIBEL)]
    twice = sorted({name for name in names if names.count(name) > 1}) or levels[:2]
    if len(set(names)) < len(names) or len(levels) > 1:
        raise DataError(
            f"{path}: {' and '.join(twice)} given twice; wanted each once (names are read in lower "
            "case, and dB is translated to logsnr): drop or rename a column"
        )
    if len(frame) == 0:
        raise DataError(f"{path}: a heading ({', '.join(names)}) and no rows; wanted at least one")
    dim = "time" if {"time", "count"} <= set(names) and "trial" not in names else "trial"
    data = xr.Dataset()
    for i, name in enumerate(names):
        # a column called trial numbers the rows, and need not do so without gaps
        name = "serial" if name == "trial" else name
        data[name] = (dim, _column(frame.iloc[:, i].to_numpy(), name))
    for name in set(_DECIBEL) & set(names):
        if data[name].dtype.kind in "iuf":
            data = data.assign(logsnr=data[name] * NATS_PER_DB).drop_vars(name)
            data["logsnr"].attrs["units"] = "nats"
    if "subject" not in data and (found := re.search(r"sub-([A-Za-z0-9]+)", path.name)):
        data["subject"] = (dim, np.full(len(frame), found[1]))
    return data.set_coords([name for name in ("subject", "block") if name in data])


def _column(values: np.ndarray, name: str) -> np.ndarray:
    """Numbers where a column holds them, also as text or truth values; else text."""
    if name == "choice":
        values = _coded(values)
    if values.dtype.kind in "biuf" and name != "subject":
        return values.astype(float) if name in ANSWER or values.dtype.kind == "b" else values
    text = np.array(["" if pd.isna(cell) else f"{cell}".strip() for cell in values])
    if name not in _NUMBERS:
        return text
    try:
        return np.array([_WORDS.get(cell.lower(), cell) for cell in text], dtype=float)
    except ValueError:
        return text  # check says where


def _coded(values: np.ndarray) -> np.ndarray:
    """Choices as 0 and 1 where they are coded -1 and 1, or by a pair of words."""
    text = pd.Series(values).astype(str).fillna("")  # pandas 3 leaves a missing one missing
    text = text.str.strip().str.lower().str.removesuffix(".0")
    there = set(text) - {"", "nan", "none"}
    for pair in _PAIRS:
        if there and there <= set(pair) and pair[0] in there:
            return text.map({pair[0]: 0.0, pair[1]: 1.0}).to_numpy(float)
    return values


def _netcdf(path: Path) -> tuple[xr.Dataset, None]:
    with path.open("rb") as stream:
        start = stream.read(4)
    engine = "h5netcdf" if start == b"\x89HDF" else "scipy" if start[:3] == b"CDF" else None
    if engine is None:
        raise DataError(
            f"{path}: starts with {start!r}, so it is no netCDF file; write one with data.to_netcdf"
        )
    try:
        return xr.load_dataset(path, engine=engine, decode_times=False), None
    except Exception as error:  # h5py and scipy raise many kinds at a truncated file
        raise _cut_short(path, "netCDF", error) from error


def _matlab(path: Path) -> tuple[xr.Dataset, None]:
    import scipy.io

    try:
        content = scipy.io.loadmat(path, squeeze_me=True)
    except NotImplementedError as error:
        raise DataError(f"{path}: MATLAB version 7.3; save it with save(..., '-v7')") from error
    except Exception as error:  # scipy raises many kinds at a truncated file
        raise _cut_short(path, "MATLAB", error) from error
    arrays = {k: np.atleast_1d(value) for k, value in content.items() if not k.startswith("__")}
    if len({value.shape for value in arrays.values()}) != 1 or any(
        value.ndim > 1 or value.dtype.kind not in "biufU" for value in arrays.values()
    ):
        got = ", ".join(f"{k} {value.shape} of {value.dtype}" for k, value in arrays.items())
        raise DataError(
            f"{path}: wanted one vector of numbers a variable, all of one length; got "
            f"{got or 'nothing'}: save the trials that way"
        )
    # some MATLAB files are big-endian, which pandas cannot use
    native = {k: value.astype(value.dtype.newbyteorder("=")) for k, value in arrays.items()}
    return _table(pd.DataFrame(native), path), None


def _nwb(path: Path) -> tuple[xr.Dataset, None]:
    """The trials, and ``count`` [trial, unit] of the spikes between a trial's start and stop."""
    try:
        from pynwb import NWBHDF5IO  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(f"{path}: .nwb needs pynwb: pip install 'neurodiff[nwb]'") from error
    try:
        with NWBHDF5IO(str(path), "r") as stream:
            content = stream.read()
            trials = None if content.trials is None else content.trials.to_dataframe()
            spikes = [] if content.units is None else list(content.units["spike_times"][:])
            subject = content.subject.subject_id if content.subject else None
    except Exception as error:  # h5py and hdmf raise many kinds at a truncated file
        raise _cut_short(path, "NWB", error) from error
    if trials is None:
        raise DataError(f"{path}: holds no table of trials; wanted nwbfile.trials, one row a trial")
    if subject is not None and "subject" not in trials:
        trials["subject"] = subject
    scalar = [name for name in trials if all(np.ndim(cell) == 0 for cell in trials[name])]
    data = _table(trials[scalar].reset_index(drop=True), path)
    if spikes and "count" not in data:
        edges = trials[["start_time", "stop_time"]].to_numpy(float)
        count = [np.diff(np.searchsorted(np.sort(unit), edges))[:, 0] for unit in spikes]
        data["count"] = (("trial", "unit"), np.stack(count, axis=1).astype(float))
    return data, None


def _cut_short(path: Path, kind: str, error: Exception) -> DataError:
    return DataError(
        f"{path}: cannot be read as {kind} ({path.stat().st_size} bytes; {error}): it was cut "
        "short or altered; copy or write it again"
    )


_READERS: dict[str, Callable[[Path], tuple[xr.Dataset, np.ndarray | None]]] = {
    ".csv": _text_table,
    ".tsv": _text_table,
    ".nc": _netcdf,
    ".nwb": _nwb,
    ".mat": _matlab,
}
