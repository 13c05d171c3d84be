"""Parts solved as one batch give the files that each gives alone, and fail alone."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from sessions import session

from neurodiff.inference import study as study_module
from neurodiff.inference import together as module
from neurodiff.inference.hypotheses import Hypothesis, plan
from neurodiff.inference.laplace import Laplace
from neurodiff.inference.study import study
from neurodiff.inference.tasks import task_of
from neurodiff.inference.unit import Unit, run_unit, run_units

QUICK = Laplace(draws=120, starts=2)
PARTS = [session(seed, trials) for seed, trials in enumerate((24, 60, 41, 33))]
TASK = task_of(PARTS[0], choices=2)
KEYS = ("sigmoid", "free link", "noise floor", "beta-binomial")
SOME = [h for h in plan(TASK, named=["sigmoid"], law_names=[]) if h.key in KEYS]


def recording(seed, bins):
    rng = np.random.default_rng(seed)
    logsnr = rng.normal(seed, 2, bins)
    count = (rng.random(bins) < 0.4 / (1 + np.exp(-logsnr + seed))) * 1.0
    return xr.Dataset(
        {"logsnr": ("time", logsnr), "count": ("time", count)},
        coords={"time": np.arange(bins) * 1e-3, "block": ("time", np.arange(bins) * 5 // bins)},
        attrs={"name": f"cell{seed}"},
    )


def assert_same_files(a, b, rtol=1e-5):
    """All that two files hold, but for the time it took.

    A mode is found to 1e-6 nats. Where rounding ends the search a step earlier or later the
    proposals move by up to a thousandth of their width; of that a k̂, fitted to few weights, sees
    most.
    """
    with xr.open_datatree(a, engine="h5netcdf") as one:
        with xr.open_datatree(b, engine="h5netcdf") as other:
            assert one.groups == other.groups
            kept = {k: str(v) for k, v in one.attrs.items() if k not in ("wall_seconds", "device")}
            assert {k: str(other.attrs[k]) for k in kept} == kept
            for group in one.groups:
                for name, x in one[group].variables.items():
                    y, loose = other[group].variables[name], 1e3 if name == "k_hat" else 1.0
                    assert x.dims == y.dims
                    if x.dtype.kind == "f":
                        np.testing.assert_allclose(
                            x, y, rtol=rtol * loose, atol=rtol * loose, err_msg=f"{group}/{name}"
                        )
                    else:
                        np.testing.assert_array_equal(x, y)


def test_the_table_of_a_batch_is_that_of_each_alone(tmp_path, monkeypatch):
    """Sessions of unequal length, each about a place of its own, with answers missing."""
    together = study(PARTS, SOME, TASK, tmp_path / "a", method=QUICK)
    monkeypatch.setattr(study_module, "_BATCH", 1)
    alone = study(PARTS, SOME, TASK, tmp_path / "b", method=QUICK)
    columns = ["elpd", "se", "elpd_diff", "dse"]
    np.testing.assert_allclose(together[columns], alone[columns], rtol=1e-5, atol=1e-6)
    others = [c for c in alone.columns if c not in (*columns, "weight", "bits_per_spike")]
    pd.testing.assert_frame_equal(together[others], alone[others])
    names = sorted(path.name for path in (tmp_path / "a" / "fits").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b" / "fits").iterdir())
    assert len(names) > len(PARTS) * len(SOME)  # with the permuted winners
    for name in names:
        assert_same_files(tmp_path / "a" / "fits" / name, tmp_path / "b" / "fits" / name)


@pytest.mark.parametrize("history", [2, 12])
def test_recordings_are_scored_by_their_own_blocks(tmp_path, history):
    """Few parameters, and more than importance sampling proposes for by the prior."""
    logistic = Hypothesis("logistic", "law", "none", "free", "logistic")
    task = replace(task_of(recording(0, 200)), history=history)
    units = [Unit(recording(i, n), logistic, task, QUICK, None, 0) for i, n in ((0, 200), (1, 150))]
    (tmp_path / "alone").mkdir()
    for unit, path in zip(units, run_units(units, tmp_path), strict=True):
        assert_same_files(path, run_unit(unit, tmp_path / "alone"))


def test_what_is_there_is_not_solved_again(tmp_path, monkeypatch):
    units = [Unit(part, SOME[0], TASK, QUICK, None, 0) for part in PARTS]
    run_units(units[:2], tmp_path)
    asked, true = [], module.answer

    def spy(asks, device):
        asked.append(len(asks))
        return true(asks, device)

    monkeypatch.setattr(module, "answer", spy)
    paths = run_units(units, tmp_path)
    assert [path.name for path in paths] == [unit.filename for unit in units]
    assert max(asked) == 2


def test_a_part_that_fails_in_a_batch_is_reported_and_stops_no_other(tmp_path, monkeypatch):
    true = module.posterior_draws

    def sometimes(problems, *rest):
        answers = (problems._counts.sum(-1) > 0) & (problems._counts.sum(-1) < 25)
        if answers.any():
            raise RuntimeError("no luck")
        return true(problems, *rest)

    monkeypatch.setattr(module, "posterior_draws", sometimes)
    out = tmp_path / "run"
    table = study(PARTS, SOME[:2], TASK, out, method=QUICK)
    failed = json.loads((out / "run.json").read_text())["failed"]
    assert set(failed.values()) == {"RuntimeError: no luck"}
    assert {name.split(",")[0] for name in failed} == {"session00"}
    monkeypatch.setattr(module, "posterior_draws", true)
    (tmp_path / "alone").mkdir()
    unit = Unit(PARTS[2], SOME[0], TASK, QUICK, None, 0)
    assert_same_files(out / "fits" / unit.filename, run_unit(unit, tmp_path / "alone"))
    assert set(table["data"]) == {"session01", "session02", "session03"}


def test_memory_is_bounded_by_smaller_batches(tmp_path, monkeypatch):
    units = [Unit(part, SOME[0], TASK, QUICK, None, 0) for part in PARTS]
    sizes, true = [], module.answer

    def spy(asks, device):
        sizes.append(sum(len(a.mask) * a.draws * a.joint.response.shape[-1] for a in asks))
        return true(asks, device)

    monkeypatch.setattr(module, "answer", spy)
    monkeypatch.setattr(module, "_NUMBERS", 7_000)
    paths = run_units(units, tmp_path)
    assert len(paths) == 4
    assert len(sizes) >= 2
    assert max(sizes) <= 7_000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_files_of_the_cpu(tmp_path):
    for hypothesis in SOME:
        units = [Unit(part, hypothesis, TASK, QUICK, None, 0) for part in PARTS]
        on_gpu = [replace(unit, device="cuda") for unit in units]
        for device in ("cpu", "cuda"):
            (tmp_path / device).mkdir(exist_ok=True)
        both = run_units(units, tmp_path / "cpu"), run_units(on_gpu, tmp_path / "cuda")
        for a, b in zip(*both, strict=True):
            assert_same_files(a, b)
