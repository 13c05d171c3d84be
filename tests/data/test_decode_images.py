"""Images as their files have them, and an unpickler that runs nothing."""

import pickle

import numpy as np
import pytest
from toys import needs

from neurodiff.data.decode_images import CLASSES, batch
from neurodiff.data.schema import DataError


def test_images_are_rows_of_rows_of_three_colours():
    data = needs("cifar10/1")
    assert data["image"].shape == (10_000, 3, 32, 32)
    assert data["image"].dtype == np.uint8
    assert np.bincount(data["label"].values).min() > 900
    # photographs: neighbours are alike along both sides, colours of a place too
    image = data["image"].values[:500].astype(float)
    for axis in (2, 3):
        apart = np.abs(np.diff(image, axis=axis)).mean()
        assert apart < 0.4 * np.abs(image - image.mean()).mean()
    assert np.corrcoef(image[:, 0].ravel(), image[:, 1].ravel())[0, 1] > 0.85


def test_people_agree_with_labels_nearly_always():
    data = needs("cifar10h")
    assert tuple(data["category"].values) == CLASSES
    people = data["choices"].sum("category")
    assert (int(people.min()), int(people.max())) == (47, 63)
    agreed = data["choices"].values.argmax(1) == data["label"].values
    assert agreed.mean() == pytest.approx(0.9921, abs=5e-5)


class Runs:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps(Runs(), protocol=2),
            r"asks for __builtin__\.print; wanted nothing but numpy",
        ),
        (pickle.dumps({b"data": np.zeros(3)}, protocol=4)[:-20], "no whole batch of CIFAR-10"),
        (b"", "no whole batch"),
    ],
)
def test_what_is_no_batch_is_refused_and_nothing_runs(tmp_path, content, message, capsys):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        batch(path)
    assert not capsys.readouterr().out


def test_an_array_comes_through(tmp_path):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": np.arange(6).reshape(2, 3)}, protocol=4))
    assert np.asarray(batch(path)[b"data"]).tolist() == [[0, 1, 2], [3, 4, 5]]
