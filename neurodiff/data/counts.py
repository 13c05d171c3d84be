r"""Counts of each answer to a stimulus → one row an answer.

.. math:: n_{ik} \text{ answers } k \text{ to stimulus } i, \qquad \sum_k n_{ik} = N_i

Equal rows are computed once afterwards with their multiplicity, so that nothing is lost by it.
"""

import numpy as np
import pandas as pd
import xarray as xr

from neurodiff.data.schema import DataError


def judgements(data: xr.Dataset, labels: int) -> xr.Dataset:
    """A row for every answer, where the data count them.

    Args:
        data: ``choices`` (stimulus, category), how many gave each answer, with any dimension more
            (subject); or rows of ``shown``, ``choice`` and ``count`` along ``trial``. ``trials``,
            of each stimulus or row, is how many answers the stimulus was given in all. Without a
            coordinate ``stimulus`` stimuli are numbered from 0. Whatever else is returned as it is.
        labels: How many answers there are.

    Returns:
        ``shown`` and ``choice`` along ``trial``, and what else the rows had.

    Raises:
        DataError: If there are other categories than labels, a count is no whole number from 0, or
            counts do not sum to the stated trials.

    >>> data = xr.Dataset({"choices": (("stimulus", "category"), [[1, 2], [0, 1]])})
    >>> rows = judgements(data, 2)
    >>> rows["shown"].values, rows["choice"].values
    (array([0., 0., 0., 1.]), array([0., 1., 1., 1.]))
    >>> judgements(data.assign(trials=("stimulus", [3, 2])), 2)
    Traceback (most recent call last):
    neurodiff.data.schema.DataError: stimulus 1: counts sum to 1, wanted the 2 that 'trials' states:
    give every answer, or leave 'trials' out
    """
    by = ["shown", *(["subject"] if "subject" in data.coords else [])]
    if "choices" in data:
        stated = data["trials"].dims if "trials" in data else ()
        by = ["shown", *(str(dim) for dim in stated if dim != "stimulus")]
        data = _rows(data, labels)
    elif not ({"shown", "choice", "count"} <= set(data) and data["count"].dims == ("trial",)):
        return data
    count = data["count"].values.astype(float)
    if (bad := ~(np.isfinite(count) & (count >= 0) & (count % 1 == 0))).any():
        shown, choice = (_plain(data[name].values[bad][0]) for name in ("shown", "choice"))
        raise DataError(
            f"count: {count[bad][0]:g} of choice {choice} to stimulus {shown}; wanted a whole "
            "number from 0"
        )
    if "trials" in data:
        frame = pd.DataFrame({n: data[n].values for n in (*by, "count", "trials")})
        frame["sum"] = frame.groupby(by)["count"].transform("sum")
        if len(off := frame[frame["sum"] != frame["trials"]]):
            row = off.iloc[0]
            who = f" by {', '.join(str(row[name]) for name in by[1:])}" if len(by) > 1 else ""
            raise DataError(
                f"stimulus {_plain(row['shown'])}{who}: counts sum to {row['sum']:g}, wanted the "
                f"{row['trials']:g} that 'trials' states: give every answer, or leave 'trials' out"
            )
    each = np.repeat(np.arange(len(count)), count.astype(int))
    return data.drop_vars(["count", "trials"], errors="ignore").isel(trial=each)


def _plain(value: object) -> str:
    """A whole number as one."""
    return str(value).removesuffix(".0")


def _rows(data: xr.Dataset, labels: int) -> xr.Dataset:
    """A row for every stimulus and category, with its count."""
    if "category" not in data["choices"].dims or "stimulus" not in data["choices"].dims:
        raise DataError(f"choices: has {data['choices'].dims}; wanted (stimulus, category)")
    if data.sizes["category"] != labels:
        raise DataError(
            f"choices: counts {data.sizes['category']} categories; wanted {labels}, the labels of "
            "the table of evidence"
        )
    names = ["choices", *(["trials"] if "trials" in data else [])]
    own = data[names]
    # numbers may be in another order; of names the table of evidence knows nothing
    if "category" not in own.coords or set(own["category"].values.tolist()) != {*range(labels)}:
        own = own.assign_coords(category=np.arange(labels))
    if "stimulus" not in own.coords:
        own = own.assign_coords(stimulus=np.arange(own.sizes["stimulus"]))
    if own["stimulus"].dtype.kind not in "iuf":
        raise DataError(
            f"stimulus: is {str(own['stimulus'].values[0])!r}; wanted numbers, those that the "
            "table of evidence has"
        )
    other = [str(dim) for dim in own["choices"].dims if dim not in ("stimulus", "category")]
    frame = own.to_dataframe(dim_order=["stimulus", *other, "category"]).reset_index()
    columns = {"shown": frame["stimulus"] * 1.0, "choice": frame["category"] * 1.0}
    columns |= {"count": frame["choices"]}
    columns |= {"trials": frame["trials"]} if "trials" in frame else {}
    rows = xr.Dataset({name: ("trial", column.to_numpy()) for name, column in columns.items()})
    rows = rows.assign_coords({dim: ("trial", frame[dim].to_numpy()) for dim in other})
    return rows.assign_attrs(data.attrs)
