r"""Curves over logsnr at posterior draws: the weighting and its stopping density.

.. math:: w_s(\lambda) = P(\Lambda > \lambda \mid x_s), \qquad -w_s'(\lambda)

on a fixed grid over the tested logsnr and two nats beyond, in the gauge of the stimulus. The
density is per nat, by forward differentiation of w: where w jumps it is zero, not a spike.
"""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, jvp, vmap

from neurodiff.inference.groups import Grouped
from neurodiff.inference.join import Bound

_GRID = 121  # points
_MARGIN = 2.0  # nats beyond the tested logsnr
_PREFIX = "weighting."


def grid_of(bound: Bound) -> Float[Tensor, " logsnr"]:
    """The grid: from the 0.1 % to the 99.9 % quantile of the tested logsnr, and two nats beyond."""
    with torch.no_grad():
        tested = bound.posterior.model.front_end(bound.posterior.trials)  # pyright: ignore
    tested = tested[torch.isfinite(tested)].cpu().numpy()
    low, high = np.quantile(tested, [0.001, 0.999])  # torch's takes at most 16 million
    return torch.linspace(low - _MARGIN, high + _MARGIN, _GRID, dtype=torch.float64)


def curves(bound: Bound, u: Float[Tensor, "draw size"]) -> tuple[Tensor, Tensor, Tensor]:
    """Grid, w and -w′ (draw, [group,] logsnr) at each of the draws."""
    weighting = bound.posterior.model.weighting
    grid = grid_of(bound)
    at = grid.to(u.device)
    parameters = bound.posterior.parameters
    grouped = isinstance(parameters, Grouped)
    own = parameters.deviations(u)[2] if grouped else u
    values = bound.pooled.constrain(own)
    learned = {k.removeprefix(_PREFIX): v for k, v in values.items() if k.startswith(_PREFIX)}

    def both(draw: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        def w(x: Tensor) -> Tensor:
            return functional_call(weighting, draw, (x,))  # pyright: ignore[reportArgumentType]

        value, slope = jvp(w, (at,), (torch.ones_like(at),))  # pyright: ignore
        return value, -slope

    with torch.no_grad():
        if not learned:  # nothing to learn: one curve for all
            w, density = (c.expand(*own.shape[:-1], -1) for c in both({}))
        else:
            w, density = (vmap(vmap(both)) if grouped else vmap(both))(learned)
    return grid, w, density


def contraction(bound: Bound, u: Float[Tensor, "draw size"], seed: int) -> xr.Dataset:
    r"""How much the data have told about w at each logsnr.

    .. math:: 1 - \mathrm{sd}[w(\lambda) \mid \text{data}] \, / \, \mathrm{sd}[w(\lambda)]

    Meaningful for a flexible law only: one with two parameters contracts most where there are no
    data at all. Where the prior leaves nothing open there is nothing to be told, and it is 0.
    """
    grid, after, _ = curves(bound, u)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior = bound.pooled.draw_prior(500)
    _, before, _ = curves(bound, prior.to(u))
    ratio = after.std(0) / before.std(0).clamp_min(1e-3)
    known = torch.where(before.std(0) > 1e-3, 1 - ratio, 0.0).clamp(0, 1)
    return xr.Dataset(
        {"contraction": ("logsnr", known.cpu().numpy())},
        coords={"logsnr": ("logsnr", grid.cpu().numpy(), {"units": "nats"})},
    )
