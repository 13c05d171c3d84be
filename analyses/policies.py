r"""What the analyses of policies share: weightings at one height, training, and returns.

On the straight path, times uniform, the error of the velocity at t weighs

.. math:: w(λ)\, e^{λ/2}, \qquad e^{λ/2} = (1 - t)/t

in FPO's loss. The logarithm of its likelihood ratio is proportional to w, the clip is not: so a
higher w is clipped sooner. Weightings are compared at one height where the mean of that weight over
t is that of the published one (flow-eps, 1/3).
"""

import time

import numpy as np
import torch

import neurodiff as nd


def of_velocity(w, logsnr):
    """What w is as a weight of |û − u|²: ε̂ − ε = (1 − t)(û − u) and 1/p = 2/(t(1 − t))."""
    return w(logsnr) * torch.exp(0.5 * logsnr)


def mean_weight(w):
    """Over t, by the midpoint rule: finite (12.5) for w = 1 too, whose integral is not."""
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    return of_velocity(w, nd.schedule("flow").logsnr(t)).mean().item()


def as_high(w, other="flow-eps"):
    """w times what makes its mean weight that of another."""
    height = mean_weight(nd.weighting(other)) / mean_weight(w)
    return lambda logsnr: height * w(logsnr)


def trained(model, steps, note=None):
    """Train it; the seconds, and what was noted after every rollout, with the return."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Follow(BaseCallback):
        rows = ()

        def _on_step(self):
            return True

        def _on_rollout_end(self):
            done = [e["r"] for e in self.model.ep_info_buffer][-20:]
            row = {"steps": self.num_timesteps, "return": np.mean(done) if done else np.nan}
            self.rows = (*self.rows, row | (note(self.model) if note else {}))

    start, follow = time.perf_counter(), Follow()
    model.learn(steps, callback=follow)
    return time.perf_counter() - start, follow.rows


def returns(model, env, episodes):
    """Of new episodes, by draws and by the one action that is no draw."""
    from stable_baselines3.common.evaluation import evaluate_policy

    found = {}
    for name, sure in (("draws", False), ("sure", True)):
        found[name], found[f"{name} sd"] = evaluate_policy(model, env, episodes, deterministic=sure)
    return found
