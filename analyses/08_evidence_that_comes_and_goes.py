# %% [markdown]
# # Times of answers prefer a late, steady drift to evidence that follows the motion
#
# Seven people judge a heading from optic flow, from the movement of a chair, or from both
# (Drugowitsch et al. 2014), and answer when they want to. The motion is a Gaussian velocity of 2 s:
# what vision has to go by comes and goes with velocity, what the vestibular organ has with
# acceleration. Rows differ in that (``motion``) or take all moments as equally good (``steady``);
# in the bound, constant or collapsing in the clock of information; and in whether two cues give
# what both together can (``optimal``) or what they like (``free``, an efficiency at each
# coherence). All have a bound for each cue and coherence, a delay and a bias of heading for each
# cue, jitter and lapses.
#
# Scores are log densities of held-out trials (five folds balanced over conditions and choices, at
# the modes of the other four), less that of ``motion, constant, optimal``, with the standard error
# of the paired difference. Efficiencies are of a hierarchy over all twenty-two parameters.
#
#     python analyses/08_evidence_that_comes_and_goes.py [--fit] [--population]
#
# With the motion's course and a constant bound (the paper's model) six people have delays of 0.2 to
# 0.5 s. With a collapsing bound a steady drift predicts held-out times better in six of the seven
# and as well in one, and asks for delays of 0.6 to 0.8 s, which no movement of a finger takes: the
# course says why answers begin so late, but not how they spread. With a constant bound people
# differ. A wider course is better in all; a shift is a change of delay and nothing else. Freeing
# what two cues give together gains 0.002 nats a trial; the population's efficiency is 0.7 at the
# two lower coherences, and at the highest people differ: two have half, three the optimum.
# Differences are of a few hundredths of a nat, at modes, and two of the 63 fits had not quite
# converged.
#
# Without either the figure is made from `results/08_*.csv`, which they left.

# %%
import argparse
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import neurodiff as nd
from neurodiff.data.choice_rt import choice_rt
from neurodiff.inference.join import join
from neurodiff.inference.laplace import best_modes
from neurodiff.inference.optimise import minimise
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.stages import First, first_stage, populations
from neurodiff.panels import BLUE, GREEN, ORANGE, PINK, RED
from neurodiff.perception.bounds import Constant, Weibull
from neurodiff.perception.heading import CENTRE, DURATION, WIDTH, Cues, Heading, Motion
from neurodiff.summary import quantiles

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = Path("runs") / "08-headings"
STUDY, FOLDS, NEAR = "drugowitsch2014-visual-vestibular", 5, 1e-3  # NEAR: nats from a mode
COHERENCES, CUES = (0.25, 0.37, 0.70), ("visual", "vestibular", "both")
PLACES = (*(f"visual {c}" for c in COHERENCES), "vestibular", *(f"both {c}" for c in COHERENCES))
REFERENCE = "motion, constant, optimal"

# name: the course of reliability, the bound, and whether what two cues give together is free
MODELS = {
    REFERENCE: (Motion(), Constant, False),
    "motion, constant, free": (Motion(), Constant, True),
    "motion, collapsing, optimal": (Motion(), lambda: Weibull(0.8, 1.7, 6.0, 0.1), False),
    "steady, constant, optimal": (None, Constant, False),
    "steady, collapsing, optimal": (None, Weibull, False),
    "wider by a quarter": (Motion(1.25 * WIDTH), Constant, False),
    "narrower by a fifth": (Motion(0.8 * WIDTH), Constant, False),
    "0.1 s later": (Motion(centre=CENTRE + 0.1), Constant, False),
    "0.1 s earlier": (Motion(centre=CENTRE - 0.1), Constant, False),
}
SHIFTED = list(MODELS)[-4:]
MARKS = list(zip((BLUE, RED, GREEN, ORANGE, PINK, "black", "0.5"), "os^DvXP", strict=True))


def model(name):
    motion, bound, combined = MODELS[name]
    return Heading(Cues(COHERENCES, DURATION, motion, combined), bound())


def begun(name, reference):
    """The model at another start: where the reference ended, or low bounds, passed late."""
    other = model(name)
    late = {"bound.height": [0.25] * 7, "delay": [0.35] * 3, "drift.visual": [4.0, 15.0, 80.0]}
    for key, value in (json.loads(reference["at"]) if reference else late).items():
        if key in dict(other.named_parameters()):
            other.get_parameter(key).data = torch.tensor(value)
    return other


# %%
def folds(data, seed=0):
    """Fold of each trial, balanced over stimuli and choices."""
    rng = np.random.default_rng(seed)
    kinds = [data[c].values for c in ("heading", "coherence", "vestibular", "choice")]
    stratum = np.unique(np.stack(kinds), axis=1, return_inverse=True)[1].ravel()
    fold = np.empty(len(stratum), int)
    for s in range(stratum.max() + 1):
        here = rng.permutation(np.flatnonzero(stratum == s))
        fold[here] = (np.arange(len(here)) + rng.integers(FOLDS)) % FOLDS
    return fold


@on_one_thread
def scores(data, name, reference):
    """Held-out log density of each trial, and what is to be known of the fit to all of them.

    Rows that differ from the reference in the motion alone start at its mode, with its curvature.
    """
    began = time.process_time()
    bound = join(model(name), data.assign_coords(fold=("trial", folds(data))), unit="fold")
    whole = bound.posterior
    if name in SHIFTED:
        u, inverse = (torch.tensor(reference[k]) for k in ("u", "inverse"))
        found = minimise(lambda u: -whole.log_prob(u), u, inverse, NEAR)
        u, converged = found.u, bool(found.converged(NEAR).all())
    else:
        starts = [join(other, data).start for other in (model(name), begun(name, reference))]
        full = best_modes(whole, torch.stack(starts)[:, None])
        u, inverse = full.u, full.factor @ full.factor.mT
        converged = bool(full.converged.all() and full.definite.all())
    # all folds are one batch, each trained on the other four
    others = whole.with_mask(1 - torch.eye(FOLDS, dtype=torch.float64))
    start = u.expand(FOLDS, -1), inverse.expand(FOLDS, -1, -1)
    found = minimise(lambda u: -others.log_prob(u), *start, NEAR)
    with torch.no_grad():
        rows = torch.stack([whole._rows(one, whole._first) for one in found.u]).numpy()
    fitted = {k: v.tolist() for k, v in bound.pooled.constrain(u[0]).items()}
    return rows[folds(data), bound.rows], {
        "u": u.tolist(),
        "inverse": inverse.tolist(),
        "parameters": whole.size,
        "converged": converged and bool(found.converged(NEAR).all()),
        "seconds": time.process_time() - began,
        "at": json.dumps(fitted),
    }


def run(folder):
    """Every row for every person, kept as it comes; leaves the table."""
    folder.mkdir(parents=True, exist_ok=True)
    data, table = choice_rt(nd.load(STUDY)), []
    for subject in np.unique(data["subject"].values):
        own, held, first = data.isel(trial=data["subject"].values == subject), {}, {}
        for name in MODELS:
            path = folder / f"{subject} {name}.npz".replace(" ", "_")
            if not path.exists():
                each, fit = scores(own, name, first)
                np.savez(path, each=each, fit=json.dumps(fit))
            kept = np.load(path)
            held[name], fit = kept["each"], json.loads(str(kept["fit"]))
            first = fit if name == REFERENCE else first
            fit = {k: v for k, v in fit.items() if k not in ("u", "inverse")}
            apart = held[name] - held[REFERENCE]
            se = apart.std(ddof=1) / len(apart) ** 0.5
            total = {"trials": len(apart), "score": held[name].mean(), "diff": apart.mean()}
            table.append({"subject": subject, "model": name, **total, "se": se, **fit})
            print(
                subject,
                name,
                f"{apart.mean():.4f} ± {se:.4f}",
                f"{fit['seconds']:.0f} s",
                flush=True,
            )
        apart = held["steady, collapsing, optimal"] - held["motion, collapsing, optimal"]
        total = {"diff": apart.mean(), "se": apart.std(ddof=1) / len(apart) ** 0.5}
        total |= {"subject": subject, "trials": len(apart)}
        table.append(total | {"model": "steady less motion, collapsing"})
    pd.DataFrame(table).to_csv(RESULTS / "08_scores.csv", index=False, float_format="%.5g")
    times(data).to_csv(RESULTS / "08_times.csv", index=False, float_format="%.4g")


def times(data):
    """Densities of reaction time of each cue, all people together, 1/s."""
    edges = np.linspace(0, DURATION, 33)  # times come in steps of about 1/64 s
    columns = {"time": 0.5 * (edges[1:] + edges[:-1])}
    for cue in ("visual", "vestibular", "both"):
        rt = data["rt"].values[data["modality"].values == cue]
        columns[cue] = np.histogram(rt, edges, density=True)[0]
    return pd.DataFrame(columns)


@on_one_thread
def alone(folder, bound):
    """Draws of each person by itself, kept: all likelihoods of the hierarchy are computed here."""
    path = folder / "alone.npz"
    if not path.exists():
        began = time.process_time()
        first = first_stage(bound.posterior, torch.Generator().manual_seed(0))
        kept = {name: getattr(first, name).numpy() for name in ("u", "log_pi", "k_hat")}
        aside = path.with_suffix(".aside.npz")
        np.savez(aside, seconds=time.process_time() - began, **kept)
        aside.replace(path)
    kept = {name: torch.as_tensor(value) for name, value in np.load(path).items()}
    seconds = kept.pop("seconds").item()
    return First([], bound.pooled, likelihood=[], **kept), seconds


@on_one_thread
def population(folder, name):
    """All parameters of each person and of their population; leaves the table.

    And of a population without c, whose delay under self-motion is 1.4 s, that of others .2 to .5.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # from the module's own values c comes to rest 1,400 nats below where it does from low bounds
    bound = join(begun(name, {}), choice_rt(nd.load(STUDY)), by="subject")
    first, seconds = alone(folder, bound)
    began = time.process_time()
    masks = torch.ones(2, len(bound.groups))
    masks[1, list(bound.groups).index("c")] = 0
    found = populations(first, masks, torch.Generator().manual_seed(0))
    spent = {"seconds": seconds + time.process_time() - began}
    rows = []
    for i, who in enumerate(("population", "population without c")):
        own = {"k_hat": found.k_hat[i].item(), "r_hat": found.r_hat[i].item(), **spent}
        rows += [{"who": who, **row, **own} for row in named(bound.pooled, found.mean[i])]
    for j, who in enumerate(bound.groups):
        own = {"k_hat": first.k_hat[j].item(), "r_hat": found.r_hat[0].item(), **spent}
        own["chosen"] = found.chosen[0, j].item()
        rows += [{"who": who, **row, **own} for row in named(bound.pooled, found.groups[0, :, j])]
    pd.DataFrame(rows).to_csv(RESULTS / "08_population.csv", index=False, float_format="%.4g")


def named(pooled, u):
    """Quantiles of every number of every parameter."""
    at = {1: ("",), 3: CUES, 7: PLACES}
    for key, value in pooled.constrain(u).items():
        each = value.reshape(len(u), -1).mT.numpy()
        of = COHERENCES if key in ("drift.visual", "drift.efficiency") else at[len(each)]
        for place, one in zip(of, each, strict=True):
            yield {"parameter": key, "of": place, **quantiles(one)}


# %%
def figure():
    """When cues are good and when people answer; what rows lose; what two cues give together."""
    with plt.style.context(nd.plot.STYLE):
        layout = [["course", "course"], ["scores", "scores"], ["efficiency", "efficiency"]]
        drawn, axes = plt.subplot_mosaic(
            layout, figsize=(4.2, 5.8), height_ratios=[1, 1.8, 1.1], layout="constrained"
        )
        course(axes["course"])
        differences(axes["scores"])
        efficiency(axes["efficiency"])
        for kind in ("png", "pdf"):
            drawn.savefig(FIGURES / f"08_evidence_that_comes_and_goes.{kind}", dpi=300)
        plt.close(drawn)


def course(ax):
    """Reliability of the two cues over time, and when people answer."""
    table = pd.read_csv(RESULTS / "08_times.csv")
    time = torch.linspace(0.005, DURATION, 400, dtype=torch.float64)
    rate = Motion().clocks(time, DURATION)[1]
    for power, cue, colour in zip(rate, ("visual", "vestibular"), (BLUE, RED), strict=True):
        ax.plot(time, power, color=colour, label=f"{cue}: information per second")
        ax.step(table["time"], table[cue], where="mid", color=colour, lw=0.8, ls=(0, (2, 1)))
    ax.step(table["time"], table["both"], where="mid", color="black", lw=0.8, ls=(0, (2, 1)))
    ax.plot([], [], color="0.4", lw=0.8, ls=(0, (2, 1)), label="reaction times (black: both)")
    ax.set(xlabel="time from the onset of motion (s)", ylabel="1/s", xlim=(0, DURATION))
    ax.legend(fontsize=5.5, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def differences(ax):
    """Scores of the rows of each person, less those of the reference."""
    table = pd.read_csv(RESULTS / "08_scores.csv").set_index("model")
    names = [name for name in MODELS if name != REFERENCE]
    each = table.groupby("subject")
    for i, (subject, own) in enumerate(each):
        colour, marker = MARKS[i]
        y = np.arange(len(names)) + 0.7 * ((i + 0.5) / len(each) - 0.5)
        style = {"fmt": marker, "color": colour, "ms": 2.5, "lw": 0.7, "label": subject}
        ax.errorbar(own.loc[names, "diff"], y, xerr=2 * own.loc[names, "se"], **style)
    ax.axvline(0, color="0.6", lw=0.8, zorder=0)
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.4, -0.6))
    ax.set_xlabel("score less that of motion, constant, optimal\n(nat / trial), ± 2 SE")
    ax.legend(ncols=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=0.6,
              handletextpad=0.1)  # fmt: skip


def efficiency(ax):
    """What two cues give, over what they can: each person's and the population's."""
    table = pd.read_csv(RESULTS / "08_population.csv", dtype={"of": str})
    table = table[table["parameter"] == "drift.efficiency"]
    marks = dict(zip("abcdefg", MARKS, strict=True))
    marks |= {"population": ("black", "_"), "population without c": ("0.5", "_")}
    for i, (who, (colour, marker)) in enumerate(marks.items()):
        own = table[table["who"] == who]
        x = np.arange(len(own)) + 0.7 * ((i + 0.5) / len(marks) - 0.5)
        sides = [own["median"] - own["q05"], own["q95"] - own["median"]]
        width, size = (2.0, 6) if marker == "_" else (0.8, 2.5)
        ax.errorbar(x, own["median"], sides, fmt=marker, color=colour, lw=width, ms=size)
    ax.axhline(1, color="0.6", lw=0.8, zorder=0)
    ax.set_xticks(range(len(COHERENCES)), [f"{c:.2f}" for c in COHERENCES])
    ax.set(
        xlabel="coherence of the optic flow", ylabel="sensitivity of both cues\nover the optimal"
    )
    note = "thick: population,\ngrey without c;\nmedian, 90 %"
    ax.text(0.02, 0.97, note, transform=ax.transAxes, ha="left", va="top", fontsize=5.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Is evidence weighted as it comes and goes?")
    parser.add_argument(
        "--fit", action="store_true", help="fit each person (seven minutes of a core)"
    )
    parser.add_argument(
        "--population", action="store_true", help="fit the hierarchy (ten minutes of a core)"
    )
    options = parser.parse_args()
    if options.fit:
        run(RUNS)
    if options.population:
        population(RUNS, "motion, constant, free")
    if not (options.fit or options.population):
        figure()
