# %% [markdown]
# # Are choices and reaction times short behaviours?
#
# Two monkeys judge the direction of moving dots (Roitman & Shadlen 2002). Each trial is read as a
# behaviour: in every step of 50 ms wait, or look right, or look left. A policy says with which
# probability, given the time and the signed strength of the motion, and the trial's likelihood is
# the product over its steps (`neurodiff.perception.behaviour`). Three questions:
#
# 1. Is that product the density of first passage times the width of a step? For the bounded model
#    at its mode for all trials, at four widths: the product against the probability of the step,
#    and against the density at the trial's own time.
# 2. How good a policy is cloned from states (time, strength) and actions, on trials held out? Five
#    folds balanced over strengths, and once more leaving out one size of strength after the other;
#    nats a trial, beside the collapsing bound (nine parameters) at its mode for the same trials
#    and with its density integrated over the same steps:
#    - counts: of each action in each state, with pseudo-counts of the policy that knows the time
#      and not the strength, as many as do best on folds within the training trials;
#    - softmax: logits linear in cubic splines of time times 1, c, √|c| and sign(c) √|c|, with the
#      default ridge of scikit-learn (C = 1);
#    - a clock: the hazard of stopping knows the time only, and the answer the strength only.
# 3. What does the policy say: the hazard of stopping over time, by strength.
#
#     python analyses/22_choices_as_short_behaviours.py [--fit]
#
# Without `--fit` the figure is made from `results/22_behaviour_*.csv`; fits take a minute.

# %%
import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import SplineTransformer
from torch.func import functional_call

import neurodiff as nd
from neurodiff import panels
from neurodiff.data.choice_rt import choice_rt
from neurodiff.inference.fit import modes_of
from neurodiff.inference.join import join
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.posterior import on_one_thread
from neurodiff.perception.behaviour import WAIT, log_prob, policy, unroll
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.bounds import Weibull
from neurodiff.perception.drifts import Power

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
LOW, HIGH, HORIZON, SOLVED = 0.1, 1.65, 1.7, 85  # as in analysis 03: seconds, and steps solved
WIDTH, STEPS, FOLDS = 0.05, 34, 5  # of a step, seconds
PSEUDO = (1, 2, 4, 8, 16, 32, 64)
NODES = 5  # of the quadrature over a step
ROWS = {"counts": (panels.BLUE, "o"), "softmax": (panels.GREEN, "s"), "a clock": (panels.RED, "D")}


# %%
def trials(subject):
    """One monkey's trials in the window of times."""
    data = choice_rt(nd.load("roitman2002-monkey-rdm"))
    rt = data["rt"].values
    return data.isel(trial=(data["subject"].values == subject) & (rt > LOW) & (rt < HIGH))


def passage(model, values, strengths, width=WIDTH, steps=STEPS):
    """Probabilities of each answer within each step, (strength, step, 2), by the bounded model."""
    at, weight = np.polynomial.legendre.leggauss(NODES)
    time = width * (np.arange(steps)[:, None] + 0.5 * (at + 1))
    shape = (len(strengths), steps, NODES, 2)
    signed = np.broadcast_to(time[..., None] * np.array([1.0, -1.0]), shape)
    strength = np.broadcast_to(strengths[:, None, None, None], shape)
    log = density(model, values, strength.ravel(), signed.ravel()).reshape(shape)
    return (log.exp() * torch.tensor(0.5 * width * weight)[:, None]).sum(-2)


def density(model, values, strength, signed):
    """Log density of signed times, per second."""
    given = {"strength": torch.tensor(strength), "choice_known": torch.ones(len(strength))}
    found = functional_call(model, values, (given,))
    return found.log_prob(torch.tensor(signed)).detach()


@on_one_thread
def bounded(data, fold):
    """The model, and its values at the modes of all trials and of all folds but each."""
    model = Bounded(Power(12.0), Weibull(), HORIZON, SOLVED, start=0.01)
    bound = join(model, data.assign_coords(fold=("trial", fold)), unit="fold")
    full = modes_of(bound, 2, 0)
    count = fold.max() + 1
    others = bound.posterior.with_mask(1 - torch.eye(count, dtype=torch.float64))
    inverse = (full.factor @ full.factor.mT).expand(count, -1, -1)
    modes = find_modes(others, full.u.expand(count, -1), inverse)
    assert bool(full.converged.all())
    assert bool(modes.converged.all())
    return model.double(), [bound.pooled.constrain(u) for u in (full.u[0], *modes.u)]


# %%
def counted(state, step, action, states):
    """How often each action was taken in each state, (state, step, 3)."""
    found = np.zeros((states, STEPS, 3))
    np.add.at(found, (state, step, action), 1)
    stops = found[..., :WAIT].sum(-1)
    # a trial waits in every step before that of its answer
    found[..., WAIT] = np.flip(np.flip(stops, 1).cumsum(1), 1) - stops
    return found


def normal(counts):
    return torch.tensor(counts / counts.sum(-1, keepdims=True)).log()


def cloned(count, pseudo):
    """Shares of actions, drawn to those at the same time under any strength."""
    timed = count.sum(0) + 0.5
    return normal(count + pseudo * timed / timed.sum(-1, keepdims=True))


def clock(count):
    """When to stop by the time, and how to answer by the strength."""
    timed = count.sum(0) + 0.5
    stop = timed[:, :WAIT].sum(-1) / timed.sum(-1)
    answer = count[..., :WAIT].sum(1) + 0.5
    answer = answer / answer.sum(-1, keepdims=True)
    stops = stop[None, :, None] * answer[:, None]
    waits = np.broadcast_to((1 - stop)[None, :, None], (*stops.shape[:2], 1))
    return torch.tensor(np.concatenate([stops, waits], -1)).log()


def softmax(count, strengths):
    """Multinomial regression on splines of time times functions of strength."""
    time = SplineTransformer(10, knots="uniform", include_bias=True).fit_transform(
        np.arange(STEPS)[:, None].astype(float)
    )
    root = np.sqrt(np.abs(strengths))
    of_c = np.stack([np.ones_like(root), strengths, root, np.sign(strengths) * root], -1)
    x = (time[None, :, :, None] * of_c[:, None, None, :]).reshape(len(strengths) * STEPS, -1)
    weight = count.reshape(-1, 3)
    rows, action = np.nonzero(weight)
    fitted = LogisticRegression(max_iter=2000).fit(x[rows], action, weight[rows, action])
    return torch.tensor(fitted.predict_log_proba(x).reshape(*count.shape))


def each_of(log_policy, behaviour, some):
    """Log likelihood of some trials."""
    state, step, action = (torch.tensor(v[some]) for v in behaviour)
    return log_prob(log_policy[state], step, action).numpy()


def chosen(behaviour, train, states):
    """How many pseudo-counts do best on folds within the training trials."""
    inner = StratifiedKFold(4, shuffle=True, random_state=1)
    total = dict.fromkeys(PSEUDO, 0.0)
    for a, b in inner.split(train, behaviour[0][train]):
        count = counted(*(v[train[a]] for v in behaviour), states)
        for pseudo in PSEUDO:
            total[pseudo] += each_of(cloned(count, pseudo), behaviour, train[b]).sum()
    return max(total, key=total.__getitem__)


def held_out(behaviour, strengths, model, modes, fold):
    """Log probability of each trial's step and answer, by those who did not see it."""
    found = {name: np.empty(len(fold)) for name in ("collapsing bound", *ROWS)}
    for k in range(fold.max() + 1):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        count = counted(*(v[train] for v in behaviour), len(strengths))
        pseudo = chosen(behaviour, train, len(strengths))
        policies = {
            "collapsing bound": policy(passage(model, modes[1 + k], strengths)),
            "counts": cloned(count, pseudo),
            "softmax": softmax(count, strengths),
            "a clock": clock(count),
        }
        for name, one in policies.items():
            found[name][test] = each_of(one, behaviour, test)
        print(f"fold {k}: {pseudo} pseudo-counts", flush=True)
    return found


# %%
def by_width(data, strengths, state, model, values):
    """How far the product over steps is from the step's probability, and from the density."""
    signed = torch.tensor(data["signed_rt"].values)
    exact = density(model, values, data["strength"].values, signed.numpy())
    for width in (0.1, 0.05, 0.025, 0.0125):
        steps = math.ceil(HORIZON / width - 1e-6)
        inside = passage(model, values, strengths, width, steps)
        step, action = unroll(signed, width, steps)
        product = log_prob(policy(inside)[state], step, action)
        apart = product - exact - math.log(width)
        yield {
            "width": width,
            "from_the_step": (product - inside[state, step, action].log()).abs().max().item(),
            "from_the_density_mean": apart.mean().item(),
            "from_the_density_sd": apart.std().item(),
        }  # fmt: skip


def hazards(count, strengths, model, values):
    """Of stopping, by size of strength and step: counts, and what the bounded model says."""
    log = policy(passage(model, values, strengths))
    for size in np.unique(np.abs(strengths)):
        own = np.abs(strengths) == size
        both = count[own].sum(0)
        said = 1 - log[torch.tensor(own)].exp()[..., WAIT].mean(0).numpy()
        yield pd.DataFrame({
            "strength": size, "time": WIDTH * (np.arange(STEPS) + 0.5), "reached": both.sum(-1),
            "stopped": both[:, :WAIT].sum(-1), "bounded": said,
        })  # fmt: skip


def run():
    scores, widths, rates = [], [], []
    for subject in ("b", "n"):
        data = trials(subject)
        strengths, state = np.unique(data["strength"].values, return_inverse=True)
        step, action = unroll(torch.tensor(data["signed_rt"].values), WIDTH, STEPS)
        behaviour = (state, step.numpy(), action.numpy())
        fold, own = np.empty(len(state), int), {"subject": subject}
        split = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(state, state)
        for k, (_, test) in enumerate(split):
            fold[test] = k
        sizes = np.unique(np.abs(data["strength"].values), return_inverse=True)[1]
        for left_out, group in (("trials", fold), ("a strength", sizes)):
            model, modes = bounded(data, group)
            found = held_out(behaviour, strengths, model, modes, group)
            for name, each in found.items():
                apart = each - found["collapsing bound"]
                se = apart.std(ddof=1) / len(apart) ** 0.5
                row = own | {"left_out": left_out, "trials": len(each), "policy": name}
                scores.append(row | {"nats": each.mean(), "diff": apart.mean(), "se": se})
                print(scores[-1], flush=True)
        widths += [own | row for row in by_width(data, strengths, state, model, modes[0])]
        count = counted(*behaviour, len(strengths))
        rates += [t.assign(**own) for t in hazards(count, strengths, model, modes[0])]
    for name, table in (("scores", pd.DataFrame(scores)), ("widths", pd.DataFrame(widths)),
                        ("hazards", pd.concat(rates))):  # fmt: skip
        path = RESULTS / f"22_behaviour_{name}.csv"
        table.to_csv(path, index=False, float_format="%.5g")


# %%
def figure():
    """Hazards of two monkeys, and what cloned policies lose or gain."""
    rates, scores = (pd.read_csv(RESULTS / f"22_behaviour_{n}.csv") for n in ("hazards", "scores"))
    plt.style.use(nd.plot.STYLE)
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.5), layout="constrained")
    shown = (0.0, 0.064, 0.128, 0.256, 0.512)
    shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(shown)))
    for ax, subject in zip(axes, ("b", "n"), strict=False):
        for size, colour, mark in zip(shown, shades, "os^Dv", strict=True):
            own = rates[(rates["subject"] == subject) & np.isclose(rates["strength"], size)]
            own = own[own["reached"] >= 20]
            p = own["stopped"] / own["reached"]
            se = np.sqrt(p * (1 - p) / own["reached"])
            ax.errorbar(own["time"], p / WIDTH, yerr=se / WIDTH, fmt=mark, ms=2, lw=0.5,
                        color=colour, label=f"{100 * size:g} %")  # fmt: skip
            ax.plot(own["time"], own["bounded"] / WIDTH, color=colour, lw=0.9)
        ax.set(title=f"monkey {subject}", xlabel="time (s)", ylim=(0, None))
    axes[0].set_ylabel("hazard of stopping (1/s)")
    axes[0].legend(frameon=False, fontsize=5.5, title="strength", title_fontsize=5.5)
    names = [(left_out, subject) for left_out in ("trials", "a strength") for subject in "bn"]
    table = scores.set_index(["left_out", "subject"])
    for i, (name, (colour, mark)) in enumerate(ROWS.items()):
        own = table[table["policy"] == name].loc[names]
        x = np.arange(len(own)) + 0.15 * (i - 1)
        axes[2].errorbar(x, own["diff"], yerr=2 * own["se"], fmt=mark, ms=3, color=colour,
                         label=name)  # fmt: skip
    axes[2].axhline(0, color="0.6", lw=0.8, zorder=0)
    axes[2].set_yscale("symlog", linthresh=0.05, linscale=0.8)
    axes[2].set_yticks([-1, -0.1, 0], ["-1", "-0.1", "0"])
    axes[2].minorticks_off()
    axes[2].set_xticks(range(4), [subject for _, subject in names])
    axes[2].set(title="held out", xlim=(-0.5, 3.5), xlabel="monkey; trials, then a strength",
                ylabel="less the collapsing bound\n(nat / trial, ± 2 SE)")  # fmt: skip
    axes[2].legend(frameon=False, fontsize=6)
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"22_behaviour.{kind}", dpi=300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Choices and times read as short behaviours")
    parser.add_argument("--fit", action="store_true", help="fit again (a minute)")
    if parser.parse_args().fit:
        run()
    figure()
