# %% [markdown]
# # A policy by its loss
#
# FPO is PPO whose likelihood ratio is a difference of denoising losses, so that a policy may be a
# flow, with several modes. Four questions, each beside stable-baselines3's PPO with as many
# environment steps:
#
# 1. Pendulum, 100,000 steps, five seeds: the return, with PPO as it is tuned in its authors' zoo.
# 2. A room with two goals, equally good and equally far from the start: are both kept? A Gaussian
#    has one mode, and must choose. 60,000 steps, ten seeds, discount .5.
# 3. The same room for longer: 150,000 steps, seeds 0 to 4, FPO with the weighting of flow matching
#    (e^{−λ/2}), which was fixed before these runs, beside FPO as published (flow-eps) and
#    PPO; nothing else differs from 2. Both goals count as kept where at least one in ten of 2000
#    episodes from the middle ends at the rarer; how many steps it takes is reported with it, since
#    a Gaussian can end at both too, by walking to and fro. What was to be seen is whether flow
#    matching keeps both in more seeds than flow-eps does, and whether more steps lose them. Since
#    the height of w counts like a clip (`policies.py`), each is run at the other's height too.
# 4. HalfCheetah, 80,000 steps, five seeds: the same FPO with another weighting. As published
#    (flow-eps, w = sech²(λ/4)/4), flow matching (e^{−λ/2}), the ELBO (w = 1), each with the mean
#    over the six numbers of an action as published, and the ELBO with their sum, which alone is a
#    ratio of densities; flow matching and the ELBO also lower, at the height of flow-eps.
#
#     python analyses/19_a_policy_by_its_loss.py [--fit]
#
# Without `--fit` the figure is made from `results/19_*`. With it all is trained, some two
# hours on a core; runs that are done are not done again.

# %%
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from policies import as_high, returns, trained

import neurodiff as nd
from neurodiff import panels

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "policy"
STEPS = {"pendulum": 100_000, "cheetah": 80_000, "goals": 60_000, "longer": 150_000}
SEEDS = {"pendulum": 5, "cheetah": 5, "goals": 10, "longer": 5}
ROOMS = ("goals", "longer")  # both are the room with two goals
KINDS = {
    "pendulum": ("ppo", "fpo"),
    "cheetah": ("flow-eps", "flow-matching, lower", "elbo, lower", "flow-matching", "elbo",
                "elbo, sum", "ppo"),
    "goals": ("ppo", "fpo"),
    "longer": ("ppo", "flow-matching", "flow-eps, higher", "flow-eps", "flow-matching, lower"),
}  # fmt: skip
KEPT = 0.1  # both goals are, where the rarer has so much of the ends
STYLE = {  # colour, line, marker, name
    "ppo": (panels.ORANGE, "--", "o", "PPO"),
    "fpo": (panels.BLUE, "-", "^", "FPO"),
    "flow-eps": (panels.BLUE, "-", "^", "FPO, flow-eps"),
    "flow-matching": (panels.GREEN, "-.", "s", "FPO, flow-matching"),
    "flow-eps, higher": (panels.PINK, (0, (6, 1)), "v", "FPO, flow-eps, higher"),
    "flow-matching, lower": (panels.GREY, ":", "D", "FPO, flow-matching, lower"),
}
THIRD = 1 / 3  # of the range of an action: above it up, below its negative down


# %%
def weighting(kind):
    """w by the name of a row."""
    name, _, change = kind.partition(", ")
    w = nd.weighting("flow-eps" if name == "fpo" else name)
    if change == "lower":
        return as_high(w)
    return as_high(w, "flow-matching") if change == "higher" else w


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
    if part in ROOMS:
        env = make_vec_env(TwoGoals, 64, seed=seed)
        common |= {"n_steps": 64, "learning_rate": 1e-3, "gamma": 0.5}
        if kind == "ppo":
            return PPO("MlpPolicy", env, **common)
        return FPO("MlpPolicy", env, weighting=weighting(kind), **common)
    env = VecNormalize(make_vec_env("HalfCheetah-v5", 8, seed=seed), gamma=0.99)
    common |= {"n_steps": 256, "batch_size": 256, "learning_rate": 1e-3}
    if kind == "ppo":
        return PPO("MlpPolicy", env, **common)
    return FPO("MlpPolicy", env, weighting=weighting(kind),
               mean_over_dimensions="sum" not in kind, **common)  # fmt: skip


def middle(model, episodes, seed):
    """Episodes from the middle of the room: where they end, how soon, and their first actions."""
    from stable_baselines3.common.env_util import make_vec_env

    from neurodiff.control.gridworld import LIMIT, TwoGoals

    env = make_vec_env(TwoGoals, episodes, seed=seed)
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
    """New episodes: where they end in the room, else their returns."""
    from stable_baselines3.common.env_util import make_vec_env

    if part in ROOMS:
        return middle(model, 2000, seed=10_000 + seed)
    env = model.get_env()
    if part == "pendulum":
        return returns(model, make_vec_env("Pendulum-v1", 10, seed=10_000 + seed), 100), None
    env.training, env.norm_reward = False, False
    env.seed(10_000 + seed)
    return returns(model, env, 16), None


def run():
    torch.set_num_threads(1)
    RUNS.mkdir(parents=True, exist_ok=True)
    for part, kinds in KINDS.items():
        for seed in range(SEEDS[part]):
            for kind in kinds:
                stem = RUNS / f"{part}-{kind}-{seed}".replace(", ", "-").replace(" ", "_")
                if stem.with_suffix(".csv").exists():
                    continue
                model = agent(part, kind, seed)
                note = (lambda m: middle(m, 200, seed=1)[0]) if part in ROOMS else None
                seconds, curve = trained(model, STEPS[part], note)
                found, first = evaluated(part, model, seed)
                own = {"part": part, "kind": kind, "seed": seed}
                if first is not None:
                    share, edges = np.histogram(first[:, 1], np.linspace(-1.001, 1.001, 16))
                    rows = pd.DataFrame({"from": edges[:-1], "share": share / len(first)})
                    rows.assign(**own).to_csv(
                        stem.with_suffix(".first.csv"), index=False, float_format="%.4g"
                    )
                pd.DataFrame([own | row for row in curve]).to_csv(
                    stem.with_suffix(".curves.csv"), index=False, float_format="%.4g"
                )
                row = own | {"steps": model.num_timesteps, "seconds": seconds} | found
                aside = stem.with_suffix(".aside")
                pd.DataFrame([row]).to_csv(aside, index=False, float_format="%.5g")
                aside.rename(stem.with_suffix(".csv"))
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()},
                      flush=True)  # fmt: skip
        tables(part)


def tables(part):
    """What is kept of the runs of a part: their ends, curves, and first actions."""
    for what in ("", "curves", "first"):
        paths = [p for p in sorted(RUNS.glob(f"{part}-*.csv")) if p.suffixes[:-1] ==
                 ([f".{what}"] if what else [])]  # fmt: skip
        if paths:
            name = f"19_{part}_{what}".rstrip("_")
            pd.concat(map(pd.read_csv, paths)).to_csv(RESULTS / f"{name}.csv", index=False)


def figure():
    """Returns on the way, first actions, what is left of the rarer goal, and the weightings."""
    plt.style.use(nd.plot.STYLE)
    fig, axes = plt.subplots(2, 3, figsize=(7.2, 4.4), layout="constrained")
    curves = pd.read_csv(RESULTS / "19_pendulum_curves.csv")
    for kind in ("ppo", "fpo"):
        colour, label = STYLE[kind][0], STYLE[kind][3]
        some = curves[curves["kind"] == kind].pivot_table("return", "steps", "seed")
        low, high = some.min(axis=1), some.max(axis=1)
        axes[0, 0].fill_between(some.index / 1e3, low, high, color=colour, alpha=0.25, lw=0)
        axes[0, 0].plot(some.index / 1e3, some.median(axis=1), color=colour, label=label)
    axes[0, 0].set(title="Pendulum", xlabel="steps / 1000", ylabel="return (median, range)")
    axes[0, 0].legend(frameon=False, fontsize=6)
    first = pd.read_csv(RESULTS / "19_goals_first.csv")
    for (kind, seed), some in first.groupby(["kind", "seed"]):
        colour, line, _, label = STYLE[kind]
        axes[0, 1].stairs(some["share"], [*some["from"], 1.0], color=colour, lw=0.8, ls=line,
                          label=label if seed == 0 else None)  # fmt: skip
    axes[0, 1].set(title="two goals: first action", xlabel="action, down to up", ylabel="share")
    axes[0, 1].legend(frameon=False, fontsize=6, loc="upper center")
    for ax, part in ((axes[0, 2], "goals"), (axes[1, 1], "longer")):
        ends = pd.read_csv(RESULTS / f"19_{part}.csv")
        for kind in KINDS[part]:
            colour, _, mark, label = STYLE[kind]
            some = ends[ends["kind"] == kind]
            ring = {"ms": 5, "mfc": "none"} if kind == "ppo" else {"ms": 3}  # seen behind others
            ax.plot(some["steps to a goal"], some[["above", "below"]].min(axis=1), mark, **ring,
                    color=colour, label=label)  # fmt: skip
        ax.axhline(KEPT, color="0.6", lw=0.6, ls=":")
        ax.set(title=f"two goals: after {STEPS[part]:,} steps", xlabel="steps to a goal",
               ylabel="share that ends at the rarer", xlim=(0.8, 2.6),
               ylim=(-0.02, 0.52))  # fmt: skip
        ax.legend(frameon=False, fontsize=5.5, loc="center right")
    curves = pd.read_csv(RESULTS / "19_longer_curves.csv")
    for (kind, seed), some in curves.groupby(["kind", "seed"]):
        colour, line, _, label = STYLE[kind]
        rarer = some[["above", "below"]].min(axis=1) / some[["above", "below"]].sum(axis=1)
        axes[1, 0].plot(some["steps"] / 1e3, rarer, color=colour, ls=line, lw=0.8,
                        label=label if seed == 0 else None)  # fmt: skip
    axes[1, 0].axhline(KEPT, color="0.6", lw=0.6, ls=":")
    axes[1, 0].set(title="two goals: on the way", xlabel="steps / 1000",
                   ylabel="rarer goal's share of arrivals", ylim=(-0.02, 0.95))  # fmt: skip
    axes[1, 0].legend(frameon=False, fontsize=5.5, loc="upper left")
    cheetah(axes[1, 2])
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"19_policy.{kind}", dpi=300)


def cheetah(ax):
    """The ends of HalfCheetah by weighting."""
    ends = pd.read_csv(RESULTS / "19_cheetah.csv")
    names = [k for k in KINDS["cheetah"] if k in set(ends["kind"])][::-1]
    for y, kind in enumerate(names):
        some = ends[ends["kind"] == kind]
        # PPO is usually asked for its mean, FPO for draws
        for what, mark, dy in (("draws", "o", 0.12), ("sure", "x", -0.12)):
            ax.plot(some[what], np.full(len(some), y + dy), mark, ms=3, mew=0.8,
                    color=panels.ORANGE if kind == "ppo" else panels.BLUE,
                    label={"draws": "drawn", "sure": "without noise"}[what]
                    if y == 0 else None)  # fmt: skip
    ax.set_yticks(range(len(names)), ["PPO" if n == "ppo" else n for n in names], fontsize=6)
    ax.set(title="HalfCheetah", xlabel="return", ylim=(-0.6, len(names) + 0.3))
    ax.legend(frameon=False, fontsize=6, loc="upper left", ncols=2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="FPO beside PPO")
    parser.add_argument("--fit", action="store_true", help="train anew")
    if parser.parse_args().fit:
        run()
    figure()
