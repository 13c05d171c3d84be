"""A trained denoiser by its card: what it is, and what becomes of a file that was altered."""

import shutil

import pytest
import torch

import neurodiff as nd
from neurodiff.data import datasets
from neurodiff.data.schema import DataError
from neurodiff.diffusion.denoiser import Denoiser


def test_it_denoises_pictures_of_its_kind():
    denoiser = nd.load("cifar10-grey16")
    assert isinstance(denoiser, Denoiser)
    # a smooth ramp in noise is nearer to what it was, with and without a label
    clean = torch.linspace(-0.8, 0.8, 16, dtype=torch.float32).expand(1, 1, 16, 16)
    eps = torch.randn((8, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=clean.dtype)
    off = []
    for level in (-2.0, 2.0, 6.0):
        logsnr = torch.tensor(level, dtype=clean.dtype)
        z = nd.diffusion.logsnr.diffuse(clean.expand_as(eps), eps, logsnr)
        for cond in (None, torch.zeros(8, dtype=torch.long)):
            found = denoiser(z, logsnr, cond)
            shown = z / torch.sigmoid(logsnr).sqrt()
            assert (found - clean).square().mean() < 0.5 * (shown - clean).square().mean()
        off.append((found - clean).square().mean().item())
    assert off[0] > off[1] > off[2]


def test_weights_that_were_altered_are_refused(tmp_path, monkeypatch):
    card = datasets.card("cifar10-grey16")
    folder = tmp_path / "cifar10-grey16"
    folder.mkdir()
    shutil.copy(datasets._folder() / card.files[0].path, folder)
    monkeypatch.setenv(datasets.MIRROR, str(tmp_path))
    nd.load("cifar10-grey16")
    content = bytearray((folder / card.files[0].path).read_bytes())
    content[-1] ^= 1
    (folder / card.files[0].path).write_bytes(bytes(content))
    with pytest.raises(DataError, match="was altered or cut short"):
        nd.load("cifar10-grey16")


def test_the_card_is_listed_and_of_no_large_file():
    assert "cifar10-grey16" in datasets.cards()
    assert sum(file.bytes for file in datasets.card("cifar10-grey16").files) < 8 * 2**20
