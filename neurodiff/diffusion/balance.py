r"""Weightings that are learned while a network trains, from what it gets wrong at each logsnr.

.. math:: w(λ) \propto \frac{1}{s(λ)}, \qquad s = \begin{cases}
    E[m|λ] & \text{uncertainty} \\
    \mathrm{sd}[m|λ] & \text{variance} \\
    E\big[\,|\partial m / \partial y|\,\big|\,λ\big] & \text{gradient}
    \end{cases}

Rules of thumb, of no likelihood: each makes one thing the same at every noise level. They are
piecewise constant on logsnr, with a mean of 1 over its range, and none is monotone by nature, so
that none is a stopping law. All learn by ``update(logsnr, error)``, which
:func:`~neurodiff.diffusion.train.train` calls after each step. :class:`KindBalance` shares each
level's loss among kinds of data instead, and leaves the levels to another weighting.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neurodiff.diffusion.adaptive import Running
from neurodiff.diffusion.parameterization import error_ratio
from neurodiff.diffusion.zoo import Weighting

_LEAST = 1e-4  # of the largest s: where a network makes no error it gets no weight without end


class Balance(Weighting):
    """A weighting that is one over a running average.

    Args:
        logsnr_min: the bins begin here; what lies beyond has the weight of the outermost.
        logsnr_max: and end here.
        bins: of equal width.
        rate: share of the average that stays at each batch.
    """

    monotone = False

    def __init__(
        self,
        logsnr_min: float = -10.0,
        logsnr_max: float = 10.0,
        *,
        bins: int = 40,
        rate: float = 0.99,
    ) -> None:
        super().__init__()
        self.seen = Running(torch.linspace(logsnr_min, logsnr_max, bins + 1), rate)

    @abstractmethod
    def _seen(self, logsnr: Tensor, error: Tensor) -> Tensor:
        """What is averaged."""

    def _size(self) -> Float[Tensor, " bin"]:
        """S in each bin."""
        return self.seen.filled()

    @torch.no_grad()
    def update(self, logsnr: Float[Tensor, " batch"], error: Float[Tensor, " batch"]) -> None:
        """Learn from a batch of errors m."""
        self.seen.update(logsnr, self._seen(logsnr, error))

    @torch.no_grad()
    def forward(self, logsnr: Tensor) -> Tensor:
        """The weight, piecewise constant."""
        size = self._size()
        w = 1 / size.clamp_min(_LEAST * size.max())
        return (w / w.mean())[self.seen.bin(logsnr.nan_to_num())].to(logsnr)


class UncertaintyBalance(Balance):
    r"""Every noise level adds the same to the loss.

    The weight of a Gaussian error whose variance at each logsnr is learned by maximum likelihood:
    :math:`\tfrac12 m e^{-u} + \tfrac d2 u` is least at :math:`e^{u(λ)} = E[m|λ]/d`, which is taken
    at once instead of by steps of the optimiser.

    References: Kendall, Gal & Cipolla 2018; Karras et al. 2024 (EDM2).

    >>> w = UncertaintyBalance(-1.0, 1.0, bins=2)
    >>> w.update(torch.tensor([-0.5, 0.5]), torch.tensor([1.0, 3.0]))
    >>> w(torch.tensor([-0.5, 0.5]))
    tensor([1.5000, 0.5000])
    """

    name = "uncertainty"

    def _seen(self, logsnr: Tensor, error: Tensor) -> Tensor:
        return error


class VarianceBalance(Balance):
    """Every noise level adds the same noise to the loss: one over the s.d. of the error there."""

    name = "variance"

    def __init__(self, *ends: float, bins: int = 40, rate: float = 0.99) -> None:
        super().__init__(*ends, bins=bins, rate=rate)
        self.squares = Running(self.seen.edges, rate)

    def _seen(self, logsnr: Tensor, error: Tensor) -> Tensor:
        self.squares.update(logsnr, error.square())
        return error

    def _size(self) -> Float[Tensor, " bin"]:
        spread = self.squares.filled() - self.seen.filled().square()
        # before anything was seen all are alike
        return (
            spread.clamp_min(0.0).sqrt()
            if bool((self.seen.count > 1).any())
            else self.seen.mean + 1
        )


class GradientBalance(Balance):
    r"""Every noise level pulls as hard at what the network puts out.

    .. math:: |\partial m / \partial y| = 2 \sqrt{m}\, |\partial \hat ε / \partial y|

    Args:
        parameterization: of the output y.
        *ends: of logsnr, as of :class:`Balance`.
        bins: likewise.
        rate: likewise.

    References: Chen et al. 2018 (GradNorm), there of all weights of a layer.
    """

    name = "gradient"

    def __init__(
        self, parameterization: str, *ends: float, bins: int = 40, rate: float = 0.99
    ) -> None:
        super().__init__(*ends, bins=bins, rate=rate)
        self.parameterization = parameterization

    def _seen(self, logsnr: Tensor, error: Tensor) -> Tensor:
        return 2 * (error * error_ratio(self.parameterization, "eps", logsnr=logsnr)).sqrt()


class KindBalance(Weighting):
    r"""Kinds of data in one x (an image and its class) share the loss as their dimensions do.

    .. math:: w_k(λ) = w(λ)\, \frac{d_k}{E[m_k|λ]}\; \frac{\sum_j E[m_j|λ]}{\sum_j d_j}

    :math:`d_k / E[m_k|λ]` is the weight of the Gaussian error of kind k whose variance is learned,
    as in :class:`UncertaintyBalance`. The other factor leaves what every noise level adds in all as
    it was under w, :math:`w \sum_j E[m_j]`, so that balancing kinds does not undo w.

    What survives: w decides between noise levels; each :math:`w_k > 0` has the same best denoiser.
    But only equal :math:`w_k` make a bound of log p(x): what an observer of one z still integrates
    does not depend on the kind. A kind that is multiplied by s instead (its own logsnr is 2 log s
    higher) keeps the bound.

    Args:
        weighting: w.
        sizes: numbers of x, flattened, that are of each kind.
        logsnr_min: the bins begin here, as in :class:`Balance`.
        logsnr_max: and end here.
        bins: of equal width.
        rate: share of the average that stays at each batch.

    References: Kendall, Gal & Cipolla 2018, there of tasks.

    >>> w = KindBalance(torch.ones_like, (3, 1), -1.0, 1.0, bins=1)
    >>> w.update(torch.tensor([0.0]), torch.tensor([[1.0, 3.0]]))
    >>> w(torch.tensor([0.0]))           # of 4 in all, 3 and 1
    tensor([[3.0000, 0.3333]])
    """

    name, monotone = "kinds", False

    def __init__(
        self,
        weighting: Callable[[Tensor], Tensor],
        sizes: Sequence[int],
        logsnr_min: float = -10.0,
        logsnr_max: float = 10.0,
        *,
        bins: int = 40,
        rate: float = 0.99,
    ) -> None:
        super().__init__()
        self.weighting, self.sizes = weighting, tuple(sizes)
        edges = torch.linspace(logsnr_min, logsnr_max, bins + 1)
        self.seen = nn.ModuleList(Running(edges, rate) for _ in self.sizes)

    @torch.no_grad()
    def update(self, logsnr: Float[Tensor, " batch"], error: Float[Tensor, "batch kind"]) -> None:
        """Learn from a batch of errors of each kind."""
        for seen, mine, size in zip(self.seen, error.unbind(1), self.sizes, strict=True):
            seen.update(logsnr, mine / size)  # pyright: ignore

    @torch.no_grad()
    def forward(self, logsnr: Float[Tensor, " batch"]) -> Float[Tensor, "batch kind"]:
        """The weight of each kind, w times a factor that is piecewise constant."""
        each = torch.stack([kind.filled() for kind in self.seen], -1)  # pyright: ignore
        whole = (each * each.new_tensor(self.sizes)).sum(-1, keepdim=True) / sum(self.sizes)
        factor = whole / torch.maximum(each, _LEAST * whole)
        where = self.seen[0].bin(logsnr.nan_to_num())  # pyright: ignore
        return self.weighting(logsnr)[:, None] * factor[where].to(logsnr)
