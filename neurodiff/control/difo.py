r"""DIFO: a diffusion model of transitions as the discriminator of imitation.

.. math::

    D(s, s') = \mathrm{sig}\big(k\, [L_w(s, s' | A) - L_w(s, s' | E)]\big), \qquad
    r(s, s') = -\log(1 - D) = \log\big(1 + e^{k (L_w^A - L_w^E)}\big)

    θ: \quad λ_{MSE}\, E_E\, L_w(s, s' | E)
        + λ_{BCE}\, ½ \big[ E_E(-\log D) + E_A(-\log(1 - D)) \big]

One denoiser of pairs of states, told whether they are an expert's (E) or the agent's (A). For exact
denoisers, w = 1 and k = 1, D is p_E / (p_E + p_A). E is 1 and D → 1 where transitions look like an
expert's, which r rewards; the sign of r in the paper's equation 8 is the other one. Both losses are
taken at the *same* looks.

Differences from the published code: it denoises s' given s, here both are noised, so that D also
tells the states apart in which the expert never is; its times are the middle half, here all those
of the schedule; k is there 10 in the reward and 100 in the loss unless set, here it is one number,
over losses that are sums over dimensions.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from neurodiff.control import without_extra
from neurodiff.control.demonstrations import Demonstrations
from neurodiff.diffusion.denoiser import Denoiser, NetworkDenoiser
from neurodiff.diffusion.divergence import Looks, looks, losses
from neurodiff.diffusion.networks import MLP
from neurodiff.diffusion.schedule import NoiseSchedule, schedule
from neurodiff.diffusion.weighting import weighting

try:
    from stable_baselines3.common.type_aliases import GymEnv
    from stable_baselines3.sac.policies import SACPolicy
except ModuleNotFoundError as error:
    raise without_extra(error) from error

from neurodiff.control.imitation import Imitation

AGENT, EXPERT = 0, 1  # labels of the denoiser


def logit(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    seen: Looks,
    *,
    weighting: Callable[[Tensor], Tensor],
    gain: float = 1.0,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Of D, k (L_A − L_E), and L_E itself; means over looks.

    Args:
        denoiser: (z, logsnr, label) → E[x|z, label], labels ``AGENT`` and ``EXPERT``.
        x: transitions.
        seen: the looks of each, the same for both labels.
        weighting: w(logsnr); where it is 1, the logit is log p_E(x)/p_A(x), in nats.
        gain: k.

    Raises:
        ValueError: the denoiser returns another shape than that of x.

    References: Huang et al. 2024 (DIFO).

    >>> import neurodiff as nd
    >>> from neurodiff.diffusion.denoiser import ByLabel
    >>> from neurodiff.diffusion.prior import Gaussian
    >>> either = ByLabel(*(Gaussian(m * torch.ones(1), torch.ones(1)) for m in (-1.0, 1.0)))
    >>> x = torch.full((20_000, 1), 0.5)
    >>> seen = looks(x, nd.schedule("flow"), 1)
    >>> found, _ = logit(either, x, seen, weighting=nd.weighting("elbo"))     # 2 x
    >>> bool((found.mean() - 1.0).abs() < 0.1)
    True
    """
    label = torch.tensor([AGENT, EXPERT], device=x.device).repeat_interleave(len(x))
    both = Looks(*(torch.cat([value, value]) for value in seen))
    found = losses(denoiser, torch.cat([x, x]), both, weighting=weighting, cond=label).mean(1)
    agent, expert = found.chunk(2)
    return gain * (agent - expert), expert


class DIFO(Imitation):
    """Diffusion imitation from observation, with soft actor-critic.

    Args:
        policy: ``"MlpPolicy"``, or a class of SAC's.
        env: of gymnasium, its name, or a ``VecEnv``; its actions are a Box.
        data: the demonstrations, ``state`` (trial, time, feature).
        weighting: w(logsnr); ``ddpm`` unless given, which is ε-MSE on the cosine schedule.
        schedule: of the looks; ``cosine`` unless given.
        gain: k.
        mse: λ_MSE.
        bce: λ_BCE; set by task in the published runs, .1 in a maze.
        looks: for each reward; published 1.
        rate: learning rate of the denoiser.
        width: of the denoiser, an MLP.
        depth: its blocks.
        **sac: further arguments of stable-baselines3's SAC (``seed``, ``batch_size``, …).

    Raises:
        ValueError: demonstrations or an environment that cannot be used (see
            :class:`~neurodiff.control.imitation.Imitation`), weights of the loss below 0 or both 0.

    References: Huang et al. 2024; Haarnoja et al. 2018 (SAC).

    >>> import numpy as np
    >>> from neurodiff.control.gridworld import TwoGoals
    >>> up = np.stack([np.linspace(-0.1, 0.1, 9), np.linspace(0, 0.8, 9)], 1)
    >>> data = xr.Dataset({"state": (("trial", "time", "feature"), up[None])})
    >>> agent = DIFO("MlpPolicy", TwoGoals(), data, width=8, learning_starts=8, seed=0)
    >>> agent.learn(16).num_timesteps
    16
    """

    own: ClassVar[tuple[str, ...]] = ("gain", "mse", "bce")

    def __init__(
        self,
        policy: str | type[SACPolicy],
        env: GymEnv | str,
        data: xr.Dataset,
        *,
        weighting: Callable[[Tensor], Tensor] | None = None,
        schedule: NoiseSchedule | None = None,
        gain: float = 1.0,
        mse: float = 1.0,
        bce: float = 1.0,
        looks: int = 4,
        rate: float = 1e-3,
        width: int = 64,
        depth: int = 2,
        **sac: Any,  # noqa: ANN401  # passed on as they are
    ) -> None:
        if min(mse, bce) < 0 or mse + bce == 0:
            raise ValueError(f"got mse {mse} and bce {bce}, wanted neither below 0 and one above")
        self.gain, self.mse, self.bce, self.size = gain, mse, bce, (width, depth)
        super().__init__(
            policy, env, data, weighting or _weighting("ddpm"), schedule or _schedule("cosine"),
            looks, rate, **sac,
        )  # fmt: skip

    def make(self, shown: Demonstrations) -> Denoiser:
        """Of pairs of states, for two labels, of which none is ever left out."""
        network = MLP(shown.pairs.shape[1:], *self.size, classes=2, drop=0.0)
        return NetworkDenoiser(network, "v").to(self.device, torch.float32)

    def pairs(self, s: Tensor, after: Tensor) -> Float[Tensor, "batch 2 feature"]:
        """Transitions in units of the demonstrations."""
        return torch.stack([self.shown.scaled(s), self.shown.scaled(after)], 1)

    def reward(
        self, s: Float[Tensor, "batch feature"], after: Float[Tensor, "batch feature"]
    ) -> Float[Tensor, " batch"]:
        """−log(1 − D), at new looks; of states in the environment's units."""
        x = self.pairs(s, after)
        seen = _looks(x, self.noise, self.looks, stratified=True)
        found, _ = logit(self.denoiser, x, seen, weighting=self.weighting, gain=self.gain)
        return softplus(found)

    def denoiser_loss(
        self, s: Float[Tensor, "batch feature"], after: Float[Tensor, "batch feature"]
    ) -> Float[Tensor, ""]:
        """Denoising of the expert's transitions, and telling them from the agent's."""
        agent = self.pairs(s, after)
        some = torch.randint(len(self.shown.pairs), (len(agent),), device=self.device)
        x = torch.cat([agent, self.shown.pairs[some]])
        seen = _looks(x, self.noise, 1, stratified=True)
        found, loss = logit(self.denoiser, x, seen, weighting=self.weighting, gain=self.gain)
        own, theirs = found.chunk(2)
        crossed = 0.5 * (softplus(own).mean() + softplus(-theirs).mean())
        return self.mse * loss[len(agent) :].mean() + self.bce * crossed


_weighting, _schedule, _looks = weighting, schedule, looks  # arguments have these names
