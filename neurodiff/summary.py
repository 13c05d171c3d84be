r"""The numbers behind the figures: bands of curves, responses by level, envelopes of ranks.

The stimulus fixes logsnr only up to a shift, so a named stopping law is moved, at κ = 1, to where
its half-height meets that of the fit's posterior median :math:`m`:

.. math:: w_{name}(\lambda - \lambda_m + \lambda_{name}), \qquad
          m(\lambda_m) = w_{name}(\lambda_{name}) = \tfrac12

An exponential has its λ_min as its shift, so it goes by the same rule. What is left to compare is
scale and shape.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import binom, binomtest

from neurodiff.diffusion.law import LawDistribution
from neurodiff.diffusion.weighting import to_stopping
from neurodiff.diffusion.weighting import weighting as named

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
TIE = 4.0  # nats of elpd below which no difference is claimed
SAYS = 0.1  # contraction below which the data say nothing
_LEVELS = 15  # more distinct logsnr than this are pooled at quantiles
_POOLED = 20
_NOT_GROUPS = {"chain", "draw", "curve_draw", "logsnr"}


def curves(fit: xr.DataTree, name: str) -> pd.DataFrame:
    """Posterior quantiles of a curve over logsnr.

    Args:
        fit: A fit of a model with a weighting.
        name: ``weighting`` or ``stopping_density``.

    Returns:
        Rows of kind ``fit`` (for hierarchical fits the mean of the groups) and ``group``, with
        columns ``kind, curve, logsnr, q05, q25, median, q75, q95``, and ``informed``: whether the
        data say something there.

    Raises:
        ValueError: If the fit has no such curve, as constants and history-only controls have none.
    """
    posterior = fit["posterior"].dataset
    if name not in posterior:
        found = ", ".join(str(v) for v in posterior.data_vars)
        raise ValueError(
            f"the fit has no curve {name!r} (it has {found}): "
            "wanted the fit of a model with a weighting"
        )
    curve = posterior[name]
    groups = [str(d) for d in curve.dims if d not in _NOT_GROUPS]
    rows = [("fit", str(fit.attrs.get("hypothesis", "fit")), curve.mean(groups))]
    if groups:
        rows += [("group", str(g.values), curve.sel({groups[0]: g})) for g in curve[groups[0]]]
    logsnr = curve["logsnr"].values
    informed = window(fit, logsnr)[2]
    tables = []
    for kind, label, one in rows:
        sample = [d for d in one.dims if d != "logsnr"]
        columns = {"kind": kind, "curve": label, "logsnr": logsnr}
        columns |= quantiles(one.stack(all=sample).transpose("all", "logsnr").values)
        tables.append(pd.DataFrame({**columns, "informed": informed}))
    return pd.concat(tables, ignore_index=True)


def rows(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows of a table in which columns have these values.

    >>> rows(pd.DataFrame({"kind": ["fit", "group"], "n": [1, 2]}), kind="group")["n"].tolist()
    [2]
    """
    keep = np.ones(len(table), dtype=bool)
    for column, value in values.items():
        keep &= np.asarray(table[column] == value)
    return table.iloc[keep.nonzero()[0]]


def quantiles(draws: np.ndarray) -> dict[str, np.ndarray | np.floating]:
    """Central 50 % and 90 % and the median, over the first axis; of one number, numbers.

    >>> quantiles(np.arange(21.0))["q95"]
    np.float64(19.0)
    """
    # an array of no dimension is an object to pandas, which then ignores float_format
    return {key: np.quantile(draws, p, axis=0) for key, p in QUANTILES.items()}


def window(fit: xr.DataTree, logsnr: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    """Where along logsnr the data speak.

    The contraction of a flexible law where the fit carries it (group ``information``), else how
    often each logsnr was tested (group ``constant_data``), else nothing is known. Contraction is
    taken for 0 outside the tested logsnr.

    Returns:
        What is shown (``contraction``, ``tested`` or empty), its values in [0, 1], and where the
        data say something: contraction of at least 0.1, or within the central 99 % of what was
        tested.
    """
    inside, count = _tested(fit, logsnr)
    if "information" in fit.children:
        known = fit["information"].dataset["contraction"]
        value = np.interp(logsnr, known["logsnr"].values, known.values, left=0.0, right=0.0)
        # beyond the tested logsnr a law goes on as it must, and contracts without having seen data
        value = np.where(inside, value.clip(0, 1), 0.0)
        return "contraction", value, value >= SAYS
    return ("tested", count / count.max(), inside) if count.any() else ("", count, inside)


def _tested(fit: xr.DataTree, logsnr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which logsnr lie in the central 99 % of those tested, and how often each was."""
    everywhere, never = np.ones(len(logsnr), dtype=bool), np.zeros(len(logsnr))
    if "constant_data" not in fit.children or "logsnr" not in fit["constant_data"]:
        return everywhere, never
    tested = fit["constant_data"].dataset["logsnr"].values
    tested = tested[np.isfinite(tested)]
    if not len(tested):
        return everywhere, never
    half = (logsnr[1] - logsnr[0]) / 2
    low, high = np.quantile(tested, [0.005, 0.995])
    count = np.histogram(tested, np.r_[logsnr - half, logsnr[-1] + half])[0]
    return (logsnr >= low - half) & (logsnr <= high + half), count.astype(float)


def half_height(logsnr: np.ndarray, w: np.ndarray) -> float | None:
    """Where a falling w crosses ½, or None where it does not.

    >>> half_height(np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    0.5
    """
    if not w[0] > 0.5 > w[-1]:
        return None
    return float(np.interp(-0.5, -w, logsnr))


def placed(name: str, half: float, logsnr: np.ndarray) -> np.ndarray:
    """A named weighting as a survival function, moved so that it crosses ½ at ``half``.

    Raises:
        ValueError: If the weighting has no stopping law.

    >>> placed("sigmoid", 1.0, np.array([1.0])).round(6)
    array([0.5])
    """
    law, own = _stopping(name)
    return law.survival(torch.as_tensor(logsnr - half) + own).detach().numpy()


@cache
def _stopping(name: str) -> tuple[LawDistribution, torch.Tensor]:
    """The stopping law of a named weighting, and where it crosses ½."""
    w = named(name)
    unbounded = bool(torch.isinf(w(torch.tensor(-torch.inf))))
    law = to_stopping(w, logsnr_min=0.0 if unbounded else None)()
    return law, law.isf(torch.tensor(0.5))


def responses(
    fit: xr.DataTree, data: xr.Dataset
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The answered trials of a fit.

    Returns:
        Name of the response; what was observed (trial,), what the fit predicts (draw, trial), and
        at which logsnr (trial,): that of the front end where the fit keeps it; and which trials
        of the data these are.

    Raises:
        ValueError: If the data are not those of the fit.
    """
    replicated = fit["posterior_predictive"].dataset
    name = str(next(iter(replicated.data_vars)))
    observed = fit["observed_data"].dataset[name].values
    if name not in data or not np.array_equal(data[name].values, observed, equal_nan=True):
        raise ValueError(
            f"the data are not those of the fit: its {name!r} has {len(observed)} values, and the "
            f"data's differ; pass the data set that was fitted ({fit.attrs.get('data', 'unknown')})"
        )
    kept = "constant_data" in fit.children and "logsnr" in fit["constant_data"]
    logsnr = (fit["constant_data"].dataset if kept else data)["logsnr"].values
    answered = ~np.isnan(observed)
    draws = replicated[name].values.reshape(-1, len(observed))
    return name, observed[answered], draws[:, answered], logsnr[answered], answered


def levels(logsnr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The level of each trial, and the logsnr of each level: pooled at quantiles if there are many.

    A pooled level stands at the median of its logsnr; ±∞ are levels of their own.

    >>> levels(np.array([0.0, np.inf, 0.0]))
    (array([0, 1, 0]), array([ 0., inf]))
    """
    values = np.unique(logsnr)
    if len(values) > _LEVELS:
        finite = logsnr[np.isfinite(logsnr)]
        edges = np.unique(np.quantile(finite, np.linspace(0, 1, _POOLED + 1)[1:-1]))
        index = np.searchsorted(edges, logsnr, "right") + 1
        index = np.where(np.isfinite(logsnr), index, np.where(logsnr > 0, len(edges) + 2, 0))
        used, index = np.unique(index, return_inverse=True)
        return index, np.array([np.median(logsnr[index == k]) for k in range(len(used))])
    return np.searchsorted(values, logsnr), values


def by_level(
    observed: np.ndarray, predicted: np.ndarray, logsnr: np.ndarray, block: np.ndarray | None
) -> pd.DataFrame:
    """Mean response at each level of logsnr, its error, and the quantiles of predicted means.

    Args:
        observed: (trial,)
        predicted: (draw, trial)
        logsnr: (trial,), ±∞ allowed.
        block: Units of generalisation (trial,) for the standard error of a rate; None for choices,
            which get the Wilson 90 % interval.

    Returns:
        Columns ``logsnr, n, observed, low, high, q05, q25, median, q75, q95``.
    """
    index, places = levels(logsnr)
    rows, means = [], []
    for k, place in enumerate(places):
        here = index == k
        y = observed[here]
        low, high = _wilson(y) if block is None else _clustered(y, block[here])
        rows.append({"logsnr": place, "n": len(y), "observed": y.mean(), "low": low, "high": high})
        means.append(predicted[:, here].mean(1))
    return pd.DataFrame(rows).assign(**quantiles(np.stack(means, 1)))


def _wilson(y: np.ndarray) -> tuple[float, float]:
    interval = binomtest(int(y.sum()), len(y)).proportion_ci(0.9, "wilson")
    return interval.low, interval.high


def _clustered(y: np.ndarray, block: np.ndarray) -> tuple[float, float]:
    """Mean ± the standard error of a ratio over blocks, which need not be equally long."""
    mean = float(y.mean())
    index = np.unique(block, return_inverse=True)[1]
    sums = np.bincount(index, weights=y - mean)
    count = len(sums)
    error = np.sqrt((sums**2).sum() * count / (count - 1)) / len(y) if count > 1 else np.inf
    return mean - error, mean + error


def grouped(fit: xr.DataTree, data: xr.Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """For hierarchical fits the label and the trials of each group, as the data name them."""
    curve = fit["posterior"].dataset.get("weighting")
    dims = [] if curve is None else [str(d) for d in curve.dims if d not in _NOT_GROUPS]
    if curve is None or not dims:
        return
    labels = curve[dims[0]].values
    for variable in data.variables.values():
        if variable.ndim == 1 and np.array_equal(np.unique(variable.values), labels):
            yield from ((str(label), variable.values == label) for label in labels)
            return


def envelope(sets: int, draws: int, at: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The band that holds the ECDF of uniform ranks at all points at once, but for ``level``.

    Säilynoja, Bürkner & Vehtari (2022), with the pointwise level found by simulation.

    Args:
        sets: Number of ranks.
        draws: A rank is uniform on 0, …, draws.
        at: Ranks at which the ECDF is looked at, below ``draws``.
        level: Probability of leaving the band anywhere.

    >>> low, high = envelope(300, 99, np.array([49]), 0.05)
    >>> low.round(2), high.round(2)
    (array([0.44]), array([0.56]))
    """
    uniform = (at + 1) / (draws + 1)
    random = np.random.default_rng(0)
    ranks = np.sort(random.integers(0, draws + 1, (2000, sets)), 1)
    counts = np.stack([np.searchsorted(row, at, "right") for row in ranks])
    tail = np.minimum(binom.cdf(counts, sets, uniform), binom.sf(counts - 1, sets, uniform))
    # counts are discrete: one whose tail is the pointwise level itself is still inside
    pointwise = np.quantile(tail.min(1), level, method="lower") * (1 - 1e-9)
    return binom.ppf(pointwise, sets, uniform) / sets, binom.isf(pointwise, sets, uniform) / sets


def units(data: xr.Dataset, name: str) -> np.ndarray:
    """Blocks, else every bin for itself."""
    return data["block"].values if "block" in data.coords else np.arange(data[name].size)


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """The table with, for each hypothesis, its row in the figure: controls below, best on top."""
    wanted = ["data", "front_end", "gauge", "hypothesis", "kind", "elpd_diff", "dse", "verdict"]
    missing = [column for column in wanted if column not in table]
    if missing or not len(table):
        raise ValueError(
            f"the comparison has {len(table)} rows and lacks {missing or 'no columns'}: "
            "wanted the table that neurodiff.compare returns"
        )
    records = []
    for row in pd.DataFrame(table[wanted]).to_dict(orient="records"):
        scale = {"fixed": ", κ = 1", "free": ", κ free"} if row["kind"] == "named" else {}
        label = row["hypothesis"] + scale.get(row["gauge"], "")
        if len(set(table["data"])) > 1:
            label += f" · {row['data']}"
        control = row["kind"] == "control"
        behind = row["verdict"].startswith("behind")
        if control:  # these have no verdict of their own
            behind = row["elpd_diff"] <= -max(2 * row["dse"], TIE)
        records.append({**row, "label": label, "behind": behind, "control": control})
    best = {r["label"]: -np.inf for r in records}
    for r in records:
        best[r["label"]] = max(best[r["label"]], r["elpd_diff"])
    labels = sorted(best, key=lambda name: -best[name])
    control = {r["label"] for r in records if r["control"]}
    place = {name: i for i, name in enumerate(sorted(labels, key=lambda name: name in control))}
    records = [{**r, "row": place[r["label"]]} for r in records]
    return pd.DataFrame(sorted(records, key=lambda r: (r["row"], r["front_end"])))


def checked_draws(ranks: xr.Dataset) -> int:
    """The number of draws among which each truth was ranked.

    Raises:
        ValueError: If ``ranks`` or ``attrs["draws"]`` is missing, or a rank is outside 0, …, draws.
    """
    if "ranks" not in ranks or "draws" not in ranks.attrs:
        raise ValueError(
            f"got variables {list(ranks.data_vars)} and attributes {list(ranks.attrs)}: wanted "
            "'ranks' (set, component) and attrs['draws'], as Calibration.to_dataset() gives"
        )
    draws, low, high = (
        int(v) for v in (ranks.attrs["draws"], ranks["ranks"].min(), ranks["ranks"].max())
    )
    if low < 0 or high > draws:
        raise ValueError(f"ranks lie in {low} … {high}, wanted 0 … {draws}: set attrs['draws']")
    return draws
