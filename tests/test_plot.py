"""Figures show the numbers that they should; the numbers have oracles of their own."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib import rcParams
from scipy.special import expit
from scipy.stats import norm

from neurodiff import panels, plot, summary

GRID = np.linspace(-5.0, 5.0, 101)
LEVELS = np.array([-np.inf, -2.0, -1.0, 0.0, 1.0, np.inf])


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def logistic_fit(loc, groups=None, grid=GRID):
    """A fit of a logistic law of scale 1 with these draws of loc: (draw,) or (draw, group)."""
    w = expit(-(grid - loc[..., None]))
    dims = ["chain", "curve_draw", *(["group"] if groups else []), "logsnr"]
    coords = {"logsnr": grid} | ({"group": groups} if groups else {})
    curves = {"weighting": (dims, w[None]), "stopping_density": (dims, (w * (1 - w))[None])}
    posterior = xr.Dataset(curves, coords)
    return xr.DataTree.from_dict({"posterior": posterior})


def choices_fit(n=60, seed=0):
    """Choices at six levels, two of them infinite, one answer missing; and what a fit predicts."""
    rng = np.random.default_rng(seed)
    logsnr = np.repeat(LEVELS, n)
    p = 0.5 + 0.5 * expit(logsnr)
    correct = rng.binomial(1, p).astype(float)
    correct[n] = np.nan
    data = xr.Dataset({"logsnr": ("trial", logsnr), "correct": ("trial", correct)})
    fit = logistic_fit(rng.normal(0, 0.1, 50))
    drawn = rng.binomial(1, p, (1, 80, len(p))).astype(np.float32)
    fit["posterior_predictive"] = xr.Dataset({"correct": (["chain", "draw", "trial"], drawn)})
    fit["observed_data"] = data[["correct"]]
    fit.attrs["fixed"] = json.dumps({"observer.guess": 0.5})
    return fit, data


def counts_fit(blocks=8, bins=50, width=2e-3):
    rng = np.random.default_rng(1)
    logsnr = np.tile([0.0, 3.0], blocks * bins // 2)
    block = np.repeat(np.arange(blocks), bins)
    mean = 0.1 + 0.2 * (logsnr > 0) + 0.05 * (block % 2)
    count = rng.poisson(mean).astype(float)
    coords = {"block": ("time", block), "time": width * np.arange(len(count))}
    variables = {"logsnr": ("time", logsnr), "count": ("time", count)}
    data = xr.Dataset(variables, coords)
    fit = logistic_fit(rng.normal(0, 0.1, 50))
    drawn = rng.poisson(mean, (1, 40, len(mean)))
    fit["posterior_predictive"] = xr.Dataset({"count": (["chain", "draw", "time"], drawn)})
    fit["observed_data"] = xr.Dataset({"count": ("time", count)})
    return fit, data


def table(ends=("none", "power-filter")):
    rows = [
        ("logistic", "law", "free", 0.0, 0.0, "best; adequate"),
        ("sigmoid/debiased", "named", "fixed", -30.0, 5.0, "behind; depends on the front end"),
        ("edm-monotonic", "named", "free", -3.0, 1.0, "not distinguished"),
        ("free link", "control", "free", 2.0, 3.0, "control"),
        ("constant", "control", "free", -900.0, 40.0, "control"),
    ]
    names = ["hypothesis", "kind", "gauge", "elpd_diff", "dse", "verdict"]
    found = [dict(zip(names, row, strict=True)) for row in rows]
    return pd.DataFrame([{**row, "data": "d", "front_end": end} for end in ends for row in found])


# the numbers


def test_bands_are_the_quantiles_of_the_draws():
    loc = np.random.default_rng(0).normal(0.5, 0.7, 1001)  # 1001: quantiles fall on draws
    bands = summary.curves(logistic_fit(loc), "weighting")
    for name, p in summary.QUANTILES.items():  # w rises with loc, so quantiles go through
        expected = expit(-(GRID - np.quantile(loc, p)))
        np.testing.assert_allclose(bands[name], expected, atol=1e-12)


def test_groups_have_their_own_curves_and_a_mean():
    loc = np.random.default_rng(0).normal([0.0, 2.0], 0.1, (500, 2))
    bands = summary.curves(logistic_fit(loc, ["anna", "ben"]), "weighting")
    assert list(bands["curve"].unique()) == ["fit", "anna", "ben"]
    mean = expit(-(GRID - loc[..., None])).mean(1)
    np.testing.assert_allclose(
        summary.rows(bands, kind="fit")["median"], np.median(mean, 0), atol=1e-12
    )
    ben = summary.rows(bands, curve="ben")["median"]
    np.testing.assert_allclose(ben, expit(-(GRID - np.median(loc[:, 1]))), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "closed"),
    [
        ("sigmoid", lambda x: expit(-x)),
        ("debiased", lambda x: expit(-x)),
        ("flow-matching", lambda x: np.minimum(1, 0.5 * np.exp(-x / 2))),
        ("indi", lambda x: np.minimum(1, 0.5 * np.exp(-1.5 * x))),
        ("deadline", lambda x: np.exp(-np.log(2) * np.exp(x))),
        ("step", lambda x: (x < 0).astype(float)),
    ],
)
def test_named_weightings_meet_the_fit_at_half_height(name, closed):
    x = np.array([-4.0, -1.0, -0.3, 0.2, 1.0, 3.0])
    np.testing.assert_allclose(summary.placed(name, 1.7, x + 1.7), closed(x), atol=1e-9)


def test_edm_monotonic_is_one_half_where_placed():
    low, half = summary.placed("edm-monotonic", -3.0, np.array([-40.0, -3.0]))
    assert low == 1.0
    assert half == pytest.approx(0.5, abs=1e-9)


def test_half_height_of_a_curve_that_never_falls_is_none():
    assert summary.half_height(GRID, np.full(101, 0.8)) is None
    assert summary.half_height(GRID, expit(-(GRID - 0.3))) == pytest.approx(0.3, abs=1e-3)


def test_window_prefers_contraction_then_tested_stimuli():
    fit = logistic_fit(np.zeros(3))
    assert summary.window(fit, GRID)[0] == ""
    assert summary.window(fit, GRID)[2].all()
    tested = np.r_[np.repeat([-1.0, 0.0, 2.0], 50), np.inf]
    fit["constant_data"] = xr.Dataset({"logsnr": ("trial", tested)})
    what, density, informed = summary.window(fit, GRID)
    assert what == "tested"
    assert density.max() == 1.0
    assert set(GRID[density > 0].round(9)) == {-1.0, 0.0, 2.0}
    np.testing.assert_array_equal(informed, (GRID > -1.01) & (GRID < 2.01))
    known = {"contraction": ("logsnr", [0.0, 0.2, 0.0])}
    fit["information"] = xr.Dataset(known, {"logsnr": [-1.0, 0.0, 1.0]})
    what, value, informed = summary.window(fit, GRID)
    assert what == "contraction"
    expected = np.clip(0.2 * (1 - np.abs(GRID)), 0, None)
    np.testing.assert_allclose(value, expected, atol=1e-12)
    np.testing.assert_array_equal(informed, value >= 0.1)
    known = {"contraction": ("logsnr", np.full(101, 0.9))}
    fit["information"] = xr.Dataset(known, {"logsnr": GRID})  # it contracts where nothing was shown
    _, value, informed = summary.window(fit, GRID)
    np.testing.assert_array_equal(informed, (GRID > -1.01) & (GRID < 2.01))
    np.testing.assert_array_equal(value, 0.9 * informed)


def test_interval_of_a_proportion_solves_the_score_equation():
    y = np.r_[np.ones(17), np.zeros(8)]
    zeros = np.zeros((3, 25))
    numbers = summary.by_level(y, zeros, np.zeros(25), None).iloc[0]
    z = norm.isf(0.05)
    for bound in (numbers["low"], numbers["high"]):
        assert abs(17 / 25 - bound) == pytest.approx(z * np.sqrt(bound * (1 - bound) / 25))


def test_error_of_a_rate_is_that_of_its_block_means():
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(10), 30)
    y = rng.poisson(1.0 + 0.5 * rng.standard_normal(10).clip(-1, 1)[block]).astype(float)
    numbers = summary.by_level(y, y[None], np.zeros(300), block).iloc[0]
    means = y.reshape(10, 30).mean(1)
    assert numbers["high"] - numbers["observed"] == pytest.approx(means.std(ddof=1) / np.sqrt(10))


def test_levels_keep_infinities_apart_and_pool_many_values():
    rng = np.random.default_rng(0)
    logsnr = np.r_[rng.normal(size=2000), np.full(7, np.inf), np.full(3, -np.inf)]
    index, places = summary.levels(logsnr)
    counts = np.bincount(index)
    assert counts[0] == 3
    assert counts[-1] == 7
    np.testing.assert_array_equal(counts[1:-1], 100)
    assert places[0] == -np.inf
    assert places[-1] == np.inf
    assert places[5] == np.median(np.sort(logsnr[:2000])[400:500])


def test_predicted_means_are_those_of_the_same_trials():
    fit, data = choices_fit()
    numbers = plot.behind(plot.response(fit, data))
    here = (data["logsnr"].values == -2.0) & ~np.isnan(data["correct"].values)
    drawn = fit["posterior_predictive"]["correct"].values[0][:, here].mean(1)
    row = numbers[numbers["logsnr"] == -2.0].iloc[0]
    assert row["n"] == 59  # the missing answer counts on neither side
    assert row["observed"] == data["correct"].values[here].mean()
    assert row["q95"] == pytest.approx(np.quantile(drawn, 0.95))


def test_envelope_holds_uniform_ranks_and_no_others():
    sets, draws, at = 200, 63, np.arange(63)
    low, high = summary.envelope(sets, draws, at, 0.05)
    rng = np.random.default_rng(7)  # other ranks than the envelope was made from

    def inside(ranks):
        ecdf = (ranks[:, None] <= at).mean(0)
        return bool(((ecdf >= low) & (ecdf <= high)).all())

    held = np.mean([inside(rng.integers(0, draws + 1, sets)) for _ in range(1500)])
    error = np.sqrt(0.05 * 0.95 / 1500) + np.sqrt(0.05 * 0.95 / 2000)
    assert abs(held - 0.95) < 4 * error
    biased = [inside(rng.binomial(draws, rng.beta(1.6, 1, sets))) for _ in range(200)]
    assert np.mean(biased) < 0.1


# the figures


def test_curve_is_grey_where_the_data_say_nothing():
    fit = logistic_fit(np.linspace(-0.1, 0.1, 50))
    known = {"contraction": ("logsnr", (np.abs(GRID) < 2) * 0.9)}
    fit["information"] = xr.Dataset(known, {"logsnr": GRID})
    for draw in (plot.weighting, plot.stopping_density):
        ax = draw(fit)
        blue = [line for line in ax.lines if line.get_color() == panels.BLUE]
        assert len(blue) == 1
        drawn = np.isfinite(blue[0].get_ydata())
        np.testing.assert_array_equal(drawn, np.abs(GRID) < 2)
        assert "contraction" in plot.behind(ax)
        assert len(ax.child_axes) == 1


def test_weighting_draws_the_zoo_once_and_says_how_it_was_placed():
    fit = logistic_fit(np.linspace(-0.1, 0.1, 50))
    ax = plot.weighting(fit)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "sigmoid/debiased" in names
    assert "flow-matching/v-cosine" in names
    assert len(set(names)) == len(names)
    assert any("κ = 1" in text.get_text() for text in ax.texts)
    assert ax.get_xlabel() == "log SNR (nat)"
    named = summary.rows(plot.behind(ax), curve="sigmoid/debiased")
    at_half = np.interp(0.0, named["logsnr"], named["median"])
    assert at_half == pytest.approx(0.5, abs=1e-6)
    assert set(plot.behind(plot.weighting(fit, zoo=False))["kind"]) == {"fit"}


def test_zoo_is_left_out_where_it_has_no_place():
    ax = plot.weighting(logistic_fit(np.full(20, 9.0)))  # ½ lies beyond the grid
    assert set(plot.behind(ax)["kind"]) == {"fit"}


def test_figures_use_the_axes_given_and_leave_the_style_alone():
    before = dict(rcParams)
    fit, data = choices_fit()
    for draw, arguments in (
        (plot.weighting, (fit,)),
        (plot.stopping_density, (fit,)),
        (plot.response, (fit, data)),
        (plot.comparison, (table(),)),
    ):
        figure, ax = plt.subplots()
        assert draw(*arguments, ax=ax) is ax
        assert plt.get_fignums() == [figure.number]
        figure.canvas.draw()
        plt.close(figure)
    assert dict(rcParams) == before


def test_infinite_logsnr_stands_apart_with_its_sign():
    fit, data = choices_fit()
    ax = plot.response(fit, data)
    ticks = {t.get_text(): x for t, x in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True)}
    assert ticks["∞"] > 1.0
    assert ticks["−∞"] < -2.0
    assert sum(text.get_text() == "//" for text in ax.texts) == 2
    assert any("n = 59 to 60 trials" in text.get_text() for text in ax.texts)


def test_rates_are_in_spikes_per_second():
    fit, data = counts_fit()
    ax = plot.response(fit, data)
    numbers = plot.behind(ax)
    loud = data["count"].values[data["logsnr"].values == 3.0].mean()
    assert numbers.iloc[1]["observed"] == pytest.approx(loud / 2e-3)
    assert ax.get_ylabel() == "rate (spikes/s)"
    ax = plot.response(fit, data.drop_vars(["time", "block"]))  # whose width is unknown
    assert plot.behind(ax).iloc[1]["observed"] == pytest.approx(loud)
    assert ax.get_ylabel() == "spikes per bin"
    assert plot.response(*choices_fit()).get_ylabel() == "proportion correct"


def test_logsnr_of_the_front_end_comes_first():
    fit, data = counts_fit()
    fit["constant_data"] = xr.Dataset({"logsnr": ("time", data["logsnr"].values + 10)})
    assert plot.behind(plot.response(fit, data))["logsnr"].tolist() == [10.0, 13.0]


def test_each_group_is_shown():
    fit, data = choices_fit()
    groups = ["anna", "ben"]
    data = data.assign_coords(subject=("trial", np.tile(groups, data.sizes["trial"] // 2)))
    fit["posterior"] = logistic_fit(np.zeros((50, 2)), groups)["posterior"]
    numbers = plot.behind(plot.response(fit, data))
    assert set(numbers["group"]) == {"", *groups}
    ben = summary.rows(numbers, group="ben")
    mine = (data["subject"].values == "ben") & (data["logsnr"].values == 1.0)
    expected = data["correct"].values[mine].mean()
    assert ben.loc[ben["logsnr"] == 1.0, "observed"].item() == expected


def test_comparison_puts_the_best_first_and_controls_last():
    ax = plot.comparison(table())
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names == [
        "logistic",
        "edm-monotonic, κ free",
        "sigmoid/debiased, κ = 1",
        "free link",
        "constant",
    ]
    numbers = plot.behind(ax)
    assert numbers.groupby("label")["behind"].all().to_dict() == {
        "logistic": False,
        "edm-monotonic, κ free": False,
        "sigmoid/debiased, κ = 1": True,
        "free link": False,
        "constant": True,
    }
    low, high = ax.get_xlim()
    assert low < -940
    assert high > 5


def test_comparison_over_two_data_sets_names_them():
    two = pd.concat([table(), table().assign(data="e")])
    names = [tick.get_text() for tick in plot.comparison(two).get_yticklabels()]
    assert "logistic · d" in names
    assert "logistic · e" in names


def test_calibration_shows_each_component_less_uniform():
    ranks = np.stack([np.arange(300) % 100, np.zeros(300, int)], 1)
    data = xr.Dataset({"ranks": (("set", "component"), ranks)}, {"component": ["a", "b"]})
    numbers = plot.behind(plot.calibration(data.assign_attrs(draws=99)))
    np.testing.assert_allclose(
        numbers["ecdf"], np.where(numbers["component"] == "a", numbers["uniform"], 1.0)
    )
    low, _ = summary.envelope(300, 99, np.arange(99), 0.05 / 2)  # 5 % shared by two components
    np.testing.assert_array_equal(summary.rows(numbers, component="a")["low"], low)


# errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.behind(plt.subplots()[1]), "pass what neurodiff.plot returned"),
        (
            lambda: plot.weighting(xr.DataTree.from_dict({"posterior": xr.Dataset({"a": 1.0})})),
            "no curve 'weighting' .it has a.",
        ),
        (
            lambda: plot.response(choices_fit()[0], choices_fit(seed=1)[1]),
            "data are not those of the fit",
        ),
        (lambda: plot.response(choices_fit()[0], counts_fit()[1]), "not those of the fit"),
        (lambda: plot.comparison(table().drop(columns="dse")), "lacks .'dse'."),
        (lambda: plot.comparison(table().iloc[:0]), "has 0 rows"),
        (lambda: plot.calibration(xr.Dataset({"a": 1})), "wanted 'ranks'"),
        (
            lambda: plot.calibration(
                xr.Dataset({"ranks": (("set", "component"), [[7]])}, attrs={"draws": 5})
            ),
            "ranks lie in 7 … 7, wanted 0 … 5",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_plotting_needs_no_pyro():
    code = "import sys, neurodiff.plot; sys.exit('pyro' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_quantiles_of_one_number_are_written_as_numbers_are():
    """Pandas leaves all digits to what it takes for an object."""
    table = pd.DataFrame([summary.quantiles(np.random.default_rng(0).normal(size=100))])
    assert (table.dtypes == np.float64).all()
    written = table.to_csv(index=False, float_format="%.4g").splitlines()[1].split(",")
    assert max(len(number.lstrip("-")) for number in written) <= 7  # 0.01234
