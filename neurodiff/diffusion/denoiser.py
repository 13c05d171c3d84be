r"""A denoiser: the posterior mean of the clean x, given its noisy version and how noisy it is.

.. math:: \hat x(z, λ) = E[x | z], \qquad z = α x + σ ε, \quad α² = sig(λ), \; σ² = sig(−λ)

z is always in variance-preserving scaling: any other path is rescaled before (``logsnr.rescale``),
and time does not exist here. By Tweedie's formula a denoiser is a score,
∇ log p(z) = (α x̂ − z) / σ².
"""

from abc import ABC, abstractmethod

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from neurodiff.diffusion.named import check_name
from neurodiff.diffusion.parameterization import PAIRS, convert


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
