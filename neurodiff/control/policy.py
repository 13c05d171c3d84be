r"""A policy that is a flow: actions are denoised from noise, given what is observed.

.. math:: a = z_0, \qquad \frac{d z}{dt} = \hat u(z, λ_t, s), \quad z_1 = ε, \qquad
    \hat x(z, λ, s) = E[a | z, s]

Any law of actions, with several modes too; its density is not at hand, and
:mod:`~neurodiff.control.fpo` does without. Steps are Euler's on the path of flow matching, which
are DDIM's in the VP scaling of this package. Actions are learned in units in which the bounds of
the action space are -1 and 1, are kept as they were drawn, and are clipped where the environment
gets them.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from neurodiff.control import without_extra
from neurodiff.diffusion.denoiser import NetworkDenoiser
from neurodiff.diffusion.parameterization import convert
from neurodiff.diffusion.sample import levels, step
from neurodiff.diffusion.schedule import NoiseSchedule, schedule

try:
    from gymnasium import spaces
    from stable_baselines3.common.distributions import Distribution
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.torch_layers import MlpExtractor, create_mlp
    from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
except ModuleNotFoundError as error:
    raise without_extra(error) from error

_TURNS = 4  # of the highest frequency that tells noise levels apart, over the whole path


class FlowNetwork(nn.Module):
    """An MLP of the observation, the noisy action and the noise level.

    Args:
        features: numbers of an observation.
        actions: numbers of an action.
        hidden: widths of the hidden layers.
        activation: between them.

    >>> FlowNetwork(3, 1, [64, 64])(torch.zeros(5, 1), torch.zeros(5), torch.zeros(5, 3)).shape
    torch.Size([5, 1])
    """

    angle: Tensor

    def __init__(
        self,
        features: int,
        actions: int,
        hidden: Sequence[int],
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        size = features + actions + 2 * _TURNS
        self.layers = nn.Sequential(*create_mlp(size, actions, list(hidden), activation))
        self.register_buffer("angle", math.pi * torch.arange(1.0, _TURNS + 1), persistent=False)

    def forward(
        self,
        z: Float[Tensor, "batch action"],
        logsnr: Float[Tensor, " batch"],
        cond: Float[Tensor, "batch feature"],
    ) -> Float[Tensor, "batch action"]:
        """What ``NetworkDenoiser`` reads as one of the parameterizations."""
        turn = torch.sigmoid(-0.5 * logsnr)[:, None] * self.angle
        return self.layers(torch.cat([cond, z, turn.sin(), turn.cos()], -1))


class FlowPolicy(ActorCriticPolicy):
    """Actor and critic as stable-baselines3 knows them, with a flow as the actor.

    Made by :class:`~neurodiff.control.fpo.FPO`, from its ``policy_kwargs``.

    Args:
        observation_space: of the environment.
        action_space: a Box with bounds.
        lr_schedule: the remaining share of training ↦ learning rate.
        times: of the noise levels that sampling goes through; flow matching's unless given.
        parameterization: what the network's output means.
        sampling_steps: of Euler's method for one action.
        net_arch: widths, ``[64, 64]`` or ``{"pi": …, "vf": …}`` for the flow and the value.
        activation_fn: of both networks.
        **kwargs: further ones of ``ActorCriticPolicy``.

    References: McAllister et al. 2025 (FPO).
    """

    denoiser: NetworkDenoiser
    logsnr: Tensor  # (step + 1), that actions go through
    keep: Tensor  # (step), of z
    gain: Tensor  # (step), of the network's output

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        times: NoiseSchedule | None = None,
        parameterization: str = "flow",
        sampling_steps: int = 10,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.SiLU,
        **kwargs: Any,  # noqa: ANN401  # passed on as they are
    ) -> None:
        # a tuple, since modules cannot be kept before Module.__init__
        self._flow = (times or schedule("flow"), parameterization, sampling_steps)
        super().__init__(
            observation_space, action_space, lr_schedule,
            net_arch=net_arch or [64, 64], activation_fn=activation_fn, **kwargs,
        )  # fmt: skip

    @property
    def squash_output(self) -> bool:
        """Actions are in units of the bounds."""
        return True

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """From units of the bounds to the environment's, clipped to them."""
        return super().unscale_action(np.clip(scaled_action, -1.0, 1.0))

    def _build(self, lr_schedule: Schedule) -> None:
        times, parameterization, steps = self._flow
        both = self.net_arch
        hidden = both if isinstance(both, dict) else {"pi": both, "vf": both}
        self.mlp_extractor = MlpExtractor(
            self.features_dim, {"pi": [], "vf": hidden["vf"]}, self.activation_fn
        )
        self.value_net = nn.Linear(self.mlp_extractor.latent_dim_vf, 1)
        size = int(np.prod(self.action_space.shape or ()))
        network = FlowNetwork(self.features_dim, size, hidden["pi"], self.activation_fn)
        self.denoiser = NetworkDenoiser(network, parameterization)
        # a step is linear in z and in the network's output, by numbers that are known beforehand
        level = levels(times, steps)
        now, then, one = level[:-1], level[1:], torch.ones_like(level[:-1])
        for name, z in (("keep", one), ("gain", 0 * one)):
            x = convert(1 - z, parameterization, "x", z=z, logsnr=now)
            self.register_buffer(name, step(z, x, now, then).float(), persistent=False)
        self.register_buffer("logsnr", level.float(), persistent=False)
        if self.ortho_init:
            for module in (self.mlp_extractor, network):
                module.apply(lambda m: self.init_weights(m, gain=math.sqrt(2)))
            self.init_weights(self.value_net, gain=1.0)
            self.init_weights(network.layers[-1], gain=0.01)  # an action is its noise
        self.float()  # as stable-baselines3's observations are, whatever torch's default
        options: dict[str, Any] = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(self.parameters(), **options)

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values, and 0 in the place of a log-probability, which nothing reads."""
        features = self.features(obs)
        values = self.value_of(features)
        return self._act(features, deterministic), values, torch.zeros_like(values[:, 0])

    def features(self, obs: PyTorchObs) -> Float[Tensor, "batch feature"]:
        """What the flow and the value see of an observation."""
        found = self.extract_features(obs, self.features_extractor)
        assert isinstance(found, Tensor)  # the extractor is shared
        return found

    def value_of(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch 1"]:
        """The critic."""
        return self.value_net(self.mlp_extractor.forward_critic(features))

    def _act(self, features: Tensor, deterministic: bool) -> Tensor:
        shape = (len(features), *(self.action_space.shape or ()))
        z = features.new_zeros(len(features), int(np.prod(shape[1:])))
        z = z if deterministic else torch.randn_like(z)
        for level, keep, gain in zip(self.logsnr, self.keep, self.gain, strict=False):
            value = self.denoiser.network(z, level.expand(len(z)), features)
            z = keep * z + gain * value
        return z.reshape(shape)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Draws; ``deterministic`` is the one action whose noise is 0."""
        return self._act(self.features(observation), deterministic)

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """There is none in closed form.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "a flow policy has no distribution in closed form: draw by predict(), or take "
            "neurodiff.diffusion.flow_likelihood of policy.denoiser for a density"
        )

    def evaluate_actions(
        self, obs: PyTorchObs, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """There is no log-probability in closed form.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "a flow policy has no log-probability in closed form: ratios of two policies come from "
            "neurodiff.diffusion.divergence.losses of policy.denoiser"
        )
