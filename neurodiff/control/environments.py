"""What an environment gives must be what it said that it would."""

import numpy as np

from neurodiff.control import without_extra

try:
    from gymnasium import spaces
    from stable_baselines3.common.type_aliases import GymEnv
    from stable_baselines3.common.vec_env import VecEnv
except ModuleNotFoundError as error:
    raise without_extra(error) from error


def check_observations(env: GymEnv) -> None:
    """Reset every environment, and hold its observation to the shape of its space.

    Raises:
        ValueError: another shape.

    >>> from neurodiff.control.gridworld import TwoGoals
    >>> check_observations(TwoGoals())
    """
    seen = env.observation_space
    each = env.env_method("reset") if isinstance(env, VecEnv) else [env.reset()]
    for i, (found, _) in enumerate(each):
        if isinstance(seen, spaces.Box) and np.shape(found) != seen.shape:
            raise ValueError(
                f"environment {i} gave an observation of shape {np.shape(found)}, and its "
                f"observation_space is of shape {seen.shape}: mend one of them"
            )
