"""One xarray.Dataset per study: cards, readers, checks."""

from neurodiff import _submodules

__getattr__ = _submodules(__name__)
