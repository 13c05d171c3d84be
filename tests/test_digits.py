"""The demonstration on digits, small: it tells a step from the ELBO, and leaves what it says."""

import numpy as np
import pandas as pd
import pytest
import torch

from neurodiff import digits
from neurodiff.cli import main
from neurodiff.perception.stored import read_table


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(digits, "AVERAGED", ("elbo", "step"))
    monkeypatch.setattr(digits, "STOPPED", ("step",))


def test_demonstration(tmp_path):
    share = digits.demonstrate(tmp_path / "run", count=30, sets=2, seed=0)
    assert np.allclose(share.sum(axis=1), 1)
    assert share.loc["elbo, averaged", "elbo, averaged"] == 1
    assert share.loc["step, averaged", "elbo, averaged"] == 0
    table = read_table(tmp_path / "run" / "evidence.nc")
    assert table["error"].shape == (150, 10, 26)
    # nothing is asked above the SNR of a digit in noise, and clean ones are recognised
    ends = table["width"].sum("logsnr").values.reshape(5, 30)[:, 0] - 9.0
    assert np.allclose(ends[:-1], digits.SHOWN[:-1])
    cost = (table["width"] * table["error"]).fillna(0.0).sum("logsnr").values
    label = digits.pictures(30)[3].numpy()
    right = (cost.argmin(1) == label).reshape(5, 30).mean(1)
    assert right[-1] > 0.9
    assert right[0] < 0.5
    told = pd.read_csv(tmp_path / "run" / "contraction.csv").groupby("digits")["contraction"].mean()
    assert told["noisy"] > told["clean"]
    assert (tmp_path / "run" / "figures" / "confusion.png").stat().st_size > 10_000


def test_a_demonstration_that_was_cut_short_goes_on(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    whole = digits.confusion
    monkeypatch.setattr(digits, "confusion", stopped)
    with pytest.raises(KeyboardInterrupt):
        digits.demonstrate(tmp_path, count=10, sets=1, seed=0)
    monkeypatch.setattr(digits, "confusion", whole)
    made = (tmp_path / "evidence.nc").stat().st_mtime_ns
    digits.demonstrate(tmp_path, count=10, sets=1, seed=0)
    assert (tmp_path / "evidence.nc").stat().st_mtime_ns == made
    assert (tmp_path / "figures" / "confusion.png").exists()
    with pytest.raises(ValueError, match="is not empty: name a new folder, or one that a demo"):
        digits.demonstrate(tmp_path, count=10, sets=1, seed=0)


def test_folder_that_holds_something(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["demo", "--images", "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_the_exact_denoiser_knows_its_training_digits():
    denoiser, shown, _, label = digits.pictures(20)
    clean, k = shown[-20:], label[-20:]
    g = torch.Generator().manual_seed(0)
    noisy = clean + 0.05 * torch.randn(clean.shape, generator=g, dtype=clean.dtype)
    logsnr = torch.full((20,), 6.0, dtype=clean.dtype)
    z = noisy * torch.sigmoid(logsnr).sqrt()[:, None, None]
    own = denoiser(z, logsnr, k).sub(clean).square().sum((1, 2))
    other = denoiser(z, logsnr, (k + 1) % 10).sub(clean).square().sum((1, 2))
    assert (own < other).double().mean() > 0.9
