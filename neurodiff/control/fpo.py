r"""Flow policy optimisation: PPO whose likelihood ratio is a difference of denoising losses.

.. math::

    \hat r(θ) = \exp\Big(\frac1{c N} \sum_{i=1}^N \big[l_{θ_{old}}(a; λ_i, ε_i)
        - l_θ(a; λ_i, ε_i)\big]\Big), \qquad l = ½ \frac{w(λ)}{p(λ)} |\hat ε - ε|^2

    J(θ) = E\big[\min\big(\hat r A,\; \mathrm{clip}(\hat r, 1 - δ, 1 + δ)\, A\big)\big]

The looks (λ_i, ε_i) of an action are drawn once, and all epochs use them. Only under w = 1 and
c = 1 is r̂ a ratio of densities (:mod:`~neurodiff.diffusion.divergence`). The published runs, whose
settings are the defaults, are neither: w = sech²(λ/4)/4, which is ε-MSE on the straight path, and
c = d, a mean over the d numbers of an action.

Differences from the published code: times are uniform, not on a grid of ten; the network sees z in
VP scaling; the optimisation around it (networks, advantages, epochs) is that of stable-baselines3's
PPO.
"""

import os
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from neurodiff.control import without_extra
from neurodiff.diffusion.divergence import Looks, likelihood_ratio, looks, losses
from neurodiff.diffusion.schedule import NoiseSchedule, schedule
from neurodiff.diffusion.weighting import weighting

try:
    import gymnasium
    from gymnasium import spaces
    from stable_baselines3.common.buffers import RolloutBuffer
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.policies import BasePolicy
    from stable_baselines3.common.type_aliases import GymEnv, RolloutBufferSamples, Schedule
    from stable_baselines3.common.utils import FloatSchedule, explained_variance
except ModuleNotFoundError as error:
    raise without_extra(error) from error

from neurodiff.control.checkpoint import restore, save
from neurodiff.control.environments import check_observations
from neurodiff.control.files import with_suffix
from neurodiff.control.policy import FlowPolicy

_LIMIT = 3.0  # of log r̂: the published room with goals has it; w = 1 overflows without


class FPO(OnPolicyAlgorithm):
    """A flow policy, trained as stable-baselines3 trains PPO.

    ``learn``, ``predict``, callbacks, vectorised environments, ``Monitor``, ``VecNormalize``,
    ``evaluate_policy`` and the logger work as there. ``save`` and ``load`` keep safetensors and
    JSON, no pickle; :class:`~neurodiff.control.checkpoint.Checkpoint` resumes.

    Args:
        policy: ``"MlpPolicy"``, or a subclass of :class:`FlowPolicy`.
        env: of gymnasium, its name, or a ``VecEnv``; its actions are a Box with bounds.
        learning_rate: of Adam, or a function of the remaining share of training.
        n_steps: of each environment between updates.
        batch_size: actions of a gradient step.
        n_epochs: passes over what was collected.
        gamma: discount.
        gae_lambda: of the advantages.
        clip_range: δ; published .05 (.01 for humanoids).
        weighting: w(logsnr); FPO's ``flow-eps`` unless given. Its height counts: log r̂ is
            proportional to it, and δ is not.
        schedule: of the looks, and of sampling; ``flow`` unless given.
        parameterization: what the network's output means; the velocity u as published.
        n_mc: looks of an action, N.
        mean_over_dimensions: whether c is the number of dimensions of an action (published), or 1
            (a sum, which under w = 1 is the ratio of densities).
        sampling_steps: Euler steps for an action.
        vf_coef: weight of the value's squared error.
        max_grad_norm: largest norm of a gradient.
        stats_window_size: episodes of the logged mean.
        tensorboard_log: folder.
        policy_kwargs: of :class:`FlowPolicy`: ``net_arch``, ``activation_fn``, ….
        verbose: 1 prints the log.
        seed: of all random numbers.
        device: ``cpu``, ``cuda`` or ``auto``.

    Raises:
        ValueError: an environment whose actions are no Box with bounds, or whose observations have
            not the shape of their space; in training, a reward or an observation that is not
            finite.

    References: McAllister et al. 2025.

    >>> from neurodiff.control.gridworld import TwoGoals
    >>> agent = FPO("MlpPolicy", TwoGoals(), n_steps=32, batch_size=16, n_epochs=1, seed=0)
    >>> agent.learn(64).num_timesteps
    64
    >>> agent.predict(np.zeros(2, np.float32))[0].shape
    (2,)
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": FlowPolicy}
    policy: FlowPolicy

    def __init__(
        self,
        policy: str | type[FlowPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.05,
        *,
        weighting: Callable[[Tensor], Tensor] | None = None,
        schedule: NoiseSchedule | None = None,
        parameterization: str = "flow",
        n_mc: int = 8,
        mean_over_dimensions: bool = True,
        sampling_steps: int = 10,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
    ) -> None:
        self.weighting = weighting or _weighting("flow-eps")
        self.schedule = schedule or _schedule("flow")
        self.batch_size, self.n_epochs, self.n_mc = batch_size, n_epochs, n_mc
        self.mean_over_dimensions = mean_over_dimensions
        self.clip_range = FloatSchedule(clip_range)
        if isinstance(env, str):
            env = gymnasium.make(env)
        _check_spaces(env)
        super().__init__(
            policy, env, learning_rate, n_steps, gamma, gae_lambda, 0.0, vf_coef, max_grad_norm,
            use_sde=False, sde_sample_freq=-1, stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log, verbose=verbose, seed=seed, device=device,
            policy_kwargs={
                "times": self.schedule, "parameterization": parameterization,
                "sampling_steps": sampling_steps, **(policy_kwargs or {}),
            },
        )  # fmt: skip

    def train(self) -> None:
        """Update policy and value from what was collected."""
        _check_rollout(self.rollout_buffer)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip = self.clip_range(self._current_progress_remaining)
        data = next(self.rollout_buffer.get())  # all of it, in some order
        seen = looks(data.actions, self.schedule, self.n_mc)
        with torch.no_grad():
            old = self._losses(data, seen)
        log: dict[str, list[float]] = {}
        for _ in range(self.n_epochs):
            for some in torch.randperm(len(old)).split(self.batch_size):
                batch = RolloutBufferSamples(*(value[some] for value in data))
                self._step(batch, seen.at(some), old[some], clip, log)
            self._n_updates += 1
        for name, values in log.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))
        own = self.rollout_buffer
        variance = explained_variance(own.values.flatten(), own.returns.flatten())
        self.logger.record("train/explained_variance", variance)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip)

    def _losses(self, data: RolloutBufferSamples, seen: Looks) -> Tensor:
        """Of each action at each of its looks, over c."""
        features = self.policy.features(data.observations)
        found = losses(
            self.policy.denoiser, data.actions, seen, weighting=self.weighting, cond=features
        )
        return found / data.actions.shape[1] if self.mean_over_dimensions else found

    def _step(
        self,
        data: RolloutBufferSamples,
        seen: Looks,
        old: Tensor,
        clip: float,
        log: dict[str, list[float]],
    ) -> None:
        """One gradient step."""
        ratio = likelihood_ratio(old, self._losses(data, seen), _LIMIT)
        gain = data.advantages
        if len(gain) > 1:
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        clipped = ratio.clamp(1 - clip, 1 + clip)
        policy_loss = -torch.min(gain * ratio, gain * clipped).mean()
        values = self.policy.value_of(self.policy.features(data.observations))[:, 0]
        value_loss = nn.functional.mse_loss(data.returns, values)
        loss = policy_loss + self.vf_coef * value_loss
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} after {self.num_timesteps} steps: a policy loss of "
                f"{policy_loss.item():.3g}, ratios up to {ratio.max().item():.3g}, a value loss of "
                f"{value_loss.item():.3g}; lower learning_rate or clip_range"
            )
        self.policy.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        with torch.no_grad():
            outside = ((ratio - 1).abs() > clip).float().mean()
            kl = (ratio - 1 - ratio.log()).mean()
        found = {
            "policy_gradient_loss": policy_loss, "value_loss": value_loss, "loss": loss,
            "clip_fraction": outside, "approx_kl": kl,
        }  # fmt: skip
        for name, value in found.items():
            log.setdefault(name, []).append(value.item())

    def save(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, path: str | os.PathLike[str]
    ) -> None:
        """Keep the agent as safetensors, ``path`` with that suffix unless it has one.

        What it was made with is checked by :meth:`load`, not kept.
        """
        save(self, with_suffix(path))

    @classmethod
    def load(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        path: str | os.PathLike[str],
        env: GymEnv | str,
        policy: str | type[FlowPolicy] = "MlpPolicy",
        **arguments: Any,  # noqa: ANN401  # those of the class
    ) -> "FPO":
        """The agent that :meth:`save` kept, made again with the arguments that it had.

        Raises:
            ValueError: a file that is not whole, or of an agent of other arguments.
        """
        agent = cls(policy, env, **arguments)
        restore(agent, with_suffix(path))
        return agent


_weighting, _schedule = weighting, schedule  # arguments have these names


def _check_spaces(env: GymEnv) -> None:
    """Refuse actions without bounds, and observations that are not what was said."""
    box = env.action_space
    if not isinstance(box, spaces.Box):
        raise ValueError(
            f"got an environment with actions {box}, wanted a Box: a flow policy draws continuous "
            "actions; stable_baselines3.PPO takes discrete ones"
        )
    if not box.is_bounded():
        raise ValueError(
            f"got actions between {box.low.min()} and {box.high.max()}, wanted finite bounds, in "
            "whose units a flow policy draws: clip the actions of the environment and say so in "
            "its action_space"
        )
    check_observations(env)


def _check_rollout(rollout: RolloutBuffer) -> None:
    """Refuse what no policy can learn from."""
    for name in ("rewards", "observations"):
        bad = np.argwhere(~np.isfinite(getattr(rollout, name)))
        if len(bad):
            step, env = bad[0][:2]
            value = getattr(rollout, name)[tuple(bad[0])]
            raise ValueError(
                f"{name[:-1]} {value} of environment {env} at step {step} of {rollout.buffer_size} "
                f"since the last update ({len(bad)} in all), wanted finite numbers; nothing was "
                "learned from these steps"
            )
