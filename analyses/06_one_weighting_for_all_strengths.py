# %% [markdown]
# # One weighting does not serve all strengths, nor does a weighting for each
#
# If stopping asked nothing of the evidence, the survival of decision times would be a weighting,
# w(λ) = P(log v² T > λ). Choices and reaction times of two monkeys and six people (Roitman &
# Shadlen 2002; Palmer, Huk & Shadlen 2005) are asked four questions by held-out log density:
#
# - *one w*: one law of log v² T for all strengths (an SNR stop);
# - *the clock*: one law of log T, so that w moves by 2 log |v| from strength to strength;
# - *a w for each strength*: log T has a place of its own for each strength;
# - *a bound*: a Weibull bound, whose effective weighting is of formula
#   w_eff = E[(θ - M)²; T > s] / mmse(v² s) and not a survival.
#
# All have the same drift (with an exponent), delay, jitter, start and lapses, and a law that is
# normal on its axis. Trials of strength 0, where λ is -∞ and one w says nothing, are left out.
# Folds of the monkeys are those of `benchmarks/rt/folds.csv`, of the people those of analysis 03.
# Scores are at the mode of the posterior of the other four folds. Where the places of the strengths
# go as β · 2 log |v| in log v² T, β = 0 is one w and β = 1 is the clock.
#
#     python analyses/06_one_weighting_for_all_strengths.py [--fit]
#
# Without `--fit` the figure is made from `results/06_one_weighting.csv`.

# %%
import argparse
import importlib
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import neurodiff as nd
from neurodiff.data.choice_rt import choice_rt
from neurodiff.inference.fit import modes_of
from neurodiff.inference.importance import importance_draws
from neurodiff.inference.join import join
from neurodiff.inference.posterior import on_one_thread
from neurodiff.panels import BLUE, ORANGE, RED
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.bounds import Weibull
from neurodiff.perception.drifts import Power
from neurodiff.perception.strength_stop import StrengthStop
from neurodiff.perception.timed import SnrStop, TimeStop

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
rivals = importlib.import_module("03_rivals_of_a_bound")
RESULTS = rivals.RESULTS / "06_one_weighting.csv"
OWN, REFERENCE = "a w for each strength", "bound"


def models(horizon, steps, sizes):
    """Each by name, on the same drift."""
    normal = nd.laws.Normal
    yield REFERENCE, Bounded(Power(12.0, exponent=1.0), Weibull(), horizon, steps, start=0.01)
    own = normal(0.0, 0.4)
    drift = Power(12.0, exponent=1.0)
    yield OWN, StrengthStop(drift, own, sizes, horizon, steps, start=0.01)
    for name, kind in (("the clock", TimeStop), ("one w", SnrStop)):
        yield name, kind(Power(12.0, exponent=1.0), normal(), horizon, steps, start=0.01)


# %%
def observers():
    """Name, trials of strengths above 0 and the fold of each, and the grid of times."""
    kept = pd.read_csv(HERE.parent / "benchmarks" / "rt" / "folds.csv")
    for study, (*_, horizon, steps) in rivals.STUDIES.items():
        every = nd.load(study)["subject"].values
        for i, subject in enumerate(np.unique(every), 1):
            if "monkey" in study:
                data = choice_rt(nd.load(study).isel(trial=every == subject))
                fold = kept[kept["monkey"] == i].set_index("trial")["fold"]
                fold = fold.reindex(range(data.sizes["trial"])).fillna(-1).to_numpy(int)
            else:
                data = rivals.trials(study, subject)
                fold = rivals.folds(data)
            here = (fold >= 0) & (data["strength"].values != 0)
            kind = "monkey" if "monkey" in study else "person"
            yield f"{kind} {subject}", data.isel(trial=here), fold[here], (horizon, steps)


@on_one_thread
def slope_of_places(model, data):
    """β, and half its central 90 %: places in log v² T regressed on 2 log |v|, posterior draws."""
    bound = join(model, data)
    generator = torch.Generator().manual_seed(0)
    draws = importance_draws(bound.posterior, modes_of(bound, 2, 0), 1000, generator)
    found = bound.pooled.constrain(draws.resample(500, generator)[0])
    gain, exponent, place = (found[k].numpy() for k in ("drift.gain", "drift.exponent", "place"))
    x = 2 * np.log(gain[:, None] * model.strengths.numpy() ** exponent[:, None])
    apart = x - x.mean(1, keepdims=True)
    beta = ((place + x) * apart).sum(1) / (apart**2).sum(1)
    low, middle, high = np.quantile(beta, [0.05, 0.5, 0.95])
    return {"beta": middle, "beta_q05": low, "beta_q95": high, "k_hat": draws.k_hat[0].item()}


def run():
    """All fits; leaves the table."""
    rows = []
    for name, data, fold, grid in observers():
        sizes = np.unique(np.abs(data["strength"].values)).tolist()
        held = {}
        for model, one in models(*grid, sizes):
            each, fit = rivals.held_out(one, data, fold)
            held[model] = each
            row = {"observer": name, "model": model, "trials": len(each), "score": each.mean()}
            for other in {REFERENCE, OWN} & held.keys() - {model}:
                less = each - held[other]
                row[f"less {other}"] = less.mean()
                row[f"se {other}"] = less.std(ddof=1) / len(less) ** 0.5
            if model == OWN:
                row |= slope_of_places(one, data)
            rows.append(row | fit)
            print(rows[-1], flush=True)
            pd.DataFrame(rows).to_csv(RESULTS, index=False, float_format="%.5g")


# %%
def figure():
    """What each loses against a bound, and how places move with strength."""
    table = pd.read_csv(RESULTS)
    names = list(dict.fromkeys(table["observer"]))
    y = np.arange(len(names))
    with plt.style.context(nd.plot.STYLE):
        drawn, (left, right) = plt.subplots(
            1, 2, figsize=(3.5, 2.6), sharey=True, layout="constrained", width_ratios=[1.5, 1]
        )
        styles = ((OWN, BLUE, "o"), ("the clock", ORANGE, "s"), ("one w", RED, "D"))
        for i, (model, colour, marker) in enumerate(styles):
            own = table[table["model"] == model].set_index("observer").loc[names]
            left.errorbar(
                own[f"less {REFERENCE}"], y + 0.2 * (i - 1), xerr=2 * own[f"se {REFERENCE}"],
                fmt=marker, ms=3, lw=0.8, color=colour, label=model,
            )  # fmt: skip
        left.axvline(0, color="0.6", lw=0.8)
        left.set_xlabel("score less that of a bound\n(nat / trial, ± 2 SE)", fontsize=7)
        left.set_yticks(y, names)
        left.invert_yaxis()
        own = table[table["model"] == OWN].set_index("observer").loc[names]
        sides = [own["beta"] - own["beta_q05"], own["beta_q95"] - own["beta"]]
        right.errorbar(own["beta"], y, xerr=sides, fmt="o", ms=3, lw=0.8, color=BLUE)
        for at in (0.0, 1.0):
            right.axvline(at, color="black", lw=0.6, ls=":")
        right.set_xticks([0, 1], ["0\none w", "1\nthe clock"])
        right.set(xlim=(-0.15, 1.25))
        right.set_xlabel("place of w on 2 log |v|\n(slope β, 90 %)", fontsize=7)
        drawn.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        for kind in ("png", "pdf"):
            drawn.savefig(rivals.FIGURES / f"06_one_weighting.{kind}", dpi=300)
        plt.close(drawn)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Does one weighting serve all strengths?")
    parser.add_argument("--fit", action="store_true", help="fit again (a few minutes of one core)")
    if parser.parse_args().fit:
        run()
    figure()
    print(pd.read_csv(RESULTS).drop(columns="at").to_string())
