# %% [markdown]
# # What does a rat hear of the clicks?
#
# 918 trials of one rat, two sessions: two streams of clicks for .1 to 1 s, and a choice when they
# end, so nothing stops because of the evidence. Rows: clicks that adapt or do not, an accumulator
# that leaks or does not, and one that stops listening at a time drawn from a law on log seconds
# (w = 1 listens to the end). Leave-one-out from posterior draws, standard errors over trials; no
# stimulus (a bias and lapses) is the floor. Beside it the same rows for a rat that is simulated
# with the parameters found and a law under which half have stopped by .35 s: so few trials may not
# decide it, and the table says so.
#
#     python analyses/18_what_a_rat_hears_of_clicks.py [--fit]
#
# Without `--fit` the figure is made from `results/18_*`. With it all is fitted, a few minutes.

# %%
import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr

import neurodiff as nd
from neurodiff import panels
from neurodiff.inference.compare import elpd_of
from neurodiff.inference.posterior import on_one_thread
from neurodiff.perception.clicks import Clicks

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
STOPS = nd.laws.Logistic(math.log(0.35), 0.3)  # of the simulated rat


# %%
def rat():
    """Both sessions; clicks that are not there at the end, on no side."""
    parts = [nd.load(f"brody-rat-t103-clicks/{p}") for p in ("303075", "304258")]
    most = max(p.sizes["pulse"] for p in parts)
    names = ["pulse_time", "pulse_side", "duration", "choice"]
    both = xr.concat([p[names].pad(pulse=(0, most - p.sizes["pulse"])) for p in parts], "trial")
    return both.assign(
        pulse_time=both["pulse_time"].fillna(both["duration"]),
        pulse_side=both["pulse_side"].fillna(0.0),
    )


def silent(data):
    """No stimulus: the pair that every trial begins with, at its end, and nothing else."""
    return data.isel(pulse=slice(2)).assign(
        pulse_time=data["duration"].expand_dims(pulse=2, axis=1),
        pulse_side=xr.zeros_like(data["pulse_side"].isel(pulse=slice(2))),
    )


def hypotheses():
    return {
        "no stimulus": Clicks(adapts=False, leaks=False),
        "counts": Clicks(adapts=False, leaks=False),
        "leaks": Clicks(adapts=False),
        "adapts": Clicks(leaks=False),
        "adapts and leaks": Clicks(),
        "adapts, stops listening": Clicks(nd.laws.Logistic(-0.5, 0.4), leaks=False),
    }


def fitted(data, what, names=None):
    rows, kept = [], {}
    for name, model in hypotheses().items():
        if names is not None and name not in names:
            continue
        fit = nd.fit(model, silent(data) if name == "no stimulus" else data, nd.Laplace(), seed=0)
        elpd, k_hat = elpd_of(fit)
        kept[name] = fit["posterior"]
        rows.append({"data": what, "hypothesis": name, "elpd": elpd, "k_hat": k_hat})
        print(what, name, round(elpd.sum(), 1), flush=True)
    best = next(r["elpd"] for r in rows if r["hypothesis"] == "adapts")
    for row in rows:
        off = row["elpd"] - best
        row |= {"difference": off.sum(), "se": off.std() * len(off) ** 0.5,
                "elpd": row["elpd"].sum()}  # fmt: skip
    return pd.DataFrame(rows), kept


def simulated(data, posterior, seed):
    """The choices of a rat that adapts as this one does, and stops listening by STOPS."""
    model = Clicks(STOPS, leaks=False)
    for name in ("adaptation", "recovery", "click_noise", "noise", "bias", "lapse"):
        model.get_parameter(name).data.fill_(float(posterior[name].mean()))
    shown = {n: torch.tensor(data[n].values).float() for n in Clicks.requires}
    g = torch.Generator().manual_seed(seed)
    choice = torch.bernoulli(model(shown).probs.detach(), generator=g)
    return data.assign(choice=("trial", choice.double().numpy()))


@on_one_thread
def run():
    data = rat()
    rows, kept = fitted(data, "rat")
    power = ("counts", "adapts", "adapts, stops listening")
    more, _ = fitted(simulated(data, kept["adapts"], 1), "simulated", power)
    pd.concat([rows, more]).to_csv(RESULTS / "18_rows.csv", index=False, float_format="%.4g")
    parameters = [
        {"hypothesis": h, "parameter": str(n), **_quantiles(v)}
        for h, p in kept.items() for n, v in p.data_vars.items()
        if v.dims == ("chain", "draw")
    ]  # fmt: skip
    pd.DataFrame(parameters).to_csv(RESULTS / "18_parameters.csv", index=False, float_format="%.4g")
    kernel(data, kept).to_csv(RESULTS / "18_kernel.csv", index=False, float_format="%.4g")


def _quantiles(value):
    q = value.quantile([0.05, 0.5, 0.95], ("chain", "draw")).values
    return dict(zip(("low", "median", "high"), q, strict=True))


def kernel(data, kept, cells=8):
    """What a click is worth, by when it came: regressions of choices, recorded and predicted."""
    from sklearn.linear_model import LogisticRegression

    place = (data["pulse_time"] / data["duration"]).values
    side = data["pulse_side"].values
    counts = np.stack([
        (side * ((place > k / cells) & (place <= (k + 1) / cells))).sum(1) for k in range(cells)
    ], 1)  # fmt: skip
    found, g = [], torch.Generator().manual_seed(2)
    shown = {n: torch.tensor(data[n].values).float() for n in Clicks.requires}
    choices = {"rat": data["choice"].values[None]}
    for name in ("adapts", "adapts and leaks", "adapts, stops listening"):
        model, posterior = hypotheses()[name], kept[name]
        for n, v in posterior.data_vars.items():
            if v.dims == ("chain", "draw"):
                model.get_parameter(str(n)).data.fill_(float(v.mean()))
        p = model(shown).probs.detach()
        choices[name] = torch.bernoulli(p.expand(100, -1), generator=g).numpy()
    for name, many in choices.items():
        weights = np.stack([
            LogisticRegression(C=10.0).fit(counts, one).coef_[0] for one in many
        ])  # fmt: skip
        if name == "rat":
            rng = np.random.default_rng(0)
            again = [rng.integers(0, len(counts), len(counts)) for _ in range(200)]
            weights = np.stack([
                LogisticRegression(C=10.0).fit(counts[i], many[0][i]).coef_[0] for i in again
            ])  # fmt: skip
        for k in range(cells):
            found.append({"of": name, "place": (k + 0.5) / cells, "weight": weights[:, k].mean(),
                          "sd": weights[:, k].std()})  # fmt: skip
    return pd.DataFrame(found)


# %%
def figure():
    """What a click is worth by when it came, and what each row is worth beside adaptation alone."""
    rows, weights = (pd.read_csv(RESULTS / f"18_{n}.csv") for n in ("rows", "kernel"))
    plt.style.use(nd.plot.STYLE)
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 2.6), layout="constrained", width_ratios=(1, 1.4))
    colours = dict(zip(weights["of"].unique(), ("black", panels.BLUE, panels.ORANGE, panels.GREEN),
                       strict=True))  # fmt: skip
    for name, some in weights.groupby("of", sort=False):
        if name == "rat":
            axes[0].errorbar(some["place"], some["weight"], some["sd"], fmt="o", ms=3, lw=0.8,
                             color="black", label="rat")  # fmt: skip
        else:
            axes[0].plot(some["place"], some["weight"], color=colours[str(name)], label=name, lw=1)
    axes[0].set(xlabel="when in the trial (share of its duration)", ylabel="log odds a click",
                ylim=(-0.03, 0.32))  # fmt: skip
    axes[0].legend(frameon=False, fontsize=6, loc="upper right")
    names = [h for h in hypotheses() if h not in ("adapts", "no stimulus")][::-1]
    for what, mark, colour, dy in (("rat", "o", "black", 0.12),
                                   ("simulated", "s", panels.ORANGE, -0.12)):  # fmt: skip
        some = rows[rows["data"] == what].set_index("hypothesis").reindex(names)
        axes[1].errorbar(some["difference"], np.arange(len(names)) + dy, xerr=2 * some["se"],
                         fmt=mark, ms=3, lw=0.8, color=colour, label=what)  # fmt: skip
    axes[1].axvline(0, lw=0.6, color="grey")
    axes[1].set_yticks(range(len(names)), names, fontsize=6)
    axes[1].set_xlabel("nats above adaptation alone (bars 2 s.e. over trials)")
    axes[1].legend(frameon=False, fontsize=6)
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"18_clicks.{kind}", dpi=300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What a rat hears of the clicks")
    parser.add_argument("--fit", action="store_true", help="fit anew")
    if parser.parse_args().fit:
        run()
    figure()
