"""Straightness against closed forms and quadrature; levels against the errors they equalise."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad
from sklearn.datasets import load_digits

import neurodiff as nd
from neurodiff.diffusion import spacing
from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.logsnr import alpha, alpha_sigma, exploding, straight
from neurodiff.diffusion.prior import Binary, Empirical, Gaussian, GaussianMixture
from neurodiff.diffusion.sample import ddim, dpm_solver, levels
from neurodiff.diffusion.spacing import equidistributed, straightness, trajectory

MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [0.8]]), torch.tensor([[0.04], [0.09]])
)
PATHS = {
    "cosine": lambda t: (math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)),
    "flow": lambda t: (1 - t, t),
}


def pilot(steps=200, name="cosine", stop=None):
    return levels(nd.schedule(name), steps, stop)


def gaussian_straightness(v, name, first=0.0, last=1.0):
    """∫(s(1) − s(0) − s′)² dt of the standard deviation s(t), by quadrature, between two times."""

    def s(t):
        a, b = PATHS[name](t)
        return math.sqrt(a * a * v + b * b)

    d, whole = 1e-6, last - first
    line = (s(last) - s(first)) / whole
    ends = first + d, last - d
    square = quad(lambda t: (line - (s(t + d) - s(t - d)) / (2 * d)) ** 2, *ends, limit=200)[0]
    return whole * square


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("v", [1e-6, 0.1, 1.0, 4.0])
def test_straightness_of_a_gaussian_is_its_closed_form(v, name):
    z = torch.tensor([[0.5], [-2.0]])
    prior = Gaussian(torch.zeros(1), torch.full((1,), v))
    found = straightness(prior, z, nd.schedule(name), steps=400) / z[:, 0].square()
    last, first = nd.schedule(name).t(torch.tensor([-13.3, 13.3])).tolist()
    assert found[0] == pytest.approx(gaussian_straightness(v, name, first, last), abs=5e-4)
    # the ends, 1e-3 of the time each, are not seen
    assert found[0] == pytest.approx(gaussian_straightness(v, name), abs=2e-2)
    assert found[1] == pytest.approx(float(found[0]), rel=1e-9)


@pytest.mark.parametrize(
    ("v", "flow", "vp"),
    [(1e-6, 0.0, 0.234), (0.1, 0.136, 0.109), (1.0, 0.429, 0.0), (4.0, 0.86, 0.23)],
)
def test_which_path_is_straight_depends_on_the_data(v, flow, vp):
    assert gaussian_straightness(v, "flow") == pytest.approx(flow, abs=5e-3)
    assert gaussian_straightness(v, "cosine") == pytest.approx(vp, abs=5e-3)


def test_straightness_sums_over_dimensions_and_reads_conditions():
    class Two(Denoiser):
        def forward(self, z, logsnr, cond=None):
            each = [Gaussian(torch.zeros(2, 2), torch.full((2, 2), v)) for v in (0.1, 1.0)]
            return torch.stack([prior(z, logsnr) for prior in each])[cond, torch.arange(len(z))]

    z, cond = torch.ones(3, 2, 2), torch.tensor([0, 1, 0])
    found = straightness(Two(), z, nd.schedule("flow"), cond)
    expected = [4 * gaussian_straightness(v, "flow") for v in (0.1, 1.0, 0.1)]
    assert found.tolist() == pytest.approx(expected, abs=2e-2)


def test_the_trajectory_is_the_flow():
    v, z, logsnr = 0.5, torch.randn(5, 1), pilot(400, stop=6.0)
    prior = Gaussian(torch.zeros(1), torch.full((1,), v))
    path, x = trajectory(prior, z, logsnr)
    a, s = alpha_sigma(logsnr)
    std = (a.square() * v + s.square()).sqrt()
    assert (path - z * (std / std[0])[:, None, None]).abs().max() < 2e-3
    assert len(x) == 401
    assert (
        x[[0, 7, 400]] - torch.stack([prior(path[i], logsnr[i]) for i in (0, 7, 400)])
    ).abs().max() == 0


def local_errors(logsnr, z, path):
    """Of one DDIM step from each point of the flow, in z of the path, root mean square."""
    on_flow = [z]
    errors = []
    for now, then in pairwise(logsnr):
        fine = torch.linspace(float(now), float(then), 41)
        exact = dpm_solver(MIXTURE, on_flow[-1], fine)
        single = ddim(MIXTURE, on_flow[-1], fine[[0, -1]])
        scale = path(then)[0] / alpha(then)
        errors.append(float(scale * (single - exact).square().mean().sqrt()))
        on_flow.append(exact)
    return torch.tensor(errors)


@pytest.mark.parametrize("path", [straight, alpha_sigma, exploding])
def test_every_step_errs_alike(path, monkeypatch):
    monkeypatch.setattr(spacing, "SPREAD", 0.0)
    z = torch.randn(500, 1)
    logsnr = equidistributed(MIXTURE, z, pilot(400, stop=6.0), 40, path=path)
    errors, equal_time = local_errors(logsnr, z, path), local_errors(pilot(40, stop=6.0), z, path)
    # leading order in h: long steps, where hardly anything happens, are all that departs
    assert errors[5:-5].std() < 0.1 * errors[5:-5].mean()
    assert errors.max() < 1.5 * errors.median()
    assert equal_time.max() > 2 * equal_time.median()


def test_levels_on_the_straight_path_follow_its_curvature(monkeypatch):
    monkeypatch.setattr(spacing, "SPREAD", 0.0)
    fine, z = pilot(800, "flow", 4.0), torch.randn(500, 1)
    found = equidistributed(MIXTURE, z, fine, 20)
    # the other way: second differences of z in t on the straight path
    a, s = straight(fine)
    t, z_of = s, trajectory(MIXTURE, z, fine)[0] * torch.hypot(a, s)[:, None, None]
    slope = z_of.diff(dim=0) / t.diff()[:, None, None]
    middle = 0.5 * (t[1:] + t[:-1])
    bend = slope.diff(dim=0) / middle.diff()[:, None, None]
    density = bend.square().mean((1, 2)).sqrt().sqrt()
    passed = (density * t[1:-1].diff(append=t[-1:]).abs()).cumsum(0)
    share = passed / passed[-1]
    at = torch.stack([share[(fine[1:-1] <= level).sum().clamp_min(1) - 1] for level in found])
    assert (at[1:-1] - torch.linspace(0, 1, 21)[1:-1]).abs().max() < 0.01


def test_a_tenth_of_the_steps_stays_where_nothing_happens():
    # past 5 nats the ±1 source has been decided for all
    found = equidistributed(Binary(), torch.randn(500), pilot(), 1000)
    beyond = (found > 6.0).sum() / (pilot(1000) > 6.0).sum()
    assert 0.08 < beyond < 0.15


def errors(sampler, prior, z, grids, exact):
    found = {name: sampler(prior, z, grid) - exact for name, grid in grids.items()}
    return {name: float(e.square().mean().sqrt()) for name, e in found.items()}


@pytest.mark.parametrize("steps", [10, 20])
def test_on_a_mixture_levels_from_the_data_gain_over_edm_and_not_over_cosine(steps):
    ends, z = pilot(1600, "flow", 12.0), torch.randn(1000, 1)
    fine = pilot(200, stop=12.0)
    grids = {name: pilot(steps, name, 12.0) for name in ("cosine", "flow", "edm-sample")}
    # all from the same z at the same level: where EDM's begins, nothing of x is left to see
    grids["edm-sample"][0] = fine[0]
    for sampler, order, gains in (
        (dpm_solver, 2, {"cosine": 0.7, "flow": 0.6, "edm-sample": 1.7}),
        (ddim, 1, {"cosine": 0.9, "flow": 0.9, "edm-sample": 1.5}),
    ):
        grids["data"] = equidistributed(MIXTURE, torch.randn(500, 1), fine, steps, order=order)
        found = errors(sampler, MIXTURE, z, grids, dpm_solver(MIXTURE, z, ends))
        for name, gain in gains.items():
            assert found[name] > gain * found["data"], (sampler.__name__, name, found)


def test_on_digits_the_first_order_gains_over_edm_and_not_over_cosine():
    digits = Empirical(torch.tensor(load_digits().data / 8 - 1)[::4])
    z, fine = torch.randn(40, 64), pilot(100, stop=2.0)
    grids = {name: pilot(10, name, 2.0) for name in ("cosine", "flow", "edm-sample")}
    grids["edm-sample"][0] = fine[0]
    grids["data"] = equidistributed(digits, torch.randn(40, 64), fine, 10)
    found = errors(ddim, digits, z, grids, dpm_solver(digits, z, pilot(400, "flow", 2.0)))
    assert found["edm-sample"] > 1.4 * found["data"]
    assert 0.85 < found["cosine"] / found["data"] < 1.15
    assert 0.85 < found["flow"] / found["data"] < 1.15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: equidistributed(Binary(), z, pilot(), 0), "steps >= 1 and order >= 1, got 0"),
        (lambda z: equidistributed(Binary(), z, pilot(), 5, order=0), "got 5 and 0"),
        (lambda z: equidistributed(Binary(), z, pilot().flip(0), 5), "increasing"),
        (lambda z: equidistributed(Binary(), z, pilot(1), 5), "more than 2 increasing"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(3))
