r"""Choices and reaction times as one number a trial, the way that first passage gives them.

.. math:: \text{signed rt} = \begin{cases} +\text{rt} & \text{choice 1} \\
          -\text{rt} & \text{choice 0} \\ \infty & \text{no answer by the deadline} \end{cases}

``strength`` is signed: positive where choice 1 is right; of a heading it is the sine. Data that
hold ``correct`` and an unsigned strength are read in accuracy coding: choice 1 is the right answer,
and strengths are positive. Data may have a ``deadline`` of each trial: a missing time is then no
answer by it, and a time after it is an error. Where a trial has a time and no choice (a coin was
tossed at strength 0) the time alone counts: ``choice_known`` is 0.
"""

import numpy as np
import xarray as xr

from neurodiff.data.schema import DataError, check, require

#: what a signed strength may be called, the first that is there
STRENGTHS = ("strength", "coherence", "contrast")


def choice_rt(
    data: xr.Dataset, strength: str | None = None, deadline: float | None = None
) -> xr.Dataset:
    """Add ``signed_rt``, ``choice_known`` and ``strength``.

    Args:
        data: One study with ``rt`` in seconds and ``choice`` or ``correct``.
        strength: Variable that holds the strength of the stimulus; by default ``strength``, the
            sine of ``heading`` in degrees, ``coherence`` or ``contrast``.
        deadline: Seconds after which no answer counts: later and missing times become "no answer",
            which is data. Without a deadline a missing time says nothing. A variable ``deadline``
            of the data holds each trial's own, in place of this.

    Raises:
        DataError: If a variable is missing, times look like milliseconds or are not positive, or a
            trial's time is after its own deadline.

    >>> data = xr.Dataset({"rt": ("trial", [0.5, 0.7]), "choice": ("trial", [1.0, 0.0]),
    ...                    "coherence": ("trial", [0.1, -0.1])})
    >>> choice_rt(data)["signed_rt"].values
    array([ 0.5, -0.7])
    """
    data = check(data)
    require(data, ["rt"])
    if "choice" not in data and "correct" not in data and "response" in data:  # as HSSM has it
        data = check(data.assign(choice=(data["response"] > 0).where(data["response"].notnull())))
    if strength is None and "strength" not in data and "heading" in data:
        require(data, ["heading"])
        data = data.assign(strength=np.sin(np.deg2rad(data["heading"].astype(float))))
    if strength is None:
        strength = next((name for name in STRENGTHS if name in data), "strength")
    require(data, [strength])
    size, rt = data[strength].astype(float), data["rt"].values.astype(float)
    if (bad := rt <= 0).any():
        raise DataError(f"rt: {rt[bad][0]:g} at trial {int(bad.argmax())} (from 0); wanted above 0")
    if "choice" in data and bool((size < 0).any()):
        upper = data["choice"].values.astype(float)
    elif "correct" in data:
        size, upper = abs(size), data["correct"].values.astype(float)
        if "choice" in data:  # where nothing is right, a choice says nothing in this coding
            upper = np.where(size == 0, np.nan, upper)
    else:
        require(data, ["choice"])
        upper = data["choice"].values.astype(float)
    limit = {} if deadline is None else {"deadline": float(deadline)}
    latest = deadline
    if "deadline" in data.data_vars:
        if deadline is not None:
            raise DataError(
                f"got a deadline of {deadline:g} s for all trials, but the data have a variable "
                "'deadline' with each trial's own: leave out one of them"
            )
        latest = _own_deadlines(data, rt)
    known = np.isfinite(upper)
    signed = np.where(known & (upper == 0), -rt, rt)
    if latest is not None:
        signed = np.where(np.isnan(rt) | (rt > latest), np.inf, signed)
    new = {"strength": size.values + 0.0, "signed_rt": signed, "choice_known": known.astype(float)}
    units = {"strength": data[strength].attrs.get("units", "1"), "signed_rt": "s"}
    return data.assign(
        {name: ("trial", values, {"units": units.get(name, "1")}) for name, values in new.items()}
    ).assign_attrs(limit)


def _own_deadlines(data: xr.Dataset, rt: np.ndarray) -> np.ndarray:
    own = data["deadline"].values.astype(float)
    if (bad := ~(np.isfinite(own) & (own > 0))).any():
        raise DataError(
            f"deadline: {own[bad][0]:g} at trial {int(bad.argmax())} (from 0); wanted seconds "
            "above 0 in every trial: drop trials that had none, or give the longest time you waited"
        )
    if (bad := rt > own).any():
        raise DataError(
            f"rt: {rt[bad][0]:g} s at trial {int(bad.argmax())} (from 0) is after its deadline of "
            f"{own[bad][0]:g} s ({int(bad.sum())} of {len(rt)} are): mend the deadline, or empty "
            "the time, which then counts as no answer"
        )
    return own
