"""Studies: whole files or none, the same table wherever units run, failures that stop no other."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import neurodiff
from neurodiff.inference import study as module
from neurodiff.inference import unit as unit_module
from neurodiff.inference.compare import compare
from neurodiff.inference.describe import describe
from neurodiff.inference.hypotheses import Hypothesis, build, plan
from neurodiff.inference.laplace import Laplace
from neurodiff.inference.pool import workers
from neurodiff.inference.run_folder import sweep
from neurodiff.inference.study import Unfinished, study
from neurodiff.inference.tasks import Task, common_task, task_of
from neurodiff.inference.unit import Unit, run_unit, solve, source_digest

QUICK = Laplace(draws=60, starts=1)
TASK = Task("threshold", "correct", choices=2, history=0, most=None)
SMALL = [h for h in plan(TASK, law_names=["logistic"]) if h.key in ("logistic", "constant")]


def session(seed, name=None, subjects=1, trials=60):
    """Answers of a two-choice observer whose law is logistic."""
    rng = np.random.default_rng(seed)
    logsnr = rng.choice([-4.0, -1.0, 1.0, 4.0], trials * subjects)
    subject = np.repeat([f"s{i}" for i in range(subjects)], trials)
    p = 0.5 + 0.45 / (1 + np.exp(-logsnr))
    return xr.Dataset(
        {"logsnr": ("trial", logsnr), "correct": ("trial", (rng.random(len(p)) < p) * 1.0)},
        coords={"subject": ("trial", subject)},
        attrs={"name": name or f"session{seed:02d}"},
    )


def recording(bins=400):
    rng = np.random.default_rng(0)
    logsnr = rng.normal(0, 2, bins)
    count = (rng.random(bins) < 0.2 / (1 + np.exp(-logsnr))) * 1.0
    return xr.Dataset(
        {"logsnr": ("time", logsnr), "count": ("time", count)},
        coords={"time": np.arange(bins) * 1e-3},
        attrs={"name": "cell"},
    )


def unit(**changes):
    own = Unit(session(0), SMALL[0], TASK, QUICK, None, 0)
    return replace(own, **changes)


def logistic(task=TASK):
    return Hypothesis("logistic", "law", "none", "free", "logistic")


# plans


def test_named_weightings_stand_beside_their_free_scale_rivals():
    rows = plan(TASK, named=["flow-matching", "v-cosine", "edm-monotonic", "step"], law_names=[])
    assert [(r.name, r.gauge) for r in rows if r.kind != "control"] == [
        ("flow-matching/v-cosine", "fixed"),
        ("edm-monotonic", "fixed"),
        ("step", "fixed"),
        ("edm-monotonic", "free"),
        ("exponential", "free"),
    ]
    controls = ["constant", "free link", "noise floor", "beta-binomial"]
    assert [r.name for r in rows if r.kind == "control"] == controls


def test_the_ideal_observer_belongs_to_the_limited_kind():
    assert "elbo" in [r.key for r in plan(replace(TASK, model="limited"))]
    with pytest.raises(ValueError, match="never stops"):
        build(Hypothesis("elbo", "named", "none", "fixed", "elbo"), TASK, session(0))
    limited = replace(TASK, model="limited")
    for row in plan(limited):
        model = build(row, limited, session(0))
        trials = {"logsnr": torch.tensor([-torch.inf, 0.0, torch.inf]), "n": torch.ones(3)}
        p = model(trials).mean
        assert p.shape == (3,), row.name
        assert ((p >= 0.49) & (p <= 1)).all(), row.name


def test_controls_follow_the_task():
    counts = task_of(recording())
    assert counts == Task(width=1e-3)
    names = [r.name for r in plan(counts) if r.kind == "control"]
    assert names == ["constant", "history only", "free link"]
    unknown = replace(TASK, choices=None)
    names = [r.name for r in plan(unknown) if r.kind == "control"]
    assert names == ["constant", "free link", "beta-binomial"]


def test_one_task_for_all_parts():
    many = recording()
    many["count"][3] = 2.0
    assert common_task([task_of(recording()), task_of(many)]).most is None
    with pytest.raises(ValueError, match="differ in their task"):
        common_task([task_of(recording()), TASK])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan(TASK, ["nine"]), "unknown front end 'nine'.*none"),
        (lambda: plan(TASK, named=["sigmod"]), "sigmoid"),
        (lambda: plan(TASK, law_names=["logistc"]), "did you mean 'logistic'"),
        (lambda: task_of(session(0), "average"), "unknown model 'average'.*averaged"),
        (lambda: task_of(session(0), "averaged"), "give --evidence"),
        (lambda: task_of(session(0), "limited"), "--choices"),
        (lambda: task_of(recording(), choices=2), "no guess rate"),
        (lambda: task_of(xr.Dataset({"rt": ("trial", [1.0])})), "they hold: rt"),
    ],
)
def test_plans_that_make_no_sense(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# units


def test_a_file_is_named_by_all_that_its_result_depends_on():
    own = unit()
    assert own.filename == unit().filename
    others = [
        unit(seed=1),
        unit(by="subject"),
        unit(method=Laplace(draws=61, starts=1)),
        unit(data=session(1, "session00")),
        unit(task=replace(TASK, choices=3)),
        unit(hypothesis=replace(SMALL[0], permuted=True)),
    ]
    assert len({own.filename, *(o.filename for o in others)}) == 7


def test_another_state_of_the_code_has_files_of_its_own(tmp_path, monkeypatch):
    """Or a resumed run would mix fits of both."""
    package = Path(neurodiff.__file__).parent
    for layer in ("diffusion", "perception", "inference"):
        shutil.copytree(package / layer, tmp_path / layer)
    own = unit().filename
    monkeypatch.setattr(neurodiff, "__file__", str(tmp_path / "__init__.py"))
    source_digest.cache_clear()
    assert unit().filename == own  # wherever it stands
    for layer in ("diffusion", "perception", "inference"):
        with next((tmp_path / layer).glob("*.py")).open("a") as file:
            file.write("# changed\n")
        source_digest.cache_clear()
        assert unit().filename != own
        own = unit().filename
    monkeypatch.undo()
    source_digest.cache_clear()


def test_a_unit_leaves_one_whole_file_and_is_not_run_again(tmp_path, monkeypatch):
    path = run_unit(unit(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        assert tree.attrs["hypothesis"] == "logistic"
        assert tree["constant_data"]["logsnr"].size == 60
        assert json.loads(tree.attrs["priors"])["observer.lapse"] == "Beta(1, 30)"
    monkeypatch.setattr(unit_module, "solving", lambda *args: pytest.fail("ran again"))
    assert run_unit(unit(), tmp_path) == path


def test_a_unit_that_fails_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def broken(self, path, engine):
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.DataTree, "to_netcdf", broken)
    with pytest.raises(KeyboardInterrupt):
        run_unit(unit(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_unit_does_not_depend_on_what_the_caller_has_set(tmp_path):
    torch.set_default_dtype(torch.float32)
    try:
        a = solve_file(tmp_path / "a")
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float64)
    np.testing.assert_array_equal(a, solve_file(tmp_path / "b"))


def solve_file(folder):
    folder.mkdir()
    with xr.open_datatree(run_unit(unit(), folder), engine="h5netcdf") as tree:
        return tree["loo"]["elpd"].values


def test_a_law_beyond_every_level_is_unsaturated():
    rng = np.random.default_rng(0)
    logsnr = np.repeat([-6.0, -4.0, -2.0], 200)
    rising = (rng.random(600) < 0.5 + 0.45 / (1 + np.exp(-logsnr))) * 1.0
    data = session(0).isel(trial=slice(0)).drop_dims("trial")
    data = data.assign(logsnr=("trial", logsnr), correct=("trial", rising))
    assert solve(unit(data=data)).attrs["unsaturated"] == 1
    assert solve(unit(data=session(0, trials=400))).attrs["unsaturated"] == 0


def test_time_series_are_scored_by_blocks_and_populations_by_subject():
    task = replace(task_of(recording()), history=2)
    data = module.blocked(recording())
    tree = solve(Unit(data, logistic(), task, QUICK, None, 0))
    assert tree["kfold"]["elpd"].shape == (20,)
    assert "loo" not in tree.children
    people = session(0, subjects=3, trials=40)
    tree = solve(Unit(people, SMALL[1], TASK, QUICK, "subject", 0))
    assert tree["loso"]["elpd"].dims == ("subject",)


def test_blocks_are_equally_long_and_keep_samples_in_step():
    data = recording(407).assign(power=("sample", np.arange(407.0 * 4)))
    cut = module.blocked(data)
    assert cut.sizes == {"time": 400, "sample": 1600}
    assert np.bincount(cut["block"]).tolist() == [20] * 20
    with pytest.raises(ValueError, match="got 30 time bins, wanted at least 40"):
        module.blocked(recording(30))


# studies


def test_a_run_folder_holds_what_was_found_and_how(tmp_path):
    out = tmp_path / "run"
    table = study([session(0), session(1)], SMALL, TASK, out, method=QUICK, command="typed")
    assert sorted(p.name for p in out.iterdir()) == ["comparison.csv", "fits", "run.json"]
    assert len(list((out / "fits").glob("*.nc"))) == len(list((out / "fits").iterdir())) == 6
    pd.testing.assert_frame_equal(pd.read_csv(out / "comparison.csv"), table)
    facts = json.loads((out / "run.json").read_text())
    assert facts["command"] == "typed"
    assert facts["failed"] == {}
    assert len(facts["files"]) == 6
    assert set(table["hypothesis"]) == {"logistic", "constant", "logistic, stimulus permuted"}
    text = describe(out)
    assert "guess is fixed at 0.5" in text
    assert "lapse is learned, prior Beta(1, 30)" in text
    assert "central 90 % interval" in text
    assert str(out) in text
    fits = {p.stem: p for p in (out / "fits").glob("*.nc")}
    again = compare(fits).sort_values(["data", "elpd"])
    assert again["elpd"].tolist() == table.sort_values(["data", "elpd"])["elpd"].tolist()


def test_one_failed_unit_is_reported_and_stops_no_other(tmp_path, monkeypatch):
    true = unit_module.solving

    def sometimes(unit, device):
        if unit.part == "session01" and unit.hypothesis.key == "logistic":
            raise RuntimeError("no luck")
        return true(unit, device)

    monkeypatch.setattr(unit_module, "solving", sometimes)
    out = tmp_path / "run"
    table = study([session(0), session(1)], SMALL, TASK, out, method=QUICK)
    assert len(table) == 4
    failed = json.loads((out / "run.json").read_text())["failed"]
    assert failed == {"session01, none, free: logistic": "RuntimeError: no luck"}
    assert "1 failed:" in describe(out)
    monkeypatch.setattr(unit_module, "solving", true)
    assert len(study([session(0), session(1)], SMALL, TASK, out, method=QUICK, resume=True)) == 6


def test_a_part_that_cannot_be_used_is_reported_beside_others(tmp_path):
    bad = session(1).drop_vars("logsnr")
    study([session(0), bad], SMALL, TASK, tmp_path / "run", method=QUICK, unread={"c": "cut short"})
    failed = json.loads((tmp_path / "run" / "run.json").read_text())["failed"]
    assert failed["c"] == "cut short"
    assert failed["session01"].startswith("session01: the data have no variable 'logsnr'")


def test_nothing_is_written_when_nothing_can_be_fitted(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="session00: the data have no variable 'logsnr'"):
        study([session(0).drop_vars("logsnr")], SMALL, TASK, out)
    with pytest.raises(ValueError, match="different attribute 'name'"):
        study([session(0), session(0)], SMALL, TASK, out)
    with pytest.raises(ValueError, match="rises at logsnr"):
        study([session(0)], plan(TASK, named=["edm"]), TASK, out)
    assert not out.exists()


def test_every_fit_failed(tmp_path, monkeypatch):
    def never(unit, device):
        raise RuntimeError("no luck")

    monkeypatch.setattr(unit_module, "solving", never)
    with pytest.raises(ValueError, match="every fit failed; the first: RuntimeError: no luck"):
        study([session(0)], SMALL, TASK, tmp_path / "run", method=QUICK)
    assert not (tmp_path / "run" / "comparison.csv").exists()


def test_the_order_of_completion_does_not_matter(tmp_path):
    class Backwards(Executor):
        """Runs what was submitted last first."""

        def __init__(self):
            self.calls = []

        def submit(self, fn, /, *args, **kwargs):
            future = Future()
            self.calls.append((future, fn, args))
            if len(self.calls) == self.expected:
                threading.Thread(target=self.run).start()
            return future

        def run(self):
            while self.calls:
                future, fn, args = self.calls.pop()
                future.set_result(fn(*args))

    parts = [session(0), session(1)]
    serial = study(parts, SMALL, TASK, tmp_path / "a", method=QUICK)
    executor = Backwards()
    executor.expected = 2  # a job for each hypothesis
    fits = tmp_path / "b" / "fits"
    fits.mkdir(parents=True)
    units = [Unit(part, h, TASK, QUICK, None, 0) for part in parts for h in SMALL]
    done, _ = module.run_all(units, fits, executor, "")
    assert list(done) == units
    resumed = study(parts, SMALL, TASK, tmp_path / "b", method=QUICK, resume=True)
    pd.testing.assert_frame_equal(serial, resumed)


def test_a_dead_worker_leaves_the_study_unfinished_and_resumable(tmp_path):
    class Dying(ThreadPoolExecutor):
        """Breaks at the second job."""

        calls = 0

        def submit(self, fn, /, *args, **kwargs):
            self.calls += 1
            if self.calls < 2:
                return super().submit(fn, *args, **kwargs)
            if self.calls == 2:
                future = Future()
                future.set_exception(BrokenExecutor("a worker died"))
                return future
            raise BrokenExecutor("the pool is broken")

    out = tmp_path / "run"
    parts = [session(0), session(1)]
    message = "2 of 4 fits did not run: a worker process died .*run again with --resume"
    with Dying(1) as executor, pytest.raises(Unfinished, match=message):
        study(parts, SMALL, TASK, out, method=QUICK, executor=executor)
    assert not (out / "comparison.csv").exists()
    assert len(list((out / "fits").iterdir())) == 2
    table = study(parts, SMALL, TASK, out, method=QUICK, resume=True)
    serial = study(parts, SMALL, TASK, tmp_path / "serial", method=QUICK)
    pd.testing.assert_frame_equal(table, serial)


def test_the_folder_is_refused_unless_it_is_new_empty_or_resumed(tmp_path):
    run = {"parts": [session(0)], "hypotheses": SMALL, "task": TASK, "method": QUICK}
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        study(**run, out=file)
    with pytest.raises(ValueError, match="is not empty"):
        study(**run, out=tmp_path)
    with pytest.raises(ValueError, match="not a run"):
        study(**run, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="nothing to resume"):
        study(**run, out=tmp_path / "new", resume=True)
    with pytest.raises(ValueError, match="cannot write to"):
        study(**run, out=file / "below")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "mine"


def test_what_a_killed_run_was_writing_is_swept(tmp_path):
    (tmp_path / "fits").mkdir()
    half, whole = tmp_path / "fits" / "a.12.part", tmp_path / "fits" / "a.nc"
    half.write_text("half")
    whole.write_text("whole")
    sweep(tmp_path)
    assert not half.exists()
    assert whole.exists()


def test_one_worker_is_this_process_and_none_is_refused():
    with workers(1) as executor:
        assert executor is None
    with pytest.raises(ValueError, match="got 0 workers"), workers(0):
        pass


# many sessions: spawned processes, a kill, a cluster

SIX = ("sigmoid", "deadline", "step", "logistic", "normal", "constant")


def children():
    return [child.pid for child in multiprocessing.active_children()]


@pytest.mark.slow
def test_forty_sessions_a_killed_worker_and_the_table_of_the_serial_run(tmp_path):
    parts = [session(seed, trials=24) for seed in range(40)]
    six = [h for h in plan(TASK) if h.key in SIX]
    run = {"parts": parts, "hypotheses": six, "task": TASK, "method": Laplace(draws=30, starts=1)}
    out = tmp_path / "run"

    def kill():
        while len(list((out / "fits").glob("*.nc"))) < 60:
            time.sleep(0.01)
        os.kill(children()[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    message = r"fits did not run: .*--resume"
    with pytest.raises(Unfinished, match=message), workers(2) as executor:
        study(**run, out=out, executor=executor)
    killer.join()
    there = {p: p.stat().st_mtime_ns for p in (out / "fits").glob("*.nc")}
    assert 60 <= len(there) < 240
    assert not (out / "comparison.csv").exists()
    deadline = time.monotonic() + 10  # the pool's own thread may still be reaping the one killed
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children()
    with workers(2) as executor:
        study(**run, out=out, executor=executor, resume=True)
    assert all(p.stat().st_mtime_ns == t for p, t in there.items())
    assert {p.suffix for p in (out / "fits").iterdir()} == {".nc"}
    serial = study(**run, out=tmp_path / "serial")
    # other batches, other roundings
    pd.testing.assert_frame_equal(pd.read_csv(out / "comparison.csv"), serial, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_same_through_a_local_cluster(tmp_path):
    distributed = pytest.importorskip("distributed")
    parts = [session(seed, trials=24) for seed in range(3)]
    run = {"parts": parts, "hypotheses": SMALL, "task": TASK, "method": QUICK}
    cluster = distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        table = study(**run, out=tmp_path / "a", executor=client.get_executor())
    pd.testing.assert_frame_equal(table, study(**run, out=tmp_path / "b"))


def test_workers_end_with_a_main_process_that_is_killed(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import os, signal\n"
        "from neurodiff.inference.pool import workers\n"
        "if __name__ == '__main__':\n"
        "    with workers(2) as executor:\n"
        "        print(executor.submit(os.getpid).result(), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    worker = int(out.stdout)

    def alive():
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return False
        stat = Path(f"/proc/{worker}/stat")  # one that ended and was not waited for is a zombie
        return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")

    deadline = time.monotonic() + 10
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive()
