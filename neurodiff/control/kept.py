r"""A run of soft actor-critic that goes on where it was killed, in one file of safetensors.

.. math:: \text{file} = (\text{actor, critics, } α, θ, \text{Adam}, \text{replay buffer},
    \text{random states}, \text{steps, episodes})

Resumed, to the bit on a CPU: networks with their optimisers, the filled part of the replay buffer,
the random states of torch and numpy, the counts of steps and updates, the episodes of the log's
mean. *Not* resumed: where the environments are. A checkpoint is a cut: where one is written, the
episodes under way end, without being called an end, and environments and the warm-up's random
actions are seeded anew from the random state that was kept; so a run that was killed goes on like
one that was not, if its environments follow from their seed. Not kept either are the clock, the
episode number of the log, and action noise.
"""

import json
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neurodiff.control import without_extra

try:
    from stable_baselines3.common.callbacks import BaseCallback
except ModuleNotFoundError as error:
    raise without_extra(error) from error

if TYPE_CHECKING:
    from neurodiff.control.imitation import Imitation

_KEPT = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class Keep(BaseCallback):
    """Keeps a run, and goes on from what is kept: ``agent.learn(steps, callback=Keep(path))``.

    The same call begins a run, and after a kill goes on with it.

    Args:
        path: of the file, written aside and renamed.
        every: environment steps from one checkpoint to the next, at the least.

    Raises:
        ValueError: at the start of learning, a file that is not whole or of another run.
    """

    model: "Imitation"  # pyright: ignore

    def __init__(self, path: Path, every: int = 2_000) -> None:
        super().__init__()
        self.path, self.every, self.last = Path(path), every, 0

    def _on_training_start(self) -> None:
        if self.path.exists():
            restore(self.model, self.path)
            _cut(self.model)
        self.last = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps >= self.last + self.every:
            save(self.model, self.path)
            _cut(self.model)
            self.last = self.model.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        save(self.model, self.path)


def save(agent: "Imitation", path: Path) -> None:
    """Keep an agent, in one file that is whole or not there.

    Args:
        agent: DIFO or SMILING.
        path: of the file; its folder is made.
    """
    found = {}
    for name, part in _modules(agent).items():
        found |= {f"{name}.{k}": v for k, v in part.state_dict().items()}
    for name, optimizer in _optimizers(agent).items():
        for i, slot in optimizer.state_dict()["state"].items():
            found |= {f"{name}.{i}.{k}": torch.as_tensor(v) for k, v in slot.items()}
    if agent.log_ent_coef is not None:
        found["log_ent_coef"] = agent.log_ent_coef
    buffer = agent.replay_buffer
    assert buffer is not None  # made with the agent
    for name in _KEPT:
        found[f"buffer.{name}"] = torch.from_numpy(getattr(buffer, name)[: buffer.size()].copy())
    # stable-baselines3 draws from numpy's own generator
    _, key, *numpy = np.random.get_state()  # noqa: NPY002
    found["random.torch"] = torch.get_rng_state()
    found["random.numpy"] = torch.from_numpy(np.asarray(key).astype(np.int64))
    header = {
        "settings": settings(agent), "steps": agent.num_timesteps, "updates": agent._n_updates,
        "numpy": numpy, "position": buffer.pos, "full": buffer.full,
        "episodes": [{k: float(e[k]) for k in "rlt"} for e in agent.ep_info_buffer or ()],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}
    save_file(whole, aside, {"agent": json.dumps(header)})
    aside.replace(path)


def restore(agent: "Imitation", path: Path) -> None:
    """Make an agent what it was when :func:`save` kept it; its environments stay where they are.

    Args:
        agent: made with the same arguments.
        path: of the file.

    Raises:
        ValueError: a file that is not whole, or of an agent of other arguments.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["agent"])
            found = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no whole checkpoint ({error}): remove it to begin") from error
    for name, value in json.loads(json.dumps(settings(agent))).items():
        if (there := header["settings"].get(name)) != value:
            raise ValueError(
                f"{path} is of another run: its {name} is {there}, got {value}; name another "
                "file, or remove it"
            )
    for name, part in _modules(agent).items():
        own = {k.removeprefix(f"{name}."): v for k, v in found.items() if k.startswith(f"{name}.")}
        part.load_state_dict(own)
    for name, optimizer in _optimizers(agent).items():
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in found.items():
            if key.startswith(f"{name}."):
                i, slot = key.removeprefix(f"{name}.").split(".")
                slots.setdefault(int(i), {})[slot] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    if agent.log_ent_coef is not None:
        agent.log_ent_coef.data.copy_(found["log_ent_coef"])
    buffer = agent.replay_buffer
    assert buffer is not None  # made with the agent
    for name in _KEPT:
        part = found[f"buffer.{name}"].numpy()
        getattr(buffer, name)[: len(part)] = part
    buffer.pos, buffer.full = header["position"], header["full"]
    agent.num_timesteps, agent._n_updates = header["steps"], header["updates"]
    agent.ep_info_buffer = deque(header["episodes"], maxlen=agent._stats_window_size)
    torch.set_rng_state(found["random.torch"])
    key = found["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, *header["numpy"]))  # noqa: NPY002


def settings(agent: "Imitation") -> dict[str, Any]:
    """What two runs must share for one to go on with the other's checkpoint."""
    names = ("n_envs", "buffer_size", "learning_starts", "batch_size", "tau", "gamma", "seed",
             "gradient_steps", "target_entropy", "looks", *agent.own)  # fmt: skip
    found = {name: getattr(agent, name) for name in names}
    grid = torch.linspace(-8.0, 8.0, 9)
    with torch.no_grad():
        values = (*agent.weighting(grid).tolist(), *agent.noise.t(grid).tolist())
    shown = agent.shown.pairs
    return found | {
        "algorithm": type(agent).__name__,
        "learning_rate": agent.lr_schedule(1.0),
        "rate": agent.denoiser_optimizer.param_groups[0]["lr"],
        "train_freq": [agent.train_freq.frequency, agent.train_freq.unit.value],  # pyright: ignore
        "networks": [f"{k} {tuple(v.shape)}" for part in _modules(agent).values()
                     for k, v in part.state_dict().items()],
        "weighting and schedule": [f"{v:.6g}" for v in values],
        "demonstrations": [len(shown), f"{shown.double().square().sum().item():.6g}"],
    }  # fmt: skip


def _modules(agent: "Imitation") -> dict[str, torch.nn.Module]:
    return {"policy": agent.policy, "denoiser": agent.denoiser, **agent.beside()}


def _optimizers(agent: "Imitation") -> dict[str, torch.optim.Optimizer]:
    found = {"actor": agent.actor.optimizer, "critic": agent.critic.optimizer,
             "theta": agent.denoiser_optimizer, "alpha": agent.ent_coef_optimizer}  # fmt: skip
    return {f"adam {name}": value for name, value in found.items() if value is not None}


def _cut(agent: "Imitation") -> None:
    """Seed the environments and their random actions from the random state, and begin episodes."""
    env = agent.env
    assert env is not None  # it is learning
    env.seed(int(np.random.randint(2**31 - 1)))  # noqa: NPY002
    agent.action_space.seed(int(np.random.randint(2**31 - 1)))  # noqa: NPY002
    agent._last_obs = env.reset()  # pyright: ignore
