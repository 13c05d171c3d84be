"""Imitation that is killed and goes on is that which was not."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from imitators import ARGUMENTS, agent, upwards
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

import neurodiff as nd
from neurodiff.control.difo import DIFO
from neurodiff.control.gridworld import TwoGoals
from neurodiff.control.kept import Keep
from neurodiff.control.smiling import SMILING


class Interrupt(BaseCallback):
    """Stops a run on its way."""

    def _on_step(self):
        if self.num_timesteps >= 70:
            raise KeyboardInterrupt
        return True


def state(agent):
    """All that training changes, by name."""
    found = {f"policy.{k}": v for k, v in agent.policy.state_dict().items()}
    found |= {f"denoiser.{k}": v for k, v in agent.denoiser.state_dict().items()}
    for part in (agent.actor, agent.critic, agent):
        own = part.denoiser_optimizer if part is agent else part.optimizer
        for i, slot in own.state_dict()["state"].items():
            found |= {f"{type(part).__name__}.{i}.{k}": torch.as_tensor(v) for k, v in slot.items()}
    found["alpha"] = agent.log_ent_coef
    for name in ("observations", "next_observations", "actions", "dones", "timeouts"):
        found[name] = torch.from_numpy(getattr(agent.replay_buffer, name))
    counts = [agent.num_timesteps, agent._n_updates, agent.replay_buffer.pos]
    episodes = [e["r"] for e in agent.ep_info_buffer]
    return {**found, "counts": torch.tensor([*counts, *episodes])}


def alike(first, second):
    """To the bit."""
    one, two = state(first), state(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# the buffer of 40 is full, and begins anew, before the run is interrupted
@pytest.mark.parametrize("size", [1000, 40])
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_an_interrupted_run_goes_on_to_the_bit(tmp_path, kind, size):
    whole = agent(kind, buffer_size=size).learn(100, callback=Keep(tmp_path / "whole", every=30))
    path = tmp_path / "cut.safetensors"
    with pytest.raises(KeyboardInterrupt):
        agent(kind, buffer_size=size).learn(
            100, callback=CallbackList([Keep(path, every=30), Interrupt()])
        )
    torch.rand(5)  # whatever happens in between
    again = agent(kind, buffer_size=size).learn(100, callback=Keep(path, every=30))
    assert alike(whole, again)


def test_a_run_that_was_killed_goes_on(tmp_path):
    """SIGKILL in the middle of a process of its own: what is kept is whole, and goes on."""
    path, code = tmp_path / "run.safetensors", textwrap.dedent("""
        import sys, torch
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float64)
        from pathlib import Path
        from neurodiff.control.difo import DIFO
        from neurodiff.control.kept import Keep
        from imitators import agent
        agent(DIFO).learn(10_000_000, callback=Keep(Path(sys.argv[1]), every=20))
    """)  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path])},
    )
    for _ in range(600):
        time.sleep(0.1)
        if path.exists():
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = DIFO.load(path, TwoGoals(), upwards(), **ARGUMENTS[DIFO])
    reached = again.num_timesteps
    assert reached >= 20
    again = agent(DIFO).learn(reached + 20, callback=Keep(path, every=20))
    whole = agent(DIFO).learn(reached + 20, callback=Keep(tmp_path / "whole", every=20))
    assert alike(whole, again)


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_saved_agents_act_alike(tmp_path, kind):
    first = agent(kind).learn(40)
    first.save(tmp_path / "agent")
    second = kind.load(tmp_path / "agent", TwoGoals(), upwards(), **ARGUMENTS[kind])
    s = first.get_env().reset()
    acts = [a.predict(s, deterministic=True)[0] for a in (first, second)]
    assert (acts[0] == acts[1]).all()
    assert alike(first, second)
    # no pickle: the header of safetensors is JSON
    assert (tmp_path / "agent.safetensors").read_bytes()[8:9] == b"{"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gain": 2.0}, "gain is 1.0, got 2.0"),
        ({"gamma": 0.5}, "gamma is 0.99, got 0.5"),
        ({"rate": 1e-2}, "rate is 0.001, got 0.01"),
        ({"weighting": nd.weighting("elbo")}, "weighting and schedule"),
        ({"width": 16}, "networks"),
        ({"data": upwards(3)}, "demonstrations"),
    ],
)
def test_another_run_is_refused(tmp_path, changes, named):
    agent(DIFO).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=f"is of another run: its {named}"):
        agent(DIFO, **changes).learn(20, callback=Keep(tmp_path / "agent.safetensors"))


def test_another_algorithm_and_a_broken_file_are_refused(tmp_path):
    path = tmp_path / "agent.safetensors"
    agent(DIFO).save(path)
    with pytest.raises(ValueError, match="is of another run"):
        agent(SMILING).learn(20, callback=Keep(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole checkpoint"):
        agent(DIFO).learn(20, callback=Keep(path))
