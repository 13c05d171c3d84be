r"""Parts with data of their own (sessions, subjects), stacked into one batch of problems.

.. math:: \sum_{i \le n_p} n_{pi} \log p(y_{pi} \mid x_p)
    = \sum_{i \le \max n} n_{pi} \log p(y_{pi} \mid x_p), \qquad n_{pi} = 0 \;\text{for}\; i > n_p

Shorter parts repeat their last row with weight 0, which changes neither a density nor a derivative.
Parts that go together have one model: the same parameters, buffers of the same shape (the knots of
a free link may lie anywhere) and priors that differ in numbers only, as their places do.
"""

import copy
from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vmap

from neurodiff.inference.posterior import Posterior
from neurodiff.inference.priors import Pooled


class Stacked(Pooled):
    """The parameters of several parts: alike, but each under its own priors.

    Args:
        parts: The parameters of each part.
        owner: (batch,) the part that each problem belongs to, in ascending order.
        device: Where densities are computed; draws from the priors stay on the CPU.
    """

    def __init__(
        self, parts: Sequence[Pooled], owner: Int[Tensor, " batch"], device: torch.device | str
    ) -> None:
        super().__init__([site.to(device) for site in parts[0].sites])
        self.parts, self.owner = parts, owner
        each = zip(*(part.coefficients for part in parts), strict=True)
        self.coefficients = tuple(torch.stack(rows)[owner].to(device) for rows in each)

    def select(self, problems: Tensor) -> "Stacked":
        """The parameters of some of the problems."""
        few = copy.copy(self)
        few.owner = self.owner[problems.cpu()]
        few.coefficients = tuple(row[problems] for row in self.coefficients)
        return few

    def of_part(self, part: int) -> Pooled:
        """The parameters of one part."""
        return self.parts[part]

    def draws_log_prior(self, u: Float[Tensor, "batch draw size"]) -> Float[Tensor, "batch draw"]:
        """Log p(u) at many draws of each problem."""
        return vmap(vmap(self.log_prior, (0, None)))(u, self.coefficients)


def alike(one: Posterior) -> Hashable:
    """What parts must share to be stacked.

    >>> import torch, neurodiff as nd, xarray as xr
    >>> from neurodiff.inference.join import join
    >>> def part(levels):
    ...     columns = {"logsnr": ("trial", levels), "correct": ("trial", [1.0] * len(levels))}
    ...     model = nd.Threshold(nd.weighting("sigmoid"), nd.observers.Choice(choices=2))
    ...     return join(model, xr.Dataset(columns)).posterior
    >>> alike(part([0.0, 1.0])) == alike(part([2.0, 3.0, 4.0]))
    True
    """
    if getattr(one.model, "apart", False):  # it sorts its trials, which no batch can
        return id(one)
    n = one.unit.shape[-1]
    trials = {k: v.shape[1:] if _by_row(v, n) else (None, *v.shape) for k, v in one.trials.items()}
    sites = [(s.name, s.inner, type(s.prior).__name__) for s in one.parameters.sites]
    buffers = {name: value.shape for name, value in one.model.named_buffers()}
    kind = type(one.parameters).__name__, one.by_row
    return repr((sites, sorted(trials.items()), sorted(buffers.items()), kind))


def stack(parts: Sequence[Posterior], device: torch.device | str = "cpu") -> Posterior:
    """One batch of problems, a problem for each part; their model is that of the first.

    Args:
        parts: One problem each, :func:`alike`, with pooled parameters, on the CPU.
        device: Where the batch lives.
    """
    if len(parts) == 1 and parts[0].mask.device.type == torch.device(device).type:
        return parts[0]
    first, most = parts[0], max(part.unit.shape[-1] for part in parts)

    def padded(tensors: Sequence[Tensor], by_row: bool = True) -> Tensor:
        rows = [_longer(t, most) if by_row else t for t in tensors]
        return torch.stack(rows).to(device)

    trials = {
        name: padded([p.trials[name] for p in parts], _by_row(value, first.unit.shape[-1]))
        for name, value in first.trials.items()
    }
    own = all(part.by_row for part in parts)
    unit = torch.arange(most).to(device) if own else padded([part.unit for part in parts])
    units = max(part.mask.shape[1] for part in parts)
    weights = [_zeros(part.weight, most) for part in parts]
    mask = [_zeros(part.mask[0], units) for part in parts]
    buffers = {}
    for name, value in first.model.named_buffers():
        each = [dict(part.model.named_buffers())[name] for part in parts]
        if any(not torch.equal(value, other) for other in each):
            buffers[name] = padded(each, by_row=False)
    return Posterior(
        copy.deepcopy(first.model).to(device),
        Stacked([p.parameters for p in parts], torch.arange(len(parts)), device),  # pyright: ignore
        trials,
        padded([part.response for part in parts]),
        unit,
        torch.stack(mask).to(device),
        torch.stack(weights).to(device),
        buffers,
    )


def _by_row(value: Tensor, rows: int) -> bool:
    return value.dim() > 0 and len(value) == rows


def _longer(value: Tensor, rows: int) -> Tensor:
    """The last row repeated: a row that the model can surely answer."""
    return torch.cat([value, value[-1:].expand(rows - len(value), *value.shape[1:])])


def _zeros(value: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(value, (0, length - len(value)))
