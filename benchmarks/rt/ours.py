"""neurodiff on the folds of the peers: MAP fits, differences paired with the best peer, NUTS.

Leaves ``ours.csv``: held-out mean log density a trial (1/s), its differences to PyDDM's leak and
exponential collapse and to the kernel density with standard errors over trials, parameters,
processor seconds a fit (median of the folds), and how many times as long PyDDM's exponential takes.

    python benchmarks/rt/ours.py [--nuts]
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import neurodiff as nd
from neurodiff.data.choice_rt import choice_rt
from neurodiff.inference.fit import modes_of
from neurodiff.inference.join import join
from neurodiff.inference.posterior import on_one_thread
from neurodiff.perception import bounds
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.drifts import Leak, Power

HERE = Path(__file__).parent
HORIZON, STEPS, REFERENCE = 1.7, 85, "PyDDM:leak-exponential"
MODELS = {
    "constant": lambda: Bounded(Power(), bounds.Constant(0.8), HORIZON, STEPS, jitter=None),
    "exponential": lambda: Bounded(Power(), bounds.Exponential(), HORIZON, STEPS),
    "leak, exponential": lambda: Bounded(Leak(), bounds.Exponential(), HORIZON, STEPS),
    "weibull": lambda: Bounded(Power(), bounds.Weibull(), HORIZON, STEPS),
    "weibull, start": lambda: Bounded(Power(), bounds.Weibull(), HORIZON, STEPS, start=0.0),
    "weibull, exponent": lambda: Bounded(Power(exponent=1.1), bounds.Weibull(), HORIZON, STEPS),
    "weibull, start, exponent": lambda: Bounded(
        Power(exponent=1.1), bounds.Weibull(), HORIZON, STEPS, start=0.0
    ),
}


def trials(monkey):
    """One animal's trials in the window, and their folds."""
    data = nd.load("roitman2002-monkey-rdm")
    data = choice_rt(data.isel(trial=data["subject"].values == "bn"[monkey - 1]))
    folds = pd.read_csv(HERE / "folds.csv")
    fold = folds[folds["monkey"] == monkey].set_index("trial")["fold"]
    fold = fold.reindex(range(data.sizes["trial"])).fillna(-1).to_numpy(int)
    return data.isel(trial=fold >= 0), fold[fold >= 0], np.flatnonzero(fold >= 0)


@on_one_thread
def held_out(make, data, fold):
    """Log density of each trial under the mode of the other folds, and seconds of each fit."""
    bound = join(make(), data)
    joint, rows = bound.posterior, torch.as_tensor(bound.rows)
    scored, seconds = np.empty(len(fold)), []
    for k in range(fold.max() + 1):
        weight = torch.bincount(rows[torch.as_tensor(fold) != k], minlength=len(joint.weight))
        one = replace(bound, posterior=replace(joint, weight=weight.to(joint.weight)))
        began = time.process_time()
        u = modes_of(one, 1, 0).u[0]
        seconds.append(time.process_time() - began)
        each = joint.take(rows).draws_terms(u[None, None])[1][0, 0].numpy()
        scored[fold == k] = each[fold == k]
    return scored, float(np.median(seconds)), bound.pooled.size


def table():
    peers = pd.read_csv(HERE / "peers_per_trial.csv.gz").set_index(["monkey", "trial"])
    seconds = pd.read_csv(HERE / "peers.csv").set_index(["model", "monkey"])["cpu_seconds_a_fit"]
    records = []
    for name, make in MODELS.items():
        for monkey in (1, 2):
            data, fold, trial = trials(monkey)
            scored, own, size = held_out(make, data, fold)
            record = {"model": name, "monkey": monkey, "heldout_mean": scored.mean()}
            for what, peer in (("leak_exponential", REFERENCE), ("kernel", "scipy:kernel-density")):
                apart = scored - peers.loc[monkey].loc[trial, peer].to_numpy()
                record[f"less_{what}"] = apart.mean()
                record[f"se_{what}"] = apart.std() / np.sqrt(len(apart))
            record |= {"parameters": size, "cpu_seconds_a_fit": own}
            record["pyddm_exponential_takes"] = seconds[("exponential", monkey)] / own
            records.append(record)
            print(record, flush=True)
    pd.DataFrame(records).to_csv(HERE / "ours.csv", index=False, float_format="%.4g")


def nuts():
    """Effective draws a second, chains in turn on one core, of the model that HSSM calls angle."""
    data, _, _ = trials(1)
    model = Bounded(Power(), bounds.Linear(), HORIZON, STEPS, jitter=None, start=0.0)
    began = time.process_time()
    fit = nd.fit(model, data, nd.NUTS(draws=500), seed=0)
    seconds = time.process_time() - began
    stats = fit["sample_stats"].dataset
    found = {
        "ess_min": float(stats["ess_min"]),
        "r_hat_max": float(stats["r_hat_max"]),
        "cpu_seconds": seconds,
        "effective_draws_a_second": float(stats["ess_min"]) / seconds,
        "elpd_loo_per_trial": float(fit["loo"]["elpd"].mean()),
    }
    print(found)
    pd.DataFrame([found]).to_csv(HERE / "ours_nuts.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuts", action="store_true")
    nuts() if parser.parse_args().nuts else table()
