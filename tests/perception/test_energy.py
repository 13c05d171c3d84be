"""Energy of gratings in closed form, and of what a linear denoiser makes of an image."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurodiff.diffusion.prior import Gaussian
from neurodiff.perception import energy
from neurodiff.perception.energy import (
    band,
    band_energy,
    blurred_energy,
    denoised_energy,
    local_energy,
    whitening,
)

SIDE, CELLS = 64, 4
MIDDLE = [5, 6, 9, 10]  # cells that the mirrored edge does not reach


def grating(frequency, angle, phase=0.3):
    y, x = torch.meshgrid(*2 * [torch.arange(SIDE, dtype=torch.float64)], indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    return torch.cos(2 * math.pi * frequency * along + phase)


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 4, 2.0])
@pytest.mark.parametrize("frequency", [0.125, 0.25])
def test_a_grating_has_the_energy_of_its_gain(frequency, angle):
    # a cosine of amplitude 1 is half of each of two opposite waves, of which one passes, doubled
    for radial in (whitening, band(0.2)):
        found = local_energy(grating(frequency, angle), radial, 4, CELLS).reshape(16, 4)[MIDDLE]
        turn = torch.arange(4) * math.pi / 4
        wanted = radial(torch.tensor(frequency)).square() * torch.cos(angle - turn).abs() ** 6
        # the angle of another wave, mirrored at the edge, reaches in by less than a hundredth
        assert torch.allclose(found.mean(0), wanted.to(found), atol=0.02 * float(wanted.max()))


def test_orientations_sum_to_the_same_for_all_gratings():
    sums = [
        local_energy(grating(0.2, a)).reshape(16, 4)[MIDDLE].sum(1).mean().item()
        for a in (0.0, 0.3, 0.7, 1.9)
    ]
    # Σ cos⁶ over four orientations is 5/4
    assert sums == pytest.approx([1.25 * 0.2**2] * 4, rel=0.02)


@pytest.mark.parametrize("angle", [0.0, math.pi / 2])
def test_half_a_cycle_has_both_signs(angle):
    # a wave and its opposite are one bin: 1, and cos⁶ of 45 degrees at either side, of amplitude 1
    found = local_energy(grating(0.5, angle, 0.0), torch.ones_like).reshape(16, 4)
    near = torch.tensor([1.0, 0.125, 0.0, 0.125], dtype=torch.float64)
    assert torch.allclose(found, near.roll(round(angle / (math.pi / 4))).expand(16, 4))


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(3, 40),
    width=st.integers(3, 40),
    cells=st.integers(1, 3),
    seed=st.integers(0, 10_000),
    radial=st.sampled_from([whitening, band(0.25), band(0.5)]),
)
def test_what_is_mirrored_has_mirrored_energy(height, width, cells, seed, radial):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(height, width, generator=g, dtype=torch.float64)
    found = local_energy(x, radial, cells=cells).reshape(cells, cells, 4)
    left = local_energy(x.flip(1), radial, cells=cells).reshape(cells, cells, 4)
    turned = local_energy(x.T, radial, cells=cells).reshape(cells, cells, 4)
    # 45 and 135 degrees change places; about the diagonal, 0 and 90 do
    assert torch.allclose(left, found.flip(1)[..., [0, 3, 2, 1]], rtol=1e-9, atol=1e-12)
    assert torch.allclose(turned, found.transpose(0, 1)[..., [2, 1, 0, 3]], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("side", [31, 32])
def test_white_noise_has_the_energy_of_the_filter(side):
    """E|h * x|² = Σ|h|², of which half is where the cosine is above 0; by quadrature over f."""
    g, n = torch.Generator().manual_seed(0), 200
    noise = torch.randn(n, side, side, generator=g, dtype=torch.float64)
    found = local_energy(noise).reshape(n, CELLS, CELLS, 4)[:, 1:-1, 1:-1].mean((1, 2))
    f = (torch.arange(400, dtype=torch.float64) + 0.5) / 400 - 0.5
    fy, fx = torch.meshgrid(f, f, indexing="ij")
    turn = (torch.arange(4) * math.pi / 4)[:, None, None]
    along = (fx * turn.cos() + fy * turn.sin()).clamp_min(0.0) / torch.hypot(fx, fy)
    wanted = (2 * torch.hypot(fx, fy) * along**3).square().mean((1, 2))
    se = found.std(0) / n**0.5
    # what is mirrored at the edges is no longer independent: some pixels of each side
    assert ((found.mean(0) - wanted).abs() < 4 * se + 3 / side * wanted).all()
    for one, other in ((0, 2), (1, 3)):
        apart = found[:, one] - found[:, other]
        assert abs(apart.mean()) < 4 * apart.std() / n**0.5


def test_cells_are_places():
    image = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    image[:16, 48:] = torch.randn(16, 16, dtype=torch.float64)
    found = local_energy(image).reshape(CELLS, CELLS, 4).sum(-1)
    assert found.flatten().argmax() == 3
    assert found[0, 3] > 20 * found[3, 0]


def test_octaves_tile():
    # bands an octave apart: cos² + sin² = 1 between the first and the last
    f = torch.linspace(0.06, 0.24, 50)
    total = torch.stack([band(0.03 * 2**k)(f).square() for k in range(5)]).sum(0)
    assert torch.allclose(total, torch.ones(50))


def test_blur_multiplies_energy():
    x = grating(0.125, 0.0)[None, None]
    found = blurred_energy(x, torch.tensor([0.0, 1.5])).exp()[0].reshape(2, 16, 4)[:, MIDDLE, 0]
    factor = math.exp(-((2 * math.pi * 0.125 * 1.5) ** 2))
    assert (found[1] / found[0]).mean().item() == pytest.approx(factor, rel=0.02)


def test_bands_are_of_their_frequency():
    x = torch.stack([grating(f, 0.0) for f in (0.0625, 0.125, 0.25)])[:, None]
    found = band_energy(x, torch.tensor([0.0625, 0.125, 0.25])).reshape(3, 3, 16, 4)
    assert found[:, :, MIDDLE, 0].mean(2).argmax(1).tolist() == [0, 1, 2]


def test_a_linear_denoiser_adds_the_energy_of_the_noise():
    v, level = 0.09, torch.tensor([-3.0, 1.0, 40.0])
    p = Gaussian(torch.zeros(1, SIDE, SIDE), v * torch.ones(1, SIDE, SIDE))
    x = 0.3 * torch.randn(3, 1, SIDE, SIDE).clamp(-3, 3)
    found = denoised_energy(p, x, level, pairs=2, seed=5).exp()
    eps = torch.randn(2, 3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    a2, s2 = torch.sigmoid(level), torch.sigmoid(-level)
    gain = v * a2.sqrt() / (a2 * v + s2)  # E[x|z] = gain · z
    of_x = local_energy(x[:, 0])[:, None]
    of_eps = torch.stack([local_energy(e[:, 0]) for e in eps]).mean(0)[:, None]
    wanted = gain[:, None] ** 2 * (a2[:, None] * of_x + s2[:, None] * of_eps)
    assert torch.allclose(found, wanted + 1e-6, rtol=1e-9)


def test_small_images_are_seen_whole():
    assert local_energy(torch.randn(2, 8, 8)).shape == (2, 64)


@pytest.mark.parametrize(
    "image",
    [torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)],
)
def test_images_are_floats_of_one_channel(image):
    # of colours the first channel would be taken for the image
    with pytest.raises(ValueError, match=r"wanted floats of shape \(stimulus, 1, height, width\)"):
        energy._grey(image)


def test_images_are_numbers_and_denoised_ones_in_their_range():
    p = Gaussian(torch.zeros(1, 8, 8), torch.ones(1, 8, 8))
    x, levels = torch.rand(2, 1, 8, 8), torch.tensor([0.0])
    with pytest.raises(ValueError, match=r"from 0 to 255; wanted them in \[-1, 1\]"):
        denoised_energy(p, 255 * (x - x.min()) / (x.max() - x.min()), levels)
    x[1, 0, 2, 3] = torch.nan
    for make in (lambda: denoised_energy(p, x, levels), lambda: blurred_energy(x, levels)):
        with pytest.raises(ValueError, match=r"got nan at \[1, 0, 2, 3\] of the images"):
            make()
