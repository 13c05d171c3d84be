r"""Labels that cannot win any more: how far behind is far enough.

.. math:: D_k(j) = C_k(j) - \min_l C_l(j), \qquad C_k(j) = \tfrac12 \sum_{i \le j} m_k(λ_i)\,Δ_i

with l over the labels that are still looked at. A label is given up when it lies more than a lag
behind the best. What it was not asked is filled with the error of the label that wins, so it ends
as far behind as it was behind that one, and never wins:

.. math:: D_k = C_k(j_k) - C_{k^*}(j_k) > 0

This is for the label that wins. How far the others are behind at the end is not known, and a model
of people's doubts must not be fitted to it (``lag=inf``). Every denoiser errs in its own way, so
the lag is taken from a pilot: the largest at which the label that won in the end had been.
"""

import math
from collections.abc import Sequence

import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor


def quarters(levels: int) -> Sequence[Tensor]:
    """The levels in order, in four parts, after each of which labels may be given up."""
    return torch.arange(levels).chunk(4)


def behind(
    error: Float[Tensor, "stimulus logsnr label"],
    width: Float[Tensor, "stimulus logsnr"],
    kept: Bool[Tensor, "stimulus label"],
) -> Float[Tensor, "stimulus label"]:
    """Nats by which each label lies behind the best kept, by what is known so far; others inf."""
    cost = 0.5 * (width[..., None] * error).nan_to_num(0.0).sum(1)
    cost = cost.masked_fill(~kept, torch.inf)
    return cost - cost.amin(1, keepdim=True)


def fill(
    errors: Float[Tensor, "pair stimulus logsnr label"],
    width: Float[Tensor, "stimulus logsnr"],
    kept: Bool[Tensor, "stimulus label"],
) -> Float[Tensor, "pair stimulus logsnr label"]:
    """What labels given up were not asked, with the errors of the one that wins among the kept."""
    winner = behind(errors.mean(0), width, kept).argmin(1)
    its = errors[:, torch.arange(len(winner)), :, winner].movedim(0, 1)[..., None]
    return torch.where(torch.isnan(errors) & ~kept[:, None], its, errors)


def safe_lag(pilot: xr.Dataset, risk: float = 0.01) -> float:
    r"""The lag at which a label can be given up, so that the best is lost with probability ≤ risk.

    .. math:: P\big(\max_j D_{k^*}(j) > τ\big) \le \text{risk}, \qquad
        τ = D_{(\lceil (n + 1)(1 - \text{risk}) \rceil)}

    with D the nats by which the label that wins in the end lies behind on the way, n stimuli of a
    whole table and a new one, exchangeable with them (conformal prediction).

    Args:
        pilot: A table without a lag, of stimuli drawn like those that follow.
        risk: That the label of the least error in the end is given up before.

    Raises:
        ValueError: A risk that is not between 0 and 1, or a pilot too small to promise it.

    References: Vovk, Gammerman & Shafer 2005.
    """
    if not 0 < risk < 1:
        raise ValueError(
            f"got a risk of {risk:g}, wanted a probability between 0 and 1, such as 0.01: without "
            "risk no label can be given up, which is lag=math.inf"
        )
    n = pilot.sizes["stimulus"]
    rank = math.ceil((n + 1) * (1 - risk))
    if rank > n:
        raise ValueError(
            f"got a pilot of {n} stimuli, wanted at least {math.ceil(1 / risk) - 1} for a risk of "
            f"{risk:g}"
        )
    error = torch.from_numpy(pilot["error"].transpose("stimulus", "logsnr", "label").values)
    width = torch.from_numpy(pilot["width"].values)
    done = [int(q[-1]) + 1 for q in quarters(error.shape[1])]
    every = torch.ones(n, error.shape[2], dtype=torch.bool)
    lags = torch.stack([behind(error[:, :j], width[:, :j], every) for j in done])
    best = lags[-1].argmin(1)
    return float(lags[:, torch.arange(n), best].amax(0).sort().values[rank - 1])
