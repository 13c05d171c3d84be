"""Units and photographs of V4, and zips that hold none."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from toys import needs

from neurodiff.data.decode_population import photographs
from neurodiff.data.schema import DataError


@pytest.mark.parametrize(
    ("part", "units", "stimuli"),
    [("190923", 33, 1200), ("201025", 89, 1200), ("210621", 51, 1200), ("210325", 50, 640)],
)
def test_as_many_responses_as_photographs(part, units, stimuli):
    data = needs(f"cowley2023-macaque-v4/{part}")
    assert data["image"].shape == (stimuli, 3, 112, 112)
    assert data["image"].dtype == np.uint8
    assert data["mean_count"].shape == (stimuli, units)
    assert ("count" in data) == (part == "210325")


def test_means_are_of_the_repeats_that_were_shown():
    data = needs("cowley2023-macaque-v4/210325")
    assert np.allclose(data["count"].mean("repeat"), data["mean_count"])
    assert float(np.isnan(data["count"]).mean()) == pytest.approx(0.244, abs=5e-4)


def _zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _jpeg(value, side=8):
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (value,) * 3).save(stream, "JPEG", quality=100)
    return stream.getvalue()


def test_photographs_come_in_the_order_of_their_names(tmp_path):
    files = {"a/image2.jpg": _jpeg(200), "a/image1.jpg": _jpeg(20), "a/notes.txt": b"no",
             "__MACOSX/a/._image1.jpg": b"no"}  # fmt: skip
    found = photographs(_zip(tmp_path / "some.zip", files))
    assert found.shape == (2, 3, 8, 8)
    assert found.mean((1, 2, 3)) == pytest.approx([20, 200], abs=1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": b"no"}, r"holds no \.jpg"),
        ({"1.jpg": b"no"}, r"1\.jpg is no photograph"),
        ({"1.jpg": _jpeg(9), "2.jpg": _jpeg(9, 16)}, "wanted one size"),
        (None, "no whole zip"),
    ],
)
def test_what_are_no_photographs_is_said(tmp_path, files, message):
    path = tmp_path / "some.zip"
    if files is None:
        path.write_bytes(b"PK")
    else:
        _zip(path, files)
    with pytest.raises(DataError, match=message):
        photographs(path)
