"""The mathematics of diffusion: schedules, laws on logsnr, weightings, losses, likelihoods. Torch only."""

from neurodiff import _submodules

__getattr__ = _submodules(__name__)
