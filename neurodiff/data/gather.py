"""What a command's DATA names: a data set, a part of it, a file, or a pattern of files.

Everything is read before anything runs. Of several parts or files, those that cannot be read are
reported beside the others; a single one that cannot is an error.
"""

import glob
from collections.abc import Callable
from pathlib import Path

import xarray as xr

from neurodiff.data.datasets import card, load
from neurodiff.data.read import read
from neurodiff.data.schema import DataError


def gather(
    data: str, n_choices: int | None = None, observers: str = "human"
) -> tuple[list[xr.Dataset], dict[str, str]]:
    r"""Load every part that a name or a pattern stands for.

    Args:
        data: A data set's name (all of its parts), name/part, a path, or a pattern of paths.
        n_choices: The number of alternatives in files.
        observers: ``human``, ``network`` or ``all``: whom to keep where a set holds both. Who was
            kept is in the attribute ``observers``.

    Returns:
        The parts, with different names in their attribute ``name``, and for each that could not be
        read the reason.

    Raises:
        DataError: If nothing could be read.

    >>> folder = getfixture("tmp_path")
    >>> for name in ("a", "b"):
    ...     _ = (folder / f"{name}.csv").write_text("logsnr,correct\n0,1\n")
    >>> parts, unread = gather(f"{folder}/*.csv")
    >>> [part.attrs["name"] for part in parts], unread
    (['a', 'b'], {})
    """
    parts, unread = [], {}
    for name, get in _sources(data, n_choices).items():
        try:
            # a copy: what pandas hands out cannot be written to, of which torch warns
            part = get().copy(deep=True).assign_attrs(name=name)
            parts.append(_keep(part, observers))
        except DataError as error:
            unread[name] = str(error)
    if not parts:
        raise DataError("\n".join(unread.values()))
    return parts, unread


def _sources(data: str, n_choices: int | None) -> dict[str, Callable[[], xr.Dataset]]:
    """The name of each part, and what reads it."""
    path = Path(data)
    pattern = any(c in data for c in "*?[") and not path.exists()
    if pattern or path.exists() or path.suffix:
        paths = sorted(glob.glob(data, recursive=True)) if pattern else [data]
        if not paths:
            raise DataError(f"no file matches {data!r} (looked from {Path.cwd()})")
        stems = [Path(p).stem for p in paths]
        names = stems if len(set(stems)) == len(stems) else paths
        return {n: lambda p=p: read(p, n_choices) for n, p in zip(names, paths, strict=True)}
    base, _, part = data.partition("/")
    names = [data] if part or not card(base).parts else [f"{base}/{p}" for p in card(base).parts]
    return {name: lambda name=name: load(name) for name in names}


def _keep(part: xr.Dataset, observers: str) -> xr.Dataset:
    """People, networks or both, where a data set holds both."""
    if "observer_kind" not in part.coords or observers == "all":
        return part
    keep = part["observer_kind"].values == observers
    name = str(part.attrs["name"])
    if not keep.any():
        found = ", ".join(sorted(set(part["observer_kind"].values.astype(str))))
        raise DataError(f"{name} holds no {observers!r} observers; it holds: {found}")
    label = name if observers == "human" else f"{name} ({observers})"
    return part.isel(trial=keep).assign_attrs(name=label, observers=observers)
