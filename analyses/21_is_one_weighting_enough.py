# %% [markdown]
# # Is one weighting enough for six people and two kinds of degraded picture?
#
# Five people (and a sixth in one of them) named objects in uniform noise and in phase-scrambled
# photographs (Geirhos et al. 2018; the numbers of subjects are the same persons in both), whose
# logsnr is known. Four ways to share a law: one w for everyone and everything, one w shifted by
# person, a w of each person for both tasks, and all apart. Lapse, ceiling and internal noise are
# each part's own throughout. Held-out nats over five folds of trials within each part, errors over
# persons; Bayes factors by Laplace and by bridge sampling, over widths of the priors of laws.
#
# And nineteen people who sorted orientations in two tasks (Adler & Ma 2018), each by themselves:
# one law for both tasks or one for each, all else (noise, boundary, lapses) each task's own.
#
#     python analyses/21_is_one_weighting_enough.py [--fit]
#
# Without `--fit` the figures are made from `results/21_*`; with it all is fitted (half an hour),
# but for people whom `results/21_orientations.csv` has.

# %%
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from two_tasks import ROWS
from two_tasks import experiments as of_orientation

import neurodiff as nd
from neurodiff.inference.hypotheses import build, plan
from neurodiff.inference.share import part_of, share
from neurodiff.inference.tasks import task_of
from neurodiff.panels import BLUE, GREEN, ORANGE, RED
from neurodiff.perception.categories import Linear
from neurodiff.perception.orientation import Categorise, strengths
from neurodiff.plot_sharing import prior_width

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
READ_OUTS = {
    "noise": ["noise"],
    "phase scrambling": ["phase-scrambling"],
    "both": ["noise", "phase-scrambling"],
}
LAWS = ["logistic", "exponential"]
POINTS, DRAWS = 192, 192


# %%
def parts_of(experiments, law):
    """Each person in each experiment."""
    parts = []
    for name in experiments:
        data = nd.load(f"geirhos2018-degraded-objects/{name}")
        data = data.isel(trial=data["observer_kind"].values == "human")
        task = task_of(data)
        (row,) = plan(task, ["internal-noise"], [], [law], controls=False)
        for who in np.unique(data["subject"].values):
            mine = data.isel(trial=data["subject"].values == who)
            parts.append(part_of(mine, build(row, task, mine), f"{who}, {name}", str(who)))
    return parts


def run():
    """All ways to share; a table of them and one of the Bayes factors."""
    tables, widths = [], []
    for read_out, experiments in READ_OUTS.items():
        for law in LAWS:
            table, width = share(parts_of(experiments, law), points=POINTS, draws=DRAWS)
            for frames, frame in ((tables, table), (widths, width)):
                frames.append(frame.assign(hypothesis=law, read_out=read_out))
            print(read_out, law, table.to_string(index=False), flush=True)
    pd.concat(tables).to_csv(RESULTS / "21_shared.csv", index=False, float_format="%.5g")
    pd.concat(widths).to_csv(RESULTS / "21_prior_width.csv", index=False, float_format="%.5g")


def orientations():
    """Each of nineteen people in two tasks of orientation: one law for both, or one for each."""
    path = RESULTS / "21_orientations.csv"
    rows = pd.read_csv(path) if path.exists() else pd.DataFrame({"person": []})
    for _, parts, who in of_orientation():
        for i, person in enumerate(who):
            if person in set(rows["person"]):
                continue
            each = []
            for task, own in parts.items():
                model = Categorise(ROWS["logistic"](strengths(6)), Linear(task))
                each.append(part_of(own[i], model, task, person))
            table, _ = share(each, widths=(), points=POINTS // 3, draws=DRAWS // 3)
            rows = pd.concat([rows, table.assign(person=person)])
            rows.to_csv(path, index=False, float_format="%.6g")
            print(person, table.to_string(index=False), flush=True)


# %%
COLOURS = {"one w": RED, "one w, shifted": ORANGE, "own w": GREEN, "all apart": BLUE}


def figure():
    """Held-out nats below the best way to share; and what priors do to Bayes factors."""
    table = pd.read_csv(RESULTS / "21_shared.csv")
    plt.style.use(nd.plot.STYLE)
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.1), sharey=True, layout="constrained")
    for ax, read_out in zip(axes, READ_OUTS, strict=True):
        for j, law in enumerate(LAWS):
            rows = table[(table["read_out"] == read_out) & (table["hypothesis"] == law)]
            for row in rows.to_dict("records"):
                place = list(COLOURS).index(row["sharing"]) + 0.2 * (j - 0.5)
                ax.errorbar(row["elpd_diff"], place, xerr=row["dse"], fmt="os"[j], ms=3.5, lw=0.8,
                            color=COLOURS[row["sharing"]])  # fmt: skip
        ax.axvline(0, color="black", lw=0.6)
        ax.set(title=read_out, xlabel="held-out nats below the best")
    axes[0].set_yticks(range(4), list(COLOURS))
    axes[0].invert_yaxis()
    for mark, law in zip("os", LAWS, strict=True):
        axes[2].plot([], [], mark, color="black", ms=3.5, label=law)
    axes[2].legend(frameon=False)
    widths = pd.read_csv(RESULTS / "21_prior_width.csv")
    both = widths[widths["read_out"] == "both"]
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"21_one_weighting.{kind}", dpi=300)
        prior_width(both).savefig(FIGURES / f"21_prior_width.{kind}", dpi=300)


def orientation():
    """What one law for both tasks loses or gains on two, person by person."""
    rows = pd.read_csv(RESULTS / "21_orientations.csv").set_index(["sharing", "person"])
    one, apart = rows.loc["one w"], rows.loc["all apart"]
    order = (apart["ln_bf_bridge"]).sort_values().index
    with plt.style.context(nd.plot.STYLE):
        fig, axes = plt.subplots(1, 2, figsize=(3.4, 2.4), sharey=True, layout="constrained")
        y = np.arange(len(order))
        # the error of a difference is with the one of the two that is behind
        dse = np.maximum(one["dse"], apart["dse"])[order]
        nats = (one["elpd"] - apart["elpd"])[order]
        axes[0].errorbar(nats, y, xerr=dse, fmt="o", ms=2.5, lw=0.7, color=BLUE)
        axes[1].plot(-apart["ln_bf_bridge"][order], y, "o", ms=2.5, color=GREEN)
        for ax in axes:
            ax.axvline(0, color="black", lw=0.6)
        axes[0].set_yticks(y, order, fontsize=4.5)
        axes[0].set(xlabel="one w less two:\nheld-out nats, ± SE")
        axes[1].set(xlabel="ln Bayes factor\nof one w to two")
        for kind in ("png", "pdf"):
            fig.savefig(FIGURES / f"21_orientations.{kind}", dpi=300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Is one weighting enough?")
    parser.add_argument("--fit", action="store_true", help="fit anew")
    if parser.parse_args().fit:
        run()
        orientations()
    figure()
    orientation()
