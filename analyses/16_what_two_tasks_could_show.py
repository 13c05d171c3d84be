# %% [markdown]
# # What two tasks of orientation could show of a weighting
#
# Beside the transfer from one task to the other (`16_one_weighting_two_tasks.py`): how likely the
# answers are by the scale of the law (a step, a logistic of scale 1, flow matching at 2), task by
# task; what a law would gain over a noise floor in the other task were one of these the truth, all
# else as these people would have it; and whether data with task B alone say otherwise.
#
#     python analyses/16_what_two_tasks_could_show.py [--only profile|power|checks]

# %%
import argparse
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch.func import functional_call
from two_tasks import (
    CARRIED,
    DRAWS,
    PROPOSED,
    RESULTS,
    ROWS,
    bound,
    constant,
    experiments,
    folds,
    logistic,
    measured,
    people,
    saved,
)

from neurodiff.inference.join import bind
from neurodiff.inference.laplace import best_modes, find_modes
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.stack import stack
from neurodiff.inference.transfer import carry, fit_parts, held_out, over_draws
from neurodiff.perception.measurement import Stopped

SCALES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)


# %%
def fixed_modes(parts, scale, task, before):
    """Modes of each person where the law has a given scale (None: a noise floor)."""
    row = (lambda s: Stopped(s, logistic(scale))) if scale else ROWS["power + floor"]
    each = bound(parts, row, "linear", task)
    own = torch.stack([one.parameters.start() for one in each])
    noise = 0.5 * torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
    joint = stack(each)
    return joint, best_modes(
        joint, torch.stack([own, own + noise, own if before is None else before])
    )


def profile():
    """Log likelihood of each person at the mode, by the scale of the law."""
    rows = []
    for part, parts, who in experiments():
        for task in "AB":
            before = None
            for scale in (*SCALES, None):
                joint, modes = fixed_modes(parts[task], scale, task, before if scale else None)
                before = modes.u
                loglik = joint.draws_terms(modes.u[:, None])[1].sum((1, 2)).tolist()
                kind = "logistic" if scale else "power + floor"
                for person, value in zip(who, loglik, strict=True):
                    rows.append({"task": task, "row": kind, "scale": scale, "experiment": part,
                                 "person": person, "log_lik": value})  # fmt: skip
            print("profile", part, task, flush=True)
    pd.DataFrame(rows).to_csv(RESULTS / "16_profile.csv", index=False, float_format="%.6g")


def answered(joint, u, given, parts, rng):
    """Choices of each person simulated at their parameters."""
    found, values = [], joint.parameters.constrain(u) | given
    for i, data in enumerate(parts):
        own = {k: v[i] for k, v in values.items()}
        model = joint.model
        trials, _ = bind(model, data)
        p = functional_call(model, own, (trials,)).probs.detach().numpy()
        found.append(data.assign(choice=("trial", (rng.random(len(p)) < p) * 1.0)))
    return found


def simulated(parts, scale, seed):
    """Both tasks answered by people who stop as given, all else as these people would have it."""
    rng = np.random.default_rng(seed)
    joint, modes = fixed_modes(parts["A"], scale, "A", None)
    values = joint.parameters.constrain(modes.u)
    given = {k: v for k, v in values.items() if k.startswith("measurement.")}
    row = (lambda s: Stopped(s, logistic(scale))) if scale else ROWS["power + floor"]
    each = bound(parts["B"], row, "linear", "B", carried=True)
    onto = replace(stack(each), buffers=given)
    there = find_modes(onto, torch.stack([one.parameters.start() for one in each]))
    return {
        "A": answered(joint, modes.u, {}, parts["A"], rng),
        "B": answered(onto, there.u, given, parts["B"], rng),
    }


TRUTHS = {"step": 0.05, "scale 1": 1.0, "scale 2": 2.0, "noise floor": None}


def power(seeds=2):
    """What a law would gain over the floor in B, were it the truth."""
    path, keys = RESULTS / "16_power.csv", ("truth", "seed", "experiment")
    for seed in range(seeds):
        for truth, scale in TRUTHS.items():
            for part, parts, who in experiments():
                old, done = saved(path, keys)
                if (truth, seed, part) in done:
                    continue
                fake = simulated(parts, scale, seed)
                frame = pd.DataFrame({"truth": truth, "seed": seed, "experiment": part,
                                      "person": who})  # fmt: skip
                frame["trials"] = [len(data["level"]) for data in fake["B"]]
                for name in ("power + floor", "logistic"):
                    fitted = fit_parts(bound(fake["A"], ROWS[name], "linear", "A"), DRAWS)
                    onto = bound(fake["B"], ROWS[name], "linear", "B", carried=True)
                    values = measured(fitted, CARRIED // 3)
                    each, _ = carry(values, onto, folds(fake["B"]), PROPOSED)
                    frame[name] = over_draws(each)[0]
                    if name == "logistic":
                        frame["scale"] = values["measurement.law.scale"].mean(1).numpy()
                table = frame if old.empty else pd.concat([old, frame], ignore_index=True)
                table.to_csv(path, index=False, float_format="%.6g")
                gain = (frame["logistic"] - frame["power + floor"]).sum()
                print(f"power, {truth}, {seed}, {part}: {gain:.1f}", flush=True)


def checks():
    """Experiment 3 and the cues of attention, which have task B alone: held-out scores."""
    rows = []
    for part, levels in (("expt3", 6), ("attention", 3)):
        parts = people("B", part)
        fold = folds(parts)
        for name in ("power + floor", "logistic", "power"):
            fitted = fit_parts(bound(parts, ROWS[name], "linear", "B", levels=levels), DRAWS)
            elpd, k_hat = held_out(fitted, fold)
            rows.append(pd.DataFrame({
                "experiment": part, "row": name,
                "person": [str(p["subject"].values[0]) for p in parts],
                "trials": [len(p["level"]) for p in parts], "constant": constant(parts, fold),
                "refit": elpd.sum(1).numpy(), "k_hat": k_hat.max(1),
            }))  # fmt: skip
            print("check", part, name, rows[-1]["refit"].sum(), flush=True)
            pd.concat(rows).to_csv(RESULTS / "16_checks.csv", index=False, float_format="%.6g")


STEPS = {step.__name__: step for step in (profile, power, checks)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What could two tasks show?")
    parser.add_argument("--only", choices=STEPS, help="one of the three; by default all")
    only = parser.parse_args().only
    for name in [only] if only else STEPS:
        on_one_thread(STEPS[name])()
