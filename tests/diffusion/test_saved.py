"""A denoiser that was kept says what it said, and a file that is wrong says what is wrong."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from neurodiff.diffusion.denoiser import LevelDenoiser, NetworkDenoiser
from neurodiff.diffusion.networks import MLP, UNet
from neurodiff.diffusion.prior import Binary
from neurodiff.diffusion.saved import load, save


def noisy(denoiser):
    """Zero layers would hide what was not loaded."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return denoiser


def unet():
    return UNet(1, 24, (1, 2, 4), 2, attention=(2,), classes=10, dropout=0.1)


CASES = {
    "unet": (lambda: NetworkDenoiser(unet(), "v"), (1, 16, 16)),
    "mlp": (lambda: NetworkDenoiser(MLP((3, 2), 8, 1, classes=10, drop=0.3), "F"), (3, 2)),
    "levels": (lambda: LevelDenoiser(MLP((4,), 8, 2, classes=10, outputs=17), 17), (4,)),
}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_what_was_kept_comes_back(name, half, tmp_path):
    make, shape = CASES[name]
    kept, path = noisy(make().float()).train(), tmp_path / "kept.safetensors"
    save(kept, path, half=half)
    back = load(path)
    assert not back.training
    z, level, label = torch.randn(5, *shape).float(), torch.arange(5.0).float(), torch.arange(5)
    if half:  # the same weights, rounded to 11 bits; buffers are not
        with torch.no_grad():
            for p in kept.parameters():
                p.copy_(p.half())
    kept.eval()
    assert all(p.dtype == torch.float32 for p in back.parameters())
    assert torch.equal(back(z, level, label), kept(z, level, label))
    assert torch.equal(back(z, level), kept(z, level))
    assert back.network.settings == kept.network.settings
    assert [p.name for p in tmp_path.iterdir()] == ["kept.safetensors"]


def test_half_precision_is_half_the_size(tmp_path):
    for half in (False, True):
        save(NetworkDenoiser(MLP((8, 8)), "v"), tmp_path / f"{half}.safetensors", half=half)
    whole, small = ((tmp_path / f"{h}.safetensors").stat().st_size for h in (False, True))
    assert small < 0.51 * whole


def test_what_cannot_be_kept_is_refused(tmp_path):
    path = tmp_path / "no.safetensors"
    with pytest.raises(ValueError, match="got Binary of NoneType; wanted NetworkDenoiser"):
        save(Binary(), path)
    with pytest.raises(ValueError, match="got NetworkDenoiser of Linear"):
        save(NetworkDenoiser(nn.Linear(2, 2), "v"), path)
    large = NetworkDenoiser(MLP((2,), 8, 1), "v")
    nn.init.constant_(large.network.first.bias, 1e5)
    with pytest.raises(ValueError, match=r"first\.bias has values that are not finite in torch.f"):
        save(large, path, half=True)
    assert not path.exists()


def test_what_is_no_denoiser_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="no whole denoiser"):
        load(path)
    save(NetworkDenoiser(MLP((2,), 8, 1), "v"), path)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="no whole denoiser"):
            load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no whole denoiser"):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "MPL"}, "unknown network 'MPL'; did you mean 'MLP'"),
        ({"parameterization": "w"}, "unknown parameterization 'w'"),
        ({"arguments": {"shape": [2], "breadth": 8}}, "breadth.*later version"),
        ({"arguments": {"shape": [2], "width": 8, "depth": 2}}, r"blocks\.1\.\S+ is missing, want"),
        ({"arguments": {"shape": [3], "width": 8, "depth": 1}}, r"is \(8, 2\), wanted \(8, 3\)|2,"),
        ({"arguments": None}, "later version"),
    ],
)
def test_settings_that_do_not_fit_are_named(change, message, tmp_path):
    path, kept = tmp_path / "x.safetensors", NetworkDenoiser(MLP((2,), 8, 1), "v")
    settings = {"network": "MLP", "arguments": kept.network.settings, "parameterization": "v"}
    weights = {k: v.detach() for k, v in kept.named_parameters()}
    save_file(weights, path, {"settings": json.dumps(settings | change)})
    with pytest.raises(ValueError, match=message):
        load(path)
