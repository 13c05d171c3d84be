"""What each loader returns, against the tables that describe the files."""

from functools import cache

import numpy as np
import pytest

from neurodiff.data import datasets, decode
from neurodiff.data.read import read
from neurodiff.data.schema import DataError, data_hash

ALL = [
    name + (f"/{part}" if part else "")
    for name in decode.DECODERS
    for part in datasets.card(name).parts or ("",)
]


@cache
def load(name):
    try:
        return datasets.load(name)
    except DataError as error:
        if "not on this machine" in str(error) or "not installed" in str(error):
            pytest.skip(f"the files of data set {name} are neither here nor reachable")
        raise


def mean(data, variable, *by):
    """Mean of a variable at each level of others, in their order."""
    frame = data[[variable, *by]].to_dataframe()
    return frame.groupby(list(by))[variable].mean()


def humans(experiment):
    """The people of an experiment; the published tables score no answer as wrong."""
    data = load(f"geirhos2018-degraded-objects/{experiment}")
    return data.isel(trial=data["observer_kind"].values == "human").fillna({"correct": 0})


@pytest.mark.parametrize("name", ALL)
def test_loaded(name, tmp_path):
    data = load(name)
    assert all(data[variable].attrs["units"] for variable in data.variables)
    assert data.attrs["name"] == name
    assert data.attrs["licence"]
    assert data.attrs["data_hash"] == data_hash(data)
    data.to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    again = read(tmp_path / "data.nc")
    assert data_hash(again) == data.attrs["data_hash"]
    assert again.attrs == data.attrs
    for variable in data.variables:
        assert again[variable].attrs == data[variable].attrs


@pytest.mark.parametrize(("part", "spikes", "lag"), [("1", 929, 25), ("2", 868, 28)])
def test_grasshopper(part, spikes, lag):
    data = load(f"grasshopper-receptor/{part}")
    assert data.sizes == {"time": 10_000, "sample": 40_000}
    count = data["count"].values
    assert count.sum() == spikes
    assert set(count) == {0, 1}
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


GEIRHOS = {
    "noise": [0.805, 0.796, 0.781, 0.751, 0.609, 0.456, 0.168, 0.060],
    "contrast-png": [0.083, 0.310, 0.546, 0.760, 0.819, 0.875, 0.881, 0.917],
    "lowpass": [0.859, 0.808, 0.718, 0.583, 0.485, 0.312, 0.185, 0.077],
    "phase-scrambling": [0.836, 0.815, 0.738, 0.574, 0.308, 0.092, 0.070],
}


@pytest.mark.parametrize("experiment", GEIRHOS)
def test_geirhos_accuracy_by_level(experiment):
    accuracy = mean(humans(experiment), "correct", "stimulus_level")
    np.testing.assert_allclose(accuracy, GEIRHOS[experiment], atol=5.1e-4)


@pytest.mark.parametrize(
    ("experiment", "trials", "people", "levels", "accuracy"),
    [
        ("colour", 3840, 3, 2, 0.876),
        ("contrast", 6400, 5, 8, 0.593),
        ("contrast-png", 3840, 3, 8, 0.649),
        ("eidolon", 19200, 5, 24, 0.457),
        ("false-colour", 6720, 6, 2, 0.856),
        ("highpass", 7680, 6, 8, 0.505),
        ("lowpass", 7680, 6, 8, 0.504),
        ("noise", 6400, 5, 8, 0.553),
        ("phase-scrambling", 6720, 6, 7, 0.490),
        ("power-equalisation", 6720, 6, 2, 0.767),
        ("rotation", 7680, 6, 4, 0.797),
    ],
)
def test_geirhos_experiments(experiment, trials, people, levels, accuracy):
    data = humans(experiment)
    assert data.sizes["trial"] == trials
    assert len(np.unique(data["subject"])) == people
    assert len(np.unique(data["condition"])) == levels
    assert float(data["correct"].mean()) == pytest.approx(accuracy, abs=5.1e-4)
    # no answer is NaN, and only then is there no reaction time and no response
    missing = np.isnan(data["choice"].values)
    np.testing.assert_array_equal(missing, data["response"].values == "")
    answered = data.isel(trial=~missing)
    right = np.array(data.attrs["categories"].split())[answered["choice"].values.astype(int)]
    np.testing.assert_array_equal(right, answered["response"])
    np.testing.assert_array_equal(answered["correct"], right == answered["category"].values)


def test_geirhos_missing_answers_and_networks():
    parts = [load(name) for name in ALL if name.startswith("geirhos2018")]
    human = [data.isel(trial=data["observer_kind"].values == "human") for data in parts]
    assert sum(data.sizes["trial"] for data in parts) == 82_880 + 28_640
    assert sum(data.sizes["trial"] for data in human) == 82_880
    assert sum(int(data["correct"].isnull().sum()) for data in human) == 1518
    noise = load("geirhos2018-degraded-objects/noise")
    resnet = noise.isel(trial=noise["subject"].values == "resnet152")
    published = [0.92, 0.80, 0.71, 0.53, 0.29, 0.08, 0.07, 0.06]
    np.testing.assert_allclose(mean(resnet, "correct", "stimulus_level"), published, atol=6e-3)


def test_geirhos_logsnr():
    noise = mean(humans("noise"), "logsnr", "stimulus_level")
    levels = np.array([0, 0.03, 0.05, 0.1, 0.2, 0.35, 0.6, 0.9])
    np.testing.assert_array_equal(noise.index, levels)
    assert noise[0] == np.inf
    np.testing.assert_allclose(noise[1:], np.log(0.09 * 0.06 / (levels[1:] ** 2 / 3)), atol=1e-12)
    contrast = mean(humans("contrast"), "logsnr", "stimulus_level")
    np.testing.assert_allclose(contrast, 2 * np.log(contrast.index / 100), atol=1e-12)
    # coherent amplitude under uniform phase noise, by simulation
    phase = mean(humans("phase-scrambling"), "logsnr", "stimulus_level")
    assert (phase[0], phase[180]) == (np.inf, -np.inf)
    turn = np.random.default_rng(0).uniform(-1, 1, 200_000)
    for degrees in (30, 90, 150):
        r = np.cos(np.deg2rad(degrees) * turn).mean()
        assert np.log(r**2 / (1 - r**2)) == pytest.approx(phase[degrees], abs=0.03)


@pytest.mark.parametrize("width", [0.2, 0.35, 0.6, 0.9])
def test_clipped_noise_by_simulation(width):
    """Regress clipped pixels on the clean ones: gain² · variance over what the gain leaves."""
    generator = np.random.default_rng(1)
    # grey levels with variance .06 on [0, 1], shown at 30 % contrast around .5
    a = (0.25 / 0.06 - 1) / 2
    clean = 0.5 + 0.3 * (generator.beta(a, a, 1_000_000) - 0.5)
    shown = np.clip(clean + generator.uniform(-width, width, clean.size), 0, 1)
    gain = np.cov(clean, shown)[0, 1] / clean.var()
    simulated = np.log(gain**2 * clean.var() / (shown - gain * clean).var())
    data = humans("noise")
    found = float(data["logsnr_clipped"][np.isclose(data["stimulus_level"], width)][0])
    # the stated values are rounded, and depend a little on the law of the grey levels
    assert found == pytest.approx(simulated, abs=0.03)
    nominal = np.log(3 * 0.09 * 0.06 / width**2)
    assert (abs(found - nominal) > 0.2) == (width > 0.35)


def test_roitman_monkeys():
    data = load("roitman2002-monkey-rdm")
    data = data.assign(strength=abs(data["coherence"]))
    assert data.sizes["trial"] == 6149
    count = data["rt"].to_dataframe().groupby("subject").rt.size()
    assert count.to_dict() == {"b": 2615, "n": 3534}
    rt = mean(data, "rt", "subject", "strength")
    np.testing.assert_allclose(rt["b"], [0.788, 0.777, 0.739, 0.669, 0.560, 0.464], atol=6e-4)
    np.testing.assert_allclose(rt["n"], [0.854, 0.852, 0.802, 0.695, 0.530, 0.392], atol=6e-4)
    correct = mean(data, "correct", "subject", "strength")
    np.testing.assert_allclose(correct["b"][1:], [0.616, 0.739, 0.933, 0.995, 1], atol=6e-4)
    np.testing.assert_allclose(correct["n"][1:], [0.662, 0.805, 0.947, 0.995, 1], atol=6e-4)
    assert np.isnan(correct["b"][0])
    assert (data["logsnr"].values == -np.inf).sum() == (data["coherence"].values == 0).sum() > 0
    assert float(data["logsnr"].max()) == pytest.approx(2 * np.log(0.512))


def rates(data, first, last):
    """Spikes/s from ``first`` to ``last`` (ms from the dots), by choice and unsigned coherence."""
    at = np.round(1000 * data["spike_time"])
    data = data.assign(
        spikes=((at >= first) & (at < last)).sum("spike"), seconds=(last - first) / 1e3
    )
    frame = data[["choice", "strength", "spikes", "seconds"]].to_dataframe()
    total = frame[frame["seconds"] > 0].groupby(["choice", "strength"]).sum()
    return total["spikes"] / total["seconds"]


def test_roitman_spikes():
    data = load("roitman2002-lip-spikes")
    data = data.assign(strength=abs(data["coherence"]))
    assert data.sizes["trial"] == 6149
    units = data[["subject", "unit"]].to_dataframe().groupby("subject").unit.nunique()
    assert units.to_dict() == {"b": 23, "n": 31}
    trials = data["unit"].to_series().value_counts()
    assert (trials.min(), trials.median(), trials.max()) == (36, 110.5, 240)
    rt = mean(data, "rt", "strength")
    np.testing.assert_allclose(rt, [0.826, 0.820, 0.775, 0.684, 0.543, 0.423], atol=6e-4)
    correct = mean(data, "correct", "strength")
    np.testing.assert_allclose(correct[1:], [0.642, 0.777, 0.941, 0.995, 1.0], atol=6e-4)
    saccade = np.round(1000 * data["rt"])
    late, early = (
        rates(data, saccade - 150, saccade - 50),
        rates(data, 190, saccade.clip(max=540) - 50),
    )
    # the tables do not say how trials that end earlier count: here to 50 ms before the saccade
    np.testing.assert_allclose(early[1.0], [45.2, 46.8, 47.9, 51.1, 55.1, 58.3], atol=0.5)
    np.testing.assert_allclose(early[0.0], [41.2, 41.3, 41.4, 37.6, 34.0, 33.5], atol=0.5)
    np.testing.assert_allclose(late[1.0], [60.8, 60.6, 61.4, 61.2, 60.0, 56.4], atol=0.06)
    np.testing.assert_allclose(late[0.0], [39.6, 37.6, 38.1, 32.9, 28.0, 29.9], atol=0.06)


def test_roitman_spikes_are_those_of_the_same_trials():
    spikes, behaviour = load("roitman2002-lip-spikes"), load("roitman2002-monkey-rdm")
    for animal in "bn":
        one, other = (
            np.sort(d["rt"].values[d["subject"].values == animal]) for d in (spikes, behaviour)
        )
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_roitman_bins_hold_the_spikes_of_the_dots():
    data = load("roitman2002-lip-spikes")
    count, at = data["count"].values, data["spike_time"].values
    end = np.floor(data["rt"].values * 100 + 1e-6) / 100  # the last whole bin
    inside = (at >= 0) & (at < end[:, None] - 1e-9)
    np.testing.assert_array_equal(np.nansum(count, 1), inside.sum(1))
    np.testing.assert_array_equal(np.isfinite(count).sum(1), np.round(end * 100))
    # and each in its own
    trial = 100
    where = np.floor(at[trial][inside[trial]] * 100 + 1e-6).astype(int)
    assert count[trial][where].min() >= 1


@pytest.mark.parametrize(
    ("part", "trials", "units", "accuracy", "by_difference"),
    [
        ("303075", 461, 7, 0.806, (0.655, 0.673, 0.817, 0.955)),
        ("304258", 457, 2, 0.758, (0.623, 0.626, 0.797, 0.856)),
    ],
)
def test_clicks(part, trials, units, accuracy, by_difference):
    data = load(f"brody-rat-t103-clicks/{part}")
    assert (data.sizes["trial"], data.sizes["unit"]) == (trials, units)
    assert float(data["correct"].mean()) == pytest.approx(accuracy, abs=5e-4)
    difference = np.abs(data["pulse_side"].sum("pulse").values)
    for low, high, wanted in zip((1, 5, 10, 20), (5, 10, 20, 99), by_difference, strict=True):
        some = (difference >= low) & (difference < high)
        assert float(data["correct"][some].mean()) == pytest.approx(wanted, abs=5e-4)
    # a pair begins every trial, and is no evidence
    time, side = data["pulse_time"].values, data["pulse_side"].values
    assert (time[:, :2] == 0).all()
    assert (side[:, :2].sum(1) == 0).all()
    assert (np.diff(time, axis=1)[~np.isnan(time[:, 1:])] >= 0).all()
    assert (np.nanmax(time, 1) <= data["duration"].values + 1e-3).all()
    right, left = (np.nansum(side == s, 1) - 1 for s in (1, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = np.where(right == left, 0, (right - left) ** 2 / (right + left))
    assert np.allclose(np.exp(data["logsnr"].values), snr)
    assert np.isnan(data["correct"].values[right == left]).all()


def test_a_striatal_neuron_knows_the_choice_during_the_clicks():
    data = load("brody-rat-t103-clicks/303075")
    spikes = data["spike_time"].sel(unit="11330").values
    right = data["choice"].values == 1

    def rate(some, begin, end):
        return (
            np.nansum((spikes[some] >= begin) & (spikes[some] < end)) / some.sum() / (end - begin)
        )

    assert rate(right, 0.3, 0.6) == pytest.approx(45.6, abs=0.1)
    assert rate(~right, 0.3, 0.6) == pytest.approx(12.4, abs=0.15)
    assert abs(rate(right, -0.5, 0.0) - rate(~right, -0.5, 0.0)) < 1


def test_palmer():
    data = load("palmer2005-human-rdm")
    data = data.assign(strength=abs(data["coherence"]))
    moving = data.isel(trial=data["strength"].values > 0)
    published = {
        "ah": [0.728, 0.924, 1.00, 1.00, 1.00, 0.99, 0.78, 0.62, 0.44, 0.39],
        "eh": [0.552, 0.630, 0.889, 0.989, 1.00, 0.93, 0.93, 0.85, 0.62, 0.47],
        "jd": [0.789, 0.854, 1.00, 1.00, 1.00, 0.66, 0.55, 0.50, 0.43, 0.37],
        "jp": [0.742, 0.924, 0.989, 1.00, 1.00, 0.81, 0.69, 0.60, 0.48, 0.41],
        "mk": [0.705, 0.865, 1.00, 1.00, 1.00, 0.73, 0.68, 0.54, 0.44, 0.41],
        "mm": [0.570, 0.768, 0.871, 0.979, 1.00, 0.87, 0.77, 0.72, 0.61, 0.51],
    }
    accuracy, rt = (mean(moving, name, "subject", "strength") for name in ("correct", "rt"))
    for person, numbers in published.items():
        np.testing.assert_allclose(accuracy[person], numbers[:5], atol=6e-4)
        np.testing.assert_allclose(rt[person], numbers[5:], atol=6e-3)
    still = data.isel(trial=data["strength"].values == 0)
    assert still["choice"].isnull().all()
    assert still["rt"].notnull().all()


def test_drugowitsch():
    data = load("drugowitsch2014-visual-vestibular")
    assert data.sizes["trial"] == 44_059
    visual = data.isel(trial=data["modality"].values == "visual")
    accuracy = mean(visual, "correct", "subject", "coherence").unstack()
    published = """.615 .790 .848 .706 .820 .869 .581 .736 .845 .683 .829 .898 .618 .755 .903
        .655 .764 .849 .809 .852 .919"""
    np.testing.assert_allclose(
        accuracy.to_numpy().ravel(), np.array(published.split(), float), atol=6e-4
    )
    rt = mean(visual, "rt", "subject", "coherence").unstack()
    np.testing.assert_allclose(rt.loc["a"], [1.26, 1.17, 0.94], atol=6e-3)
    vestibular = data.isel(trial=data["modality"].values == "vestibular")
    published = [0.702, 0.719, 0.813, 0.740, 0.726, 0.752, 0.751]
    np.testing.assert_allclose(mean(vestibular, "correct", "subject"), published, atol=6e-4)
    assert set(vestibular["coherence"].values) == {0}
    np.testing.assert_allclose(
        np.exp(data["logsnr"] / 2), abs(np.sin(data["heading"] * np.pi / 180)), atol=1e-12
    )


def test_adler():
    for part, people, trials in (
        ("expt1", 11, 47_520),
        ("expt2", 8, 25_272),
        ("expt3", 15, 48_600),
    ):
        data = load(f"adler2018-orientation-confidence/{part}")
        assert (len(np.unique(data["subject"])), data.sizes["trial"]) == (people, trials)
    one = load("adler2018-orientation-confidence/expt1")
    accuracy = mean(one, "correct", "task", "stimulus_level")
    np.testing.assert_allclose(
        accuracy["A"][::-1], [0.538, 0.565, 0.625, 0.719, 0.745, 0.736], atol=6e-4
    )
    np.testing.assert_allclose(
        accuracy["B"][::-1], [0.540, 0.539, 0.598, 0.647, 0.678, 0.690], atol=6e-4
    )
    np.testing.assert_allclose(
        mean(one, "correct", "confidence"), [0.554, 0.650, 0.704, 0.780], atol=6e-4
    )
    two = load("adler2018-orientation-confidence/expt2")
    accuracy = mean(two, "correct", "task", "contrast")
    np.testing.assert_allclose(accuracy["A"], [0.571, 0.606, 0.648, 0.729, 0.755, 0.752], atol=6e-4)
    np.testing.assert_allclose(accuracy["B"], [0.541, 0.571, 0.618, 0.679, 0.702, 0.727], atol=6e-4)
    confidence = mean(two, "confidence", "task", "contrast")
    np.testing.assert_allclose(confidence["A"], [1.74, 1.80, 1.90, 2.16, 2.28, 2.36], atol=6e-3)
    np.testing.assert_allclose(
        np.unique(two["logsnr"]), -2 * np.array([5.5, 4.8, 4.1, 3.4, 2.7, 2.0]), atol=1e-6
    )
    three = load("adler2018-orientation-confidence/expt3")
    published = [0.523, 0.572, 0.617, 0.684, 0.694, 0.718]
    np.testing.assert_allclose(mean(three, "correct", "stimulus_level")[::-1], published, atol=6e-4)
    cue = load("adler2018-orientation-confidence/attention")
    np.testing.assert_allclose(
        mean(cue, "correct", "cue_validity"), [0.548, 0.605, 0.709], atol=6e-4
    )


ROW = "1,2,1,3,0.5,2,6.46,B"
HEAD = "Subj_idx,Stimulus,Response,Confidence,RT_decConf,Difficulty,Orientation,Task"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{HEAD}\n{ROW}\n1,1,2,1,0.5,2,95.0,A",
            "row 3: the orientation is 95 from 0, wanted degrees",
        ),
        (f"{HEAD}\n{ROW}\n1,0,2,1,0.5,2,5.0,A", r"category \[0, 2\], wanted \(1, 2\) or \(-1, 1\)"),
        (f"{HEAD}\n{ROW}\n1,1,2,5,0.5,2,5.0,A", r"confidence \[3, 5\], wanted \(1, 2, 3, 4\)"),
        (f"{HEAD}\n{ROW}\n1,1,2,1,0.5,2,5.0,C", r"task \['B', 'C'\], wanted \('A', 'B'\)"),
        (f"{HEAD.replace('Orientation', 'Angle')}\n{ROW}", "has no column of orientation"),
    ],
)
def test_adler_refuses_what_it_cannot_be(tmp_path, text, message):
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        decode.adler({"data.csv": tmp_path / "data.csv"}, "expt1", {})


def test_waskom():
    data = load("waskom2018-contrast-pulses")
    assert data.sizes == {"trial": 14_869, "pulse": 5}
    llr = data["pulse_llr"]
    assert int(llr.notnull().sum()) == 35_327
    np.testing.assert_array_equal(llr.notnull().sum("pulse"), data["pulse_count"])
    accuracy = mean(data, "correct", "pulse_count")
    np.testing.assert_allclose(accuracy, [0.721, 0.773, 0.807, 0.835, 0.853], atol=6e-4)
    for target, decades in ((1, 0.389), (0, -0.391)):
        samples = llr.values[data["target"].values == target]
        assert np.nanmean(samples) / np.log(10) == pytest.approx(decades, abs=6e-4)
        # a log-likelihood ratio in nats has mean = variance / 2
        assert np.nanvar(samples) / 2 == pytest.approx(abs(np.nanmean(samples)), rel=0.05)
    total = abs(llr.sum("pulse").values) / np.log(10)
    strength = np.digitize(total, [0.5, 1, 2, 3])
    found = [float(data["correct"].values[strength == i].mean()) for i in range(5)]
    np.testing.assert_allclose(found, [0.569, 0.775, 0.908, 0.977, 0.989], atol=6e-4)
