# %% [markdown]
# # A clock does not explain when monkeys and people decide; a clock beside a bound may
#
# Choices and reaction times of two monkeys (Roitman & Shadlen 2002) and six people (Palmer, Huk &
# Shadlen 2005) watching moving dots. Every model has the same delay, jitter, lapses and bias, and
# differs in how it stops: at a bound (which collapses or not, under a leak or a growing drift), at
# a time or an SNR drawn from a law, at whichever of a bound and a deadline comes first, or when
# the first of two racing accumulators is through. A leak at a bound stands for the leaky competing
# accumulator, to first order.
#
# Models are scored on held-out trials, five folds balanced over strength and choice, at the mode
# of the posterior of the other four. The score is log density per trial, nats (of a density in
# 1/s), less that of the collapsing bound, with the standard error of the paired difference.
#
# In all eight a time stop loses 0.28 to 0.57 nats a trial and an SNR stop 0.58 to 0.91. A deadline
# beside a constant bound is never far from the collapsing bound (-0.009 to +0.007): behaviour alone
# tells them apart in monkey n at most (in jd too it is 2.7 standard errors, but of 3 nats). A race
# is behind in all, by 2 standard errors or more in all but jd (1.9); a leak loses as much in both
# monkeys and jp. The mode is a score that says nothing of the posterior's width: small differences
# are not verdicts.
#
#     python analyses/03_rivals_of_a_bound.py [--fit] [--workers 1]
#
# Without `--fit` the figure is made from `results/03_rivals.csv`, which the fits left.

# %%
import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import neurodiff as nd
from neurodiff.data.choice_rt import choice_rt
from neurodiff.inference.fit import modes_of
from neurodiff.inference.join import join
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.posterior import on_one_thread
from neurodiff.panels import BLUE, GREEN, ORANGE, PINK, RED
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.bounds import Constant, Exponential, Weibull
from neurodiff.perception.deadline import DeadlineMixture
from neurodiff.perception.drifts import Leak, Power, Urgency
from neurodiff.perception.race import Race
from neurodiff.perception.timed import SnrStop, TimeStop

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
FOLDS, REFERENCE = 5, "collapsing bound"
# where data are read: shortest, longest time and horizon in seconds, and time steps
# (against steps of 5 ms these err at the modes by .06 nats a data set at most under bounds without
# leak or urgency, race and deadline, by .03 under time stops and by .07 under an SNR stop)
MONKEYS, PEOPLE = (0.1, 1.65, 1.7, 85), (0.0, 2.9, 2.9, 174)
STUDIES = {"roitman2002-monkey-rdm": MONKEYS, "palmer2005-human-rdm": PEOPLE}
GAIN = 12.0

# name: the model at a horizon and number of steps; all of them with a bias
MODELS = {
    REFERENCE: lambda h, n: Bounded(Power(GAIN), Weibull(), h, n, start=0.01),
    "exponential bound": lambda h, n: Bounded(Power(GAIN), Exponential(), h, n, start=0.01),
    "constant bound": lambda h, n: Bounded(Power(GAIN), Constant(0.8), h, n, start=0.01),
    "leak, constant bound": lambda h, n: Bounded(Leak(GAIN), Constant(0.8), h, n, start=0.01),
    "urgency, constant bound": lambda h, n: Bounded(Urgency(GAIN), Constant(), h, n, start=0.01),
    "deadline beside a constant bound": lambda h, n: DeadlineMixture(
        Power(GAIN), Constant(), nd.laws.Normal(), h, n, start=0.01
    ),
    "race": lambda h, n: Race(Power(GAIN), h, n, start=0.01),
    "time stop, normal": lambda h, n: TimeStop(Power(GAIN), nd.laws.Normal(), h, n, start=0.01),
    "time stop, logistic": lambda h, n: TimeStop(Power(GAIN), nd.laws.Logistic(), h, n, start=0.01),
    "time stop, gumbel-max": lambda h, n: TimeStop(
        Power(GAIN), nd.laws.GumbelMax(), h, n, start=0.01
    ),
    "SNR stop, normal": lambda h, n: SnrStop(Power(GAIN), nd.laws.Normal(), h, n, start=0.01),
}

MARKS = list(zip((BLUE, RED, GREEN, ORANGE, PINK, "black"), "os^DvX", strict=True))
TIGHT = {"columnspacing": 0.6, "handletextpad": 0.2, "handlelength": 1.2}


# %%
def trials(study, subject):
    """One animal's or person's trials in the window of times."""
    data = choice_rt(nd.load(study))
    low, high, *_ = STUDIES[study]
    rt = data["rt"].values
    return data.isel(trial=(data["subject"].values == subject) & (rt > low) & (rt < high))


def folds(data, seed=0):
    """Fold of each trial, balanced over strengths and choices."""
    rng = np.random.default_rng(seed)
    side = np.where(data["choice_known"].values > 0, np.sign(data["signed_rt"].values), 0.0)
    kinds = np.stack([data["strength"].values, side])
    stratum = np.unique(kinds, axis=1, return_inverse=True)[1].ravel()
    fold = np.empty(len(stratum), int)
    for s in range(stratum.max() + 1):
        here = rng.permutation(np.flatnonzero(stratum == s))
        fold[here] = (np.arange(len(here)) + rng.integers(FOLDS)) % FOLDS
    return fold


def scores(study, subject, model):
    """Held-out log density of each trial, and what is to be known of the fit to all of them."""
    data = trials(study, subject)
    return held_out(MODELS[model](*STUDIES[study][2:]), data, folds(data))


@on_one_thread
def held_out(model, data, fold):
    """Log density of each trial at the mode of the other folds, and the fit to all of them."""
    began = time.process_time()
    bound = join(model, data.assign_coords(fold=("trial", fold)), unit="fold")
    full = modes_of(bound, 2, 0)
    # all folds are one batch, each trained on the other four
    others = bound.posterior.with_mask(1 - torch.eye(FOLDS, dtype=torch.float64))
    inverse = (full.factor @ full.factor.mT).expand(FOLDS, -1, -1)
    modes = find_modes(others, full.u.expand(FOLDS, -1), inverse)
    each = bound.posterior.take(torch.as_tensor(bound.rows))
    rows = each.draws_terms(modes.u[None])[1][0].numpy()
    fitted = {k: v.tolist() for k, v in bound.pooled.constrain(full.u[0]).items()}
    said = ("; ".join(f"{k} {y:.3g}" for y in np.ravel(v)) for k, v in fitted.items())
    return rows[fold, np.arange(len(fold))], {
        "parameters": bound.pooled.size,
        "converged": bool(full.converged[0]) and bool(modes.converged.all()),
        "seconds": time.process_time() - began,
        "at": "; ".join(said),
    }


def one(job, folder):
    """The scores of one fit, from an earlier run where that left them."""
    path = folder / f"{'-'.join(job)}.npz".replace(" ", "_")
    if not path.exists():
        each, fit = scores(*job)
        np.savez(path, each=each, fit=json.dumps(fit))
    found = np.load(path)
    return found["each"], json.loads(str(found["fit"]))


def run(workers, folder):
    """All fits; leaves the table."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for study in STUDIES:
        subjects = np.unique(nd.load(study)["subject"].values)
        jobs += [(study, str(s), m) for s in subjects for m in MODELS]
    held = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for job, found in zip(jobs, pool.map(partial(one, folder=folder), jobs), strict=True):
            held[job] = found
            print(*job, f"{found[0].mean():.4f}", found[1], flush=True)
    rows = []
    for (study, subject, model), (each, fit) in held.items():
        apart = each - held[study, subject, REFERENCE][0]
        se = apart.std(ddof=1) / len(apart) ** 0.5 if model != REFERENCE else 0.0
        total = {"trials": len(each), "score": each.mean(), "diff": apart.mean(), "se": se}
        rows.append({"data": study, "subject": subject, "model": model, **total, **fit})
    pd.DataFrame(rows).to_csv(RESULTS / "03_rivals.csv", index=False, float_format="%.5g")


# %%
def figure():
    """What each rival loses against the collapsing bound, each monkey and person a point."""
    table = pd.read_csv(RESULTS / "03_rivals.csv").set_index("model")
    names = table["diff"].groupby("model").mean().drop(REFERENCE).sort_values().index
    with plt.style.context(nd.plot.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(3.4, 3.4), sharey=True, layout="constrained")
        for ax, study, title in zip(axes, STUDIES, ("two monkeys", "six people"), strict=True):
            each = table[table["data"] == study].groupby("subject")
            for i, (subject, own) in enumerate(each):
                y = np.arange(len(names)) - 0.6 * ((i + 0.5) / len(each) - 0.5)
                colour, marker = MARKS[i]
                style = {"fmt": marker, "color": colour, "ms": 2.5, "lw": 0.7, "label": subject}
                ax.errorbar(own.loc[names, "diff"], y, xerr=2 * own.loc[names, "se"], **style)
            ax.axvline(0, color="0.6", lw=0.8, zorder=0)
            ax.set_title(title, fontsize=7)
            ax.set_xscale("symlog", linthresh=0.03, linscale=0.8)
            ax.set_xticks([-1, -0.1, 0], ["-1", "-0.1", "0"])
            ax.minorticks_off()
            ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08), **TIGHT)
        axes[0].set_yticks(
            np.arange(len(names)), [fill(n, 20, break_on_hyphens=False) for n in names]
        )
        figure.supxlabel("score less that of a collapsing bound (nat / trial), ± 2 SE", fontsize=7)
        save(figure, "03_rivals")


def save(figure, name):
    for kind in ("png", "pdf"):
        figure.savefig(FIGURES / f"{name}.{kind}", dpi=300)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Is a bound needed, or would a clock do?")
    parser.add_argument("--fit", action="store_true", help="fit again (a quarter of an hour)")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if options.fit:
        run(options.workers, HERE.parent / "runs" / "03-rivals")
    figure()
    table = pd.read_csv(RESULTS / "03_rivals.csv")
    print(table.drop(columns="at").to_string())
