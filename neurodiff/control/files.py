r"""One run in one file of safetensors, with JSON in its header, written aside and renamed.

.. math:: \text{file} = (\text{networks, Adam, …}, \text{random states}, \text{steps, episodes})

What every algorithm of stable-baselines3 has is here; what else is kept is said by those who keep
it, :mod:`~neurodiff.control.checkpoint` and :mod:`~neurodiff.control.kept`.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neurodiff.control import without_extra

try:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.callbacks import BaseCallback
except ModuleNotFoundError as error:
    raise without_extra(error) from error


class Resuming(BaseCallback):
    """Keeps a run as it goes, and begins with what is kept.

    Args:
        path: of the file, written aside and renamed.
        every: environment steps from one file to the next, at the least.
        save: of an agent, into a file.
        restore: an agent, from it.
        cut: where a file was written or read, makes environments follow from what is in it.
    """

    def __init__(
        self, path: Path, every: int, save: Callable, restore: Callable, cut: Callable
    ) -> None:
        super().__init__()
        self.path, self.every, self.last = Path(path), every, 0
        self.save, self.restore, self.cut = save, restore, cut

    def _on_training_start(self) -> None:
        if self.path.exists():
            self.restore(self.model, self.path)
            self.cut(self.model)
        self.last = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps >= self.last + self.every:
            self.save(self.model, self.path)
            self.cut(self.model)
            self.last = self.model.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.save(self.model, self.path)


def write(
    agent: BaseAlgorithm,
    path: Path,
    own: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    **more: Any,  # noqa: ANN401  # what JSON can hold
) -> None:
    """Write what an agent is, in one file that is whole or not there.

    Args:
        agent: whose counts, episodes and random states are kept.
        path: of the file; its folder is made.
        own: tensors by name.
        settings: what two runs must share.
        **more: for the header.
    """
    # stable-baselines3 draws from numpy's own generator
    _, key, *numpy = np.random.get_state()  # noqa: NPY002
    random = {"random.torch": torch.get_rng_state(),
              "random.numpy": torch.from_numpy(np.asarray(key).astype(np.int64))}  # fmt: skip
    header = {
        "settings": dict(settings),
        "steps": agent.num_timesteps,
        "updates": agent._n_updates,
        "numpy": numpy,
        "episodes": [{k: float(e[k]) for k in "rlt"} for e in agent.ep_info_buffer or ()],
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    found = {**own, **random}
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}
    save_file(whole, aside, {"agent": json.dumps(header)})
    aside.replace(path)


def read(path: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file.

    Raises:
        ValueError: a file that is not whole, or of an agent of other settings.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["agent"])
            found = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no whole checkpoint ({error}): remove it to begin") from error
    for name, value in json.loads(json.dumps(dict(settings))).items():
        if (there := header["settings"].get(name)) != value:
            raise ValueError(
                f"{path} is of another run: its {name} is {there}, got {value}; name another "
                "file, or remove it"
            )
    return header, found


def resume(agent: BaseAlgorithm, header: Mapping[str, Any], found: Mapping[str, Tensor]) -> None:
    """Counts, episodes and random states as they were."""
    agent.num_timesteps, agent._n_updates = header["steps"], header["updates"]
    agent.ep_info_buffer = deque(header["episodes"], maxlen=agent._stats_window_size)
    torch.set_rng_state(found["random.torch"])
    key = found["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, *header["numpy"]))  # noqa: NPY002


def below(found: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Those whose name begins with another and a dot, without it.

    >>> list(below({"policy.weight": torch.zeros(1), "random": torch.zeros(1)}, "policy"))
    ['weight']
    """
    return {k[len(name) + 1 :]: v for k, v in found.items() if k.startswith(f"{name}.")}


def moments(optimizer: torch.optim.Optimizer, name: str) -> dict[str, Tensor]:
    """What an optimiser remembers, by the name given to it."""
    state = optimizer.state_dict()["state"]
    return {
        f"{name}.{i}.{k}": torch.as_tensor(v) for i, slot in state.items() for k, v in slot.items()
    }


def remember(optimizer: torch.optim.Optimizer, found: Mapping[str, Tensor], name: str) -> None:
    """Give an optimiser what :func:`moments` kept."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in below(found, name).items():
        i, slot = key.split(".")
        slots.setdefault(int(i), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})


def with_suffix(path: str | os.PathLike[str]) -> Path:
    """``.safetensors`` unless there is a suffix.

    >>> with_suffix("agent").name, with_suffix("agent.run").name
    ('agent.safetensors', 'agent.run')
    """
    path = Path(path)
    return path if path.suffix else path.with_suffix(".safetensors")
