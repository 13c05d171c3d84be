r"""The hypotheses about choices and reaction times: which bound, and what moves the evidence.

.. math:: \text{row} = \text{drift} \times \text{bound}, \qquad
    \text{all with the same delay, jitter, start and lapses}

Beside the bounds stand a Weibull bound under another drift, the rivals that do not stop at a bound,
or not only, and the control whose drift is 0, so that times and choices do not depend on the
stimulus. The laws of rivals are log-normal in time, and in SNR.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from torch import nn

from neurodiff.diffusion.laws import Normal
from neurodiff.inference.priors import nearest
from neurodiff.perception import bounds
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.deadline import DeadlineMixture
from neurodiff.perception.drifts import Leak, Power, Urgency
from neurodiff.perception.heading import DURATION, Cues, Heading, Motion
from neurodiff.perception.race import Race
from neurodiff.perception.reaction import Reaction
from neurodiff.perception.timed import SnrStop, TimeStop

BOUNDS: dict[str, Callable[[float], bounds.Bound]] = {
    "constant": lambda horizon: bounds.Constant(),
    "exponential": lambda horizon: bounds.Exponential(),
    "linear": lambda horizon: bounds.Linear(),
    "weibull": lambda horizon: bounds.Weibull(),
    "spline": lambda horizon: bounds.Spline(horizon),
}
DRIFTS: dict[str, Callable[[], nn.Module]] = {
    "leak": Leak,
    "urgency": Urgency,
    "power": lambda: Power(exponent=1.1),
    "variable": lambda: Power(spread=0.5),
}
RIVALS: dict[str, Callable[[float, int], Reaction]] = {
    "time-stop": lambda horizon, steps: TimeStop(Power(), Normal(), horizon, steps, start=0.0),
    "snr-stop": lambda horizon, steps: SnrStop(Power(), Normal(), horizon, steps, start=0.0),
    "race": lambda horizon, steps: Race(Power(), horizon, steps, start=0.0),
    "deadline": lambda horizon, steps: DeadlineMixture(
        Power(), bounds.Constant(), Normal(), horizon, steps, start=0.0
    ),
}
# cues to a heading: how reliable they are within a trial, and whether what two give is free
HEADINGS: dict[str, tuple[Motion | None, bool]] = {
    "heading": (Motion(), False),
    "heading-free": (Motion(), True),
    "steady-heading": (None, False),
    "steady-heading-free": (None, True),
}
DEFAULT_BOUNDS = ("constant", "exponential", "linear", "weibull", "leak+weibull", "urgency+weibull")
_STEP = 0.02  # seconds, or a little less: an error of the density of 1e-5
_LONGEST = 10.0  # seconds of a decision that a grid of such steps is for


def check_bound(name: str) -> None:
    """Refuse what is no rival, no bound, nor a drift and a bound such as ``leak+weibull``.

    Raises:
        ValueError: The nearest name is named.
    """
    drift, _, bound = name.rpartition("+")
    if bound not in BOUNDS and bound not in RIVALS:
        near = nearest(bound, [*BOUNDS, *RIVALS])
        raise ValueError(f"unknown bound or rival {bound!r}: {near}")
    if drift and drift not in DRIFTS and drift not in HEADINGS:
        raise ValueError(f"unknown drift {drift!r}: {nearest(drift, [*DRIFTS, *HEADINGS])}")
    if drift and bound in RIVALS:
        raise ValueError(f"got {name!r}, but a rival has a drift of its own: give {bound!r} alone")


def horizon_of(data: xr.Dataset) -> float:
    """Seconds up to which times are modelled: the last deadline, else the longest time, rounded up.

    Raises:
        ValueError: If that is more than ten seconds.

    >>> horizon_of(xr.Dataset({"signed_rt": ("trial", [0.41, -1.23])}))
    1.25
    """
    own = data.get("deadline", data.attrs.get("deadline", np.nan))
    deadline = float(np.max(own))
    times = np.abs(data["signed_rt"].values)
    longest = deadline if np.isfinite(deadline) else float(times[np.isfinite(times)].max())
    if longest > _LONGEST:
        late = int((times > _LONGEST).sum())
        raise ValueError(
            f"the longest reaction time or deadline is {longest:g} s ({late} times are above "
            f"{_LONGEST:g} s), too long for a decision: give --deadline, after which there is no "
            "answer, or drop these"
        )
    # 20 x may round down to a whole number that is below it
    return deadline if np.isfinite(deadline) else max(longest, math.ceil(20 * longest) / 20)


def decision(key: str, horizon: float, data: xr.Dataset | None = None) -> Reaction:
    """The model of a row: ``bound``, ``drift+bound``, a rival, or ``no stimulus``.

    Args:
        key: The row.
        horizon: Seconds up to which times are modelled.
        data: Whose coherences a heading has gains for.

    Raises:
        ValueError: If the data lack what a heading needs.

    >>> decision("urgency+weibull", 2.0).drift
    Urgency()
    """
    steps = max(60, round(horizon / _STEP))
    if key in RIVALS:
        return RIVALS[key](horizon, steps)
    if key == "no stimulus":
        drift, bound = Power(gain=1e-9), "weibull"
        drift.gain.requires_grad_(False)
    else:
        name, _, bound = key.rpartition("+")
        if name in HEADINGS:
            cues = _cues(name, horizon, xr.Dataset() if data is None else data)
            return Heading(cues, BOUNDS[bound](horizon), round(cues.horizon / _STEP))
        drift = DRIFTS[name]() if name else Power()
    return Bounded(drift, BOUNDS[bound](horizon), horizon, steps, start=0.0)


def _cues(name: str, horizon: float, data: xr.Dataset) -> Cues:
    lacking = [column for column in Cues.requires if column not in data]
    if lacking:
        found = ", ".join(str(v) for v in data.variables) or "nothing"
        raise ValueError(
            f"{name!r} needs columns 'heading' (degrees, signed), 'coherence' (of the optic flow, "
            "0 where there is none) and 'vestibular' (1 where the body moves); the data lack "
            f"{', '.join(map(repr, lacking))} (they hold: {found})"
        )
    seen = data["coherence"].values
    coherences = tuple(np.unique(seen[seen > 0]).tolist())
    if not coherences:
        raise ValueError(f"{name!r} needs trials with optic flow: no 'coherence' is above 0")
    motion, combined = HEADINGS[name]
    return Cues(coherences, max(horizon, DURATION), motion, combined)


def keys_of(chosen: Sequence[str] | None) -> tuple[str, ...]:
    """The bounds and rivals to fit, checked.

    Raises:
        ValueError: If one is unknown.
    """
    keys = tuple(dict.fromkeys(chosen or DEFAULT_BOUNDS))
    for key in keys:
        check_bound(key)
    return keys
