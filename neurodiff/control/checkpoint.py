r"""Training that goes on where it was killed: one file of safetensors, with JSON in its header.

.. math:: \text{file} = (θ, \text{Adam}, \text{random states}, \text{steps, episodes, averages})

The state of an environment cannot be kept in general. So a checkpoint is a cut: where one is
written, the episodes under way end (their values are bootstrapped, as at every end of a rollout)
and the environments are seeded anew, from the random state that was kept. A run that was killed
and goes on from its last checkpoint is then, on a CPU and for environments that their seed
determines, that of one that was not, to the bit; what it did after that checkpoint it does again.
Not kept are the clock and the iteration number of the log.
"""

import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neurodiff.control import without_extra

try:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.vec_env import VecNormalize
except ModuleNotFoundError as error:
    raise without_extra(error) from error


class Checkpoint(BaseCallback):
    """Keeps a run, and goes on from what is kept: ``agent.learn(steps, callback=Checkpoint(p))``.

    The same call begins a run, and after a kill goes on with it.

    Args:
        path: of the file, written aside and renamed.
        every: environment steps from one checkpoint to the next, at the least.

    Raises:
        ValueError: at the start of learning, a file that is not whole or of another run.
    """

    def __init__(self, path: Path, every: int = 20_000) -> None:
        super().__init__()
        self.path, self.every, self.last = Path(path), every, 0

    def _on_training_start(self) -> None:
        agent = _on_policy(self.model)
        if self.path.exists():
            restore(agent, self.path)
            _cut(agent)
        self.last = agent.num_timesteps

    def _on_rollout_start(self) -> None:
        agent = _on_policy(self.model)
        if agent.num_timesteps >= self.last + self.every:
            save(agent, self.path)
            _cut(agent)
            self.last = agent.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        save(_on_policy(self.model), self.path)


def save(agent: OnPolicyAlgorithm, path: Path) -> None:
    """Keep an agent, in one file that is whole or not there.

    Args:
        agent: FPO, or another on-policy algorithm.
        path: of the file; its folder is made.
    """
    found = {f"policy.{k}": v for k, v in agent.policy.state_dict().items()}
    for i, slot in agent.policy.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in slot.items()}
    # stable-baselines3 draws from numpy's own generator
    _, key, *numpy = np.random.get_state()  # noqa: NPY002
    found["random.torch"] = torch.get_rng_state()
    found["random.numpy"] = torch.from_numpy(np.asarray(key).astype(np.int64))
    for name, average in _averages(agent).items():
        for part in ("mean", "var", "count"):
            found[f"normalize.{name}.{part}"] = torch.as_tensor(np.array(getattr(average, part)))
    header = {
        "settings": settings(agent),
        "steps": agent.num_timesteps,
        "updates": agent._n_updates,
        "numpy": numpy,
        "episodes": [{k: float(e[k]) for k in "rlt"} for e in agent.ep_info_buffer or ()],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}
    save_file(whole, aside, {"agent": json.dumps(header)})
    aside.replace(path)


def restore(agent: OnPolicyAlgorithm, path: Path) -> None:
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
    for name, value in settings(agent).items():
        if (there := header["settings"].get(name)) != value:
            raise ValueError(
                f"{path} is of another run: its {name} is {there}, got {value}; name another "
                "file, or remove it"
            )
    part = {name.partition(".")[2]: v for name, v in found.items() if name.startswith("policy.")}
    agent.policy.load_state_dict(part)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in found.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            slots.setdefault(int(i), {})[key] = value
    optimizer = agent.policy.optimizer
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    for name, average in _averages(agent).items():
        average.mean, average.var, count = (
            found[f"normalize.{name}.{part}"].numpy() for part in ("mean", "var", "count")
        )
        average.count = float(count)
    agent.num_timesteps, agent._n_updates = header["steps"], header["updates"]
    agent.ep_info_buffer = deque(header["episodes"], maxlen=agent._stats_window_size)
    torch.set_rng_state(found["random.torch"])
    key = found["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, *header["numpy"]))  # noqa: NPY002


def settings(agent: OnPolicyAlgorithm) -> dict[str, Any]:
    """What two runs must share for one to go on with the other's checkpoint."""
    names = ("n_steps", "n_envs", "batch_size", "n_epochs", "gamma", "gae_lambda", "vf_coef",
             "max_grad_norm", "seed", "n_mc", "mean_over_dimensions")  # fmt: skip
    found = {name: getattr(agent, name, None) for name in names}
    found |= {
        "algorithm": type(agent).__name__,
        "learning_rate": agent.lr_schedule(1.0),
        "clip_range": agent.clip_range(1.0) if hasattr(agent, "clip_range") else None,  # pyright: ignore
        "policy": [f"{k} {tuple(v.shape)}" for k, v in agent.policy.state_dict().items()],
    }
    if hasattr(agent, "weighting"):
        grid = torch.linspace(-10.0, 10.0, 9)
        with torch.no_grad():
            values = (*agent.weighting(grid).tolist(), *agent.schedule.t(grid).tolist())  # pyright: ignore
        found["weighting and schedule"] = [f"{v:.6g}" for v in values]
        found["parameterization"] = agent.policy.denoiser.parameterization  # pyright: ignore
        found["sampling_steps"] = len(agent.policy.logsnr) - 1  # pyright: ignore
    return found


def _on_policy(model: object) -> OnPolicyAlgorithm:
    if not isinstance(model, OnPolicyAlgorithm):
        raise TypeError(f"got {type(model).__name__}, wanted FPO or another on-policy algorithm")
    return model


def _averages(agent: OnPolicyAlgorithm) -> dict[str, Any]:
    """The running means of a VecNormalize, if there is one."""
    normalize = agent.get_vec_normalize_env()
    if not isinstance(normalize, VecNormalize):
        return {}
    found = {"obs": getattr(normalize, "obs_rms", None), "ret": normalize.ret_rms}
    return {name: average for name, average in found.items() if average is not None}


def _cut(agent: OnPolicyAlgorithm) -> None:
    """Seed the environments from the random state, and begin new episodes."""
    env = agent.env
    assert env is not None  # it is learning
    env.seed(int(np.random.randint(2**31 - 1)))  # noqa: NPY002
    agent._last_obs = env.reset()  # pyright: ignore
    agent._last_episode_starts = np.ones(env.num_envs, dtype=bool)
