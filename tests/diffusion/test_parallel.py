"""Parallel samplers against one step after the other; the scan and the filter against loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neurodiff as nd
from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.guidance import ClassifierFree
from neurodiff.diffusion.logsnr import alpha
from neurodiff.diffusion.newton import damped, newton, quasi_newton
from neurodiff.diffusion.parallel import picard, scan
from neurodiff.diffusion.prior import Binary, Empirical, Gaussian, GaussianMixture
from neurodiff.diffusion.sample import ancestral, ddim, heun, levels, sample, step

MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [0.8]]), torch.tensor([[0.04], [0.09]])
)
# not diagonal: what the diagonal of a Jacobian leaves out matters
PLANE = GaussianMixture(
    torch.ones(3),
    torch.tensor([[-1.0, 0.5], [0.8, 1.0], [0.2, -1.0]]),
    torch.tensor([[0.05, 0.03], [0.03, 0.05]]).expand(3, 2, 2),
)


def hutchinson(*args, **options):
    return quasi_newton(*args, probes=2, **options)


def trusting(*args, **options):
    return newton(*args, damping=0.01, **options)


METHODS = {
    "picard": picard,
    "newton": newton,
    "quasi": quasi_newton,
    "hutchinson": hutchinson,
    "trusting": trusting,
}


def grid(steps, stop=4.0):
    return levels(nd.schedule("cosine"), steps, stop)


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampler", [ddim, ancestral])
@pytest.mark.parametrize("method", METHODS)
def test_ends_where_one_step_after_the_other_does(method, sampler):
    z = torch.randn(20, 2)
    one_by_one = sampler(PLANE, z, grid(60), None, seeded())
    found = METHODS[method](PLANE, z, grid(60), None, seeded(), sampler=sampler, tolerance=1e-7)
    # what a last iteration moved, summed over the steps that it moved, is the most that is left
    assert (found.z - one_by_one).abs().max() < 60e-7
    assert found.iterations <= 60


@pytest.mark.parametrize(("method", "most"), [(picard, 16), (newton, 7)])
def test_a_hundred_steps_take_few_iterations(method, most):
    z = torch.randn(50, 1)
    found = method(MIXTURE, z, grid(100), tolerance=1e-6)
    assert found.iterations <= most
    assert (found.z - ddim(MIXTURE, z, grid(100))).abs().max() < 1e-5


def test_newton_solves_a_gaussian_in_one_iteration_and_knows_it_in_two():
    prior = Gaussian(torch.tensor([0.5, -0.5]), torch.tensor([[0.5, 0.3], [0.3, 1.0]]))
    assert newton(prior, torch.randn(10, 2), grid(50)).iterations == 2
    white = Gaussian(torch.zeros(2), torch.ones(2))
    assert picard(white, torch.randn(10, 2), grid(50)).iterations == 2


def test_the_diagonal_is_the_jacobian_where_dimensions_are_independent():
    z = torch.randn(10, 3)
    runs = [f(Binary((3,)), z, grid(50), None, seeded()) for f in (newton, quasi_newton)]
    assert runs[0].iterations == runs[1].iterations == hutchinson(Binary((3,)), z, grid(50))[1]
    assert (runs[0].z - runs[1].z).abs().max() < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_after_n_iterations_it_is_exact_whatever_the_tolerance(method):
    z = torch.randn(6, 2)
    found = METHODS[method](PLANE, z, grid(12, 13.3), tolerance=1e-300)
    assert found.iterations <= 12
    assert (found.z - ddim(PLANE, z, grid(12, 13.3))).abs().max() < 1e-12


@pytest.mark.parametrize("window", [1, 7, 40, 1000])
@pytest.mark.parametrize("method", [picard, newton])
def test_a_window_changes_the_work_and_not_the_end(method, window):
    z = torch.randn(20, 2)
    whole = method(PLANE, z, grid(40), None, seeded(), sampler=ancestral)
    found = method(PLANE, z, grid(40), None, seeded(), sampler=ancestral, window=window)
    assert (found.z - whole.z).abs().max() < 40e-6
    assert found.iterations >= whole.iterations
    if window == 1:
        assert (found.iterations, found.evaluations) == (40, 40)
    else:
        assert 40 < found.evaluations <= whole.evaluations


def test_a_step_that_stands_still_behind_one_that_moves_has_not_settled():
    logsnr, z = grid(20), torch.ones(1, 1)
    gain = step(torch.zeros(20), torch.ones(20), logsnr[:-1], logsnr[1:])

    class Kicked(Denoiser):
        """White data, which do not move; but up at step 5, and down at 10 if still at 1 there."""

        def forward(self, z, logsnr_, cond=None):
            at = torch.searchsorted(logsnr, logsnr_.expand(len(z)) - 1e-9)
            kick = torch.where(at == 5, 1.0, 0.0) - torch.where((at == 10) & (z[:, 0] < 1.5), 1, 0)
            return alpha(logsnr_).reshape(-1, 1) * z + (kick / gain[at.clamp_max(19)])[:, None]

    # the first iteration goes up and comes back: no step after the 10th moves by more than a bit
    end = ddim(Kicked(), z, logsnr)
    assert end > 1.5
    assert (picard(Kicked(), z, logsnr, tolerance=0.3).z - end).abs() < 0.3


@pytest.mark.parametrize("method", METHODS)
def test_every_sample_may_have_levels_of_its_own(method):
    z, stops = torch.randn(3, 2), torch.tensor([-13.3, 0.0, 6.0])
    for sampler in (ddim, ancestral):
        own = sampler(PLANE, z, grid(30, stops), None, seeded())
        found = METHODS[method](PLANE, z, grid(30, stops), None, seeded(), sampler=sampler)
        assert (found.z - own).abs().max() < 30e-6
        # the first stops where it begins
        assert (found.z[0] - z[0]).abs().max() < 1e-12


def test_the_same_seed_gives_the_noise_of_the_sequential_sampler():
    z = torch.randn(4, 2)
    ends = [ancestral(PLANE, z, grid(20), None, seeded(seed)) for seed in (1, 1, 2)]
    found = picard(PLANE, z, grid(20), None, seeded(), sampler=ancestral, tolerance=1e-12)
    assert (found.z - ends[0]).abs().max() < 1e-10
    assert (ends[0] - ends[2]).abs().max() > 1e-2


class OneOfTwo(Denoiser):
    """An empirical denoiser of images that reads a condition: which of two sets x is from."""

    def __init__(self):
        super().__init__()
        self.sets = torch.nn.ModuleList([Empirical(torch.randn(5, 2, 3)) for _ in range(3)])

    def forward(self, z, logsnr, cond=None):
        if cond is None:
            return self.sets[2](z, logsnr)
        each = torch.stack([prior(z, logsnr) for prior in self.sets[:2]])
        return each[cond, torch.arange(len(z))]


@pytest.mark.parametrize("method", METHODS)
def test_conditions_and_events_of_any_shape(method):
    guided = ClassifierFree(OneOfTwo(), 1.5)
    z, cond = torch.randn(4, 2, 3), torch.tensor([0, 1, 1, 0])
    found = METHODS[method](guided, z, grid(25), cond)
    assert (found.z - ddim(guided, z, grid(25), cond)).abs().max() < 25e-6


def test_a_denoiser_that_autograd_cannot_follow_still_converges():
    class Cut(Denoiser):
        def forward(self, z, logsnr, cond=None):
            return PLANE(z.detach(), logsnr)

    z = torch.randn(5, 2)
    with torch.no_grad():
        found = newton(Cut(), z, grid(30))
    assert (found.z - ddim(PLANE, z, grid(30))).abs().max() < 30e-6


def test_it_samples_where_a_sampler_is_asked_for():
    law = nd.laws.Logistic(0.5, 1.0)

    def draw(sampler):
        return sample(
            PLANE,
            (9, 2),
            schedule=nd.schedule("flow"),
            stop=law,
            sampler=sampler,
            generator=seeded(),
        )

    one_by_one, found = draw(ddim), draw(lambda *args: newton(*args).z)
    assert torch.equal(one_by_one.logsnr, found.logsnr)
    assert (one_by_one.x - found.x).abs().max() < 1e-4


@given(st.integers(1, 40), st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_scan_is_the_recursion(steps, full):
    a = torch.randn(steps, 2, 3, 3) / math.sqrt(3) if full else torch.randn(steps, 2, 3)
    b, y = torch.randn(steps, 2, 3), torch.randn(2, 3)
    found = scan(a, b, y)
    for i in range(steps):
        y = (torch.einsum("bij,bj->bi", a[i], y) if full else a[i] * y) + b[i]
        assert (found[i] - y).abs().max() < 1e-9 * (1 + y.abs().max())


@pytest.mark.parametrize("damping", [1e-3, 1.0, 1e3])
def test_damping_is_the_gain_of_a_kalman_filter(damping):
    # scalar steps with noise of variance 1, observed with variance 1/damping: the textbook filter
    j = 1.5 * torch.randn(30, 4)
    found, variance = damped(j, damping), torch.zeros(4)
    for i in range(30):
        gain = variance / (variance + 1 / damping)
        assert (found[i] - j[i] * (1 - gain)).abs().max() < 1e-9
        variance = j[i].square() * (1 - gain) * variance + 1.0
    # a whole Jacobian is damped as a number of its norm is
    turn = torch.linalg.qr(torch.randn(30, 4, 3, 3)).Q
    both = damped(turn * j[..., None, None], damping)
    assert (both - turn * found[..., None, None]).abs().max() < 1e-9


def test_trust_pays_where_a_denoiser_is_rough_and_costs_where_it_is_not():
    class Rough(Denoiser):
        def forward(self, z, logsnr, cond=None):
            return torch.sin(12 * z)

    def iterations(denoiser, damping):
        return newton(denoiser, z, grid(100, 13.3), damping=damping).iterations

    z = torch.randn(60, 1)
    assert iterations(Rough(), 3e-3) < 0.95 * iterations(Rough(), 0.0)
    assert iterations(MIXTURE, 1e-1) > 2 * iterations(MIXTURE, 0.0)


def test_without_trust_there_is_no_jacobian():
    z = torch.randn(5, 2)
    assert newton(PLANE, z, grid(15), damping=1e12, tolerance=1e-300).iterations == 15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *a: picard(*a, tolerance=0.0), "tolerance above 0, got 0.0"),
        (lambda *a: picard(*a, tolerance=math.nan), "tolerance above 0, got nan"),
        (lambda *a: newton(*a, window=0), "window of at least 1 step, got 0"),
        (lambda *a: newton(*a, damping=-1.0), "damping of at least 0, got -1.0"),
        (lambda *a: quasi_newton(*a, probes=0), "at least 1 probe, got 0"),
        (lambda *a: picard(*a, sampler=heun), "sampler is heun; wanted ddim or ancestral"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(MIXTURE, torch.randn(3, 1), grid(5))
