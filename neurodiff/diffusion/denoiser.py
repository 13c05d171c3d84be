r"""A denoiser: the posterior mean of the clean x, given its noisy version and how noisy it is.

.. math:: \hat x(z, λ) = E[x | z], \qquad z = α x + σ ε, \quad α² = sig(λ), \; σ² = sig(−λ)

z is always in variance-preserving scaling: any other path is rescaled before (``logsnr.rescale``),
and time does not exist here. By Tweedie's formula a denoiser is a score,
∇ log p(z) = (α x̂ − z) / σ².
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from neurodiff.diffusion.logsnr import alpha, sigma
from neurodiff.diffusion.named import check_name
from neurodiff.diffusion.parameterization import PAIRS, convert, like


class Denoiser(nn.Module, ABC):
    """Maps (z, logsnr, cond) to E[x|z].

    An implementation takes z of shape (batch, ...) and logsnr of shape () or (batch,), one value an
    example, and returns the shape of z. It reads ``cond`` or refuses it.
    """

    @abstractmethod
    def forward(
        self,
        z: Float[Tensor, "batch *event"],
        logsnr: Float[Tensor, "..."],
        cond: Shaped[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """E[x|z], of the shape of z."""


class NetworkDenoiser(Denoiser):
    """Any module with its output read as one of the parameterizations.

    Args:
        network: called as ``network(z, logsnr)``, or ``network(z, logsnr, cond)`` where a condition
            is given, with logsnr of shape (batch,); returns the shape of z.
        parameterization: what the output means: ``x, eps, v, score, flow`` (ε − x) or ``F`` (EDM's,
            for data of standard deviation 0.5).

    Raises:
        ValueError: an unknown parameterization, or an output that has not the shape of z.

    >>> class Zero(nn.Module):
    ...     def forward(self, z, logsnr):
    ...         return 0 * z
    >>> import torch
    >>> NetworkDenoiser(Zero(), "v")(torch.ones(2, 3), torch.tensor(0.0))[0, 0]   # α z
    tensor(0.7071)
    """

    def __init__(self, network: nn.Module, parameterization: str) -> None:
        super().__init__()
        check_name("parameterization", PAIRS, parameterization, {})
        self.network = network
        self.parameterization = parameterization

    def forward(
        self,
        z: Float[Tensor, "batch *event"],
        logsnr: Float[Tensor, "..."],
        cond: Shaped[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """The network's output, converted to E[x|z]."""
        logsnr = per_example(logsnr, z)
        value = self.network(z, logsnr) if cond is None else self.network(z, logsnr, cond)
        if value.shape != z.shape:
            raise ValueError(
                f"the network returned {tuple(value.shape)} for z of shape {tuple(z.shape)}; "
                "it must return the shape of z"
            )
        return convert(value, self.parameterization, "x", z=z, logsnr=logsnr)

    def extra_repr(self) -> str:
        """The parameterization, for ``repr``."""
        return f"parameterization={self.parameterization!r}"


class LevelDenoiser(Denoiser):
    r"""A network that says how likely each level of each number is, given all the others.

    .. math:: \hat x_i = \sum_k l_k\, \mathrm{softmax}_k\big(\text{net}_{ik}(z, λ)
        - \tfrac12 e^{λ} (z_i/α - l_k)^2\big), \qquad l_k = 2 (k + ½)/K - 1

    For data of few levels, such as images of K grey levels. What a number's own noisy value says of
    it is known and added; the network has to say what the rest does.

    Args:
        network: as in :class:`NetworkDenoiser`, but returns (batch, K, ...).
        levels: K.

    Raises:
        ValueError: an output of another shape.

    >>> import torch
    >>> class Flat(nn.Module):
    ...     def forward(self, z, logsnr):
    ...         return torch.zeros(len(z), 2, *z.shape[1:])
    >>> LevelDenoiser(Flat(), 2)(torch.ones(1, 3), torch.tensor(-torch.inf))[0, 0]
    tensor(0.)
    """

    at: Tensor

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("at", 2 * (torch.arange(levels) + 0.5) / levels - 1)

    def log_levels(
        self,
        z: Float[Tensor, "batch *event"],
        logsnr: Float[Tensor, "..."],
        cond: Shaped[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch level *event"]:
        """Log probability of each level of each number, given z."""
        logsnr = per_example(logsnr, z)
        logits = self.network(z, logsnr) if cond is None else self.network(z, logsnr, cond)
        wanted = (len(z), len(self.at), *z.shape[1:])
        if logits.shape != wanted:
            raise ValueError(f"the network returned {tuple(logits.shape)}, wanted {wanted}")
        at = self.at.to(z).reshape(-1, *(1,) * (z.ndim - 1))
        # e^λ (z/α - l)² = (z - α l)² / σ², which holds at λ = -inf too
        a, s = like(alpha(logsnr), z)[:, None], like(sigma(logsnr), z)[:, None]
        return (logits - 0.5 * ((z[:, None] - a * at) / s).square()).log_softmax(1)

    def forward(
        self,
        z: Float[Tensor, "batch *event"],
        logsnr: Float[Tensor, "..."],
        cond: Shaped[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """The mean over levels."""
        p = self.log_levels(z, logsnr, cond).exp()
        return torch.einsum("k,bk...->b...", self.at.to(p), p)


class ByLabel(Denoiser):
    """A denoiser of its own for each of the labels 0, 1, …, which is the condition.

    Args:
        of: one for each label, called without a condition.

    Raises:
        ValueError: when called without labels, or with one that has no denoiser.

    >>> import torch
    >>> from neurodiff.diffusion.prior import Empirical
    >>> left, right = Empirical(torch.tensor([[-1.0]])), Empirical(torch.tensor([[1.0]]))
    >>> ByLabel(left, right)(torch.zeros(2, 1), torch.tensor(0.0), torch.tensor([0, 1]))[:, 0]
    tensor([-1.,  1.])
    """

    def __init__(self, *of: Denoiser) -> None:
        super().__init__()
        self.of = nn.ModuleList(of)

    def forward(
        self,
        z: Float[Tensor, "batch *event"],
        logsnr: Float[Tensor, "..."],
        cond: Shaped[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """E[x|z, label]."""
        known = cond is not None and bool(((cond >= 0) & (cond < len(self.of))).all())
        if cond is None or not known:
            raise ValueError(f"got the labels {cond}, wanted one of 0 to {len(self.of) - 1} each")
        logsnr, found = per_example(logsnr, z), torch.empty_like(z)
        for label in cond.unique().tolist():
            mine = cond == label
            found[mine] = self.of[label](z[mine], logsnr[mine])
        return found

    def posterior(
        self,
        z: Float[Tensor, "batch *event"],
        logsnr: Float[Tensor, "..."],
        shares: Float[Tensor, " label"] | None = None,
    ) -> Float[Tensor, "batch label"]:
        r"""What exact denoisers know of the label: P(y|z, λ) ∝ π_y p_y(z; λ).

        Args:
            z: noisy, in VP scaling.
            logsnr: of each, or one for all.
            shares: π, of the labels; equal by default.

        Raises:
            ValueError: a denoiser that has no density of its own.

        >>> import torch
        >>> from neurodiff.diffusion.prior import Gaussian
        >>> low, high = (Gaussian(m * torch.ones(1), torch.ones(1)) for m in (-1.0, 1.0))
        >>> z = torch.tensor([[0.5]])
        >>> ByLabel(low, high).posterior(z, torch.tensor(torch.inf)).round(decimals=3)  # sig(2 z)
        tensor([[0.2690, 0.7310]])
        """
        without = [i for i, d in enumerate(self.of) if not hasattr(d, "log_prob")]
        if without:
            raise ValueError(f"the denoisers of labels {without} have no density: wanted priors")
        level = per_example(logsnr, z)
        each = torch.stack([d.log_prob(z, level) for d in self.of], 1)  # pyright: ignore
        return (each if shares is None else each + shares.log()).softmax(1)


def per_example(logsnr: Tensor, z: Tensor) -> Tensor:
    """Logsnr as (batch,): a single value holds for every example.

    Raises:
        ValueError: logsnr is neither () nor (batch,).

    >>> import torch
    >>> per_example(torch.tensor(1.0), torch.zeros(2, 5))
    tensor([1., 1.])
    """
    if logsnr.shape not in ((), (len(z),)):
        raise ValueError(
            f"logsnr has shape {tuple(logsnr.shape)}; wanted () or ({len(z)},), one value for each "
            f"example of z {tuple(z.shape)}"
        )
    return logsnr.expand(len(z))
