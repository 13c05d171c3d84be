r"""SMILING: imitation by the divergence of two scores, an expert's and that of all learners so far.

.. math::

    c(s) = L_w^E(s) - L_w^k(s) \;\overset{w}{=}\; E_t\, E_{s_t | s} \big[ |g^E - ∇\log q(s_t|s)|²
        - |g^k - ∇\log q(s_t|s)|² \big], \qquad E_{s ∼ k}\, c = D_{DS}(k, E)

where w = 2 p (1 + e^λ) is that of the plain norm of scores (``smiling``), and g^k is exact in the
last equation: then the learner that pays least is the one whose states are the expert's. The
expert's denoiser is trained once. That of the learners follows the replay buffer, which holds the
states of all policies so far: the mixture of k − 1 learners of the paper's algorithm. The reward of
a transition is −c(s') over a batch, brought to mean 0 and s.d. 0.1.

Differences from the published code: the learner's score goes on from where it was, a step for each
of the policy's, and begins at the expert's, where the paper fits it anew in each of its rounds; a
handful of looks for a cost, not 500; w = ``smiling`` grows as e^{λ/2} where the state is nearly
clean, and makes c's variance infinite, so the schedule ends at λ = 5 unless another is given.
"""

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from neurodiff.control import without_extra
from neurodiff.control.demonstrations import Demonstrations
from neurodiff.diffusion.denoiser import Denoiser, NetworkDenoiser
from neurodiff.diffusion.divergence import Looks, looks, losses
from neurodiff.diffusion.loss import denoising_loss
from neurodiff.diffusion.networks import MLP
from neurodiff.diffusion.schedule import NoiseSchedule, schedule
from neurodiff.diffusion.train import train
from neurodiff.diffusion.weighting import weighting

try:
    from stable_baselines3.common.type_aliases import GymEnv
    from stable_baselines3.sac.policies import SACPolicy
except ModuleNotFoundError as error:
    raise without_extra(error) from error

from neurodiff.control.imitation import Imitation

_SD = 0.1  # of rewards in a batch


def cost(
    expert: Denoiser,
    learner: Denoiser,
    s: Float[Tensor, "batch *event"],
    seen: Looks,
    *,
    weighting: Callable[[Tensor], Tensor],
) -> Float[Tensor, " batch"]:
    """L_w^E(s) − L_w^k(s), the mean over looks.

    Args:
        expert: denoiser of the expert's states.
        learner: of those of all learners so far.
        s: states.
        seen: the looks of each, the same for both.
        weighting: w(logsnr); where it is 1 the cost is log p_k(s)/p_E(s), in nats.

    Raises:
        ValueError: a denoiser that returns another shape than that of s.

    References: Wu et al. 2024 (SMILING).

    >>> import torch
    >>> import neurodiff as nd
    >>> from neurodiff.diffusion.prior import Gaussian
    >>> expert, learner = (Gaussian(m * torch.ones(1), torch.ones(1)) for m in (0.0, 1.0))
    >>> s = learner.sample(20_000)
    >>> seen = looks(s, nd.schedule("flow"), 1)
    >>> found = cost(expert, learner, s, seen, weighting=nd.weighting("elbo"))   # KL = ½
    >>> bool((found.mean() - 0.5).abs() < 0.1)
    True
    """
    theirs, own = (losses(g, s, seen, weighting=weighting).mean(1) for g in (expert, learner))
    return theirs - own


class SMILING(Imitation):
    """Score-matching imitation learning, with soft actor-critic.

    Args:
        policy: ``"MlpPolicy"``, or a class of SAC's.
        env: of gymnasium, its name, or a ``VecEnv``; its actions are a Box.
        data: the demonstrations, ``state`` (trial, time, feature).
        weighting: w(logsnr); ``smiling`` unless given.
        schedule: of the looks; the cosine from -15 to 5 unless given.
        expert_steps: of training the expert's denoiser, with batches of 128.
        looks: for each cost; published 500.
        rate: learning rate of both denoisers.
        width: of the denoisers, MLPs.
        depth: their blocks.
        **sac: further arguments of stable-baselines3's SAC (``seed``, ``batch_size``, …).

    Raises:
        ValueError: demonstrations or an environment that cannot be used (see
            :class:`~neurodiff.control.imitation.Imitation`).

    References: Wu et al. 2024; Haarnoja et al. 2018 (SAC).

    >>> import numpy as np
    >>> from neurodiff.control.gridworld import TwoGoals
    >>> up = np.stack([np.linspace(-0.1, 0.1, 9), np.linspace(0, 0.8, 9)], 1)
    >>> data = xr.Dataset({"state": (("trial", "time", "feature"), up[None])})
    >>> agent = SMILING("MlpPolicy", TwoGoals(), data, expert_steps=3, width=8,
    ...                 learning_starts=8, seed=0)
    >>> agent.learn(16).num_timesteps
    16
    """

    own: ClassVar[tuple[str, ...]] = ("expert_steps",)

    def __init__(
        self,
        policy: str | type[SACPolicy],
        env: GymEnv | str,
        data: xr.Dataset,
        *,
        weighting: Callable[[Tensor], Tensor] | None = None,
        schedule: NoiseSchedule | None = None,
        expert_steps: int = 2000,
        looks: int = 8,
        rate: float = 1e-3,
        width: int = 64,
        depth: int = 2,
        **sac: Any,  # noqa: ANN401  # passed on as they are
    ) -> None:
        self.expert_steps, self.rate, self.size = expert_steps, rate, (width, depth)
        times = schedule or _schedule("truncated-cosine", logsnr_min=-15.0, logsnr_max=5.0)
        super().__init__(
            policy, env, data, weighting or _weighting("smiling"), times, looks, rate, **sac
        )

    def make(self, shown: Demonstrations) -> Denoiser:
        """The expert's denoiser, trained, and a copy that is to be the learner's."""
        start = NetworkDenoiser(MLP(shown.states.shape[1:], *self.size), "v").float()
        self.expert = train(
            start, shown.states, weighting=self.weighting, schedule=self.noise,
            steps=self.expert_steps, rate=self.rate, seed=self.seed or 0,
            device=self.device.type,
        ).denoiser  # fmt: skip
        return copy.deepcopy(self.expert).requires_grad_(True)

    def beside(self) -> dict[str, nn.Module]:
        """The expert's denoiser, which a checkpoint keeps too."""
        return {"expert": self.expert}

    def reward(
        self, s: Float[Tensor, "batch feature"], after: Float[Tensor, "batch feature"]
    ) -> Float[Tensor, " batch"]:
        """−c(s') at new looks, of mean 0 and s.d. 0.1 over the batch."""
        x = self.shown.scaled(after)
        seen = _looks(x, self.noise, self.looks, stratified=True)
        found = cost(self.expert, self.denoiser, x, seen, weighting=self.weighting)
        return _SD * (found.mean() - found) / (found.std() + 1e-8)

    def denoiser_loss(
        self, s: Float[Tensor, "batch feature"], after: Float[Tensor, "batch feature"]
    ) -> Float[Tensor, ""]:
        """Denoising of the states of all learners so far."""
        x = self.shown.scaled(after)
        found = denoising_loss(
            self.denoiser, x, weighting=self.weighting, schedule=self.noise, stratified=True
        )
        return found.mean()


_weighting, _schedule, _looks = weighting, schedule, looks  # arguments have these names
