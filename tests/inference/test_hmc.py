import numpy as np
import pytest
import torch
import toys

from neurodiff.inference.fit import modes_of
from neurodiff.inference.hmc import many_chains, r_hat
from neurodiff.inference.join import join

BOTH = ("weighting.law.loc", "weighting.law.scale")


def run(bound, seed=0, chains=100, wide=1.5, **lengths):
    joint, generator = bound.posterior, toys.generator(seed)
    modes = modes_of(bound, 1, 0)
    noise = torch.randn(1, chains, joint.size, generator=generator)
    start = modes.u[:, None] + wide * noise @ modes.factor.mT
    return many_chains(joint, modes.u, modes.factor, start, generator, **lengths)


def close(own, values, weights, effective):
    """Mean and s.d. within four standard errors of what quadrature gives."""
    mean = (values * weights).sum()
    sd = np.sqrt(((values - mean) ** 2 * weights).sum())
    assert own.mean().item() == pytest.approx(mean, abs=4 * sd / np.sqrt(effective))
    assert own.std().item() == pytest.approx(sd, rel=4 * np.sqrt(1 / effective))


def test_against_quadrature():
    """Forty trials: the mode is a poor guide to where the mass is."""
    data = toys.data(40, seed=3)
    loc, log_scale, weights, _ = toys.grid_both(data)
    chains = run(join(toys.model(BOTH), data))
    assert chains.r_hat.item() < 1.05
    assert 0.6 < chains.accepted.item() < 0.95
    u = chains.u.flatten(1, 2)[0]
    for values, own in ((loc, u[:, 0]), (log_scale, u[:, 1])):
        close(own, values, weights, 500)


def test_a_batch_of_data_sets():
    joint = join(toys.model(), toys.data(80)).posterior
    masks = torch.ones(2, joint.mask.shape[1])
    masks[1, :4] = 0.0
    folds = joint.with_mask(masks)
    generator = toys.generator()
    centre, factor = torch.zeros(2, 1), torch.ones(2, 1, 1)
    start = torch.randn(2, 60, 1, generator=generator)
    chains = many_chains(folds, centre, factor, start, generator, warmup=40)
    assert (chains.r_hat < 1.05).all()
    grid = torch.linspace(-6, 8, 2001)[None, :, None].expand(2, -1, -1)
    log_p = folds.draws_log_prob(grid)
    weights = torch.softmax(log_p, -1).numpy()
    for i in range(2):
        close(chains.u[i].flatten(), grid[i, :, 0].numpy(), weights[i], 400)


def test_r_hat_sees_chains_that_have_not_left_their_start():
    u = torch.randn(1, 100, 20, 3, generator=toys.generator())
    assert r_hat(u, 10).item() < 1.02
    stuck = u.clone()
    stuck[:, :10, :, 1] = 4.0
    assert r_hat(stuck, 10).item() > 1.3


def test_a_start_far_out_does_not_hold_the_others_up():
    bound = join(toys.model(BOTH), toys.data())
    modes = modes_of(bound, 1, 0)
    start = modes.u[:, None] + 0.3 * torch.randn(1, 100, 2, generator=toys.generator())
    start[0, 0] = 60.0
    start[0, 1] = torch.nan
    chains = many_chains(bound.posterior, modes.u, modes.factor, start, toys.generator(), 40)
    assert torch.isfinite(chains.u).all()
    assert chains.r_hat.item() < 1.06


def test_the_same_seed_draws_the_same():
    bound = join(toys.model(), toys.data())
    a, b, c = (run(bound, seed, 20, warmup=8, draws=4).u for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_prime_number_of_chains_is_refused():
    with pytest.raises(ValueError, match="got 13 chains"):
        run(join(toys.model(), toys.data()), chains=13)
