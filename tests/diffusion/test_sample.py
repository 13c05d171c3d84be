"""Samplers against closed forms, each other, and the orders that they claim."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import neurodiff as nd
from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.logsnr import alpha, sigma
from neurodiff.diffusion.prior import Binary, Gaussian, GaussianMixture
from neurodiff.diffusion.sample import (
    adaptive,
    ancestral,
    ddim,
    dpm_solver,
    heun,
    levels,
    renoised,
    sample,
    step,
    taylor,
)

MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [0.8]]), torch.tensor([[0.04], [0.09]])
)
SAMPLERS = {
    "ddim": ddim,
    "ancestral": ancestral,
    "heun": heun,
    "dpm_solver": dpm_solver,
    "taylor": taylor(2, 3),
    "adaptive": adaptive(1e-3),
}
DETERMINISTIC = {name: s for name, s in SAMPLERS.items() if name != "ancestral"}


def grid(steps, stop=8.0, name="cosine"):
    return levels(nd.schedule(name), steps, stop)


class Counting(Denoiser):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, z, logsnr, cond=None):
        self.calls += 1
        return self.inner(z, logsnr)


@pytest.fixture(scope="module")
def flow():
    """Where the flow of the mixture takes noise, as exactly as matters here."""
    z = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    return z, dpm_solver(MIXTURE, z, grid(12800))


@pytest.mark.parametrize(
    ("sampler", "order"), [(ddim, 1), (heun, 2), (dpm_solver, 2), (taylor(2, 1), 2)]
)
def test_the_error_falls_at_the_order_of_the_sampler(sampler, order, flow):
    z, exact = flow
    errors = [(sampler(MIXTURE, z, grid(n)) - exact).square().mean().sqrt() for n in (1600, 3200)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("name", ["cosine", "flow", "edm-sample"])
def test_more_evaluations_err_less_however_long_the_last_step_is(name):
    z = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    z = 0.8 * z  # the far tails of a bimodal law are no matter of few steps
    exact = heun(MIXTURE, z, grid(3200, None, name))
    errors = {
        n: float((dpm_solver(MIXTURE, z, grid(n, None, name)) - exact).square().mean().sqrt())
        for n in (2, 4, 8, 16, 32)
    }
    assert sorted(errors, key=errors.get, reverse=True) == list(errors)
    plain = (ddim(MIXTURE, z, grid(8, None, name)) - exact).square().mean().sqrt()
    assert errors[8] < plain


@pytest.mark.parametrize("m", [0, 1, 2, 3])
def test_a_forecast_of_order_m_errs_by_order_m_plus_one(m):
    z = torch.randn(200, 1)

    def error(n):
        fine = dpm_solver(MIXTURE, z, grid(n, stop=2.0))
        skipping = taylor(m, 2)(MIXTURE, z, grid(n, stop=2.0), None, None)
        return (skipping - fine).abs().max()

    assert math.log2(error(200) / error(400)) == pytest.approx(m + 1, abs=0.35)


def test_forecasts_save_evaluations():
    for every, calls in ((1, 12), (3, 8), (5, 11)):
        counting = Counting(MIXTURE)
        taylor(2, every)(counting, torch.randn(4, 1), grid(12), None, None)
        assert counting.calls == calls
    z = torch.randn(4, 1)
    assert torch.equal(
        taylor(2, 1)(MIXTURE, z, grid(30), None, None), dpm_solver(MIXTURE, z, grid(30))
    )


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_gaussian_ends_where_the_flow_in_closed_form_does(name):
    v = 0.5
    prior, z = Gaussian(torch.zeros(1), torch.full((1,), v)), torch.randn(50, 1)
    logsnr = grid(4000, stop=6.0)
    first, last = (alpha(end).square() * v + sigma(end).square() for end in logsnr[[0, -1]])
    found = DETERMINISTIC[name](prior, z, logsnr, None, None)
    assert (found - z * (last / first).sqrt()).abs().max() < 2e-3


@pytest.mark.parametrize("path", ["flow", "edm-sample"])
def test_ddim_is_the_euler_method_of_any_path(path):
    schedule = nd.schedule(path)
    logsnr = grid(20, stop=5.0, name=path)
    z = torch.randn(30, 1)
    a, s = schedule._path(logsnr)
    own = z * (a[0] ** 2 + s[0] ** 2).sqrt()
    for i in range(20):
        scale = (a[i] ** 2 + s[i] ** 2).sqrt()
        x = MIXTURE(own / scale, logsnr[i])
        eps = (own - a[i] * x) / s[i]
        own = own + (a[i + 1] - a[i]) * x + (s[i + 1] - s[i]) * eps
    vp = own / (a[-1] ** 2 + s[-1] ** 2).sqrt()
    assert (ddim(MIXTURE, z, logsnr) - vp).abs().max() < 1e-12


@given(st.floats(-10, 8), st.floats(0.01, 3))
def test_an_ancestral_step_is_a_ddim_step_twice_as_far_and_noise_added(now, d):
    now = torch.tensor(now)
    z, xi = torch.randn(20, 1), torch.randn(20, 1)
    x = MIXTURE(z, now)
    far = step(z, x, now, now + 2 * d)
    gain = alpha(now + d) / alpha(now + 2 * d)
    more = (sigma(now + d).square() - (gain * sigma(now + 2 * d)).square()).sqrt()
    back = gain * far + more * xi
    assert (renoised(z, x, xi, now, now + d) - back).abs().max() < 1e-9


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_moments_of_what_was_sampled(name):
    drawn = sample(
        MIXTURE, (20_000, 1), schedule=nd.schedule("cosine"), steps=200, sampler=SAMPLERS[name]
    ).x[:, 0]
    true = MIXTURE.sample(1_000_000)[:, 0]
    for power in (1, 2, 3):
        se = (drawn**power).std() / math.sqrt(len(drawn))
        # the discretisation of the first-order samplers is below this, too
        assert abs((drawn**power).mean() - (true**power).mean()) < 4.5 * se + 5e-3


def test_stopping_at_a_law_stops_each_sample_at_its_own_draw():
    law = nd.laws.Logistic(0.5, 1.0)
    prior = Gaussian(torch.zeros(1), torch.full((1,), 0.5))
    halted = sample(prior, (20_000, 1), schedule=nd.schedule("flow"), steps=100, stop=law)
    cdf = law().cdf
    assert (
        stats.kstest(
            halted.logsnr.numpy(), lambda x: cdf(torch.as_tensor(x)).detach().numpy()
        ).pvalue
        > 1e-3
    )
    # z at the stop is a draw of the noisy z, and what is left to know is the mmse there
    a, s = alpha(halted.logsnr), sigma(halted.logsnr)
    white = halted.z[:, 0] / (0.5 * a.square() + s.square()).sqrt()
    assert stats.kstest(white.numpy(), "norm").pvalue > 1e-3
    expected = a * 0.5 / (0.5 * a.square() + s.square()) * halted.z[:, 0]
    assert (halted.x[:, 0] - expected).abs().max() < 1e-12


def test_draws_beyond_the_schedule_stop_at_its_ends():
    never = nd.laws.Normal(1000.0, 1.0)
    halted = sample(Binary(), (10,), schedule=nd.schedule("cosine"), steps=20, stop=never)
    assert (halted.logsnr == 13.3).all()
    assert (halted.x.abs() > 0.999).all()
    none = sample(
        Binary(), (10,), schedule=nd.schedule("cosine"), steps=20, stop=nd.laws.Normal(-1000.0, 1.0)
    )
    assert (none.logsnr == -13.3).all()


@pytest.mark.parametrize("name", ["ddpm", "edm-sample", "vp-linear"])
def test_a_schedule_that_ends_early_ends_where_it_does(name):
    schedule = nd.schedule(name)
    end = schedule.logsnr(torch.zeros((), dtype=torch.float64)).clamp_max(13.3)
    for stop in (None, nd.laws.Normal(1000.0, 1.0)):
        halted = sample(Binary(), (3,), schedule=schedule, steps=5, stop=stop)
        assert (halted.logsnr - end).abs().max() < 1e-12


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_of_no_length_goes_nowhere(name):
    # one sample stops where it begins, the other goes on: as when draws of a law differ
    logsnr = torch.stack([torch.full((6,), -2.0), torch.linspace(-2.0, 2.0, 6)], 1)
    z = torch.randn(2, 1)
    found = SAMPLERS[name](MIXTURE, z, logsnr, None, None)
    assert torch.isfinite(found).all()
    assert (found[0] - z[0]).abs() < 1e-12
    assert found[1] != z[1]


def test_a_sample_that_stops_where_it_begins_does_so_with_noise_too():
    logsnr = grid(30, torch.tensor([-13.3, 0.0, 13.3]))
    assert (logsnr.diff(dim=0) >= 0).all()
    z = torch.randn(3, 1)
    assert torch.equal(ancestral(MIXTURE, z, logsnr)[0], z[0])


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
def test_adaptive_steps_keep_to_their_tolerance_and_spend_more_for_less(tolerance, flow):
    z, exact = flow
    counting = Counting(MIXTURE)
    found = adaptive(tolerance)(counting, z, grid(1), None, None)
    assert (found - exact).square().mean().sqrt() < tolerance
    assert counting.calls < 8 * tolerance**-0.5


def test_a_seed_gives_the_same_samples():
    def draw(seed):
        g = torch.Generator().manual_seed(seed)
        law = nd.laws.Logistic(0.0, 1.0)
        return sample(
            MIXTURE,
            (5, 1),
            schedule=nd.schedule("cosine"),
            sampler=ancestral,
            stop=law,
            generator=g,
        ).z

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: levels(nd.schedule("cosine"), 0), "at least 1 step, got 0"),
        (lambda: levels(nd.schedule("cosine"), 5, 20.0), "from -13.3 to 13.3"),
        (lambda: levels(nd.schedule("ddpm"), 5, 10.0), "from -10.1"),
        (lambda: levels(nd.schedule("cosine"), 5, math.nan), "stop is nan"),
        (lambda: taylor(-1), "order >= 0"),
        (lambda: adaptive(0.0), "above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
