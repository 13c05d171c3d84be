import numpy as np
import pytest
import toys

from neurodiff.inference.fit import modes_of
from neurodiff.inference.join import join
from neurodiff.inference.nuts import NUTS, diagnose, run_chain

BOTH = ("weighting.law.loc", "weighting.law.scale")


def chains(bound, method, count):
    modes = modes_of(bound, 1, 0)
    import torch

    runs = [run_chain(bound.posterior, modes, method, seed) for seed in range(count)]
    return torch.stack([u for u, _ in runs]), runs


def test_against_quadrature():
    data = toys.data(80, seed=2)
    loc, log_scale, weights, _ = toys.grid_both(data)
    u, runs = chains(join(toys.model(BOTH), data), NUTS(draws=200, warmup=60), 2)
    r_hat, ess = diagnose(u)
    assert (r_hat < 1.05).all()
    assert sum(stats["diverging"].sum() for _, stats in runs) < 10
    for values, own, n in zip((loc, log_scale), u.flatten(0, 1).T, ess, strict=True):
        mean = (values * weights).sum()
        sd = np.sqrt(((values - mean) ** 2 * weights).sum())
        assert own.mean().item() == pytest.approx(mean, abs=4 * sd / np.sqrt(n))
        assert own.std().item() == pytest.approx(sd, rel=0.25)


def test_one_chain_says_nothing_of_convergence():
    u, _ = chains(join(toys.model(), toys.data()), NUTS(draws=10, warmup=10), 1)
    r_hat, ess = diagnose(u)
    assert np.isnan(r_hat).all()
    assert np.isfinite(ess).all()
