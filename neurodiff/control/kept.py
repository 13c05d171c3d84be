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

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neurodiff.control.files import Resuming, below, moments, read, remember, resume, write

if TYPE_CHECKING:
    from neurodiff.control.imitation import Imitation

_KEPT = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class Keep(Resuming):
    """Keeps a run, and goes on from what is kept: ``agent.learn(steps, callback=Keep(path))``.

    The same call begins a run, and after a kill goes on with it.

    Args:
        path: of the file, written aside and renamed.
        every: environment steps from one checkpoint to the next, at the least.

    Raises:
        ValueError: at the start of learning, a file that is not whole or of another run.
    """

    def __init__(self, path: Path, every: int = 2_000) -> None:
        super().__init__(path, every, save, restore, _cut)


def save(agent: "Imitation", path: Path) -> None:
    """Keep an agent, in one file that is whole or not there.

    Args:
        agent: DIFO or SMILING.
        path: of the file; its folder is made.
    """
    own: dict[str, Tensor] = {}
    for name, part in _modules(agent).items():
        own |= {f"{name}.{k}": v for k, v in part.state_dict().items()}
    for name, optimizer in _optimizers(agent).items():
        own |= moments(optimizer, name)
    if agent.log_ent_coef is not None:
        own["log_ent_coef"] = agent.log_ent_coef
    buffer = agent.replay_buffer
    assert buffer is not None  # made with the agent
    for name in _KEPT:
        own[f"buffer.{name}"] = torch.from_numpy(getattr(buffer, name)[: buffer.size()].copy())
    write(agent, path, own, settings(agent), position=buffer.pos, full=buffer.full)


def restore(agent: "Imitation", path: Path) -> None:
    """Make an agent what it was when :func:`save` kept it; its environments stay where they are.

    Args:
        agent: made with the same arguments.
        path: of the file.

    Raises:
        ValueError: a file that is not whole, or of an agent of other arguments.
    """
    header, found = read(path, settings(agent))
    for name, part in _modules(agent).items():
        part.load_state_dict(below(found, name))
    for name, optimizer in _optimizers(agent).items():
        remember(optimizer, found, name)
    if agent.log_ent_coef is not None:
        agent.log_ent_coef.data.copy_(found["log_ent_coef"])
    buffer = agent.replay_buffer
    assert buffer is not None  # made with the agent
    for name in _KEPT:
        part = found[f"buffer.{name}"].numpy()
        getattr(buffer, name)[: len(part)] = part
    buffer.pos, buffer.full = header["position"], header["full"]
    resume(agent, header, found)


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
