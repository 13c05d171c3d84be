# %% [markdown]
# # People recognising objects in noise reject the step; networks need two to three nats more
#
# Five people and three networks, 16 alternatives, eight noise levels (Geirhos et al. 2018).
# Internal noise is free throughout; logsnr is nominal, or corrected for the clipping of pixels at
# the two highest levels. Hypotheses are compared by leaving each person out of the population.
#
#     python analyses/02_people_under_noise.py [--fit] [--workers 2]
#
# Without `--fit` the figure is made from `results/02_*`, which the fits left.

# %%
import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.func import functional_call

import neurodiff as nd
from neurodiff.inference.confusion import confusion
from neurodiff.inference.fit import modes_of
from neurodiff.inference.hypotheses import build, plan
from neurodiff.inference.join import join
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.study import study
from neurodiff.inference.tasks import task_of
from neurodiff.perception.frontend import InternalNoise

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
NAMED = ("sigmoid", "flow-matching", "edm-monotonic", "indi", "deadline", "step")
LAWS = ("logistic", "normal", "gumbel-max", "gumbel-min", "exponential")


# %%
def observers(kind, mapping):
    """Trials of people or networks, in the nominal or the clip-corrected logsnr."""
    data = nd.load("geirhos2018-degraded-objects/noise")
    data = data.isel(trial=data["observer_kind"].values == kind)
    if mapping == "clipped":
        data = data.assign(logsnr=data["logsnr_clipped"])
    return data.assign_attrs(name=f"noise, {mapping}")


def one(data, name):
    """A single observer."""
    return data.isel(trial=data["subject"].values == name).assign_attrs(
        name=f"{data.attrs['name']}, {name}"
    )


def logistic():
    law = nd.SurvivalWeighting(nd.laws.Logistic())
    return nd.Threshold(law, nd.observers.Choice(choices=16), InternalNoise())


def thresholds(mapping):
    """Where each observer's law has its middle, and networks less people, in nats of logsnr."""
    rows, draws = [], {}
    for kind in ("human", "network"):
        data = observers(kind, mapping)
        for name in np.unique(data["subject"].values):
            fit = nd.fit(logistic(), one(data, name), nd.Laplace(draws=2000), seed=0)
            loc = fit["posterior"]["weighting.law.loc"].values.ravel()
            draws.setdefault(kind, []).append(loc)
            k_hat = float(fit["sample_stats"]["k_hat"])
            rows.append([mapping, kind, name, *np.quantile(loc, [0.05, 0.5, 0.95]), k_hat])
    apart = np.mean(draws["network"], 0) - np.mean(draws["human"], 0)
    rows.append([mapping, "difference", "networks - people"])
    rows[-1] += [*np.quantile(apart, [0.05, 0.5, 0.95]), np.nan]
    return rows


@on_one_thread
def over_images(mapping, replicates=500):
    """Networks less people again, with the image as the unit: the networks all saw the same.

    Every observer is fitted to each bootstrap sample of images, all samples in one batch.
    """
    both = {kind: observers(kind, mapping) for kind in ("human", "network")}
    images = np.unique(np.concatenate([data["image"].values for data in both.values()]))
    n = len(images)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), replicates)
    means = {}
    for kind, data in both.items():
        found = []
        for name in np.unique(data["subject"].values):
            bound = join(logistic(), one(data, name), unit="image")
            shown = counts[:, np.searchsorted(images, bound.unit_names)]
            full = modes_of(bound, 4, 0)
            inverse = (full.factor @ full.factor.mT).expand(replicates, -1, -1)
            samples = bound.posterior.with_mask(torch.as_tensor(shown, dtype=torch.float64))
            modes = find_modes(samples, full.u.expand(replicates, -1), inverse)
            found.append(bound.pooled.constrain(modes.u)["weighting.law.loc"].numpy())
        means[kind] = np.mean(found, 0)
    apart = means["network"] - means["human"]
    quantiles = np.quantile(apart, [0.05, 0.5, 0.95])
    return [mapping, "difference", "networks - people, by image", *quantiles, np.nan]


def predictive(data, fit):
    """Posterior predictive χ² over levels, and the median width of the 90 % band of accuracy."""
    answered = data.isel(trial=~np.isnan(data["correct"].values))
    level, index = np.unique(answered["logsnr"].values, return_inverse=True)
    n = np.bincount(index)
    right = np.bincount(index, answered["correct"].values)
    model, names = logistic().double(), dict(logistic().named_parameters())
    draws = {
        k: torch.as_tensor(fit["posterior"][k].values.ravel())
        for k in names
        if k in fit["posterior"]
    }
    trials = {"logsnr": torch.as_tensor(level)}
    p = torch.vmap(lambda one: functional_call(model, one, (trials,)).probs)(draws).detach().numpy()
    replicas = np.random.default_rng(0).binomial(n, p)
    expected, variance = n * p.mean(0), n * p.mean(0) * (1 - p.mean(0))

    def chi2(k):
        return ((k - expected) ** 2 / variance).sum(-1)

    band = np.ptp(np.quantile(replicas / n, [0.05, 0.95], axis=0), axis=0)
    return chi2(right), (chi2(replicas) >= chi2(right)).mean(), float(np.median(band))


def checks(mapping):
    """Posterior predictive check of each person under the logistic law."""
    data, rows = observers("human", mapping), []
    for name in np.unique(data["subject"].values):
        person = one(data, name)
        fit = nd.fit(logistic(), person, nd.Laplace(draws=2000), seed=0)
        rows.append([mapping, name, *predictive(person, fit)])
    return rows


def power(sets=40):
    """What five such people could have shown: the same people simulated under each hypothesis.

    The truths are the hypotheses as fitted to each person; of the log evidence of all five, the
    lead of the truth over each rival, and how often it is above 4 nats.
    """
    data = observers("human", "nominal")
    rows = [r for r in plan(task_of(data), ("internal-noise",), NAMED, LAWS) if r.kind != "control"]
    total = 0.0
    for name in np.unique(data["subject"].values):
        person, models = one(data, name), {}
        for row in rows:
            model = build(row, task_of(data), person)
            bound = join(model, person)
            found = bound.pooled.constrain(modes_of(bound, 3, 0).u[0])
            for key, value in found.items():
                model.get_parameter(key).data.copy_(value)
            models[f"{row.name}, {row.gauge}"] = model
        table = confusion(models, person, sets=sets, seed=0)
        total = total + table.set_index(["truth", "hypothesis", "set"])["log_evidence"]
    own = total[[t == h for t, h, _ in total.index]].droplevel("hypothesis")
    lead = own.reindex(total.index.droplevel("hypothesis")).to_numpy() - total
    each = lead.groupby(["truth", "hypothesis"], sort=False)
    found = pd.DataFrame({
        "lead": each.mean(), "sd": each.std(), "share_above_4": each.apply(lambda v: (v > 4).mean())
    }).reset_index()  # fmt: skip
    return found[found["truth"] != found["hypothesis"]]


@on_one_thread
def run_power():
    power().to_csv(RESULTS / "02_power.csv", index=False, float_format="%.3g")


def run(workers):
    """All fits; leaves the tables."""
    run_power()
    people = [observers("human", mapping) for mapping in ("nominal", "clipped")]
    each = [one(people[0], name) for name in np.unique(people[0]["subject"].values)]
    task = task_of(people[0])
    rows = plan(task, ("internal-noise",), NAMED, LAWS)
    runs = Path("runs")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:

        def fitted(parts, name, **by):
            out = runs / name
            return study(parts, rows, task, out, executor=pool, resume=out.exists(), **by)

        single = fitted(each, "02-each-person")
        single.to_csv(RESULTS / "02_each_person.csv", index=False, float_format="%.4g")
        joint = fitted(people, "02-people", by="subject")
        joint.to_csv(RESULTS / "02_people.csv", index=False, float_format="%.4g")
    columns = ["mapping", "kind", "observer", "q05", "median", "q95", "k_hat"]
    places = [row for m in ("nominal", "clipped") for row in thresholds(m)]
    places += [over_images(m) for m in ("nominal", "clipped")]
    pd.DataFrame(places, columns=columns).to_csv(
        RESULTS / "02_thresholds.csv", index=False, float_format="%.4g"
    )
    columns = ["mapping", "person", "chi2", "p", "median_band_width"]
    checked = [row for m in ("nominal", "clipped") for row in checks(m)]
    pd.DataFrame(checked, columns=columns).to_csv(
        RESULTS / "02_predictive.csv", index=False, float_format="%.4g"
    )


# %%
def figure():
    """Hypotheses by leave-one-person-out, and where people and networks stop."""
    table = pd.read_csv(RESULTS / "02_people.csv")
    nominal = pd.DataFrame(table[table["data"] == "noise, nominal"])
    ax = nd.plot.comparison(nominal)
    save(ax.figure, "02_people_comparison")
    places = pd.read_csv(RESULTS / "02_thresholds.csv")
    places = places[(places["mapping"] == "nominal") & (places["kind"] != "difference")]
    with plt.style.context(nd.plot.STYLE):
        figure, ax = plt.subplots(figsize=(3.4, 2.4), layout="constrained")
        y = np.arange(len(places))[::-1]
        for kind, colour, marker in (("human", "#0072B2", "o"), ("network", "#D55E00", "s")):
            own = (places["kind"] == kind).values
            middle = places["median"].values[own]
            sides = np.abs(places[["q05", "q95"]].values[own] - middle[:, None]).T
            style = {"color": colour, "fmt": marker, "ms": 4, "label": f"{kind}s, 90 % interval"}
            ax.errorbar(middle, y[own], xerr=sides, **style)
        ax.set_yticks(y, places["observer"])
        ax.set_xlabel("middle of the stopping law, log SNR (nat)")
        ax.legend(frameon=False, loc="upper right")
        save(figure, "02_people_and_networks")


def save(figure, name):
    for kind in ("png", "pdf"):
        figure.savefig(FIGURES / f"{name}.{kind}", dpi=300)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Which weighting do people use in noise?")
    parser.add_argument("--fit", action="store_true", help="fit again (about ten minutes)")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    FIGURES.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    if options.fit:
        run(options.workers)
    figure()
    for path in sorted(RESULTS.glob("02_*.csv")):
        print(path.stem, pd.read_csv(path).to_string(), sep="\n")
