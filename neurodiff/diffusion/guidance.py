r"""Guidance: denoisers made of denoisers, pushed towards a condition.

.. math:: \hat x = \hat x_u + s\,(\hat x_c - \hat x_u) \qquad
    \nabla \log p(z) + s\, \nabla \log p(y|z)

with s = 0 unconditional, s = 1 conditional and s > 1 beyond. Weights sum to one, so that guiding x̂,
ε̂, v or the velocity is the same. The usual slip is to call the result a sample of
:math:`p(x)\, p(y|x)^s`: the guided field is the score of that, diffused, in the limit of no noise
only.

References:
    Dhariwal & Nichol 2021 (classifier); Ho & Salimans 2022 (classifier-free, their w is s - 1);
    Fan et al. 2025 (CFG-Zero*); Karras et al. 2024 (auto-guidance).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from neurodiff.diffusion.denoiser import Denoiser, per_example
from neurodiff.diffusion.logsnr import alpha, sigma
from neurodiff.diffusion.parameterization import like

Cond = Shaped[Tensor, "batch ..."] | None


class ClassifierFree(Denoiser):
    """A conditional denoiser pushed away from itself without the condition.

    Args:
        denoiser: with ``cond``, and without: trained with the condition dropped now and then.
        scale: s.

    Raises:
        ValueError: when called without a condition.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        super().__init__()
        self.denoiser, self.scale = denoiser, scale

    def forward(
        self, z: Float[Tensor, "batch *event"], logsnr: Float[Tensor, "..."], cond: Cond = None
    ) -> Float[Tensor, "batch *event"]:
        """X̂ of the unconditional + s times what the condition adds."""
        plain = self.denoiser(z, logsnr)
        return torch.lerp(plain, self.denoiser(z, logsnr, _given(cond, self)), self.scale)


class Classifier(Denoiser):
    r"""An unconditional denoiser pushed by a classifier of noisy z.

    .. math:: \hat x + s \frac{σ^2}{α} \nabla_z \log p(y | z)

    Args:
        denoiser: called without the condition.
        log_prob: (z, logsnr, cond) → log p(cond|z), (batch,); its gradient in z is taken, so a
            classifier that was trained on clean x misleads where there is noise.
        scale: s.

    Raises:
        ValueError: when called without a condition.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        log_prob: Callable[[Tensor, Tensor, Tensor], Tensor],
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.denoiser, self.log_prob, self.scale = denoiser, log_prob, scale

    def forward(
        self, z: Float[Tensor, "batch *event"], logsnr: Float[Tensor, "..."], cond: Cond = None
    ) -> Float[Tensor, "batch *event"]:
        """X̂ + s σ²/α ∇ log p(cond|z)."""
        level = per_example(logsnr, z)
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            total = self.log_prob(leaf, level, _given(cond, self)).sum()
            (push,) = torch.autograd.grad(total, leaf)
        gain = self.scale * sigma(level).square() / alpha(level)
        return self.denoiser(z, logsnr) + like(gain, z) * push


class CfgZero(Denoiser):
    r"""CFG-Zero*: the unconditional velocity scaled to fit the conditional one, and a still start.

    .. math:: u = (1 - s)\, a\, u_u + s\, u_c, \qquad
        a = \frac{\langle u_c, u_u \rangle}{|u_u|^2}, \qquad u = \hat ε - \hat x

    a is the least-squares fit of each sample. Below ``still`` u = 0: z on the straight path does
    not move.

    Args:
        denoiser: with ``cond``, and without.
        scale: s.
        still: logsnr below which the velocity is 0: that of about the first 4 % of the steps.

    Raises:
        ValueError: when called without a condition.
    """

    def __init__(self, denoiser: Denoiser, scale: float, still: float = -torch.inf) -> None:
        super().__init__()
        self.denoiser, self.scale, self.still = denoiser, scale, still

    def forward(
        self, z: Float[Tensor, "batch *event"], logsnr: Float[Tensor, "..."], cond: Cond = None
    ) -> Float[Tensor, "batch *event"]:
        """The x̂ of that velocity: z = α x + σ ε and ε - x = u give x = (z - σ u)/(α + σ)."""
        level = per_example(logsnr, z)
        a, s = like(alpha(level), z), like(sigma(level), z)

        def velocity(x: Tensor) -> Tensor:
            return (z - (a + s) * x) / s

        plain = velocity(self.denoiser(z, logsnr))
        given = velocity(self.denoiser(z, logsnr, _given(cond, self)))
        flat, toward = plain.reshape(len(z), -1), given.reshape(len(z), -1)
        fit = (flat * toward).sum(1) / flat.square().sum(1).clamp_min(1e-30)
        u = (1 - self.scale) * like(fit, z) * plain + self.scale * given
        u = torch.where(like(level < self.still, z), 0.0, u)
        return (z - s * u) / (a + s)


class Auto(Denoiser):
    """A good denoiser pushed away from a bad one: smaller or less trained, of the same condition.

    Args:
        good: the model.
        bad: what it is pushed away from.
        scale: s; 1 is the good model alone.
    """

    def __init__(self, good: Denoiser, bad: Denoiser, scale: float) -> None:
        super().__init__()
        self.good, self.bad, self.scale = good, bad, scale

    def forward(
        self, z: Float[Tensor, "batch *event"], logsnr: Float[Tensor, "..."], cond: Cond = None
    ) -> Float[Tensor, "batch *event"]:
        """X̂ of the bad one + s times what the good one adds."""
        return torch.lerp(self.bad(z, logsnr, cond), self.good(z, logsnr, cond), self.scale)


def _given(cond: Cond, guide: Denoiser) -> Tensor:
    if cond is None:
        name = type(guide).__name__
        raise ValueError(
            f"{name} guides towards a condition and got none: give cond, (batch, ...), or sample "
            "from the denoiser itself"
        )
    return cond
