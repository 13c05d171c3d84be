import numpy as np
import pyro
import pytest
import torch
import toys
import xarray as xr
from pyro import poutine
from torch import nn

import neurodiff as nd
from neurodiff.inference.groups import Grouped
from neurodiff.inference.join import bind, join
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.posterior import Posterior, posterior
from neurodiff.inference.priors import Pooled, sites
from neurodiff.inference.svi import program

BOTH = ("weighting.law.loc", "weighting.law.scale")
ALL = (*BOTH, "observer.ceiling", "observer.lapse")


def unmerged(model, data, by=None):
    """A posterior of every trial by itself, with the same priors."""
    trials, response = bind(model, data)
    found = sites(model, model.centre(trials))
    index = (
        None if by is None else torch.as_tensor(np.unique(data[by].values, return_inverse=True)[1])
    )
    parameters = Pooled(found) if index is None else Grouped(found, index)
    return posterior(model, parameters, trials, response)


def test_log_density_is_prior_plus_likelihood_by_hand():
    data = toys.data()
    joint = join(toys.model(BOTH), data).posterior
    for loc, log_scale in [(0.3, 0.1), (-2.0, 1.5)]:
        u = torch.tensor([[loc, log_scale]])
        by_hand = (
            toys.PRIOR.logpdf(loc)
            + toys.stats.norm(0, 1).logpdf(log_scale)
            + toys.log_likelihood(data, loc, np.exp(log_scale)).sum()
        )
        assert joint.log_prob(u).item() == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize("by", [None, "subject"])
def test_merging_equal_rows_changes_nothing(by):
    data = toys.data(subjects=3)
    data["correct"][5] = np.nan
    data["correct"][9] = np.nan
    model = toys.model(ALL)
    bound = join(model, data, by=by)
    plain = unmerged(model, data, by)
    assert len(bound.posterior.unit) < len(plain.unit)
    assert bound.posterior.weight.sum() == len(plain.unit)
    u = bound.start + 0.3 * torch.randn(4, bound.posterior.size)
    for row in u[:, None]:
        assert torch.isclose(bound.posterior.log_prob(row), plain.log_prob(row), rtol=1e-12)
    merged, each = (p.draws_terms(u[None])[1][0] for p in (bound.posterior, plain))
    per_trial = merged / bound.posterior.weight
    assert torch.allclose(per_trial[:, bound.rows], each, atol=1e-12)


def test_missing_answers_contribute_nothing():
    data = toys.data()
    data["correct"][::3] = np.nan
    kept = data.isel(trial=np.flatnonzero(~np.isnan(data["correct"].values)))
    model = toys.model(BOTH)
    u = torch.tensor([[0.3, -0.2]])
    a, b = unmerged(model, data), unmerged(model, kept)
    assert torch.isclose(a.log_prob(u), b.log_prob(u), rtol=1e-12)
    assert torch.isfinite(a.hessian(u)).all()
    by_row = a.draws_terms(u[None])[1][0, 0]
    assert (by_row[::3] == 0).all()


class Waiting(nn.Module):
    """Log-normal waiting times: log_prob(0), a careless stand-in for a missing one, is -inf."""

    requires, response = ("logsnr",), "rt"

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))
        self.priors = {"loc": torch.distributions.Normal(0.0, 1.0)}

    def forward(self, trials):
        loc = self.loc.expand(trials["logsnr"].shape)
        return torch.distributions.LogNormal(loc, 1.0, validate_args=False)


def test_missing_answers_need_not_make_sense_to_the_distribution():
    rt = np.array([0.5, np.nan, 1.5])
    data = xr.Dataset({"logsnr": ("trial", np.zeros(3)), "rt": ("trial", rt)})
    joint = join(Waiting(), data).posterior
    u = torch.zeros(1, 1)
    expected = toys.stats.lognorm(1.0).logpdf([0.5, 1.5]).sum() + toys.stats.norm.logpdf(0)
    assert joint.log_prob(u).item() == pytest.approx(expected)
    assert torch.isfinite(joint.hessian(u)).all()


def test_a_mask_is_a_subset():
    data = toys.data()
    model = toys.model(BOTH)
    joint = unmerged(model, data)
    mask = (torch.arange(len(joint.unit)) % 4 != 0).to(torch.float64)[None]
    subset = unmerged(model, data.isel(trial=np.flatnonzero(mask[0].numpy())))
    # the priors are those of the data that the model met
    subset = Posterior(**{**vars(subset), "parameters": joint.parameters})
    u = torch.tensor([[0.4, 0.3]])
    assert torch.isclose(joint.with_mask(mask).log_prob(u), subset.log_prob(u), rtol=1e-12)
    assert torch.allclose(joint.with_mask(mask).hessian(u), subset.hessian(u), rtol=1e-10)


def test_units_sum_their_rows_in_any_order():
    data = toys.data()
    model = toys.model(BOTH)
    plain = unmerged(model, data)
    u = torch.randn(1, 6, 2)
    _, each = plain.draws_terms(u)
    for unit in (torch.arange(160) // 8, torch.arange(160) % 7, torch.arange(160) % 7 * 2):
        grouped = posterior(model, plain.parameters, plain.trials, plain.response, unit)
        prior, by_unit = grouped.draws_terms(u)
        expected = torch.zeros(1, 6, int(unit.max()) + 1).index_add(2, unit, each)
        assert torch.allclose(by_unit, expected, rtol=1e-12)
        total = prior + by_unit.sum(-1)
        one = torch.stack([grouped.log_prob(v[None])[0] for v in u[0]])
        assert torch.allclose(total[0], one, rtol=1e-12)


def test_a_batch_is_a_loop():
    data = toys.data()
    model = toys.model(BOTH)
    joint = unmerged(model, data)
    answers = torch.bernoulli(torch.full((3, 160), 0.6))
    answers[1, 7] = torch.nan
    mask = (torch.rand(3, 160) > 0.2).to(torch.float64)
    batch = Posterior(**{**vars(joint), "response": answers, "mask": mask})
    u, draws = torch.randn(3, 2), torch.randn(3, 5, 2)
    for i in range(3):
        one = Posterior(**{**vars(joint), "response": answers[i], "mask": mask[i : i + 1]})
        pick = slice(i, i + 1)
        assert torch.allclose(batch.log_prob(u)[pick], one.log_prob(u[pick]), atol=1e-10)
        assert torch.allclose(batch.hessian(u)[pick], one.hessian(u[pick]), atol=1e-10)
        for a, b in zip(batch.draws_terms(draws), one.draws_terms(draws[pick]), strict=True):
            assert torch.allclose(a[pick], b, atol=1e-10)
        each = one.draws_log_prob(draws[pick])
        assert torch.allclose(batch.draws_log_prob(draws)[pick], each, atol=1e-10)
        loop = torch.stack([one.log_prob(v[None])[0] for v in draws[i]])
        assert torch.allclose(each[0], loop, atol=1e-10)


@pytest.mark.parametrize("by", [None, "subject"])
def test_derivatives_are_finite_differences(by):
    joint = join(toys.model(ALL), toys.data(subjects=3), by=by).posterior
    u = (0.3 * torch.randn(1, joint.size)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(joint.log_prob(u).sum(), u)
    hessian = joint.hessian(u.detach())[0]
    h = 1e-5
    for i in range(joint.size):
        step = torch.zeros(1, joint.size)
        step[0, i] = h
        up, down = u.detach() + step, u.detach() - step
        slope = (joint.log_prob(up) - joint.log_prob(down)) / (2 * h)
        assert gradient[0, i].item() == pytest.approx(slope.item(), abs=1e-5)
        slopes = []
        for v in (up, down):
            leaf = v.requires_grad_(True)
            slopes.append(torch.autograd.grad(joint.log_prob(leaf).sum(), leaf)[0][0])
        assert torch.allclose(hessian[i], (slopes[0] - slopes[1]) / (2 * h), atol=1e-4)


@pytest.mark.parametrize("by", [None, "subject"])
def test_pyro_sees_the_same_density(by):
    """log p(u) is the trace's log density, plus the Jacobians of the supports."""
    model = toys.model(ALL)
    joint = join(model, toys.data(subjects=3), by=by).posterior
    parameters = joint.parameters
    pooled = parameters if isinstance(parameters, Pooled) else parameters.pooled
    for u in 0.5 * torch.randn(3, joint.size):
        values = parameters.constrain(u)
        jacobian = 0.0
        if isinstance(parameters, Pooled):
            given, mean = values, u
        else:
            d = pooled.size
            mean, log_sd, z = u.split([d, d, 3 * d])
            given = {k: v for k, v in values.items() if k.startswith("population.")}
            for i, site in enumerate(pooled.sites):
                given[f"spread.{site.name}"] = log_sd[i : i + 1].exp()
                given[f"z.{site.name}"] = z.reshape(3, d)[:, i : i + 1]
            jacobian = log_sd.sum()
        for site, part in zip(pooled.sites, mean, strict=True):
            x = site.transform(part)
            jacobian = jacobian + site.transform.log_abs_det_jacobian(part, x).sum()
        with pyro.settings.context(module_local_params=True):
            conditioned = poutine.condition(lambda: program(joint), data=given)
            trace = poutine.trace(conditioned).get_trace()
        total = trace.log_prob_sum() + jacobian
        assert joint.log_prob(u[None]).item() == pytest.approx(total.item(), rel=1e-12)


def test_folds_of_a_batch_equal_their_own_fits():
    joint = join(toys.model(BOTH), toys.data(320)).posterior
    mask = torch.ones(3, joint.mask.shape[1])
    for i in range(3):
        mask[i, i::3] = 0.0
    start = torch.zeros(3, 2)
    together = find_modes(joint.with_mask(mask), start)
    for i in range(3):
        alone = find_modes(joint.with_mask(mask[i : i + 1]), start[i : i + 1])
        assert torch.allclose(together.u[i], alone.u[0], atol=1e-4)
        assert together.log_prob[i].item() == pytest.approx(alone.log_prob[0].item(), abs=1e-6)


def test_bad_data_are_refused():
    data = toys.data()
    with pytest.raises(ValueError, match=r"no variable 'logsnr'.*did you mean 'logsnrr'"):
        bind(toys.model(), data.rename(logsnr="logsnrr"))
    data["logsnr"][3] = np.nan
    with pytest.raises(ValueError, match=r"'logsnr' is NaN at \('trial',\) = \(3,\)"):
        bind(toys.model(), data)
    with pytest.raises(ValueError, match="single subject"):
        join(toys.model(), toys.data(subjects=1), by="subject")
    with pytest.raises(ValueError, match="did you mean 'subject'"):
        join(toys.model(), toys.data(subjects=2), by="subjects")


def test_blocks_are_units_and_histories_are_not_merged():
    count = np.resize([0.0, 1.0, 0.0, 0.0], 400)
    recording = xr.Dataset(
        {"logsnr": ("time", np.resize([0.0, 1.0], 400)), "count": ("time", count)},
        coords={"block": ("time", np.arange(400) // 100)},
    )
    counts = nd.observers.Counts(history=3)
    bound = join(nd.Threshold(nd.weighting("sigmoid"), counts), recording)
    assert bound.unit_dim == "block"
    assert bound.posterior.mask.shape == (1, 4)
    assert len(bound.posterior.unit) == 400
    memoryless = nd.Threshold(nd.weighting("sigmoid"), nd.observers.Counts(history=0))
    assert len(join(memoryless, recording).posterior.unit) == 3 * 4
