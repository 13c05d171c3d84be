# %% [markdown]
# # What choices and reaction times say of the spikes on the same trials, and the spikes of them
#
# 54 LIP neurons. A bounded accumulator is fitted to the choices and times of training trials; what
# it believes while it goes on, E[D_t | T > t, choice, c], is held against the spikes of held-out
# trials, beside rivals. Then an accumulator is fitted to spikes alone, and is held against choices
# and times. Each is scored on its own data.
#
#     python analyses/04_spikes_beside_choices.py [--fit]
#
# Without `--fit` the figure and the tables are made from `results/04_*`, which the fits left.

# %%
import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch.distributions import LogNormal, Normal

import neurodiff as nd
from neurodiff.data.choice_rt import choice_rt
from neurodiff.data.peri_stimulus import peri_stimulus
from neurodiff.inference.fit import modes_of
from neurodiff.inference.importance import importance_draws
from neurodiff.inference.join import join
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.priors import Pooled, sites
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.bounds import Weibull
from neurodiff.perception.drifts import Power
from neurodiff.perception.driven import (
    Accumulated,
    Driven,
    Tabulated,
    Unstopped,
    belief,
    evidence_log_odds,
    position,
    survivors_mean,
)

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "04-spikes"
FOLDS, DRAWS, WIDTH = 5, 200, 0.05
KNOTS = torch.tensor([0.2, 0.3, 0.45, 0.7, 1.1], dtype=torch.float64)
ANIMALS = ("b", "n")


# %%
def load():
    """The trials, and the fold of each: a fifth of every neuron's."""
    data = choice_rt(nd.load("roitman2002-lip-spikes"))
    rng, fold = np.random.default_rng(0), np.empty(data.sizes["trial"], int)
    for i, unit in enumerate(np.unique(data["unit"])):
        here = np.flatnonzero(data["unit"].values == unit)
        fold[rng.permutation(here)] = (np.arange(len(here)) + i) % FOLDS
    return data, fold


def permuted(data, within=("unit", "coherence", "choice")):
    """Spikes of another trial of the same neuron, coherence and choice (or of what is named)."""
    rng, pick = np.random.default_rng(1), np.arange(data.sizes["trial"])
    keys = pd.DataFrame({k: data[k].values for k in within})
    for here in keys.groupby(list(keys)).indices.values():
        pick[here] = rng.permutation(here)
    return data.assign(count=(("trial", "time"), data["count"].values[pick]))


def accumulator(**values):
    """The bounded accumulator of choices and times."""
    bound = Weibull(1.15, 0.46, 4.0, 0.39)
    more = {"start": 0.0, "delay": 0.25, "jitter": 0.03, "lapse": 0.003}
    return Bounded(Power(10.0, exponent=0.9), bound, horizon=2.0, **(more | values))


def behaviour(data, fold):
    """The accumulator of each animal, fitted to the trials outside each fold (-1: to all)."""
    for animal in ANIMALS:
        for k in (-1, *range(FOLDS)):
            path = RUNS / f"behaviour-{animal}-{k}.nc"
            if path.exists():
                continue
            keep = (data["subject"].values == animal) & (fold != k)
            one = data[["strength", "signed_rt", "choice_known"]].isel(trial=keep)
            fit = nd.fit(accumulator(), one, nd.Laplace(draws=200, starts=1), seed=0)
            out = {n: v for n, v in fit["posterior"].data_vars.items() if v.ndim == 2}
            xr.Dataset(out).squeeze("chain").to_netcdf(path, engine="h5netcdf")


def fitted(animal, k):
    """Posterior draws of an animal's accumulator without fold k."""
    return xr.load_dataset(RUNS / f"behaviour-{animal}-{k}.nc", engine="h5netcdf")


# %%
class Sums:
    """Counts and seconds [fold, neuron, row] of an animal on one grid of strengths and times."""

    def __init__(self, data, fold):
        parts = [peri_stimulus(data.isel(trial=fold == k), WIDTH) for k in range(FOLDS)]
        frames = [p.to_dataframe().assign(fold=k) for k, p in enumerate(parts)]
        frame = pd.concat(frames, ignore_index=True).round({"when": 6})
        keys = ["coherence", "choice", "when"]
        self.rows = frame[keys].drop_duplicates().sort_values(keys).reset_index(drop=True)
        self.units = np.unique(frame["unit"])
        row = (
            self.rows.reset_index()
            .set_index(keys)["index"]
            .loc[list(frame[keys].itertuples(index=False, name=None))]
        )
        at = frame["fold"], np.searchsorted(self.units, frame["unit"]), row.to_numpy()
        self.count = np.zeros((FOLDS, len(self.units), len(self.rows)))
        self.seconds = np.zeros_like(self.count)
        self.count[at], self.seconds[at] = frame["count"], frame["exposure"]

    def split(self, k):
        """Counts and seconds outside fold k, and in it."""
        out = np.arange(FOLDS) != k
        inside = (np.zeros_like(self.count[0]),) * 2 if k < 0 else (self.count[k], self.seconds[k])
        return self.count[out].sum(0), self.seconds[out].sum(0), *inside

    def dataset(self):
        """The grid as a study with nothing observed yet."""
        columns = {n: ("trial", self.rows[n].to_numpy(float)) for n in self.rows}
        nothing = np.zeros(len(self.rows))
        return xr.Dataset(
            columns | {"count": ("trial", nothing), "exposure": ("trial", 1 + nothing)}
        )


def strengths_of(data):
    return torch.as_tensor(np.unique(data["strength"].values))


def speeds(p, strengths):
    return float(p["drift.gain"]) * strengths.sign() * strengths.abs() ** float(p["drift.exponent"])


def table(p, strengths, reads):
    """E[d(Y_t) | T > t, choice, c] of a fitted accumulator, every 10 ms."""
    shape = [float(p[f"bound.{n}"]) for n in ("height", "tau", "shape", "floor")]
    bound = Weibull(*shape).double().requires_grad_(False)
    time = 0.01 * torch.arange(1, 201, dtype=torch.float64)
    start = float(p["start"]) * shape[0]
    return survivors_mean(speeds(p, strengths), bound, time, start, reads, nodes=48)


def psth(sums, k, strengths):
    """What the animal's neurons do on average beyond their own means: any drive at all.

    Smoothed over neighbouring times and strengths, which is what makes it a ceiling and not noise.
    """
    count, seconds = sums.split(k)[:2]
    mean = count.sum(1, keepdims=True) / seconds.sum(1, keepdims=True)
    beyond, seen = (count - mean * seconds).sum(0), seconds.sum(0)
    c = np.searchsorted(strengths.numpy(), sums.rows["coherence"])
    side, when = 1 - sums.rows["choice"].to_numpy(int), sums.rows["when"].to_numpy()
    out = np.zeros((len(strengths), len(np.arange(0, 1.9, WIDTH / 2)), 2))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for s in (0, 1):
                near = np.exp(-0.5 * ((when - j * WIDTH / 2) / 0.07) ** 2 - 0.5 * (c - i) ** 2)
                near = near * (side == s)
                out[i, j, s] = (near @ beyond) / (near @ seen + 1.0)
    return torch.as_tensor(out / 15)


def drives(data, sums, animal, k):
    """The rivals, as fitted without fold k."""
    c = strengths_of(data)
    p, other = fitted(animal, k).mean(), fitted("bn".replace(animal, ""), k).mean()
    early = KNOTS - 0.15

    def read(p, reads):
        latency = float(np.clip(p["delay"] - 0.05, 0.1, 0.25))
        return Tabulated(table(p, c, reads), c, 0.01, latency)

    return {
        "none": None,
        "choice": Tabulated(torch.tensor([0.5, -0.5]).expand(len(c), 9, 2), c, 0.25, None),
        "unstopped belief": Unstopped(speeds(p, c), early),
        "log odds": read(p, evidence_log_odds),
        "evidence": read(p, position),
        "belief": read(p, belief),
        "belief, other animal": read(other, belief),
        "any drive": Tabulated(psth(sums, k, c), c, WIDTH / 2, None),
    }


# %%
def alone(model, sums, k, priors=None):
    """Draws of every neuron's parameters outside fold k, under the same priors.

    A neuron is a problem: rates are its responses, and the seconds watched are how often each
    counts.
    """
    bound = join(model, sums.dataset(), priors)
    count, seconds = (torch.as_tensor(x) for x in sums.split(k)[:2])
    rate = count / seconds.clamp_min(1e-9)
    joint = replace(bound.posterior, response=rate, mask=seconds)
    modes = find_modes(joint, bound.start.expand(len(rate), -1))
    return joint, importance_draws(joint, modes, DRAWS, torch.Generator().manual_seed(0))


def population(joint, found):
    """Priors N(μ, τ²) on the unconstrained scale, μ and τ those of the neurons, by EM."""
    prior = torch.vmap(torch.vmap(joint.parameters.log_prior))(found.u)
    log_w, u = found.log_w, found.u
    for _ in range(20):
        w = log_w.softmax(-1)[..., None]
        mu = (w * u).sum(1).mean(0)
        tau = (w * (u - mu) ** 2).sum(1).mean(0).sqrt().clamp_min(0.05)
        normal = (-0.5 * ((u - mu) / tau) ** 2 - tau.log()).sum(-1)
        log_w = found.log_w + normal - prior
    priors = {}
    sizes = joint.parameters.sizes
    for site, m, s in zip(joint.parameters.sites, mu.split(sizes), tau.split(sizes), strict=True):
        kind = LogNormal if isinstance(site.prior, LogNormal) else Normal
        priors[site.name] = kind(m.reshape(site.inner), s.reshape(site.inner))
    return priors


def hierarchy(drive, sums, k, c):
    """Draws of every neuron's parameters outside fold k, under the population that they make up."""
    model = Driven(drive, c, KNOTS)
    return alone(model, sums, k, population(*alone(model, sums, k)))


def held_out(drive, sums, k, c):
    """Log probability of the counts of each neuron in fold k, constants apart; and largest k̂."""
    joint, found = hierarchy(drive, sums, k, c)
    count, seconds = (torch.as_tensor(x) for x in sums.split(k)[2:])

    def each(one, n, x):
        model = joint.parameters.trial_values(one)
        r = torch.func.functional_call(joint.model, model, (joint.trials,)).rate
        return (n * r.log() - x * r).sum()

    with torch.no_grad():
        u = found.resample(DRAWS, torch.Generator().manual_seed(1))
        over = torch.vmap(torch.vmap(each, (0, None, None)), chunk_size=4)
        log_p = over(u, count, seconds)
    return torch.logsumexp(log_p, -1).numpy() - np.log(DRAWS), float(found.k_hat.max())


def spikes_from_behaviour(data, fold, animal):
    """Held-out spikes of every neuron of an animal under every rival."""
    here, out = data["subject"].values == animal, []
    own = data.isel(trial=here)
    for control, source in (("", own), (", permuted", permuted(own))):
        sums = Sums(source, fold[here])
        for k in range(FOLDS):
            for name, drive in drives(data, sums, animal, k).items():
                if control and name not in ("none", "belief"):
                    continue
                elpd, k_hat = held_out(drive, sums, k, strengths_of(data))
                print(animal, k, name + control, round(elpd.sum(), 1), round(k_hat, 2), flush=True)
                for unit, e, n in zip(sums.units, elpd, sums.split(k)[2].sum(1), strict=True):
                    out.append([animal, unit, k, name + control, e, n, k_hat])
    columns = ["subject", "unit", "fold", "drive", "elpd", "spikes", "k_hat"]
    pd.DataFrame(out, columns=columns).to_csv(RUNS / f"spikes-{animal}.csv", index=False)


# %%
def from_spikes(rows, strengths):
    """Draws by name of an accumulator that was fitted to spikes alone, and whether it converged.

    They are normal about the mode: with two parameters a neuron beside the accumulator's eight,
    importance weights do not hold (k̂ above 1).
    """
    neurons, index = np.unique(rows["unit"], return_inverse=True)
    rows = rows.assign(neuron=("trial", index.astype(float)))
    bound = Weibull(1.2, 0.6, 3.0, 0.3)
    drive = Accumulated(Power(10.0, exponent=1.0), bound, strengths, belief, horizon=1.6, steps=64)
    joined = join(Driven(drive, strengths, KNOTS, len(neurons)), rows)
    modes = modes_of(joined, 1, 0)
    noise = torch.randn(100, len(modes.u[0]), generator=torch.Generator().manual_seed(0))
    u = modes.u + noise.double() @ modes.factor[0].mT
    draws = {n: v for n, v in joined.pooled.constrain(u).items() if n.startswith("drive.")}
    return draws, bool(modes.converged) and bool(modes.definite)


def prior_draws(model, n):
    """Draws of a model's parameters from their priors, by name."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pooled = Pooled(sites(model.double()))
        return pooled.constrain(pooled.draw_prior(n))


def choices_and_times(draws, trials):
    """Log mean over draws of p(choice, rt) and of P(choice) of each trial."""
    model = accumulator().double()
    time = 0.02 * torch.arange(1, 100)
    c = trials["strength"].unique()
    grid = {"strength": c.repeat_interleave(2 * len(time))}
    signed = torch.cat([time, -time]).repeat(len(c))
    both = {n: torch.cat([trials[n], grid.get(n, torch.ones_like(signed))]) for n in trials}
    both["signed_rt"] = y = torch.cat([trials["signed_rt"], signed])
    n, joint, upper = len(trials["signed_rt"]), [], []
    with torch.no_grad():
        for i in range(len(draws["delay"])):
            one = {name: value[i] for name, value in draws.items()}
            log_p = torch.func.functional_call(model, one, (both,)).log_prob(y)
            p = log_p[n:].exp().reshape(len(c), 2, -1).sum(-1)
            joint.append(log_p[:n])
            upper.append((p[:, 0] / p.sum(-1))[torch.searchsorted(c, trials["strength"])])
    p, up = torch.stack(joint).exp().mean(0), torch.stack(upper).mean(0)
    chosen = torch.where(trials["signed_rt"] > 0, up, 1 - up)
    return p.log().numpy(), chosen.log().numpy()


def pooled_times(train, test):
    """Log density of signed times where nothing is known but their histogram, kernel 40 ms."""
    z = (test[:, None] - train) / 0.04
    return np.log(np.exp(-0.5 * z * z).mean(1) / (0.04 * np.sqrt(2 * np.pi)))


def behaviour_from_spikes(data, fold, animal, k):
    """Choices and times of fold k under accumulators of the other trials' spikes."""
    here, c = data["subject"].values == animal, strengths_of(data)
    train, test = (data.isel(trial=here & keep) for keep in (fold != k, fold == k))
    trials = {n: torch.as_tensor(test[n].values) for n in ("strength", "signed_rt", "choice_known")}
    own = {n: torch.as_tensor(v.values)[::2] for n, v in fitted(animal, k).items()}
    motor = {n: own[n] for n in ("delay", "jitter", "lapse")}
    prior = prior_draws(accumulator(), 100)
    sources = {"behaviour": own, "prior": prior | motor, "prior, motor too": prior}
    found = [
        [animal, k, "behaviour", n, float(v.mean()), float(v.std()), True] for n, v in own.items()
    ]
    mixed = {"permuted": permuted(train), "shuffled": permuted(train, ("unit",))}
    for name, spikes in {"spikes": train, **mixed}.items():
        draws, sure = from_spikes(peri_stimulus(spikes, 0.1), c)
        draws = {n.removeprefix("drive."): v for n, v in draws.items()}
        found += [
            [animal, k, name, n, float(v.mean()), float(v.std()), sure] for n, v in draws.items()
        ]
        del draws["latency"]
        sources[name] = draws | motor
        if name == "spikes":
            sources["spikes, motor from the prior"] = draws | {n: prior[n] for n in motor}
        print(*found[-10:], sep="\n", flush=True)
    parts = {name: choices_and_times(draws, trials) for name, draws in sources.items()}
    y, past = test["signed_rt"].values, train["signed_rt"].values
    share = np.where(y > 0, (past > 0).mean(), (past < 0).mean())
    parts["histogram"] = pooled_times(past, y), np.log(share)
    scores = []
    for name, (both, choice) in parts.items():
        frame = pd.DataFrame({"unit": test["unit"].values, "joint": both, "choice": choice})
        total = frame.groupby("unit", as_index=False).sum()
        each = frame.groupby("unit").size().to_numpy()
        scores.append(total.assign(subject=animal, source=name, trials=each))
    columns = ["subject", "fold", "source", "parameter", "mean", "sd", "converged"]
    accumulators = pd.DataFrame(found, columns=columns)
    accumulators.to_csv(RUNS / f"accumulators-{animal}-{k}.csv", index=False)
    pd.concat(scores).to_csv(RUNS / f"behaviour-{animal}-{k}.csv", index=False)


# %%
def in_sample(data, fold, animal):
    """Rates observed and predicted by belief, all trials; and what each neuron is like."""
    own = data.isel(trial=data["subject"].values == animal)
    sums, c = Sums(own, fold[data["subject"].values == animal]), strengths_of(data)
    joint, found = hierarchy(drives(data, sums, animal, -1)["belief"], sums, -1, c)
    u = found.resample(DRAWS, torch.Generator().manual_seed(1))

    def rate(one):
        model = joint.parameters.trial_values(one)
        return torch.func.functional_call(joint.model, model, (joint.trials,)).rate

    with torch.no_grad():
        mean = torch.vmap(torch.vmap(rate), chunk_size=4)(u).mean(1).numpy()
    count, seconds = sums.split(-1)[:2]
    total = np.maximum(seconds.sum(0), 1e-9)
    seen = {"seconds": seconds.sum(0), "observed": count.sum(0) / total}
    rates = sums.rows.assign(**seen, predicted=(mean * seconds).sum(0) / total, subject=animal)
    values = joint.parameters.constrain(u)
    columns = {"unit": sums.units, "subject": animal}
    for name in ("base", "gain", "drive.latency"):
        short = name.removeprefix("drive.")
        columns |= {short: values[name].mean(1), f"{short}_sd": values[name].std(1)}
    return rates, pd.DataFrame(columns)


def run():
    """Fit everything and leave the tables."""
    RUNS.mkdir(parents=True, exist_ok=True)
    data, fold = load()
    behaviour(data, fold)
    for animal in ANIMALS:
        if not (RUNS / f"spikes-{animal}.csv").exists():
            spikes_from_behaviour(data, fold, animal)
        for k in range(FOLDS):
            if not (RUNS / f"behaviour-{animal}-{k}.csv").exists():
                behaviour_from_spikes(data, fold, animal, k)
    rates, neurons = zip(*(in_sample(data, fold, animal) for animal in ANIMALS), strict=True)
    keep(pd.concat(rates), "rates")
    keep(pd.concat(neurons), "neurons")
    spikes = pd.concat([pd.read_csv(RUNS / f"spikes-{animal}.csv") for animal in ANIMALS])
    by = ["subject", "drive", "unit"]
    sums = {"elpd": ("elpd", "sum"), "spikes": ("spikes", "sum"), "k_hat": ("k_hat", "max")}
    keep(spikes.groupby(by, sort=False, as_index=False).agg(**sums), "spikes")
    from_all_spikes()


def from_all_spikes():
    """Scores of each neuron's choices and times over all folds, and the accumulators of each."""
    scores, accumulators = (
        pd.concat([pd.read_csv(RUNS / f"{n}-{a}-{k}.csv") for a in ANIMALS for k in range(FOLDS)])
        for n in ("behaviour", "accumulators")
    )
    by = ["subject", "source", "unit"]
    keep(scores.groupby(by, sort=False, as_index=False).sum(), "behaviour")
    keep(accumulators, "accumulators")


def keep(table, name):
    table.to_csv(RESULTS / f"04_{name}.csv", index=False, float_format="%.6g")


# %%
def gaps(table, key, value, reference, count):
    """Paired differences to a reference over neurons, with their standard error, per ``count``."""
    wide = table.pivot(index=["subject", "unit"], columns=key, values=value)
    size = table.groupby(["subject", "unit"])[count].first()
    rows = []
    for subject in (*ANIMALS, "both"):
        own = wide.index.get_level_values("subject").isin(
            ANIMALS if subject == "both" else [subject]
        )
        here = wide[own]
        n = size.loc[here.index].sum()
        for name in here:
            gap = here[name] - here[reference]
            se = gap.std() * len(gap) ** 0.5
            rows.append([subject, name, gap.sum(), se, gap.sum() / n, se / n, len(gap)])
    columns = ["subject", key, "nats", "se", "each", "se_each", "neurons"]
    return pd.DataFrame(rows, columns=columns)


def tables():
    """Spikes per spike against no drive and against belief; choices and times per trial."""
    spikes = pd.read_csv(RESULTS / "04_spikes.csv")
    real = spikes[~spikes["drive"].str.endswith("permuted")]
    found = gaps(real, "drive", "elpd", "none", "spikes")
    against = gaps(real, "drive", "elpd", "belief", "spikes")
    mixed = spikes[spikes["drive"].str.endswith("permuted")]
    mixed = gaps(mixed, "drive", "elpd", "none, permuted", "spikes")
    found = pd.concat([found, mixed[mixed["drive"] != "none, permuted"]])
    behaviour = pd.read_csv(RESULTS / "04_behaviour.csv")
    behaviour["time"] = behaviour["joint"] - behaviour["choice"]
    parts = [
        gaps(behaviour, "source", value, "histogram", "trials").assign(scored=value)
        for value in ("joint", "choice", "time")
    ]
    return found, against, pd.concat(parts)


# %%
COLOURS = ["#88CCEE", "#44AA99", "#117733", "#DDCC77", "#CC6677", "#882255"]
DRIVES = {
    "choice": "choice alone",
    "unstopped belief": "belief, never stopped",
    "log odds": "log odds, stopped",
    "evidence": "evidence, stopped",
    "belief, other animal": "belief, other animal's",
    "any drive": "smoothed PSTH",
}
SOURCES = {
    "prior": "prior",
    "spikes": "spikes",
    "permuted": "spikes permuted",
    "shuffled": "spikes shuffled",
    "behaviour": "behaviour (ceiling)",
}


def figure():
    """Rates with what belief predicts; both cross-predictions."""
    _, spikes, behaviour = tables()
    rates = pd.read_csv(RESULTS / "04_rates.csv")
    with plt.style.context(nd.plot.STYLE):
        fig = plt.figure(figsize=(7.1, 4.3), layout="constrained")
        top, below = fig.subfigures(2, 1)
        axes = top.subplots(1, 2, sharey=True)
        for ax, animal in zip(axes, ANIMALS, strict=True):
            draw_rates(ax, rates[rates["subject"] == animal])
            ax.set_title(f"monkey {animal}", fontsize=7)
        axes[0].set_ylabel("spikes/s, mean over neurons")
        key = "filled, solid: target 1 (in the response field)\nopen, dashed: target 2"
        axes[0].text(0.98, 0.97, key, ha="right", va="top", fontsize=6, transform=axes[0].transAxes)
        legend = {"title": "coherence", "fontsize": 6, "title_fontsize": 6, "handlelength": 1.2}
        axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), **legend)
        axes = below.subplots(1, 3)
        draw_gaps(axes[0], spikes, "drive", DRIVES)
        axes[0].set_xlabel("held-out spikes: 10$^{-3}$ nats/spike\nover belief, stopped (± SE)")
        for ax, scored in zip(axes[1:], ("choice", "time"), strict=True):
            draw_gaps(ax, behaviour[behaviour["scored"] == scored], "source", SOURCES)
            ax.set_xlabel(f"held-out {scored}s: nats/trial\nover a histogram (± SE)")
        axes[2].set_yticklabels([])
        axes[1].legend(title="monkey", loc="upper left", fontsize=6, title_fontsize=6)
        for kind in ("png", "pdf"):
            fig.savefig(FIGURES / f"04_spikes_beside_choices.{kind}", dpi=300)
        plt.close(fig)


def draw_rates(ax, rates):
    """Observed (points) and predicted (lines) rates; towards target 1 solid, away from it open."""
    rates = rates.assign(size=rates["coherence"].abs())
    right = rates[(rates["coherence"] * (rates["choice"] - 0.5) > 0) | (rates["coherence"] == 0)]
    right = right[right["seconds"] > 2.0]
    for colour, (size, part) in zip(COLOURS, right.groupby("size"), strict=True):
        for choice, own in part.groupby("choice"):
            fill = colour if choice else "white"
            ax.plot(own["when"], own["observed"], "o", ms=2, color=colour, mfc=fill, mew=0.5)
            label = f"{100 * size:g} %" if choice else None
            ax.plot(
                own["when"], own["predicted"], "-" if choice else "--", color=colour, label=label
            )
    ax.set_xlabel("time from dots (s)")


def draw_gaps(ax, table, key, names):
    """One row a rival, a mark for each animal."""
    scale = 1e3 if key == "drive" else 1.0
    for at, marker, animal in ((0.12, "o", "b"), (-0.12, "s", "n")):
        own = table[table["subject"] == animal].set_index(key).reindex(list(names))
        y = np.arange(len(names))[::-1] + at
        colour = {"b": "#0072B2", "n": "#D55E00"}[animal]
        x, se = scale * own["each"], scale * own["se_each"]
        ax.errorbar(x, y, xerr=se, fmt=marker, ms=3, color=colour, label=animal, lw=0.7)
    ax.axvline(0, color="0.6", lw=0.6)
    ax.set_yticks(np.arange(len(names))[::-1], list(names.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Spikes and choices of the same trials.")
    parser.add_argument("--fit", action="store_true", help="fit again (two hours)")
    torch.set_default_dtype(torch.float64)
    FIGURES.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    if parser.parse_args().fit:
        run()
    figure()
    for one in tables():
        print(one.to_string(float_format="%.4g"))
