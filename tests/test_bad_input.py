"""Input that cannot be used: exit 2, one message that says where and why, nothing written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neurodiff.cli import main

LAW = ["--law", "logistic", "--choices", "2"]
MODEL = ["--model", "threshold"]


def good(n=40):
    rng = np.random.default_rng(0)
    logsnr = rng.choice([-4.0, -1.0, 1.0, 4.0], n)
    correct = (rng.random(n) < 0.5 + 0.45 / (1 + np.exp(-logsnr))) * 1
    return pd.DataFrame({"logsnr": logsnr, "correct": correct, "subject": "s1"})


def csv(**columns):
    """Good trials with some columns replaced (None drops one)."""
    table = good().assign(**{k: v for k, v in columns.items() if v is not None})
    table = table.drop(columns=[k for k, v in columns.items() if v is None])
    table.to_csv("data.csv", index=False)


def cell(name, row, value):
    table = good()
    table[name] = table[name].astype(object)
    table.loc[row, name] = value
    table.to_csv("data.csv", index=False)


def netcdf(cut):
    data = xr.Dataset.from_dataframe(good().rename_axis("trial"))
    data.to_netcdf("whole.nc", engine="h5netcdf")
    Path("data.nc").write_bytes(Path("whole.nc").read_bytes()[:cut])
    Path("whole.nc").unlink()


def full_folder():
    csv()
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")


# what is wrong, how it is made, the command, and what the one message says
TABLE = {
    "a missing column": (
        lambda: good().rename(columns={"logsnr": "log_snr"}).to_csv("data.csv", index=False),
        ["fit", "data.csv", *MODEL, *LAW],
        ["data", "'logsnr'", "did you mean 'log_snr'"],
    ),
    "no answers": (
        lambda: csv(correct=None),
        ["fit", "data.csv", *MODEL, *LAW],
        ["neither 'count' nor 'correct'", "logsnr, subject", "add a column"],
    ),
    "dB given as nats": (
        lambda: csv(logsnr=np.tile([-20, -10, 0, 10], 10)),
        ["fit", "data.csv", *MODEL, *LAW],
        ["data.csv", "logsnr", "looks like dB", "snr_db"],
    ),
    "milliseconds given as seconds": (
        lambda: csv(rt=np.linspace(300, 900, 40)),
        ["fit", "data.csv", *MODEL, *LAW],
        ["data.csv", "rt: the median is 600", "milliseconds", "divide by 1000"],
    ),
    "NaN in a stimulus": (
        lambda: cell("logsnr", 6, ""),
        ["fit", "data.csv", *MODEL, *LAW],
        ["data.csv", "logsnr: NaN at line 8", "drop the rows"],
    ),
    "an answer outside the set": (
        lambda: cell("correct", 6, 3),
        ["fit", "data.csv", *MODEL, *LAW],
        ["data.csv", "correct: 3 at line 8", "wanted 0, 1"],
    ),
    "a choice outside the set": (
        lambda: csv(choice=[5, *[1] * 39]),
        ["fit", "data.csv", *MODEL, *LAW],
        ["data.csv", "choice: 5 at line 2", "0 to 1", "n_choices"],
    ),
    "answers that are all missing": (
        lambda: csv(correct=[np.nan] * 40),
        ["fit", "data.csv", *MODEL, *LAW],
        ["data: 'correct' is missing (empty or NaN) in all 40 rows"],
    ),
    "an empty file": (
        lambda: Path("data.csv").write_text(""),
        ["fit", "data.csv", *MODEL, *LAW],
        ["data.csv", "is empty"],
    ),
    "a heading and no rows": (
        lambda: Path("data.csv").write_text("logsnr,correct\n"),
        ["fit", "data.csv", *MODEL, *LAW],
        ["data.csv", "no rows"],
    ),
    "a truncated netCDF": (
        lambda: netcdf(3000),
        ["fit", "data.nc", *MODEL, *LAW],
        ["data.nc", "3000 bytes", "cut short"],
    ),
    "a netCDF that is none": (
        lambda: Path("data.nc").write_text("hello world"),
        ["fit", "data.nc", *MODEL, *LAW],
        ["data.nc", "b'hell'", "no netCDF"],
    ),
    "no such file": (
        lambda: None,
        ["fit", "data.csv", *MODEL, *LAW],
        ["data.csv", "no such file", "looked in"],
    ),
    "a pattern that matches nothing": (
        lambda: None,
        ["fit", "sessions/*.nc", *MODEL, *LAW],
        ["no file matches 'sessions/*.nc'"],
    ),
    "an unknown data set": (
        lambda: None,
        ["fit", "grashopper", *MODEL, *LAW],
        ["'grashopper'", "did you mean grasshopper-receptor"],
    ),
    "an unknown part": (
        lambda: None,
        ["fit", "grasshopper-receptor/3", *MODEL, "--law", "logistic"],
        ["no part '3'", "Parts: 1, 2"],
    ),
    "no level above the ones without any signal": (
        lambda: csv(logsnr="-inf"),
        ["fit", "data.csv", *MODEL, *LAW],
        ["none of the tested logsnr is finite"],
    ),
    "a weighting that is not monotone": (
        csv,
        ["fit", "data.csv", *MODEL, "--choices", "2", "--weighting", "edm"],
        ["'edm' rises at logsnr = -3.3", "no stopping law"],
    ),
    "a weighting that never stops": (
        csv,
        ["fit", "data.csv", *MODEL, "--choices", "2", "--weighting", "elbo"],
        ["'elbo'", "never stops"],
    ),
    "an unknown weighting": (
        csv,
        ["fit", "data.csv", *MODEL, "--choices", "2", "--weighting", "flow-maching"],
        ["'flow-maching'", "flow-matching"],
    ),
    "an unknown law": (
        csv,
        ["fit", "data.csv", *MODEL, "--choices", "2", "--law", "logistc"],
        ["'logistc'", "did you mean 'logistic'"],
    ),
    "an unknown front end": (
        csv,
        ["fit", "data.csv", *MODEL, *LAW, "--front-end", "filter"],
        ["'filter'", "power-filter"],
    ),
    "a front end that needs what the data lack": (
        csv,
        ["fit", "data.csv", *MODEL, *LAW, "--front-end", "power-filter"],
        ["data", "'power'"],
    ),
    "a model that is not there": (
        csv,
        ["fit", "data.csv", "--model", "average", *LAW],
        ["unknown model 'average'", "averaged"],
    ),
    "labels without a table of evidence": (
        csv,
        ["fit", "data.csv", "--model", "averaged", *LAW],
        ["--model averaged needs --evidence TABLE.nc"],
    ),
    "a table of evidence for another kind": (
        csv,
        ["fit", "data.csv", *MODEL, *LAW, "--evidence", "t.nc"],
        ["--evidence belongs to --model averaged and stopped", "with --model threshold"],
    ),
    "an unknown method": (
        csv,
        ["fit", "data.csv", *MODEL, *LAW, "--method", "magic"],
        ["magic", "laplace"],
    ),
    "a device that is none": (
        csv,
        ["fit", "data.csv", *MODEL, *LAW, "--device", "gpu", "--out", "out"],
        ["got device 'gpu', wanted auto, cpu, cuda or cuda:N (a GPU is cuda)"],
    ),
    "choices and guess": (
        csv,
        ["fit", "data.csv", *MODEL, *LAW, "--guess", "0.5"],
        ["choices=2 and guess=0.5", "give one"],
    ),
    "an impossible guess rate": (
        csv,
        ["fit", "data.csv", *MODEL, "--law", "logistic", "--guess", "1.5"],
        ["guess rate of 1.5", "probability"],
    ),
    "a single subject": (
        csv,
        ["fit", "data.csv", *MODEL, *LAW, "--by", "subject"],
        ["data: got a single subject", "at least two"],
    ),
    "subjects that the data do not name": (
        lambda: csv(subject=None),
        ["fit", "data.csv", *MODEL, *LAW, "--by", "subject"],
        ["data", "no 'subject'"],
    ),
    "no workers": (
        csv,
        ["fit", "data.csv", *MODEL, *LAW, "--workers", "0"],
        ["got 0 workers"],
    ),
    "a non-empty output folder": (
        full_folder,
        ["fit", "data.csv", *MODEL, *LAW, "--out", "out"],
        ["out is not empty", "--out", "--resume"],
    ),
    "resuming what is no run": (
        full_folder,
        ["fit", "data.csv", *MODEL, *LAW, "--out", "out", "--resume"],
        ["out holds something that is not a run"],
    ),
    "resuming nothing": (
        csv,
        ["fit", "data.csv", *MODEL, *LAW, "--out", "new", "--resume"],
        ["new does not exist"],
    ),
    "an output folder that is a file": (
        csv,
        ["fit", "data.csv", *MODEL, *LAW, "--out", "data.csv"],
        ["data.csv is a file"],
    ),
    "an unwritable output folder": (
        csv,
        ["fit", "data.csv", *MODEL, *LAW, "--out", "data.csv/below"],
        ["cannot write to"],
    ),
    "an option that is none": (
        csv,
        ["fit", "data.csv", *MODEL, *LAW, "--wait"],
        ["--wait"],
    ),
    "no model": (csv, ["fit", "data.csv", *LAW], ["--model"]),
    "a folder that is no run": (csv, ["compare", "."], ["holds no fits"]),
    "nothing to compare": (csv, ["compare"], ["no run folder"]),
    "no finished run to report": (csv, ["report", "."], ["comparison.csv"]),
    "a card that is not there": (
        csv,
        ["datasets", "show", "roitman"],
        ["'roitman'", "roitman2002"],
    ),
}


def contents(folder):
    """Every file with its content, and every folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


@pytest.mark.parametrize("row", TABLE)
def test_bad_input(row, tmp_path, monkeypatch, capfd):
    make, command, said = TABLE[row]
    monkeypatch.chdir(tmp_path)
    make()
    before = contents(tmp_path)
    assert main(command) == 2
    _, err = capfd.readouterr()
    flat = " ".join(err.replace("│", " ").split())  # usage errors come in a box
    for part in said:
        assert part in flat
    assert "Traceback" not in err
    assert err.count("neurodiff: ") <= 1
    assert contents(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    csv()
    Path("locked").mkdir(mode=0o500)
    assert main(["fit", "data.csv", *MODEL, *LAW, "--out", "locked/run"]) == 2
    assert "permission denied" in capsys.readouterr().err


def test_a_folder_that_the_system_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    csv()

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["fit", "data.csv", *MODEL, *LAW, "--out", "run"]) == 2
    assert "cannot write to run: Permission denied; name another with --out" in (
        capsys.readouterr().err
    )
    assert not Path("run").exists()


def heard():
    """Ctrl-C is ignored in what a shell runs in the background, the tests perhaps: not here."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_in_the_middle_of_a_fit(tmp_path, request):
    csv_path = tmp_path / "data.csv"
    good(4000).assign(logsnr=lambda t: t["logsnr"] + np.arange(4000) * 1e-4).to_csv(
        csv_path, index=False
    )
    code = "import sys; from neurodiff.cli import main; sys.exit(main())"
    tokens = ["fit", "data.csv", *MODEL, "--choices", "2", "--method", "nuts", "--out", "run"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *tokens],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )
    request.addfinalizer(process.kill)
    while not (tmp_path / "run" / "fits").is_dir():
        assert process.poll() is None, process.stderr
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "neurodiff: stopped" in err
    left = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert {p.suffix for p in left} <= {".nc"}
