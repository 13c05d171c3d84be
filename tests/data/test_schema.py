"""Every problem at once, the hash, and what is let through."""

import hashlib

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neurodiff.data.schema import DataError, check, data_hash, require

nan, inf = np.nan, np.inf


def dataset(dim="trial", attrs=None, coords=None, **columns):
    return xr.Dataset({k: (dim, np.asarray(v)) for k, v in columns.items()}, coords, attrs)


GOOD = {"logsnr": [-inf, 0.5, inf], "correct": [0.0, nan, 1.0], "rt": [0.4, nan, 0.6]}


def test_good_data_pass_and_get_units():
    data = dataset(**GOOD, extra=[nan, 1.0, 2.0])
    checked = check(data)
    assert checked["logsnr"].attrs["units"] == "nats"
    assert checked["rt"].attrs["units"] == "s"
    assert "units" not in data["rt"].attrs  # the input is left alone
    xr.testing.assert_equal(checked, data)
    assert check(checked).identical(checked)


def test_all_problems_are_listed_at_once():
    data = dataset(
        logsnr=[0.0, nan, 1.0],
        contrast=[0.1, inf, 0.2],
        rt=[500.0, 700.0, -1.0],
        correct=[0.0, 1.0, 9.0],
        choice=[0.0, 1.0, 2.0],
        count=[0.0, 1.5, 2.0],
        subject=[1, 2, 3],
    )
    with pytest.raises(DataError) as error:
        check(data, "trials.csv", np.array([2, 3, 5]))
    message = str(error.value)
    assert message.startswith("9 problems in trials.csv:\n  - logsnr: NaN at line 3;")
    for part in (
        "contrast: infinite at line 3",
        "rt: the median is 500, which looks like milliseconds; wanted seconds: divide by 1000",
        "rt: -1 at line 5",
        "correct: 9 at line 5; wanted 0, 1 or NaN",
        "choice: 2 at line 5; wanted a whole number from 0 to 1",
        "count: 1.5 at line 3",
        "subject: is a variable; wanted a coordinate",
        "subject: holds int64; wanted text",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (xr.Dataset(), "holds no variables"),
        (dataset(rt=[]), "dimension 'trial' is empty"),
        (dataset("trials", **GOOD), "rename({'trials': 'trial'})"),
        (dataset(logsnr=[0.0, nan]), "trial 1 (from 0)"),
        (dataset(power=[nan, 1.0]), "power: NaN at trial 0"),
        (dataset(rt=[inf, 1.0]), "NaN for a missing answer"),
        (dataset(choice=["left", "right"]), "'left' at trial 0, 1 (from 0); wanted a number"),
        (dataset(choice=[0.0, 16.0], attrs={"n_choices": 16}), "from 0 to 15"),
        (dataset("time", time=[0.0, 0.1, 0.2, 0.4], rt=[1.0] * 4), "step after time 2"),
        (dataset("time", time=[0.2, 0.1, 0.0], count=[0, 1, 0]), "increasing"),
        (dataset(correct=[1.0], coords={"subject": ("trial", [""])}), "subject: missing at"),
        (dataset(logsnr=[-20, 0, 10, 15]), "looks like dB"),
        (dataset(logsnr=[-30.0, -7.0, 31.0]), "looks like dB"),
    ],
)
def test_problem(data, message):
    with pytest.raises(DataError) as error:
        check(data)
    assert message in str(error.value)


def test_samples_must_divide_into_bins():
    data = xr.Dataset({"count": ("time", np.zeros(3)), "power": ("sample", np.ones(10))})
    with pytest.raises(DataError, match="10 samples do not divide into 3 time bins"):
        check(data)


@pytest.mark.parametrize(("units", "fix"), [("dB", r"ln\(10\)/10"), ("bits", "convert")])
def test_units_of_logsnr(units, fix):
    data = dataset(**GOOD)
    data["logsnr"].attrs["units"] = units
    with pytest.raises(DataError, match=fix):
        check(data)


def test_round_numbers_are_nats_if_they_say_so():
    data = dataset(logsnr=[-20.0, 0.0, 10.0, 20.0])
    data["logsnr"].attrs["units"] = "nats"
    check(data)
    check(dataset(logsnr=np.linspace(-10, 10, 21)))


def test_many_places_are_cut():
    with pytest.raises(DataError, match=r"trial 0, 1, 2, 3, 4 and 95 more \(from 0\)"):
        check(dataset(logsnr=np.full(100, nan)))
    with pytest.raises(DataError, match=r"trial/unit 1/2 \(from 0\)"):
        check(xr.Dataset({"count": (("trial", "unit"), [[0, 0, 0], [0, 0, -1]])}))


def test_require_names_the_nearest():
    with pytest.raises(DataError) as error:
        require(dataset(LogSNR=[1.0], rt=[0.5]), ["logsnr", "rt", "count"], "a.csv")
    assert "no 'logsnr' (did you mean 'LogSNR'?" in str(error.value)
    assert "no 'count'" in str(error.value)
    require(dataset(**GOOD), ["logsnr"])


@settings(max_examples=20, deadline=None)
@given(arrays(float, (3, 2)), st.lists(st.text("abc"), min_size=3, max_size=3))
def test_hash_is_of_the_content(tmp_path_factory, values, text):
    data = xr.Dataset({"x": (("trial", "unit"), values), "s": ("trial", np.array(text, object))})
    path = tmp_path_factory.mktemp("hash") / "data.nc"
    data.to_netcdf(path, engine="h5netcdf")
    assert data_hash(xr.load_dataset(path)) == data_hash(data)
    assert data_hash(data.assign_attrs(a=1)) == data_hash(data)
    other = values.copy()
    other[1, 1] = 0.0 if other[1, 1] else 1.0
    assert data_hash(data.assign(x=(("trial", "unit"), other))) != data_hash(data)
    assert data_hash(data.rename(x="y")) != data_hash(data)
    assert data_hash(data.assign(x=(("unit", "trial"), values.T))) != data_hash(data)


def test_hash_by_hand():
    """Of many values in pieces as of all at once: what runs have written down stays true."""
    values = np.random.default_rng(0).normal(size=(2, 70_000))
    values[0, 0], values[1, 1] = -0.0, -nan
    plain = np.where(np.isnan(values), nan, values + 0.0).astype("<f8")
    wanted = hashlib.sha256(b"x\0('trial', 'unit')\0(2, 70000)\0" + plain.tobytes()).hexdigest()
    assert data_hash(xr.Dataset({"x": (("trial", "unit"), values)})) == wanted
