"""Labels by their evidence, from the command line: what wins, what is refused, what is drawn."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import neurodiff as nd
from neurodiff.cli import main
from neurodiff.inference.hypotheses import plan
from neurodiff.inference.labels import attach
from neurodiff.inference.tasks import task_of
from neurodiff.perception.classify import AveragedEvidence
from neurodiff.perception.controls import permute
from tests.perception.test_classify import logistic, table


def answers(stimuli=60, times=20):
    """Trials of an observer that averages under a logistic law, and the table."""
    t = table(3, stimuli=stimuli)
    model = AveragedEvidence(logistic(-1.0, 0.6), t)
    model.observer.sensitivity.data.fill_(6.0)
    torch.manual_seed(0)
    shown = torch.arange(stimuli).repeat(times)
    choice = model({"row": shown.double()}).sample()
    return t, pd.DataFrame({"shown": 10 + shown.numpy(), "choice": choice.numpy()})


@pytest.fixture
def files(tmp_path):
    t, trials = answers()
    t.to_netcdf(tmp_path / "table.nc", engine="h5netcdf")
    trials.to_csv(tmp_path / "people.csv", index=False)
    return tmp_path


def run(folder, *more, data="people.csv", evidence="table.nc"):
    command = ["fit", str(folder / data), "--evidence", str(folder / evidence)]
    return main([*command, "--out", str(folder / "run"), *more])


def test_the_truth_wins_and_is_drawn(files, capsys):
    names = ["--weighting", "elbo", "sigmoid", "--law", "logistic"]
    assert run(files, "--model", "averaged", *names) == 0
    found = pd.read_csv(files / "run" / "comparison.csv").set_index("hypothesis")
    assert found.loc["logistic", "verdict"].startswith(("best", "not distinguished"))
    assert found.loc["elbo", "verdict"].startswith("behind")
    assert found.loc["no evidence", "elpd"] == pytest.approx(1200 * np.log(1 / 4), abs=1)
    permuted = [name for name in found.index if name.endswith("stimulus permuted")]
    assert len(permuted) == 1
    assert found.loc[permuted[0], "elpd"] < found.loc["logistic", "elpd"] - 20
    assert {"one level", "free weights"} <= set(found.index)
    assert "observer.sensitivity" in capsys.readouterr().out
    assert main(["report", str(files / "run")]) == 0
    drawn = pd.read_csv(next((files / "run" / "figures").glob("answers-*.csv")))
    assert np.all(np.abs(drawn["observed"] - drawn["predicted"]) < 5 * drawn["se"] + 0.02)
    assert json.loads((files / "run" / "run.json").read_text())["failed"] == {}


def test_counts_are_fitted_as_answers_are(files, capsys):
    trials = pd.read_csv(files / "people.csv")
    rows = trials.groupby(["shown", "choice"]).size().rename("count").reset_index()
    rows["trials"] = rows.groupby("shown")["count"].transform("sum")
    rows.to_csv(files / "rows.csv", index=False)
    wide = rows.pivot(index="shown", columns="choice", values="count").fillna(0)
    counts = (("stimulus", "category"), wide.to_numpy(int))
    data = xr.Dataset({"choices": counts}, {"stimulus": wide.index.to_numpy()})
    data.to_netcdf(files / "counts.nc", engine="h5netcdf")
    found = []
    for i, name in enumerate(("people.csv", "rows.csv", "counts.nc")):
        out = files / f"run-{i}"
        more = ["--model", "averaged", "--law", "logistic", "--out", str(out)]
        evidence = ["--evidence", str(files / "table.nc")]
        assert main(["fit", str(files / name), *evidence, *more]) == 0
        found.append(pd.read_csv(out / "comparison.csv").set_index("hypothesis")["elpd"])
    assert np.allclose(found[1], found[0], atol=1e-6)
    assert np.allclose(found[2], found[0], atol=1e-6)
    rows.assign(trials=rows["trials"] + 1).to_csv(files / "short.csv", index=False)
    capsys.readouterr()
    assert run(files, "--model", "averaged", data="short.csv") == 2
    assert "counts sum to 20, wanted the 21 that 'trials' states" in capsys.readouterr().err
    assert not (files / "run").exists()


def test_a_sum_over_all_levels_has_no_control_by_their_order(files):
    assert run(files, "--model", "averaged", "--weighting", "elbo") == 0
    found = pd.read_csv(files / "run" / "comparison.csv")
    assert found.set_index("hypothesis").loc["elbo", "verdict"].startswith("best")
    assert not found["hypothesis"].str.endswith("stimulus permuted").any()


def test_rows_of_the_two_kinds():
    t, trials = answers(5, 2)
    data = attach(xr.Dataset({k: ("trial", v.astype(float)) for k, v in trials.items()}), t)
    averaged = {row.name for row in plan(task_of(data, "averaged"))}
    stopped = {row.name for row in plan(task_of(data, "stopped"))}
    assert "edm" in averaged
    assert "edm" not in stopped  # it rises
    assert {"elbo", "logistic", "no evidence"} <= averaged & stopped


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: ["--model", "stopped", "--weighting", "edm"], "no stopping law exists"),
        (lambda f: ["--model", "averaged", "--choices", "3"], "the table has 4 labels"),
        (lambda f: ["--model", "averaged", "--front-end", "power-filter"], "no front end"),
        (lambda f: ["--model", "averaged", "--weighting", "sigmod"], "sigmoid"),
    ],
)
def test_what_makes_no_sense_is_refused(files, capsys, change, words):
    assert run(files, *change(files)) == 2
    assert words in capsys.readouterr().err
    assert not (files / "run").exists()


def test_files_that_do_not_fit(files, capsys):
    trials = pd.read_csv(files / "people.csv")
    for name, changed, words in (
        ("more.csv", trials.assign(choice=trials["choice"] + 1), "whole number from 0 to 3"),
        ("strange.csv", trials.assign(shown=trials["shown"] + 1000), "which the table of evidence"),
        (
            "words.csv",
            trials.assign(shown=["10", *("pic" + trials["shown"].astype(str))[1:]]),
            "'shown' is 'pic11' at ('trial',) = (1,) (from 0), wanted a number: recode names as "
            "numbers, those that the table of evidence has",
        ),
        ("none.csv", trials.drop(columns="shown"), "no 'shown'"),
        ("empty.csv", trials.assign(choice=np.nan), "empty: 'choice' is missing (empty or NaN) in"),
    ):
        changed.to_csv(files / name, index=False)
        assert run(files, "--model", "averaged", data=name) == 2
        assert words in capsys.readouterr().err
        assert not (files / "run").exists()
    assert run(files, "--model", "averaged", evidence="people.csv") == 2
    assert "no whole table" in capsys.readouterr().err
    assert main(["fit", str(files / "people.csv"), "--model", "averaged"]) == 2
    assert "--evidence" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [-1.0, 2.5, 4.0])
def test_choices_from_python_are_labels_of_the_table(wrong):
    t, trials = answers(5, 4)
    trials = trials.astype(float)
    trials.loc[3, "choice"] = wrong
    data = xr.Dataset({k: ("trial", v) for k, v in trials.items()})
    model = AveragedEvidence(logistic(-1.0, 0.6), t)
    said = rf"choice: {wrong:g} at trial 3 \(from 0\); wanted a whole number from 0 to 3, or NaN"
    with pytest.raises(ValueError, match=said):
        nd.fit(model, data, nd.Laplace(draws=20), seed=0)


def test_recovery_from_the_command_line(files, capsys):
    command = ["recover", str(files / "people.csv"), "--model", "stopped", "--sets", "20"]
    assert main(command) == 2
    assert "--evidence" in capsys.readouterr().err
    assert main([*command, "--evidence", str(files / "table.nc")]) == 0
    said = capsys.readouterr().out
    assert "weighting.law.scale" in said
    assert "observer.sensitivity" in said


def test_permuted_levels_keep_what_a_stimulus_reaches():
    t = table(own=np.array([-2.0, 0.0, 1.0, 2.0, 3.0, np.inf]))
    data = xr.Dataset({"shown": ("trial", [10.0]), "choice": ("trial", [0.0])})
    both = attach(data, t)
    other = permute(both, seed=0)
    assert np.array_equal(np.isnan(other["error"]), np.isnan(both["error"]))
    assert np.allclose(np.sort(other["error"], -1), np.sort(both["error"], -1), equal_nan=True)
    assert not np.allclose(other["error"], both["error"], equal_nan=True)


def test_a_single_group_of_answers_is_fitted_by_subject():
    # the same parameters for both subjects come back as such
    t, trials = answers(40, 30)
    subject = np.where(np.arange(len(trials)) % 2, "a", "b")
    data = xr.Dataset({k: ("trial", v.astype(float)) for k, v in trials.items()})
    data = attach(data.assign_coords(subject=("trial", subject)), t)
    model = AveragedEvidence(nd.SurvivalWeighting(nd.laws.Logistic()), t)
    tree = nd.fit(model, data, nd.Laplace(draws=200), by="subject", seed=0)
    loc = tree["posterior"].dataset["weighting.law.loc"]
    assert loc.sizes["subject"] == 2
    assert np.all(np.abs(loc.mean(["chain", "draw"]) + 1.0) < 4 * loc.std(["chain", "draw"]))
