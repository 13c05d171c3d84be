r"""Imitation of states: soft actor-critic whose reward is learned, and always the newest one.

.. math:: J(π) = E_π \sum_k γ^k\, \big[ r_θ(s_k, s_{k+1}) + α H(π(\cdot | s_k)) \big]

What the environment pays is logged, and never learned from. A batch is drawn from the replay
buffer, θ takes a step on it and on a batch of the demonstrations, and another one is paid by the
new r_θ and taught to stable-baselines3's SAC: rewards are not kept, so none is out of date. The
buffer holds what *all* policies so far did, in the shares in which they did it.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from neurodiff.control import without_extra
from neurodiff.control.demonstrations import Demonstrations, demonstrations
from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.schedule import NoiseSchedule

try:
    import gymnasium
    from gymnasium import spaces
    from stable_baselines3 import SAC
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.type_aliases import GymEnv, ReplayBufferSamples
    from stable_baselines3.common.vec_env import VecNormalize
    from stable_baselines3.sac.policies import SACPolicy
except ModuleNotFoundError as error:
    raise without_extra(error) from error

from neurodiff.control.environments import check_observations
from neurodiff.control.files import with_suffix
from neurodiff.control.kept import restore, save


class Imitation(SAC, ABC):
    """What :class:`~neurodiff.control.difo.DIFO` and SMILING share.

    ``learn``, ``predict``, callbacks, ``Monitor`` and ``evaluate_policy`` work as with SAC.
    ``save`` and ``load`` keep safetensors and JSON, no pickle;
    :class:`~neurodiff.control.kept.Keep` resumes.

    Args:
        policy: ``"MlpPolicy"``, or a class of SAC's.
        env: of gymnasium, its name, or a ``VecEnv``.
        data: the demonstrations, ``state`` (trial, time, feature).
        weighting: w(logsnr) of its losses.
        schedule: of the looks.
        looks: for each reward.
        rate: learning rate of θ, by Adam.
        **sac: further arguments of stable-baselines3's SAC.

    Raises:
        ValueError: an environment whose actions are no Box, whose observations are not a vector of
            as many numbers as the demonstrations have, or not of the shape it says; demonstrations
            that cannot be read; in training, a reward or an observation that is not finite.
    """

    own: ClassVar[tuple[str, ...]] = ()  # further settings that a resumed run must share

    def __init__(
        self,
        policy: str | type[SACPolicy],
        env: GymEnv | str,
        data: xr.Dataset,
        weighting: Callable[[Tensor], Tensor],
        schedule: NoiseSchedule,
        looks: int,
        rate: float,
        **sac: Any,  # noqa: ANN401  # passed on as they are
    ) -> None:
        env = gymnasium.make(env) if isinstance(env, str) else env
        self.shown = demonstrations(data, check(env))
        super().__init__(policy, env, replay_buffer_class=Paid, **sac)
        # as stable-baselines3's observations are, whatever torch's default
        self.policy.float()
        if self.log_ent_coef is not None:
            self.log_ent_coef.data = self.log_ent_coef.data.float()
        assert isinstance(self.replay_buffer, Paid)
        self.replay_buffer.payer = self
        self.shown = type(self.shown)(*(value.to(self.device) for value in self.shown))
        self.weighting, self.noise, self.looks = weighting, schedule, looks
        self.denoiser = self.make(self.shown)  # of the seed, which SAC has set
        self.denoiser_optimizer = torch.optim.Adam(self.denoiser.parameters(), rate)

    @abstractmethod
    def make(self, shown: Demonstrations) -> Denoiser:
        """What r_θ is made of, with parameters."""

    def beside(self) -> dict[str, torch.nn.Module]:
        """What else is kept in a checkpoint."""
        return {}

    @abstractmethod
    def reward(
        self, s: Float[Tensor, "batch feature"], after: Float[Tensor, "batch feature"]
    ) -> Float[Tensor, " batch"]:
        """r_θ(s, s'), of states in the environment's units."""

    @abstractmethod
    def denoiser_loss(
        self, s: Float[Tensor, "batch feature"], after: Float[Tensor, "batch feature"]
    ) -> Float[Tensor, ""]:
        """What θ is to lower, for transitions of the policies so far."""

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """As many steps of θ, then of actor and critic."""
        buffer, found = self.replay_buffer, []
        assert isinstance(buffer, Paid)
        for _ in range(gradient_steps):
            some = buffer.sample(batch_size, paid=False)
            loss = self.denoiser_loss(some.observations, some.next_observations)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the denoiser's loss is {loss.item()} after {self.num_timesteps} steps: lower "
                    "its rate, or end the schedule before the weighting grows without bound"
                )
            self.denoiser_optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
            self.denoiser_optimizer.step()
            found.append(loss.item())
        if found:
            self.logger.record("train/denoiser_loss", float(np.mean(found)))
        super().train(gradient_steps, batch_size)

    def save(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, path: str | os.PathLike[str]
    ) -> None:
        """Keep the agent as safetensors, ``path`` with that suffix unless it has one.

        What it was made with, the demonstrations too, is checked by :meth:`load`, not kept.
        """
        save(self, with_suffix(path))

    @classmethod
    def load(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        path: str | os.PathLike[str],
        env: GymEnv | str,
        data: xr.Dataset,
        policy: str | type[SACPolicy] = "MlpPolicy",
        **arguments: Any,  # noqa: ANN401  # those of the class
    ) -> "Imitation":
        """The agent that :meth:`save` kept, made again with the arguments that it had.

        Raises:
            ValueError: a file that is not whole, or of an agent of other arguments.
        """
        agent = cls(policy, env, data, **arguments)
        restore(agent, with_suffix(path))
        return agent


class Paid(ReplayBuffer):
    """A replay buffer whose rewards are computed when they are drawn."""

    payer: Imitation

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Keep a transition.

        Raises:
            ValueError: one that is not finite, or whose observation has another shape.
        """
        named = {"observation": obs, "next observation": next_obs, "reward": reward}
        for name, value in named.items():
            if not np.isfinite(value).all():
                raise ValueError(
                    f"{name} {np.asarray(value).tolist()} of the environment at its step "
                    f"{self.payer.num_timesteps}, wanted finite numbers: mend the environment; the "
                    "transition was not kept"
                )
        super().add(obs, next_obs, action, reward, done, infos)

    def sample(
        self, batch_size: int, env: VecNormalize | None = None, paid: bool = True
    ) -> ReplayBufferSamples:
        """A batch, with the rewards of now unless they are not asked for.

        Raises:
            FloatingPointError: a learned reward that is not finite.
        """
        some = super().sample(batch_size, env)
        if not paid:
            return some
        with torch.no_grad():
            reward = self.payer.reward(some.observations, some.next_observations)
        if not torch.isfinite(reward).all():
            raise FloatingPointError(
                f"the learned reward is not finite for {int((~reward.isfinite()).sum())} of "
                f"{batch_size} transitions, after {self.payer.num_timesteps} steps: lower the "
                "denoiser's rate"
            )
        return some._replace(rewards=reward[:, None].to(some.rewards))


def check(env: GymEnv) -> int:
    """Numbers of an observation, of an environment in which states can be imitated.

    Raises:
        ValueError: other actions than a Box, observations that are no vector or not of the shape
            of their space, or means that run along (``VecNormalize``).
    """
    box, seen = env.action_space, env.observation_space
    if not isinstance(box, spaces.Box):
        raise ValueError(
            f"got an environment with actions {box}, wanted a Box: soft actor-critic draws "
            "continuous actions"
        )
    if not isinstance(seen, spaces.Box) or len(seen.shape) != 1:
        raise ValueError(
            f"got observations {seen}, wanted a Box of one dimension, whose numbers are the "
            "features of the demonstrations: gymnasium.wrappers.FlattenObservation lays them flat"
        )
    if isinstance(env, VecNormalize):
        raise ValueError(
            "got a VecNormalize, whose observations change their units: give the environment "
            "without it, states are scaled by the demonstrations"
        )
    check_observations(env)
    return seen.shape[0]
