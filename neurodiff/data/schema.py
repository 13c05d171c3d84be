r"""What a data set must look like: one ``xarray.Dataset`` a study, with agreed names and units.

.. math:: \lambda = \log \frac{\text{signal power}}{\text{noise power}}
          = \frac{\ln 10}{10} \, \mathrm{SNR_{dB}}

Dimensions are singular: trial, stimulus, unit, time (bins), sample (the stimulus grid, finer than
time), subject, pulse (samples of evidence within a trial), spike (times within a trial), repeat (of
a stimulus), channel, height and width (of an image), and category (what can be answered). Bin i
of ``time`` covers samples [k i, k i + k) with k = n_sample / n_time. A missing answer is NaN, never
a sentinel. A stimulus is never missing; ``logsnr`` may be +inf (no noise) or -inf (no signal).
``subject`` is a text coordinate. The conventions others get wrong: ``logsnr`` is in nats, not in
dB, and reaction times are in seconds.
"""

import difflib
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import xarray as xr

DIMS = ("trial", "stimulus", "unit", "time", "sample", "subject", "pulse", "spike")
DIMS += ("repeat", "channel", "height", "width", "category")

#: known variables: units and long name; what is not here is carried along unchecked
STIMULUS = {
    "logsnr": ("nats", "log signal-to-noise ratio of the stimulus"),
    "stimulus_level": ("1", "level of the stimulus, in the study's own units"),
    "power": ("1", "power of the stimulus"),
    "coherence": ("1", "fraction of dots moving together, signed by direction"),
    "contrast": ("1", "contrast"),
    "heading": ("degree", "heading, + is right"),
    "vestibular": ("1", "1 where the body is moved"),
    "strength": ("1", "strength of the stimulus, signed where a choice has a direction"),
}
ANSWER = {
    "choice": ("1", "choice, 0 to n_choices - 1; NaN = no answer"),
    "correct": ("1", "1 right, 0 wrong, NaN = no answer or no right answer"),
    "rt": ("s", "reaction time"),
    "deadline": ("s", "time after which a trial takes no answer"),
    "count": ("1", "spikes"),
    "confidence": ("1", "confidence report"),
}
_SAME_UNITS = {
    "nats": {"nat", "ln", "neper"},
    "s": {"sec", "second", "seconds"},
    "1": {"", "none", "dimensionless"},
}
#: nats in one decibel
NATS_PER_DB = np.log(10) / 10


class DataError(ValueError):
    """A data set, a file or a card that cannot be used: the message says what to do."""


def check(
    data: xr.Dataset, source: str = "the data set", lines: np.ndarray | None = None
) -> xr.Dataset:
    """Check a data set against this module's conventions.

    Args:
        data: the data set.
        source: the name under which problems are reported.
        lines: the line of each row, if the rows are lines of a text file.

    Returns:
        The same data, with ``units`` and ``long_name`` filled in for the known variables.

    Raises:
        DataError: with EVERY problem found, each with its rows and its fix.

    >>> check(xr.Dataset({"rt": ("trial", [512.0, 640.0]), "correct": ("trial", [1.0, 2.0])}))
    Traceback (most recent call last):
    neurodiff.data.schema.DataError: 2 problems in the data set:
      - rt: the median is 576, which looks like milliseconds; wanted seconds: divide by 1000
      - correct: 2 at trial 1 (from 0); wanted 0, 1 or NaN (no answer)
    """
    known = [
        found
        for name in sorted(map(str, data.variables), key=_order)
        for found in _variable_problems(data, name, lines)
    ]
    rest = [*_grid_problems(data), *_subject_problems(data, lines)]
    found = [*_shape_problems(data), *known, *rest]
    if found:
        heading = f"{len(found)} problem{'s' if len(found) > 1 else ''} in {source}:"
        raise DataError("\n  - ".join([heading, *found]))
    data = data.copy()
    for name, (units, long_name) in (STIMULUS | ANSWER).items():
        if name in data:
            data[name].attrs = {"units": units, "long_name": long_name} | data[name].attrs
    return data


def require(data: xr.Dataset, names: Iterable[str], source: str = "the data set") -> None:
    """Say which variables are missing.

    Raises:
        DataError: lists all that are missing, each with the nearest name that is there.

    >>> require(xr.Dataset({"log_snr": ("trial", [0.0])}), ["logsnr"], "trials.csv")
    Traceback (most recent call last):
    neurodiff.data.schema.DataError: trials.csv has no 'logsnr' (did you mean 'log_snr'? then
    rename it); it has: log_snr
    """
    there = [str(name) for name in data.variables]
    lower = {name.lower(): name for name in there}
    missing = []
    for name in names:
        if name not in data.variables:
            near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
            hint = f" (did you mean {lower[near[0]]!r}? then rename it)" if near else ""
            missing.append(f"{name!r}{hint}")
    if missing:
        raise DataError(
            f"{source} has no {' and no '.join(missing)}; it has: {', '.join(there) or 'nothing'}"
        )


def data_hash(data: xr.Dataset) -> str:
    """SHA-256 of the names, dimensions and values of all variables and coordinates.

    Attributes and storage types do not count, so the hash survives a netCDF round trip.

    >>> data_hash(xr.Dataset({"rt": ("trial", [0.5])}))[:8]
    '861d8cd1'
    """
    digest = hashlib.sha256()
    for name in sorted(map(str, data.variables)):
        variable = data[name].variable
        digest.update(f"{name}\0{variable.dims}\0{variable.shape}\0".encode())
        values = np.asarray(variable.values).ravel()
        if values.dtype.kind in "OUST":
            digest.update("\0".join(map(str, values)).encode())
            continue
        for start in range(0, values.size, 1 << 16):  # pieces that stay in the processor's cache
            # adding 0 makes -0 into 0; one NaN stands for all
            number = values[start : start + (1 << 16)].astype("<f8") + 0.0
            number[np.isnan(number)] = np.nan
            digest.update(number.tobytes())
    return digest.hexdigest()


def _order(name: str) -> int:
    names = [*STIMULUS, "rt", *ANSWER]
    return names.index(name) if name in names else len(names)


def _shape_problems(data: xr.Dataset) -> Iterator[str]:
    if not data.data_vars:
        yield "it holds no variables; wanted a stimulus and an answer, such as logsnr and correct"
    for dim, size in data.sizes.items():
        if size == 0:
            yield f"dimension {dim!r} is empty; wanted at least one row"
        if str(dim) not in DIMS:
            near = difflib.get_close_matches(str(dim), DIMS, n=1)
            to = near[0] if near else "|".join(DIMS)
            yield (
                f"dimension {dim!r} is unknown; wanted one of {', '.join(DIMS)}: "
                f"data.rename({{{dim!r}: {to!r}}})"
            )


def _variable_problems(data: xr.Dataset, name: str, lines: np.ndarray | None) -> Iterator[str]:
    logsnr = name == "logsnr" or name.startswith("logsnr_")
    if not logsnr and name not in STIMULUS | ANSWER:
        return
    variable = data[name]
    if variable.size == 0:
        return
    if variable.dtype.kind not in "biuf":
        bad = ~np.vectorize(_is_number)(variable.values)
        bad = bad if bad.any() else np.ones(variable.shape, bool)
        code = " from 0 to n_choices - 1" if name == "choice" else ""
        yield (
            f"{name}: {str(variable.values[bad][0])!r} at {_where(variable, bad, lines)}; wanted a "
            f"number{code}: recode text, and leave a missing answer empty or NaN"
        )
        return
    yield from _unit_problems(variable, name, logsnr)
    values = variable.values.astype(float)
    stimulus = logsnr or name in STIMULUS
    if stimulus and np.isnan(values).any():
        yield (
            f"{name}: NaN at {_where(variable, np.isnan(values), lines)}; a stimulus is never "
            "missing: fill it in or drop the rows"
            + (" (no noise is inf, no signal is -inf)" if logsnr else "")
        )
    if not logsnr and name != "stimulus_level" and np.isinf(values).any():
        yield (
            f"{name}: infinite at {_where(variable, np.isinf(values), lines)}; wanted finite "
            f"numbers{'' if stimulus else ', NaN for a missing answer'}"
        )
    if logsnr and variable.attrs.get("units") is None and _looks_like_db(values):
        levels = values[np.isfinite(values)]
        yield (
            f"{name}: {levels.min():g} to {levels.max():g} in round steps looks like dB; wanted "
            "nats: name the column snr_db, or multiply by "
            f"ln(10)/10 = {NATS_PER_DB:.4f}; if it is nats, set its attribute units to 'nats'"
        )
    yield from answer_problems(data, variable, values, lines)


def _is_number(value: object) -> bool:
    try:
        float(str(value) or "nan")
    except ValueError:
        return False
    return True


def _unit_problems(variable: xr.DataArray, name: str, logsnr: bool) -> Iterator[str]:
    wanted = "nats" if logsnr else "s" if name in ("rt", "deadline") else None
    got = variable.attrs.get("units")
    if wanted and got is not None and got != wanted and got not in _SAME_UNITS[wanted]:
        fix = {"dB": "multiply by ln(10)/10", "ms": "divide by 1000"}.get(str(got), "convert it")
        yield f"{name}: units are {got!r}; wanted {wanted!r}: {fix} and set units to {wanted!r}"


def _looks_like_db(values: np.ndarray) -> bool:
    """Multiples of 5 over more than 25, or whole numbers over more than 40 (nats: 174 dB)."""
    levels = np.unique(values[np.isfinite(values)])
    if len(levels) < 3 or np.any(levels % 1):
        return False
    span = np.ptp(levels)
    return bool(span > 40 or (span > 25 and not np.any(levels % 5)))


def answer_problems(
    data: xr.Dataset, variable: xr.DataArray, values: np.ndarray, lines: np.ndarray | None = None
) -> Iterator[str]:
    """Answers that are none: reaction times below 0, choices beyond ``n_choices`` (2 by default).

    Args:
        data: of whose attributes the number of choices is.
        variable: an answer.
        values: its values, as floats.
        lines: the line of each row, if the rows are lines of a text file.

    >>> data = xr.Dataset({"choice": ("trial", [0.0, 2.0])})
    >>> next(answer_problems(data, data["choice"], data["choice"].values))[:46]
    'choice: 2 at trial 1 (from 0); wanted a whole '
    """
    name = str(variable.name)
    finite = np.isfinite(values)
    if name == "rt" and finite.any():
        if np.median(values[finite]) > 30:
            yield (
                f"rt: the median is {np.median(values[finite]):g}, which looks like milliseconds; "
                "wanted seconds: divide by 1000"
            )
        if (bad := finite & (values < 0)).any():
            yield (
                f"rt: {values[bad][0]:g} at {_where(variable, bad, lines)}; wanted seconds "
                "from stimulus onset, NaN for a missing answer"
            )
    if name == "correct" and (bad := finite & (values != 0) & (values != 1)).any():
        yield (
            f"correct: {values[bad][0]:g} at {_where(variable, bad, lines)}; wanted 0, 1 or "
            "NaN (no answer)"
        )
    if name == "count" and (bad := finite & ((values < 0) | (values % 1 != 0))).any():
        yield (f"count: {values[bad][0]:g} at {_where(variable, bad, lines)}; wanted 0, 1, 2, …")
    if name == "choice":
        n = int(data.attrs.get("n_choices", 2))
        if (bad := finite & ((values < 0) | (values >= n) | (values % 1 != 0))).any():
            yield (
                f"choice: {values[bad][0]:g} at {_where(variable, bad, lines)}; wanted a "
                f"whole number from 0 to {n - 1}, or NaN (no answer): recode it, or state a "
                "larger set (n_choices)"
            )


def _where(variable: xr.DataArray, bad: np.ndarray, lines: np.ndarray | None, most: int = 5) -> str:
    """The first few places, as lines of the file or as positions along the dimensions."""
    at = np.argwhere(bad)
    rest = f" and {len(at) - most} more" if len(at) > most else ""
    if lines is not None and variable.ndim == 1:
        numbers = ", ".join(str(lines[i]) for (i,) in at[:most])
        return f"line{'s' if len(at) > 1 else ''} {numbers}{rest}"
    names = "/".join(map(str, variable.dims))
    places = ", ".join("/".join(map(str, place)) for place in at[:most])
    return f"{names} {places}{rest} (from 0)"


def _grid_problems(data: xr.Dataset) -> Iterator[str]:
    for dim in ("time", "sample"):
        if dim in data.indexes and data.sizes[dim] > 1:
            if data[dim].dtype.kind not in "iuf":
                yield f"{dim}: holds {data[dim].dtype}; wanted seconds, as numbers"
                continue
            steps = np.diff(data[dim].values.astype(float))
            bad = ~(np.abs(steps - np.median(steps)) <= 1e-3 * np.median(steps))
            if bad.any():
                yield (
                    f"{dim}: the step after {dim} {int(bad.argmax())} (from 0) is "
                    f"{steps[bad][0]:g}, others are {np.median(steps):g}; wanted uniform, "
                    "increasing seconds"
                )
    n_time, n_sample = data.sizes.get("time"), data.sizes.get("sample")
    if n_time and n_sample and n_sample % n_time:
        yield (
            f"sample: {n_sample} samples do not divide into {n_time} time bins; wanted a whole "
            "number of samples in each bin: resample or cut the stimulus"
        )


def _subject_problems(data: xr.Dataset, lines: np.ndarray | None) -> Iterator[str]:
    if "subject" not in data.variables:
        return
    subject = data["subject"]
    if "subject" not in data.coords:
        yield "subject: is a variable; wanted a coordinate: data.set_coords('subject')"
    if subject.dtype.kind not in "OUT":
        yield f"subject: holds {subject.dtype}; wanted text: data['subject'].astype(str)"
    elif (empty := np.isin(subject.values.astype(str), ["", "nan", "None", "n/a"])).any():
        yield f"subject: missing at {_where(subject, empty, lines)}; wanted a name on every row"
