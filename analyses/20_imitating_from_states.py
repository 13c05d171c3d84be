# %% [markdown]
# # Can movements be imitated from states alone?
#
# Ten trajectories of a pendulum that is swung up, 200 states each and no action, are shown to
# three learners:
#
# - DIFO: a diffusion model of transitions is the discriminator, soft actor-critic the policy;
# - SMILING: the divergence of two scores of states is the cost, soft actor-critic the policy;
# - behavioural cloning from observation (BCO): 8,000 random steps teach which action leads from
#   one state to the next; the demonstrations get these actions, and a network copies them.
#
# Each has as many steps in the environment, and none is told what the environment pays. The expert
# is made by hand: it pumps energy until the pendulum can reach the top, and holds it there by a
# linear controller. Returns of 100 new episodes, normalised: 0 is random actions, 1 the expert.
# Plain cloning, which is told the expert's actions, says what BCO could reach at best.
#
#     python analyses/20_imitating_from_states.py [--fit]
#
# Without `--fit` the figure is made from `results/20_*`. With it all is trained, an hour on a
# busy core; runs that are done are not done again, and one that was killed goes on.

# %%
import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr

import neurodiff as nd
from neurodiff import panels

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "imitation"
KINDS = ("cloning", "BCO", "DIFO", "SMILING")
STEPS, SEEDS, SHOWN, EVALUATED = 8_000, 5, 10, 100
FEATURES = ["cos", "sin", "speed"]
UNIT = np.array([1.0, 1.0, 8.0])  # of the features


# %%
def expert(state):
    """Energy until the top is in reach, E = ½ω² + 15 cos θ to 15; there a linear controller."""
    cos, sin, speed = np.moveaxis(np.asarray(state), -1, 0)
    angle = np.arctan2(sin, cos)
    lacking = 15 - (0.5 * speed**2 + 15 * cos)
    pump = np.where(speed == 0, 2.0, np.sign(speed)) * np.sign(lacking) * np.minimum(
        2.0, np.abs(lacking))  # fmt: skip
    hold = -(10 * angle + 2 * speed)
    near = (np.abs(angle) < 0.35) & (np.abs(speed) < 3)
    return np.clip(np.where(near, hold, pump), -2, 2)[..., None]


def episodes(policy, count, seed):
    """States (episode, 201, 3) and returns of episodes that begin anywhere."""
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env("Pendulum-v1", count, seed=seed)
    state, total, found = env.reset(), np.zeros(count), []
    for _ in range(200):
        found.append(state)
        state, paid, _, info = env.step(policy(state).astype(np.float32))
        total += paid
    found.append(np.stack([i["terminal_observation"] for i in info]))
    return np.stack(found, 1), total


def shown(seed):
    """What the learners see: 10 trajectories of the expert, one sample every 50 ms."""
    states, _ = episodes(expert, SHOWN, 1000 + seed)
    return xr.Dataset(
        {"state": (("trial", "time", "feature"), states)},
        coords={"time": ("time", 0.05 * np.arange(201), {"units": "s"}), "feature": FEATURES},
    )


def mlp(inputs):
    layers = [torch.nn.Linear(inputs, 128), torch.nn.SiLU(), torch.nn.Linear(128, 128)]
    return torch.nn.Sequential(*layers, torch.nn.SiLU(), torch.nn.Linear(128, 1), torch.nn.Tanh())


def regress(x, action, seed, steps=5000):
    """Actions, in units of the bounds, by least squares.

    A net of half the width, taught 4000 steps at a third of the rate, copies the expert so badly
    that the pendulum spins.
    """
    torch.manual_seed(seed)
    net = mlp(x.shape[1])
    adam = torch.optim.Adam(net.parameters(), 3e-3, fused=True)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        some = torch.randint(len(x), (256,))
        loss = (net(x[some]) - action[some]).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net.requires_grad_(False)


def pairs_of(states):
    """State and step to the next, in numbers about one."""
    step = 10 * np.diff(states, axis=1) / UNIT
    found = np.concatenate([states[:, :-1] / UNIT, step], -1)
    return torch.tensor(found.reshape(-1, 6)).float()


def cloned(data, seed, told):
    """Cloning of the expert's actions, which are told, or else (BCO) guessed from its states.

    They are guessed by an inverse model of random steps. Returns a policy, and the guesses' mean
    error in N m.
    """
    x, true = pairs_of(data["state"].values), expert(data["state"].values[:, :-1]).reshape(-1, 1)
    action = torch.tensor(true / 2).float()
    if not told:
        rng, taken = np.random.default_rng(seed), []

        def draw(state):
            taken.append(rng.uniform(-2, 2, (len(state), 1)))
            return taken[-1]

        states, _ = episodes(draw, STEPS // 200, 2000 + seed)
        known = torch.tensor(np.stack(taken, 1).reshape(-1, 1) / 2).float()
        action = regress(pairs_of(states), known, seed)(x)
    policy = regress(x[:, :3], action, seed)
    error = float(np.abs(2 * action.numpy() - true).mean())
    return lambda s: 2 * policy(torch.tensor(s / UNIT).float()).numpy(), error


def follow():
    """A callback that notes the return of each episode along the way."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Follow(BaseCallback):
        def __init__(self):
            super().__init__()
            self.rows = []

        def _on_step(self):
            done = [i["episode"] for i in self.locals["infos"] if "episode" in i]
            self.rows += [{"steps": self.num_timesteps, "return": e["r"]} for e in done]
            return True

    return Follow()


def learner(kind, data, seed):
    """DIFO or SMILING; what is not said is its default."""
    from neurodiff.control.difo import DIFO
    from neurodiff.control.smiling import SMILING

    sac = {
        "seed": seed, "device": "cpu", "learning_rate": 1e-3, "batch_size": 128,
        "learning_starts": 500, "train_freq": 1, "gradient_steps": 1, "buffer_size": STEPS,
        "policy_kwargs": {"net_arch": [64, 64]},
    }  # fmt: skip
    return (DIFO if kind == "DIFO" else SMILING)("MlpPolicy", "Pendulum-v1", data, **sac)


def run():
    from neurodiff.control.kept import Keep

    torch.set_num_threads(1)
    RUNS.mkdir(parents=True, exist_ok=True)
    for seed in range(SEEDS):
        data = shown(seed)
        for kind in KINDS:
            stem = RUNS / f"{kind}-{seed}"
            if stem.with_suffix(".csv").exists():
                continue
            start, curve, error = time.perf_counter(), follow(), np.nan
            if kind in ("BCO", "cloning"):
                policy, error = cloned(data, seed, kind == "cloning")
            else:
                agent = learner(kind, data, seed)
                kept = Keep(stem.with_suffix(".safetensors"), every=2_000)  # ten whole episodes
                agent.learn(STEPS, callback=[curve, kept])
                own = {"kind": kind, "seed": seed}
                pd.DataFrame([own | row for row in curve.rows]).to_csv(
                    stem.with_suffix(".curve"), index=False, float_format="%.4g"
                )

                def policy(s, agent=agent):
                    return agent.predict(s, deterministic=True)[0]

            seconds = time.perf_counter() - start
            row = {"kind": kind, "seed": seed, "steps": STEPS, "seconds": seconds}
            row |= {"return": episodes(policy, EVALUATED, 10_000)[1].mean(), "error": error}
            part = stem.with_suffix(".part")
            pd.DataFrame([row]).to_csv(part, index=False, float_format="%.5g")
            part.rename(stem.with_suffix(".csv"))
            print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()},
                  flush=True)  # fmt: skip
        tables()


def tables():
    """What is kept: ends, normalised by expert and random actions in the same episodes; curves."""
    rng = np.random.default_rng(0)
    best = episodes(expert, EVALUATED, 10_000)[1].mean()
    worst = episodes(lambda s: rng.uniform(-2, 2, (len(s), 1)), EVALUATED, 10_000)[1].mean()
    ends = pd.concat(map(pd.read_csv, sorted(RUNS.glob("*.csv"))))
    ends["normalised"] = (ends["return"] - worst) / (best - worst)
    ends["expert"], ends["random"] = best, worst
    ends.to_csv(RESULTS / "20_ends.csv", index=False, float_format="%.4g")
    curves = pd.concat(map(pd.read_csv, sorted(RUNS.glob("*.curve"))))
    curves.to_csv(RESULTS / "20_curves.csv", index=False, float_format="%.4g")


# %%
def figure():
    """Returns along the way, and where each learner ends."""
    ends, curves = (pd.read_csv(RESULTS / f"20_{n}.csv") for n in ("ends", "curves"))
    best, worst = ends["expert"].iloc[0], ends["random"].iloc[0]
    colours = dict(zip(KINDS, ("grey", "black", panels.BLUE, panels.ORANGE), strict=True))
    plt.style.use(nd.plot.STYLE)
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(6.6, 2.6), layout="constrained", width_ratios=(1.5, 1)
    )
    for kind in ("DIFO", "SMILING"):
        for i, (_, one) in enumerate(curves[curves["kind"] == kind].groupby("seed")):
            mean = one["return"].rolling(5, min_periods=1).mean()
            left.plot(one["steps"] / 1000, (mean - worst) / (best - worst), lw=0.8,
                      color=colours[kind], label=kind if i == 0 else None)  # fmt: skip
    left.legend(frameon=False, fontsize=7, loc="lower right")
    left.set(xlabel="steps in the environment (thousands)",
             ylabel="return of 5 episodes, normalised")  # fmt: skip
    for i, kind in enumerate(KINDS):
        value = ends.loc[ends["kind"] == kind, "normalised"].sort_values().to_numpy()
        place = i + np.linspace(-0.15, 0.15, len(value))
        right.plot(place, value, "o", ms=3.5, color=colours[kind])
        right.plot([i - 0.3, i + 0.3], [np.median(value)] * 2, color=colours[kind], lw=1)
    right.set_xticks(range(len(KINDS)), KINDS, fontsize=7)
    right.set(ylabel="return at the end, normalised", xlim=(-0.5, len(KINDS) - 0.5))
    for ax in (left, right):
        ax.axhline(1, ls="--", lw=0.6, color="black")
        ax.axhline(0, ls=":", lw=0.6, color="black")
    right.text(-0.45, 1.02, "expert", fontsize=6, va="bottom")
    right.text(len(KINDS) - 0.55, 0.02, "random", fontsize=6, va="bottom", ha="right")
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"20_imitation.{kind}", dpi=300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="DIFO, SMILING and BCO on a pendulum")
    parser.add_argument("--fit", action="store_true", help="train anew")
    if parser.parse_args().fit:
        run()
    figure()
