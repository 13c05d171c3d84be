r"""From the pickles of CIFAR-10 and the rows of digits to images, and what people called them.

.. math:: \text{image}[c, h, w] = \text{data}[1024 c + 32 h + w]

A pickle runs what it holds. These files come with a sha256, which is checked before, and the
unpickler admits nothing but an array of numpy.
"""

import pickle
from pathlib import Path

import numpy as np
import xarray as xr

from neurodiff.data.schema import DataError

CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
_ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


class _Numpy(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        """Arrays; anything else is refused."""
        if (module, name) not in _ADMITTED:
            raise DataError(f"the file asks for {module}.{name}; wanted nothing but numpy arrays")
        if name == "_reconstruct":  # where this numpy keeps it
            return np._core.multiarray._reconstruct  # pyright: ignore
        return super().find_class(module, name)


def batch(path: Path) -> dict[bytes, object]:
    """A batch of CIFAR-10: ``data``, ``labels``, by names in bytes.

    Raises:
        DataError: the file is no pickle, or holds more than arrays, lists, text and numbers.
    """
    try:
        with path.open("rb") as stream:
            return _Numpy(stream, encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise DataError(f"{path}: {error}") from None
        raise DataError(f"{path} is no whole batch of CIFAR-10 ({error}): fetch it again") from None


def _pictures(path: Path) -> xr.Dataset:
    found = batch(path)
    image = np.asarray(found[b"data"]).reshape(-1, 3, 32, 32)
    return xr.Dataset(
        {
            "image": (("stimulus", "channel", "height", "width"), image),
            "label": ("stimulus", np.asarray(found[b"labels"])),
        },
        {"category": ("category", np.array(CLASSES))},
    )


def cifar10(files: dict[str, Path], part: str, attrs: dict) -> xr.Dataset:
    """10,000 photographs: ``image`` (stimulus, channel, height, width), 0 to 255, and ``label``."""
    (path,) = files.values()
    return _pictures(path)


def cifar10h(files: dict[str, Path], part: str, attrs: dict) -> xr.Dataset:
    """The test images, and ``choices`` (stimulus, category): how many people chose each class."""
    data = _pictures(files["test_batch"])
    counts = np.load(files["cifar10h-counts.npy"], allow_pickle=False)
    return data.assign(choices=(("stimulus", "category"), counts))


def grey16(image: np.ndarray) -> np.ndarray:
    """Photographs (..., 3, 32, 32) of 0 to 255 as 16×16 of 256 greys: luma, blocks of 2×2, rounded.

    The luma is that of ITU-R BT.601, of the values as they are stored.

    >>> grey16(np.full((1, 3, 32, 32), 7, np.uint8))[0, 0, :3]
    array([7, 7, 7], dtype=uint8)
    """
    luma = np.tensordot(np.array([0.299, 0.587, 0.114]), image, (0, image.ndim - 3))
    blocks = luma.reshape(*luma.shape[:-2], 16, 2, 16, 2).mean((-3, -1))
    return np.rint(blocks).astype(np.uint8)


def digits(files: dict[str, Path], part: str, attrs: dict) -> xr.Dataset:
    """1,797 digits: ``image`` (stimulus, channel, height, width), 0 to 16, and ``label``."""
    (path,) = files.values()
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    image = table[:, :64].reshape(-1, 1, 8, 8)
    return xr.Dataset(
        {
            "image": (("stimulus", "channel", "height", "width"), image),
            "label": ("stimulus", table[:, 64]),
        }
    )
