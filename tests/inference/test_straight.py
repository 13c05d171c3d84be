"""Coordinates that straighten a ridge: volume, round trips, and draws against quadrature."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
import xarray as xr
from torch.distributions import LogNormal, Normal

from neurodiff.diffusion import laws
from neurodiff.inference.calibration import at_truths, calibrate, design_of, recovery
from neurodiff.inference.importance import importance_draws
from neurodiff.inference.laplace import find_modes, nearest_root
from neurodiff.inference.shared import Shared
from neurodiff.inference.stages import Population
from neurodiff.inference.straight import Straight, straightened
from neurodiff.perception.bounds import Constant
from neurodiff.perception.deadline import DeadlineMixture
from neurodiff.perception.drifts import Power
from neurodiff.perception.strength_stop import StrengthStop
from neurodiff.perception.timed import SnrStop, TimeStop


def clock(**more):
    return TimeStop(Power(8.0), laws.Normal(-0.7, 0.3), 1.6, 40, start=0.0, **more).double()


def design(repeats=30):
    strength = np.repeat([-0.3, -0.1, 0.0, 0.1, 0.3], repeats)
    columns = {"strength": strength, "choice_known": np.ones_like(strength)}
    columns |= {"signed_rt": np.ones_like(strength)}
    return xr.Dataset({name: ("trial", values) for name, values in columns.items()})


def beside():
    law = laws.Normal(-0.5, 0.3)
    return DeadlineMixture(Power(8.0), Constant(), law, 1.6, 40, start=0.0).double()


def apart():
    law, sizes = laws.Normal(0.0, 0.3), [0.0, 0.1, 0.3]
    return StrengthStop(Power(8.0), law, sizes, 1.6, 40, start=0.0).double()


@pytest.mark.parametrize("model", [clock, beside, apart])
def test_the_way_there_and_back_keeps_points_and_volume(model):
    joint = design_of(model(), design())
    own = Straight(joint.parameters, joint.model)
    torch.manual_seed(0)
    u = 3 * torch.randn(200, joint.size, dtype=torch.float64)
    # of a place e^15 times shorter than the delay a sum in double precision holds 3e-10
    torch.testing.assert_close(own.bent(own.straight(u)), u, atol=1e-9, rtol=0)
    matrix = torch.func.vmap(torch.func.jacrev(own.straight))(u)
    _, log_det = torch.linalg.slogdet(matrix)
    torch.testing.assert_close(log_det, own.stretch(u), atol=1e-11, rtol=0)
    v = own.straight(u)
    torch.testing.assert_close(
        own.draws_log_prior(v[None]) + own.stretch(u), joint.parameters.draws_log_prior(u[None])
    )
    for name, value in joint.parameters.constrain(u).items():
        torch.testing.assert_close(own.constrain(v)[name], value)


def test_sums_are_those_of_the_times():
    model = clock()
    joint = design_of(model, design())
    own = Straight(joint.parameters, joint.model)
    v = own.straight(joint.parameters.start())
    at = dict(zip([site.name for site in own.sites], v.tolist(), strict=True))
    delay, above = 0.3, 0.05 - 0.7 * 0.04  # the jitter less its least, 0.7 steps
    assert at["law.loc"] == pytest.approx(math.log(delay + math.exp(-0.7)))
    assert at["law.scale"] == pytest.approx(math.log(math.hypot(above, 0.3 * math.exp(-0.7))))


def test_curvature_is_carried_over():
    """L of the new coordinates is the inverse root of the Hessian there."""
    joint = design_of(clock(), design())
    torch.manual_seed(1)
    data = at_truths(joint, joint.parameters.start()[None])
    modes = find_modes(data, joint.parameters.start()[None])
    moved, there = straightened(data, modes)
    torch.testing.assert_close(moved.log_prob(there.u), modes.log_prob)
    covariance = torch.linalg.inv(-moved.hessian(there.u))
    wanted = nearest_root(torch.linalg.cholesky(covariance))
    torch.testing.assert_close(there.factor, wanted, atol=1e-4, rtol=1e-3)


def test_what_a_ridge_is_about_has_to_be_free():
    held = clock()
    held.delay.requires_grad_(False)
    for model in (held, SnrStop(Power(8.0), laws.Normal(-0.7, 0.3), 1.6, 40).double()):
        joint = design_of(model, design())
        modes = find_modes(joint.with_mask(0 * joint.mask), joint.parameters.start()[None])
        assert straightened(joint, modes)[0] is joint


def narrow():
    """150 times of one stimulus and a narrow law: delay and law, jitter and scale trade off."""
    model = clock(delay=0.3, jitter=0.05, lapse=0.02)
    model.law.loc.data.fill_(-1.0)
    model.law.scale.data.fill_(0.15)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in model.ridges)
    places = {"law.loc": Normal(-1.0, 0.3), "law.scale": LogNormal(math.log(0.2), 0.4)}
    one = {"strength": np.full(150, 0.2), "choice_known": np.ones(150), "signed_rt": np.ones(150)}
    joint = design_of(model, xr.Dataset({name: ("trial", x) for name, x in one.items()}), places)
    torch.manual_seed(0)
    return at_truths(joint, joint.parameters.start()[None])


def quadrature(data, modes):
    """Mean and s.d. of each parameter, from a grid over the straight coordinates."""
    moved, there = straightened(data, modes)
    root = torch.linalg.cholesky(there.factor @ there.factor.mT)[0]
    ends = [(-7.0, 6.0, 21), (-6.0, 5.0, 17), (-5.0, 5.0, 15), (-5.0, 5.0, 15)]
    z = torch.cartesian_prod(*[torch.linspace(*e, dtype=torch.float64) for e in ends])
    v = there.u + z @ root.mT
    prior, by_unit = moved.draws_terms(v[None])
    weight = torch.softmax((prior + by_unit.sum(-1))[0], 0)
    outer = (z == z.amin(0)) | (z == z.amax(0))
    assert weight[outer.any(-1)].sum() < 1e-4
    u = moved.parameters.bent(v)
    mean = weight @ u
    return mean, (weight @ (u - mean).square()).sqrt()


def test_draws_follow_a_ridge_to_its_ends():
    """Drawn about the mode in u they are too narrow by a tenth or more, whatever k̂ says."""
    data = narrow()
    modes = find_modes(data, data.parameters.start()[None])
    mean, sd = quadrature(data, modes)
    found = importance_draws(data, modes, 2000, toys.generator())
    assert found.k_hat.item() < 0.5
    assert found.ess.item() > 1000
    weight, u = found.log_w[0].exp(), found.u[0]
    got = weight @ u
    # of 1,700 draws a mean errs by 0.024 s.d., an s.d. by 0.017 of itself
    assert ((got - mean).abs() / sd).max() < 4 * 0.024
    assert ((weight @ (u - got).square()).sqrt() / sd - 1).abs().max() < 4 * 0.017


def test_folds_and_populations_go_the_same_way():
    """The evidence of a problem as folds weigh it, and under the mixture of a hierarchy."""
    data = narrow()
    modes = find_modes(data, data.parameters.start()[None])
    alone = importance_draws(data, modes, 2000, toys.generator()).log_evidence.item()
    shared = Shared(data, modes, toys.generator())
    shared.about(data.mask, 2000)
    # of 1,700 effective draws the log of a mean errs by 0.02
    assert shared.weigh(data.mask)[2].item() == pytest.approx(alone, abs=0.1)
    population = Population(data.parameters.sites, modes.u, 0.5 + 0 * modes.u)
    same = replace(data, parameters=population)
    moved, there = straightened(same, modes)
    v = there.u + torch.randn(1, 50, 4, generator=toys.generator()) @ there.factor.mT
    u = moved.parameters.bent(v)
    torch.testing.assert_close(moved.parameters.draws_log_prior(v), population.draws_log_prior(u))


def test_the_curvature_of_a_mode_is_that_of_the_mode():
    """Not of where its last steps began, a hundredth of a nat away: the s.d. of delay was 0.68."""
    data = narrow()
    modes = find_modes(data, data.parameters.start()[None])
    exact = torch.linalg.inv(-data.hessian(modes.u))
    torch.testing.assert_close(modes.factor @ modes.factor.mT, exact)


@pytest.mark.slow
def test_a_time_stop_is_calibrated():
    """Of 100 sets; before, intervals of 90 % held 76 % of the delays."""
    priors = {"law.loc": Normal(math.log(0.5), 0.4), "drift.gain": LogNormal(math.log(8.0), 0.4)}
    found = calibrate(clock(), design(), sets=100, priors=priors, seed=0)
    assert found.family_p > 0.01
    assert (found.k_hat > 0.7).mean() < 0.02
    # binomial s.e. of 0.03
    assert all(abs(one["coverage_90"] - 0.9) < 0.12 for one in recovery(found).values())
