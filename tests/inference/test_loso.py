"""Leave-one-subject-out against quadrature over the population."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.distributions import Bernoulli, Normal

from neurodiff.inference import stages
from neurodiff.inference.join import join
from neurodiff.inference.loso import leave_one_group_out
from neurodiff.inference.stages import Population, first_stage, two_stages


class Coin(nn.Module):
    """P(correct) = sigmoid(theta)."""

    requires = ("one",)
    response = "correct"

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.0))
        self.priors = {"theta": Normal(0.0, 1.0)}

    def forward(self, trials):
        return Bernoulli(logits=self.theta * trials["one"], validate_args=False)


def coins(right, n):
    answers = np.concatenate([np.repeat([1.0, 0.0], [k, n - k]) for k in right])
    subject = np.repeat([f"s{i:02d}" for i in range(len(right))], n)
    return xr.Dataset(
        {"one": ("trial", np.ones(len(answers))), "correct": ("trial", answers)},
        coords={"subject": ("trial", subject)},
    )


def exact(right, n, held):
    """log p(y_s | others) of each subject of ``held``, by quadrature over θ, μ and log τ."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    mu, log_tau = np.meshgrid(np.linspace(-5, 5, 161), np.linspace(-7, 2, 241), indexing="ij")
    tau = np.exp(log_tau)
    log_prior = -0.5 * mu**2 - 0.5 * tau**2 + log_tau
    theta = mu[..., None] + tau[..., None] * nodes

    def likelihood(k):
        log_p = -k * np.logaddexp(0, -theta) - (n - k) * np.logaddexp(0, theta)
        top = log_p.max()
        return np.log((np.exp(log_p - top) * weights).sum(-1) / np.sqrt(2 * np.pi)) + top

    each = {k: likelihood(k) for k in set(right)}
    found = []
    for own, out in held:
        others = log_prior + sum(each[k] for i, k in enumerate(right) if i not in out)
        p = np.exp(others - others.max())
        found.append(np.log((p * np.exp(each[right[own]])).sum() / p.sum()))
    return np.array(found)


def test_against_quadrature():
    right, n = [24, 20, 9, 27], 30
    scores = leave_one_group_out(join(Coin(), coins(right, n), by="subject"), 1000, 0)
    wanted = exact(right, n, [(i, {i}) for i in range(4)])
    # 1000 draws of the population, correlated in chains, and of the subject
    np.testing.assert_allclose(scores["elpd"], wanted, atol=0.15)
    # subjects differ by more than that, so their order counts
    assert np.ptp(wanted) > 5
    assert scores["subject"].values.tolist() == ["s00", "s01", "s02", "s03"]
    assert (scores["k_hat"] < 0.7).all()


def test_a_subject_is_not_predicted_from_itself():
    # the odd one is far from the others, and the whole posterior would know it
    right, n = [25, 24, 25, 9], 30
    scores = leave_one_group_out(join(Coin(), coins(right, n), by="subject"), 1000, 0)
    wanted = exact(right, n, [(3, {3})])[0]
    informed = exact(right, n, [(3, set())])[0]
    assert scores["elpd"].values[3] == pytest.approx(wanted, abs=0.2)
    assert informed - wanted > 1


def test_a_group_whose_own_draws_fail_is_told(monkeypatch):
    """Chains over the draws of one group agree however few of these there are."""
    bound = join(Coin(), coins([24, 20, 9], 30), by="subject")
    true = stages.posterior_draws

    def hopeless(own, *rest):
        found = true(own, *rest)
        if (own.response * own.weight).sum() == 9:
            found.k_hat[:] = 0.9
        return found

    monkeypatch.setattr(stages, "posterior_draws", hopeless)
    monkeypatch.setattr(stages, "adapted", lambda own, found, *rest: found)
    generator = torch.Generator().manual_seed(0)
    _, k_hat = two_stages(first_stage(bound.posterior, generator), 100, generator)
    assert k_hat == pytest.approx(0.9)
    k_hat = leave_one_group_out(bound, 500, 0)["k_hat"].values
    # the third subject is predicted from the others alone
    assert (k_hat[:2] >= 0.9 - 1e-6).all()
    assert k_hat[2] < 0.9


@pytest.mark.slow
def test_beyond_ten_subjects_tenths_are_held_out_together():
    right, n = [12, 10, 13, 9, 11, 14, 12, 8, 10, 12, 5, 11], 15
    scores = leave_one_group_out(join(Coin(), coins(right, n), by="subject"), 1000, 0)
    wanted = exact(right, n, [(i, {j for j in range(12) if j % 10 == i % 10}) for i in range(12)])
    np.testing.assert_allclose(scores["elpd"], wanted, atol=0.15)


def test_a_population_is_a_density_and_draws_from_itself():
    site = join(Coin(), coins([3, 4], 8)).pooled.sites
    mean, sd = torch.tensor([[-1.0], [2.0]]), torch.tensor([[0.5], [1.0]])
    population = Population(site, mean, sd)
    u = torch.linspace(-8, 10, 4001)[:, None]
    density = torch.vmap(population.log_prior)(u).exp()
    assert torch.trapezoid(density, u[:, 0]).item() == pytest.approx(1, abs=1e-6)
    drawn = population.draw_prior(20_000)
    middle, spread = 0.5, np.sqrt((0.25 + 1) / 2 + 1.5**2)
    assert drawn.mean().item() == pytest.approx(middle, abs=4 * spread / np.sqrt(20_000))
    assert drawn.std().item() == pytest.approx(spread, rel=0.03)


def test_few_components_explain_an_outlier():
    generator = torch.Generator().manual_seed(0)
    mean, sd = torch.randn(500, 1, generator=generator), torch.full((500, 1), 0.05)
    population = Population(join(Coin(), coins([3, 4], 8)).pooled.sites, mean, sd)
    assert population.effective(torch.randn(400, 1, generator=generator)) > 100
    assert population.effective(torch.full((400, 1), 4.0)) < 2


def test_needs_groups():
    with pytest.raises(TypeError, match="has no groups"):
        leave_one_group_out(join(Coin(), coins([3, 4], 8)), 100, 0)


def test_a_population_that_chooses_among_few_draws_says_so(monkeypatch):
    first = first_stage(
        join(Coin(), coins([24, 20, 9], 30), by="subject").posterior, torch.Generator()
    )
    assert two_stages(first, 100, torch.Generator().manual_seed(0))[1] < 0.7
    # one group's draws but one lie where no population is
    first.u[1, 1:] = 50.0
    assert two_stages(first, 100, torch.Generator().manual_seed(0))[1] == np.inf


def test_two_stages_against_quadrature():
    """Population mean and log s.d. of four coins."""
    right, n = [24, 20, 9, 27], 30
    bound = join(Coin(), coins(right, n), by="subject")
    generator = torch.Generator().manual_seed(0)
    u, k_hat = two_stages(first_stage(bound.posterior, generator), 1000, generator)
    assert k_hat < 0.7
    nodes, w = np.polynomial.hermite_e.hermegauss(80)
    mu, log_tau = np.meshgrid(np.linspace(-5, 5, 161), np.linspace(-7, 2, 241), indexing="ij")
    tau = np.exp(log_tau)
    theta = mu[..., None] + tau[..., None] * nodes
    log_p = -0.5 * mu**2 - 0.5 * tau**2 + log_tau
    for k in right:
        each = -k * np.logaddexp(0, -theta) - (n - k) * np.logaddexp(0, theta)
        log_p = log_p + np.log((np.exp(each - each.max()) * w).sum(-1)) + each.max()
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    for values, own in ((mu, u[:, 0]), (log_tau, u[:, 1])):
        mean = (p * values).sum()
        sd = np.sqrt((p * (values - mean) ** 2).sum())
        assert own.mean().item() == pytest.approx(mean, abs=4 * sd / np.sqrt(200))
        assert own.std().item() == pytest.approx(sd, rel=0.25)
    # each group's own parameter is z's place in the population: near its own log odds
    groups = u[:, :1] + u[:, 1:2].exp() * u[:, 2:]
    order = groups.mean(0).argsort().tolist()
    assert order == np.argsort(right).tolist()
