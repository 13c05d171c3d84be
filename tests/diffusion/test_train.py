"""Training learns what it should, goes on where it was killed, and says what is wrong."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from torch import nn

import neurodiff as nd
from neurodiff.diffusion.adaptive import AdaptiveSchedule
from neurodiff.diffusion.denoiser import Denoiser, NetworkDenoiser
from neurodiff.diffusion.logsnr import alpha
from neurodiff.diffusion.loss import denoising_loss
from neurodiff.diffusion.networks import MLP
from neurodiff.diffusion.train import train

RUN = {"weighting": nd.weighting("sigmoid"), "schedule": nd.schedule("cosine"), "batch": 32}
X = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1


def small(dropout=0.0, classes=0):
    torch.manual_seed(0)
    return NetworkDenoiser(MLP((3,), 16, 2, dropout=dropout, classes=classes), "v")


class Spread(Denoiser):
    """The best denoiser of a Gaussian around 0, of a variance to be learned."""

    def __init__(self):
        super().__init__()
        self.log_variance = nn.Parameter(torch.tensor(0.0))

    def forward(self, z, logsnr, cond=None):
        snr = logsnr.exp()[:, None] * self.log_variance.exp()
        return z / alpha(logsnr)[:, None] * snr / (1 + snr)


@pytest.mark.parametrize("weighting", ["elbo", "sigmoid", "ddpm"])
def test_every_weighting_ends_at_the_truth_that_a_model_can_reach(weighting):
    x = (0.3 * torch.randn(5000, 1)).clamp(-1, 1)
    run = {**RUN, "weighting": nd.weighting(weighting), "batch": 256}
    done = train(Spread(), x, **run, steps=800, rate=2e-2, average=0.99)
    # a standard error of the log variance is sqrt(2 / 5000), more where few levels tell
    assert abs(done.denoiser.log_variance - x.var().log()) < 0.08


def test_the_given_denoiser_is_left_alone_and_the_seed_decides():
    start = small(dropout=0.3)
    before = {k: v.clone() for k, v in start.state_dict().items()}
    runs = [train(start, X, **RUN, steps=5, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(runs[0].losses, runs[1].losses)
    assert not np.array_equal(runs[0].losses, runs[2].losses)
    assert all(torch.equal(before[k], v) for k, v in start.state_dict().items())
    assert not runs[0].denoiser.training


def test_losses_are_draws_of_the_weighted_loss():
    done = train(small(), X, **{**RUN, "batch": 256}, steps=200, rate=1e-12)
    many = X.repeat(500, 1)
    known = denoising_loss(
        small(), many, weighting=RUN["weighting"], schedule=RUN["schedule"]
    ).detach()
    error = done.losses.std() / 200**0.5 + float(known.std()) / len(known) ** 0.5
    assert abs(done.losses.mean() - float(known.mean())) < 4.5 * error


def test_weights_are_averaged_less_in_the_first_steps():
    (average, last), start = (
        (
            dict(train(small(), X, **RUN, steps=1, average=a).denoiser.named_parameters())
            for a in (0.999, 0.0)
        ),
        dict(small().named_parameters()),
    )
    # after the first step a tenth of what was there stays
    for name, value in average.items():
        assert torch.allclose(value, 0.1 * start[name] + 0.9 * last[name], atol=1e-12)
    assert any((last[name] != start[name]).any() for name in start)


def test_conditions_are_used_and_dropped_now_and_then():
    x = torch.tensor([[-0.5] * 3, [0.5] * 3]).repeat(100, 1)
    label = torch.tensor([0, 1]).repeat(100)
    # the step makes a class worth knowing: at low logsnr z says nothing, the class all
    done = train(small(classes=2), x, cond=label, **RUN, steps=600, rate=3e-3).denoiser
    z, level = torch.zeros(2, 3), torch.tensor(-4.0)
    assert (
        done(z, level, torch.tensor([0, 1]))[:, 0] - torch.tensor([-0.5, 0.5])
    ).abs().max() < 0.1
    assert done(z, level).abs().max() < 0.15


SCRIPT = """
import sys, time, torch
import neurodiff as nd
from pathlib import Path
from neurodiff.diffusion.adaptive import AdaptiveSchedule
from neurodiff.diffusion.denoiser import Denoiser, NetworkDenoiser
from neurodiff.diffusion.logsnr import alpha
from neurodiff.diffusion.loss import denoising_loss
from neurodiff.diffusion.networks import MLP
from neurodiff.diffusion import train as module
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
net = NetworkDenoiser(MLP((3,), 16, 2, dropout=0.3, classes=2), "v")
x = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
if sys.argv[2] == "slow":
    one = module._step
    def slow(*a):
        time.sleep(0.02)
        one(*a)
    module._step = slow
done = module.train(net, x, cond=torch.arange(200) % 2, weighting=nd.weighting("sigmoid"),
    schedule=AdaptiveSchedule(bins=8), batch=32, steps=120, folder=Path(sys.argv[1]), every=10)
torch.save(torch.tensor(done.losses), sys.argv[1] + "/losses.pt")
torch.save(done.denoiser.state_dict(), sys.argv[1] + "/weights.pt")
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, script, whole, "fast"], check=True, timeout=120)
    process = subprocess.Popen([sys.executable, script, killed, "slow"])
    checkpoint = killed / "checkpoint.safetensors"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.15)  # in the middle of things
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "losses.pt").exists()
    subprocess.run([sys.executable, script, killed, "fast"], check=True, timeout=120)
    for name in ("losses.pt", "weights.pt"):
        a, b = (torch.load(f / name, weights_only=True) for f in (whole, killed))
        a, b = (x if isinstance(x, dict) else {"": x} for x in (a, b))
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert not list(killed.glob("*.part"))


def test_an_adaptive_schedule_is_learned_and_returned():
    given = AdaptiveSchedule(bins=8)
    done = train(small(), X, weighting=RUN["weighting"], schedule=given, batch=32, steps=20)
    assert torch.equal(given.law.logits, torch.zeros(8))
    assert done.schedule.law.logits.std() > 0.1


class Balanced(nn.Module):
    """Counts its lessons."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.tensor(0.0))

    def forward(self, logsnr):
        return torch.ones_like(logsnr)

    def update(self, logsnr, error):
        assert logsnr.shape == error.shape == (32,)
        self.seen += 1


def test_a_weighting_may_learn_too():
    done = train(small(), X, **{**RUN, "weighting": Balanced()}, steps=7)
    assert done.weighting.seen == 7


class Broken(nn.Module):
    """Not a number from the eleventh call on."""

    def __init__(self):
        super().__init__()
        self.a, self.calls = nn.Parameter(torch.tensor(0.0)), 0

    def forward(self, z, logsnr):
        self.calls += 1
        return z * (self.a if self.calls < 11 else self.a / 0.0)


def test_a_loss_that_is_no_number_stops_and_the_checkpoint_stays(tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"loss of step 10 is inf, at logsnr -.* to .*kept"
    ):
        train(NetworkDenoiser(Broken(), "v"), X, **RUN, steps=20, folder=tmp_path, every=5)
    assert (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(5, 3, dtype=torch.uint8), r"torch.uint8, wanted float in \[-1, 1\]"),
        (torch.full((5, 3), 3.0), "from 3 to 3"),
        (torch.full((5, 3), math.nan), "from nan to nan"),
    ],
)
def test_examples_that_are_no_images_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        train(small(), x, **RUN, steps=1)


def half_as_large(x, generator):
    return 0.5 * x


def test_a_broken_or_foreign_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    train(small(), X, **RUN, steps=4, folder=tmp_path)
    with pytest.raises(ValueError, match=r"is of another run: its rate is 0\.001, got 0\.1"):
        train(small(), X, **RUN, steps=4, folder=tmp_path, rate=0.1)
    with pytest.raises(ValueError, match="is of another run: its recipe"):
        train(small(), X, **{**RUN, "weighting": nd.weighting("elbo")}, steps=4, folder=tmp_path)
    with pytest.raises(ValueError, match=r"run: its prepare is None, got half_as_large; name"):
        train(small(), X, **RUN, steps=4, folder=tmp_path, prepare=half_as_large)
    wider = NetworkDenoiser(MLP((3,), 32, 2), "v")
    with pytest.raises(ValueError, match="is of another run: its model"):
        train(wider, X, **RUN, steps=4, folder=tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"no whole checkpoint .* remove it to begin"):
        train(small(), X, **RUN, steps=4, folder=tmp_path)
