"""A report says what the table says, shows every warning, and needs no other file."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib import pyplot as plt
from scipy.special import expit

from neurodiff import page
from neurodiff.inference.pool import workers
from neurodiff.report import report

ROWS = [  # hypothesis, kind, gauge, difference, its se, verdict
    ("logistic", "law", "free", 0.0, 0.0, "best; adequate"),
    ("normal", "law", "free", -1.0, 2.0, "not distinguished; a noise floor suffices"),
    ("sigmoid/debiased", "named", "fixed", -30.0, 5.0, "behind; depends on the front end"),
    ("constant", "control", "free", -99.0, 9.0, "control"),
]


def a_fit(hypothesis, kind, gauge, k_hat=0.2):
    rng = np.random.default_rng(0)
    grid, loc = np.linspace(-4, 4, 41), rng.normal(0.0, 0.1, (1, 30))
    logsnr = np.repeat([-2.0, 0.0, 2.0, np.inf], 20)
    correct = rng.binomial(1, 0.5 + 0.5 * expit(logsnr)).astype(float)
    w = expit(-(grid - loc[..., None]))
    dims = ("chain", "draw", "logsnr")
    posterior = {"weighting.law.loc": (dims[:2], loc), "observer.lapse": (dims[:2], 0 * loc + 0.02)}
    if kind != "control":
        posterior |= {"weighting": (dims, w), "stopping_density": (dims, w * (1 - w))}
    drawn = rng.binomial(1, 0.5 + 0.5 * expit(logsnr), (1, 30, 80)).astype(float)
    stats = {"k_hat": k_hat, "ess": 250.0, "mode_converged": True, "hessian_definite": True}
    groups = {
        "posterior": xr.Dataset(posterior, {"logsnr": grid}),
        "sample_stats": xr.Dataset(stats),
        "posterior_predictive": xr.Dataset({"correct": (("chain", "draw", "trial"), drawn)}),
        "observed_data": xr.Dataset({"correct": ("trial", correct)}),
        "constant_data": xr.Dataset({"logsnr": ("trial", logsnr)}),
        "loo": xr.Dataset({"elpd": ("trial", -correct), "k_hat": ("trial", 0 * correct - np.inf)}),
    }
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {
        "data": "eyes/1",
        "front_end": "none",
        "gauge": gauge,
        "hypothesis": hypothesis,
        "kind": kind,
        "method": "Laplace(draws=30)",
        "wall_seconds": 1.5,
        "priors": json.dumps(
            {"weighting.law.loc": "Normal(0, 5)", "observer.lapse": "Beta(1, 30)"}
        ),
        "fixed": json.dumps({"observer.guess": 0.5}),
        "citation": "Anna & Ben <2020>.",
        "licence": "CC BY 4.0",
    }
    return tree


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder as neurodiff fit leaves it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "fits").mkdir()
    for i, (name, kind, gauge, *_) in enumerate(ROWS):
        fit = a_fit(name, kind, gauge, k_hat=0.93 if name == "normal" else 0.2)
        fit.to_netcdf(folder / "fits" / f"{i}.nc", engine="h5netcdf")
    names = ["hypothesis", "kind", "gauge", "elpd_diff", "dse", "verdict"]
    table = pd.DataFrame([dict(zip(names, row, strict=True)) for row in ROWS])
    table = table.assign(data="eyes/1", front_end="none", elpd=-200 + table["elpd_diff"], se=12.0)
    table["weight"] = [0.7, 0.3, 0.0, np.nan]
    table.to_csv(folder / "comparison.csv", index=False)
    facts = {
        "command": "neurodiff fit eyes",
        "versions": {"torch": "2.13.0"},
        "seed": 0,
        "task": "Task(model='threshold')",
        "data": {"eyes/1": "abc123"},
        "files": ["0.nc"],
        "failed": {"eyes/2, none, free: cauchy": "ValueError: no <mode>"},
        "seconds": 3.2,
    }
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def text(finished):
    path = report(finished)
    assert path == finished / "report.html"
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Tags that were opened and not closed, and every attribute that points somewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.targets = [], [], []

    def handle_starttag(self, tag, attrs):
        self.targets += [v for k, v in attrs if k in ("src", "href", "action", "data")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_page_is_well_formed_and_needs_nothing_else(text):
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert not tags.wrong
    assert len(tags.targets) == 4  # comparison, weighting, stopping density, responses
    for target in tags.targets:
        assert target.startswith("data:image/png;base64,")
        assert base64.b64decode(target.partition(",")[2]).startswith(b"\x89PNG")
    without = re.sub(r"base64,[^\"]*", "", text)
    assert not re.search(r"https?:|url\(|@import|<script|<link", without)
    assert "$" not in without  # every place of the template is filled


def test_verdicts_are_said_in_plain_words(text):
    assert "<b>logistic</b> predicts best; adequate: within 2 SE of the free monotone link." in text
    assert "Not distinguished from it: normal (Δ −1.0 ± 2.0)." in text
    assert "Behind it: sigmoid/debiased at κ = 1 (Δ −30.0 ± 5.0)." in text
    assert "Depends on the front end: sigmoid/debiased at κ = 1." in text
    assert "a noise floor suffices: a power law of stimulus strength" in text
    assert "any monotone response is some 1 − w" in text


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("best; inadequate: 12 nats below the free link", "inadequate: 12 nats below"),
        ("best; not saturating: power law", "not saturating: a power law over the tested log SNR"),
        ("control; k-hat above 0.7: numerically unsure", "control; k̂ above 0.7"),
        ("behind", "predicts worse than the best"),
    ],
)
def test_each_verdict_has_words(verdict, words):
    assert words in page.plain(verdict)


def test_priors_fixed_values_and_intervals_are_printed(text):
    assert re.search(r"weighting.law.loc</td><td[^>]*>[−0-9.]+ \[−?[0-9.]+, [0-9.]+\]", text)
    assert "Normal(0, 5)" in text
    assert "Beta(1, 30)" in text
    assert "fixed at 0.5" in text
    assert "central 90 % interval" in text


def test_interval_is_the_central_90_percent():
    fit = a_fit("logistic", "law", "free")
    draws = fit["posterior"]["weighting.law.loc"].values
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95])
    shown = f"{middle:.3g} [{low:.3g}, {high:.3g}]".replace("-", "−")
    assert shown in page.parameters(fit)


def test_population_and_spread_take_the_place_of_groups():
    fit = a_fit("logistic", "law", "free")
    posterior = (
        fit["posterior"].to_dataset().rename({"observer.lapse": "population.observer.lapse"})
    )
    posterior["spread.observer.lapse"] = 0.5 + 0 * posterior["population.observer.lapse"]
    fit["posterior"] = posterior
    shown = page.parameters(fit)
    assert "population.observer.lapse" in shown
    assert "spread.observer.lapse</td><td class=number>0.5 [0.5, 0.5]" in shown


def test_warnings_and_failures_are_shown(text):
    assert "normal, eyes/1, front end none: k̂ is 0.93, above 0.7: numerically unsure" in text
    assert "eyes/2, none, free: cauchy failed: ValueError: no &lt;mode&gt;" in text
    assert text.count("above 0.7: numerically unsure</li>") == 1


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        ({"r_hat_max": 1.04}, "R-hat is 1.040"),
        ({"ess_min": 40.0}, "effective sample size is 40"),
        ({"diverging": (("chain", "draw"), np.eye(3))}, "3 divergent transitions"),
        ({"mode_converged": False}, "the mode was not reached"),
        ({"hessian_definite": False}, "not positive definite"),
        ({"converged": False}, "SVI has not converged"),
        ({"unsure": 0.02}, "less than the grid can tell: steps half as long move 2.0% of some"),
        ({"unsure_none": 1.78}, "half as long move the log probability of one by 1.8"),
    ],
)
def test_each_failure_of_a_fit_is_a_warning(stats, words):
    fit = a_fit("logistic", "law", "free")
    assert page.fit_row(fit)["warnings"] == []
    fit["sample_stats"] = xr.Dataset(stats)
    (warning,) = page.fit_row(fit)["warnings"]
    assert words in warning


def test_facts_citation_and_licence_are_escaped_and_shown(text):
    for words in ("neurodiff fit eyes", "abc123", "2.13.0", "CC BY 4.0"):
        assert words in text
    assert "Anna &amp; Ben &lt;2020&gt;." in text


def test_contraction_comes_from_the_flexible_law(finished, broken):
    link = a_fit("free link", "control", "free")
    known = {"contraction": ("logsnr", [0.0, 0.5, 0.0])}
    link["information"] = xr.Dataset(known, {"logsnr": [-1.0, 0.0, 1.0]})
    link.to_netcdf(broken / "fits/link.nc", engine="h5netcdf")
    report(broken)
    numbers = pd.read_csv(broken / "figures/weighting-eyes-1-none.csv")
    fitted = numbers[numbers["kind"] == "fit"]
    expected = np.clip(0.5 * (1 - fitted["logsnr"].abs()), 0, None)
    np.testing.assert_allclose(fitted["contraction"], expected, atol=1e-5)
    tested = pd.read_csv(finished / "figures/weighting-eyes-1-none.csv")
    assert "tested" in tested
    assert "contraction" not in tested


def test_figures_come_with_their_numbers(finished, text):
    assert text
    stems = [f"{w}-eyes-1-none" for w in ("response", "stopping", "weighting")]
    expected = {f"{s}.{k}" for s in ["comparison-eyes-1", *stems] for k in ("png", "pdf", "csv")}
    assert {p.name for p in (finished / "figures").iterdir()} == expected
    numbers = pd.read_csv(finished / "figures" / "weighting-eyes-1-none.csv")
    fitted = numbers[numbers["kind"] == "fit"]
    assert np.interp(0.0, fitted["logsnr"], fitted["median"]) == pytest.approx(0.5, abs=0.03)
    pdf = (finished / "figures" / "weighting-eyes-1-none.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf or b"/TrueType" in pdf
    assert b"/Type3" not in pdf


def test_nothing_is_left_open_and_a_second_report_is_the_same(finished, text):
    assert report(finished).read_text(encoding="utf-8") == text
    assert plt.get_fignums() == []
    assert not list(finished.rglob("*.part"))


# bad run folders


@pytest.fixture
def broken(finished, tmp_path):
    """A run folder to spoil."""
    (tmp_path / "fits").mkdir()
    for name in ("comparison.csv", "run.json", "fits/0.nc", "fits/1.nc"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    return tmp_path


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _drop_column(folder):
    path = folder / "comparison.csv"
    pd.read_csv(path).drop(columns="verdict").to_csv(path, index=False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "comparison.csv").unlink(), r"holds fits, run.json; wanted a finished run"),
        (lambda f: (f / "run.json").unlink(), "wanted a finished run"),
        (lambda f: [p.unlink() for p in (f / "fits").iterdir()], "wanted a finished run"),
        (lambda f: _cut(f / "run.json"), "comparison.csv or run.json is broken"),
        (lambda f: (f / "run.json").write_text("3"), "wanted what neurodiff fit leaves"),
        (lambda f: _cut(f / "fits/0.nc"), r"0.nc cannot be read .*neurodiff fit --resume"),
        (lambda f: _drop_column(f), r"lacks the columns \['verdict'\]"),
        (lambda f: (f / "comparison.csv").write_text(""), "is broken"),
    ],
)
def test_a_broken_run_is_named_and_no_report_is_left(broken, spoil, message):
    spoil(broken)
    with pytest.raises(ValueError, match=message):
        report(broken)
    assert not (broken / "report.html").exists()
    assert not list(broken.rglob("*.part"))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no folder; wanted a finished run"):
        report(tmp_path / "nowhere")


def test_a_hypothesis_without_weighting_has_no_curves(finished, broken):
    rows = pd.read_csv(broken / "comparison.csv").iloc[-1:].assign(verdict="best")
    rows.to_csv(broken / "comparison.csv", index=False)
    (broken / "fits/3.nc").write_bytes((finished / "fits/3.nc").read_bytes())
    report(broken)
    drawn = {p.stem for p in (broken / "figures").iterdir()}
    assert drawn == {"comparison-eyes-1", "response-eyes-1-none"}


def test_figures_drawn_by_workers_make_the_same_page(finished, text):
    # these tests compute in double precision, which a worker does not know of: but for the pixels
    def plain(page):
        return re.sub(r"base64,[^\"]+", "", page)

    with workers(2) as executor:
        assert plain(report(finished, executor).read_text(encoding="utf-8")) == plain(text)
