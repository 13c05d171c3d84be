"""Images of every origin end in [-1, 1], and what is wrong with them is said."""

import numpy as np
import pytest
import xarray as xr
from sklearn.datasets import load_digits
from toys import needs

import neurodiff as nd
from neurodiff.data.images import images
from neurodiff.data.schema import DataError


def test_digits_are_those_of_scikit_learn():
    known, data = load_digits(), nd.load("digits")
    assert np.array_equal(data["image"].values[:, 0], known.images)
    assert np.array_equal(data["label"].values, known.target)
    x, label = images("digits")
    assert np.abs(x[:, 0] - (2 * (known.images + 0.5) / 17 - 1)).max() < 1e-6
    assert np.array_equal(label, known.target)


def test_photographs_are_of_256_levels():
    raw = needs("cifar10/1")["image"].values
    x, label = images("cifar10/1")
    assert (x.dtype, x.shape, len(label)) == (np.float32, raw.shape, 10_000)
    assert np.array_equal(np.round((x + 1) * 128 - 0.5), raw)


def test_files_of_ones_own(tmp_path):
    grey = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    np.save(tmp_path / "x.npy", grey)
    np.savez(tmp_path / "x.npz", image=grey[:, None] / 128.0 - 1, label=np.array([1.0, 0.0]))
    held = {
        "image": (("stimulus", "height", "width"), grey, {"levels": 32}),
        "label": ("stimulus", [3, 0]),
    }
    xr.Dataset(held).to_netcdf(tmp_path / "x.nc")
    x, label = images(str(tmp_path / "x.npy"))
    assert label is None
    assert np.allclose(x[:, 0], 2 * (grey + 0.5) / 256 - 1)
    x, label = images(str(tmp_path / "x.npz"))
    assert np.allclose(x[:, 0], grey / 128 - 1)
    assert label.tolist() == [1, 0]
    x, label = images(str(tmp_path / "x.nc"))
    assert np.allclose(x[:, 0], 2 * (grey + 0.5) / 32 - 1)
    assert label.tolist() == [3, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"picture": np.zeros((2, 4, 4))}, "holds picture; wanted an array 'image'"),
        ({"image": np.zeros((2, 16))}, r"shape \(2, 16\); wanted"),
        ({"image": np.zeros((0, 4, 4))}, r"shape \(0, 4, 4\)"),
        (
            {"image": np.full((2, 4, 4), 255.0)},
            "are 255 to 255; wanted whole numbers from 0 to 255",
        ),
        ({"image": np.full((2, 4, 4), np.nan)}, "are nan to nan"),
        ({"image": np.full((2, 4, 4), 300)}, "are 300 to 300"),
        ({"image": np.zeros((2, 4, 4), bool)}, "of bool; wanted integers"),
        ({"image": np.zeros((2, 4, 4)), "label": np.zeros(3)}, r"\(3,\) labels for 2 images"),
        ({"image": np.zeros((2, 4, 4)), "label": np.array([0, 0.5])}, "labels are 0.0 to 0.5"),
        ({"image": np.array([None])}, "no whole file of numpy arrays"),
    ],
)
def test_what_is_no_images_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        images(str(tmp_path / "x.npz"))


def test_files_that_are_not_there_or_broken(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        images(str(tmp_path / "x.npy"))
    np.savez(tmp_path / "x.npz", image=np.zeros((2, 4, 4)))
    whole = (tmp_path / "x.npz").read_bytes()
    for size in (0, 10, len(whole) // 2):
        for suffix in ("npz", "npy"):
            (tmp_path / f"x.{suffix}").write_bytes(whole[:size])
            with pytest.raises(DataError, match="no whole file"):
                images(str(tmp_path / f"x.{suffix}"))
    xr.Dataset({"logsnr": ("trial", [0.0])}).to_netcdf(tmp_path / "x.nc")
    with pytest.raises(DataError, match="no variable 'image'; it holds logsnr"):
        images(str(tmp_path / "x.nc"))
    with pytest.raises(DataError, match="did you mean digits"):
        images("digit")
