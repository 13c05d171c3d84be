# %% [markdown]
# # Does a weighting learned from one task predict another?
#
# Nineteen people sorted the same gratings in two tasks (Adler & Ma 2018): by which way they are
# turned (A: two means), and by how far from the mean (B: narrow or wide). The measurement of an
# orientation is the same in both, x = s + N(0, σ²), λ = −2 log σ in degrees; the boundary is not.
# So what is learned of σ in A, by a power law with a noise floor or by one with a stopping law w,
# is carried to B without change; there only the boundary and the lapses are learned, from B's
# training trials (five folds). T is how much of what could be predicted is; strangers are other
# people's measurements.
#
#     python analyses/16_one_weighting_two_tasks.py [--fit]
#
# Without `--fit` tables and figure are made from `results/16_*`. With it all is fitted, one
# hypothesis after another; a run that was stopped goes on (an hour on one core).

# %%
import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.special import expit
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
    measured,
    saved,
    summed,
)

import neurodiff as nd
from neurodiff import panels, summary
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.transfer import carry, fit_parts, held_out, over_draws

FIGURES = Path(__file__).resolve().parents[1] / "paper" / "figures"
#: nats by which a law moves from A to B where λ is log(variance of the stimuli/σ²)
GAUGE = float(np.log((4**2 + 5**2) / ((3**2 + 12**2) / 2)))
LAWS = ("logistic", "flow-matching", "flexible", "e^(-λ/2) tail", "logistic, oblique")
FIRST = ("power + floor", "logistic", "flow-matching", "free levels")
#: in the order of what is wanted most
PLAN = [
    *(("linear", row) for row in FIRST),
    *(
        (rule, row)
        for rule in ("Bayes, free spreads", "Bayes", "per level")
        for row in ("power + floor", "logistic")
    ),
    ("per level", "free levels"),  # the free psychometric
    *(("linear", row) for row in ROWS if row not in FIRST),
]


def strangers(values, by, only=""):
    """The measurement of the person ``by`` places on; of ``only`` some of its parameters."""
    return {k: v.roll(by, 0) if k.startswith(only) else v for k, v in values.items()}


def shifted(values, by):
    """The law ``by`` nats lower."""
    return {k: v - by if k == "measurement.law.loc" else v for k, v in values.items()}


def shuffled(parts, seed=0):
    """Each person's choices met with the stimuli of other trials."""
    rng, found = np.random.default_rng(seed), []
    for data in parts:
        order = rng.permutation(data.sizes["trial"])
        found.append(data.assign({n: data[n][order] for n in ("level", "orientation")}))
    return found


# %%
def controls(values, onto, fold, permuted):
    """Elpd of each person with some of another's measurement, or a law of another kind."""
    few = {k: v[:, :4] for k, v in values.items()}

    def carried(*given):
        # two strangers, each a few places on among the people of the same experiment
        each = [over_draws(carry(one, onto, fold, PROPOSED)[0])[0] for one in given]
        return np.mean(each, 0)

    yield "few draws", carried(few)  # as many as the others have: a mean over more is higher
    yield "stranger", carried(*(strangers(few, by) for by in (1, 4)))
    if any(k.startswith("measurement.law") for k in values):
        yield "stranger's w", carried(*(strangers(few, by, "measurement.law") for by in (1, 4)))
        law = {k: v for k, v in permuted.items() if k.startswith("measurement.law")}
        yield "permuted w", carried(few | law)
    if "measurement.law.loc" in values:
        yield "task gauge", carried(shifted(few, GAUGE))


def both_ways(rule, name, parts):
    """A and B fitted, and each predicted from the other: a row for each person and direction.

    Under the linear rule controls are made, and B predicts A too.
    """
    fitted, fold = {}, {task: folds(own) for task, own in parts.items()}
    for task in "AB":
        fitted[task] = fit_parts(bound(parts[task], ROWS[name], rule, task), DRAWS)
    for source, target in ("AB", "BA") if rule == "linear" else ("AB",):
        values = measured(fitted[source], CARRIED if rule == "linear" else CARRIED // 3)
        onto = bound(parts[target], ROWS[name], rule, target, carried=True)
        refit, shapes = held_out(fitted[target], fold[target])
        each, k_hat = carry(values, onto, fold[target], PROPOSED)
        own, noise = over_draws(each)
        found = {"transfer": own, "noise": noise, "refit": refit.sum(1).numpy()}
        if rule == "linear":
            permuted = None
            if any(k.startswith("measurement.law") for k in values):
                blind = bound(shuffled(parts[source]), ROWS[name], rule, source)
                permuted = measured(fit_parts(blind, DRAWS), 4)
            found |= dict(controls(values, onto, fold[target], permuted))
        about = {
            "from": source, "to": target, "rule": rule, "row": name,
            "trials": [len(p["level"]) for p in parts[target]],
            "constant": constant(parts[target], fold[target]),
            "converged": all(fitted[task].modes.converged.all() for task in "AB"),
            "k_hat": fitted[source].draws.k_hat.numpy(),
            "k_hat_refit": (shapes > 0.7).mean(1), "k_hat_carried": (k_hat > 0.7).mean((0, 2)),
        }  # fmt: skip
        mean = {
            k.removeprefix("measurement."): v.mean(1).numpy()
            for k, v in measured(fitted[source], 100).items()
            if v.dim() == 2
        }
        yield pd.DataFrame(about | found | mean)


def transfers():
    """Every hypothesis of the plan, into results/16_people.csv as it goes."""
    path, keys = RESULTS / "16_people.csv", ("rule", "row", "experiment")
    for rule, name in PLAN:
        for part, parts, who in experiments():
            old, done = saved(path, keys)
            if (rule, name, part) in done:
                continue
            began = time.process_time()
            frames = list(both_ways(rule, name, parts))
            seconds = time.process_time() - began
            new = pd.concat([
                f.assign(experiment=part, person=who, seconds=seconds) for f in frames
            ])  # fmt: skip
            table = new if old.empty else pd.concat([old, new], ignore_index=True)
            table.to_csv(path, index=False, float_format="%.5g")
            a = new[new["from"] == "A"]
            print(
                f"{rule}, {name}, {part}: transfer {a['transfer'].sum():.1f}, refit "
                f"{a['refit'].sum():.1f}, constant {a['constant'].sum():.1f}, {seconds:.0f} s",
                flush=True,
            )


# %%
def pairs(own, other, trials, name):
    """A paired difference over people: nats, and millinats a trial."""
    nats, se = summed(own - other)
    each = 1e3 / trials.sum()
    return {
        name: nats,
        f"{name}, SE": se,
        f"{name}, mnat": nats * each,
        f"{name}, mnat SE": se * each,
    }


def verdict(gain, se):
    """The words that are allowed: a law transfers only if it beats the floor."""
    return "w transfers" if gain > 2 * se and gain > 4 else "a noise floor suffices"


def table():
    """results/16_transfer.csv: a row for each direction, rule and hypothesis."""
    everyone = pd.read_csv(RESULTS / "16_people.csv")
    rows = []
    for (source, rule, name), own in everyone.groupby(["from", "rule", "row"], sort=False):
        own = own.set_index("person")
        same = everyone[(everyone["from"] == source) & (everyone["rule"] == rule)]
        floor = same[same["row"] == "power + floor"].set_index("person").loc[own.index]
        n, known = own["trials"], own["transfer"].sum() - own["constant"].sum()
        row = {"from": source, "rule": rule, "row": name, "people": len(own), "trials": n.sum()}
        row |= {name: own[name].sum() for name in ("constant", "transfer", "refit")}
        row["T"] = known / (own["refit"] - own["constant"]).sum()
        row |= pairs(own["transfer"], own["refit"], n, "transfer - refit")
        row |= pairs(own["transfer"], floor["transfer"], n, "transfer - floor")
        row |= pairs(own["refit"], floor["refit"], n, "refit - floor")
        free = everyone[(everyone["from"] == source) & (everyone["rule"] == "per level")]
        free = free[free["row"] == "free levels"].set_index("person").reindex(own.index)
        if free["refit"].notna().all():
            row |= pairs(own["transfer"], free["refit"], n, "transfer - psychometric")
        for control in ("stranger", "stranger's w", "permuted w", "task gauge"):
            if control in own and own[control].notna().all():
                row |= pairs(own["few draws"], own[control], n, f"own - {control}")
        row["transfer, MC error"] = np.sqrt((own["noise"] ** 2).sum())
        row["share k_hat > .7, fit"] = (own["k_hat"] > 0.7).mean()
        row |= {f"share k_hat > .7, {k}": own[f"k_hat_{k}"].mean() for k in ("refit", "carried")}
        row["seconds"] = own.groupby("experiment")["seconds"].first().sum()
        law = name in LAWS
        row["verdict"] = (
            verdict(row["transfer - floor"], row["transfer - floor, SE"]) if law else ""
        )
        rows.append(row)
    found = pd.DataFrame(rows)
    found.to_csv(RESULTS / "16_transfer.csv", index=False, float_format="%.4g")
    return found


# %%
ZOO = {
    "sigmoid": (panels.RED, "-"),
    "flow-matching": (panels.GREEN, "--"),
    "edm-monotonic": (panels.ORANGE, "-."),
    "step": (panels.PINK, ":"),
}
LEVELS = ("two hardest levels", "two middle levels", "two easiest levels")
GRID = np.linspace(-8.0, 3.0, 111)  # nats


def weightings(ax):
    """Each person's w as learned from A, their mean, where their noise floors are, the zoo."""
    everyone = pd.read_csv(RESULTS / "16_people.csv")
    own = everyone[(everyone["from"] == "A") & (everyone["rule"] == "linear")]
    law, floor = (own[own["row"] == name] for name in ("logistic", "power + floor"))
    w = expit(-(GRID - law[["law.loc"]].to_numpy()) / law[["law.scale"]].to_numpy())
    ax.plot(GRID, w.T, color=panels.SKY, lw=0.4)
    ax.plot([], [], color=panels.SKY, lw=0.4, label="each person")
    ax.plot(GRID, w.mean(0), color=panels.BLUE, label="w, mean")
    above = (floor["floor"].to_numpy()[:, None] > GRID).mean(0)
    ax.plot(GRID, above, "k--", lw=1, label="floor above λ, share")
    half = np.interp(-0.5, -w.mean(0), GRID)
    for name, (colour, dashes) in ZOO.items():
        ax.plot(GRID, summary.placed(name, half, GRID), color=colour, ls=dashes, lw=0.7,
                label=name)  # fmt: skip
    ax.set(xlim=(GRID[0], GRID[-1]), ylim=(-0.03, 1.03), ylabel="w: P(still denoising)")
    ax.tick_params(labelbottom=False)
    fisher = pd.read_csv(RESULTS / "16_fisher.csv")
    strip = ax.inset_axes((0.0, -0.27, 1.0, 0.2), sharex=ax)
    for task, style in (("A", "-"), ("B", "--")):
        strip.plot(fisher["logsnr"], fisher[task] / fisher[["A", "B"]].to_numpy().max(),
                   style, color="black", lw=0.8, label=task)  # fmt: skip
    strip.set(xlabel="λ = −2 log σ, σ in degrees (nat)", yticks=(0, 1), ylim=(0, 1.1))
    strip.set_title(
        "what choices say of w (Fisher), A and B (dashed)", loc="left", pad=2, fontsize=6
    )
    panels.legend_above(ax, 2)


def predicted(ax, what, label):
    """Answers in B, and what the measurement learned in A predicts."""
    numbers = pd.read_csv(RESULTS / "16_curves.csv").query("what == @what")
    for level, marker in enumerate("sv^"):
        own = numbers[numbers["level"] == level]
        seen = own[own["row"] == "logistic"]
        ax.errorbar(seen["distance"], seen["observed"], seen["se"], fmt=marker, ms=3, lw=0.6,
                    color=panels.GREY, mec="black", mew=0.4, label=LEVELS[level])  # fmt: skip
        ax.plot(seen["distance"], seen["predicted"], color=panels.BLUE, lw=1.0)
        other = own[own["row"] == "power + floor"]
        ax.plot(other["distance"], other["predicted"], "k--", lw=1.0)
    ax.plot([], [], color=panels.BLUE, label="law, from A")
    ax.plot([], [], "k--", label="floor, from A")
    ax.set(xlabel="orientation, from 0 (degrees)", ylabel=label)
    panels.legend_above(ax, 2)


def claims():
    """Label, millinats a trial and standard error of what stands under the figure."""
    for (source, rule, name), row in table().set_index(["from", "rule", "row"]).iterrows():
        way = f"{source} → {'B' if source == 'A' else 'A'}, {rule}: "
        shown = [f"{name} − floor"] if name == "logistic" else []
        if rule == "linear" and name == "flow-matching":
            shown = ["flow-matching − floor"]
        if (rule, name) == ("linear", "logistic"):
            shown += ["own − stranger"]
        for label in shown:
            column = "transfer - floor" if label.endswith("floor") else "own - stranger"
            yield way + label, row[f"{column}, mnat"], row[f"{column}, mnat SE"]
    for name, nats, se, n in confident():
        yield name, 1e3 * nats / n, 1e3 * se / n
    for truth, own in pd.read_csv(RESULTS / "16_power.csv").groupby("truth", sort=False):
        gain = own["logistic"] - own["power + floor"]
        each = gain.groupby([own["experiment"], own["person"]]).mean()
        n = own["trials"].sum() / own["seed"].nunique()
        nats, se = summed(each)
        yield f"simulated, truth {truth}: logistic − floor", 1e3 * nats / n, 1e3 * se / n


def confident():
    """Paired differences of reports of B: to rivals, to the refit, to the free probit."""
    numbers = pd.read_csv(RESULTS / "16_confidence.csv")
    by = {name: own.set_index("person") for name, own in numbers.groupby("row")}
    law, n = by["logistic"], by["logistic"]["trials"].sum()
    free = by["ordinal probit per level"].loc[law.index, "refit"]
    for source in ("choices", "reports"):
        what, column = f"reports of B from A's {source}: ", f"from {source}"
        for rival in ("power + floor", "variable precision"):
            yield f"{what}logistic − {rival}", *summed(law[column] - by[rival][column]), n
        for name in ("power + floor", "logistic"):
            own = by[name]
            yield f"{what}{name} − its refit", *summed(own[column] - own["refit"]), n
            yield f"{what}{name} − free probit", *summed(own[column] - free), n


def figure():
    """w, what it predicts of B's choices and confidence beside the floor, and the differences."""
    plt.style.use(nd.plot.STYLE)
    fig = plt.figure(figsize=(7.2, 7.0), layout="constrained")
    top, under = fig.subfigures(2, 1, height_ratios=(1, 1.1))
    axes = top.subplots(1, 3)
    weightings(axes[0])
    predicted(axes[1], "wide", "P(wide)")
    predicted(axes[2], "confidence", "confidence, mean")
    rows = list(claims())
    pd.DataFrame(rows, columns=["difference", "mnat a trial", "SE"]).to_csv(
        RESULTS / "16_claims.csv", index=False, float_format="%.3f"
    )
    ax, many = under.subplots(), range(len(rows))
    value, se = (np.array([row[k] for row in rows]) for k in (1, 2))
    ax.errorbar(value, many, xerr=2 * se, fmt="o", ms=3, color=panels.BLUE, lw=0.8)
    ax.axvline(0, color="black", lw=0.6, ls=":")
    ax.set_xscale("symlog", linthresh=5)
    ticks = (-50, -20, -10, -5, 0, 5, 10, 20)
    ax.set_xticks(ticks, [f"{t}".replace("-", "−") for t in ticks])
    ax.minorticks_off()
    ax.set_yticks(many, [row[0] for row in rows], fontsize=6)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    for i in many:
        ax.text(1.01, i, f"{value[i]:.1f} ± {se[i]:.1f}".replace("-", "−"), fontsize=6, va="center",
                transform=ax.get_yaxis_transform())  # fmt: skip
    ax.set_xlabel("difference in held-out log density (millinat a trial), ± 2 SE over people")
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"16_two_tasks.{kind}", dpi=300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Does a weighting predict another task?")
    parser.add_argument("--fit", action="store_true", help="fit what is not in results/ yet")
    if parser.parse_args().fit:
        on_one_thread(transfers)()
    figure()
