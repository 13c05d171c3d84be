# %% [markdown]
# # Does what is measured in one task predict confidence in another?
#
# Reports of choice and confidence (eight of them, parted by seven cut-points) in task B, from the
# measurement as learned from A's choices alone, or from A's choices and confidence; the cut-points
# of B are learned from its training trials. Beside them a refit, and noise and cut-points of their
# own for each person and level. `curves` has what the figure of `16_one_weighting_two_tasks.py`
# shows: answers and predictions by orientation, and where choices say what w is.
#
#     python analyses/16_confidence_in_another_task.py [--workers 2]

# %%
import argparse
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtr
from torch.func import functional_call
from two_tasks import (
    CARRIED,
    DRAWS,
    MORE,
    PROPOSED,
    RESULTS,
    ROWS,
    bound,
    experiments,
    folds,
    measured,
    saved,
)

from neurodiff.inference.join import bind, join
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.pool import workers
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.stack import stack
from neurodiff.inference.transfer import carry, fit_parts, held_out, over_draws
from neurodiff.perception.confidence import Cuts, Reports, reported
from neurodiff.perception.measurement import Free

# the slowest first
NAMES = ("logistic", "flow-matching", "variable precision", "power + floor",
         "ordinal probit per level")  # fmt: skip


# %%
def by_person_and_level(parts):
    """Each person's trials of each level, as parts of their own."""
    for data in parts:
        for level in range(6):
            mine = data.isel(trial=data["level"].values == level)
            yield mine.assign(level=("trial", np.zeros(mine.sizes["trial"])))


def ordinal(parts, fold):
    """The ceiling: noise and seven cut-points of their own for each person and level."""
    cells = list(by_person_and_level(parts))
    each = [join(Reports(Free(1), Cuts("B", slopes=False)), data).posterior for data in cells]
    most = max(data.sizes["trial"] for data in cells)
    own = torch.zeros(len(cells), most, dtype=torch.int64)
    for i, data in enumerate(parts):
        for level in range(6):
            here = fold[i][: data.sizes["trial"]][data["level"].values == level]
            own[6 * i + level, : len(here)] = here
    # some levels of people who hardly use them have two modes, between which a few draws miss
    elpd, k_hat = held_out(fit_parts(each, DRAWS), own, 1500)
    return elpd.sum(1).reshape(-1, 6).sum(1).numpy(), (k_hat > 0.7).reshape(len(parts), -1).mean(1)


@on_one_thread
def reports(job):
    """The people of an experiment: reports of B by what is measured in A, and refitted."""
    (name, part), began = job, time.process_time()
    parts, who = next(e[1:] for e in experiments() if e[0] == part)
    parts = {task: [reported(data) for data in own] for task, own in parts.items()}
    fold = folds(parts["B"])
    trials = [len(p["level"]) for p in parts["B"]]
    frame = {"row": name, "experiment": part, "person": who, "trials": trials}
    if name.startswith("ordinal"):
        frame["refit"], frame["k_hat_refit"] = ordinal(parts["B"], fold)
    else:
        onto = bound(parts["B"], ROWS[name], "cut-points", "B", carried=True)
        for source, rule in (("choices", "linear"), ("reports", "cut-points")):
            draws = DRAWS if rule == "linear" else MORE
            fitted = fit_parts(bound(parts["A"], ROWS[name], rule, "A"), draws)
            each, k_hat = carry(measured(fitted, CARRIED // 3), onto, fold, 2 * PROPOSED)
            frame[f"from {source}"], frame[f"noise from {source}"] = over_draws(each)
            frame[f"k_hat from {source}"] = (k_hat > 0.7).mean((0, 2))
            frame[f"k_hat of {source}"] = fitted.draws.k_hat.numpy()
        refit = fit_parts(bound(parts["B"], ROWS[name], "cut-points", "B"), DRAWS)
        elpd, k_hat = held_out(refit, fold, MORE // 4)
        frame["refit"], frame["k_hat_refit"] = elpd.sum(1).numpy(), (k_hat > 0.7).mean(1)
    return pd.DataFrame(frame | {"seconds": time.process_time() - began})


def confidence(count):
    """Reports of B, by what is measured in A's choices, or in its choices and confidence."""
    path, keys = RESULTS / "16_confidence.csv", ("row", "experiment")
    old, done = saved(path, keys)
    plan = [(n, part) for n in NAMES for part in ("expt1", "expt2") if (n, part) not in done]
    with workers(count) as pool:
        for frame in (pool.map if pool else map)(reports, plan):
            old = frame if old.empty else pd.concat([old, frame], ignore_index=True)
            old.to_csv(path, index=False, float_format="%.6g")
            sums = frame.filter(regex="from|refit").sum().round(1).to_dict()
            print(*frame.loc[0, list(keys)], sums, flush=True)


# %%
EDGES = np.array([0, 2, 4, 6, 8, 10, 13, 17, 22, 50.0])  # degrees from the mean of B
GRID = np.linspace(-8.0, 3.0, 111)


def modes_in(parts, name, rule, task, given=None):
    """Parameters of each person at the mode, and the model they are of."""
    each = bound(parts, ROWS[name], rule, task, carried=given is not None)
    joint = stack(each)
    joint = joint if given is None else replace(joint, buffers=given)
    modes = find_modes(joint, torch.stack([one.parameters.start() for one in each]))
    return joint.model, joint.parameters.constrain(modes.u) | (given or {})


def at_person(model, values, i, data):
    """Probabilities of a person's answers."""
    trials, _ = bind(model, data)
    with torch.no_grad():
        return functional_call(model, {k: v[i] for k, v in values.items()}, (trials,)).probs.numpy()


def informed(model, values, i, data):
    """Fisher information of a person's choices on w at each logsnr, per nat: Σ g′²/(p(1 − p))."""
    own = {k: v[i] for k, v in values.items()}
    most = (
        own["measurement.shift"] + own["measurement.power"] * model.measurement.strength
    ).numpy()
    rule = {k.removeprefix("rule."): v for k, v in own.items() if k.startswith("rule.")}
    sigma = np.exp(-0.5 * GRID)
    k = functional_call(model.rule, rule, (torch.tensor(sigma),)).numpy()
    s = data["orientation"].values[:, None]
    g = ndtr((s - k) / sigma) + (ndtr((-s - k) / sigma) if model.rule.task == "B" else 0)
    slope = np.gradient(g, GRID, axis=1) * (1 - own["lapse"].item())
    slope *= GRID < most[data["level"].values.astype(int)][:, None]
    p = at_person(model, values, i, data)
    return (slope**2 / (p * (1 - p))[:, None]).sum(0)


def curves():
    """What A predicts of B beside what was answered, and where choices say what w is."""
    rows, fisher = [], {"A": 0.0, "B": 0.0}
    sure = np.array([4, 3, 2, 1, 1, 2, 3, 4.0])
    for _, parts, _ in experiments():
        both = {task: [reported(data) for data in own] for task, own in parts.items()}
        for name in ("power + floor", "logistic"):
            for rule, what in (("linear", "wide"), ("cut-points", "confidence")):
                first, values = modes_in(both["A"], name, rule, "A")
                given = {k: v for k, v in values.items() if k.startswith("measurement.")}
                model, there = modes_in(both["B"], name, rule, "B", given)
                for i, data in enumerate(both["B"]):
                    p = at_person(model, there, i, data)
                    rows.append(pd.DataFrame({
                        "row": name, "what": what, "level": data["level"].values // 2,
                        "bin": np.digitize(abs(data["orientation"].values), EDGES) - 1,
                        "distance": abs(data["orientation"].values),
                        "predicted": p if what == "wide" else p @ sure,
                        "observed": data["choice" if what == "wide" else "confidence"].values,
                    }))  # fmt: skip
                    if (name, what) == ("logistic", "wide"):
                        fisher["A"] += informed(first, values, i, both["A"][i])
                        fisher["B"] += informed(model, there, i, data)
    by = pd.concat(rows).groupby(["what", "row", "level", "bin"])
    mean, se = by.mean(), by["observed"].sem().rename("se")
    count = by.size().rename("trials")
    pd.concat([mean, se, count], axis=1).to_csv(RESULTS / "16_curves.csv", float_format="%.5g")
    found = pd.DataFrame({"logsnr": GRID} | fisher)
    found.to_csv(RESULTS / "16_fisher.csv", index=False, float_format="%.5g")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Does a weighting predict confidence?")
    parser.add_argument("--workers", type=int, default=2)
    confidence(parser.parse_args().workers)
    on_one_thread(curves)()
