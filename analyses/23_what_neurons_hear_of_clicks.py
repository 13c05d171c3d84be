# %% [markdown]
# # What do neurons hear of the clicks, and does the rat's weighting say it?
#
# Nine neurons beside 918 choices of a rat (`brody-rat-t103-clicks`; 461 trials with seven, 457 with
# two). An accumulator of clicks is fitted to the choices of training trials; what has accumulated,
# given the choice, is held against the spikes of held-out trials, beside rivals: the same drive
# with its parameters from spikes, with a law of stopping to listen, the choice alone, the clicks
# alone, the clicks of another trial. Then the other way: an accumulator of spikes alone against
# held-out choices; and the choice read from the spikes of its own trial. Each is scored on its own
# data, in nats, five folds over trials; a drive is that of the mode; a neuron's own rate, course of
# time, gain and latency are learned on training trials, row by row.
#
# Beside the rat stand simulated ones, of its own parameters, its clicks and as many neurons and
# trials: whose neurons follow the accumulator, and one of which half have stopped by .35 s.
#
#     python analyses/23_what_neurons_hear_of_clicks.py [--fit]
#
# Without `--fit` the figure is made from `results/23_*`. With it all is fitted, in half an hour;
# folds that are done are not done again.

# %%
import argparse
import copy
import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.optimize import minimize_scalar

import neurodiff as nd
from neurodiff import panels
from neurodiff.inference.importance import importance_draws
from neurodiff.inference.join import join
from neurodiff.inference.laplace import best_modes
from neurodiff.inference.optimise import minimise
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.priors import Pooled, sites
from neurodiff.inference.stack import stack
from neurodiff.inference.transfer import carry, fit_parts
from neurodiff.perception.clicks import Clicks
from neurodiff.perception.listening import Heard, Known, Listening, heard_given_choice

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
clicks = importlib.import_module("18_what_a_rat_hears_of_clicks")
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "23-clicks"
FOLDS, DRAWS, FEW = 5, 300, 40
BIN, STEP = 0.05, 0.025  # seconds: of counts, and of the grid of the drive
TIME = STEP * torch.arange(41, dtype=torch.float64)
STOPS = "adapts, stops listening"
KNOTS = torch.tensor([0.0, 0.1, 0.2, 0.4, 0.7, 1.0], dtype=torch.float64)


# %%
def load():
    """Both sessions, spikes of a neuron that was not recorded NaN; and the fold of each trial."""
    data, parts = clicks.rat(), []
    for part in ("303075", "304258"):
        parts.append(nd.load(f"brody-rat-t103-clicks/{part}")["spike_time"])
    spikes, recorded = [], []
    for part in parts:
        for unit in range(part.sizes["unit"]):
            here = np.repeat([p is part for p in parts], [p.sizes["trial"] for p in parts])
            recorded.append(here)
            own = iter(part.isel(unit=unit).values)
            spikes.append([next(own) if yes else np.array([]) for yes in here])
    rng, fold = np.random.default_rng(0), np.empty(len(data["choice"]), int)
    for here in (recorded[0], recorded[-1]):
        fold[here] = rng.permutation(np.arange(here.sum()) % FOLDS)
    return data, [counted(data, s, r) for s, r in zip(spikes, recorded, strict=True)], fold


def counted(data, spikes, recorded):
    """Rows of one neuron: counts in bins that begin with the clicks and are over by their end."""
    found = []
    for i in np.flatnonzero(recorded):
        bins = int(data["duration"].values[i] / BIN + 1e-6)
        count, _ = np.histogram(spikes[i], BIN * np.arange(bins + 1))
        found.append(pd.DataFrame({"number": i, "when": BIN * (np.arange(bins) + 0.5),
                                   "count": count}))  # fmt: skip
    rows = pd.concat(found, ignore_index=True)
    return rows.assign(neuron=0, exposure=BIN, choice=data["choice"].values[rows["number"]])


def study(rows):
    """Rows as a data set whose unit of generalisation is the trial."""
    columns = {n: ("trial", rows[n].to_numpy(float)) for n in rows}
    return xr.Dataset(columns, {"of": ("trial", rows["number"].to_numpy())})


def shown(data):
    """The clicks of every trial."""
    return {n: torch.tensor(data[n].values, dtype=torch.float64) for n in Clicks.requires}


# %%
def rats():
    """Accumulators of clicks."""
    return {
        "counts": Clicks(adapts=False, leaks=False),
        "adapts": Clicks(leaks=False),
        "adapts and leaks": Clicks(),
        STOPS: Clicks(nd.laws.Logistic(-0.5, 0.4), leaks=False),
    }


def from_choices(model, data, some):
    """Posterior draws of an accumulator by the choices of some trials, by name, and its mode."""
    bound = join(model, data[[*Clicks.requires, "choice"]].isel(trial=some))
    fitted = fit_parts([bound.posterior], DRAWS)
    mode = bound.pooled.constrain(fitted.modes.u)
    return {n: v[0] for n, v in fitted.sampled(FEW, 0).items()}, mode


def drive(model, mode, data):
    """D of every trial at the mode of an accumulator's parameters.

    Not its mean over draws: in some of these clicks grow and grow, which would be all of it.
    """
    own = copy.deepcopy(model).double()
    for name, value in mode.items():
        own.get_parameter(name).data.copy_(value[0])
    with torch.no_grad():
        return heard_given_choice(own, shown(data), TIME)


def alone(mode):
    """The same parameters where choices say nothing of the path."""
    return mode | {"lapse": torch.ones_like(mode["lapse"])}


def mean_of_choice(table, data, some):
    """What is known of D from the choice and the time: its mean over some trials that still run."""
    choice, end = (torch.as_tensor(data[n].values) for n in ("choice", "duration"))
    out = torch.empty_like(table)
    for k in (0, 1):
        own = torch.as_tensor(some) & (choice == 1 - k)
        runs = (TIME[None] <= end[own][:, None]).double()
        value = table[own][..., k]
        out[..., k] = (runs * value).sum(0) / runs.sum(0).clamp_min(1.0)
    return out


def another(data, seed):
    """A permutation of trials of the same choice and nearly the same duration (few stay)."""
    rng, pick = np.random.default_rng(seed), np.arange(data.sizes["trial"])
    tenth = pd.qcut(data["duration"].values, 10, labels=False)
    for here in pd.DataFrame({"c": data["choice"].values, "t": tenth}).groupby(
        ["c", "t"]
    ).indices.values():  # fmt: skip
        pick[here] = rng.permutation(here)
    return pick


# %%
def by_drive(table, neurons, fold, k, read=False):
    """Draws of every neuron's own parameters outside fold k; elpd of each neuron and trial in it.

    To read choices, also log p(counts | choice) of each trial in it for both. A gain begins on the
    side that the neuron prefers.
    """
    model = Listening(Known(table, STEP), KNOTS)
    bounds = [join(model, study(rows), unit="of") for rows in neurons]
    joint = stack([b.posterior for b in bounds])
    size, trials = joint.mask.shape[1], [b.unit_names for b in bounds]
    inside = np.zeros((len(neurons), size), bool)
    for i, names in enumerate(trials):
        inside[i, : len(names)] = fold[names] == k
    joint = joint.with_mask(joint.mask * ~torch.as_tensor(inside))
    start = torch.stack([b.start for b in bounds])
    own = bounds[0].pooled
    gain = sum(own.sizes[: [site.name for site in own.sites].index("gain")])
    start[:, gain] = torch.tensor([0.5 * prefers(rows) for rows in neurons])
    found = importance_draws(
        joint, best_modes(joint, start[None]), DRAWS, torch.Generator().manual_seed(0)
    )
    scores = {"elpd": torch.logsumexp(found.log_w[..., None] + found.by_unit, 1)}
    few = found.resample(FEW, torch.Generator().manual_seed(1))
    for name, right in (("right", 1.0), ("left", 0.0)) if read else ():
        choice = torch.full_like(joint.trials["choice"], right)
        other = replace(joint, trials=joint.trials | {"choice": choice})
        scores[name] = torch.logsumexp(other.draws_terms(few)[1], 1) - math.log(FEW)
    frames = []
    for i, names in enumerate(trials):
        here = inside[i, : len(names)]
        own = {what: value[i, : len(names)][here].numpy() for what, value in scores.items()}
        frames.append(pd.DataFrame({"neuron": i, "trial": names[here], **own}))
    return pd.concat(frames), found, joint


def prefers(rows):
    """1 or -1: the side of the choices before which a neuron fires more."""
    rate = rows.groupby("choice")["count"].mean()
    return float(np.sign(rate[1.0] - rate[0.0]))


def from_spikes(model, read_out, data, neurons, some):
    """An accumulator by the spikes of some trials, all neurons together; did it converge?

    What a choice says of the path hangs on its bias and lapses, which are the choices' own. It is
    the mode: with eight parameters a neuron, importance weights would not hold.
    """
    own = copy.deepcopy(model)
    for name in ("bias", "lapse"):
        own.get_parameter(name).requires_grad_(False).data.fill_(float(read_out[name].mean()))
    rows = pd.concat([r.assign(neuron=i) for i, r in enumerate(neurons)], ignore_index=True)
    drive = Heard(own, shown(data), 2 * STEP)
    whole = Listening(drive, KNOTS, len(neurons))
    whole.gain.data = torch.tensor([0.5 * prefers(r) for r in neurons])
    whole.base.data = torch.tensor([r["count"].mean() / BIN for r in neurons])
    bound = join(whole, study(rows[some[rows["number"]]]), unit="of")
    found = minimise(lambda u: -bound.posterior.log_prob(u), bound.start[None], tolerance=1e-2)
    values = bound.pooled.constrain(found.u)
    drawn = {n.removeprefix("drive.clicks."): v for n, v in values.items() if "clicks" in n}
    drawn |= {n: read_out[n].mean()[None] for n in ("bias", "lapse")}
    return drawn, bool(found.converged(1e-2).all())


def choices_by(model, draws, data, fold, k):
    """Log p of held-out choices where an accumulator is given; bias and lapses are learned."""
    own = copy.deepcopy(model)
    kept = {n: v[None, ::4] for n, v in draws.items() if n not in ("bias", "lapse")}
    for name in kept:
        own.get_parameter(name).requires_grad_(False)
    bound = join(own, data[[*Clicks.requires, "choice"]])
    elpd, _ = carry(kept, [bound.posterior], torch.as_tensor(fold)[None], draws=60)
    return (torch.logsumexp(elpd, 0)[0] - math.log(len(elpd))).numpy()[fold == k]


def chances(model, draws, data):
    """P(right) of every trial, the mean over draws."""
    own, total = copy.deepcopy(model).double(), 0.0
    with torch.no_grad():
        for i in range(len(draws["bias"])):
            for name, value in draws.items():
                own.get_parameter(name).data.copy_(value[i])
            total = total + own(shown(data)).probs
    return (total / len(draws["bias"])).numpy()


def prior_draws(model):
    """Of an accumulator's parameters, by name."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pooled = Pooled(sites(copy.deepcopy(model).double()))
        return pooled.constrain(pooled.draw_prior(FEW))


def one_fold(data, neurons, fold, k, rat):
    """Scores of one fold: of spikes by neuron and trial, of choices by trial; parameters."""
    some, out = fold != k, fold == k
    right, models = data["choice"].values[out] == 1, rats()
    simulated = rat != "rat"
    spikes, choices, found, modes = {}, {}, {}, {}
    for name in models if not simulated else ("adapts", STOPS):
        own, modes[name] = from_choices(models[name], data, some)
        found[name, "choices"] = own
        p = chances(models[name], own, data)[out]
        choices[name, "choices"] = np.log(np.where(right, p, 1 - p))
        spikes[name, "choices"] = drive(models[name], modes[name], data)
    table, read_out = spikes["adapts", "choices"], found["adapts", "choices"]
    spikes |= {
        ("no drive", ""): torch.zeros_like(table),
        ("the choice alone", "choices"): mean_of_choice(table, data, some),
        ("the clicks alone", "choices"): drive(models["adapts"], alone(modes["adapts"]), data),
    }
    p = np.full(len(right), data["choice"].values[some].mean())
    choices["no stimulus", ""] = np.log(np.where(right, p, 1 - p))
    for name in ("adapts", STOPS):
        own, sure = from_spikes(models[name], read_out, data, neurons, some)
        found[name, "spikes"] = own | {"converged": torch.tensor([float(sure)])}
        spikes[name, "spikes"] = drive(models[name], own, data)
        choices[name, "spikes"] = choices_by(models[name], own, data, fold, k)
    if not simulated:
        spikes["adapts, of another trial", "choices"] = table[another(data, k)]
        mixed = [r.assign(count=swapped(r, data, k)) for r in neurons]
        own, _ = from_spikes(models["adapts"], read_out, data, mixed, some)
        choices["adapts", "spikes of other trials"] = choices_by(
            models["adapts"], own, data, fold, k
        )
        guess = prior_draws(models["adapts"])
        choices["adapts", "prior"] = choices_by(models["adapts"], guess, data, fold, k)
    scored = []
    p = chances(models["adapts"], found["adapts", "choices"], data)[out]
    for key, table in spikes.items():
        read = key in (("adapts", "choices"), ("the choice alone", "choices"))
        rows, draws, _ = by_drive(table, neurons, fold, k, read)
        if read:  # the choice of a trial, by its spikes and its clicks
            odds = (rows["right"] - rows["left"]).groupby(rows["trial"]).sum()
            odds = odds.reindex(np.flatnonzero(out)).to_numpy() + np.log(p / (1 - p))
            read_by = -np.logaddexp(0, np.where(right, -odds, odds))
            choices[key[0], "spikes of the trial"] = read_by
        each = rows[["neuron", "trial", "elpd"]].assign(drive=key[0], source=key[1])
        scored.append(each.assign(k_hat=float(draws.k_hat.max())))
        print(rat, k, *key, round(rows["elpd"].sum(), 1), flush=True)
    frame = pd.concat([
        pd.DataFrame({"accumulator": a, "source": b, "trial": np.flatnonzero(out), "elpd": e})
        for (a, b), e in choices.items()
    ])  # fmt: skip
    means = [
        {"accumulator": a, "source": b, "parameter": n, "mean": float(v.mean()),
         "sd": float(v.std(correction=0))}
        for (a, b), own in found.items() for n, v in own.items()
    ]  # fmt: skip
    return {"spikes": pd.concat(scored), "choices": frame, "parameters": pd.DataFrame(means)}


def swapped(rows, data, seed):
    """Counts of trials of the same choice and nearly the same duration, permuted (few stay)."""
    wide = rows.pivot(index="number", columns="when", values="count")
    rng = np.random.default_rng(seed)
    order = data["duration"].values[wide.index]
    choice = data["choice"].values[wide.index]
    given = wide.copy()
    for c in (0, 1):
        here = np.flatnonzero(choice == c)
        here = here[np.argsort(order[here])]
        for some in np.array_split(here, max(1, len(here) // 20)):
            given.iloc[some] = wide.iloc[rng.permutation(some)].to_numpy()
    back = given.stack(future_stack=True)
    found = back.reindex(pd.MultiIndex.from_frame(rows[["number", "when"]])).to_numpy()
    # the other trial may have ended before: what this one had is kept there
    return np.where(np.isnan(found), rows["count"], found)


# %%
def simulate(data, neurons, fold, law, seed):
    """The choices and spikes of a rat of these parameters whose neurons follow its accumulator."""
    everything = np.ones(len(fold), bool)
    mode = from_choices(rats()["adapts"], data, everything)[1]
    model = Clicks(law, leaks=False).double()
    for name, value in mode.items():
        model.get_parameter(name).data.copy_(value[0])
    _, found, joint = by_drive(drive(rats()["adapts"], mode, data), neurons, fold, -1)
    own = joint.parameters.constrain(found.resample(200, torch.Generator().manual_seed(2)))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        now = torch.minimum(TIME, shown(data)["duration"][:, None])
        mean, variance = model.accumulated(shown(data), now)
        # without a leak paths only add up, from the noise of the pair of clicks at 0
        added = torch.cat([variance[:, :1], variance.diff(dim=1).clamp_min(0.0)], 1)
        noise = torch.randn(added.shape, generator=g, dtype=added.dtype)
        path = mean + (added.sqrt() * noise).cumsum(1)
        if law is not None:
            u = torch.rand(len(path), generator=g, dtype=path.dtype)
            stop = torch.exp(law.loc + law.scale * torch.logit(u))[:, None]
            last = (TIME <= stop).sum(1, keepdim=True) - 1
            path = path.gather(1, torch.minimum(last, torch.arange(len(TIME))))
        lapse, coin = torch.rand(2, len(path), generator=g)
        right = torch.where(lapse < model.lapse, coin < 0.5, path[:, -1] + model.bias > 0)
        data = data.assign(choice=("trial", right.double().numpy()))
        made = []
        for i, rows in enumerate(neurons):
            neuron = Listening(Known(path[..., None].expand(-1, -1, 2), STEP), KNOTS).double()
            for name in ("base", "gain", "course", "latency"):
                neuron.get_parameter(name).data.copy_(own[name][i].mean(0))
            rows = rows.assign(choice=data["choice"].values[rows["number"]])
            columns = {n: torch.tensor(rows[n].to_numpy(float)) for n in Listening.requires}
            count = torch.poisson(neuron(columns).rate, generator=g)
            made.append(rows.assign(count=count.numpy()))
    return data, made


RATS = {"rat": None, "listens to the end": None,
        "stops listening": nd.laws.Logistic(math.log(0.35), 0.3)}  # fmt: skip


@on_one_thread
def run():
    """Every fold of the rat and of the simulated ones; what is there is not made again."""
    RUNS.mkdir(parents=True, exist_ok=True)
    data, neurons, fold = load()
    for rat, law in RATS.items():
        own = (data, neurons) if rat == "rat" else simulate(data, neurons, fold, law, 3)
        for k in range(FOLDS):
            names = {n: RUNS / f"{rat}-{k}-{n}.csv" for n in ("choices", "parameters", "spikes")}
            if names["spikes"].exists():
                continue
            for name, table in one_fold(*own, fold, k, rat).items():
                table.assign(rat=rat, fold=k).to_csv(names[name], index=False)
    tuning(data, neurons, fold).to_csv(RESULTS / "23_tuning.csv", index=False, float_format="%.4g")
    summed()


def tuning(data, neurons, fold, cells=8):
    """Spikes/s of each neuron, beyond its own course, by what has accumulated a latency before."""
    mode = from_choices(rats()["adapts"], data, np.ones(len(fold), bool))[1]
    table = drive(rats()["adapts"], mode, data)
    _, found, joint = by_drive(table, neurons, fold, -1)
    own, out = joint.parameters.constrain(found.resample(200, torch.Generator().manual_seed(2))), []
    for i, rows in enumerate(neurons):
        model = Listening(Known(table, STEP), KNOTS).double()
        for name in ("base", "gain", "course", "latency"):
            model.get_parameter(name).data.copy_(own[name][i].mean(0))
        columns = {n: torch.tensor(rows[n].to_numpy(float)) for n in Listening.requires}
        with torch.no_grad():
            whole = model(columns).rate.numpy() / BIN
            gain = model.gain.clone()
            model.gain.zero_()
            bare = model(columns).rate.numpy() / BIN
        heard = (whole - bare) / float(gain)
        frame = pd.DataFrame({"heard": heard, "seen": rows["count"] / BIN - bare,
                              "fitted": whole - bare})  # fmt: skip
        part = frame.groupby(pd.qcut(heard, cells, labels=False, duplicates="drop"))
        mean = part.mean().assign(se=part["seen"].std() / part["seen"].count() ** 0.5)
        latency = float(own["latency"][i].mean())
        out.append(mean.assign(neuron=i, gain=float(gain), latency=latency))
    return pd.concat(out)


def weighed(clicks, both, fold):
    """Log p of choices where what spikes add to the log odds counts τ, learned in other folds.

    Counts share noise that the rates do not have: taken as independent they are too sure. (The
    drives of those folds had seen this one's trials; τ is one number.)
    """
    c, d = (x - np.log(-np.expm1(x)) for x in (clicks.clip(upper=-1e-12), both.clip(upper=-1e-12)))
    d, out = (d - c).to_numpy(), np.empty(len(c))
    for k in np.unique(fold):
        some = fold != k

        def lost(tau, some=some):
            return np.logaddexp(0, -(c.to_numpy() + tau * d)[some]).sum()

        tau = minimize_scalar(lost, bounds=(0.0, 2.0), method="bounded").x
        out[~some] = -np.logaddexp(0, -(c.to_numpy() + tau * d)[~some])
    return out


def summed():
    """Sums over trials, and differences to the accumulator of choices, paired over trials."""
    for name, keys in (("spikes", ["drive", "source"]), ("choices", ["accumulator", "source"])):
        whole = pd.concat([pd.read_csv(p) for p in sorted(RUNS.glob(f"*-{name}.csv"))])
        whole["source"] = whole["source"].fillna("")
        out = []
        for rat, mine in whole.groupby("rat"):
            wide = mine.pivot_table(index="trial", columns=keys, values="elpd", aggfunc="sum")
            if name == "choices":
                fold = mine.groupby("trial")["fold"].first().to_numpy()
                for model in ("adapts", "the choice alone"):
                    clicks, both = wide["adapts", "choices"], wide[model, "spikes of the trial"]
                    wide[model, "spikes, weighed"] = weighed(clicks, both, fold)
            for key in wide:
                off = wide[key] - wide["adapts", "choices"]
                row = {"rat": rat} | dict(zip(keys, key, strict=True))
                row |= {"elpd": wide[key].sum(), "difference": off.sum()}
                row |= {"se": off.std() * len(off) ** 0.5, "trials": len(off)}
                out.append(row)
                if name == "spikes":
                    some = mine[(mine[keys] == list(key)).all(axis=1)]
                    out[-1]["k_hat"] = some["k_hat"].max()
        pd.DataFrame(out).to_csv(RESULTS / f"23_{name}.csv", index=False, float_format="%.4g")
    whole = pd.concat([pd.read_csv(p) for p in sorted(RUNS.glob("*-parameters.csv"))])
    mean = whole.groupby(["rat", "accumulator", "source", "parameter"])[["mean", "sd"]].mean()
    mean.to_csv(RESULTS / "23_parameters.csv", float_format="%.4g")


# %%
COLOURS = dict(zip(RATS, ("black", panels.BLUE, panels.ORANGE), strict=True))
SPIKES = {
    ("adapts", "spikes"): "same, learned from spikes",
    (STOPS, "choices"): "stops listening (from choices)",
    (STOPS, "spikes"): "stops listening (from spikes)",
    ("counts", "choices"): "counts clicks",
    ("adapts and leaks", "choices"): "adapts and leaks",
    ("the choice alone", "choices"): "the choice alone",
    ("adapts, of another trial", "choices"): "another trial of the choice",
    ("the clicks alone", "choices"): "the clicks alone",
}
CHOICES = {
    ("adapts", "spikes, weighed"): "read with the trial's spikes",
    ("the choice alone", "spikes, weighed"): "same, as choice alone",
    (STOPS, "choices"): "stops listening (from choices)",
    ("adapts", "spikes"): "adapts (from spikes)",
    (STOPS, "spikes"): "stops listening (from spikes)",
    ("adapts", "spikes of other trials"): "adapts (spikes permuted)",
    ("adapts", "prior"): "adapts (prior)",
}


def figure():
    """Two neurons; held-out spikes and held-out choices beside the accumulator of choices."""
    plt.style.use(nd.plot.STYLE)
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.6), layout="constrained",
                             width_ratios=(0.8, 1, 1))  # fmt: skip
    table = pd.read_csv(RESULTS / "23_tuning.csv")
    strong = table.groupby("neuron")["fitted"].agg(np.ptp).nlargest(3).index
    for neuron, colour, mark in zip(strong, (panels.BLUE, panels.ORANGE, panels.GREEN), "osD",
                                    strict=True):  # fmt: skip
        own = table[table["neuron"] == neuron]
        axes[0].errorbar(own["heard"], own["seen"], own["se"], fmt=mark, ms=3, lw=0.8, color=colour)
        axes[0].plot(own["heard"], own["fitted"], lw=0.8, color=colour, label=f"unit {neuron + 1}")
    axes[0].set(xlabel="heard a latency before (clicks)", ylabel="spikes/s beyond its own")
    axes[0].legend(frameon=False, fontsize=6)
    for ax, name, rows in ((axes[1], "spikes", SPIKES), (axes[2], "choices", CHOICES)):
        found = pd.read_csv(RESULTS / f"23_{name}.csv").fillna({"source": ""})
        key = [c for c in found if c in ("drive", "accumulator")] + ["source"]
        for j, (rat, colour) in enumerate(COLOURS.items()):
            own = found[found["rat"] == rat].set_index(key).reindex(list(rows))
            y = np.arange(len(rows))[::-1] + 0.22 * (1 - j)
            label = {"rat": "rat", "stops listening": "simulated, stops"}.get(rat, "simulated")
            ax.errorbar(own["difference"], y, xerr=2 * own["se"], fmt="osD"[j], ms=2.5, lw=0.7,
                        color=colour, label=label)  # fmt: skip
        ax.axvline(0, lw=0.6, color="grey")
        ax.set_yticks(np.arange(len(rows))[::-1], list(rows.values()), fontsize=6)
        ax.set_xlabel(f"held-out {name}: nats over\nadapts, choices (± 2 SE)")
    axes[1].legend(frameon=False, fontsize=5, loc="center left", bbox_to_anchor=(0, 0.52))
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"23_neurons_and_clicks.{kind}", dpi=300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What neurons hear of the clicks")
    parser.add_argument("--fit", action="store_true", help="fit anew (half an hour)")
    if parser.parse_args().fit:
        run()
    figure()
