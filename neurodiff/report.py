"""``report(run_folder)``: the figures of a run, and one report.html that explains them.

Nothing is fitted and no data set is read: all comes from ``fits/*.nc``, ``comparison.csv`` and
``run.json``. Figures are of the best hypothesis under each front end, as png, pdf and the csv
behind them; the page holds copies and needs no other file. Files are written aside and renamed, so
each is there whole or not at all.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import h5netcdf
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib import style
from matplotlib.axes import Axes

from neurodiff import page, plot

_LABELS = ["data", "front_end", "gauge", "hypothesis"]
_COLUMNS = [*_LABELS, "kind", "elpd", "se", "elpd_diff", "dse", "weight", "verdict"]
_CAPTIONS = {
    "comparison": "Held-out elpd of each hypothesis less that of the best under the same front "
    "end, ± its paired standard error; logarithmic beyond ±4 nat.",
    "weighting": "Posterior of the weighting w(λ) (median, central 50 % and 90 %) over the named "
    "weightings at κ = 1, each shifted to meet it at half-height. Beneath: where along log SNR the "
    "data speak; the curve is grey where they do not.",
    "stopping": "Posterior of the stopping density −w′(λ), with its central 50 % and 90 %.",
    "choices": "Proportion of upper choices at each strength, over the central 50 % and 90 % of "
    "what the fit predicts for as many trials.",
    "times": "Quantiles of reaction time at each strength, over the central 50 % and 90 % of what "
    "the fit predicts for as many trials.",
    "answers": "Share of the answers that were a label, where the fit predicts about that share, "
    "over the central 50 % and 90 % of what it predicts for as many trials.",
    "effective": "The effective weighting of a bounded observer at each strength, median and "
    "central 90 %, over the survival of decision times (dashed): where stopping did not depend on "
    "the evidence, each pair would be one curve.",
    "response": "Responses at each log SNR, over the central 50 % and 90 % of what the fit "
    "predicts for the same trials.",
}


def report(run_folder: str | Path, executor: Executor | None = None) -> Path:
    """Draw the figures of a run and write its report.

    Args:
        run_folder: The folder of a finished run: ``fits/``, ``comparison.csv``, ``run.json``.
        executor: Where figures are drawn; in this process by default.

    Returns:
        The path of ``report.html``; the figures are in ``figures/`` beside it.

    Raises:
        ValueError: If the folder is no finished run, or a file in it is broken.
    """
    folder = Path(run_folder)
    table, facts, paths = _read(folder)
    best = {tuple(row[c] for c in _LABELS) for row in page.records(table) if page.is_best(row)}
    rows = {path: _opened(path, [*page.SCORES, "information"]) for path in paths}
    # what the data say is measured by the flexible law, and shown beneath the curves of the others
    informed = {path: row for path, row in rows.items() if "information" in row.children}
    winners = {
        path: next((p for p, r in informed.items() if _where(r) == _where(row)), None)
        for path, row in rows.items()
        if tuple(str(row.attrs.get(c, "")) for c in _LABELS) in best
    }
    (folder / "figures").mkdir(exist_ok=True)
    each = map if executor is None else executor.map
    # the long ones first; what is drawn elsewhere comes back in order
    drawn = each(partial(_figures_of, folder), list(winners), list(winners.values()))
    tables = [pd.DataFrame(table[table["data"] == d]) for d in dict.fromkeys(table["data"])]
    figures = list(each(partial(_comparison, folder), tables))
    parameters = []
    for some, text in drawn:
        figures += some
        parameters.append(text)
    fits = [page.fit_row(row) for row in rows.values()]
    about = {str(row.attrs.get("data", "")): row.attrs for row in rows.values()}
    text = page.render(table, facts, figures, parameters, fits, about)
    target = folder / "report.html"
    _write(target, lambda aside: aside.write_text(text, encoding="utf-8"))
    return target


# reading


def _read(folder: Path) -> tuple[pd.DataFrame, dict, list[Path]]:
    """The comparison, the facts of the run and the files of its fits."""
    paths = sorted((folder / "fits").glob("*.nc"))
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    wanted = [folder / "comparison.csv", folder / "run.json"]
    if not paths or not all(p.is_file() for p in wanted):
        got = f"holds {', '.join(found) or 'nothing'}" if folder.is_dir() else "is no folder"
        raise ValueError(
            f"{folder} {got}; wanted a finished run (fits/*.nc, comparison.csv, run.json): "
            "run neurodiff fit, or go on with --resume"
        )
    try:
        table = pd.read_csv(wanted[0], dtype=dict.fromkeys(_LABELS, str), keep_default_na=False,
                            na_values={c: ["", "nan"] for c in _COLUMNS[5:10]})  # fmt: skip
        facts = json.loads(wanted[1].read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder}: comparison.csv or run.json is broken ({error})") from error
    missing = [c for c in _COLUMNS if c not in table]
    if missing or not len(table) or not isinstance(facts, dict):
        raise ValueError(
            f"{wanted[0]} has {len(table)} rows and lacks the columns {missing}; wanted what "
            "neurodiff fit leaves: go on there with --resume"
        )
    return table, facts, paths


def _opened(path: Path, only: Sequence[str] | None = None) -> xr.DataTree:
    """A fit in memory, or some groups of it: of most fits a report needs little."""
    try:
        with h5netcdf.File(path) as file:
            groups = [name for name in file.groups if only is None or name in only]
            attrs = {key: np.asarray(value).item() for key, value in file.attrs.items()}
            # xarray's own reading takes ten times as long: too long for scores of every fit
            parts = {g: _plain(file[g]) for g in groups if only is not None}
        if only is None:
            parts = {g: xr.load_dataset(path, group=g, engine="h5netcdf") for g in groups}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); wanted the netCDF of a fit: remove it and go on "
            "with neurodiff fit --resume"
        ) from error
    tree = xr.DataTree.from_dict(parts)
    tree.attrs = attrs
    return tree


def _where(fit: xr.DataTree) -> tuple[str, str]:
    """Its data part and front end."""
    return str(fit.attrs.get("data", "")), str(fit.attrs.get("front_end", ""))


def _plain(group: h5netcdf.Group) -> xr.Dataset:
    """The numbers of a group."""
    return xr.Dataset({name: (v.dimensions, v[...]) for name, v in group.variables.items()})


# figures


def _comparison(folder: Path, table: pd.DataFrame) -> str:
    """All hypotheses about one part of the data."""
    data = str(table["data"].iloc[0])
    title = f"{data}: {len(table)} hypotheses and controls"
    return _figure(folder, "comparison", data, title, plot.comparison, table)


def _figures_of(folder: Path, path: Path, informed: Path | None) -> tuple[list[str], str]:
    """Weighting, stopping density and responses of one fit, and its parameters.

    What it does not hold is left out.
    """
    fit = _opened(path)
    if informed is not None:
        fit["information"] = _opened(informed, ["information"])["information"].to_dataset()
    data, end, gauge, name, kind = (str(fit.attrs.get(c, "")) for c in (*_LABELS, "kind"))
    where, title = f"{data}-{end}", f"{page.name_of(name, gauge, kind)}, {data}, front end {end}"
    drawn = []
    if "weighting" in fit["posterior"].dataset:
        drawn.append(_figure(folder, "weighting", where, title, plot.weighting, fit))
        drawn.append(_figure(folder, "stopping", where, title, plot.stopping_density, fit))
    if "signed_rt" in fit["observed_data"].dataset:
        drawn.append(_figure(folder, "choices", where, title, plot.choices, fit))
        drawn.append(_figure(folder, "times", where, title, plot.times, fit))
        if "stopping" in fit.children and len(fit["stopping"].dataset):
            drawn.append(_figure(folder, "effective", where, title, plot.effective, fit))
    elif "choice" in fit["observed_data"].dataset:
        drawn.append(_figure(folder, "answers", where, title, plot.answers, fit))
    elif "constant_data" in fit.children:
        tested = fit["constant_data"].to_dataset()
        trials = tested.merge(fit["observed_data"].to_dataset()).assign_attrs(tested.attrs)
        drawn.append(_figure(folder, "response", where, title, plot.response, fit, trials))
    return drawn, page.parameters(fit)


def _figure(
    folder: Path, what: str, where: str, title: str, draw: Callable[..., Axes], *data: object
) -> str:
    """Draw a figure, leave it as png, pdf and csv, and give its place in the page."""
    stem = f"{what}-{_slug(where)}"
    target = folder / "figures" / stem
    with style.context(plot.STYLE):
        ax = draw(*data)
        figure = ax.get_figure(root=True)
        try:
            for kind, extra in (("png", {}), ("pdf", {"metadata": {"CreationDate": None}})):
                save = partial(figure.savefig, format=kind, **extra)  # pyright: ignore
                _write(target.with_name(f"{stem}.{kind}"), save)
                figure.set_layout_engine("none")  # pyright: ignore  # laid out once is enough
            numbers = partial(plot.behind(ax).to_csv, index=False, float_format="%.6g")
            _write(target.with_name(f"{stem}.csv"), numbers)
        finally:
            plt.close(figure)  # pyright: ignore[reportArgumentType]
    image = target.with_name(f"{stem}.png").read_bytes()
    return page.figure(image, title, _CAPTIONS[what], f"figures/{stem}.pdf, .csv")


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    aside = path.with_name(path.name + ".part")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
