"""Fits, comparisons and calibration: the only package that imports Pyro."""

from neurodiff import _submodules

__getattr__ = _submodules(__name__)
