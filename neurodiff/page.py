"""The words and tables of a report: what a comparison lets one say, and on what it rests.

Every verdict is said in plain words, every number with the prior or the fixed value that it rests
on, and every warning of a fit is shown. The page has no links and needs no other file.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
import xarray as xr

_TEMPLATE = Path(__file__).with_name("report.html")
SCORES = ("sample_stats", "loso", "kfold", "loo")  # the groups that fit_row reads
_GAUGE = {"fixed": " at κ = 1", "free": " with κ free"}
_WORDS = {
    "best": "predicts best",
    "behind": "predicts worse than the best",
    "not distinguished": "not distinguished from the best",
    "adequate": "adequate: within 2 SE of the free monotone link",
    "a noise floor suffices": "a noise floor suffices: a power law of stimulus strength with "
    "constant internal noise predicts no worse",
    "depends on the front end": "depends on the front end: behind under one, not under another",
    "not saturating: power law": "not saturating: a power law over the tested log SNR, so it goes "
    "under no weighting's name",
    "k-hat above 0.7: numerically unsure": "k̂ above 0.7: numerically unsure",
}
_DESCRIPTIVE = (
    "The fits are of the threshold kind, which is descriptive: any monotone response is some "
    "1 − w, so a good fit by itself says nothing about diffusion."
)

_DECIDED = (
    "Each row of kind “bound” stops because of the evidence, so that the survival of its decision "
    "times is no weighting. Rivals: time-stop and snr-stop ask nothing of the evidence’s sign, and "
    "their survival is a weighting, on the clock or on log SNR; in a race each answer has an "
    "accumulator of its own; deadline stops at a constant bound or at a time of its own, whichever "
    "comes first."
)


def render(
    table: pd.DataFrame,
    facts: Mapping,
    figures: Sequence[str],
    parameters: Sequence[str],
    fits: Sequence[dict],
    about: Mapping[str, Mapping],
) -> str:
    """The whole page.

    Args:
        table: The comparison.
        facts: run.json.
        figures: Figures of :func:`figure`.
        parameters: Tables of :func:`parameters`.
        fits: Rows of :func:`fit_row`.
        about: The attributes of a fit of each data part, for citation and licence.
    """
    task = str(facts.get("task", "threshold"))
    said = _DESCRIPTIVE if "threshold" in task else _DECIDED if "bounded" in task else ""
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        data=escape(", ".join(dict.fromkeys(table["data"]))),
        findings=findings(table),
        kind=said,
        figures="\n".join(figures),
        tables=_tables(table),
        parameters="\n".join(parameters),
        warnings=_warnings(fits, facts),
        count=len(fits),
        fits=_html([{k: v for k, v in row.items() if k != "warnings"} for row in fits]),
        facts=_facts(facts),
        citations=_citations(about),
    )


def records(table: pd.DataFrame) -> list[dict]:
    """The rows of a table."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.to_numpy().tolist()]


def is_best(row: Mapping) -> bool:
    """Whether a row predicts best under its front end."""
    return row["verdict"].split("; ")[0] == "best"


def name_of(hypothesis: str, gauge: str, kind: str = "named") -> str:
    """A hypothesis with its gauge, where it has one.

    >>> name_of("sigmoid/debiased", "fixed"), name_of("logistic", "free", "law")
    ('sigmoid/debiased at κ = 1', 'logistic')
    """
    return hypothesis + _GAUGE.get(gauge, "") if kind == "named" else hypothesis


def plain(verdict: str) -> str:
    """A verdict in plain words; what has none stays as it is.

    >>> plain("not distinguished; depends on the front end")
    'not distinguished from the best; depends on the front end: behind under one, not under another'
    """
    return "; ".join(_WORDS.get(part, part) for part in verdict.split("; "))


def findings(table: pd.DataFrame) -> str:
    """A paragraph for each data part and front end: the best, what ties with it, what falls behind.

    Controls are no hypotheses about stopping and appear by what they say of the best.
    """
    paragraphs = []
    for (data, end), part in table.groupby(["data", "front_end"], sort=False):  # pyright: ignore
        rows = records(part)
        best = [row for row in rows if is_best(row)]
        said = [f"<b>{escape(_named(row))}</b> {escape(plain(row['verdict']))}." for row in best]
        for start, words in (("not distinguished", "Not distinguished from it"),
                             ("behind", "Behind it")):  # fmt: skip
            some = [row for row in rows if row["verdict"].startswith(start)]
            listed = ", ".join(f"{_named(row)} ({_difference(row)})" for row in some)
            said.append(f"{words}: {escape(listed)}." if some else "")
        changing = [_named(row) for row in rows if "depends on the front end" in row["verdict"]]
        if changing:
            said.append(f"Depends on the front end: {escape(', '.join(changing))}.")
        head = f"{escape(str(data))}, front end {escape(str(end))}."
        paragraphs.append(f"<p><b>{head}</b> {' '.join(s for s in said if s)}</p>")
    return "\n".join(paragraphs)


def _named(row: Mapping) -> str:
    return name_of(row["hypothesis"], row["gauge"], row["kind"])


def _difference(row: Mapping) -> str:
    return f"Δ {row['elpd_diff']:.1f} ± {row['dse']:.1f}".replace("-", "−")


def _tables(table: pd.DataFrame) -> str:
    """One table for each data part and front end, best first."""
    parts = []
    for (data, end), part in table.groupby(["data", "front_end"], sort=False):  # pyright: ignore
        rows, classes = [], []
        for row in records(part):
            cells = {
                "hypothesis": _named(row),
                "kind": row["kind"],
                "elpd (nat)": f"{row['elpd']:.1f} ± {row['se']:.1f}",
                "Δ to best (nat)": f"{row['elpd_diff']:.1f} ± {row['dse']:.1f}",
                "bits/spike": _number(row.get("bits_per_spike"), ".3f"),
                "stacking weight": _number(row["weight"], ".2f"),
                "verdict": plain(row["verdict"]),
            }
            if "bits_per_spike" not in row:
                del cells["bits/spike"]
            rows.append(cells)
            classes.append("best" if is_best(row) else row["kind"])
        head = f"<h3>{escape(str(data))}, front end {escape(str(end))}</h3>"
        parts.append(f'{head}\n<div class="wide">{_html(rows, classes)}</div>')
    return "\n".join(parts)


def _number(value: float | None, form: str) -> str:
    return "" if value is None or np.isnan(value) else format(value, form)


def _html(rows: Sequence[Mapping], classes: Sequence[str] | None = None) -> str:
    """An HTML table; cells that begin with a digit or a sign are flush right."""
    if not rows:
        return ""
    numeric = {
        key: all(str(row[key])[:1] in "-0123456789" for row in rows if str(row[key]))
        for key in rows[0]
    }
    lines = []
    for row, name in zip(rows, classes or [""] * len(rows), strict=True):
        cells = (_cell("td", value, numeric[key]) for key, value in row.items())
        lines.append(f'<tr class="{name}">{"".join(cells)}</tr>')
    head = "".join(_cell("th", key, numeric[key]) for key in rows[0])
    return f"<table>\n<tr>{head}</tr>\n" + "\n".join(lines) + "\n</table>"


def _cell(tag: str, value: object, number: bool) -> str:
    text = escape(str(value))
    text = text.replace("-", "−") if number and tag == "td" else text
    return f"<{tag}{' class=number' if number else ''}>{text}</{tag}>"


def figure(image: bytes, title: str, caption: str, files: str) -> str:
    """A png inside the page."""
    data = base64.b64encode(image).decode()
    return (
        f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}">\n<figcaption>'
        f"<b>{escape(title)}.</b> {escape(caption)} <code>{escape(files)}</code></figcaption>"
        "</figure>"
    )


def parameters(fit: xr.DataTree) -> str:
    """Median and interval of each learned parameter with its prior, and what is fixed."""
    posterior, rows = fit["posterior"].dataset, []
    for name, prior in json.loads(fit.attrs.get("priors", "{}")).items():
        whole = f"population.{name}" if f"population.{name}" in posterior else name
        rows.append({"parameter": whole, "posterior": _interval(posterior[whole]), "prior": prior})
        if whole != name:
            spread = _interval(posterior[f"spread.{name}"])
            rows.append({"parameter": f"spread.{name}", "posterior": spread, "prior": ""})
    for name, value in json.loads(fit.attrs.get("fixed", "{}")).items():
        fixed = f"{np.asarray(value).reshape(-1)[0]:.4g}" if np.size(value) == 1 else str(value)
        rows.append({"parameter": name, "posterior": "", "prior": f"fixed at {fixed}"})
    keys = ("hypothesis", "gauge", "kind", "data", "front_end")
    name, gauge, kind, data, end = (str(fit.attrs.get(key, "")) for key in keys)
    title = escape(f"{name_of(name, gauge, kind)}, {data}, front end {end}")
    return f'<h3>{title}</h3>\n<div class="wide">{_html(rows)}</div>'


def _interval(draws: xr.DataArray) -> str:
    """Median [5 %, 95 %] of a number; the medians of an array."""
    low, middle, high = draws.quantile([0.05, 0.5, 0.95], ["chain", "draw"]).values
    if np.ndim(middle):
        return "medians " + ", ".join(f"{value:.2g}" for value in middle.reshape(-1))
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def fit_row(fit: xr.DataTree) -> dict:
    """How a fit went: one row of the table of fits, with its ``warnings``."""
    stats, a = fit["sample_stats"].dataset, fit.attrs
    scored = [fit[g].dataset for g in SCORES if g in fit.children]
    k_hat = _largest(scored, "k_hat")
    r_hat = _largest([stats], "r_hat_max")
    ess = _largest([stats], "ess_min" if "ess_min" in stats else "ess")
    diverging = int(stats["diverging"].sum()) if "diverging" in stats else 0
    unsure, none = (float(stats.get(name, 0.0)) for name in ("unsure", "unsure_none"))
    checks = {
        f"k̂ is {k_hat:.2f}, above 0.7: numerically unsure": k_hat > 0.7,
        f"R-hat is {r_hat:.3f}, above 1.01: draw longer": r_hat > 1.01,
        f"the effective sample size is {ess:.0f}, below 100: take more draws": ess < 100,
        f"{diverging} divergent transitions: the posterior has corners NUTS missed": diverging > 0,
        "the mode was not reached": not bool(stats.get("mode_converged", True)),
        "the Hessian is not positive definite": not bool(stats.get("hessian_definite", True)),
        "decisions take less than the grid can tell: steps half as long move "
        f"{unsure:.1%} of some; give more steps from Python": unsure > 1e-3,
        "the bound falls too fast to tell how many have no answer: steps half as long move the log "
        f"probability of one by {none:.1f}; give more steps from Python": none > 0.1,
        "SVI has not converged": not bool(stats.get("converged", True)),
    }
    return {
        "hypothesis": name_of(*(str(a.get(key, "")) for key in ("hypothesis", "gauge", "kind"))),
        "data": str(a.get("data", "")),
        "front end": str(a.get("front_end", "")),
        "method": str(a.get("method", "")),
        "largest k̂": _number(k_hat, ".2f"),
        "ESS": _number(ess, ".0f"),
        "R-hat": _number(r_hat, ".3f"),
        "seconds": _number(float(a.get("wall_seconds", np.nan)), ".2f"),
        "warnings": [words for words, holds in checks.items() if holds],
    }


def _largest(groups: Sequence[xr.Dataset], name: str) -> float:
    """The largest value above −∞, or nan; a k̂ of −∞ means that nothing was to be estimated."""
    values = np.concatenate([g[name].values.reshape(-1) for g in groups if name in g] or [[]])
    finite = values[~np.isnan(values) & (values > -np.inf)]
    return float(finite.max()) if len(finite) else np.nan


def _warnings(fits: Sequence[dict], facts: Mapping) -> str:
    """What went wrong, hypothesis by hypothesis."""
    said = [f"{name} failed: {why}" for name, why in (facts.get("failed") or {}).items()]
    for row in fits:
        label = f"{row['hypothesis']}, {row['data']}, front end {row['front end']}"
        said += [f"{label}: {words}" for words in row["warnings"]]
    if not said:
        return "<p>No fit failed, and none gave a warning.</p>"
    lines = "\n".join(f"<li>{escape(words)}</li>" for words in said)
    return f'<ul class="warning">\n{lines}\n</ul>'


def _facts(facts: Mapping) -> str:
    """The facts of run.json but for the lists of files and failures."""
    shown = {key: value for key, value in facts.items() if key not in ("files", "failed")}
    rows = []
    for key, value in shown.items():
        items = value.items() if isinstance(value, dict) else [("", value)]
        rows += [{"what": f"{key} {name}".strip(), "value": str(item)} for name, item in items]
    lines = (f"<tr><td>{escape(r['what'])}</td><td><code>{escape(r['value'])}</code></td></tr>"
             for r in rows)  # fmt: skip
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _citations(about: Mapping[str, Mapping]) -> str:
    """Who recorded the data, and under which licence they may be used."""
    lines = []
    for data, attrs in about.items():
        citation, licence = (str(attrs.get(key, "")).strip() for key in ("citation", "licence"))
        said = escape(citation) or "no citation is known"
        said += f" Licence: {escape(licence)}." if licence else " No licence is known."
        lines.append(f"<p><b>{escape(data)}</b>: {said}</p>")
    return "\n".join(lines)
