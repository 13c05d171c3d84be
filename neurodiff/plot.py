"""Figures: every function takes (data, ax=None) and returns the Axes; none fits, none shows.

Bands are the central 50 % and 90 % of the posterior. Curves are grey where the data say nothing:
where a flexible law's contraction, 1 - posterior sd / prior sd, is below 0.1. Named weightings are
drawn at κ = 1, shifted to meet the fit at half-height. Colours are those of Okabe and Ito, and no
figure rests on colour alone. :func:`behind` gives the numbers that a figure shows.
"""

from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib import rcParams, style
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine

from neurodiff import panels, summary, timing
from neurodiff.answers import shares
from neurodiff.panels import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY

STYLE = Path(__file__).with_name("neurodiff.mplstyle")
WIDTH = 3.4  # inches: one column
_behind: WeakKeyDictionary[Axes, pd.DataFrame] = WeakKeyDictionary()


def behind(ax: Axes) -> pd.DataFrame:
    """The numbers that a figure of this module shows, one row a point.

    Raises:
        ValueError: If the axes were not drawn by this module.
    """
    if ax not in _behind:
        raise ValueError(
            "no numbers are known behind these axes: pass what neurodiff.plot returned"
        )
    return _behind[ax]


@style.context(STYLE)
def weighting(fit: xr.DataTree, zoo: bool = True, ax: Axes | None = None) -> Axes:
    """The posterior of w over logsnr, the named weightings, and beneath where the data speak.

    Named weightings without a stopping law, and those whose shape depends on where they are cut,
    are left out. Hierarchical fits show a thin line for each group and the mean of the groups.

    Args:
        fit: A fit of a model with a weighting.
        zoo: Whether the named weightings are drawn.
        ax: Where to draw; by default a new figure one column wide.

    Raises:
        ValueError: If the fit has no weighting.
    """
    ax = _axes(ax, 3.1)
    numbers = panels.curve(ax, fit, "weighting")
    if zoo:
        numbers = pd.concat([numbers, panels.zoo(ax, numbers)], ignore_index=True)
    ax.set(ylim=(-0.03, 1.06), ylabel="w: P(still denoising)")
    panels.legend_above(ax, 3)
    return _done(ax, numbers)


@style.context(STYLE)
def stopping_density(fit: xr.DataTree, ax: Axes | None = None) -> Axes:
    """The posterior of the stopping density -w′, per nat of logsnr.

    Raises:
        ValueError: If the fit has no weighting.
    """
    ax = _axes(ax, 2.5)
    numbers = panels.curve(ax, fit, "stopping_density")
    shown = numbers["q95"].where(numbers["kind"] == "fit", numbers["median"])
    top = shown.max()
    ax.set(ylim=(0, 1.05 * top), ylabel="stopping density −w′ (1/nat)")
    panels.legend_above(ax, 3)
    return _done(ax, numbers)


@style.context(STYLE)
def response(fit: xr.DataTree, data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """What was answered at each logsnr, with the band that the fit predicts for those very trials.

    Choices: proportion correct with its Wilson 90 % interval. Counts: rate with its standard error
    over blocks, or over bins where the data have no blocks. A logsnr of ±∞ stands apart. Where the
    fit keeps the logsnr of its front end (group ``constant_data``), that is the abscissa.
    Hierarchical fits show each group by a thin line and small points.

    Raises:
        ValueError: If the data are not those of the fit.
    """
    ax = _axes(ax, 2.5)
    name, observed, predicted, logsnr, answered = summary.responses(fit, data)
    counts = name == "count"
    block = summary.units(data, name)[answered] if counts else None
    numbers = summary.by_level(observed, predicted, logsnr, block).assign(group="")
    ends = panels.ends_of(numbers["logsnr"].to_numpy())
    for label, mine in summary.grouped(fit, data):
        own = mine[answered]
        part = summary.by_level(observed[own], predicted[:, own], logsnr[own], None)
        at = part["logsnr"].replace(ends)
        ax.plot(at, part["median"], color=SKY, lw=0.6, zorder=1)
        ax.plot(at, part["observed"], ".", color=SKY, ms=3, zorder=1)
        numbers = pd.concat([numbers, part.assign(group=label)], ignore_index=True)
    interval, unit = "90 % interval", "proportion correct"
    if counts:
        interval = "± SE over blocks" if "block" in data.coords else "± SE over bins"
        width = panels.bin_width(data)
        unit = "spikes per bin" if width is None else "rate (spikes/s)"
        numbers[["observed", "low", "high", *summary.QUANTILES]] /= width or 1.0
    panels.predicted_and_observed(ax, summary.rows(numbers, group=""), ends, interval)
    panels.label_response(ax, fit, numbers, ends, counts)
    ax.set_ylabel(unit)
    return _done(ax, numbers)


@style.context(STYLE)
def choices(fit: xr.DataTree, ax: Axes | None = None) -> Axes:
    """The psychometric function of choices that come with reaction times, over what was predicted.

    Raises:
        ValueError: If the fit is not of choices and reaction times.
    """
    ax = _axes(ax, 2.3)
    numbers = timing.choices(fit)
    panels.banded(ax, np.asarray(numbers["strength"]), numbers, BLUE)
    error = [numbers["observed"] - numbers["low"], numbers["high"] - numbers["observed"]]
    label = "observed, 90 % interval"
    ax.errorbar(numbers["strength"], numbers["observed"], error, fmt="o", ms=2.2, color="black",
                lw=0.8, label=label)  # fmt: skip
    ax.plot([], [], color=BLUE, label="predicted, 50 and 90 %")
    ax.set(ylim=(-0.02, 1.02), xlabel="strength, signed", ylabel="proportion of upper choices")
    panels.legend_above(ax, 2)
    return _done(ax, numbers)


@style.context(STYLE)
def times(fit: xr.DataTree, ax: Axes | None = None) -> Axes:
    """Reaction times: 10, 50 and 90 % quantiles of right answers, the median of wrong ones.

    Raises:
        ValueError: If the fit is not of choices and reaction times.
    """
    ax = _axes(ax, 2.5)
    numbers = timing.times(fit)
    sizes = np.unique(numbers["strength"])
    place = {c: i for i, c in enumerate(sizes)}  # strengths are often octaves, and 0
    for (answer, _), part in numbers.groupby(["answer", "quantile"]):  # pyright: ignore
        right = answer == "right"
        x = part["strength"].map(place.get) + (0.0 if right else 0.12)
        colour, face = (BLUE, "black") if right else (RED, "white")
        panels.banded(ax, np.asarray(x), part, colour)
        ax.plot(
            x, part["observed"], "o" if right else "s", ms=2.6, color="black", mfc=face, mew=0.7
        )
    for colour, marker, face, what in (
        (BLUE, "o", "black", "right: 10, 50, 90 % quantiles"),
        (RED, "s", "white", "wrong: median"),
    ):
        ax.plot([], [], marker, color="black", ms=2.6, mfc=face, mew=0.7, label=what)
        ax.plot([], [], color=colour, label="predicted, 50 and 90 %")
    ax.set_xticks(range(len(sizes)), [f"{c:.3g}" for c in sizes])
    ax.set(xlabel="strength", ylabel="reaction time (s)", ylim=(0, None))
    panels.legend_above(ax, 2)
    return _done(ax, numbers)


@style.context(STYLE)
def answers(fit: xr.DataTree, ax: Axes | None = None) -> Axes:
    """How often a label was the answer where the fit says how often, over what it predicts.

    Raises:
        ValueError: If the fit is not of choices among labels.
    """
    ax = _axes(ax, 2.5)
    numbers = shares(fit)
    ax.axline((0, 0), slope=1, color="grey", lw=0.6, ls=":")
    panels.banded(ax, np.asarray(numbers["predicted"]), numbers, BLUE)
    ax.errorbar(numbers["predicted"], numbers["observed"], numbers["se"], fmt="o", ms=2.6,
                color="black", lw=0.8, label="observed, ± SE over stimuli")  # fmt: skip
    ax.plot([], [], color=BLUE, label="predicted, 50 and 90 %")
    ax.set(xlabel="predicted share of the answers", ylabel="observed share")
    panels.legend_above(ax, 2)
    return _done(ax, numbers)


@style.context(STYLE)
def effective(fit: xr.DataTree, known: bool = True, ax: Axes | None = None) -> Axes:
    """The effective weighting at each strength (lines) and the survival of decisions (dashed).

    Where stopping did not depend on the evidence each pair would be one curve.

    Args:
        fit: A fit of the bounded kind, by ``neurodiff fit``.
        known: Whether the belief knows the strength, or has the experiment's mixture.
        ax: Where to draw; by default a new figure one column wide.

    Raises:
        ValueError: If the fit has no such curves.
    """
    ax = _axes(ax, 2.6)
    curve = timing.stopping(fit, "effective" if known else "effective_mixed")
    left = timing.stopping(fit, "survival")
    sizes = np.unique(curve["strength"])
    shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(sizes)))
    for c, colour in zip(sizes, shades, strict=True):
        one, rest = curve[curve["strength"] == c], left[left["strength"] == c]
        ax.fill_between(one["logsnr"], one["q05"], one["q95"], color=colour, alpha=0.25, lw=0)
        ax.plot(one["logsnr"], one["median"], color=colour, label=f"{c:.3g}")
        ax.plot(rest["logsnr"], rest["median"], color=colour, ls=(0, (4, 2)), lw=0.8)
    ax.set(ylim=(-0.03, 1.06), xlabel=panels.LOGSNR, ylabel="effective weighting")
    ax.plot([], [], color="black", ls=(0, (4, 2)), lw=0.8, label="P(T > t)")
    panels.legend_above(ax, min(len(sizes) + 1, 4))
    return _done(ax, pd.concat([curve, left], ignore_index=True))


@style.context(STYLE)
def comparison(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Held-out elpd of each hypothesis less that of the best, ± its paired standard error.

    Filled points are behind, open ones not distinguished from the best; diamonds are controls. The
    axis is linear within ±4 nats, where no difference is claimed, and logarithmic beyond.

    Args:
        table: What :func:`neurodiff.compare` returns.
        ax: Where to draw; by default a new figure as high as the table asks.

    Raises:
        ValueError: If the table is empty or lacks columns.
    """
    rows = summary.compared(table)
    ends = list(dict.fromkeys(rows["front_end"]))
    ax = _axes(ax, 0.8 + (0.13 + 0.04 * len(ends)) * len(set(rows["row"])))
    ax.axvspan(-summary.TIE, summary.TIE, color="black", alpha=0.08, lw=0)
    ax.axvline(0, color="black", lw=0.6)
    spread = 0.22 * (np.arange(len(ends)) - (len(ends) - 1) / 2)
    for i, end in enumerate(ends):
        colour = [BLUE, RED, GREEN, ORANGE, PINK][i % 5]
        for row in summary.rows(rows, front_end=end).to_dict("records"):
            face = colour if row["behind"] else "white"
            marker = "D" if row["kind"] == "control" else "o"
            ax.errorbar(row["elpd_diff"], row["row"] + spread[i], xerr=row["dse"], fmt=marker,
                        ms=3, lw=0.8, color=colour, mfc=face, mew=0.8)  # fmt: skip
        ax.plot([], [], "o", color=colour, ms=3, label=f"front end {end}")
    panels.label_comparison(ax, rows)
    return _done(ax, rows.drop(columns=["row", "control"]))


@style.context(STYLE)
def calibration(ranks: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Ranks of true parameters among posterior draws, as ECDF less uniform, with its envelope.

    Under a calibrated posterior a rank is uniform on 0, …, draws. The grey envelope holds all
    points of all curves at once with probability 95 % (5 % are shared between the parameters).

    Args:
        ranks: What calibration leaves: ``ranks`` (set, component), integers 0, …, draws, with the
            number of draws in ``attrs["draws"]``.
        ax: Where to draw; by default a new figure one column wide.

    Raises:
        ValueError: If ``ranks`` or ``draws`` is missing, or a rank is outside 0, …, draws.
    """
    draws = summary.checked_draws(ranks)
    ax = _axes(ax, 2.3)
    at = np.unique(np.linspace(0, draws - 1, min(draws, 100)).astype(int))
    uniform, sets = (at + 1) / (draws + 1), ranks.sizes["set"]
    low, high = summary.envelope(sets, draws, at, 0.05 / ranks.sizes["component"])
    ax.fill_between(uniform, low - uniform, high - uniform, color=GREY, alpha=0.3, lw=0,
                    label="95 % envelope")  # fmt: skip
    numbers = []
    for i, name in enumerate(ranks["component"].values):
        ecdf = (ranks["ranks"].values[:, i, None] <= at).mean(0)
        dashes = ["-", "--", ":"][i // 7 % 3]  # the palette has seven colours
        ax.plot(uniform, ecdf - uniform, ls=dashes, drawstyle="steps-mid", label=name)
        columns = {"component": name, "uniform": uniform, "ecdf": ecdf, "low": low, "high": high}
        numbers.append(pd.DataFrame(columns))
    ax.axhline(0, color="black", lw=0.6)
    limit = 1.1 * max(np.abs(line.get_ydata()).max() for line in ax.lines)
    limit = max(limit, 1.1 * (high - uniform).max())
    ax.set(xlim=(0, 1), ylim=(-limit, limit), xlabel="rank / draws")
    ax.set_ylabel(f"ECDF − uniform, {sets} data sets")
    panels.legend_above(ax, 3)
    return _done(ax, pd.concat(numbers, ignore_index=True))


def _axes(ax: Axes | None, height: float) -> Axes:
    if ax is not None:
        return ax
    room = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.05)
    return plt.subplots(figsize=(WIDTH, height), layout=room)[1]


def _done(ax: Axes, numbers: pd.DataFrame) -> Axes:
    # ticks are made when a figure is drawn, by then outside this style: fix their look now
    for own in (ax, *ax.child_axes):
        own.tick_params(labelsize=rcParams["font.size"], width=rcParams["axes.linewidth"])
    _behind[ax] = numbers
    return ax
