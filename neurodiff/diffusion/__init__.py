"""The mathematics of diffusion: laws on logsnr, schedules, weightings, losses, likelihoods.

Torch only.
"""

from neurodiff import _submodules

__getattr__ = _submodules(__name__)
