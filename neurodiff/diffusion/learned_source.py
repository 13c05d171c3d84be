r"""A source that is learned: the Gaussian around what a network makes of y.

.. math:: e = m_θ(y) + s_θ(y)\, ε, \qquad
    θ = \arg\max_θ \sum_i \log N\big(x_i; m_θ(y_i), s_θ(y_i)^2\big), \qquad
    r = \frac{x - m_θ(y)}{s_θ(y)}

Diffusion from this source is plain diffusion of r, given y, as in
:mod:`~neurodiff.diffusion.source`; and

.. math:: \log p(x|y) = \log p(r|y) - \textstyle\sum \log s_θ(y)

A mean alone changes nothing but the network's input: with s = 1 the ε-error, and so every loss and
likelihood, is that of x̂ = m + r̂ at the same noise. What can be gained lies in s.

References: Lee et al. 2022 (PriorGrad), there with a fixed s.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LearnedSource(nn.Module):
    r"""N(m(y), s(y)²), s² = floor + exp 2u.

    Learned by ``most_likely(source, LearnedSource.log_prob, x, y, steps=...)`` of
    :mod:`~neurodiff.diffusion.maximum`; with some dropout, or s is that of x remembered.

    Args:
        network: (y, logsnr) → (batch, 2, ...), m and u; an ``MLP`` of the shape of x and y, with
            ``outputs=2``. Of logsnr it is told 0.
        floor: the least variance, such as that of rounding to grey levels.

    Raises:
        ValueError: when x has not the shape that the network speaks of.

    >>> from neurodiff.diffusion.networks import MLP
    >>> fresh = LearnedSource(MLP((3,), 8, 1, outputs=2), 0.0)
    >>> fresh.log_prob(torch.zeros(1, 3), torch.ones(1, 3)).detach()     # N(0, I), at first
    tensor([-2.7568])
    """

    def __init__(self, network: nn.Module, floor: float) -> None:
        super().__init__()
        self.network, self.floor = network, floor

    def forward(
        self, y: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch *event"]]:
        """M(y) and s(y)."""
        mean, u = self.network(y, y.new_zeros(len(y))).unbind(1)
        return mean, (self.floor + (2 * u).exp()).sqrt()

    def whiten(
        self, x: Float[Tensor, "batch *event"], y: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch *event"]:
        """R = (x − m) / s."""
        mean, scale = self(y)
        if x.shape != mean.shape:
            raise ValueError(f"got x of {tuple(x.shape)} around {tuple(mean.shape)}; wanted alike")
        return (x - mean) / scale

    def colour(
        self, r: Float[Tensor, "batch *event"], y: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch *event"]:
        """X = m + s r."""
        mean, scale = self(y)
        return mean + scale * r

    def log_prob(
        self, x: Float[Tensor, "batch *event"], y: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, " batch"]:
        """Log N(x; m, s²), nats: what the source says without diffusion."""
        mean, scale = self(y)
        each = torch.distributions.Normal(mean, scale, validate_args=False).log_prob(x)
        return each.reshape(len(x), -1).sum(1)
