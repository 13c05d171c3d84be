r"""A classifier of noisy z, at every noise level: what classifier guidance needs.

.. math:: \hat θ = \arg\max_θ\; E_{x, y}\, E_{t, ε} \log p_θ(y | z_λ, λ), \qquad
    z_λ = α x + σ ε, \; λ = λ(t), \; t ∼ U

The network is shown α z. Where α is small log p(y|z) depends on z through α z only, and guidance
divides the gradient by α: what a network of z itself gets wrong there is multiplied by 770 at −13.3
nats, and few samples are of the class asked for (``analyses/10_guidance.py``).

With enough capacity every schedule that reaches all λ ends at the posterior p(y|z). A classifier of
clean x gives gradients that mislead where there is noise.

References: Dhariwal & Nichol 2021.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neurodiff.diffusion.logsnr import alpha, diffuse
from neurodiff.diffusion.loss import look
from neurodiff.diffusion.parameterization import like
from neurodiff.diffusion.schedule import NoiseSchedule


class NoisyClassifier(nn.Module):
    """Log p(y|z, λ) by a network of α z and λ, and a linear layer.

    Args:
        network: (α z, logsnr) → (batch, ...), such as an ``MLP``; its outputs are the features.
        features: how many of them there are.
        classes: number of classes.

    >>> from neurodiff.diffusion.networks import MLP
    >>> fresh = NoisyClassifier(MLP((3,), 8, 1), 3, 2)
    >>> fresh(torch.zeros(5, 3), torch.zeros(5)).shape
    torch.Size([5, 2])
    """

    def __init__(self, network: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.network, self.head = network, nn.Linear(features, classes)

    def forward(
        self, z: Float[Tensor, "batch *event"], logsnr: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch class"]:
        """Log probability of every class."""
        seen = like(alpha(logsnr), z) * z
        return self.head(self.network(seen, logsnr).flatten(1)).log_softmax(1)

    def log_prob(
        self,
        z: Float[Tensor, "batch *event"],
        logsnr: Float[Tensor, " batch"],
        cond: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """Log p(cond|z, λ), as :class:`~neurodiff.diffusion.guidance.Classifier` takes it."""
        return self(z, logsnr).gather(1, cond[:, None])[:, 0]

    def noisy_log_prob(
        self,
        x: Float[Tensor, "batch *event"],
        cond: Int[Tensor, " batch"],
        schedule: NoiseSchedule,
    ) -> Float[Tensor, " batch"]:
        """Log p(cond|z, λ) at a z of each x, at a time of its own: what is maximised."""
        logsnr, _ = look(x, schedule, stratified=True)
        return self.log_prob(diffuse(x, torch.randn_like(x), logsnr), logsnr, cond)
