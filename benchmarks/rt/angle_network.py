"""The ``angle`` network that HDDM 1.0.1 ships, as arrays: ``angle_network.py STATE_DICT OUT``.

HSSM fetches its network from a model hub when a model is built; this one lies in HDDM's source
package (BSD-2-Clause). Run with torch; HSSM's own environment has none.
"""

import sys

import numpy as np
import torch

state = torch.load(sys.argv[1], weights_only=True, map_location="cpu")
np.savez(sys.argv[2], **{name: value.numpy() for name, value in state.items()})
