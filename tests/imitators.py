"""Small agents that imitate a way upwards, and what they are made with."""

import numpy as np
import xarray as xr

from neurodiff.control.difo import DIFO
from neurodiff.control.gridworld import TwoGoals
from neurodiff.control.smiling import SMILING

_SMALL = {"width": 8, "depth": 1, "batch_size": 16, "learning_starts": 16, "buffer_size": 1000,
          "policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}  # fmt: skip
ARGUMENTS = {DIFO: _SMALL, SMILING: {**_SMALL, "expert_steps": 5}}
DIMS = ("trial", "time", "feature")


def upwards(trials=4):
    """Straight ways to the upper goal, as an animal's would be written down."""
    start = np.random.default_rng(0).uniform(-0.5, 0.5, (trials, 1, 2))
    share = np.linspace(0, 1, 9)[:, None]
    return xr.Dataset({"state": (DIMS, (1 - share) * start + share * np.array([0.0, 0.8]))})


def agent(kind, env=None, data=None, **changes):
    env = TwoGoals() if env is None else env
    data = upwards() if data is None else data
    return kind("MlpPolicy", env, data, **{**ARGUMENTS[kind], **changes})
