"""From a stimulus and a weighting to a distribution of responses."""

from neurodiff import _submodules

__getattr__ = _submodules(__name__)
