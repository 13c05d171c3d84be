r"""A trained denoiser as one file: its weights, and what is needed to build it again.

.. math:: \text{file} = \big(θ,\; \text{network},\; \text{arguments},\;
    \text{parameterization or levels}\big) \quad\mapsto\quad \hat x_θ

The format is safetensors, with the settings as JSON in its header: reading runs no code from the
file. Buffers follow from the arguments and are not kept.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from neurodiff.diffusion.denoiser import Denoiser, LevelDenoiser, NetworkDenoiser
from neurodiff.diffusion.named import check_name
from neurodiff.diffusion.networks import MLP, UNet

NETWORKS = {"MLP": MLP, "UNet": UNet}


def save(denoiser: Denoiser, path: Path, half: bool = False) -> None:
    """Keep a denoiser, in one file that is whole or not there.

    Args:
        denoiser: a :class:`NetworkDenoiser` or :class:`LevelDenoiser` around an ``MLP`` or
            ``UNet``.
        path: of the file, which is written over; its folder must exist.
        half: whether weights are rounded to half precision, 11 bits: half the size.

    Raises:
        ValueError: another denoiser or network, or weights that the file's precision cannot hold.

    >>> import tempfile
    >>> kept = NetworkDenoiser(MLP((2,), width=8, depth=1), "v")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(kept, Path(folder) / "small.safetensors")
    ...     load(Path(folder) / "small.safetensors").network.settings["width"]
    8
    """
    network = getattr(denoiser, "network", None)
    if not isinstance(denoiser, NetworkDenoiser | LevelDenoiser) or not isinstance(
        network, MLP | UNet
    ):
        raise ValueError(
            f"got {type(denoiser).__name__} of {type(network).__name__}; wanted NetworkDenoiser or "
            f"LevelDenoiser of {' or '.join(NETWORKS)}: keep another's state_dict() by hand"
        )
    settings: dict = {"network": type(network).__name__, "arguments": network.settings}
    if isinstance(denoiser, LevelDenoiser):
        settings["levels"] = len(denoiser.at)
    else:
        settings["parameterization"] = denoiser.parameterization
    dtype = torch.float16 if half else torch.float32
    weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in denoiser.named_parameters()}
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} has values that are not finite in {dtype}: nothing is kept")
    path = Path(path)
    aside = path.with_suffix(".part")
    save_file(weights, aside, {"settings": json.dumps(settings)})
    aside.replace(path)


def load(path: Path) -> NetworkDenoiser | LevelDenoiser:
    """A denoiser that :func:`save` kept: in single precision, on the CPU, without gradients.

    Args:
        path: of the file.

    Raises:
        ValueError: a file that is not there, cut short, of an unknown network, or whose weights do
            not fit its settings.
    """
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads(file.metadata()["settings"])
            found = {name: file.get_tensor(name) for name in file.keys()}
        name, arguments = settings["network"], settings["arguments"]
        output = settings["levels"] if "levels" in settings else settings["parameterization"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no whole denoiser ({error}): wanted a file written by save()"
        ) from error
    try:
        check_name("network", NETWORKS, name, {})
        kind = LevelDenoiser if "levels" in settings else NetworkDenoiser
        denoiser = kind(NETWORKS[name](**arguments), output)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; is it of a later version?") from error
    own = dict(denoiser.named_parameters())
    for key in own.keys() | found.keys():
        there, wanted = (tuple(d[key].shape) if key in d else "missing" for d in (found, own))
        if there != wanted:
            raise ValueError(
                f"{path} does not fit its settings: {key} is {there}, wanted {wanted} by "
                f"{name}({arguments})"
            )
    denoiser.load_state_dict(found, strict=False)
    return denoiser.float().eval().requires_grad_(False)
