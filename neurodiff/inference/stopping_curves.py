r"""What a bounded observer's stopping does at each strength, at posterior draws.

.. math:: w_{\text{eff}}(s \mid c), \qquad P(T > s \mid c), \qquad \lambda = \log v_c^2 s

Two curves a strength, which are one only where stopping does not depend on the evidence. The belief
in w_eff knows the strength, or does not and has the experiment's mixture of strengths. At strength
0 there is no direction to know, and λ = -∞: it is left out. A deadline beside the bound asks
nothing of the evidence: both curves are those of the bound times P(D > s).
"""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from neurodiff.inference.join import Bound
from neurodiff.perception.deadline import DeadlineMixture
from neurodiff.perception.drifts import Power
from neurodiff.perception.effective import effective_weighting
from neurodiff.perception.first_passage import density, survival
from neurodiff.perception.reaction import part

_DRAWS = 24


def stopping_curves(bound: Bound, u: Float[Tensor, "draw size"]) -> xr.Dataset:
    """w_eff with the strength known and not, survival of decision times, and the drift.

    Args:
        bound: A :class:`~neurodiff.perception.bounded.Bounded` model of ungrouped parameters, met
            with data.
        u: Draws, of which a few are used.

    Returns:
        ``effective``, ``effective_mixed``, ``survival`` (draw, strength, time) and ``drift``
        (draw, strength); empty where the drift is not constant in time and over trials, or where
        starting points differ over trials, since a belief then is no function of position, and
        where the drift has a bias, which both directions do not share.
    """
    model, pooled = bound.posterior.model, bound.pooled
    shifting = (getattr(model.drift, "spread", None), getattr(model.drift, "bias", None))
    unknown = (*shifting, getattr(model, "start_spread", None))
    if not isinstance(model.drift, Power) or any(x is not None for x in unknown):
        return xr.Dataset()
    time: Tensor = model.time  # pyright: ignore[reportAssignmentType]
    shown = bound.posterior.trials["strength"].abs()
    strength, count = np.unique(shown[shown > 0].cpu().numpy(), return_counts=True)
    prior, c = (torch.as_tensor(x).to(u) for x in (count / count.sum(), strength))
    found: dict[str, list] = {"effective": [], "effective_mixed": [], "survival": [], "drift": []}
    with torch.no_grad():
        for one in u[np.linspace(0, len(u) - 1, min(_DRAWS, len(u))).astype(int)]:
            values = {**dict(model.named_parameters()), **pooled.constrain(one)}
            own = part("bound.", values)
            size = c ** values.get("drift.exponent", torch.ones_like(c))
            v = values["drift.gain"] * size

            def height(t: Tensor, own: dict[str, Tensor] = own) -> tuple[Tensor, Tensor]:
                return functional_call(model.bound, own, (t,))  # pyright: ignore

            start = float(values["start"] * values["bound.height"]) if "start" in values else 0.0
            waits = torch.ones_like(time)
            if isinstance(model, DeadlineMixture):
                waits = functional_call(model.law, part("law.", values), ()).survival(time.log())
            g = [density(s * v, height, time, start) for s in (1.0, -1.0)]
            found["survival"].append(waits * 0.5 * (survival(g[0], time) + survival(g[1], time)))
            found["drift"].append(v)
            for name, mixture in (("effective", None), ("effective_mixed", prior)):
                found[name].append(waits * effective_weighting(v, height, time, start, mixture))
    dims = ("curve_draw", "strength", "time")
    arrays = {k: (dims[: x[0].dim() + 1], torch.stack(x).cpu().numpy()) for k, x in found.items()}
    coords = {"strength": strength, "time": ("time", time.cpu().numpy(), {"units": "s"})}
    return xr.Dataset(arrays, coords)
