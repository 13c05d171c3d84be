# %% [markdown]
# # A policy by its loss
#
# FPO is PPO whose likelihood ratio is a difference of denoising losses, so that a policy may be a
# flow, with several modes. Three questions, each beside stable-baselines3's PPO with as many
# environment steps:
#
# 1. Pendulum, 100,000 steps, five seeds: the return, with PPO as it is tuned in its authors' zoo.
# 2. A room with two goals, equally good and equally far from the middle: are both kept there? A
#    Gaussian has one mode, and must choose or wander. Both learn at a rate that falls to 0.
# 3. HalfCheetah, 100,000 steps, three seeds: the same FPO with another weighting. As published
#    (flow-eps, w = sech²(λ/4)/4), flow matching (e^{−λ/2}), the ELBO (w = 1), each with the mean
#    over the six numbers of an action as published, and the ELBO with their sum, which alone is a
#    ratio of densities.
#
#     python analyses/19_a_policy_by_its_loss.py [--fit]
#
# Without `--fit` the figure is made from `results/19_*`. With it all is trained, some fifty minutes
# on a core; runs that are done are not done again, and one that was killed goes on.

# %%
import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import neurodiff as nd
from neurodiff import panels

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "policy"
STEPS = {"pendulum": 100_000, "goals": 150_000, "cheetah": 100_000}
SEEDS = {"pendulum": 5, "goals": 5, "cheetah": 3}
KINDS = {
    "pendulum": ("ppo", "fpo"),
    "goals": ("ppo", "fpo"),
    "cheetah": ("flow-eps", "flow-matching", "elbo", "elbo, sum", "ppo"),
}
THIRD = 1 / 3  # of the range of an action: above it up, below its negative down


# %%
def falling(remaining):
    return 1e-3 * remaining


def agent(part, kind, seed):
    """An algorithm with its environments; what is not said is its default."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    from neurodiff.control.fpo import FPO
    from neurodiff.control.gridworld import TwoGoals

    common = {"seed": seed, "device": "cpu"}
    if part == "pendulum":
        env = make_vec_env("Pendulum-v1", 4, seed=seed)
        common |= {"n_steps": 1024, "gamma": 0.9, "learning_rate": 1e-3}
        zoo = {"use_sde": True, "sde_sample_freq": 4}
        return PPO("MlpPolicy", env, **common, **zoo) if kind == "ppo" else FPO(
            "MlpPolicy", env, **common)  # fmt: skip
    if part == "goals":
        env = make_vec_env(TwoGoals, 64, seed=seed)
        common |= {"n_steps": 128, "batch_size": 512, "learning_rate": falling}
        return (PPO if kind == "ppo" else FPO)("MlpPolicy", env, **common)
    env = VecNormalize(make_vec_env("HalfCheetah-v5", 8, seed=seed), gamma=0.99)
    common |= {"n_steps": 256, "batch_size": 256, "learning_rate": 1e-3}
    if kind == "ppo":
        return PPO("MlpPolicy", env, **common)
    name, _, total = kind.partition(", ")
    return FPO("MlpPolicy", env, weighting=nd.weighting(name),
               mean_over_dimensions=not total, **common)  # fmt: skip


def follow(part):
    """A callback that notes the return along the way, and the middle of the room."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Follow(BaseCallback):
        def __init__(self):
            super().__init__()
            self.rows = []

        def _on_step(self):
            return True

        def _on_rollout_end(self):
            done = [e["r"] for e in self.model.ep_info_buffer]
            row = {"steps": self.num_timesteps, "return": np.mean(done[-20:]) if done else np.nan}
            if part == "goals":
                row |= middle(self.model, 200, seed=1)[0]
            self.rows.append(row)

    return Follow()


def middle(model, episodes, seed):
    """Episodes from the middle of the room: where they end, how soon, and their first actions."""
    from stable_baselines3.common.env_util import make_vec_env

    from neurodiff.control.gridworld import LIMIT, TwoGoals

    env = make_vec_env(TwoGoals, episodes, seed=seed, env_kwargs={"spread": 0.0})
    goal, last, first, seen = np.full(episodes, -1), np.full(episodes, LIMIT), None, env.reset()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(LIMIT):
            action, _ = model.predict(seen)
            first = action if first is None else first
            seen, _, done, info = env.step(action)
            for i in np.flatnonzero(done & (last == LIMIT) & (goal < 0)):
                goal[i], last[i] = info[i].get("goal", -1), step + 1
    y = first[:, 1]
    return {
        "above": (goal == 0).mean(), "below": (goal == 1).mean(), "steps to a goal": last.mean(),
        "first up": (y > THIRD).mean(), "first down": (y < -THIRD).mean(),
    }, first  # fmt: skip


def evaluated(part, model, seed):
    """Returns of new episodes, by draws and by the one action that is no draw."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    if part == "goals":
        found, first = middle(model, 2000, seed=10_000 + seed)
        return found, first
    env = model.get_env()
    if part == "pendulum":
        env, count = make_vec_env("Pendulum-v1", 10, seed=10_000 + seed), 100
    else:
        env.training, env.norm_reward, count = False, False, 16
        env.seed(10_000 + seed)
    found = {}
    for name, sure in (("draws", False), ("sure", True)):
        found[name], found[f"{name} sd"] = evaluate_policy(model, env, count, deterministic=sure)
    return found, None


def run():
    from neurodiff.control.checkpoint import Checkpoint

    torch.set_num_threads(1)
    RUNS.mkdir(parents=True, exist_ok=True)
    for part, kinds in KINDS.items():
        for seed in range(SEEDS[part]):
            for kind in kinds:
                stem = RUNS / f"{part}-{kind}-{seed}".replace(", ", "-")
                if stem.with_suffix(".csv").exists():
                    continue
                start, model, curve = time.perf_counter(), agent(part, kind, seed), follow(part)
                kept = Checkpoint(stem.with_suffix(".safetensors"), every=STEPS[part])
                model.learn(STEPS[part], callback=[curve, kept])
                seconds = time.perf_counter() - start
                found, first = evaluated(part, model, seed)
                if first is not None:
                    np.save(stem.with_suffix(".npy"), first.astype(np.float16))
                own = {"part": part, "kind": kind, "seed": seed}
                pd.DataFrame([own | row for row in curve.rows]).to_csv(
                    stem.with_suffix(".curve.csv"), index=False, float_format="%.4g"
                )
                row = own | {"steps": model.num_timesteps, "seconds": seconds} | found
                part_file = stem.with_suffix(".part")
                pd.DataFrame([row]).to_csv(part_file, index=False, float_format="%.5g")
                part_file.rename(stem.with_suffix(".csv"))
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()},
                      flush=True)  # fmt: skip
        tables(part)


def tables(part):
    """What is kept of the runs of a part: ends, curves, and first actions in ninths."""
    ends = [p for p in sorted(RUNS.glob(f"{part}-*.csv")) if not p.name.endswith(".curve.csv")]
    pd.concat(map(pd.read_csv, ends)).to_csv(RESULTS / f"19_{part}.csv", index=False)
    curves = pd.concat(map(pd.read_csv, sorted(RUNS.glob(f"{part}-*.curve.csv"))))
    curves.to_csv(RESULTS / f"19_{part}_curves.csv", index=False)
    rows = []
    for path in sorted(RUNS.glob(f"{part}-*.npy")):
        share, edges = np.histogram(np.load(path)[:, 1], bins=np.linspace(-1.001, 1.001, 16))
        for low, n in zip(edges, share / share.sum(), strict=False):
            _, kind, seed = path.stem.split("-")
            rows.append({"kind": kind, "seed": seed, "from": low, "share": n})
    if rows:
        pd.DataFrame(rows).to_csv(RESULTS / f"19_{part}_first.csv", index=False, float_format="%.4g")


def figure():
    """To be drawn."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="FPO beside PPO")
    parser.add_argument("--fit", action="store_true", help="train anew")
    if parser.parse_args().fit:
        run()
    figure()
