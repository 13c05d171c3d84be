"""Every card, and the loaders against the tables that describe the files (accuracy, rates, times)."""

import numpy as np
import pytest

from neurodiff.data import datasets
from neurodiff.data.schema import DataError


def load(name):
    try:
        return datasets.load(name)
    except DataError as error:
        if "not on this machine" in str(error) or "not installed" in str(error):
            pytest.skip(f"data set {name} is not here: {error}")
        raise


def by_level(data, variable, level):
    return data[variable].groupby(data[level]).mean()


@pytest.mark.parametrize(("part", "spikes", "lag"), [("1", 929, 25), ("2", 868, 28)])
def test_grasshopper(part, spikes, lag):
    data = load(f"grasshopper-receptor/{part}")
    assert data.sizes == {"time": 10_000, "sample": 40_000}
    count = data["count"].values
    assert count.sum() == spikes
    assert set(count) == {0, 1}
    assert data["block"].values.max() == 19
    assert np.bincount(data["block"]).tolist() == [500] * 20
    power = data["power"].values
    # logsnr of bin i is the mean power over samples [4i - 25, 4i - 21)
    for i in (7, 1234, 9999):
        wanted = np.log(power[4 * i - 25 : 4 * i - 21].mean() / 4e-10)
        assert data["logsnr"].values[i] == pytest.approx(wanted, abs=1e-12)
    # the lag at which log power and spikes correlate most
    score = [
        np.corrcoef(np.roll(np.log(power), k).reshape(-1, 4).mean(1)[20:], count[20:])[0, 1]
        for k in range(60)
    ]
    assert int(np.argmax(score)) == lag
    assert data.attrs["latency"] == 25 * 2.5e-4


def test_geirhos_noise_against_published_accuracy():
    data = load("geirhos2018-degraded-objects/noise")
    people = data.isel(trial=data["observer_kind"].values == "human")
    assert people.sizes["trial"] == 6400
    assert len(set(people["subject"].values)) == 5
    # the published table scores no answer as wrong
    accuracy = by_level(people.fillna({"correct": 0}), "correct", "stimulus_level")
    published = [0.805, 0.796, 0.781, 0.751, 0.609, 0.456, 0.168, 0.060]
    np.testing.assert_allclose(accuracy, published, atol=5e-4)
