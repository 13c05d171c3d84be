import numpy as np
import pytest
import torch
import toys

from neurodiff.inference.fit import modes_of
from neurodiff.inference.join import join
from neurodiff.inference.svi import SVI, _order, run_svi

BOTH = ("weighting.law.loc", "weighting.law.scale")


def test_against_quadrature():
    data = toys.data(800)
    loc, log_scale, weights, evidence = toys.grid_both(data)
    bound = join(toys.model(BOTH), data)
    u, stats = run_svi(bound.posterior, modes_of(bound, 1, 0), SVI(draws=4000, steps=100), 0)
    assert stats["converged"]
    assert stats["k_hat"] < 0.5
    # the ELBO is below the evidence by the divergence of the best normal
    assert evidence - 0.3 < stats["elbo"] < evidence + 0.05
    for values, own in ((loc, u[:, 0]), (log_scale, u[:, 1])):
        mean = (values * weights).sum()
        sd = np.sqrt(((values - mean) ** 2 * weights).sum())
        assert own.mean().item() == pytest.approx(mean, abs=0.15 * sd)
        assert own.std().item() == pytest.approx(sd, rel=0.15)


def test_hierarchical_draws_are_put_in_their_places():
    """A guide that has not moved is the Laplace fit: every component of u keeps its moments."""
    bound = join(toys.model(BOTH), toys.data(subjects=3), by="subject")
    modes = modes_of(bound, 1, 0)
    modes.u[:] = torch.arange(float(bound.posterior.size))
    modes.factor[:] = torch.diag(0.01 * (1 + torch.arange(float(bound.posterior.size))))
    u, _ = run_svi(bound.posterior, modes, SVI(draws=2000, steps=4, particles=1, rate=1e-12), 0)
    wanted = torch.arange(float(bound.posterior.size))
    assert torch.allclose(u.mean(0), wanted, atol=0.02)
    assert torch.allclose(u.std(0), 0.01 * (1 + wanted), rtol=0.1)
    order = _order(bound.posterior)
    assert torch.equal(order.sort().values, torch.arange(bound.posterior.size))


def test_a_fit_cut_short_does_not_claim_to_have_converged():
    bound = join(toys.model(BOTH), toys.data(320))
    modes = modes_of(bound, 1, 0)
    modes.u[:] += 4.0
    _, stats = run_svi(bound.posterior, modes, SVI(draws=500, steps=40), 0)
    assert not stats["converged"]


def test_the_same_seed_draws_the_same():
    bound = join(toys.model(BOTH), toys.data())
    modes = modes_of(bound, 1, 0)
    method = SVI(draws=20, steps=8)
    a, b, c = (run_svi(bound.posterior, modes, method, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
