"""Training in two processes is training in one, up to rounding."""

import os
import socket
import subprocess
import sys

import torch

# float64, so that what differs is the order of sums; no dropout, which each process draws alone
SCRIPT = """
import sys, torch
from pathlib import Path
import neurodiff as nd
from neurodiff.diffusion.adaptive import AdaptiveSchedule
from neurodiff.diffusion.balance import UncertaintyBalance
from neurodiff.diffusion.denoiser import NetworkDenoiser
from neurodiff.diffusion.networks import MLP
from neurodiff.diffusion.train import train
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
folder, steps, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
import os
torch.manual_seed(int(os.environ.get("RANK", 0)))  # the first one's weights must win
net = NetworkDenoiser(MLP((3,), 16, 2, classes=2, drop=0.0), "v")
x = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
def stop(z, generator):
    stop.left -= 1
    if stop.left == 0:
        raise SystemExit(3)
    return z
stop.left = steps + 1
done = train(net, x, cond=torch.arange(200) % 2, weighting=UncertaintyBalance(bins=8),
    schedule=AdaptiveSchedule(bins=8), batch=batch, steps=20, folder=folder, every=4, prepare=stop)
if int(os.environ.get("RANK", 0)) == 0:
    torch.save(torch.tensor(done.losses), folder / "losses.pt")
torch.save(done.denoiser.state_dict(), folder / f"weights{os.environ.get('RANK', 0)}.pt")
"""


def run(folder, processes, steps=20, batch=15):
    """The exit codes; of an odd batch, whose shares are unequal."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    where = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, folder, str(steps), str(batch)],
            env={**os.environ, **({"RANK": str(r), **where} if processes > 1 else {})},
        )
        for r in range(processes)
    ]
    return [p.wait(timeout=120) for p in started]


def left(folder, rank=0):
    names = ("losses.pt", f"weights{rank}.pt")
    losses, weights = (torch.load(folder / name, weights_only=True) for name in names)
    return losses, weights


def alike(a, b):
    assert torch.allclose(a[0], b[0], rtol=1e-10)
    # Adam divides by the root of its second moment: rounding of small gradients grows
    assert all(torch.allclose(a[1][k], b[1][k], rtol=1e-6, atol=1e-9) for k in a[1])


def test_two_processes_train_as_one_does_and_go_on_as_one(tmp_path):
    assert run(tmp_path / "one", 1) == [0]
    assert run(tmp_path / "two", 2) == [0, 0]
    one, two = left(tmp_path / "one"), left(tmp_path / "two")
    alike(one, two)
    # both end with the same averaged weights, to the bit
    again = torch.load(tmp_path / "two" / "weights1.pt", weights_only=True)
    assert all(torch.equal(two[1][k], again[k]) for k in again)
    # two processes stopped at step 10, and went on as two from 8; or as one
    assert run(tmp_path / "cut", 2, steps=10) == [3, 3]
    kept = (tmp_path / "cut" / "checkpoint.safetensors").read_bytes()
    assert run(tmp_path / "cut", 2) == [0, 0]
    alike(one, left(tmp_path / "cut"))
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "checkpoint.safetensors").write_bytes(kept)
    assert run(tmp_path / "single", 1) == [0]
    alike(one, left(tmp_path / "single"))
