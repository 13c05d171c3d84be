"""`neurodiff train`: what it leaves behind, that it goes on, and what it refuses."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from neurodiff.cli import main
from neurodiff.diffusion.saved import load

SMALL = ["--steps", "6", "--batch", "8", "--width", "16"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("neurodiff.training._EVERY", 2)
    image = np.random.default_rng(0).integers(0, 256, (20, 4, 6), dtype=np.uint8)
    np.savez("own.npz", image=image, label=np.arange(20) % 3)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # as it is in the program
    yield tmp_path
    torch.set_default_dtype(before)


def test_a_run_leaves_a_denoiser_losses_and_a_figure(here, capsys):
    assert main(["train", "own.npz", *SMALL, "--recipe", "edm", "--out", "run"]) == 0
    assert "20 images of 1 x 4 x 6, 3 classes" in capsys.readouterr().out
    losses = pd.read_csv("run/losses.csv")
    assert losses["step"].tolist() == list(range(6))
    assert np.isfinite(losses["loss"]).all()
    denoiser = load(Path("run/denoiser.safetensors"))
    assert denoiser.parameterization == "F"
    z = torch.zeros(2, 1, 4, 6)
    assert denoiser(z, torch.tensor(0.0), torch.tensor([0, 2])).shape == z.shape
    about = json.loads(Path("run/run.json").read_text())
    assert about["settings"]["arguments"]["classes"] == 3
    for kind in ("png", "pdf"):
        assert Path(f"run/figures/training.{kind}").stat().st_size > 5000
    assert not list(here.rglob("*.part"))


@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_names_stand_in_for_the_recipes(here, network):
    tokens = ["train", "digits", *SMALL, "--network", network, "--no-classes", "--out", "run"]
    tokens += ["--weighting", "sigmoid", "--schedule", "flow", "--parameterization", "x"]
    assert main(tokens) == 0
    settings = json.loads(Path("run/run.json").read_text())["settings"]
    assert settings["parameterization"] == load(Path("run/denoiser.safetensors")).parameterization
    assert (settings["parameterization"], settings["arguments"]["classes"]) == ("x", 0)


def test_a_run_that_was_interrupted_goes_on_to_the_same_weights(here):
    assert main(["train", "own.npz", *SMALL, "--out", "whole"]) == 0
    command = [sys.executable, "-c", SCRIPT, "train", "own.npz", *SMALL, "--out", "cut"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not Path("cut/checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "--resume" in err
    assert not Path("cut/denoiser.safetensors").exists()
    tokens = ["train", "own.npz", *SMALL, "--out", "cut", "--resume"]
    assert main([*tokens, "--seed", "1"]) == 2
    assert main(tokens) == 0
    assert Path("cut/losses.csv").read_text() == Path("whole/losses.csv").read_text()
    ours, theirs = (Path(f"{f}/denoiser.safetensors").read_bytes() for f in ("cut", "whole"))
    assert ours == theirs


# so slow that it is still at work when it is interrupted
SCRIPT = """
import sys, time
import torch
torch.set_num_threads(1)  # as in these tests: sums over threads end in other last bits
from neurodiff import cli, training
from neurodiff.diffusion import train
training._EVERY, one = 2, train._step
def slow(*given):
    time.sleep(0.5)
    one(*given)
train._step = slow
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["digit"], "did you mean digits"),
        (["grasshopper-receptor/1"], "has no variable 'image'"),
        (["none.npz"], "none.npz: there is no such file"),
        (["own.npz", "--recipe", "edn"], "unknown recipe 'edn'; did you mean 'edm'"),
        (["own.npz", "--weighting", "sigmoids"], "did you mean 'sigmoid'"),
        (["own.npz", "--schedule", "cosin"], "did you mean 'cosine'"),
        (["own.npz", "--parameterization", "velocity"], "unknown parameterization 'velocity'"),
        (["own.npz", "--network", "unet"], "sides that are multiples of 4"),
        (["own.npz", "--steps", "0"], "got steps 0, wanted it above 0"),
        (["own.npz", "--device", "gpu"], "device"),
        (["own.npz", "--device", "cuda"], "torch finds none here"),
        (["own.npz", "--resume"], "nothing to resume"),
        (["own.npz", "--out", "own.npz"], "own.npz is not an empty folder"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(here, tokens, message, capsys):
    if "cuda" in tokens and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    more = [] if "--out" in tokens else ["--out", "run"]
    assert main(["train", *tokens, *more]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert [p.name for p in here.iterdir()] == ["own.npz"]


def test_a_folder_of_another_run_is_left_alone(here, capsys):
    tokens = ["train", "own.npz", *SMALL, "--out", "run"]
    assert main(tokens) == 0
    before = Path("run/losses.csv").read_text()
    assert main(tokens) == 2
    assert "--resume" in capsys.readouterr().err
    image = np.zeros((20, 4, 6), dtype=np.uint8)
    np.savez("own.npz", image=image, label=np.arange(20) % 3)
    assert main([*tokens, "--resume"]) == 2
    assert "its sha256 is" in capsys.readouterr().err
    assert Path("run/losses.csv").read_text() == before


def test_a_loss_that_is_not_finite_is_one_message(here, capsys):
    tokens = ["train", "own.npz", *SMALL, "--rate", "1e30", "--out", "run"]
    assert main(tokens) == 1
    err = capsys.readouterr().err
    assert "the loss of step" in err
    assert "Traceback" not in err
