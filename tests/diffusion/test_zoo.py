"""The zoo: its constants derived anew from schedules and error ratios; peaks; where it rises."""

import math

import pytest
import torch
from contracts import WeightingContract
from scipy import optimize

from neurodiff.diffusion.schedule import schedule
from neurodiff.diffusion.weighting import names, stopping_density, weighting

PEAK = -3.3077775163808806
KINKS = {
    "edm-monotonic": (PEAK,),
    "min-snr": (math.log(5),),
    "truncated-snr": (0.0,),
    "step": (0.0,),
}


class TestZoo(WeightingContract):
    @pytest.fixture(autouse=True, params=names())
    def _name(self, request):
        self.name, self.kinks = request.param, KINKS.get(request.param, ())

    def make(self):
        return weighting(self.name)


# --- constants: a loss c E_t ω|err|² has w = 2c p(λ) ω (err/eps-error)², whatever the recipe says


def eps(alpha, sigma):
    return torch.zeros_like(alpha), torch.ones_like(alpha)


def x(alpha, sigma):
    return torch.ones_like(alpha), torch.zeros_like(alpha)


def v(alpha, sigma):
    return -sigma, alpha


def flow(alpha, sigma):
    return -torch.ones_like(alpha), torch.ones_like(alpha)


def score(alpha, sigma):
    return torch.zeros_like(alpha), -1 / sigma


def edm_network(alpha, sigma):
    norm = 0.5 * (0.25 * alpha**2 + sigma**2).sqrt()
    return sigma / norm, -0.25 * alpha / norm


def plain(t, snr):
    return 1.0


RECIPES = {
    "ddpm": ("cosine", {}, eps, plain),
    "ddpm-shifted": ("cosine-shifted", {}, eps, plain),
    "ddpm-linear": ("vp-linear", {}, eps, plain),
    "v-cosine": ("cosine", {}, v, plain),
    "v-cosine-shifted": ("cosine-shifted", {}, v, plain),
    "x-cosine": ("cosine", {}, x, plain),
    "flow-matching": ("flow", {}, flow, plain),
    "flow-eps": ("flow", {}, eps, plain),
    "flow-x": ("flow", {}, x, plain),
    "edm": ("edm-train", {}, edm_network, plain),
    "sd3": ("sd3", {}, flow, plain),
    "p2": ("cosine", {}, eps, lambda t, snr: 1 / (1 + snr)),
    "min-snr": ("cosine", {}, x, lambda t, snr: snr.clamp(max=5.0)),
    "soft-min-snr": ("cosine", {}, x, lambda t, snr: 5 * snr / (snr + 5)),
    "truncated-snr": ("cosine", {}, x, lambda t, snr: snr.clamp(min=1.0)),
    "debiased": ("cosine", {}, eps, lambda t, snr: snr**-0.5),
    "clark-jaini": ("cosine", {}, x, lambda t, snr: torch.exp(-7 * t)),
    "smiling": ("cosine", {}, score, plain),
}
BY_DEFINITION = {
    "elbo": lambda snr: torch.ones_like(snr),
    "sigmoid": lambda snr: 1 / (1 + snr * math.exp(-2)),
    "deadline": lambda snr: torch.exp(-snr),
    "step": lambda snr: (snr < 1).double(),
    "indi": lambda snr: snr**-1.5,
}


def test_every_name_has_a_reference():
    assert {*RECIPES, *BY_DEFINITION, "edm-monotonic"} == set(names())


@pytest.mark.parametrize("name", RECIPES)
def test_constants_follow_from_the_recipe(name):
    path, constants, target, extra = RECIPES[name]
    trained = schedule(path, **constants)
    t = torch.linspace(0.01, 0.99, 99)
    logsnr = trained.logsnr(t)
    alpha, sigma = trained.alpha_sigma(t)
    of_x, of_eps = target(alpha, sigma)
    ratio = of_eps - of_x * sigma / alpha  # z is known, so an error of eps moves x by −sigma/alpha
    density = -1 / torch.func.vmap(torch.func.grad(trained.logsnr))(t)
    expected = 2 * density * extra(t, (alpha / sigma) ** 2) * ratio**2
    torch.testing.assert_close(weighting(name)(logsnr), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", BY_DEFINITION)
def test_definitions(name):
    logsnr = torch.linspace(-8.01, 8.0, 51)
    torch.testing.assert_close(weighting(name)(logsnr), BY_DEFINITION[name](logsnr.exp()))


def test_indi_is_x_mse_with_uniform_sigma():
    t = torch.linspace(0.01, 1.0, 50)  # alpha = 1, sigma = t: λ = −2 log t, p = t/2
    torch.testing.assert_close(weighting("indi")(-2 * t.log()), 2 * (t / 2) * t**2)


def test_edm_monotonic_is_edm_held_at_its_peak():
    logsnr = torch.linspace(-12.0, 12.0, 2401)
    held, plain_ = weighting("edm-monotonic")(logsnr), weighting("edm")(logsnr)
    above = logsnr >= PEAK
    assert bool((held[above] == plain_[above]).all())
    torch.testing.assert_close(
        held[~above], plain_.max().expand(int((~above).sum())), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("name", "constants", "peak"),
    [
        ("ddpm", {}, 0.0),
        ("ddpm-linear", {}, -0.92),
        ("edm", {}, -3.31),
        ("p2", {}, -math.log(3)),
        ("p2", {"gamma": 0.5}, -math.log(2)),
        ("sd3", {}, -3.38),
    ],
)
def test_peaks(name, constants, peak):
    w = weighting(name, **constants)
    best = optimize.minimize_scalar(
        lambda value: -w.log(torch.tensor(value)).item(), bounds=(-8, 4), method="bounded"
    )
    assert best.x == pytest.approx(peak, abs=0.006)


@pytest.mark.parametrize(("rate", "low", "high"), [(7.0, -2.58, 0.38), (6.0, -2.0, -0.2)])
def test_clark_jaini_rises_between(rate, low, high):
    w = weighting("clark-jaini", rate=rate)
    logsnr = torch.linspace(-6.0, 6.0, 2401)
    rising = logsnr[stopping_density(w, logsnr) < 0]
    assert rising.min().item() == pytest.approx(low, abs=0.05)
    assert rising.max().item() == pytest.approx(high, abs=0.05)


@pytest.mark.parametrize(("width", "ratio"), [(128, 4.0), (256, 16.0), (512, 64.0)])
def test_shifted_v_mse_is_not_unchanged(width, ratio):
    shift = 2 * math.log(64 / width)
    logsnr = torch.tensor([-40.0, 40.0])
    low, high = weighting("v-cosine-shifted", shift=shift)(logsnr) / weighting("v-cosine")(logsnr)
    assert (low / high).item() == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("shift", [-4.0, 2.15, 2.25, 4.0])
def test_shifted_v_mse_is_monotone_up_to_a_shift(shift):
    w = weighting("v-cosine-shifted", shift=shift)
    rises = bool((w(torch.linspace(-10.0, 10.0, 20001)).diff() > 0).any())
    assert rises == (not w.monotone) == (shift > 2.2)


def test_the_tails_of_named_weightings_do_not_underflow_in_logs():
    far = torch.tensor([1e4])
    for name in names():
        if name != "step":
            assert bool(weighting(name).log(far).isfinite().all()), name
