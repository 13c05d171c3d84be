r"""Two goals, as good and as far as each other: the smallest task that has two right answers.

.. math:: p_{k+1} = \mathrm{clip}(p_k + 1.2\, a_k), \qquad g_\pm = (0, \pm 0.6), \qquad
    r_k = \big[\min_\pm |p_{k+1} - g_\pm| \le 0.35\big]

In the middle a policy with one mode has to choose a goal; one with two need not. A goal is half of
the longest step away: were it a whole one, a Gaussian so wide that it is clipped at both bounds
would have two modes there.
"""

from typing import Any

import numpy as np

from neurodiff.control import without_extra

try:
    import gymnasium
    from gymnasium import spaces
except ModuleNotFoundError as error:
    raise without_extra(error) from error

GOALS = np.array([[0.0, 0.6], [0.0, -0.6]], dtype=np.float32)
STEP, RADIUS, LIMIT = 1.2, 0.35, 20  # of an action, of a goal, of an episode


class TwoGoals(gymnasium.Env[np.ndarray, np.ndarray]):
    """A square room with a goal above and one below; reaching either is worth 1 and ends.

    An observation is the place, in [-1, 1]²; an action, in [-1, 1]², 1.2 times the way to go:
    half of the longest leads from the middle to a goal, and the longest to the wall. Nothing else
    is rewarded, so that only the discount makes for speed.

    Args:
        spread: how far from the middle, in each direction, episodes may begin.

    >>> env = TwoGoals()
    >>> _ = env.reset(seed=0)
    >>> [env.step(np.array([0.0, up], dtype=np.float32))[1] for up in (1.0, -0.3)]
    [0.0, 1.0]
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # gymnasium's

    def __init__(self, spread: float = 0.0) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.spread, self.place, self.steps = spread, np.zeros(2, np.float32), 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """To a place about the middle."""
        super().reset(seed=seed)
        start = self.np_random.uniform(-self.spread, self.spread, 2)
        self.place, self.steps = start.astype(np.float32), 0
        return self.place.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step; ``info["goal"]`` is 0 (above) or 1 where one is reached."""
        moved = self.place + STEP * np.clip(action, -1.0, 1.0)
        self.place, self.steps = np.clip(moved, -1.0, 1.0).astype(np.float32), self.steps + 1
        near = np.linalg.norm(GOALS - self.place, axis=1) <= RADIUS
        done = bool(near.any())
        info = {"goal": int(near.argmax())} if done else {}
        return self.place.copy(), float(done), done, self.steps >= LIMIT, info
