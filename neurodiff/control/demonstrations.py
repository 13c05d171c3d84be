r"""Demonstrations of states alone, of an animal or of an agent: ``state`` (trial, time, feature).

.. math:: x = (s - c) / h, \qquad c, h = ½ (\max s \pm \min s) \quad\text{of each feature}

So that demonstrations are in [-1, 1], where denoisers are trained. Which features there are, and
how much time passes from one sample to the next, must be as in the environment; neither can be seen
from the numbers. A trial that is shorter than the others ends in NaN.
"""

from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

_DIMS = ("trial", "time", "feature")


class Demonstrations(NamedTuple):
    """What imitation reads of a data set, in single precision.

    Attributes:
        states: in [-1, 1].
        pairs: a state and the next, of the same trial; in the same units.
        centre: c of each feature, in units of the data.
        half: h.
    """

    states: Float[Tensor, "state feature"]
    pairs: Float[Tensor, "pair 2 feature"]
    centre: Float[Tensor, " feature"]
    half: Float[Tensor, " feature"]

    def scaled(self, s: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch feature"]:
        """(s − c) / h; states that nobody demonstrated may lie outside [-1, 1]."""
        return (s.to(self.centre) - self.centre) / self.half


def demonstrations(data: xr.Dataset, features: int | None = None) -> Demonstrations:
    """Read ``state`` (trial, time, feature) of a data set, which may hold anything else besides.

    Args:
        data: dimensions in any order; units are kept by the scaling only.
        features: how many the environment has.

    Raises:
        ValueError: no such variable, other dimensions, another number of features, NaN or infinity
            within a trial, a feature that never changes, or trials of a single sample.

    >>> walks = np.array([[[0.0], [1.0], [4.0]], [[2.0], [3.0], [np.nan]]])
    >>> walk = xr.Dataset({"state": (_DIMS, walks)})
    >>> found = demonstrations(walk, features=1)
    >>> found.states[:, 0].tolist(), len(found.pairs)
    ([-1.0, -0.5, 1.0, 0.0, 0.5], 3)
    """
    if "state" not in data or set(data["state"].dims) != set(_DIMS):
        there = {str(name): value.dims for name, value in data.data_vars.items()}
        raise ValueError(f"got a data set with {there}, wanted a variable state with {_DIMS}")
    state = data["state"].transpose(*_DIMS).to_numpy().astype(np.float64)
    trials, _, found = state.shape
    if features is not None and found != features:
        raise ValueError(
            f"got demonstrations of {found} features, and observations of the environment have "
            f"{features}: choose the same ones with data.isel(feature=...), in the same order"
        )
    there = np.logical_not(np.isnan(state).all(-1))
    # a trial ends where nothing but NaN follows
    within = np.cumsum(there[:, ::-1], axis=1)[:, ::-1] > 0
    bad = np.argwhere(within[..., None] & ~np.isfinite(state))
    if len(bad):
        trial, time, feature = bad[0]
        raise ValueError(
            f"state is {state[trial, time, feature]} at trial {trial}, time {time}, feature "
            f"{feature} (from 0; {len(bad)} such numbers), wanted finite ones until a trial ends: "
            "interpolate them, or cut the trial there"
        )
    follows = within[:, 1:]  # samples that have one before
    if not follows.any():
        raise ValueError(f"got {trials} trials of at most one sample, wanted two or more of each")
    low, high = state[within].min(0), state[within].max(0)
    if (same := np.flatnonzero(low == high)).size:
        raise ValueError(
            f"feature {same[0]} is {low[same[0]]:g} throughout the demonstrations, which tells a "
            "policy nothing: leave it out, in the environment too"
        )
    centre, half = 0.5 * (high + low), 0.5 * (high - low)
    scaled = np.clip((state - centre) / half, -1.0, 1.0)  # rounding
    pairs = np.stack([scaled[:, :-1][follows], scaled[:, 1:][follows]], 1)
    return Demonstrations(
        *(torch.from_numpy(v).float() for v in (scaled[within], pairs, centre, half))
    )
