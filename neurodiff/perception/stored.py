r"""Tables of evidence on disk: what each one is of, whether it is whole, and how it is written.

.. math:: \text{of} = \mathrm{sha256}(\text{denoiser}, x, λ_s, k, λ, \text{noise})

A table takes hours, so it is read again where it is there; but one of other weights, stimuli,
labels, levels or noise never is.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from torch import Tensor, nn

from neurodiff.diffusion import networks
from neurodiff.diffusion.denoiser import Denoiser

_DIMS = ("stimulus", "label", "logsnr")


def digest(denoiser: Denoiser, *of: Tensor | Sequence[int] | int | float | str) -> str:
    """Of the weights, the plain numbers, the stimuli, the labels, the grid and the noise."""
    made = hashlib.sha256(repr(denoiser).encode())
    for value in [*denoiser.state_dict().values(), *of, *_plain(denoiser)]:
        values = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        made.update(f"{values.dtype}{values.shape}".encode() + values.tobytes())
    return made.hexdigest()


def _plain(denoiser: Denoiser) -> list[str]:
    """Numbers and words that are attributes, such as a guide's scale, unless ``repr`` says them."""
    found = []
    for where, module in denoiser.named_modules():
        if type(module).__module__.startswith(("torch.", networks.__name__)):
            continue  # their weights tell; and tables of them that exist stay readable
        for name in sorted(vars(module).keys() - vars(nn.Module()).keys()):
            value = vars(module)[name]
            says = f"{name}={value!r}"
            if isinstance(value, int | float | str) and says not in module.extra_repr():
                found.append(f"{where}.{says}")
    return found


def write(table: xr.Dataset, path: Path) -> None:
    """The file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    table.to_netcdf(aside, engine="h5netcdf")
    aside.replace(path)


def even(logsnr: np.ndarray) -> bool:
    """Whether there are two values or more, and they increase by equal steps."""
    step = np.diff(logsnr.astype(float), axis=-1)
    rises = step.size > 0 and bool((np.isfinite(step) & (step > 0)).all())
    return rises and np.allclose(step, step[:1], rtol=1e-3)


def read_table(path: Path | str) -> xr.Dataset:
    """A table that :func:`~neurodiff.perception.evidence.evidence` has left, or one made like it.

    Returns:
        ``error`` (stimulus, label, logsnr) and ``width`` (stimulus, logsnr), in whatever order the
        file has them.

    Raises:
        ValueError: The file is missing, broken, or holds something else: other dimensions, levels
            that do not rise by equal steps, a stimulus twice.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {what}; wanted a table of evidence, a netCDF file")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as file:
            table = file.load()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no whole table ({error}): remove it to begin anew") from error
    if lacking := {"error", "width"} - set(map(str, table)):
        raise ValueError(
            f"{path} has no {' and no '.join(sorted(lacking))} (it holds: "
            f"{', '.join(map(str, table.variables))}); wanted a table of evidence"
        )
    for name, wanted in {"error": _DIMS, "width": _DIMS[::2]}.items():
        if set(table[name].dims) != set(wanted) or 0 in table[name].shape:
            raise ValueError(
                f"{path}: {name} is {dict(table[name].sizes)}, wanted "
                f"({', '.join(wanted)}), each at least 1"
            )
    if "logsnr" not in table.coords or not even(table["logsnr"].values):
        got = table["logsnr"].values.tolist() if "logsnr" in table.coords else "none"
        raise ValueError(
            f"{path}: got the logsnr {got}, wanted the middles of the cells, nats: at least two, "
            "increasing by equal steps (table.sortby('logsnr') puts them in order)"
        )
    stimulus, count = np.unique(table["stimulus"].values, return_counts=True)
    if (count > 1).any():
        raise ValueError(
            f"{path}: stimulus {stimulus[count.argmax()]} occurs {count.max()} times, wanted each "
            "once: of tables put together, number the stimuli anew"
        )
    return table.transpose(*_DIMS, ...)


def read(path: Path, wanted: str) -> xr.Dataset:
    """A table of what has that digest, and no other."""
    table = read_table(path)
    if table.attrs.get("of") != wanted:
        raise ValueError(
            f"{path} is a table of other weights, stimuli, labels, levels or noise (its hash is "
            f"{str(table.attrs.get('of'))[:12]}, wanted {wanted[:12]}): name another file"
        )
    return table
