"""Runs that are killed and go on are those that were not."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors import safe_open
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import neurodiff as nd
from neurodiff.control.checkpoint import Checkpoint
from neurodiff.control.fpo import FPO
from neurodiff.control.gridworld import TwoGoals

SMALL = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


@pytest.fixture(autouse=True)
def _single():
    """As a process of its own has it; PPO works in no other precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


class Interrupt(BaseCallback):
    """Stops a run from within a rollout."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def _on_step(self):
        if self.num_timesteps >= self.at:
            raise KeyboardInterrupt
        return True


def agent(normalize=False, kind=FPO, **changes):
    env = make_vec_env(lambda: TwoGoals(spread=0.5), 2, seed=0)
    env = VecNormalize(env) if normalize else env
    return kind("MlpPolicy", env, **{**SMALL, **changes})


def state(agent):
    """All that training changes, by name."""
    found = dict(agent.policy.state_dict())
    for i, slot in agent.policy.optimizer.state_dict()["state"].items():
        found |= {f"{i}.{name}": torch.as_tensor(value) for name, value in slot.items()}
    episodes = [e["r"] for e in agent.ep_info_buffer]
    counts = [agent.num_timesteps, agent._n_updates, *episodes]
    return {**found, "counts": torch.tensor(counts)}


def alike(first, second):
    """To the bit."""
    one, two = state(first), state(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", [FPO, PPO])
def test_an_interrupted_run_goes_on_to_the_bit(tmp_path, kind, normalize):
    whole = agent(normalize, kind).learn(384, callback=Checkpoint(tmp_path / "whole", every=128))
    path = tmp_path / "cut.safetensors"
    with pytest.raises(KeyboardInterrupt):
        agent(normalize, kind).learn(
            384, callback=CallbackList([Checkpoint(path, every=128), Interrupt(220)])
        )
    torch.rand(5)  # whatever happens in between
    again = agent(normalize, kind).learn(384, callback=Checkpoint(path, every=128))
    assert alike(whole, again)
    if normalize:
        assert (whole.get_env().obs_rms.mean == again.get_env().obs_rms.mean).all()


def test_a_run_that_was_killed_goes_on(tmp_path):
    """SIGKILL in the middle of a process of its own; then the rest here, against a whole run."""
    path, code = tmp_path / "run.safetensors", textwrap.dedent("""
        import sys, torch
        torch.set_num_threads(1)
        from pathlib import Path
        from stable_baselines3.common.env_util import make_vec_env
        from neurodiff.control.checkpoint import Checkpoint
        from neurodiff.control.fpo import FPO
        from neurodiff.control.gridworld import TwoGoals
        env = make_vec_env(lambda: TwoGoals(spread=0.5), 2, seed=0)
        agent = FPO("MlpPolicy", env, n_steps=32, batch_size=16, n_epochs=2, seed=0, device="cpu")
        agent.learn(10_000_000, callback=Checkpoint(Path(sys.argv[1]), every=64))
    """)  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    for _ in range(600):
        time.sleep(0.1)
        if path.exists():
            break
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with safe_open(path, "pt") as file:
        reached = json.loads(file.metadata()["agent"])["steps"]
    assert reached >= 64
    again = agent().learn(reached + 128, callback=Checkpoint(path, every=64))
    whole = agent().learn(reached + 128, callback=Checkpoint(tmp_path / "whole", every=64))
    assert alike(whole, again)


def test_a_run_that_is_done_stays(tmp_path):
    callback = Checkpoint(tmp_path / "run", every=64)
    done = agent().learn(128, callback=callback)
    assert alike(done, agent().learn(128, callback=Checkpoint(tmp_path / "run", every=64)))


def test_saved_agents_act_alike(tmp_path):
    first = agent()
    first.learn(64)
    first.save(tmp_path / "agent")
    second = FPO.load(tmp_path / "agent", make_vec_env(TwoGoals, 2), **SMALL)
    s = first.get_env().reset()
    assert (
        first.predict(s, deterministic=True)[0] == second.predict(s, deterministic=True)[0]
    ).all()
    assert alike(first, second)
    # no pickle: the header of safetensors is JSON
    assert (tmp_path / "agent.safetensors").read_bytes()[8:9] == b"{"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_epochs": 3}, "n_epochs is 2, got 3"),
        ({"clip_range": 0.1}, "clip_range is 0.05, got 0.1"),
        ({"weighting": nd.weighting("elbo")}, "weighting and schedule"),
        ({"policy_kwargs": {"net_arch": [32]}}, "policy"),
        ({"parameterization": "eps"}, "parameterization is flow, got eps"),
    ],
)
def test_another_run_is_refused(tmp_path, changes, named):
    agent().save(tmp_path / "agent")
    with pytest.raises(ValueError, match=f"is of another run: its {named}"):
        FPO.load(tmp_path / "agent", make_vec_env(TwoGoals, 2), **{**SMALL, **changes})


def test_a_broken_file_is_refused(tmp_path):
    path = tmp_path / "agent.safetensors"
    agent().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole checkpoint"):
        FPO.load(path, make_vec_env(TwoGoals, 2), **SMALL)
    with pytest.raises(ValueError, match="no whole checkpoint"):
        FPO.load(tmp_path / "none", make_vec_env(TwoGoals, 2), **SMALL)


def test_other_algorithms_are_refused(tmp_path):
    other = SAC("MlpPolicy", TwoGoals(), policy_kwargs={"net_arch": [8]}, buffer_size=10)
    with pytest.raises(TypeError, match="got SAC, wanted FPO or another on-policy algorithm"):
        other.learn(1, callback=Checkpoint(tmp_path / "run"))
