r"""From a zip of photographs and an array of counts to units that saw the same stimuli.

.. math:: \text{mean\_count}[s, u] = \frac{1}{R_s} \sum_r \text{count}[s, u, r]

Means over repeats are not counts: they are no whole numbers, and their variance is that of counts
over R. Where single repeats were kept, a repeat that was not shown is NaN.
"""

import io
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import xarray as xr
from PIL import Image, UnidentifiedImageError

from neurodiff.data.schema import DataError


def photographs(path: Path) -> np.ndarray:
    """The JPEGs of a zip in the order of their names: (stimulus, channel, height, width), 0 to 255.

    Raises:
        DataError: no whole zip, no photograph in it, one that cannot be read, several sizes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if _is_photograph(n))
            found = [_decoded(archive.read(name), f"{path}: {name}") for name in names]
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is no whole zip ({error}): fetch it again") from None
    if not found:
        raise DataError(f"{path} holds no .jpg; wanted one for each stimulus")
    if len(sizes := {f.shape for f in found}) > 1:
        raise DataError(f"{path} holds photographs of {sorted(sizes)}; wanted one size")
    return np.stack(found).transpose(0, 3, 1, 2)


def _is_photograph(name: str) -> bool:
    """The archives of some systems hold hidden copies beside each file."""
    place = PurePosixPath(name)
    return place.suffix.lower() in (".jpg", ".jpeg") and place.parts[0] != "__MACOSX"


def _decoded(content: bytes, where: str) -> np.ndarray:
    try:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{where} is no photograph ({error})") from None


def cowley(files: dict[str, Path], part: str, attrs: dict) -> xr.Dataset:
    """``image`` and ``mean_count`` (stimulus, unit) in 100 ms; ``count`` of repeats if kept."""
    image = photographs(files[f"images_{part}.zip"])
    mean = np.load(files[f"averaged/responses_{part}.npy"], allow_pickle=False)
    if mean.shape[1] != len(image):
        raise DataError(
            f"{part}: {mean.shape[1]} responses for {len(image)} images; wanted as many"
        )
    data = xr.Dataset(
        {
            "image": (("stimulus", "channel", "height", "width"), image),
            "mean_count": (("stimulus", "unit"), mean.T),
        },
        {"unit": [f"{part}-{k}" for k in range(len(mean))]},
    )
    single = files.get(f"raw/responses_{part}.npy")
    if single is not None:
        counts = np.load(single, allow_pickle=False)
        data["count"] = (("stimulus", "unit", "repeat"), counts.transpose(1, 0, 2))
    return data
