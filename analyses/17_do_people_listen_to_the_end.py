# %% [markdown]
# # Do people listen to the end of the evidence?
#
# Five people saw one to five samples of contrast, every log-likelihood ratio of which is known, and
# chose afterwards. All samples have one SNR, so the place of a sample and the SNR that is reached
# there are one axis, λ = log n + const, and a weighting says who still listens at sample n. Every
# row has the same noise (∝ n^p), the same transducer (square and cube), bias and lapse, for each
# person: to the end (w = 1, the ELBO), any falling w, logistic, sigmoid, flow matching, weights of
# position, a leak, a bound on the evidence, one sample. Leave-one-run-out from posterior draws;
# standard errors over runs. "Stops early" is said only if a law is above w = 1 by more than two of
# them and 4 nats. Beside that stands what these data could have shown: the same rows for people who
# are simulated with their own parameters, and a law under which three in four hear the fifth.
#
#     python analyses/17_do_people_listen_to_the_end.py [--fit]
#
# Without `--fit` the figure is made from `results/17_*`. With it all is fitted, half an hour on a
# core; what was there is gone on from.

# %%
import argparse
import copy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import neurodiff as nd
from neurodiff import panels
from neurodiff.inference.compare import elpd_of
from neurodiff.inference.posterior import on_one_thread
from neurodiff.perception.pulses import (
    Bounded,
    Leaky,
    OneSample,
    Placed,
    Pulses,
    Stops,
    StopsFreely,
)
from neurodiff.perception.stopping import Gauge

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "pulses"
POWER = 0.75  # of the fifth sample, of the simulated law
LAWS = ("any falling w", "logistic", "sigmoid", "flow matching")


# %%
def people():
    """Trials with samples that were not shown as 0, and the run as the block."""
    data = nd.load("waskom2018-contrast-pulses")
    key = zip(data["timing"].values, data["session"].values, data["run"].values, strict=True)
    block = ["-".join(map(str, k)) for k in key]
    return data.assign(pulse_llr=data["pulse_llr"].fillna(0.0)).assign_coords(
        block=("trial", np.array(block))
    )


def hypotheses():
    """Name and what is made of the samples."""
    return {
        "to the end (w = 1)": Stops(),
        "any falling w": StopsFreely(),
        "logistic": Stops(nd.SurvivalWeighting(nd.laws.Logistic())),
        "sigmoid": Stops(Gauge(nd.weighting("sigmoid"))),
        "flow matching": Stops(nd.weighting("flow-matching")),
        "weights of position": Placed(),
        "leak": Leaky(),
        "bound on the evidence": Bounded(),
        "one sample": OneSample(),
    }


def simulated(data, seed):
    """The people again, with their own parameters, of whom POWER hear the fifth sample."""
    # logistic in log n, of scale ½: w(5) = POWER of w(1) at this place
    grid = torch.linspace(-1.0, 8.0, 9001)
    place = torch.tensor([0.0, np.log(5.0)])[:, None]
    w = torch.sigmoid((grid - place) / 0.5)
    loc = grid[(w[1] / w[0] - POWER).abs().argmin()].item()
    law = Stops(nd.SurvivalWeighting(nd.laws.Logistic(loc, 0.5)))
    g, choice = torch.Generator().manual_seed(seed), np.empty(data.sizes["trial"])
    for subject in np.unique(data["subject"]):
        mine = data["subject"].values == subject
        fit = nd.fit(Pulses(Stops()), data.isel(trial=mine), nd.Laplace(), seed=0)
        model = Pulses(copy.deepcopy(law))
        for name in ("gain", "square", "cube", "bias", "exponent", "lapse"):
            model.get_parameter(name).data.fill_(float(fit["posterior"][name].mean()))
        shown = {n: torch.tensor(data[n].values[mine]).float() for n in Pulses.requires}
        choice[mine] = torch.bernoulli(model(shown).probs.detach(), generator=g)
    return data.assign(choice=("trial", choice))


def fitted(data, what):
    """Elpd of every run, person and row; what the posterior says of w."""
    rows, heard = [], []
    for subject in np.unique(data["subject"]):
        mine = data.isel(trial=data["subject"].values == subject)
        for name, use in hypotheses().items():
            path = RUNS / f"{what}-{subject}-{name}.csv".replace(" ", "_")
            if not path.exists():
                fit = nd.fit(Pulses(use), mine, nd.Laplace(), seed=0)
                elpd, k_hat = elpd_of(fit)
                table = pd.DataFrame({"elpd": elpd, "k_hat": k_hat, "trials": mine.sizes["trial"]})
                for p in ("exponent", "square", "cube", "lapse", "gain"):
                    table[p] = float(fit["posterior"][p].mean())
                if isinstance(use, StopsFreely):
                    stays = fit["posterior"]["use.stays"]
                    w = stays.cumprod(stays.dims[-1])
                    for q in (0.05, 0.5, 0.95):
                        values = w.quantile(q, ("chain", "draw")).values
                        table[[f"w{n}_{q}" for n in range(2, 6)]] = values
                part = path.with_suffix(".part")
                table.to_csv(part, index=False)
                part.rename(path)
                print(what, subject, name, round(elpd.sum(), 1), flush=True)
            table = pd.read_csv(path)
            rows.append(table[["elpd", "k_hat", "trials", "exponent", "square", "cube", "lapse",
                               "gain"]].assign(data=what, subject=subject, hypothesis=name,
                                               run=range(len(table))))  # fmt: skip
            if isinstance(use, StopsFreely):
                first = table.iloc[0].filter(like="w")
                heard.append(first.to_dict() | {"data": what, "subject": subject})
    return pd.concat(rows), pd.DataFrame(heard)


def summary(table):
    """Each row less w = 1, paired over runs: of each person and of all."""
    found = []
    for what, some in table.groupby("data"):
        wide = some.pivot_table(index=["subject", "run"], columns="hypothesis", values="elpd")
        trials = some.groupby("subject")["trials"].first()
        k_hat = some.groupby(["subject", "hypothesis"])["k_hat"].max()
        for subject in ("all", *trials.index):
            mine = wide if subject == "all" else wide.loc[[subject]]
            count = trials.sum() if subject == "all" else trials[subject]
            for name in wide.columns:
                off = mine[name] - mine["to the end (w = 1)"]
                se = off.std() * len(off) ** 0.5
                k = k_hat if subject == "all" else k_hat.loc[[subject]]
                found.append({
                    "data": what, "subject": subject, "hypothesis": name,
                    "nats_a_trial": mine[name].sum() / count, "difference": off.sum(), "se": se,
                    "k_hat": k.xs(name, level="hypothesis").max(),
                    "verdict": verdict(name, off.sum(), se),
                })  # fmt: skip
    return pd.DataFrame(found)


def verdict(name, off, se):
    if name == "to the end (w = 1)":
        return "-"
    if abs(off) < 2 * se or abs(off) < 4:
        return "not distinguished"
    above = "stops early" if name in LAWS else "above w = 1"
    return above if off > 0 else "behind"


@on_one_thread
def run():
    RUNS.mkdir(parents=True, exist_ok=True)
    data = people()
    tables, heard = fitted(data, "people")
    more, power = fitted(simulated(data, 1), "simulated")
    summary(pd.concat([tables, more])).to_csv(
        RESULTS / "17_rows.csv", index=False, float_format="%.4g"
    )
    pd.concat([heard, power]).to_csv(RESULTS / "17_heard.csv", index=False, float_format="%.4g")
    kept = tables.groupby(["subject", "hypothesis"])[
        ["gain", "exponent", "square", "cube", "lapse"]
    ].first()
    kept.to_csv(RESULTS / "17_parameters.csv", float_format="%.4g")


# %%
def figure():
    """Who still listens, and what each row is worth beside listening to the end."""
    rows, heard = (pd.read_csv(RESULTS / f"17_{n}.csv") for n in ("rows", "heard"))
    plt.style.use(nd.plot.STYLE)
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.6), layout="constrained", width_ratios=(1, 1, 2))
    n = np.arange(2, 6)
    for ax, what in zip(axes[:2], ("people", "simulated"), strict=True):
        for k, (_, row) in enumerate(heard[heard["data"] == what].iterrows()):
            low, mid, high = (row[[f"w{i}_{q}" for i in n]].to_numpy(float) for q in
                              (0.05, 0.5, 0.95))  # fmt: skip
            ax.errorbar(n + 0.1 * (k - 2), mid, [mid - low, high - mid], fmt="o", ms=2.5, lw=0.8,
                        color=panels.BLUE)  # fmt: skip
        ax.plot([1, *n], np.arange(1, 6) ** -0.5, "--", color=panels.GREEN, lw=1,
                label="flow matching")  # fmt: skip
        ax.axhline(1, ls=":", color="black", lw=1, label="elbo")
        ax.set(xlabel="sample n  (λ = log n + const)", ylim=(0, 1.08), xlim=(0.8, 5.5),
               title=what, ylabel="w: still listens")  # fmt: skip
    axes[0].legend(frameon=False, fontsize=6, loc="lower left")
    names = [h for h in hypotheses() if h != "to the end (w = 1)"][::-1]
    for what, mark, colour, dy in (("people", "o", "black", 0.12),
                                   ("simulated", "s", panels.ORANGE, -0.12)):  # fmt: skip
        some = rows[(rows["data"] == what) & (rows["subject"] == "all")].set_index("hypothesis")
        some = some.loc[names]
        axes[2].errorbar(some["difference"], np.arange(len(names)) + dy, xerr=2 * some["se"],
                         fmt=mark, ms=3, lw=0.8, color=colour, label=what)  # fmt: skip
    axes[2].set_xscale("symlog", linthresh=20)
    axes[2].axvline(0, lw=0.6, color="grey")
    axes[2].set_yticks(range(len(names)), names, fontsize=6)
    axes[2].set_xlabel("nats above w = 1, all people (bars 2 s.e. over runs)")
    axes[2].legend(frameon=False, fontsize=6, loc="upper left")
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"17_pulses.{kind}", dpi=300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Who still listens at which sample")
    parser.add_argument("--fit", action="store_true", help="fit anew")
    if parser.parse_args().fit:
        run()
    figure()
