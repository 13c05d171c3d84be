"""Runs read again, and ``compare --share weighting`` as a user calls it."""

import json

import numpy as np
import pandas as pd
import pytest

from neurodiff.cli import main
from neurodiff.plot_sharing import prior_width
from neurodiff.runs import found_again, shared_parts


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two runs of two people together, from files of one's own."""
    home, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    for name, place in (("dots", 0.0), ("faces", 1.0)):
        rows = []
        for subject in "ab":
            logsnr = np.tile(np.linspace(-4, 4, 8), 20)
            p = 0.5 + 0.48 / (1 + np.exp(-(logsnr - place) / 0.8))
            right = (rng.random(len(p)) < p).astype(int)
            rows.append(pd.DataFrame({"subject": subject, "logsnr": logsnr, "correct": right}))
        pd.concat(rows).to_csv(home / f"{name}.csv", index=False)
        fit = ["fit", f"{home}/{name}.csv", "--model", "threshold", "--law", "logistic"]
        fit += ["--choices", "2", "--out", f"{home}/{name}"]
        assert main(fit) == 0
    return home / "dots", home / "faces"


def test_one_call_compares_the_ways_to_share(folders, tmp_path, capsys):
    out = tmp_path / "shared"
    call = ["compare", "--share", "weighting", *map(str, folders), "--out", str(out)]
    assert main(call) == 0
    said = capsys.readouterr().out
    table = pd.read_csv(out / "shared.csv")
    assert list(table["sharing"]) == ["one w", "one w, shifted", "all apart"]
    assert all(name in said for name in table["sharing"])
    assert list(table["parameters"]) == [2 + 4, 2 + 4 + 2, 4 + 4]
    assert (table["elpd_diff"] <= 0).all()
    assert (table.loc[1:, "bf_se"] < 0.3).all()
    assert (table["ln_bf_laplace"] - table["ln_bf_bridge"]).abs().max() < 1.5
    widths = pd.read_csv(out / "prior-width.csv")
    assert set(widths["width"]) == {0.25, 0.5, 1.0, 2.0, 4.0}
    assert (out / "prior-width.png").stat().st_size > 5_000
    assert len(prior_width(widths).axes) == 1
    assert main(call) == 2  # the folder is not empty now
    assert "is not empty" in capsys.readouterr().err


def test_a_run_reads_its_data_again_and_refuses_others(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # runs may be compared from anywhere
    (parts,) = shared_parts(folders).values()
    assert [part.person for part in parts] == ["dots", "faces"]
    file = folders[0].parent / "dots.csv"
    kept = file.read_text()
    try:
        file.write_text(kept.replace(",1\n", ",0\n", 1))
        with pytest.raises(ValueError, match="not those that were fitted"):
            shared_parts(folders)
        file.unlink()
        with pytest.raises(ValueError, match="cannot be read again"):
            shared_parts(folders)
    finally:
        file.write_text(kept)


def test_people_of_a_hierarchical_run_are_parts_of_their_own(folders, tmp_path):
    for folder in folders:
        facts = json.loads((folder / "run.json").read_text())
        (tmp_path / folder.name).mkdir()
        (tmp_path / folder.name / "run.json").write_text(json.dumps(facts | {"by": "subject"}))
    (parts,) = shared_parts([tmp_path / folder.name for folder in folders]).values()
    assert [part.person for part in parts] == ["a", "b", "a", "b"]
    assert len({part.name for part in parts}) == 4
    assert all(part.copies.sum() == 160 for part in parts)


def test_runs_without_a_weighting_in_common_are_refused(folders, tmp_path):
    other = tmp_path / "other"
    file = folders[0].parent / "dots.csv"
    fit = ["fit", str(file), "--model", "threshold", "--law", "normal", "--choices", "2"]
    assert main([*fit, "--out", str(other)]) == 0
    with pytest.raises(ValueError, match="no learned weighting in common"):
        shared_parts([folders[0], other])
    facts = json.loads((other / "run.json").read_text())
    del facts["read"]
    (other / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="does not say what the run has read"):
        shared_parts([other])
    with pytest.raises(ValueError, match=r"no run\.json"):
        shared_parts([tmp_path])


def test_names_of_data_stay_and_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert found_again("palmer2005-human-rdm") == "palmer2005-human-rdm"
    assert found_again("sessions/*.nc") == f"{tmp_path}/sessions/*.nc"
