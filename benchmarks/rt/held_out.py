"""The loop that every peer shares: log densities (1/s) of the trials left out, five folds a monkey.

``scores(tool, model, version, fit)`` calls ``fit(train, test)``, which returns the log density of
each trial of ``test`` and the fitted parameters. What a fold leaves lies in ``.results/`` and is
not repeated. Numpy and pandas alone: this runs inside the environment of each peer.
"""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
RESULTS = HERE / ".results"
# every tool mixes in the lapses that PyDDM does by default: 2 %, uniform over 2 s and both choices
LAPSE, LAPSE_DENSITY = 0.02, 0.5 / 2.0


def trials(monkey):
    """The trials in the window of reaction times, and the place of each in ``folds.csv``."""
    frame = pd.read_csv(RESULTS / "trials.csv")
    return frame[(frame["monkey"] == monkey) & (frame["fold"] >= 0)].reset_index(drop=True)


def scores(tool, model, version, fit, monkeys=(1, 2), folds=range(5)):
    for monkey in monkeys:
        frame = trials(monkey)
        for fold in folds:
            path = RESULTS / f"{tool}.{model}.{monkey}.{fold}.npz"
            if path.exists():
                continue
            train, test = frame[frame["fold"] != fold], frame[frame["fold"] == fold]
            began = time.process_time()
            log_density, parameters = fit(train, test)
            seconds = time.process_time() - began
            partial = path.with_suffix(".part.npz")
            np.savez(
                partial,
                trial=test["trial"],
                log_density=log_density,
                seconds=seconds,
                version=version,
                names=list(parameters),
                values=list(parameters.values()),
            )
            os.replace(partial, path)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in parameters.items())
            what = f"{tool} {model} monkey {monkey} fold {fold}"
            print(f"{what}: {np.mean(log_density):.3f}, {seconds:.1f} s; {shown}", flush=True)
