"""Rates of units: against scikit-learn, autograd, and truths that were drawn."""

import pytest
import torch
from scipy.stats import kstest
from sklearn.linear_model import PoissonRegressor

from neurodiff.inference import population, quasi
from neurodiff.inference.population import fit_rates


def simulated(seed, *, stimuli=500, units=12, levels=4, features=6, repeats=12, spread=0.15):
    """Features that change smoothly over levels, as those of blurs and noise levels do."""
    g = torch.Generator().manual_seed(seed)
    φ = torch.randn(stimuli, 1, features, generator=g) * 0.6
    φ = φ + 0.8 * torch.randn(stimuli, levels, features, generator=g)
    u = torch.randn(stimuli, 3, generator=g)
    m = torch.randn(levels, generator=g)
    p = (m + torch.randn(units, levels, generator=g)).softmax(1)
    a = spread * torch.randn(units, features, generator=g)
    c = 0.1 * torch.randn(units, 3, generator=g)
    eta = 0.8 + u @ c.T + torch.einsum("uk,skf,uf->su", p, φ, a)
    y = torch.poisson(repeats * eta.exp(), generator=g) / repeats
    return φ, u, y, p, a


def test_one_level_is_a_poisson_regression_with_a_ridge():
    φ, u, y, *_ = simulated(0, levels=1)
    counts = (y * 12).round()
    found = fit_rates(φ, u, counts, spread=0.3, rounds=0)
    x = torch.cat([u, φ[:, 0]], 1).numpy()
    for k in range(3):
        ridge = PoissonRegressor(alpha=1 / (0.3**2 * len(x)), tol=1e-10, max_iter=1000)
        ridge.fit(x, counts[:, k].numpy())
        mine = torch.cat([found.nuisance[k], found.weights[k]])
        assert torch.allclose(mine, torch.from_numpy(ridge.coef_), atol=1e-5)
        assert found.base[k].item() == pytest.approx(ridge.intercept_, abs=1e-5)


def test_the_score_is_the_gradient_and_shares_alike_are_shares_of_each():
    φ, u, y, *_ = simulated(1)
    problem = population._problem(φ, u, y, None, None)
    state = population._begin(problem, None, None)
    state = state._replace(u=state.u + 0.1 * torch.randn_like(state.u), kappa=state.kappa * 3)
    at = state.u.clone().requires_grad_(True)
    eta, _ = quasi.log_rate(problem, at)
    value = quasi.value_of(problem, state._replace(u=at), eta, eta.exp())
    (wanted,) = torch.autograd.grad(value.sum(), at)
    assert torch.allclose(quasi.scored(problem, state).gradient, wanted)
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    one, each = (fit_rates(φ, u, y, shares=s) for s in (p, p.expand(12, -1)))
    assert torch.allclose(one.weights, each.weights, atol=1e-5)
    assert torch.allclose(one.predict(φ, u), each.predict(φ, u), atol=1e-5)


def test_the_information_is_that_of_the_data():
    φ, u, y, *_ = simulated(2, units=2)
    problem = population._problem(φ, u, y, None, None)
    state = population._begin(problem, None, None)
    state = state._replace(u=state.u + 0.1 * torch.randn_like(state.u))

    def log_rate(u):
        return quasi.log_rate(problem, u)[0]

    j = torch.autograd.functional.jacobian(log_rate, state.u)  # unit, stimulus, unit, parameter
    for k in range(2):
        own = j[k, :, k]
        wanted = own.T @ (own * log_rate(state.u)[k].exp()[:, None])
        found = quasi._information(problem, state, quasi.scored(problem, state))[k]
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_unit_is_fitted_as_it_would_be_alone():
    φ, u, y, *_ = simulated(3)
    whole = fit_rates(φ, u, y, spread=0.2, rounds=0)
    alone = fit_rates(φ, u, y[:, 4:5], spread=0.2, rounds=0)
    assert torch.allclose(whole.weights[4:5], alone.weights, atol=1e-4)
    assert torch.allclose(whole.shares[4:5], alone.shares, atol=1e-4)
    assert whole.climb < 1e-5


def test_the_scale_of_the_noise_is_found():
    φ, u, y, *_ = simulated(4, stimuli=1500)
    found = fit_rates(φ, u, y)
    # of n normal-like residuals the s.d. of log κ is about √(2/n)
    assert found.precision.log().mean().item() == pytest.approx(
        torch.tensor(12.0).log().item(), abs=4 * (2 / 1500 / 12) ** 0.5 + 0.02
    )
    assert found.spread.mean().item() == pytest.approx(0.15, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize(("features", "spread"), [(6, 0.15), (48, 0.05)])
def test_shares_are_calibrated(features, spread):
    """Ranks of truths drawn from the prior, among draws of the posterior."""
    g, ranks, inside, error = torch.Generator().manual_seed(0), [], [], []
    for seed in range(40):
        φ, u, y, p, _ = simulated(100 + seed, units=16, features=features, spread=spread)
        found = fit_rates(φ, u, y)
        at = torch.arange(4.0)
        drawn = (found.draws(400, g) * at).sum(-1)
        rank = (drawn < (p * at).sum(-1)).double().mean(0)
        ranks += rank.tolist()
        inside += ((rank > 0.05) & (rank < 0.95)).tolist()
        error.append(torch.stack([(p * at).sum(-1), drawn.mean(0)]))
    truth, mean = torch.cat(error, 1)
    assert kstest(ranks, "uniform").pvalue > 0.01
    # four standard errors of a share of 640 units
    assert sum(inside) / len(inside) == pytest.approx(0.9, abs=4 * (0.09 / 640) ** 0.5)
    assert torch.corrcoef(torch.stack([truth, mean]))[0, 1] > 0.8


@pytest.mark.parametrize(
    ("seed", "most", "shares"),
    [(7, 1000.0, None), (7, 1000.0, torch.ones(1, 4) / 4), (10, 100.0, torch.ones(1, 4) / 4)],
)
def test_one_extreme_unit_does_not_stop_the_others(seed, most, shares):
    # silent but once: its κ grows until single precision has no curvature left in some directions
    φ, u, y, *_ = simulated(seed, stimuli=200, units=5, repeats=1, spread=0.3)
    y[:, 0] = 0.0
    y[3, 0] = most
    found = fit_rates(φ, u, y, shares=shares)
    assert found.climb < 1e-5
    assert all(torch.isfinite(part).all() for part in found[:-1])
    if shares is not None:  # then units have nothing in common
        rest = fit_rates(φ, u, y[:, 1:], shares=shares)
        # to which 1e-6 nats leave a weight: its s.d. of a tenth, times √2e-6
        assert torch.allclose(rest.weights, found.weights[1:], atol=5e-4)


def test_a_unit_without_curvature_is_named():
    φ, u, y, *_ = simulated(6, stimuli=200, units=3)
    problem = population._problem(φ, u, y, None, None)
    state = population._begin(problem, None, None)
    state.kappa[1] = -1.0
    with pytest.raises(ValueError, match=r"units \[1\] leave no curvature to climb by"):
        quasi.curvature(problem, state, quasi.scored(problem, state))


def test_what_is_wrong_is_said_where():
    φ, u, y, *_ = simulated(5, units=2)
    bad = y.clone()
    bad[7, 1] = -1.0
    with pytest.raises(ValueError, match=r"responses: got -1.0 at \[7, 1\]; wanted finite"):
        fit_rates(φ, u, bad)
    bad = φ.clone()
    bad[3, 2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"features: got nan at \[3, 2, 1\]"):
        fit_rates(bad, u, y)
    with pytest.raises(ValueError, match="got 499 stimuli with features, 500 with nuisance"):
        population._check(φ[1:], u, y, None)
    with pytest.raises(ValueError, match=r"nuisance: got torch.float32; wanted torch.float64"):
        fit_rates(φ, u.float(), y)
    silent = y.clone()
    silent[:, 1] = 0.0
    with pytest.raises(ValueError, match=r"units \[1\] never vary; leave them out"):
        fit_rates(φ, u, silent)
    with pytest.raises(ValueError, match=r"got shape \(1, 3\); wanted \(1, 4\) or \(2, 4\)"):
        population._check(φ, u, y, torch.ones(1, 3) / 3)
    with pytest.raises(ValueError, match=r"got 1 at the least and sums of 4 to 4; wanted none"):
        fit_rates(φ, u, y, shares=torch.ones(1, 4))
    for spread in (0.0, -0.1, torch.nan, torch.inf):
        with pytest.raises(ValueError, match=rf"spread: got {spread}; wanted above 0"):
            fit_rates(φ, u, y, spread=spread)
