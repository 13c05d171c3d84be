r"""Curves over logsnr at posterior draws: the weighting and its stopping density.

.. math:: w_s(\lambda) = P(\Lambda > \lambda \mid x_s), \qquad -w_s'(\lambda)

on a fixed grid over the tested logsnr and two nats beyond, in the gauge of the stimulus. The
density is per nat, by differentiation of w: where w jumps it is zero, not a spike.
"""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, vmap

from neurodiff.inference.groups import Grouped
from neurodiff.inference.join import Bound
from neurodiff.perception.classify import Tabled

_GRID = 121  # points
_MARGIN = 2.0  # nats beyond the tested logsnr
_PREFIX = "weighting."


def grid_of(bound: Bound) -> Float[Tensor, " logsnr"]:
    """The grid: from the 0.1 % to the 99.9 % quantile of the tested logsnr, and two nats beyond.

    Of a table of evidence it is all of the table.
    """
    model = bound.posterior.model
    if isinstance(model, Tabled):
        low, high = float(model.edges[0]), float(model.edges[-1])
        return torch.linspace(low, high, _GRID, dtype=torch.float64)
    with torch.no_grad():
        tested = model.front_end(bound.posterior.trials)  # pyright: ignore
    tested = tested[torch.isfinite(tested)].cpu().numpy()
    low, high = np.quantile(tested, [0.001, 0.999])  # torch's takes at most 16 million
    return torch.linspace(low - _MARGIN, high + _MARGIN, _GRID, dtype=torch.float64)


def curves(bound: Bound, u: Float[Tensor, "draw size"]) -> tuple[Tensor, Tensor, Tensor]:
    """Grid, w and -w′ (draw, [group,] logsnr) at each of the draws."""
    parameters, grid = bound.posterior.parameters, grid_of(bound)
    own = parameters.deviations(u)[2] if isinstance(parameters, Grouped) else u
    return grid, *_curves(bound, own, grid)


def _curves(
    bound: Bound, own: Float[Tensor, "draw *group size"], grid: Float[Tensor, " logsnr"]
) -> tuple[Tensor, Tensor]:
    """W and -w′ at one group's parameters, each with the leading dimensions of these."""
    weighting, at = bound.posterior.model.weighting, grid.to(own.device)
    values = bound.pooled.constrain(own)
    learned = {k.removeprefix(_PREFIX): v for k, v in values.items() if k.startswith(_PREFIX)}

    def w(draw: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(weighting, draw, (x,))  # pyright: ignore[reportArgumentType]

    # not jvp: like jacrev it would load torch's compiler
    x = at.expand(*own.shape[:-1], -1).clone().requires_grad_(True)
    each = w
    for _ in own.shape[:-1] if learned else ():  # nothing to learn: one curve for all
        each = vmap(each)
    with torch.enable_grad():
        value = each({name: v.detach() for name, v in learned.items()}, x)
        slope = torch.zeros_like(x)
        if value.requires_grad:  # it does not where w is the same everywhere
            (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), -slope


def contraction(bound: Bound, u: Float[Tensor, "draw size"], seed: int) -> xr.Dataset:
    r"""How much the data have told about w (with groups, the population's) at each logsnr.

    .. math:: 1 - \mathrm{sd}[w(\lambda) \mid \text{data}] \, / \, \mathrm{sd}[w(\lambda)]

    Meaningful for a flexible law only: one with two parameters contracts most where there are no
    data at all. Where the prior leaves nothing open there is nothing to be told, and it is 0.
    """
    grid = grid_of(bound)
    after, _ = _curves(bound, u[:, : bound.pooled.size], grid)  # the population's come first
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior = bound.pooled.draw_prior(500)
    before, _ = _curves(bound, prior.to(u), grid)
    ratio = after.std(0) / before.std(0).clamp_min(1e-3)
    known = torch.where(before.std(0) > 1e-3, 1 - ratio, 0.0).clamp(0, 1)
    return xr.Dataset(
        {"contraction": ("logsnr", known.cpu().numpy())},
        coords={"logsnr": ("logsnr", grid.cpu().numpy(), {"units": "nats"})},
    )
