"""Tables of evidence: against exact likelihoods, closed forms, and runs that were stopped."""

import hashlib

import numpy as np
import pytest
import torch
import xarray as xr

from neurodiff.diffusion.denoiser import ByLabel, Denoiser, LevelDenoiser, NetworkDenoiser
from neurodiff.diffusion.guidance import Auto, CfgZero, Classifier, ClassifierFree
from neurodiff.diffusion.likelihood import denoising_error
from neurodiff.diffusion.networks import UNet
from neurodiff.diffusion.prior import Gaussian, GaussianMixture
from neurodiff.inference.pool import workers
from neurodiff.perception import evidence as module
from neurodiff.perception.elimination import safe_lag
from neurodiff.perception.evidence import evidence
from neurodiff.perception.stored import digest, read_table

GRID = torch.linspace(-11.75, 7.75, 40, dtype=torch.float64)


def two_classes():
    """A Gaussian and a mixture in three dimensions."""
    one = Gaussian(
        torch.tensor([0.3, 0.0, -0.2], dtype=torch.float64),
        torch.tensor([0.2, 0.1, 0.3], dtype=torch.float64),
    )
    other = GaussianMixture(
        torch.tensor([0.4, 0.6], dtype=torch.float64),
        torch.tensor([[0.5, 0.5, 0.0], [-0.5, 0.2, 0.1]], dtype=torch.float64),
        torch.tensor([0.15, 0.1], dtype=torch.float64)[:, None].expand(2, 3).clone(),
    )
    return one, other


def pictures(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (0.6 * torch.rand(count, 3, dtype=torch.float64, generator=g) - 0.3).clamp(-1, 1)


def test_clean_pictures_have_the_error_of_the_likelihood():
    one, other = two_classes()
    x = pictures(4)
    table = evidence(ByLabel(one, other), x, [0, 1], GRID[::6], pairs=4000)
    for label, p in enumerate((one, other)):
        m = denoising_error(p, x, GRID[::6], pairs=4000)
        mine = table["error"].sel(label=label).values
        se = np.hypot(table["se"].sel(label=label).values, m.se.numpy())
        assert np.all(np.abs(mine - m.value.numpy()) < 4.5 * se)


@pytest.mark.parametrize("logsnr", [-3.0, 0.2, 3.3])
def test_noisy_pictures_give_the_exact_likelihood_ratio(logsnr):
    # ½ Σ (m₁ − m₀) up to λ_s is log p₀(y) − log p₁(y), whatever the cell that λ_s lies in
    one, other = two_classes()
    own = torch.full((6,), logsnr, dtype=torch.float64)
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(6, 3, dtype=torch.float64, generator=g)
    y = pictures(6) + (-0.5 * own).exp()[:, None] * noise
    table = evidence(ByLabel(one, other), y, [0, 1], GRID, stimulus_logsnr=own, pairs=2000, seed=3)
    cells = 0.5 * table["width"] * (table["error"].sel(label=1) - table["error"].sel(label=0))
    got = cells.fillna(0.0).sum("logsnr").values
    se = 0.5 * np.sqrt(((table["width"] * table["se"]) ** 2).sum(["logsnr", "label"])).values
    z = y * torch.sigmoid(own).sqrt()[:, None]
    exact = (one.log_prob(z, own[0]) - other.log_prob(z, own[0])).numpy()
    # what the midpoint rule leaves: by halving the step it falls to a quarter, measured below
    fine = torch.linspace(-11.875, 7.875, 80, dtype=torch.float64)
    table = evidence(ByLabel(one, other), y, [0, 1], fine, stimulus_logsnr=own, pairs=2000, seed=3)
    cells = 0.5 * table["width"] * (table["error"].sel(label=1) - table["error"].sel(label=0))
    finer = cells.fillna(0.0).sum("logsnr").values
    assert np.all(np.abs(finer - exact) < 4.5 * se + 0.01)
    assert np.all(np.abs(got - exact) < 4.5 * se + 0.04)


def test_nothing_is_asked_above_the_stimulus():
    one, other = two_classes()
    own = torch.tensor([-1.0, torch.inf], dtype=torch.float64)
    table = evidence(ByLabel(one, other), pictures(2), [0, 1], GRID, stimulus_logsnr=own)
    above = table["logsnr"].values - 0.25 >= -1.0
    assert np.isnan(table["error"].values[0][:, above]).all()
    assert np.isfinite(table["error"].values[0][:, ~above]).all()
    assert np.isfinite(table["error"].values[1]).all()
    width = table["width"].values
    assert np.allclose(width[0].sum(), -1.0 - (-12.0))
    assert np.allclose(width[1], 0.5)


def test_a_logsnr_at_the_edge_of_a_cell_gives_numbers():
    # in float32 the cell that ends at 0 leaves slivers of 1e-8, or of a rounding at 10
    one, other = (p.float() for p in two_classes())
    off = torch.cat([torch.zeros(1), torch.logspace(-9, -3, 100), -torch.logspace(-9, -3, 100)])
    for at, step in ((0.0, 0.1), (10.0, 0.1), (10.0, 0.01), (-3.0, 0.7)):
        grid = torch.linspace(at - 2.5 * step, at + 6.5 * step, 10)
        table = evidence(
            ByLabel(one, other), torch.zeros(201, 3), [0, 1], grid, stimulus_logsnr=at + off * step
        )
        asked = (table["width"].values > 0)[:, None].repeat(2, 1)
        assert np.array_equal(np.isfinite(table["error"].values), asked)
        assert np.isnan(table["error"].values[:, :, 4:]).all()
        assert np.allclose(table["width"].sum("logsnr"), 3 * step, atol=2e-3 * step + 4e-6)


def test_noise_is_shared_over_labels_and_batches_do_not_matter():
    one, _ = two_classes()
    x = pictures(5)
    small = evidence(ByLabel(one, one), x, [0, 1], GRID[::4], batch=8)
    large = evidence(ByLabel(one, one), x, [0, 1], GRID[::4], batch=4096)
    assert np.array_equal(small["error"].sel(label=0), small["error"].sel(label=1))
    assert np.allclose(small["error"], large["error"], rtol=1e-12)
    some = evidence(ByLabel(one, one), x[:2], [0, 1], GRID[::4])
    assert np.allclose(some["error"], small["error"][:2], rtol=1e-12)
    other = evidence(ByLabel(one, one), x, [0, 1], GRID[::4], seed=1)
    assert not np.allclose(other["error"], small["error"], rtol=1e-3)


@pytest.mark.parametrize("lag", [float("inf"), 1.0])
def test_noise_is_held_of_few_stimuli_at_a_time(monkeypatch, lag):
    one, other = two_classes()
    given = (ByLabel(one, other), pictures(70), [0, 1], GRID[::4])
    whole, held, draw = evidence(*given, lag=lag), [], module._noise

    def drawn(*args):
        held.append((noise := draw(*args)).nbytes)
        return noise

    each = 2 * 10 * 3 * 8  # pairs, levels, numbers and bytes of a stimulus
    monkeypatch.setattr(module, "_noise", drawn)
    monkeypatch.setattr(module, "_NOISE", 10 * each + 1)
    found = evidence(*given, lag=lag)
    assert held == [10 * each] * 6 + [4 * each, 6 * each]  # of 64 and of 6
    xr.testing.assert_allclose(found, whole, rtol=1e-12)
    assert found.attrs == whole.attrs
    monkeypatch.setattr(module, "_NOISE", 1)  # one at least
    held.clear()
    xr.testing.assert_allclose(evidence(*given, lag=lag), whole, rtol=1e-12)
    assert held == [each] * 70


class Stops(Denoiser):
    """Works so many times, and then is killed."""

    def __init__(self, inner, calls):
        super().__init__()
        self.inner, self.calls = inner, [calls]  # a plain number would be part of what it is

    def forward(self, z, logsnr, cond=None):
        if self.calls[0] == 0:
            raise KeyboardInterrupt
        self.calls[0] -= 1
        return self.inner(z, logsnr, cond)


def test_goes_on_where_it_was_stopped(tmp_path):
    one, other = two_classes()
    x, path = pictures(150), tmp_path / "table.nc"
    whole = evidence(Stops(ByLabel(one, other), -1), x, [0, 1], GRID[::8])
    with pytest.raises(KeyboardInterrupt):
        evidence(Stops(ByLabel(one, other), 12), x, [0, 1], GRID[::8], path=path, batch=64 * 5)
    assert not path.exists()
    assert len(list((tmp_path / "table.parts").iterdir())) == 1
    left = Stops(ByLabel(one, other), 15)  # of the 24 or so that all would need
    found = evidence(left, x, [0, 1], GRID[::8], path=path, batch=64 * 5)
    xr.testing.assert_identical(found, whole)
    assert [p.name for p in tmp_path.iterdir()] == ["table.nc"]
    # a third call reads, a name in words too
    xr.testing.assert_identical(
        evidence(Stops(ByLabel(one, other), 0), x, [0, 1], GRID[::8], path=str(path)), whole
    )


def test_parts_of_other_settings_are_left(tmp_path):
    one, other = two_classes()
    x, path = pictures(100), tmp_path / "table.nc"
    with pytest.raises(KeyboardInterrupt):
        evidence(Stops(ByLabel(one, other), 5), x, [0, 1], GRID[::8], path=path)
    (left,) = (tmp_path / "table.parts").iterdir()
    whole = evidence(ByLabel(one, other), x, [0, 1], GRID[::8], seed=1, path=path)
    xr.testing.assert_identical(evidence(ByLabel(one, other), x, [0, 1], GRID[::8], seed=1), whole)
    assert list((tmp_path / "table.parts").iterdir()) == [left]
    # and serve when their setting comes again, after which the folder goes
    path.rename(tmp_path / "one.nc")
    evidence(Stops(ByLabel(one, other), 5), x, [0, 1], GRID[::8], path=path)  # of 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.nc", "table.nc"]


@pytest.mark.slow
def test_workers_make_the_same_table(tmp_path):
    one, other = (p.float() for p in two_classes())
    given = (ByLabel(one, other), pictures(130).float(), [0, 1], GRID[::8].float())
    with workers(2) as executor:
        found = evidence(*given, path=tmp_path / "table.nc", executor=executor)
    xr.testing.assert_identical(found, evidence(*given))


def test_a_table_of_other_weights_is_refused(tmp_path):
    one, other = two_classes()
    path = tmp_path / "table.nc"
    evidence(ByLabel(one, other), pictures(2), [0, 1], GRID[::8], path=path)
    with pytest.raises(ValueError, match="of other weights"):
        evidence(ByLabel(other, one), pictures(2), [0, 1], GRID[::8], path=path)
    with pytest.raises(ValueError, match="of other weights"):
        evidence(ByLabel(one, other), pictures(2), [0, 1], GRID[::8], path=path, seed=1)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="no whole table"):
        evidence(ByLabel(one, other), pictures(2), [0, 1], GRID[::8], path=path)


def test_a_table_of_another_scale_is_refused(tmp_path):
    one, other = two_classes()
    path, good, bad = tmp_path / "table.nc", ByLabel(one, other), ByLabel(other, one)
    evidence(Auto(good, bad, 1.0), pictures(2), [0, 1], GRID[::8], path=path)
    with pytest.raises(ValueError, match="of other weights"):
        evidence(Auto(good, bad, 3.0), pictures(2), [0, 1], GRID[::8], path=path)
    for make in (
        lambda s: ClassifierFree(one, s),
        lambda s: Classifier(one, one.log_prob, s),
        lambda s: CfgZero(one, s),
        lambda s: CfgZero(one, 2.0, still=s),
        lambda s: Auto(good, ClassifierFree(one, s), 2.0),  # a guide inside
    ):
        assert digest(make(1.0)) == digest(make(1.0)) != digest(make(3.0))


def test_the_digest_of_a_network_is_of_its_words_and_weights():
    # as it was before plain numbers counted: tables that took hours stay readable
    network = UNet(1, 32, (1, 2), attention=[1], classes=3)
    for denoiser in (NetworkDenoiser(network, "v"), LevelDenoiser(network, 4), two_classes()[0]):
        wanted = hashlib.sha256(repr(denoiser).encode())
        for value in denoiser.state_dict().values():
            array = value.numpy()
            wanted.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        assert digest(denoiser) == wanted.hexdigest()
    assert digest(NetworkDenoiser(network, "v")) != digest(NetworkDenoiser(network, "eps"))


def test_a_table_in_another_order_is_read_as_it_is_meant(tmp_path):
    one, other = two_classes()
    table = evidence(ByLabel(one, other), pictures(3), [0, 1], GRID[::8])
    path = tmp_path / "table.nc"
    table.transpose("logsnr", "stimulus", "label").to_netcdf(path, engine="h5netcdf")
    xr.testing.assert_identical(read_table(path), table)
    assert read_table(str(path))["error"].dims == ("stimulus", "label", "logsnr")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop_vars("logsnr"), "logsnr none, wanted the middles"),
        (lambda t: t.isel(logsnr=[0, 1, 3]), "logsnr .*, wanted .* increasing by equal steps"),
        (lambda t: t.isel(logsnr=[2, 1, 0]), "logsnr .*, wanted .* increasing by equal steps"),
        (lambda t: t.isel(logsnr=[1]), r"logsnr \[-7.75\], wanted .* at least two"),
        (lambda t: t.isel(logsnr=[]), "'logsnr': 0}, wanted"),
        (lambda t: t.isel(stimulus=[]), r"error is {'stimulus': 0, .* each at least 1"),
        (lambda t: t.isel(stimulus=[0, 1, 1]), "stimulus 1 occurs 2 times, wanted each once"),
        (lambda t: t.isel(label=0), r"error is .*, wanted \(stimulus, label, logsnr\)"),
        (lambda t: t.assign(width=t["width"][0]), r"width is .*, wanted \(stimulus, logsnr\)"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, change, words):
    one, other = two_classes()
    table = evidence(ByLabel(one, other), pictures(3), [0, 1], GRID[::8])
    change(table).to_netcdf(tmp_path / "table.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=words):
        read_table(tmp_path / "table.nc")


def test_no_file_is_no_broken_file(tmp_path):
    with pytest.raises(ValueError, match=r"table.nc does not exist; wanted a table of evidence"):
        read_table(tmp_path / "table.nc")
    with pytest.raises(ValueError, match="is a folder; wanted a table of evidence"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stimuli": torch.full((2, 3), 1.5)}, "come with its stimulus_logsnr"),
        ({"stimuli": torch.zeros(2, 3, dtype=torch.uint8)}, "wanted float"),
        ({"stimuli": torch.full((2, 3), torch.nan)}, "NaN"),
        ({"logsnr": torch.tensor([0.0, 1.0, 3.0])}, "equal steps"),
        ({"logsnr": torch.tensor([0.0])}, "equal steps"),
        ({"logsnr": torch.tensor([-torch.inf, 0.0, torch.inf])}, "equal steps"),
        ({"stimulus_logsnr": torch.tensor([0.0, -20.0])}, "stimulus 1 has a logsnr of -20"),
        ({"labels": [0, 2]}, "wanted one of 0 to 1"),
        ({"stimuli": torch.zeros(0, 3)}, r"stimuli of shape \(0, 3\), wanted .* at least one"),
        ({"labels": []}, r"labels \[\], wanted whole numbers"),
        ({"labels": [0, -1]}, r"labels \[0, -1\], wanted whole numbers from 0"),
        ({"labels": [0, 1, 0]}, r"labels \[0, 1, 0\], wanted .* each once"),
        ({"pairs": 0}, "0 pairs of noise, wanted at least 1"),
        ({"batch": 0}, "a batch of 0, wanted at least 1"),
        ({"lag": -1.0}, "a lag of -1.0 nats, wanted 0 or more"),
        ({"lag": float("nan")}, "a lag of nan nats"),
    ],
)
def test_bad_input(change, words):
    one, other = (p.float() for p in two_classes())
    given = {"stimuli": torch.zeros(2, 3), "labels": [0, 1], "logsnr": torch.linspace(-4, 4, 9)}
    with pytest.raises(ValueError, match=words):
        evidence(ByLabel(one, other), **{**given, **change})


@pytest.mark.slow  # the run-time type checks of the others would speak first
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stimuli": torch.tensor(0.0)}, r"stimuli of shape \(\)"),
        ({"stimuli": np.zeros((2, 3))}, r"numpy.ndarray'>, wanted a tensor: torch.tensor\(stimuli"),
        ({"logsnr": np.linspace(-4, 4, 9)}, r"torch.tensor\(logsnr\)"),
        ({"stimulus_logsnr": [0.0, 1.0]}, r"torch.tensor\(stimulus_logsnr\)"),
        ({"stimulus_logsnr": torch.zeros(3)}, r"of shape \(3,\) for stimuli of shape \(2, 3\)"),
        ({"labels": ["cat", "dog"]}, r"labels \['cat', 'dog'\], wanted .* name them afterwards"),
    ],
)
def test_input_of_bad_types(change, words):
    test_bad_input(change, words)


def near_classes(count, seed):
    """Three Gaussians, pictures of all three, and the denoisers."""
    means = torch.tensor([[0.3, 0.0, 0.0], [-0.3, 0.2, 0.0], [0.0, -0.4, 0.3]]).double()
    variance = torch.full((3,), 0.03, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    k = torch.randint(3, (count,), generator=g)
    x = means[k] + 0.03**0.5 * torch.randn(count, 3, generator=g, dtype=torch.float64)
    return ByLabel(*(Gaussian(m, variance) for m in means)), x.clamp(-1, 1)


def final(table):
    return (table["width"] * table["error"]).sum("logsnr").values


def test_labels_given_up_seldom_win():
    # over many pilots the winner of the whole table is lost no more often than the risk says
    denoiser, x = near_classes(600, 0)
    grid, names = GRID[::2], [0, 1, 2]
    whole = evidence(denoiser, x, names, grid, pairs=1)
    winner = final(whole).argmin(1)
    lost = []
    for pilot in range(6):
        some = np.arange(pilot * 100, pilot * 100 + 100)
        lag = safe_lag(whole.isel(stimulus=some), risk=0.05)
        short = evidence(denoiser, x, names, grid, pairs=1, lag=lag)
        rest = np.setdiff1d(np.arange(600), some)
        lost.append((final(short).argmin(1) != winner)[rest].mean())
        # what was not given up is as it was, and all is finite
        same = np.isclose(short["error"], whole["error"], rtol=1e-9).mean()
        assert same > 0.3
        assert np.isfinite(short["error"]).all()
    # the mean over pilots: risk .05, binomial s.d. of a pilot's own quantile .05 / √6
    assert np.mean(lost) < 0.05 + 3 * 0.05 / 6**0.5


class Tabled(Denoiser):
    """Errs by given numbers: (stimulus, label, logsnr), of stimuli n / 1000 and at high logsnr."""

    def __init__(self, errors, grid):
        super().__init__()
        self.errors, self.grid = errors, grid

    def forward(self, z, logsnr, cond=None):
        n = (1000 * z[:, 0] / torch.sigmoid(logsnr).sqrt()).round().long()
        level = (logsnr[:, None] - self.grid).abs().argmin(1)
        off = (-0.5 * logsnr).exp() * self.errors[n, cond, level].sqrt()
        return (n / 1000 - off)[:, None]


def tabled(errors, **given):
    grid = torch.arange(20.0, 20.0 + errors.shape[2], dtype=torch.float64)
    x = torch.arange(len(errors), dtype=torch.float64)[:, None] / 1000
    return evidence(Tabled(errors, grid), x, range(errors.shape[1]), grid, pairs=1, **given)


def test_a_label_given_up_does_not_catch_up():
    # two that are better in turn, 3 nats behind at most, and one that is far behind at once
    turns = torch.tensor([[6.0, 0.0] * 4, [0.5, 6.0] * 4, [10.0] * 8]).double()[None]
    whole, short = tabled(turns), tabled(turns, lag=1.5)
    assert np.allclose(whole["error"], turns, atol=1e-6)
    assert np.allclose(short["error"][0, :2], turns[0, :2], atol=1e-6)
    # C was asked twice, and then stands where it stood to A, which wins: 10 to 3
    assert np.allclose(short["error"][0, 2], [10.0, 10.0, *turns[0, 0, 2:]], atol=1e-6)
    assert np.allclose(0.5 * final(short), [12.0, 13.0, 19.0])


def test_the_risk_is_kept_where_labels_overtake_each_other():
    # errors drawn anew at each level, where each level's least error is far below any label's own
    g = torch.Generator().manual_seed(0)
    errors = 4 * torch.rand(400, 6, 8, generator=g, dtype=torch.float64)
    errors += 2 * torch.rand(400, 6, 1, generator=g, dtype=torch.float64)
    whole = tabled(errors)
    lost, given_up = [], []
    for half in (np.arange(200), np.arange(200, 400)):
        lag, rest = safe_lag(whole.isel(stimulus=half), risk=0.1), np.setdiff1d(range(400), half)
        short = tabled(errors, lag=lag)
        lost.append((final(short).argmin(1) != final(whole).argmin(1))[rest].mean())
        given_up.append(1 - np.isclose(short["error"], whole["error"], rtol=1e-6).mean())
        assert np.isfinite(short["error"]).all()
    assert min(given_up) > 0.2
    # of 200 each, by a quantile of 200: s.d. of a half √(2 risk (1 - risk) / 200)
    assert np.mean(lost) < 0.1 + 3 * (2 * 0.1 * 0.9 / 200 / 2) ** 0.5


def test_giving_up_saves_and_without_a_lag_nothing_changes():
    denoiser, x = near_classes(40, 1)

    class Counts(Denoiser):
        calls = 0

        def forward(self, z, logsnr, cond=None):
            Counts.calls += len(z)
            return denoiser(z, logsnr, cond)

    evidence(Counts(), x, [0, 1, 2], GRID[::2], pairs=1)
    whole, Counts.calls = Counts.calls, 0
    evidence(Counts(), x, [0, 1, 2], GRID[::2], pairs=1, lag=1.0)
    assert whole == 40 * 3 * 20 * 2
    assert Counts.calls < 0.9 * whole


def test_a_small_pilot_promises_nothing():
    denoiser, x = near_classes(20, 2)
    with pytest.raises(ValueError, match="wanted at least 99"):
        safe_lag(evidence(denoiser, x, [0, 1, 2], GRID[::8]), risk=0.01)


@pytest.mark.parametrize("risk", [0.0, -0.1, 1.0, 1.5, float("nan")])
def test_a_risk_that_is_none(risk):
    with pytest.raises(ValueError, match=f"risk of {risk:g}, wanted a probability between 0 and 1"):
        safe_lag(xr.Dataset(coords={"stimulus": range(200)}), risk=risk)
