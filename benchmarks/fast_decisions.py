"""What the default grid costs where decisions take a few hundredths of a second.

``python benchmarks/fast_decisions.py`` leaves ``fast_decisions.csv``: for each monkey (Roitman &
Shadlen 2002) and person (Palmer, Huk & Shadlen 2005) and each row of the command line the mode on
the default grid, log likelihood there and how much more a grid of 5 ms says at the same parameters,
both in nats; by how much steps half as long change a probability, as a fit says (``unsure``); mean
and s.d. of the decision time of the strongest stimulus, were the bound constant, seconds; and
processor seconds of the mode. Twelve minutes of a core.
"""

import csv
import time
from pathlib import Path

import numpy as np
import torch

import neurodiff as nd
from neurodiff.data.choice_rt import choice_rt
from neurodiff.inference import decisions
from neurodiff.inference.fit import modes_of
from neurodiff.inference.join import join

ROWS = (
    "constant", "exponential", "linear", "weibull", "spline", "variable+constant",
    "power+weibull", "leak+constant", "leak+weibull", "urgency+constant", "urgency+weibull",
    "race", "deadline", "time-stop", "snr-stop",
)  # fmt: skip
STUDIES = {"roitman2002-monkey-rdm": (0.1, 1.65), "palmer2005-human-rdm": (0.1, np.inf)}
FINE = 0.005


def observers():
    """Each animal and person, with the times that others use of the monkeys."""
    for name, (first, last) in STUDIES.items():
        data = nd.load(name)
        for subject in np.unique(data["subject"].values):
            own = data.isel(trial=data["subject"].values == subject)
            kept = (own["rt"].values >= first) & (own["rt"].values <= last)
            yield str(subject), choice_rt(own.isel(trial=kept))


def measure(key, data):
    """A row."""
    horizon, step = decisions.horizon_of(data), decisions._STEP
    bound = join(decisions.decision(key, horizon), data)
    began = time.process_time()
    u = modes_of(bound, 1, 0).u[0]
    seconds = time.process_time() - began
    values = bound.pooled.constrain(u)
    try:
        decisions._STEP = FINE
        fine = join(decisions.decision(key, horizon), data)
    finally:
        decisions._STEP = step
    with torch.no_grad():
        here, there = (float(b.posterior.log_likelihood(values)) for b in (bound, fine))
        model, given = bound.posterior.model, (bound.posterior.trials,)
        pair = [torch.func.functional_call(m, values, given) for m in (model, model.finer())]  # pyright: ignore
    height, gain = values.get("bound.height"), values["drift.gain"]
    v = float(gain * np.abs(data["strength"]).max())
    mean, sd = ("", "") if height is None else (height / v, (height / v**3) ** 0.5)
    shown = [x if x == "" else f"{float(x):.4f}" for x in (mean, sd)]
    return [f"{here:.3f}", f"{there - here:.3f}", f"{pair[0].distance(pair[1]).max():.1e}", *shown,
            f"{seconds:.2f}"]  # fmt: skip


def main():
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    header = "observer,row,trials,log_likelihood,more_at_5ms,unsure,mean,sd,seconds".split(",")
    rows = []
    for name, data in observers():
        for key in ROWS:
            rows.append([name, key, data.sizes["trial"], *measure(key, data)])
            print(*rows[-1], flush=True)
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    main()
