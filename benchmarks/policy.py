"""What an update of FPO costs beside one of stable-baselines3's PPO, and what an action does.

python benchmarks/policy.py     a minute on a core

Both have networks of 64 and 64 for the policy and the value, 1024 steps of four environments a
rollout, batches of 64, ten epochs; FPO has eight looks and ten steps for an action. They take
turns in one process, eleven rounds after one to warm up. Writes policy.csv: the median of the
rounds, and the least and the most.
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env

from neurodiff.control.fpo import FPO

ROUNDS = 11


def agent(kind, name):
    made = kind(
        "MlpPolicy", make_vec_env(name, 4, seed=0), n_steps=256, batch_size=64, n_epochs=10, seed=0,
        device="cpu", policy_kwargs={"net_arch": [64, 64], "activation_fn": torch.nn.Tanh},
    )  # fmt: skip
    return made.learn(1024)


def one_round(made):
    """Seconds of an update and of an action of four environments."""
    nothing = CallbackList([])
    nothing.init_callback(made)
    made.collect_rollouts(made.env, nothing, made.rollout_buffer, made.n_steps)
    start = time.perf_counter()
    made.train()
    update, seen = time.perf_counter() - start, torch.as_tensor(made._last_obs)
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(100):
            made.policy(seen.float())
    return update, (time.perf_counter() - start) / 100


def main():
    torch.set_num_threads(1)
    rows = []
    for name in ("Pendulum-v1", "HalfCheetah-v5"):
        both = {"PPO": agent(PPO, name), "FPO": agent(FPO, name)}
        found = {kind: [] for kind in both}
        for _ in range(ROUNDS):
            for kind, made in both.items():
                found[kind].append(one_round(made))
        times = {kind: np.array(each) for kind, each in found.items()}
        for column, what in enumerate(("update", "action")):
            ratio = times["FPO"][:, column] / times["PPO"][:, column]
            row = {"environment": name, "what": what}
            for kind in both:
                row[f"{kind} ms"] = 1e3 * np.median(times[kind][:, column])
            row |= {"ratio": np.median(ratio), "least": ratio.min(), "most": ratio.max()}
            rows.append(row)
            print({k: v if isinstance(v, str) else round(v, 3) for k, v in row.items()}, flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.3g")


if __name__ == "__main__":
    main()
