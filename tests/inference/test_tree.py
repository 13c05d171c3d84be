import json

import arviz_stats
import numpy as np
import pytest
import toys
import xarray as xr

import neurodiff as nd
from neurodiff.inference.join import join

BOTH = ("weighting.law.loc", "weighting.law.scale")


@pytest.fixture(scope="module")
def pooled():
    data = toys.data(200, subjects=3)
    data["correct"][4] = np.nan
    return data, nd.fit(toys.model(BOTH), data, nd.Laplace(draws=300, starts=1), seed=0)


@pytest.fixture(scope="module")
def grouped():
    data = toys.data(200, subjects=3)
    return nd.fit(toys.model(BOTH), data, nd.Laplace(draws=40, starts=1), by="subject", seed=0)


@pytest.fixture(scope="module")
def recording():
    rng = np.random.default_rng(0)
    logsnr = rng.normal(0, 2, 600)
    rate = 0.4 / (1 + np.exp(-logsnr))
    data = xr.Dataset(
        {"logsnr": ("time", logsnr), "count": ("time", 1.0 * (rng.random(600) < rate))},
        coords={"block": ("time", np.arange(600) // 100)},
        attrs={"name": "made/1", "data_hash": "0" * 8},
    )
    model = nd.Threshold(nd.SurvivalWeighting(nd.laws.Logistic()), nd.observers.Counts(history=2))
    return data, nd.fit(model, data, nd.Laplace(draws=60, starts=1), seed=0)


def test_groups_and_dims(pooled):
    _, fit = pooled
    names = {"posterior", "sample_stats", "posterior_predictive", "prior", "observed_data"}
    assert set(fit.children) == names | {"log_likelihood", "loo"}
    posterior = fit["posterior"].dataset
    assert posterior["weighting.law.loc"].dims == ("chain", "draw")
    assert posterior["weighting"].dims == ("chain", "draw", "logsnr")
    assert posterior["weighting"].dtype == np.float32
    assert (posterior["weighting.law.scale"] > 0).all()
    assert fit["posterior_predictive"]["correct"].dims == ("chain", "draw", "trial")
    assert fit["observed_data"]["correct"].dims == ("trial",)


def test_attributes_say_what_was_done(recording):
    data, fit = recording
    attrs = fit.attrs
    assert attrs["seed"] == 0
    assert attrs["device"] == "cpu"
    assert "Laplace(draws=60" in attrs["method"]
    assert attrs["data"] == "made/1"
    assert attrs["data_hash"] == data.attrs["data_hash"]
    assert "Normal" in json.loads(attrs["priors"])["weighting.law.loc"]
    assert attrs["wall_seconds"] > 0


@pytest.mark.parametrize("kind", ["pooled", "grouped", "recording"])
def test_netcdf_round_trip(kind, request, tmp_path):
    fit = request.getfixturevalue(kind)
    fit = fit if isinstance(fit, xr.DataTree) else fit[1]
    fit.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "fit.nc", engine="h5netcdf") as back:
        assert set(back.children) == set(fit.children)
        for name, group in fit.children.items():
            xr.testing.assert_equal(back[name].load().dataset, group.dataset)
            for variable in group.dataset.data_vars:
                assert back[name][variable].dtype == group[variable].dtype
        assert back.attrs == fit.attrs


def test_curves_are_those_of_the_parameters(pooled):
    posterior = pooled[1]["posterior"].dataset
    loc, scale = (posterior[name].values[..., None] for name in BOTH)
    z = (posterior["logsnr"].values - loc) / scale
    w = toys.special.expit(-z)
    assert posterior["weighting"].values == pytest.approx(w, abs=1e-6)
    assert posterior["stopping_density"].values == pytest.approx(
        w * (1 - w) / scale, rel=1e-4, abs=1e-7
    )


def test_groups_carry_the_name_of_the_grouping(grouped):
    posterior = grouped["posterior"].dataset
    assert posterior["weighting.law.loc"].dims == ("chain", "draw", "subject")
    assert posterior["weighting"].dims == ("chain", "draw", "subject", "logsnr")
    assert posterior["population.weighting.law.loc"].dims == ("chain", "draw")
    assert posterior["spread.weighting.law.scale"].dims == ("chain", "draw")
    assert list(posterior["subject"].values) == ["s0", "s1", "s2"]


def test_leave_one_out_is_by_trial_without_nan(pooled):
    data, fit = pooled
    loo = fit["loo"].dataset
    assert loo["elpd"].dims == ("trial",)
    assert not np.isnan(loo["elpd"].values).any()
    assert loo["elpd"].values[4] == 0.0
    assert loo["k_hat"].values[4] == -np.inf
    # trials of equal stimulus and answer share their elpd, as if each had been computed
    draws = fit["posterior"].dataset
    p = toys.probability(
        draws["weighting.law.loc"].values[0],
        draws["weighting.law.scale"].values[0],
        data["logsnr"].values,
    )
    y = data["correct"].values
    each = np.where(np.nan_to_num(y) > 0.5, np.log(p), np.log1p(-p))
    keep = ~np.isnan(y)
    tree = xr.DataTree.from_dict(
        {
            "posterior": fit["posterior"].dataset[list(BOTH)],
            "log_likelihood": xr.Dataset(
                {"y": (("chain", "draw", "trial"), each[None][..., keep])}
            ),
        }
    )
    theirs = arviz_stats.loo(tree, pointwise=True, reff=1.0)
    assert loo["elpd"].values[keep] == pytest.approx(theirs.elpd_i.values, abs=1e-10)


def test_log_likelihood_keeps_distinct_rows(pooled):
    _, fit = pooled
    kept = fit["log_likelihood"].dataset
    (values,) = kept.data_vars.values()
    assert values.dims == ("draw", "row")
    assert values.dtype == np.float32
    assert values.sizes["row"] <= 3 * len(toys.LEVELS)
    assert kept["row_of_trial"].sizes["trial"] == 200


def test_time_series_are_kept_by_block_and_not_left_out_one_by_one(recording):
    _, fit = recording
    (values,) = fit["log_likelihood"].dataset.data_vars.values()
    assert values.dims == ("draw", "block")
    assert "loo" not in fit.children
    assert fit["posterior"]["observer.history"].sizes["observer.history.0"] == 2


def test_predictive_answers_have_the_fitted_rates(pooled):
    data, fit = pooled
    drawn = fit["posterior_predictive"]["correct"].values
    assert set(np.unique(drawn)) == {0.0, 1.0}
    draws = fit["posterior"].dataset
    thin = np.linspace(0, 299, 100).astype(int)
    p = toys.probability(
        draws["weighting.law.loc"].values[0, thin],
        draws["weighting.law.scale"].values[0, thin],
        data["logsnr"].values,
    )
    se = np.sqrt((p * (1 - p)).sum()) / p.size
    assert drawn.mean() == pytest.approx(p.mean(), abs=4 * se)
    # trials of one row are drawn apart
    same = np.flatnonzero(data["logsnr"].values == toys.LEVELS[3])
    assert (drawn[0][:, same].std(1) > 0).any()


def test_predictive_of_merged_poisson_counts_is_not_binary():
    data = xr.Dataset(
        {
            "logsnr": ("trial", np.resize([-5.0, 5.0], 80)),
            "count": ("trial", np.resize([0.0, 9.0], 80)),
        }
    )
    counts = nd.observers.Counts(history=0, most=None, width=0.02)
    model = nd.Threshold(nd.weighting("sigmoid"), counts)
    assert len(join(model, data).posterior.unit) == 2
    fit = nd.fit(model, data, nd.Laplace(draws=50, starts=1), seed=0)
    drawn = fit["posterior_predictive"]["count"].values[0]
    assert drawn[:, 1::2].mean() == pytest.approx(9.0, rel=0.15)
    assert drawn.max() > 9


def test_prior_draws_are_of_the_priors(grouped):
    prior = grouped["prior"].dataset
    assert prior["weighting.law.loc"].shape == (1, 500)
    assert prior["weighting.law.loc"].std() == pytest.approx(5.0, rel=0.15)


def test_a_named_weighting_has_curves_too():
    model = nd.Threshold(nd.weighting("sigmoid"), nd.observers.Choice(choices=4))
    fit = nd.fit(model, toys.data(), nd.Laplace(draws=20, starts=1), seed=0)
    w = fit["posterior"]["weighting"]
    assert w.dims == ("chain", "draw", "logsnr")
    assert (w.diff("logsnr") <= 1e-6).all()
    model.weighting.shift.requires_grad_(False)
    fixed = nd.fit(model, toys.data(), nd.Laplace(draws=20, starts=1), seed=0)
    spread = fixed["posterior"]["weighting"].max("draw") - fixed["posterior"]["weighting"].min(
        "draw"
    )
    assert spread.max() == 0
