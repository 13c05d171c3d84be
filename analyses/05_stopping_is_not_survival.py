# %% [markdown]
# # What a bound does to evidence is not the survival of reaction times, nor one weighting for all
#
# Two monkeys and six people judge the direction of moving dots (Roitman & Shadlen 2002; Palmer, Huk
# & Shadlen 2005). A bounded accumulator with a collapsing bound is fitted to each; its effective
# weighting w_eff says how much of the evidence at each SNR is still taken in. Were one weighting to
# serve all strengths, the curves would coincide on log SNR; were stopping a matter of the clock,
# they would be the survival function of decision times, shifted by 2 log c.
#
#     python analyses/05_stopping_is_not_survival.py [--fit]
#
# Without `--fit` the figure is made from `results/05_*`.

# %%
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import neurodiff as nd
from neurodiff import summary
from neurodiff.data.choice_rt import choice_rt
from neurodiff.inference.fit import modes_of
from neurodiff.inference.importance import importance_draws
from neurodiff.inference.join import join
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.stopping_curves import stopping_curves
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.bounds import Weibull
from neurodiff.perception.drifts import Power

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
CURVES = ("effective", "effective_mixed", "survival")


# %%
def observers():
    """Each monkey and person, times within the window that others use for the monkeys."""
    for name, kind in (("roitman2002-monkey-rdm", "monkey"), ("palmer2005-human-rdm", "person")):
        data = nd.load(name)
        for subject in np.unique(data["subject"].values):
            own = data.isel(trial=data["subject"].values == subject)
            rt = own["rt"].values
            kept = (rt >= 0.1) & (rt <= (1.65 if kind == "monkey" else np.inf))
            yield f"{kind} {subject}", choice_rt(own.isel(trial=kept))


@on_one_thread
def curves(data):
    """Posterior draws of w_eff, with the strength known and not, and of survival."""
    horizon = float(np.ceil(20 * np.abs(data["signed_rt"].values).max()) / 20)
    model = Bounded(Power(), Weibull(), horizon, round(60 * horizon), start=0.0)
    bound = join(model, data)
    generator = torch.Generator().manual_seed(0)
    draws = importance_draws(bound.posterior, modes_of(bound, 2, 0), 1000, generator)
    return stopping_curves(bound, draws.resample(500, generator)[0]), draws.k_hat[0].item()


def half(logsnr, w):
    """Where a curve of each draw falls to a half, nats."""
    return np.array([np.interp(-0.5, -one, at) for at, one in zip(logsnr, w, strict=True)])


def run():
    """All fits: curves, and where they fall to a half."""
    kept, rows = [], []
    for name, data in observers():
        found, k_hat = curves(data)
        print(name, data.sizes["trial"], f"k-hat {k_hat:.2f}", flush=True)
        time, strength = found["time"].values, found["strength"].values
        logsnr = np.log(found["drift"].values[..., None] ** 2 * time)
        places = {}
        for curve in CURVES:
            w = found[curve].values
            places[curve] = np.stack(
                [half(logsnr[:, c], w[:, c]) for c in range(len(strength))], -1
            )
            x = 2 * np.log(strength) - np.mean(2 * np.log(strength))
            slope = (places[curve] * x).sum(-1) / (x**2).sum()
            row = {"observer": name, "curve": curve, "k_hat": k_hat}
            row |= {f"slope_{k}": v for k, v in summary.quantiles(slope).items()}
            if curve != "survival":
                gap = (w - found["survival"].values).max(-1)  # of each draw and strength
                row |= {f"gap_{k}": v for k, v in summary.quantiles(gap.max(-1)).items()}
            rows.append(row)
            quantiles = summary.quantiles(w)
            for key in ("q05", "median", "q95"):
                kept.append(_array(quantiles[key], found, name, curve, key))
    pd.DataFrame(rows).round(4).to_csv(RESULTS / "05_half_heights.csv", index=False)
    pd.concat(kept).to_csv(RESULTS / "05_curves.csv", index=False, float_format="%.4g")


def _array(values, found, name, curve, key):
    """One quantile of the curves of one observer, at every third time."""
    every = slice(2, None, 3)
    v = found["drift"].median("curve_draw").values
    parts = []
    for c, strength in enumerate(found["strength"].values):
        time = found["time"].values[every]
        columns = {"observer": name, "curve": curve, "quantile": key, "strength": strength}
        columns |= {"time": time, "logsnr": np.log(v[c] ** 2 * time), "value": values[c, every]}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts)


# %%
def figure():
    """A monkey and a person over the zoo, and the slope of half-heights of all."""
    table = pd.read_csv(RESULTS / "05_curves.csv")
    places = pd.read_csv(RESULTS / "05_half_heights.csv")
    with plt.style.context(nd.plot.STYLE):
        layout = [["monkey b", "person jp"], ["slope", "slope"]]
        drawn, axes = plt.subplot_mosaic(
            layout, figsize=(3.5, 4.2), height_ratios=[1.2, 1], layout="constrained"
        )
        for name in layout[0]:
            panel(axes[name], table[table["observer"] == name], name)
        axes["monkey b"].set_ylabel("weight of the evidence")
        axes["person jp"].tick_params(labelleft=False)
        slopes(axes["slope"], places)
        for kind in ("png", "pdf"):
            drawn.savefig(FIGURES / f"05_stopping_is_not_survival.{kind}", dpi=300)
        plt.close(drawn)


def panel(ax, table, name):
    strengths = np.unique(table["strength"])
    shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(strengths)))
    for c, colour in zip(strengths, shades, strict=True):
        mine = table[table["strength"] == c]
        wide = mine[mine["curve"] == "effective"].pivot(
            index="logsnr", columns="quantile", values="value"
        )
        ax.fill_between(wide.index, wide["q05"], wide["q95"], color=colour, alpha=0.3, lw=0)
        ax.plot(wide.index, wide["median"], color=colour, label=f"{100 * c:.1f} %")
        rest = mine[(mine["curve"] == "survival") & (mine["quantile"] == "median")]
        ax.plot(rest["logsnr"], rest["value"], color=colour, ls=(0, (4, 2)), lw=0.8)
    x = np.linspace(-7, 6, 300)
    for law, dashes in (("sigmoid", ":"), ("flow-matching", "-.")):
        w = summary.placed(law, 0.0, x)
        ax.plot(x, w, color="grey", ls=dashes, lw=0.8, label=law, zorder=0)
    ax.plot([], [], color="black", ls=(0, (4, 2)), lw=0.8, label="P(T > t)")
    ax.set(title=name, xlim=(-7, 6), ylim=(-0.03, 1.06), xlabel="log SNR (nat)")
    if name.startswith("person"):
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=5.5)


def slopes(ax, places):
    """How far half-heights move with log SNR per second: 0 one weighting, 1 the clock."""
    names = list(dict.fromkeys(places["observer"]))
    styles = {"effective": ("#0072B2", "o", "w_eff, strength known"),
              "effective_mixed": ("#E69F00", "s", "w_eff, strength not known"),
              "survival": ("#D55E00", "D", "P(T > t)")}  # fmt: skip
    for i, (curve, (colour, marker, label)) in enumerate(styles.items()):
        mine = places[places["curve"] == curve].set_index("observer").loc[names]
        middle = mine["slope_median"]
        sides = [middle - mine["slope_q05"], mine["slope_q95"] - middle]
        y = np.arange(len(names)) + 0.22 * (i - 1)
        ax.errorbar(middle, y, xerr=sides, fmt=marker, ms=3, color=colour, lw=0.8, label=label)
    for at in (0.0, 1.0):
        ax.axvline(at, color="black", lw=0.6, ls=":")
    ax.text(0.0, -0.75, "one weighting", fontsize=6, ha="left", va="bottom")
    ax.text(1.0, -0.75, "the clock", fontsize=6, ha="right", va="bottom")
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.4, -0.8), xlim=(-0.1, 1.2))
    ax.set_xlabel("slope of half-heights on 2 log strength (median, 90 %)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.35), ncols=3, fontsize=5.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Is a bound's stopping one weighting?")
    parser.add_argument("--fit", action="store_true", help="fit again (a few minutes)")
    if parser.parse_args().fit:
        run()
    figure()
