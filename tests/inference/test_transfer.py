"""Parameters carried to another read-out: against refits fold by fold, one person at a time."""

import numpy as np
import pytest
import torch
import xarray as xr

from neurodiff.inference.importance import importance_draws
from neurodiff.inference.join import join
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.transfer import carry, fit_parts, held_out, over_draws
from neurodiff.perception.categories import Linear
from neurodiff.perception.confidence import Cuts, Reports
from neurodiff.perception.measurement import Power
from neurodiff.perception.orientation import Categorise, strengths

FOLDS = 4


def model(task):
    return Categorise(Power(strengths(3), floor=True), Linear(task))


def people(task, sizes=(150, 240), seed=0):
    """Choices simulated from the model, of people of unequal numbers of trials."""
    rng, own = np.random.default_rng(seed), model(task).double()
    found = []
    for n in sizes:
        data = xr.Dataset({
            "orientation": ("trial", rng.normal(0, 8, n)),
            "level": ("trial", rng.integers(0, 3, n) * 1.0),
        })  # fmt: skip
        trials = {name: torch.tensor(data[name].values) for name in ("orientation", "level")}
        p = own(trials).probs.detach().numpy()
        found.append(data.assign(choice=("trial", (rng.random(n) < p) * 1.0)))
    return found


@pytest.fixture(scope="module")
def fold():
    return torch.arange(240).expand(2, -1) % FOLDS


def by_refit(part, fold, draws=2000):
    """Each fold's elpd from a fit to the others alone."""
    elpd = torch.zeros(len(part.response))
    generator = torch.Generator().manual_seed(1)
    for k in range(FOLDS):
        here = fold[: len(elpd)] == k
        one = part.with_mask((~here)[None].to(part.mask))
        modes = find_modes(one, part.parameters.start()[None])
        found = importance_draws(one, modes, draws, generator)
        elpd[here] = torch.logsumexp(found.log_w[0][:, None] + found.by_unit[0][:, here], 0)
    return elpd


def test_folds_are_those_fitted_alone(fold):
    parts = [join(model("A"), data).posterior for data in people("A")]
    elpd, k_hat = held_out(fit_parts(parts, draws=100, starts=2), fold, draws=8000)
    assert k_hat.shape == (2, FOLDS)
    assert (k_hat < 0.75).all()
    assert (elpd[0, 150:].abs() < 1e-12).all()  # what only fills up the shorter part
    for i, part in enumerate(parts):
        wanted = by_refit(part, fold[i], draws=8000)
        # from seed to seed sums over a person's trials differ by .1
        assert (elpd[i, : len(wanted)] - wanted).abs().max() < 0.1
        assert abs(elpd[i].sum() - wanted.sum()) < 0.3


def test_folds_of_eighteen_parameters():
    parts, fold = [], torch.arange(600).expand(2, -1) % FOLDS
    torch.manual_seed(0)
    for data in people("A", sizes=(500, 600)):
        own = Reports(Power(strengths(3), floor=True), Cuts("A")).double()
        trials = {n: torch.tensor(data[n].values) for n in ("orientation", "level")}
        report = own(trials).sample().double().numpy()
        parts.append(join(own, data.assign(report=("trial", report))).posterior)
    wanted = torch.stack([by_refit(part, fold[i]).sum() for i, part in enumerate(parts)])
    elpd, k_hat = held_out(fit_parts(parts, draws=100, starts=1), fold, draws=1000)
    # from seed to seed sums over a person's trials differ by .6
    assert ((elpd.sum(1) - wanted).abs() < 2.0).all()
    assert (k_hat > 0.7).sum() <= 1


def test_what_is_carried_stays_and_the_rest_is_fitted(fold):
    parts, values = [], {"shift": [-3.4, -2.6], "power": [0.5, 0.7], "floor": [-1.0, -2.0]}
    for i, data in enumerate(people("B")):
        own = model("B")
        own.measurement.requires_grad_(False)
        for name, value in values.items():
            getattr(own.measurement, name).fill_(value[i])
        parts.append(join(own, data).posterior)
    wanted = [by_refit(part, fold[i]) for i, part in enumerate(parts)]
    blank = model("B")
    blank.measurement.requires_grad_(False)
    others = [join(blank, data).posterior for data in people("B")]
    given = {f"measurement.{k}": torch.tensor(v)[:, None] for k, v in values.items()}
    log_p, k_hat = carry(given, others, fold, draws=1000)
    assert k_hat.shape == (1, 2, FOLDS)
    for got, one in zip(log_p[0], wanted, strict=True):
        assert (got[: len(one)] - one).abs().max() < 0.03
        assert abs(got.sum() - one.sum()) < 0.3
    # a second draw has a mode of its own
    both = {name: torch.cat([value - 0.5, value], 1) for name, value in given.items()}
    assert torch.allclose(carry(both, others, fold, draws=1000)[0][1], log_p[0], atol=0.03)


def test_the_mean_over_draws_and_its_error():
    generator = torch.Generator().manual_seed(0)
    # log densities of 40 trials that follow a normal of each draw: the exact mean is known
    y, sd = torch.randn(1, 1, 40, generator=generator), 0.3

    def of(count):
        place = sd * torch.randn(count, 1, 1, generator=generator)
        return -0.5 * (y - place).square() - 0.5 * np.log(2 * np.pi)

    exact = -0.5 * (y**2 / (1 + sd**2) + np.log(2 * np.pi * (1 + sd**2)))
    found = np.array([np.stack(over_draws(of(50))) for _ in range(300)])
    elpd, error = found[:, 0, 0], found[:, 1, 0]
    assert abs(elpd.mean() - exact.sum()) < 5 * elpd.std() / np.sqrt(300) + 0.05
    assert error.mean() == pytest.approx(elpd.std(), rel=0.2)


def test_draws_have_equal_weight_and_the_seed_fixes_them():
    parts = [join(model("A"), data).posterior for data in people("A")]
    fitted = fit_parts(parts, draws=200, starts=3, seed=2)
    one, other = (fitted.sampled(50, seed=3) for _ in range(2))
    assert one["measurement.floor"].shape == (2, 50)
    assert all(torch.equal(one[name], other[name]) for name in one)
    weighted = (fitted.draws.log_w.exp()[..., None] * fitted.draws.u).sum(1)
    again = fit_parts(parts, draws=200, starts=3, seed=2)
    assert torch.equal(weighted, (again.draws.log_w.exp()[..., None] * again.draws.u).sum(1))
