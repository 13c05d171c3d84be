# %% [markdown]
# # An observer's weighting as that of a policy
#
# FPO's likelihood ratio holds a weighting w(λ), and any will go in. Here it is one that was fitted
# to people: the logistic stopping law of those who named photographs (CIFAR-10H, analysis 13, the
# averaging observer), its place and width the means over five folds, as the first 600 photographs
# gave them (`results/22_law.csv`). Pendulum, 100,000 steps, seeds 0 to 2, all else as in analysis
# 19, whose FPO as published (flow-eps) and PPO are read from `results/19_pendulum.csv`.
#
# - people: w(λ) = P(Λ > λ), as fitted. λ is that of pixels in [-1, 1], as that of a policy is of
#   actions in [-1, 1]; but 256 pixels of variance .21 show one thing together, and an action is one
#   number, whose variance shrinks as the best one is learned. That the place means the same in both
#   is an assumption;
# - people, at 0: the same width, moved to the median of the straight path's own levels, 0 nats;
# - ELBO (w = 1) and flow matching (e^{−λ/2}), for comparison.
#
# Said before any of it was run: on the straight path with times uniform the error of the velocity
# at t weighs w (1 − t)/t, which has no bound for w = 1 as t goes to 0, the clean end. People's w
# stops that near 5.8 nats, where t is .05: no weight is above 9.3. So people are expected above
# w = 1 and below flow-eps and flow matching, and, at 0 nats, not to be told from these two.
#
# Added when the first seed of people had been seen: a survival function begins at 1, and no height
# is fitted; but here height counts, since the logarithm of the ratio is proportional to w, and the
# clip is not. So there is "people, lower": their w times what makes the mean weight of the
# velocity's error that of flow-eps (1/3); and, added when it had been seen too, "flow-matching,
# lower" by the same rule. What is lost by height alone is not lost there.
#
#     python analyses/22_an_observer_as_a_policy.py [--fit]
#
# Without `--fit` the figure is made from `results/22_observer*.csv`. With it all is trained, some
# forty minutes on a core; runs that are done are not done again.

# %%
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from policies import as_high, of_velocity, returns, trained

import neurodiff as nd
from neurodiff import panels

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "observer"
STEPS, SEEDS, EPISODES = 100_000, 3, 100
KINDS = ("people", "flow-matching", "people, lower", "flow-matching, lower", "people, at 0", "elbo")
COLOURS = {"people": panels.RED, "people, at 0": panels.PINK, "people, lower": panels.SKY,
           "elbo": "black", "flow-matching": panels.GREEN, "flow-matching, lower": panels.GREY,
           "flow-eps": panels.BLUE, "ppo": panels.ORANGE}  # fmt: skip
LINES = {"people": "-", "people, lower": (0, (6, 1)), "people, at 0": "--", "elbo": ":",
         "flow-matching": "-.", "flow-matching, lower": (0, (1, 1)),
         "flow-eps": (0, (4, 1, 1, 1, 1, 1))}  # fmt: skip


# %%
def people():
    """Place and width, nats, of the law fitted to those who named photographs, as it was here."""
    path = RESULTS / "22_law.csv"
    if not path.exists():
        table = pd.read_csv(RESULTS / "13_parameters.csv")
        own = table[(table["hypothesis"] == "logistic") & (table["kind"] == "averaged")]
        own[["loc", "scale"]].mean().to_frame().T.to_csv(path, index=False, float_format="%.6g")
    return tuple(pd.read_csv(path).loc[0, ["loc", "scale"]])


def weighting(kind):
    """w by the name of a row."""
    name, _, change = kind.partition(", ")
    w = nd.weighting(name) if name != "people" else None
    if w is None:
        loc, scale = people()
        law = nd.laws.Logistic(0.0 if change == "at 0" else loc, scale)
        w = nd.SurvivalWeighting(law).requires_grad_(False)
    return as_high(w) if change == "lower" else w


def one(kind, seed):
    """A policy trained as in analysis 19, and the returns of new episodes and along the way."""
    from stable_baselines3.common.env_util import make_vec_env

    from neurodiff.control.fpo import FPO

    env, own = make_vec_env("Pendulum-v1", 4, seed=seed), {"kind": kind, "seed": seed}
    model = FPO("MlpPolicy", env, weighting=weighting(kind), n_steps=1024, gamma=0.9,
                learning_rate=1e-3, seed=seed, device="cpu")  # fmt: skip
    seconds, curve = trained(model, STEPS)
    row = own | {"steps": model.num_timesteps, "seconds": seconds}
    row |= returns(model, make_vec_env("Pendulum-v1", 10, seed=10_000 + seed), EPISODES)
    return row, [own | c for c in curve]


def run():
    torch.set_num_threads(1)
    RUNS.mkdir(parents=True, exist_ok=True)
    for seed in range(SEEDS):
        for kind in KINDS:
            path = RUNS / f"{kind.replace(', ', '-').replace(' ', '_')}-{seed}.csv"
            if path.exists():
                continue
            row, curve = one(kind, seed)
            pd.DataFrame(curve).to_csv(path.with_suffix(".curve"), index=False)
            aside = path.with_suffix(".aside")
            pd.DataFrame([row]).to_csv(aside, index=False)
            aside.rename(path)
            print({k: round(float(v), 1) if k in ("draws", "sure", "seconds") else v
                   for k, v in row.items()}, flush=True)  # fmt: skip
        for what, name in (("csv", "22_observer"), ("curve", "22_observer_curves")):
            found = pd.concat(map(pd.read_csv, sorted(RUNS.glob(f"*.{what}"))))
            found.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.5g")


# %%
def figure():
    """What each weighting makes of the velocity's error, returns on the way, and at the end."""
    ends, curves = (pd.read_csv(RESULTS / f"22_observer{n}.csv") for n in ("", "_curves"))
    for name, table in (("", ends), ("_curves", curves)):
        old = pd.read_csv(RESULTS / f"19_pendulum{name}.csv").replace({"kind": {"fpo": "flow-eps"}})
        if name:
            curves = pd.concat([table, old])
        else:
            ends = pd.concat([table, old])
    plt.style.use(nd.plot.STYLE)
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(7.2, 2.4), layout="constrained")
    logsnr = torch.linspace(-8.0, 10.0, 400)
    for kind, line in LINES.items():
        with torch.no_grad():
            weight = of_velocity(weighting(kind), logsnr)
        left.plot(logsnr, weight, color=COLOURS[kind], ls=line, label=kind)
        some = curves[curves["kind"] == kind].pivot_table("return", "steps", "seed")
        middle.plot(some.index / 1e3, some.median(axis=1), color=COLOURS[kind], ls=line)
        middle.fill_between(some.index / 1e3, some.min(axis=1), some.max(axis=1), lw=0,
                            color=COLOURS[kind], alpha=0.12)  # fmt: skip
    left.set(yscale="log", ylim=(1e-3, 1e5), xlabel=panels.LOGSNR,
             ylabel="weight of the velocity's error")  # fmt: skip
    left.legend(frameon=False, fontsize=5.5, loc="upper left")
    middle.set(xlabel="steps / 1000", ylabel="return (median, range)")
    names = [*LINES, "ppo"][::-1]
    for y, kind in enumerate(names):
        some = ends[ends["kind"] == kind]
        for what, mark, dy in (("draws", "o", 0.14), ("sure", "x", -0.14)):
            right.plot(some[what], np.full(len(some), y + dy), mark, ms=3, mew=0.8,
                       color=COLOURS[kind],
                       label={"draws": "drawn", "sure": "without noise"}[what]
                       if y == 0 else None)  # fmt: skip
    right.set_yticks(range(len(names)), ["PPO" if n == "ppo" else n for n in names], fontsize=6)
    right.set(xlabel="return at the end")
    right.legend(frameon=False, fontsize=5.5)
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"22_observer.{kind}", dpi=300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A weighting fitted to people, as FPO's")
    parser.add_argument("--fit", action="store_true", help="train anew")
    if parser.parse_args().fit:
        run()
    figure()
