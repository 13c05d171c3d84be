r"""Weightings that only a table of noise levels asks for: placed, free at each level, or one level.

.. math:: w(κ(λ + \text{shift})), \qquad \log w_{j+1} - \log w_j = \text{rate}\, z_j, \qquad
    w = e^{-(λ - \text{loc})^2 / 2\,\text{width}^2}

The first may stand elsewhere than where it was published; the second is the ceiling of averaged
evidence, the third what a law has to beat.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import LogNormal, Normal, constraints

from neurodiff.diffusion.weighting import Weighting

# w = e^{−λ/rate}: a shift of λ is a factor, which the sensitivity has
_EXPONENTIAL = ("flow-matching", "indi", "v-cosine")


class Placed(Weighting):
    r"""A named weighting on the scale of a table: :math:`w(κ(λ + \text{shift}))`.

    Args:
        weighting: Any of the zoo, rising ones too.
        free: Whether κ is learned; else κ = 1.

    The shift of an exponential, and of a constant, says nothing that sensitivity does not: it is
    not learned.

    >>> import neurodiff as nd
    >>> Placed(nd.weighting("edm"))(torch.tensor(0.0)) == nd.weighting("edm")(torch.tensor(0.0))
    tensor(True)
    """

    constraints: ClassVar = {"shift": constraints.real, "kappa": constraints.positive}
    priors: ClassVar = {"shift": Normal(0.0, 5.0), "kappa": LogNormal(0.0, 1.0)}

    def __init__(self, weighting: Weighting, free: bool = False) -> None:
        super().__init__()
        self.weighting, self.name, self.monotone = weighting, weighting.name, weighting.monotone
        fixed = self.name in (*_EXPONENTIAL, "elbo")
        self.shift = nn.Parameter(torch.tensor(0.0), requires_grad=not fixed)
        self.kappa = nn.Parameter(torch.tensor(1.0), requires_grad=free and self.name != "elbo")

    def forward(self, logsnr: Tensor) -> Tensor:
        """The weight at any shape of logsnr."""
        return self.weighting(self.kappa * (logsnr + self.shift))


class OneLevel(Weighting):
    """All weight at one noise level, a normal bump of fixed width: what a law has to beat.

    Args:
        width: Its standard deviation, nats.

    >>> OneLevel(0.5)(torch.tensor([0.0, 5.0])).detach()
    tensor([1.0000e+00, 1.9287e-22])
    """

    name, monotone = "one level", False
    constraints: ClassVar = {"loc": constraints.real}
    priors: ClassVar = {"loc": Normal(0.0, 5.0)}

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width, self.loc = width, nn.Parameter(torch.tensor(0.0))

    def forward(self, logsnr: Tensor) -> Tensor:
        """Its height, 1 at the top."""
        return (-0.5 * ((logsnr - self.loc) / self.width).square()).exp()


class FreeWeights(Weighting):
    r"""A weight of its own for every cell of a table, with a random walk on its logarithm.

    .. math:: \log w_{j+1} - \log w_j = \text{rate}\, z_j, \qquad z_j \sim N(0, 1)

    The ceiling of kind (b): any weighting, rising or falling, that is smooth.

    Args:
        logsnr: The middles of the cells.
        rate: Standard deviation of a step, nats.
    """

    name, monotone = "free weights", False
    constraints: ClassVar = {"z": constraints.real_vector}
    logsnr: Tensor

    def __init__(self, logsnr: Float[Tensor, " logsnr"], rate: float = 0.7) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("logsnr", logsnr)
        self.z = nn.Parameter(torch.zeros(len(logsnr) - 1))
        self.priors = {"z": Normal(0.0, 1.0)}

    def forward(self, logsnr: Tensor) -> Tensor:
        """The weight of the cell nearest to each logsnr."""
        log_w = torch.cat([torch.zeros_like(self.z[:1]), self.rate * self.z.cumsum(0)])
        near = (logsnr[..., None] - self.logsnr).abs().argmin(-1)
        return (log_w - log_w.amax()).exp()[near]
