"""Files of one's own: formats, units, missing answers, and every kind of bad file."""

import numpy as np
import pytest
import scipy.io
import xarray as xr

import neurodiff as nd
from neurodiff.data.schema import DataError


@pytest.fixture
def write(tmp_path):
    def write(content, name="trials.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_csv(write):
    path = write(
        "Subject,trial,LogSNR,correct,rt,condition\n"
        "007,1,-inf,False,0.5,a\n008,2,1.5,True,,b\n\n007,4,inf,n/a,0.7,\n"
    )
    data = nd.read(path)
    assert data.sizes == {"trial": 3}
    assert data["subject"].values.tolist() == ["007", "008", "007"]
    assert "subject" in data.coords
    assert data["logsnr"].values.tolist() == [-np.inf, 1.5, np.inf]
    np.testing.assert_array_equal(data["correct"], [0, 1, np.nan])
    np.testing.assert_array_equal(data["rt"], [0.5, np.nan, 0.7])
    assert data["condition"].values.tolist() == ["a", "b", ""]
    assert data["serial"].values.tolist() == [1, 2, 4]


@pytest.mark.parametrize("sep", [",", ";", "\t"])
def test_delimiters(write, sep):
    data = nd.read(write(f"logsnr{sep}correct\r\n1.5{sep}1\r\n-2{sep}0\r\n"))
    assert data["logsnr"].values.tolist() == [1.5, -2.0]


@pytest.mark.parametrize("name", ["snr_db", "dB"])
def test_decibel_become_nats(write, name):
    data = nd.read(write(f"{name},correct\n-20,0\n0,1\n10,1\n20,1\n"))
    np.testing.assert_allclose(np.exp(data["logsnr"]), [0.01, 1, 10, 100], rtol=1e-14)
    assert data["logsnr"].attrs["units"] == "nats"


def test_bids_events(write):
    path = write(
        "onset\tduration\ttrial_type\tresponse_time\tcoherence\n"
        "1.2\t0.6\tgo\t0.435\t0.5\n5.6\t0.6\tstop\tn/a\t-0.5\n",
        "sub-03_task-dots_events.tsv",
    )
    data = nd.read(path)
    np.testing.assert_array_equal(data["rt"], [0.435, np.nan])
    assert data["subject"].values.tolist() == ["03", "03"]
    assert data["trial_type"].values.tolist() == ["go", "stop"]
    assert data["onset"].values.tolist() == [1.2, 5.6]


def test_time_bins(write):
    lines = [f"{i / 1000},{i % 2},{i / 10},{i // 5}" for i in range(10)]
    data = nd.read(write("\n".join(["time,count,logsnr,block", *lines])))
    assert data.sizes == {"time": 10}
    assert "block" in data.coords


def test_sixteen_choices(write):
    path = write("choice\n0\n15\n")
    with pytest.raises(DataError, match="15 at line 3; wanted a whole number from 0 to 1"):
        nd.read(path)
    assert nd.read(path, n_choices=16).attrs["n_choices"] == 16


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
def test_netcdf(tmp_path, engine):
    data = xr.Dataset({"rt": ("trial", [0.5, np.nan], {"units": "seconds"})})
    data.to_netcdf(tmp_path / "a.nc", engine=engine)
    np.testing.assert_array_equal(nd.read(tmp_path / "a.nc")["rt"], [0.5, np.nan])


def test_matlab(tmp_path):
    path = tmp_path / "a.mat"
    values = {"RT": np.array([0.5, 0.75], ">f8"), "choice": np.array([0, 1], np.uint8)}
    scipy.io.savemat(path, values)
    data = nd.read(path)
    assert data["rt"].values.tolist() == [0.5, 0.75]
    assert data["choice"].values.tolist() == [0, 1]
    scipy.io.savemat(path, {"rt": np.ones(3), "choice": np.ones((2, 2))})
    with pytest.raises(DataError, match=r"one length; got rt \(3,\) of float64, choice \(2, 2\)"):
        nd.read(path)


BAD = {
    "nothing": (b"", "a.csv", "the file is empty"),
    "heading only": (b"logsnr,correct\n", "a.csv", "no rows"),
    "blank lines only": (b"\n\n", "a.csv", "not a table"),
    "ragged": (b"logsnr,correct\n1,0\n1,0,2\n", "a.csv", "line 3"),
    "more cells than names": (b"logsnr,correct\n1,0,3\n1,0,2\n", "a.csv", "name every column"),
    "not text": (b"\xff\xfe\x00logsnr", "a.csv", "UTF-8"),
    "words for numbers": (b"logsnr,rt\nlow,0.5\n1,0.6\nhigh,0.7\n", "a.csv", "'low' at lines 2, 4"),
    "decimal commas": (b"logsnr;rt\n1;0,5\n2;0,6\n", "a.csv", "rt: '0,5' at lines 2, 3"),
    "NaN in a stimulus": (b"logsnr,correct\n1,1\n,0\n", "a.csv", "logsnr: NaN at line 3"),
    "NaN after a blank line": (b"logsnr,correct\n\n1,1\n,0\n", "a.csv", "logsnr: NaN at line 4"),
    "dB": (b"logsnr,correct\n-20,0\n0,1\n20,1\n", "a.csv", "name the column snr_db"),
    "ms": (b"logsnr,rt\n1,512\n0,634\n", "a.csv", "divide by 1000"),
    "choice": (b"logsnr,choice\n1,1\n0,2\n", "a.csv", "choice: 2 at line 3"),
    "sentinel": (b"logsnr,correct\n1,-99\n0,1\n", "a.csv", "correct: -99 at line 2"),
    "no subject": (b"subject,correct\nann,1\n,0\n", "a.csv", "subject: missing at line 3"),
    "twice": (b"RT,rt\n1,1\n", "a.csv", "rt given twice"),
    "two levels": (b"logsnr,snr_db\n1,1\n", "a.csv", "logsnr and snr_db given twice"),
    "not netCDF": (b"logsnr,correct\n", "a.nc", "no netCDF file"),
    "not MATLAB": (b"logsnr,correct\n", "a.mat", "cut short or altered"),
    "another kind": (b"x", "a.xlsx", "cannot read .xlsx; wanted one of .csv, .tsv"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file(write, case):
    content, name, message = BAD[case]
    path = write(content, name)
    with pytest.raises(DataError) as error:
        nd.read(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        nd.read(tmp_path / "a.csv")


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.9, 0.999])
def test_truncated_netcdf(tmp_path, engine, part):
    data = xr.Dataset(
        {k: ("trial", np.random.default_rng(0).random(5000)) for k in ("rt", "count")}
    )
    path = tmp_path / "a.nc"
    data.to_netcdf(path, engine=engine)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(DataError, match=r"cut short|fewer"):
        nd.read(path)


def test_nwb_without_pynwb(write, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynwb", None)
    with pytest.raises(DataError, match=r"pip install 'neurodiff\[nwb\]'"):
        nd.read(write(b"\x89HDF", "a.nwb"))


def test_nwb(tmp_path):
    pynwb = pytest.importorskip("pynwb", reason="the extra nwb is not installed")
    from datetime import UTC, datetime

    session = pynwb.NWBFile("a test", "id", datetime(2020, 1, 1, tzinfo=UTC))
    session.subject = pynwb.file.Subject(subject_id="rat1", species="Rattus norvegicus")
    session.add_trial_column("choice", "side")
    session.add_trial(start_time=0.0, stop_time=1.0, choice=0.0)
    session.add_trial(start_time=1.0, stop_time=3.0, choice=1.0)
    session.add_unit(spike_times=[0.1, 0.2, 1.5])
    session.add_unit(spike_times=[2.0, 2.5, 2.7, 9.0])
    with pynwb.NWBHDF5IO(tmp_path / "a.nwb", "w") as stream:
        stream.write(session)
    data = nd.read(tmp_path / "a.nwb")
    assert data["count"].dims == ("trial", "unit")
    assert data["count"].values.tolist() == [[2, 0], [1, 3]]
    assert data["subject"].values.tolist() == ["rat1", "rat1"]
    whole = (tmp_path / "a.nwb").read_bytes()
    (tmp_path / "a.nwb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut short"):
        nd.read(tmp_path / "a.nwb")
