"""The command line: what is printed, what is left behind, and with which exit code."""

import json
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
from toys import needs

from neurodiff import __version__, cli
from neurodiff.cli import main
from neurodiff.data.gather import gather
from neurodiff.inference.hypotheses import plan
from neurodiff.inference.tasks import task_of

FIT = ["--model", "threshold", "--choices", "2", "--law", "logistic"]


def trials(seed=0, subjects=1, n=60):
    rng = np.random.default_rng(seed)
    logsnr = rng.choice([-4.0, -1.0, 1.0, 4.0], n * subjects)
    p = 0.5 + 0.45 / (1 + np.exp(-logsnr))
    frame = pd.DataFrame({"logsnr": logsnr, "correct": (rng.random(len(p)) < p) * 1})
    return frame.assign(subject=np.repeat([f"s{i}" for i in range(subjects)], n))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trials().to_csv("trials.csv", index=False)
    return tmp_path


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"neurodiff {__version__}"
    assert main(["fit", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--model", "--weighting", "--by", "--workers", "--resume", "internal-noise"):
        assert option in out


def test_help_needs_no_torch():
    code = "import sys; from neurodiff import cli; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_data_sets(capsys):
    for tokens in (["datasets"], ["datasets", "list"]):
        assert main(tokens) == 0
        assert "grasshopper-receptor" in capsys.readouterr().out
    assert main(["datasets", "show", "grasshopper-receptor"]) == 0
    out = capsys.readouterr().out
    assert "parts: 1, 2" in out
    assert "BSD-3-Clause" in out


def test_fetch_prints_paths(capsys):
    needs("grasshopper-receptor/1")
    assert main(["datasets", "fetch", "grasshopper-receptor/1"]) == 0
    paths = capsys.readouterr().out.split()
    assert len(paths) == 2
    assert all(Path(path).is_file() for path in paths)


def test_fit_compare_and_report_on_a_file_of_ones_own(here, capsys):
    assert main(["fit", "trials.csv", *FIT]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # no progress bar where nobody looks
    for said in ("trials, front end none", "logistic", "noise floor", "best", "runs/001"):
        assert said in out
    assert "guess is fixed at 0.5" in out
    assert "lapse is learned, prior Beta(1, 30)" in out
    facts = json.loads(Path("runs/001/run.json").read_text())
    assert facts["seed"] == 0
    assert facts["failed"] == {}
    assert main(["compare", "runs/001"]) == 0
    again = capsys.readouterr().out
    assert again.strip() == out[: out.index("trials, front end none: ")].strip()
    assert main(["report", "runs/001"]) == 0
    assert Path("runs/001/report.html").is_file()


def test_runs_are_numbered_and_none_is_written_over(here):
    Path("runs/007").mkdir(parents=True)
    Path("runs/notes").mkdir()
    assert cli.next_run() == Path("runs/008")


def test_without_choices_the_guess_rate_has_a_prior(here, capsys):
    assert main(["fit", "trials.csv", "--model", "threshold", "--law", "logistic"]) == 0
    out = capsys.readouterr().out
    assert "guess is learned, prior Uniform(0, 0.5)" in out
    assert "noise floor" not in out


def test_many_sessions_resume_and_one_bad_file(here, capsys):
    Path("sessions").mkdir()
    for seed in range(2):
        data = xr.Dataset.from_dataframe(trials(seed).rename_axis("trial")).set_coords("subject")
        data["logsnr"].attrs["units"] = "nats"
        data.to_netcdf(f"sessions/s{seed}.nc", engine="h5netcdf")
    whole = Path("sessions/s1.nc").read_bytes()
    Path("sessions/s2.nc").write_bytes(whole[:2000])
    fit = ["fit", "sessions/*.nc", *FIT, "--out", "runs/x"]
    assert main(fit) == 1  # done but for one
    out = capsys.readouterr().out
    assert "1 failed:" in out
    assert "s2.nc: cannot be read as netCDF" in out
    table = pd.read_csv("runs/x/comparison.csv")
    assert set(table["data"]) == {"s0", "s1"}
    Path("sessions/s2.nc").write_bytes(whole)
    before = {p: p.stat().st_mtime_ns for p in Path("runs/x/fits").iterdir()}
    assert main([*fit, "--resume"]) == 0
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert set(pd.read_csv("runs/x/comparison.csv")["data"]) == {"s0", "s1", "s2"}


def test_several_folders_are_compared_together(here, capsys):
    for out, law in (("a", "logistic"), ("b", "normal")):
        assert main(["fit", "trials.csv", *FIT[:-1], law, "--out", out]) == 0
    capsys.readouterr()
    assert main(["compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "logistic" in out
    assert "normal" in out


def test_a_pattern_names_parts_by_their_files(here):
    for folder in ("x", "y"):
        Path(folder).mkdir()
        trials().to_csv(f"{folder}/a.csv", index=False)
    trials().to_csv("x/b.csv", index=False)
    assert [p.attrs["name"] for p in gather("x/*.csv")[0]] == ["a", "b"]
    assert [p.attrs["name"] for p in gather("*/a.csv")[0]] == ["x/a.csv", "y/a.csv"]


def test_a_data_set_without_a_part_is_all_of_its_parts():
    needs("grasshopper-receptor/1")
    parts, unread = gather("grasshopper-receptor")
    assert [p.attrs["name"] for p in parts] == ["grasshopper-receptor/1", "grasshopper-receptor/2"]
    assert unread == {}


def test_people_are_kept_apart_from_networks():
    name = "geirhos2018-degraded-objects/noise"
    both = needs(name)
    ((people,), _), ((networks,), _) = gather(name), gather(name, observers="network")
    ((everyone,), _) = gather(name, observers="all")
    assert people.sizes["trial"] + networks.sizes["trial"] == both.sizes["trial"]
    assert everyone.sizes == both.sizes
    assert set(people["observer_kind"].values) == {"human"}
    assert people.attrs["name"] == name
    assert networks.attrs["name"] == f"{name} (network)"


def test_the_demo_fits_both_recordings_under_both_front_ends(here, monkeypatch, capsys):
    needs("grasshopper-receptor/1")
    seen = {}

    def stand_in(parts, rows, task, out, processes, **options):
        seen.update(parts=parts, rows=rows, task=task, out=out, processes=processes, **options)
        return 0

    monkeypatch.setattr(cli, "_run", stand_in)
    assert main(["demo", "--out", "there", "--seed", "3"]) == 0
    assert [p.attrs["name"] for p in seen["parts"]] == [f"grasshopper-receptor/{i}" for i in (1, 2)]
    assert seen["rows"] == plan(task_of(seen["parts"][0]), ("none", "power-filter"))
    assert (seen["out"], seen["drawn"]) == (Path("there"), True)
    assert (seen["processes"], seen["seed"]) == (2, 3)


def descendants(pid):
    """Processes below one, as the system lists them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found += [int(stat.parent.name), *descendants(int(stat.parent.name))]
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_ctrl_c_stops_the_workers_and_leaves_nothing_half_written(here, request):
    for seed in range(4):
        trials(seed, n=400).to_csv(f"s{seed}.csv", index=False)
    command = [sys.executable, "-c", "import sys; from neurodiff.cli import main; sys.exit(main())"]
    tokens = ["fit", "s*.csv", *FIT, "--workers", "2", "--out", "run"]
    # in what a shell runs in the background, the tests perhaps, Ctrl-C is ignored: not here
    process = subprocess.Popen(
        [*command, *tokens],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    request.addfinalizer(process.kill)
    while len(list(Path("run/fits").glob("*.nc"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    below = descendants(process.pid)
    assert len(below) >= 2
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "--resume" in err
    until = time.monotonic() + 10  # multiprocessing's own tracker ends after its parent
    while any(os.path.exists(f"/proc/{pid}") for pid in below):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert {p.suffix for p in Path("run/fits").iterdir()} == {".nc"}
    assert not Path("run/comparison.csv").exists()
    assert main([*tokens, "--resume"]) == 0


def decisions(n=240):
    """A crude race to a bound: strong evidence is right and fast."""
    rng = np.random.default_rng(0)
    strength = rng.choice([-0.3, -0.1, 0.1, 0.3], n)
    upper = rng.random(n) < 1 / (1 + np.exp(-12 * strength))
    rt = 0.3 + rng.gamma(4, 0.1 - 0.15 * (np.abs(strength) - 0.1), n)
    choice = np.where(upper, "right", "left")
    return pd.DataFrame({"strength": strength, "choice": choice, "rt": rt.round(3)})


def test_choices_and_times_from_a_file_of_ones_own(here, capsys):
    decisions().to_csv("rt.csv", index=False)
    tokens = ["fit", "rt.csv", "--model", "bounded", "--bound", "exponential", "--out", "run"]
    assert main(tokens) == 0
    out = capsys.readouterr().out
    assert "exponential bound" in out
    assert "no stimulus" in out
    assert "lapse is learned, prior Beta(1, 30)" in out
    assert "+ LogNormal(" in out
    table = pd.read_csv("run/comparison.csv")
    assert table.loc[table["hypothesis"] == "exponential bound", "verdict"].item() == "best"
    assert main(["report", "run"]) == 0
    names = {path.stem.split("-")[0] for path in Path("run/figures").glob("*.png")}
    assert names == {"comparison", "choices", "times", "effective"}


SOME = ["constant", "time-stop", "snr-stop"]


@pytest.mark.parametrize(
    "names", [SOME, pytest.param([*SOME, "race", "deadline"], marks=pytest.mark.slow)]
)
def test_rivals_of_a_bound_stand_beside_it(here, capsys, names):
    decisions().to_csv("rt.csv", index=False)
    tokens = ["fit", "rt.csv", "--model", "bounded", "--bound", *names, "--out", "run"]
    assert main(tokens) == 0
    table = pd.read_csv("run/comparison.csv").set_index("hypothesis")
    assert set(table.index[table["kind"] == "rival"]) == set(names[1:])
    assert table.loc["constant bound", "kind"] == "bound"
    assert np.isfinite(table["elpd"]).all()
    # what asks nothing of the evidence but its SNR cannot time these answers
    assert table.loc["snr-stop", "verdict"].startswith("behind")
    capsys.readouterr()
    assert main(["report", "run"]) == 0
    assert "their survival is a weighting" in Path("run/report.html").read_text()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"rt": 512.0}, [], "looks like milliseconds; wanted seconds: divide by 1000"),
        ({}, ["--bound", "weibul"], "did you mean 'weibull'"),
        (
            {},
            ["--bound", "time-stp"],
            "unknown bound or rival 'time-stp': did you mean 'time-stop'",
        ),
        ({}, ["--bound", "leak+race"], "a rival has a drift of its own: give 'race' alone"),
        ({}, ["--law", "logistic"], "bounds in place of laws: --bound NAME"),
        ({}, ["--weighting", "sigmoid"], "bounds in place of weightings"),
        ({}, ["--guess", "0.5"], "leave out choices and guess"),
        ({"choice": "maybe"}, [], "choice: 'maybe'"),
    ],
)
def test_bad_choices_and_times(here, capsys, change, options, message):
    decisions(60).assign(**change).to_csv("rt.csv", index=False)
    assert main(["fit", "rt.csv", "--model", "bounded", *options, "--out", "run"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("run").exists()


def test_deadlines_of_each_trial_s_own(here, capsys):
    frame = decisions(100)
    frame["deadline"] = np.random.default_rng(1).choice([0.7, 0.9, 1.5], len(frame))
    frame.loc[frame["rt"] > frame["deadline"], ["rt", "choice"]] = np.nan
    frame.to_csv("rt.csv", index=False)
    tokens = ["fit", "rt.csv", "--model", "bounded", "--bound", "time-stop"]
    assert main([*tokens, "--out", "run"]) == 0
    assert "horizon=1.5" in Path("run/run.json").read_text()
    assert main([*tokens, "--deadline", "1"]) == 2
    assert "leave out one of them" in capsys.readouterr().err


def test_a_deadline_and_missing_times(here, capsys):
    frame = decisions()
    frame.loc[frame["rt"] > 0.9, "rt"] = np.nan
    frame.to_csv("rt.csv", index=False)
    tokens = ["--model", "bounded", "--bound", "constant", "--deadline", "0.9", "--out", "run"]
    assert main(["fit", "rt.csv", *tokens]) == 0
    tokens = ["fit", "trials.csv", "--model", "threshold", "--choices", "2", "--deadline", "1"]
    assert main(tokens) == 2
    assert "--bound and --deadline are of --model bounded" in capsys.readouterr().err
