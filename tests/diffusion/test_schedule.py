"""Schedules: the contract for every row, each row against its own textbook equation."""

import math

import pytest
import torch
from contracts import ScheduleContract, TailsContract

from neurodiff.diffusion import curves, laws
from neurodiff.diffusion.schedule import SCHEDULES, NoiseSchedule, schedule

PI = math.pi
T = torch.linspace(1e-3, 1 - 1e-3, 301)


class TestNamed(ScheduleContract):
    @pytest.fixture(autouse=True, params=SCHEDULES)
    def _name(self, request):
        self.name = request.param

    def make(self):
        return schedule(self.name)


class TestLearned(ScheduleContract):
    def make(self):
        return NoiseSchedule(laws.Mixture([laws.Logistic(-2.0), laws.Normal(3.0, 2.0)]))

    def test_gradients_reach_the_law(self):
        learned = self.make()
        (learned.dlogsnr_dt(T) + learned.logsnr(T)).square().mean().backward()
        assert all(bool((p.grad != 0).any()) for p in learned.parameters())


CURVES = {
    "truncated": lambda: curves.Truncated(laws.HyperbolicSecant(0.0, 2.0), -9.0, 12.0),
    "interpolated": lambda: curves.InterpolatedCosine(1.2, -2.0),
    "vp-linear": lambda: curves.VpLinear(0.1, 20.0),
    "sub-vp": lambda: curves.SubVp(0.1, 20.0),
    "iddpm": lambda: curves.Iddpm(0.008),
    "edm-sample": lambda: curves.EdmSample(7.0, 0.002, 80.0),
    "sigmoid": lambda: curves.SigmoidCurve(-3.0, 3.0, 0.9),
}


class TestCurves(TailsContract):
    @pytest.fixture(autouse=True, params=CURVES)
    def _name(self, request):
        self.name = request.param

    def make(self):
        return CURVES[self.name]()


def vp(alpha2):
    return alpha2.sqrt(), (1 - alpha2).sqrt()


def beta_integral(t):
    return 0.1 * t + 19.9 * t * t / 2


def sigmoid_alpha2(t):
    one, zero = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))
    return (one - torch.sigmoid(-3 + 6 * t)) / (one - zero)


def from_logsnr(logsnr):
    return vp(1 / (1 + torch.exp(-logsnr)))


def truncated(t):
    first, last = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))
    return from_logsnr(-2 * torch.tan(first + t * (last - first)).log())


def interpolated(t):
    shift = t * 2 * math.log(64 / 32) + (1 - t) * 2 * math.log(64 / 256)
    return from_logsnr(-2 * torch.tan(PI * t / 2).log() + shift)


def flow_shifted(t):
    moved = 3 * t / (1 + 2 * t)
    return 1 - moved, moved


def logit_normal(t):
    time = torch.sigmoid(torch.special.ndtri(t))
    return 1 - time, time


def edm_sample(t):
    return 1 + 0 * t, (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7


def iddpm(t):
    def cosine(t):
        return torch.cos((t + 0.008) / 1.008 * PI / 2)

    return vp((cosine(t) / cosine(torch.tensor(0.0))) ** 2)


def laplace(t):
    return from_logsnr(0.5 * torch.sign(0.5 - t) * -torch.log(1 - 2 * (t - 0.5).abs()))


TEXTBOOK = {
    "cosine": lambda t: (torch.cos(PI * t / 2), torch.sin(PI * t / 2)),
    "cosine-shifted": lambda t: from_logsnr(-2 * torch.tan(PI * t / 2).log() + 2 * math.log(0.5)),
    "truncated-cosine": truncated,
    "interpolated-cosine": interpolated,
    "vp-linear": lambda t: vp(torch.exp(-beta_integral(t))),
    "iddpm": iddpm,
    "sub-vp": lambda t: (torch.exp(-beta_integral(t) / 2), 1 - torch.exp(-beta_integral(t))),
    "flow": lambda t: (1 - t, t),
    "flow-shifted": flow_shifted,
    "sd3": logit_normal,
    "edm-train": lambda t: (1 + 0 * t, torch.exp(-1.2 + 1.2 * torch.special.ndtri(t))),
    "edm-sample": edm_sample,
    "ve": lambda t: (1 + 0 * t, 0.01 * (50 / 0.01) ** t),
    "sigmoid": lambda t: vp(sigmoid_alpha2(t)),
    "laplace": laplace,
    "cauchy": lambda t: from_logsnr(torch.tan(PI * (0.5 - t))),
}


def test_every_row_has_a_textbook():
    assert set(TEXTBOOK) | {"ddpm"} == set(SCHEDULES)


@pytest.mark.parametrize("name", TEXTBOOK)
def test_scales_are_the_textbook(name):
    t = T[20:-20]  # the textbook forms cancel at the ends
    for ours, theirs in zip(schedule(name).alpha_sigma(t), TEXTBOOK[name](t), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("cosine", laws.HyperbolicSecant(0.0, 2.0)),
        ("flow", laws.Logistic(0.0, 2.0)),
        ("edm-train", laws.Normal(2.4, 2.4)),
        ("sd3", laws.Normal(0.0, 2.0)),
        ("laplace", laws.Laplace(0.0, 0.5)),
        ("cauchy", laws.Cauchy(0.0, 1.0)),
        ("ve", laws.Uniform(-2 * math.log(50), 2 * math.log(5000))),
    ],
)
def test_named_schedules_are_laws_of_the_family(name, law):
    assert bool((schedule(name).logsnr(T) == law().isf(T)).all())


DENSITIES = {
    "cosine": lambda v: 1 / torch.cosh(v / 2) / (2 * PI),
    "truncated-cosine": lambda v: (
        1 / torch.cosh(v / 2) / 4 / (math.atan(math.exp(7.5)) - math.atan(math.exp(-7.5)))
    ),
    "vp-linear": lambda v: (
        torch.sigmoid(-v) / (0.01 + 2 * 19.9 * torch.log1p(torch.exp(-v))).sqrt()
    ),
    "flow": lambda v: 1 / torch.cosh(v / 4) ** 2 / 8,
    "edm-train": lambda v: torch.exp(-(((v - 2.4) / 2.4) ** 2) / 2) / (2.4 * math.sqrt(2 * PI)),
    "edm-sample": lambda v: torch.exp(-v / 14) / (14 * (80 ** (1 / 7) - 0.002 ** (1 / 7))),
    "ve": lambda v: 0 * v + 1 / (2 * math.log(50 / 0.01)),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_density_is_the_closed_form(name):
    logsnr = schedule(name).logsnr(T)
    torch.testing.assert_close(
        schedule(name).log_density(logsnr).exp(), DENSITIES[name](logsnr), rtol=1e-11, atol=0.0
    )


@pytest.mark.parametrize("name", ["vp-linear", "ve", "truncated-cosine", "edm-sample", "ddpm"])
def test_beyond_the_range_there_is_nothing(name):
    limited = schedule(name)
    low, high = limited.logsnr(torch.tensor([1.0, 0.0]))
    beyond = torch.stack([low - 0.1, high + 0.1, -torch.tensor(torch.inf)])
    assert bool((limited.log_density(beyond).exp() == 0).all())
    assert limited.t(beyond).tolist() == pytest.approx([1.0, 0.0, 1.0], rel=0, abs=1e-12)


def test_ddpm_has_its_thousand_levels():
    abar, levels = 1.0, []
    for k in range(1000):
        abar *= 1 - (1e-4 + (0.02 - 1e-4) * k / 999)
        levels.append(math.log(abar / (1 - abar)))
    levels = torch.tensor(levels)
    ours = schedule("ddpm").logsnr(torch.arange(1000) / 999)
    torch.testing.assert_close(ours, levels, rtol=0.0, atol=1e-9)
    assert round(levels[0].item(), 2) == 9.21
    assert round(levels[-1].item(), 2) == -10.12
    apart = (schedule("vp-linear").logsnr(torch.arange(1, 1001) / 1000) - levels).abs()
    assert apart.argmax() == 0
    assert 0.094 < apart.max() <= 0.0955


def test_named_schedules_do_not_learn():
    assert not any(p.requires_grad for p in schedule("cosine").parameters())


def test_shift_multiplies_the_snr():
    shifted, plain = schedule("flow-shifted", ratio=2.5), schedule("flow")
    torch.testing.assert_close(shifted.logsnr(T), plain.logsnr(T) - 2 * math.log(2.5))


def test_wrong_names_and_constants():
    with pytest.raises(ValueError, match=r"unknown schedule 'cosin'; did you mean 'cosine'\?.*ve"):
        schedule("cosin")
    with pytest.raises(TypeError, match=r"'cosine' has no argument 'shift'; it takes none"):
        schedule("cosine", shift=1.0)
    with pytest.raises(ValueError, match="would rise with t"):
        schedule("interpolated-cosine", shift_low=7.0, shift_high=0.0)
    with pytest.raises(ValueError, match="from low to high"):
        schedule("truncated-cosine", logsnr_min=3.0, logsnr_max=-3.0)
    with pytest.raises(ValueError, match="start < end"):
        schedule("sigmoid", start=3.0, end=-3.0)
