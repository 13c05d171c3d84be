"""The two kinds of using evidence: against sums written out, Monte Carlo, and each other."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

import neurodiff as nd
from neurodiff.perception.classify import AveragedEvidence, StoppedEvidence
from neurodiff.perception.levels import FreeWeights, OneLevel, Placed

GRID = np.linspace(-5.75, 3.75, 20)


def table(seed=0, stimuli=6, labels=4, own=None):
    """Errors that a denoiser might have, of stimuli that may end at a logsnr of their own."""
    rng = np.random.default_rng(seed)
    error = rng.gamma(2.0, 0.3, (stimuli, labels, len(GRID))) * np.exp(0.2 * GRID)
    own = np.full(stimuli, np.inf) if own is None else own
    width = np.clip(np.minimum(GRID + 0.25, own[:, None]) - (GRID - 0.25), 0, None)
    error = np.where(width[:, None] > 0, error, np.nan)
    dims = ("stimulus", "label", "logsnr")
    return xr.Dataset(
        {"error": (dims, error), "width": (dims[::2], width)},
        {"stimulus": 10 + np.arange(stimuli), "logsnr": GRID},
    )


def logistic(loc=0.3, scale=0.8):
    return nd.SurvivalWeighting(nd.laws.Logistic(loc, scale)).double()


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_averaged_is_the_softmax_of_the_weighted_error():
    t, w = table(), logistic()
    model = AveragedEvidence(w, t)
    model.observer.sensitivity.data.fill_(0.7)

    def cell(low):  # by quadrature over each cell
        return integrate.quad(lambda x: w(torch.tensor(x)).item(), low, low + 0.5)[0]

    mass = np.array([cell(g - 0.25) for g in GRID])
    wanted = softmax(-0.35 * t["error"].values @ mass)
    assert np.allclose(model.chosen().detach(), wanted, atol=1e-6)


def test_stopped_is_the_mean_over_stops():
    # 400,000 stops drawn from the law, the evidence up to each by interpolation
    t, w = table(), logistic()
    model = StoppedEvidence(w, t)
    model.observer.sensitivity.data.fill_(0.7)
    torch.manual_seed(0)
    stops = w.law().sample((400_000,)).numpy()
    edges = np.append(GRID - 0.25, GRID[-1] + 0.25)
    for n in range(2):
        by = np.concatenate([np.zeros((4, 1)), 0.25 * t["error"].values[n].cumsum(-1)], -1)
        at = np.stack([np.interp(stops, edges, row) for row in by], -1)
        p = softmax(-0.7 * at)
        se = p.std(0) / np.sqrt(len(stops))
        # the middle of half a cell for the mean over it: second order in its evidence
        assert np.all(np.abs(model.chosen()[n].detach().numpy() - p.mean(0)) < 4 * se + 5e-4)


def test_both_are_the_average_of_evidence_where_answers_are_nearly_linear():
    # (b) is the softmax of the mean of what (c) averages after it: alike as s → 0
    t, w = table(), logistic()
    b, c = AveragedEvidence(w, t), StoppedEvidence(w, t)
    for model in (b, c):
        model.observer.sensitivity.data.fill_(1e-3)
    near, far = b.chosen() - 0.25, c.chosen() - 0.25
    assert torch.allclose(near, far, atol=5e-3 * near.abs().max().item())
    for model in (b, c):
        model.observer.sensitivity.data.fill_(3.0)
    assert (b.chosen() - c.chosen()).abs().max() > 0.02  # Jensen


@pytest.mark.parametrize("kind", [AveragedEvidence, StoppedEvidence])
def test_without_a_stop_it_is_the_posterior(kind):
    t = table()
    model = kind(nd.weighting("elbo"), t)
    model.observer.sensitivity.data.fill_(1.0)
    wanted = softmax(-0.25 * t["error"].values.sum(-1))
    assert np.allclose(model.chosen().detach(), wanted, atol=1e-12)


@pytest.mark.parametrize("kind", [AveragedEvidence, StoppedEvidence])
def test_nothing_is_learned_above_the_stimulus(kind):
    # a table that ends at λ_s is one whose errors above it are the same for all labels
    t = table(own=np.array([-2.0, 0.0, 0.5, 1.0, 3.0, np.inf]))
    longer = t.copy(deep=True)
    longer["error"] = t["error"].where(t["width"] > 0, 5.0)
    longer["width"] = xr.full_like(t["width"], 0.5)
    got, wanted = (kind(logistic(), x) for x in (t, longer))
    wanted.observer.sensitivity.data.copy_(got.observer.sensitivity.data)
    assert torch.allclose(got.chosen(), wanted.chosen(), atol=1e-12)


def by_hand(kind, law, t, n, s, stops=200_000):
    """Evidence that comes in evenly in each cell, up to the stimulus's own logsnr."""
    error, width, grid = t["error"].values[n], t["width"].values[n], t["logsnr"].values
    low = grid - 0.5 * (grid[1] - grid[0])
    there = width > 0
    if kind is AveragedEvidence:

        def cell(x, y):
            return integrate.quad(lambda at: law().survival(torch.tensor(at)).item(), x, y)[0]

        mass = [cell(x, x + y) for x, y in zip(low[there], width[there], strict=True)]
        return softmax(-0.5 * s * error[:, there] @ np.array(mass))
    edges = np.append(low[0], (low + width)[there])
    q = (np.arange(stops) + 0.5) / stops
    at = law().icdf(torch.from_numpy(q)).detach().numpy()
    by = np.pad((0.5 * width * error)[:, there].cumsum(-1), ((0, 0), (1, 0)))
    return softmax(-s * np.stack([np.interp(at, edges, row) for row in by], -1)).mean(0)


@pytest.mark.parametrize("kind", [AveragedEvidence, StoppedEvidence])
@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("own", [np.inf, 2.6, 3.0, 3.4])
def test_strong_evidence_and_narrow_laws_on_a_coarse_table(kind, scale, own):
    """Cells of a nat, some cut at the stimulus's own logsnr; halts at middles erred by .06."""
    grid = np.linspace(-6.0, 9.0, 16)
    width = np.clip(np.minimum(grid + 0.5, own) - (grid - 0.5), 0, None)[None]
    law = nd.laws.Logistic(2.2, scale).double()
    for nats in (0.1, 1.0, 3.0, 10.0):
        error = np.zeros((1, 2, 16))
        error[0, 0] = 2 * nats * (grid > 0)
        error = np.where(width[:, None] > 0, error, np.nan)
        dims = ("stimulus", "label", "logsnr")
        t = xr.Dataset(
            {"error": (dims, error), "width": (dims[::2], width)},
            {"stimulus": [0], "logsnr": grid},
        )
        model = kind(nd.SurvivalWeighting(law), t)
        model.observer.sensitivity.data.fill_(1.0)
        wanted = by_hand(kind, law, t, 0, 1.0)
        # a law narrower than a quarter of a nat is followed to that
        most = 1e-4 if kind is AveragedEvidence else 0.02 if scale < 0.1 else 2e-3
        assert np.abs(model.chosen()[0].detach().numpy() - wanted).max() < most


def test_without_any_weight_all_labels_are_alike():
    for weighting in (OneLevel(1.0), Placed(nd.weighting("step"))):
        place = weighting.loc if isinstance(weighting, OneLevel) else weighting.shift
        place.data.fill_(60.0)
        model = AveragedEvidence(weighting, table())
        assert torch.allclose(model.chosen(), torch.full((6, 4), 0.25).double())


def test_a_shift_has_its_prior_where_the_table_is():
    t = table().assign_coords(logsnr=GRID - 8.0)
    for kind in (AveragedEvidence, StoppedEvidence):
        assert kind(nd.weighting("sigmoid"), t).centre({})["weighting.shift"].mean == 9.0


def test_an_observer_that_is_given_is_left_as_it_is():
    observer = nd.observers.Categories(4)
    observer.sensitivity.data.fill_(3.0)
    assert AveragedEvidence(logistic(), table(), observer).observer.sensitivity == 3.0
    with pytest.raises(ValueError, match="an observer of 10 labels and a table of 4"):
        AveragedEvidence(logistic(), table(), nd.observers.Categories(10))


def test_dimensions_go_by_their_names():
    t = table(stimuli=4)
    got = StoppedEvidence(logistic(), t.transpose("logsnr", "label", "stimulus"))
    assert torch.equal(got.chosen(), StoppedEvidence(logistic(), t).chosen())


@settings(deadline=None, max_examples=30)
@given(
    loc=st.floats(-8, 8), scale=st.floats(0.1, 5), s=st.floats(0.01, 50), lapse=st.floats(0, 0.5)
)
def test_probabilities_sum_to_one(loc, scale, s, lapse):
    trials = {"row": torch.arange(6.0)}
    for kind in (AveragedEvidence, StoppedEvidence):
        model = kind(logistic(loc, scale), table())
        model.observer.sensitivity.data.fill_(s)
        model.observer.lapse.data.fill_(lapse)
        p = model(trials).log_prob(torch.arange(4.0)[:, None]).exp().sum(0)
        assert torch.allclose(p, torch.ones_like(p), atol=1e-6)
        assert (model(trials).probs >= lapse / 4 - 1e-7).all()


def test_the_height_of_a_weighting_is_sensitivity():
    # edm is not bounded by 1, and min-snr rises: both are scaled to 1 at their largest
    t = table()
    for name in ("edm", "min-snr", "flow-matching"):
        model = AveragedEvidence(nd.weighting(name), t)
        model.observer.sensitivity.data.fill_(1.0)
        w = nd.weighting(name)(torch.from_numpy(GRID)).numpy()
        wanted = softmax(-0.25 * t["error"].values @ (w / w.max()))
        assert np.allclose(model.chosen().detach(), wanted, atol=0.02)  # one node for four
    assert not AveragedEvidence(nd.weighting("flow-matching"), t).weighting.shift.requires_grad


def test_one_level_and_free_weights():
    t = table()
    model = AveragedEvidence(OneLevel(0.05), t)
    model.weighting.loc.data.fill_(GRID[7])
    model.observer.sensitivity.data.fill_(1.0)
    assert np.allclose(
        model.chosen().detach(), softmax(-0.25 * t["error"].values[..., 7]), atol=1e-6
    )
    free = FreeWeights(torch.from_numpy(GRID))
    free.z.data.copy_(torch.linspace(-2, 2, len(GRID) - 1))
    w = free(torch.from_numpy(GRID))
    assert torch.allclose(w.log().diff(), 0.7 * free.z.double(), atol=1e-6)
    assert w.max() == 1


def test_a_weighting_that_rises_does_not_stop():
    with pytest.raises(ValueError, match="no stopping law exists"):
        StoppedEvidence(nd.weighting("edm"), table())
    assert Placed(nd.weighting("edm")).monotone is False


def test_tables_and_trials_that_do_not_fit():
    hole = table()
    hole["error"][2, 1, 3] = np.nan
    with pytest.raises(ValueError, match=r"NaN at \(stimulus, label, logsnr\) = \(2, 1, 3\)"):
        AveragedEvidence(logistic(), hole)
    model = AveragedEvidence(logistic(), table())
    trials = {"shown": torch.tensor([10.0, 15.0, 99.0])}
    with pytest.raises(ValueError, match="trial 2 shows stimulus 99"):
        model.prepare(trials)
    assert model.prepare({"shown": torch.tensor([12.0, 10.0])})["row"].tolist() == [2.0, 0.0]


@pytest.mark.parametrize("kind", [AveragedEvidence, StoppedEvidence])
def test_a_fit_gives_back_what_was_put_in(kind):
    t = table(3, stimuli=300)
    truth = kind(logistic(-1.0, 0.6), t)
    truth.observer.sensitivity.data.fill_(4.0)
    torch.manual_seed(1)
    shown = torch.arange(300).repeat(30)
    choice = truth({"row": shown.double()}).sample().double()
    data = xr.Dataset(
        {"shown": ("trial", 10.0 + shown.numpy()), "choice": ("trial", choice.numpy())}
    )
    model = kind(nd.SurvivalWeighting(nd.laws.Logistic()), t)
    tree = nd.fit(model, data, nd.Laplace(draws=200), seed=0)
    u = tree["posterior"].dataset
    assert tree["sample_stats"].attrs.get("mode_converged", True)
    for name, value in {
        "weighting.law.loc": -1.0,
        "weighting.law.scale": 0.6,
        "observer.sensitivity": 4.0,
    }.items():
        z = (value - float(u[name].mean())) / float(u[name].std())
        assert abs(z) < 4, (name, z)
    assert float(u["weighting.law.loc"].std()) < 0.5
