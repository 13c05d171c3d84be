r"""Two goals, as good and as far as each other: the smallest task that has two right answers.

.. math:: p_{k+1} = \mathrm{clip}(p_k + \ell\, a_k), \qquad p_0 = (0, 0), \qquad
    g_\pm = (0, \pm 0.8)

A policy with one mode has to choose a goal; one with two need not.
"""

from typing import Any

import numpy as np

from neurodiff.control import without_extra

try:
    import gymnasium
    from gymnasium import spaces
except ModuleNotFoundError as error:
    raise without_extra(error) from error

GOALS = np.array([[0.0, 0.8], [0.0, -0.8]], dtype=np.float32)


class TwoGoals(gymnasium.Env[np.ndarray, np.ndarray]):
    """A square room, a start in its middle, a goal above and one below.

    An observation is the place, in [-1, 1]²; an action the direction, in [-1, 1]². Reaching a goal
    is worth 1 and ends the episode, each step costs ``cost``.

    Args:
        length: of a step, in rooms' half widths.
        radius: of a goal.
        limit: steps of an episode.
        cost: of a step.

    >>> env = TwoGoals()
    >>> _ = env.reset(seed=0)
    >>> [env.step(np.array([0.0, 1.0], dtype=np.float32))[2] for _ in range(3)]
    [False, False, True]
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # gymnasium's

    def __init__(
        self, length: float = 0.2, radius: float = 0.2, limit: int = 20, cost: float = 0.02
    ) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.length, self.radius, self.limit, self.cost = length, radius, limit, cost
        self.place, self.steps = np.zeros(2, np.float32), 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """To the middle."""
        super().reset(seed=seed)
        self.place, self.steps = np.zeros(2, np.float32), 0
        return self.place.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step; ``info["goal"]`` is 0 or 1 where one is reached."""
        moved = self.place + self.length * np.clip(action, -1.0, 1.0)
        self.place, self.steps = np.clip(moved, -1.0, 1.0).astype(np.float32), self.steps + 1
        near = np.linalg.norm(GOALS - self.place, axis=1) <= self.radius
        done = bool(near.any())
        info = {"goal": int(near.argmax())} if done else {}
        return self.place.copy(), float(done) - self.cost, done, self.steps >= self.limit, info
