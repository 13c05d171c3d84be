r"""Which hypotheses do held-out data tell apart?

Every row has the expected log predictive density of each unit of generalisation, the log mean over
posterior draws of

.. math:: \text{elpd}_j = \log \tfrac1S \sum_s p(y_j \mid x_s), \qquad
          x_s \sim p(x \mid \text{data without } j)

and differences are paired over units:
:math:`\text{SE}(\Delta) = \sqrt{J\,\mathrm{Var}_j(\Delta_j)}`.

Two rows are "not distinguished" when |Δ| < 2 SE or |Δ| < 4 nats. The best is "adequate" within 2 SE
of the free monotone link, and a row that does not beat the noise floor reads "a noise floor
suffices", however the weightings rank. How held-out densities are come by is in
:mod:`~neurodiff.inference.heldout`.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import xarray as xr

from neurodiff.inference.psis import leave_one_out

_NATS = 4.0  # below this a difference is not claimed, however small its standard error
_GROUPS = ("loso", "kfold", "loo")  # a claim about a population first
_LABELS = ["data", "front_end", "gauge", "hypothesis"]
COLUMNS = [*_LABELS, "kind", "elpd", "se", "elpd_diff", "dse", "weight", "verdict"]


def elpd_of(tree: xr.DataTree) -> tuple[np.ndarray, float]:
    """The elpd of each unit that a fit carries, and the largest Pareto k̂ behind it.

    Leave-one-subject-out is taken before blocked K-fold, and that before leave-one-out. A fit of a
    time series that has none of them gets PSIS over its blocks, from the log likelihoods it keeps.

    Raises:
        ValueError: If the fit has neither these groups nor log likelihoods.
    """
    groups = {str(name): group.dataset for name, group in tree.children.items()}
    stats = groups.get("sample_stats", xr.Dataset())
    own = float(stats["k_hat"]) if "k_hat" in stats else -np.inf
    for group in _GROUPS:
        if group in groups:
            scores = groups[group]
            return scores["elpd"].values, max(own, float(scores["k_hat"].max()))
    if "log_likelihood" not in groups:
        found = ", ".join(groups) or "none"
        raise ValueError(
            f"the fit has neither held-out scores nor log likelihoods; its groups: {found}"
        )
    (kept,) = groups["log_likelihood"].data_vars.values()
    elpd, k_hat = leave_one_out(kept.values.astype(float))
    return elpd, max(own, float(k_hat.max()))


def paired(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Sum of a - b over units and its standard error, which is infinite for a single unit.

    >>> paired(np.array([1.0, 2.0]), np.array([0.0, 2.0]))
    (1.0, 1.0)
    """
    d = np.asarray(a) - np.asarray(b)
    with np.errstate(invalid="ignore"):  # the s.e. of an infinite difference is nan
        return float(d.sum()), float(np.sqrt(len(d) * d.var(ddof=1))) if len(d) > 1 else np.inf


def distinguished(difference: float, se: float) -> bool:
    """Whether a paired difference is a claim: at least 2 SE and 4 nats.

    >>> distinguished(10.0, 2.0), distinguished(3.0, 0.1)
    (True, False)
    """
    return abs(difference) >= 2 * se and abs(difference) >= _NATS


def stacking(elpd: np.ndarray) -> np.ndarray:
    """Weights of the mixture of hypotheses that predicts held-out units best (Yao et al. 2018).

    Args:
        elpd: (hypothesis, unit).

    >>> stacking(np.array([[0.0, 0.0], [-50.0, -50.0]])).round(3)
    array([1., 0.])
    """
    p = np.exp(elpd - elpd.max(0))
    w = np.full(len(p), 1 / len(p))
    for _ in range(5000):  # expectation-maximisation of a concave objective
        gain = (p / (w @ p)).mean(1)
        w = w * gain
        if gain.max() < 1 + 1e-7:  # the optimum is at most this many nats a unit above
            break
    return w / w.sum()


def read_rows(fits: Mapping[str, xr.DataTree | str | Path]) -> list[dict]:
    """One row a fit, holding only its elpd and labels: files are opened one at a time.

    A second fit with the labels of another has its own name added, so that both can be told apart.
    """
    rows, seen = [], set()
    for name, fit in fits.items():
        row = _row(name, fit if isinstance(fit, xr.DataTree) else _scores(Path(fit)))
        labels = tuple(row[c] for c in _LABELS)
        if labels in seen:
            row["hypothesis"] += f" ({name})"
        seen.add(labels)
        rows.append(row)
    return rows


def _scores(path: Path) -> xr.DataTree:
    """Labels and scores of a file; to open all of its groups takes thirty times as long."""
    groups = {}
    with h5py.File(path) as file:
        # netCDF keeps a number as an array of one
        attrs = {k: v.item() if isinstance(v, np.ndarray) else v for k, v in file.attrs.items()}
        for group in (*_GROUPS, "sample_stats"):
            kept = [k for k in ("elpd", "k_hat") if f"{group}/{k}" in file]
            values = {k: np.asarray(file[f"{group}/{k}"]) for k in kept}
            groups[group] = {k: (f"dim_{k}" if v.ndim else (), v) for k, v in values.items()}
    found = {group: xr.Dataset(v) for group, v in groups.items() if v}
    if not set(found) & set(_GROUPS):
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load()
    tree = xr.DataTree.from_dict(found)
    tree.attrs = attrs
    return tree


def _row(name: str, tree: xr.DataTree) -> dict:
    attrs = tree.attrs
    units, k_hat = elpd_of(tree)
    return {
        "data": attrs.get("data", ""),
        "front_end": attrs.get("front_end", "none"),
        "gauge": attrs.get("gauge", "fixed"),
        "hypothesis": attrs.get("hypothesis", name),
        "kind": attrs.get("kind", "law"),
        "unsaturated": bool(attrs.get("unsaturated", 0)),
        "spikes": float(attrs.get("spikes", np.nan)),
        "hash": attrs.get("data_hash", ""),
        "k_hat": k_hat,
        "units": units,
    }


def compare(fits: Mapping[str, xr.DataTree | str | Path]) -> pd.DataFrame:
    """Table of hypotheses by data set and front end, best first, with verdicts.

    Args:
        fits: Fits by name, or the files that hold them, which are opened one at a time.

    Returns:
        Columns ``data, front_end, gauge, hypothesis, kind, elpd, se, elpd_diff, dse, weight,
        verdict`` in nats, and ``bits_per_spike`` over the mean rate for counts. Differences are to
        the best hypothesis that is no control, and negative where a row predicts worse; weights are
        those of stacking, and controls have none.

    Raises:
        ValueError: If there are no fits, or those of one data set were scored on different data or
            units.

    >>> def fit(*elpd):
    ...     loo = xr.Dataset({"elpd": ("trial", list(elpd)), "k_hat": ("trial", [0.0] * len(elpd))})
    ...     return xr.DataTree.from_dict({"loo": loo})
    >>> compare({"a": fit(-1.0, -2.0), "b": fit(-9.0, -9.5)})[["hypothesis", "verdict"]].values
    array([['a', 'best'], ['b', 'behind']], dtype=object)
    """
    rows = read_rows(fits)
    if not rows:
        raise ValueError("got no fits, wanted at least one")
    tables = []
    for data in dict.fromkeys(row["data"] for row in rows):
        mine = [row for row in rows if row["data"] == data]
        _refuse_mixture(mine, data)
        own = [
            _table([row for row in mine if row["front_end"] == end])
            for end in dict.fromkeys(row["front_end"] for row in mine)
        ]
        tables += _mark_front_ends(own, mine)
    table = pd.concat(tables, ignore_index=True)
    extra = ["bits_per_spike"] if any(table["bits_per_spike"].notna()) else []
    return table.loc[:, COLUMNS + extra]


def _refuse_mixture(rows: Sequence[dict], data: str) -> None:
    counts = {len(row["units"]): row["hypothesis"] for row in rows}
    if len(counts) > 1:
        got = ", ".join(f"{name!r} on {n}" for n, name in counts.items())
        raise ValueError(
            f"fits to {data!r} were scored on different units ({got}): differences are paired, so "
            "fit all of them to the same trials, in the same way (with or without --by)"
        )
    if len({row["hash"] for row in rows if row["hash"]}) > 1:
        raise ValueError(
            f"fits called {data!r} are of different data (their data_hash differs): compare them "
            "apart, or give the data different names"
        )


def _table(rows: list[dict]) -> pd.DataFrame:
    """The rows of one data set and front end."""
    by_name = {row["hypothesis"]: row for row in rows}
    scored = [row for row in rows if not np.isnan(row["units"]).any()]
    if not scored:
        raise ValueError(f"no fit to {rows[0]['data']!r} has a finite elpd: fit again with NUTS")
    rivals = [row for row in scored if row["kind"] != "control"] or scored
    best = max(rivals, key=lambda row: row["units"].sum())
    weights = stacking(np.stack([row["units"] for row in rivals]))
    table = pd.DataFrame([{k: v for k, v in row.items() if k != "units"} for row in rows])
    sums = [paired(row["units"], np.zeros_like(row["units"])) for row in rows]
    differences = [paired(row["units"], best["units"]) for row in rows]
    for row in rows:
        row["gap"] = row["units"] - best["units"]
    table["elpd"], table["se"] = zip(*sums, strict=True)
    table["elpd_diff"], table["dse"] = zip(*differences, strict=True)
    place = {id(row): w for row, w in zip(rivals, weights, strict=True)}
    table["weight"] = [place.get(id(row), np.nan) for row in rows]
    table["verdict"] = [_verdict(row, best, by_name) for row in rows]
    table["bits_per_spike"] = np.nan
    if "constant" in by_name:
        gain = table["elpd"] - by_name["constant"]["units"].sum()
        table["bits_per_spike"] = gain / (table["spikes"] * np.log(2))
    return table.sort_values("elpd", ascending=False, kind="stable")


def _verdict(row: dict, best: dict, by_name: dict[str, dict]) -> str:
    """What may be said of a row, in the words of the documentation."""
    words = ["control"] if row["kind"] == "control" and row is not best else []
    if row is best:
        words += ["best", *_adequacy(row, by_name)]
    elif np.isnan(row["units"]).any():
        words.append("not scored")
    elif not words:
        words.append("behind" if _behind(row["gap"]) else "not distinguished")
    if words[0] in ("best", "not distinguished"):
        words += _floor(row, by_name)
    if row["unsaturated"] and row["kind"] != "control":
        words.append("not saturating: power law")
    if row["k_hat"] > 0.7:
        words.append("k-hat above 0.7: numerically unsure")
    return "; ".join(words)


def _adequacy(best: dict, by_name: dict[str, dict]) -> list[str]:
    """Whether the best row reaches the free link."""
    ceiling = by_name.get("free link")
    if ceiling is None or ceiling is best:
        return []
    gap, se = paired(ceiling["units"], best["units"])
    return ["adequate" if gap <= 2 * se else f"inadequate: {gap:.0f} nats below the free link"]


def _floor(row: dict, by_name: dict[str, dict]) -> list[str]:
    """Whether a row beats the noise floor."""
    floor = by_name.get("noise floor")
    if floor is None or floor is row:
        return []
    gap, se = paired(row["units"], floor["units"])
    return [] if gap > 0 and distinguished(gap, se) else ["a noise floor suffices"]


def _mark_front_ends(tables: list[pd.DataFrame], rows: list[dict]) -> list[pd.DataFrame]:
    """Add 'depends on the front end' where how far a row is behind is another under another one.

    That is: behind under one front end and not under another, or its distance to the best of its
    front end differs between two of them by 2 standard errors and 4 nats, paired over units.
    """
    gaps: dict[tuple, list[np.ndarray]] = {}
    for row in rows:
        if row["kind"] != "control":
            gaps.setdefault((row["hypothesis"], row["gauge"]), []).append(row["gap"])
    changes = {
        key: any(
            _behind(a) != _behind(b) or distinguished(*paired(a, b))
            for a, b in itertools.combinations(own, 2)
        )
        for key, own in gaps.items()
    }
    for table in tables:
        columns = (table[c] for c in ("hypothesis", "gauge", "kind", "verdict"))
        table["verdict"] = [
            verdict + "; depends on the front end"
            if kind != "control" and changes[name, gauge]
            else verdict
            for name, gauge, kind, verdict in zip(*columns, strict=True)
        ]
    return tables


def _behind(gap: np.ndarray) -> bool:
    """Whether a row is behind the best, given its paired difference in each unit."""
    return not np.isfinite(gap).all() or distinguished(*paired(gap, np.zeros_like(gap)))
