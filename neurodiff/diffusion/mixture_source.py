r"""A source that is a mixture of Gaussians: which component a way begins in is drawn with it.

.. math:: p(x) = \sum_k π_k\, N(x; m_k, s_k^2), \qquad k \sim p(k|x) \propto π_k N(x; m_k, s_k^2),
    \qquad r = \frac{x - m_k}{s_k}

Where x is of the mixture, r is N(0, I) given k. So diffusion from this source is plain diffusion of
r given k, as in :mod:`~neurodiff.diffusion.source`, and whatever the mixture,
p(x) = Σ p(k) p(r|k) / Π s_k with the shares p(k) of the drawn components.
"""

import math

from jaxtyping import Float, Int
from torch import Tensor, nn


class MixtureSource(nn.Module):
    """A mixture of Gaussians with diagonal covariances, such as scikit-learn fits to data.

    Args:
        weights: π, (component,), which sum to 1.
        means: (component, ...).
        scales: standard deviations, of the shape of the means, above 0.

    Raises:
        ValueError: shapes that do not go together, weights or scales that are none.

    >>> import torch
    >>> means = torch.tensor([[-2.0], [2.0]])
    >>> two = MixtureSource(torch.tensor([0.5, 0.5]), means, torch.ones(2, 1))
    >>> two.posterior(torch.tensor([[2.0]])).round(decimals=3)
    tensor([[0., 1.]])
    >>> two.whiten(torch.tensor([[3.0]]), torch.tensor([1]))
    tensor([[1.]])
    """

    weights: Tensor
    means: Tensor
    scales: Tensor

    def __init__(
        self,
        weights: Float[Tensor, " weight"],
        means: Float[Tensor, "component *event"],
        scales: Float[Tensor, "component *event"],
    ) -> None:
        super().__init__()
        fits = means.shape == scales.shape and len(means) == len(weights)
        if not fits or not bool((weights >= 0).all()) or abs(float(weights.sum()) - 1) > 1e-4:
            raise ValueError(
                f"got weights {tuple(weights.shape)} that sum to {float(weights.sum()):g}, means "
                f"{tuple(means.shape)} and scales {tuple(scales.shape)}; wanted as many of each, "
                "and weights that sum to 1"
            )
        if not bool((scales > 0).all()):
            raise ValueError(f"got a scale of {float(scales.min()):g}, wanted all above 0")
        self.register_buffer("weights", weights)
        self.register_buffer("means", means)
        self.register_buffer("scales", scales)

    def joint(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch component"]:
        """Log π_k N(x; m_k, s_k²)."""
        off = ((x[:, None] - self.means) / self.scales).flatten(2).square().sum(-1)
        size = self.scales.flatten(1).log().sum(-1) + 0.5 * x[0].numel() * math.log(2 * math.pi)
        return self.weights.log() - size - 0.5 * off

    def log_prob(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Log p(x), nats."""
        return self.joint(x).logsumexp(-1)

    def posterior(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch component"]:
        """p(k|x)."""
        return self.joint(x).softmax(-1)

    def whiten(
        self, x: Float[Tensor, "batch *event"], k: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch *event"]:
        """R = (x − m_k) / s_k."""
        return (x - self.means[k]) / self.scales[k]

    def colour(
        self, r: Float[Tensor, "batch *event"], k: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch *event"]:
        """X = m_k + s_k r."""
        return self.means[k] + self.scales[k] * r
