r"""Which hypotheses do held-out data tell apart?

Every row has the expected log predictive density of each unit of generalisation, the log mean over posterior draws of

.. math:: \text{elpd}_j = \log \tfrac1S \sum_s p(y_j \mid x_s), \qquad x_s \sim p(x \mid \text{data without } j)

and differences are paired over units: :math:`\text{SE}(\Delta) = \sqrt{J\,\mathrm{Var}_j(\Delta_j)}`. Two rows are
"not distinguished" when |Δ| < 2 SE or |Δ| < 4 nats. The best is "adequate" within 2 SE of the free monotone link, and
where a noise floor does as well the verdict says that a noise floor suffices, however the weightings rank.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

from neurodiff.inference.fit import Bound
from neurodiff.inference.laplace import Modes, find_modes, importance_draws

_NATS = 4.0  # below this a difference is not claimed, however small its standard error
COLUMNS = [
    "data",
    "front_end",
    "gauge",
    "hypothesis",
    "kind",
    "elpd",
    "se",
    "elpd_diff",
    "dse",
    "weight",
    "verdict",
]


def alternating(units: int, folds: int = 5) -> np.ndarray:
    """Fold of each unit: every ``folds``-th block, so that each fold covers the whole recording.

    >>> alternating(7, 3)
    array([0, 1, 2, 0, 1, 2, 0])
    """
    return np.arange(units) % folds


def kfold(
    bound: Bound, modes: Modes, fold: np.ndarray, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out elpd of each unit by blocked K-fold, all folds as one batch.

    Folds share every tensor and differ in a 0/1 mask; each starts at the full fit with its Hessian.

    Args:
        bound: Model and data.
        modes: The mode of the full fit.
        fold: Fold of each unit.
        draws: Posterior draws of each fold.
        seed: Of the draws.

    Returns:
        elpd of each unit, and the Pareto k̂ of each fold's posterior.
    """
    count = int(fold.max()) + 1
    held = torch.as_tensor(fold)[None] == torch.arange(count)[:, None]
    mask = (~held).to(bound.posterior.mask)
    folds = bound.posterior.with_mask(mask)
    inverse = (modes.factor @ modes.factor.mT).expand(count, -1, -1)
    found = find_modes(folds, modes.u.expand(count, -1), inverse)
    result = importance_draws(folds, found, draws, torch.Generator().manual_seed(seed))
    predicted = torch.logsumexp(result.by_unit, 1) - np.log(draws)
    elpd = (predicted * held.to(predicted)).sum(0)
    return elpd.cpu().numpy(), result.k_hat.cpu().numpy()


def elpd_of(tree: xr.DataTree) -> xr.DataArray:
    """The elpd of each unit that a fit carries: K-fold or leave-one-subject-out before leave-one-out.

    Raises:
        ValueError: If the fit has neither group.
    """
    for group in ("kfold", "loo"):
        if group in tree.children:
            return tree[group]["elpd"]
    raise ValueError(
        "the fit has no elpd: a time series needs blocked K-fold (neurodiff fit adds it); "
        f"groups found: {', '.join(tree.children)}"
    )


def paired(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Sum of a - b over units and its standard error.

    >>> paired(np.array([1.0, 2.0]), np.array([0.0, 2.0]))
    (1.0, 1.0)
    """
    d = np.asarray(a) - np.asarray(b)
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
        new = w * (p / (w @ p)).mean(1)
        if np.abs(new - w).max() < 1e-9:
            break
        w = new
    return w / w.sum()


def _row(name: str, tree: xr.DataTree) -> dict:
    attrs = tree.attrs
    return {
        "data": attrs.get("data", ""),
        "front_end": attrs.get("front_end", "none"),
        "gauge": attrs.get("gauge", "fixed"),
        "hypothesis": attrs.get("hypothesis", name),
        "kind": attrs.get("kind", "law"),
        "unsaturated": bool(attrs.get("unsaturated", 0)),
        "spikes": float(attrs.get("spikes", np.nan)),
        "k_hat": float(tree["sample_stats"].get("k_hat", np.nan)),
        "units": elpd_of(tree).values,
    }


def read_rows(fits: Mapping[str, xr.DataTree | str | Path]) -> list[dict]:
    """One row a fit, holding only its elpd and labels: files are opened one at a time."""
    rows = []
    for name, fit in fits.items():
        if isinstance(fit, xr.DataTree):
            rows.append(_row(name, fit))
        else:
            with xr.open_datatree(fit, engine="h5netcdf") as tree:
                rows.append(_row(name, tree))
    return rows


def compare(fits: Mapping[str, xr.DataTree | str | Path]) -> pd.DataFrame:
    """Table of hypotheses by data set and front end, best first, with verdicts.

    Args:
        fits: Fits by name, or the files that hold them.

    Returns:
        Columns ``data, front_end, gauge, hypothesis, kind, elpd, se, elpd_diff, dse, weight, verdict`` in nats (the
        difference is to the best hypothesis), and ``bits_per_spike`` over the mean rate for counts.

    Raises:
        ValueError: If rows of one data set were scored on different units.
    """
    rows = read_rows(fits)
    tables = []
    for data in dict.fromkeys(row["data"] for row in rows):
        mine = [row for row in rows if row["data"] == data]
        lengths = {len(row["units"]) for row in mine}
        if len(lengths) > 1:
            raise ValueError(f"fits to {data!r} were scored on different units: {sorted(lengths)}")
        for end in dict.fromkeys(row["front_end"] for row in mine):
            tables.append(_table([row for row in mine if row["front_end"] == end]))
        _mark_front_ends(tables, data)
    table = pd.concat(tables, ignore_index=True)
    extra = ["bits_per_spike"] if table["bits_per_spike"].notna().any() else []
    return table[COLUMNS + extra]


def _table(rows: list[dict]) -> pd.DataFrame:
    """The rows of one data set and front end."""
    by_name = {row["hypothesis"]: row for row in rows}
    rivals = [row for row in rows if row["kind"] != "control"] or rows
    best = max(rivals, key=lambda row: row["units"].sum())
    weights = stacking(np.stack([row["units"] for row in rivals]))
    constant = by_name.get("constant")
    table = pd.DataFrame([{k: v for k, v in row.items() if k != "units"} for row in rows])
    sums = [paired(row["units"], np.zeros_like(row["units"])) for row in rows]
    differences = [paired(row["units"], best["units"]) for row in rows]
    table["elpd"], table["se"] = zip(*sums, strict=True)
    table["elpd_diff"], table["dse"] = zip(*differences, strict=True)
    place = {id(row): w for row, w in zip(rivals, weights, strict=True)}
    table["weight"] = [place.get(id(row), np.nan) for row in rows]
    table["verdict"] = [_verdict(row, best, by_name) for row in rows]
    table["bits_per_spike"] = np.nan
    if constant is not None:
        gain = table["elpd"] - constant["units"].sum()
        table["bits_per_spike"] = gain / (table["spikes"] * np.log(2))
    return table.sort_values("elpd", ascending=False)


def _verdict(row: dict, best: dict, by_name: dict[str, dict]) -> str:
    """What may be said of a row, in the words of the documentation."""
    if row["kind"] == "control":
        return "control"
    words = []
    if row is best:
        words.append("best")
        words += _adequacy(row, by_name)
    else:
        far = distinguished(*paired(row["units"], best["units"]))
        words.append("behind" if far else "not distinguished")
    if row["unsaturated"]:
        words.append("not saturating: power law")
    if row["k_hat"] > 0.7:
        words.append("k-hat above 0.7: use NUTS")
    return "; ".join(words)


def _adequacy(best: dict, by_name: dict[str, dict]) -> list[str]:
    """Whether the best row reaches the free link, and whether it beats the noise floor."""
    words = []
    ceiling, floor = by_name.get("free link"), by_name.get("noise floor")
    if ceiling is not None:
        gap, se = paired(ceiling["units"], best["units"])
        words.append("adequate" if gap < 2 * se else f"inadequate: {gap:.0f} nats below free link")
    if floor is not None:
        gap, se = paired(best["units"], floor["units"])
        if not (gap > 0 and distinguished(gap, se)):
            words.append("a noise floor suffices")
    return words


def _mark_front_ends(tables: list[pd.DataFrame], data: str) -> None:
    """Add 'depends on the front end' where a row is behind under one front end and not another."""
    mine = [t for t in tables if (t["data"] == data).all()]
    together = pd.concat(mine)
    together = together[together["kind"] != "control"]
    behind = together["verdict"].str.startswith("behind")
    key = [together["hypothesis"], together["gauge"]]
    changes = behind.groupby(key).agg(lambda b: b.any() and not b.all())
    for table in mine:
        for i, row in table.iterrows():
            if row["kind"] != "control" and changes.get((row["hypothesis"], row["gauge"]), False):
                table.loc[i, "verdict"] = row["verdict"] + "; depends on the front end"
