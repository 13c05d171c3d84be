r"""Training that goes on where it was killed: one file of safetensors, with JSON in its header.

.. math:: \text{file} = (θ, \text{Adam}, \text{random states}, \text{steps, episodes, averages})

The state of an environment cannot be kept in general. So a checkpoint is a cut: where one is
written, the episodes under way end (their values are bootstrapped, as at every end of a rollout)
and the environments are seeded anew, from the random state that was kept. A run that was killed
and goes on from its last checkpoint is then, on a CPU and for environments that their seed
determines, that of one that was not, to the bit; what it did after that checkpoint it does again.
Not kept are the clock and the iteration number of the log.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurodiff.control import without_extra

try:
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.vec_env import VecNormalize
except ModuleNotFoundError as error:
    raise without_extra(error) from error

from neurodiff.control.files import Resuming, below, moments, read, remember, resume, write


class Checkpoint(Resuming):
    """Keeps a run, and goes on from what is kept: ``agent.learn(steps, callback=Checkpoint(p))``.

    The same call begins a run, and after a kill goes on with it.

    Args:
        path: of the file, written aside and renamed.
        every: environment steps from one checkpoint to the next, at the least.

    Raises:
        ValueError: at the start of learning, a file that is not whole or of another run.
    """

    def __init__(self, path: Path, every: int = 20_000) -> None:
        super().__init__(path, every, save, restore, _cut)

    def _init_callback(self) -> None:
        _on_policy(self.model)


def save(agent: OnPolicyAlgorithm, path: Path) -> None:
    """Keep an agent, in one file that is whole or not there.

    Args:
        agent: FPO, or another on-policy algorithm.
        path: of the file; its folder is made.
    """
    own = {f"policy.{k}": v for k, v in agent.policy.state_dict().items()}
    own |= moments(agent.policy.optimizer, "optimizer")
    for name, average in _averages(agent).items():
        for part in ("mean", "var", "count"):
            own[f"normalize.{name}.{part}"] = torch.as_tensor(np.array(getattr(average, part)))
    write(agent, path, own, settings(agent))


def restore(agent: OnPolicyAlgorithm, path: Path) -> None:
    """Make an agent what it was when :func:`save` kept it; its environments stay where they are.

    Args:
        agent: made with the same arguments.
        path: of the file.

    Raises:
        ValueError: a file that is not whole, or of an agent of other arguments.
    """
    header, found = read(path, settings(agent))
    agent.policy.load_state_dict(below(found, "policy"))
    remember(agent.policy.optimizer, found, "optimizer")
    for name, average in _averages(agent).items():
        average.mean, average.var, count = (
            found[f"normalize.{name}.{part}"].numpy() for part in ("mean", "var", "count")
        )
        average.count = float(count)
    resume(agent, header, found)


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
