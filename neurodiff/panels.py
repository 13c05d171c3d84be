"""The parts that the figures of :mod:`~neurodiff.plot` are put together from.

Colours are those of Okabe and Ito, and no figure rests on colour alone. Curves are grey where the
data say nothing.
"""

import json

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter

from neurodiff import summary
from neurodiff.diffusion.weighting import canonical

BLUE, RED, GREEN, PINK, ORANGE, SKY = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9".split()
GREY = "#8C8C8C"
LOGSNR = "log SNR (nat)"
_BANDS = (("q05", "q95", 0.18), ("q25", "q75", 0.35))
# the bounded monotone weightings and the exponentials: each has one shape, wherever it is cut
_ZOO = {
    "sigmoid": (RED, "-"),
    "flow-matching": (GREEN, "--"),
    "indi": (PINK, "-."),
    "edm-monotonic": (ORANGE, (0, (4, 1, 1, 1))),
    "deadline": (SKY, (0, (5, 1))),
    "step": ("black", "-"),
    "elbo": ("black", ":"),
}


def legend_above(ax: Axes, columns: int) -> None:
    """The legend over the axes, flush right, where it covers no data."""
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, borderaxespad=0.2,
              handlelength=2.4, columnspacing=1.0)  # fmt: skip


def curve(ax: Axes, fit: xr.DataTree, name: str) -> pd.DataFrame:
    """Bands, median, groups and the strip; grey where the data say nothing."""
    numbers = summary.curves(fit, name)
    mean = summary.rows(numbers, kind="fit")
    x, informed = np.asarray(mean["logsnr"]), np.asarray(mean["informed"])
    # a cell between an informed and an uninformed point is uninformed: neither is drawn twice
    blank = ~informed
    blank = blank | np.r_[blank[1:], False] | np.r_[False, blank[:-1]]
    for colour, where in ((GREY, blank), (BLUE, informed)):
        for low, high, alpha in _BANDS:
            ax.fill_between(x, mean[low], mean[high], where=where, color=colour, alpha=alpha, lw=0)
    groups = summary.rows(numbers, kind="group").groupby("curve")
    for _, group in groups:
        ax.plot(x, group["median"], color=SKY, lw=0.6)
    ax.plot(x, mean["median"], color=GREY, lw=1.4)
    label = str(np.asarray(mean["curve"])[0]) + (f", mean of {len(groups)}" if len(groups) else "")
    ax.plot(x, np.where(informed, mean["median"], np.nan), color=BLUE, lw=1.4, label=label)
    if len(groups):
        ax.plot([], [], color=SKY, lw=0.6, label="each group")
    ax.set(xlim=(x[0], x[-1]), xlabel=LOGSNR)
    return numbers.merge(_strip(ax, fit, x), on="logsnr")


def _strip(ax: Axes, fit: xr.DataTree, x: np.ndarray) -> pd.DataFrame:
    """Beneath the axes: contraction, or how often each logsnr was tested."""
    what, value, _ = summary.window(fit, x)
    if not what:
        return pd.DataFrame({"logsnr": x})
    strip = ax.inset_axes((0.0, -0.27, 1.0, 0.13), sharex=ax)
    strip.fill_between(x, value, color=GREY, alpha=0.6, lw=0, step="mid")
    strip.set(ylim=(0, 1.05), xlabel=LOGSNR, yticks=(0, 1) if what == "contraction" else ())
    if what == "contraction":
        strip.axhline(summary.SAYS, color="black", lw=0.5, ls=":")
    title = {"contraction": "contraction of a flexible law", "tested": "tested log SNR"}
    strip.set_title(title[what], loc="left", pad=2, fontsize=6)
    ax.set_xlabel("")
    ax.tick_params(labelbottom=False)
    return pd.DataFrame({"logsnr": x, what: value})


def zoo(ax: Axes, numbers: pd.DataFrame) -> pd.DataFrame:
    """The named weightings at κ = 1, shifted to the fit's half-height."""
    mean = summary.rows(numbers, kind="fit")
    x = np.asarray(mean["logsnr"])
    fine = np.linspace(x[0], x[-1], 401)
    half = summary.half_height(x, np.asarray(mean["median"]))
    if half is None:  # it does not fall to ½ near the tested logsnr: there is no place to put them
        return pd.DataFrame()
    drawn = []
    for name, (colour, dashes) in _ZOO.items():
        w = np.ones_like(fine) if name == "elbo" else summary.placed(name, half, fine)
        ax.plot(fine, w, color=colour, ls=dashes, lw=0.7, label=canonical(name), zorder=1.5)
        columns = {"kind": "named", "curve": canonical(name), "logsnr": fine, "median": w}
        drawn.append(pd.DataFrame(columns))
    ax.text(0.02, 0.05, "named: κ = 1,\nshifted to meet\nthe fit at w = ½", transform=ax.transAxes,
            fontsize=6)  # fmt: skip
    return pd.concat(drawn, ignore_index=True)


def bin_width(data: xr.Dataset) -> float | None:
    """Seconds, or None where the data do not say."""
    if "bin_width" in data.attrs:
        return float(data.attrs["bin_width"])
    if "time" in data.coords:
        return float(np.median(np.diff(data["time"].values)))
    return None


def ends_of(levels: np.ndarray) -> dict[float, float]:
    """Where ±∞ is drawn: beyond the outermost finite level, across a gap."""
    finite = levels[np.isfinite(levels)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    gap = 0.18 * (high - low) or 1.0
    return {-np.inf: low - gap, np.inf: high + gap}


def predicted_and_observed(
    ax: Axes, numbers: pd.DataFrame, ends: dict[float, float], interval: str
) -> None:
    """Predictive bands, joined over the finite levels and boxes at infinite ones, and points."""
    levels = np.asarray(numbers["logsnr"])
    half = 0.025 * (ends[np.inf] - ends[-np.inf])
    pieces = [(levels[np.isfinite(levels)], numbers.iloc[np.isfinite(levels).nonzero()[0]])]
    for i in np.isinf(levels).nonzero()[0]:
        place = ends[levels[i]]
        pieces.append((np.array([place - half, place + half]), numbers.iloc[[i, i]]))
    for x, part in pieces:
        banded(ax, x, part, BLUE)
    ax.plot([], [], color=BLUE, label="predicted, 50 and 90 %")
    error = [numbers["observed"] - numbers["low"], numbers["high"] - numbers["observed"]]
    ax.errorbar(numbers["logsnr"].replace(ends), numbers["observed"], error, fmt="o", ms=2.2,
                color="black", lw=0.8, label=f"observed, {interval}")  # fmt: skip


def banded(ax: Axes, x: np.ndarray, numbers: pd.DataFrame, colour: str) -> None:
    """Central 50 % and 90 %, and the median."""
    for low, high, alpha in _BANDS:
        ax.fill_between(x, numbers[low], numbers[high], color=colour, alpha=alpha, lw=0)
    ax.plot(x, numbers["median"], color=colour)


def label_response(
    ax: Axes, fit: xr.DataTree, numbers: pd.DataFrame, ends: dict[float, float], counts: bool
) -> None:
    """Axes, chance, the number of trials, the break before ±∞, and the legend."""
    whole = summary.rows(numbers, group="")
    levels = np.asarray(whole["logsnr"])
    ax.set_xlabel(LOGSNR)
    ax.set_ylim(0, None if counts else 1.02)
    guess = json.loads(fit.attrs.get("fixed", "{}")).get("observer.guess")
    if guess is not None:
        ax.axhline(guess, color="black", lw=0.6, ls=":", label="chance")
    count = sorted(set(whole["n"]))
    unit = "bins" if counts else "trials"
    n = f"{count[0]}" if len(count) == 1 else f"{count[0]} to {count[-1]}"
    if len(whole) < len(numbers):
        ax.plot([], [], ".-", color=SKY, ms=3, lw=0.6, label="each group")
    _break_axis(ax, levels, ends)
    beyond = _crop(ax, levels)
    ax.text(0.02, 0.97, f"n = {n} {unit} a point{beyond}", transform=ax.transAxes, va="top",
            fontsize=6)  # fmt: skip
    legend_above(ax, 2)


def _crop(ax: Axes, levels: np.ndarray) -> str:
    """Leave stray low levels (a filter's floor) outside the view, and say how many."""
    finite = levels[np.isfinite(levels)]
    first, third = np.quantile(finite, [0.25, 0.75]) if len(finite) else (0.0, 0.0)
    left = first - 2 * (third - first)
    stray = int((finite < left).sum())
    if stray:
        ax.set_xlim(left=left)
    return f"\n{stray} left of the view" if stray else ""


def _break_axis(ax: Axes, levels: np.ndarray, ends: dict[float, float]) -> None:
    """Tick ±∞ and mark the gap before it."""
    infinite = {v: at for v, at in ends.items() if v in levels}
    finite = levels[np.isfinite(levels)]
    if not infinite or not len(finite):
        return
    ticks = [t for t in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(finite.min(), finite.max())
             if finite.min() <= t <= finite.max()]  # fmt: skip
    labels = [f"{t:g}".replace("-", "−") for t in ticks]
    for value, place in infinite.items():
        ticks.append(place)
        labels.append("∞" if value > 0 else "−∞")
        edge = finite.max() if value > 0 else finite.min()
        ax.text((place + edge) / 2, 0, "//", transform=ax.get_xaxis_transform(), ha="center",
                va="center", backgroundcolor="white", fontsize=6)  # fmt: skip
    ax.set_xticks(ticks, labels)


def label_comparison(ax: Axes, rows: pd.DataFrame) -> None:
    """Names, the line above the controls, an axis linear within ±4 nats, and the legend."""
    labels = rows.drop_duplicates("row")
    ax.set_yticks(labels["row"], labels["label"])
    ax.set_ylim(len(labels) - 0.4, -0.6)
    controls = np.asarray(summary.rows(labels, kind="control")["row"])
    if len(controls):
        ax.axhline(controls.min() - 0.5, color="black", lw=0.4, ls=":")
    difference, error = np.asarray(rows["elpd_diff"]), np.asarray(rows["dse"])
    low, high = (difference - error).min(), (difference + error).max()
    ax.set_xscale("symlog", linthresh=summary.TIE, linscale=0.8)
    tie, far = summary.TIE, max(10.0, -low, high)
    ax.set_xlim(min(-2 * tie, 1.4 * low), max(2 * tie, 1.4 * high))
    powers = [10.0**k for k in range(1, int(np.log10(far)) + 1)]
    last = powers[-1]  # labels of others would run into each other
    ax.xaxis.set_major_locator(FixedLocator([-last, -tie, 0, tie, last]))
    ax.xaxis.set_minor_locator(FixedLocator([*(-p for p in powers), *powers]))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    # long names leave the axis narrow: from its right end the label has room
    ax.set_xlabel("elpd less that of the best (nat)\ngrey: no difference is claimed", loc="right")
    ax.tick_params(axis="y", length=0)
    keys = [
        ("o", "white", "not distinguished"),
        ("o", "black", "behind"),
        ("D", "white", "control"),
    ]
    for marker, face, label in keys:
        ax.plot([], [], marker, color="black", ms=3, mfc=face, label=label)
    legend_above(ax, 2)
