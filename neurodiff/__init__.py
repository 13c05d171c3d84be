"""neurodiff: at which signal-to-noise ratio does this observer, animal or neuron stop denoising?

A diffusion model's loss weights noise levels by w(logsnr). Where w falls with logsnr it is the
survival function of a stopping law, w(λ) = P(Λ > λ), so a weighting is a hypothesis about
perception. Everything here is imported when it is first used: ``import neurodiff`` loads nothing.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_WHERE = {
    # sub-packages and modules
    "control": "neurodiff.control",
    "data": "neurodiff.data",
    "diffusion": "neurodiff.diffusion",
    "inference": "neurodiff.inference",
    "perception": "neurodiff.perception",
    "laws": "neurodiff.diffusion.laws",
    "observers": "neurodiff.perception.observers",
    "plot": "neurodiff.plot",
    "report": "neurodiff.report",
    # data
    "load": "neurodiff.data.datasets:load",
    "read": "neurodiff.data.read:read",
    # diffusion
    "recipe": "neurodiff.diffusion.recipe:recipe",
    "schedule": "neurodiff.diffusion.schedule:schedule",
    "weighting": "neurodiff.diffusion.weighting:weighting",
    "SurvivalWeighting": "neurodiff.diffusion.weighting:SurvivalWeighting",
    # perception
    "Threshold": "neurodiff.perception.stopping:Threshold",
    "Limited": "neurodiff.perception.stopping:Limited",
    "AveragedEvidence": "neurodiff.perception.classify:AveragedEvidence",
    "StoppedEvidence": "neurodiff.perception.classify:StoppedEvidence",
    # inference
    "Laplace": "neurodiff.inference.laplace:Laplace",
    "NUTS": "neurodiff.inference.nuts:NUTS",
    "SVI": "neurodiff.inference.svi:SVI",
    "fit": "neurodiff.inference.fit:fit",
    "compare": "neurodiff.inference.compare:compare",
}

__all__ = ["__version__", *_WHERE]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from neurodiff import (
        control as control,
    )
    from neurodiff import (
        data as data,
    )
    from neurodiff import (
        diffusion as diffusion,
    )
    from neurodiff import (
        inference as inference,
    )
    from neurodiff import (
        perception as perception,
    )
    from neurodiff import (
        plot as plot,
    )
    from neurodiff import (
        report as report,
    )
    from neurodiff.data.datasets import load as load
    from neurodiff.data.read import read as read
    from neurodiff.diffusion import laws as laws
    from neurodiff.diffusion.recipe import recipe as recipe
    from neurodiff.diffusion.schedule import schedule as schedule
    from neurodiff.diffusion.weighting import (
        SurvivalWeighting as SurvivalWeighting,
    )
    from neurodiff.diffusion.weighting import (
        weighting as weighting,
    )
    from neurodiff.inference.compare import compare as compare
    from neurodiff.inference.fit import fit as fit
    from neurodiff.inference.laplace import Laplace as Laplace
    from neurodiff.inference.nuts import NUTS as NUTS
    from neurodiff.inference.svi import SVI as SVI
    from neurodiff.perception import observers as observers
    from neurodiff.perception.classify import AveragedEvidence as AveragedEvidence
    from neurodiff.perception.classify import StoppedEvidence as StoppedEvidence
    from neurodiff.perception.stopping import Limited as Limited
    from neurodiff.perception.stopping import Threshold as Threshold


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'neurodiff' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    value = importlib.import_module(module)
    return getattr(value, attribute) if attribute else value


def __dir__() -> list[str]:
    return sorted(__all__)


def _submodules(package: str) -> Callable[[str], object]:
    """The ``__getattr__`` of a sub-package: its modules are imported when first named."""

    def getattr_(name: str) -> object:
        try:
            return importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{name}":
                raise
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None

    return getattr_
