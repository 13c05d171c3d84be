r"""Images from wherever they are, as a denoiser is trained on them.

.. math:: x = 2\,\frac{k + ½}{K} - 1, \qquad k = 0, \dots, K - 1

K is the attribute ``levels`` of the variable ``image``, 256 where there is none. What is not of
integers has to be in [-1, 1] already.
"""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import xarray as xr

from neurodiff.data.gather import gather
from neurodiff.data.schema import DataError


def images(source: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Read images, and their classes where there are some.

    Args:
        source: a data set's name or name/part, a .nc file with the variable ``image`` (and
            ``label``, if there are classes), a .npz file of such arrays, or a .npy file of images.

    Returns:
        (image, channel, height, width), float32 in [-1, 1]; and whole numbers from 0, or None.

    Raises:
        DataError: no images there, or of another shape, range or number than their labels.

    >>> x, label = images("digits")
    >>> x.shape, float(x.min()), label[:3]
    ((1797, 1, 8, 8), -0.9411764740943909, array([0, 1, 2]))
    """
    if source.endswith((".npy", ".npz")):
        parts = [_arrays(Path(source))]
    else:
        found, unread = gather(source, observers="all")
        if unread:
            raise DataError("\n".join(unread.values()))
        parts = [_variables(part, source) for part in found]
    values = [_scaled(*part[:2], source) for part in parts]
    if len({v.shape[1:] for v in values}) > 1:
        raise DataError(f"{source} has images of several shapes; wanted one: name one part")
    x = np.concatenate(values)
    labels = [label for _, _, label in parts if label is not None]
    if len(labels) < len(parts):
        return x, None
    label = np.concatenate(labels)
    if label.shape != (len(x),):
        raise DataError(f"{source} has {label.shape} labels for {len(x)} images; wanted one each")
    if not np.array_equal(label, label.astype(np.int64)) or label.min() < 0:
        raise DataError(f"{source}: labels are {label.min()} to {label.max()}, wanted 0, 1, 2 …")
    return x, label.astype(np.int64)


def _arrays(path: Path) -> tuple[np.ndarray, int, np.ndarray | None]:
    try:
        with path.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            arrays = {k: found[k] for k in found} if path.suffix == ".npz" else {"image": found}
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file (from {Path.cwd()})") from error
    except (ValueError, EOFError, BadZipFile, TypeError) as error:
        raise DataError(f"{path} is no whole file of numpy arrays ({error})") from error
    if "image" not in arrays:
        raise DataError(f"{path} holds {', '.join(arrays) or 'nothing'}; wanted an array 'image'")
    return arrays["image"], 256, arrays.get("label")


def _variables(part: xr.Dataset, source: str) -> tuple[np.ndarray, int, np.ndarray | None]:
    if "image" not in part:
        held = ", ".join(map(str, part.variables)) or "nothing"
        raise DataError(f"{source} has no variable 'image'; it holds {held}")
    label = part["label"].values if "label" in part else None
    return part["image"].values, int(part["image"].attrs.get("levels", 256)), label


def _scaled(image: np.ndarray, levels: int, source: str) -> np.ndarray:
    shape = image.shape
    if image.ndim == 3:
        image = image[:, None]
    if image.ndim != 4 or not image.size:
        raise DataError(
            f"{source}: images have shape {shape}; wanted (image, height, width) or "
            "(image, channel, height, width)"
        )
    if image.dtype.kind in "iu":
        low, high, most = int(image.min()), int(image.max()), levels - 1
        x = (2 * (image.astype(np.float32) + 0.5) / levels - 1).astype(np.float32)
    elif image.dtype.kind == "f":
        low, high, most = float(image.min()), float(image.max()), 1
        x = image.astype(np.float32)
    else:
        raise DataError(f"{source}: images are of {image.dtype}; wanted integers or floats")
    least = -1 if image.dtype.kind == "f" else 0
    if not (low >= least and high <= most):
        hint = f"whole numbers from 0 to {levels - 1}, or floats in [-1, 1]"
        raise DataError(f"{source}: images are {low:g} to {high:g}; wanted {hint}")
    return x
