r"""The hypotheses about answers with a label: which weighting of a table of evidence, used how.

.. math:: \text{row} = \text{kind (averaged, stopped)} \times \text{weighting or law}

Beside them stand the ceiling (a weight of its own for every noise level; of stopping a law without
a shape), the one noise level that alone would do, and no evidence at all. The winner is also fitted
to a table whose noise levels are permuted.
"""

import numpy as np
import torch
import xarray as xr
from torch import nn

from neurodiff.data.counts import judgements
from neurodiff.diffusion.flexible import PiecewiseLinear
from neurodiff.diffusion.weighting import SurvivalWeighting, Weighting
from neurodiff.diffusion.weighting import weighting as named
from neurodiff.perception.classify import AveragedEvidence, StoppedEvidence, Tabled
from neurodiff.perception.levels import FreeWeights, OneLevel, Placed
from neurodiff.perception.observers import Categories
from neurodiff.perception.stopping import Gauge

KINDS: dict[str, type[Tabled]] = {"averaged": AveragedEvidence, "stopped": StoppedEvidence}
CONTROLS = {
    "averaged": ("no evidence", "one level", "free weights"),
    "stopped": ("no evidence", "free law"),
}
# where each stands in kind (b): those that rise have a place there as well
DEFAULT_NAMED = {
    "averaged": ("elbo", "sigmoid", "flow-matching", "edm", "edm-monotonic", "v-cosine", "step"),
    "stopped": ("elbo", "sigmoid", "flow-matching", "edm-monotonic", "step"),
}
_KNOTS = 12  # of the law without a shape


def attach(trials: xr.Dataset, table: xr.Dataset) -> xr.Dataset:
    """Trials with the table of evidence of the stimuli that they show.

    Args:
        trials: ``shown`` (trial), a stimulus of the table, and ``choice`` (trial), a label's place;
            or counts of each label, see :func:`~neurodiff.data.counts.judgements`.
        table: From :func:`~neurodiff.perception.evidence.evidence`.

    Raises:
        ValueError: If a column is missing, or counts are none or do not sum to stated trials.
    """
    trials = judgements(trials, table.sizes["label"])
    for column, what in {"shown": "the stimulus", "choice": "its answer, from 0"}.items():
        if column not in trials:
            found = ", ".join(map(str, trials.variables)) or "nothing"
            raise ValueError(f"the trials have no {column!r}, {what} (they hold: {found})")
    both = trials.assign(error=table["error"], width=table["width"])
    return both.assign_attrs(n_choices=table.sizes["label"])


def weights_of(key: str, kind: str, free: bool, table: xr.Dataset) -> Weighting:
    """The weighting of a row: a named one (``elbo``, ``step``, …) or a control."""
    grid = torch.from_numpy(table["logsnr"].values.astype(np.float64))
    step = float(grid[1] - grid[0])
    if key == "one level":
        return OneLevel(step)
    if key == "free weights":
        return FreeWeights(grid)
    if key == "free law":
        knots = torch.linspace(float(grid[0]) - step / 2, float(grid[-1]) + step / 2, _KNOTS)
        return SurvivalWeighting(PiecewiseLinear(knots))
    if key in ("elbo", "no evidence"):
        return named("elbo")
    w = named(key)
    if kind == "averaged":
        return Placed(w, free)
    low = None if np.isfinite(float(w(torch.tensor(-torch.inf)))) else 0.0
    return Gauge(w, free, logsnr_min=low)


def labelled(
    kind: str, key: str, weights: Weighting | None, free: bool, data: xr.Dataset
) -> nn.Module:
    """The model of a row.

    Args:
        kind: ``averaged`` or ``stopped``.
        key: A named weighting or a control, where there is no law.
        weights: The weighting of a law to learn, else None.
        free: Whether κ of a named weighting is learned.
        data: Trials with their table, see :func:`attach`.
    """
    table = data[["error", "width"]]
    observer = Categories(table.sizes["label"])
    model = KINDS[kind](weights or weights_of(key, kind, free, table), table, observer)
    if key == "no evidence":
        observer.sensitivity.requires_grad_(False).fill_(0.0)
    return model
