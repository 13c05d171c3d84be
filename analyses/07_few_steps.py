# %% [markdown]
# # Levels from the data beat EDM's, hardly cosine's; guidance and early stops cost diversity
#
# The exact denoiser of 899 handwritten digits (scikit-learn's, 8 x 8 pixels, every other one; the
# rest is held out). 200 samples follow the flow to a log SNR of 2 nats, where a percept is not
# quite certain, and to 12; errors are against 600 steps of second order from the same noise. A few
# samples that end at another digit make nearly all of an error: one of 200 is worth about 0.03.
#
# At equal evaluations DDIM on levels from the data errs by 1.2 to 1.3 times less than on EDM's when
# stopped at 2 nats, and as on the cosine's and flow's, within 3 %. DPM-Solver++ gains over EDM's
# too (1.1 to 5 times, and more at 48), over the cosine's and flow's at 24 evaluations only. Going
# on to the end there are no gains over the cosine that last. Heun needs EDM's levels. Parallel
# samplers take 13 to 17 iterations for 100 steps of DDIM. Guidance raises precision from .90 to .95
# at scale 5, and takes recall from .84 to .60 and the Vendi score from 183 to 120. Precision takes
# blurred percepts for digits: stopped at -2 nats it is 1.
#
# On a mixture of two Gaussians DDIM errs alike on levels from the data, the cosine's and the flow's
# (within 12 %), and 1.8 to 2.4 times more on EDM's. DPM-Solver++ to 2 nats gains up to 1.4 times
# over the cosine's; to the end the flow's levels are better than those from the data (by 1.1 to 1.7
# times), and EDM's worse by 1.9 to 2.9.
#
#     python analyses/07_few_steps.py [--fit]
#
# Without `--fit` the figure is made from `results/07_*.csv`.

# %%
import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits

import neurodiff as nd
from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.diversity import precision_recall, vendi
from neurodiff.diffusion.guidance import ClassifierFree
from neurodiff.diffusion.newton import newton, quasi_newton
from neurodiff.diffusion.parallel import picard
from neurodiff.diffusion.prior import Empirical, GaussianMixture
from neurodiff.diffusion.sample import (
    adaptive,
    ancestral,
    ddim,
    dpm_solver,
    heun,
    levels,
    sample,
    taylor,
)
from neurodiff.diffusion.spacing import equidistributed, straightness
from neurodiff.panels import BLUE, GREEN, ORANGE, PINK, RED

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
GRIDS = {"cosine": BLUE, "flow": GREEN, "edm-sample": ORANGE, "from the data": RED}
SAMPLERS = {
    "DDIM": (ddim, 1),
    "Heun": (heun, 2),
    "DPM-Solver++(2M)": (dpm_solver, 2),
    "Taylor, every other step": (taylor(2, 2), 2),
    "ancestral": (ancestral, 1),
}
STOPS = (2.0, 12.0)  # nats: a percept that still is uncertain, and the end
EVALUATIONS = (6, 12, 24, 48)


class Digits(Denoiser):
    """The exact denoiser of one half of the digits, of a class where there is a condition."""

    def __init__(self, x, label):
        super().__init__()
        self.all = Empirical(x)
        self.each = torch.nn.ModuleList([Empirical(x[label == c]) for c in range(10)])
        self.evaluations = 0

    def forward(self, z, logsnr, cond=None):
        self.evaluations += 1
        if cond is None:
            return self.all(z, logsnr)
        logsnr, x = logsnr.expand(len(z)), torch.empty_like(z)
        for c in cond.unique():
            mine = cond == c
            x[mine] = self.each[int(c)](z[mine], logsnr[mine])
        return x


def halves():
    """Digits in [-1, 1]: what is remembered, and what is held out, each with its labels."""
    digits = load_digits()
    x = torch.as_tensor(digits.data / 8 - 1, dtype=torch.float64)
    label = torch.as_tensor(digits.target)
    return (x[::2], label[::2]), (x[1::2], label[1::2])


def noise(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 64, generator=generator, dtype=torch.float64)


# %%
def grid(name, steps, stop, order, denoiser, pilots):
    """Levels that all begin at -13.3 nats; EDM's begin later, but no x is to be seen before."""
    pilot = levels(nd.schedule("cosine"), 200, stop)
    if name == "from the data":
        return equidistributed(denoiser, pilots, pilot, steps, order=order)
    found = levels(nd.schedule(name), steps, stop)
    found[0] = pilot[0]
    return found


def error_of(digits, z, logsnr, exact, sampler):
    """Of the percept, root mean square a pixel; and how often it is another digit of the set."""
    digits.evaluations = 0
    generator = torch.Generator().manual_seed(2)
    end = sampler(digits, z, logsnr, None, generator)
    evaluations, x = digits.evaluations, digits(end, logsnr[-1])
    pathwise = sampler is not ancestral  # the noise of which leads elsewhere
    nearest = [torch.cdist(at, digits.all.data).min(1) for at in (x, exact)]
    return {
        "evaluations": evaluations,
        "error": (x - exact).square().mean().sqrt().item() if pathwise else np.nan,
        "other": (nearest[0].indices != nearest[1].indices).double().mean().item()
        if pathwise
        else np.nan,
        "from_nearest": (nearest[0].values.square().mean() / 64).sqrt().item(),
    }


def few_steps(digits):
    """Every sampler on every grid, against the flow itself: 600 steps of second order."""
    z, rows = noise(200, 0), []
    for stop in STOPS:
        fine = levels(nd.schedule("flow"), 600, stop)
        exact = digits(dpm_solver(digits, z, fine), fine[-1])
        for name, (sampler, order) in SAMPLERS.items():
            for wanted in EVALUATIONS:
                steps = {"Heun": wanted // 2, "Taylor, every other step": 2 * wanted - 4}
                for spread in GRIDS:
                    count = steps.get(name, wanted)
                    logsnr = grid(spread, count, stop, order, digits, noise(50, 1))
                    row = {"stop": stop, "sampler": name, "grid": spread}
                    rows.append(row | error_of(digits, z, logsnr, exact, sampler))
        for tolerance in (0.1, 0.03, 0.01, 0.003):
            ends = levels(nd.schedule("cosine"), 1, stop)
            row = {"stop": stop, "sampler": "adaptive", "grid": "its own"}
            rows.append(row | error_of(digits, z, ends, exact, adaptive(tolerance)))
    return pd.DataFrame(rows)


def on_a_mixture():
    """The same for two Gaussians on a line, where no sample is at the edge between two atoms."""
    mean, variance = torch.tensor([[-1.0], [0.8]]), torch.tensor([[0.04], [0.09]])
    prior = GaussianMixture(torch.tensor([0.3, 0.7]), mean, variance).double()
    z, pilots, rows = noise(2000, 7)[:, :1], noise(500, 8)[:, :1], []
    for stop in STOPS:
        exact = dpm_solver(prior, z, levels(nd.schedule("flow"), 1600, stop))
        for name in ("DDIM", "DPM-Solver++(2M)", "Heun"):
            sampler, order = SAMPLERS[name]
            for wanted in EVALUATIONS:
                count = wanted // 2 if name == "Heun" else wanted
                for spread in GRIDS:
                    logsnr = grid(spread, count, stop, order, prior, pilots)
                    error = (sampler(prior, z, logsnr) - exact).square().mean().sqrt().item()
                    row = {"stop": stop, "sampler": name, "grid": spread}
                    rows.append(row | {"evaluations": wanted, "error": error})
    return pd.DataFrame(rows)


# %%
def in_parallel(digits):
    """Iterations to 1e-3 and to 1e-6 of samples that one step after the other gives."""
    methods = {
        "Picard": picard,
        "Picard, window of 10": lambda *a, **k: picard(*a, window=10, **k),
        "quasi-Newton, 1 probe": lambda *a, **k: quasi_newton(*a, probes=1, **k),
        "damped, 1 probe": lambda *a, **k: quasi_newton(*a, probes=1, damping=0.01, **k),
        "Newton": newton,
    }
    z, rows = noise(4, 3), []
    for steps in (12, 25, 50, 100):
        logsnr = levels(nd.schedule("cosine"), steps, 12.0)
        for sampler in (ddim, ancestral):
            one_by_one = sampler(digits, z, logsnr, None, torch.Generator().manual_seed(4))
            for name, method in methods.items():
                for tolerance in (1e-3, 1e-6):
                    if name == "Newton" and (steps > 50 or tolerance > 1e-6):
                        continue  # 64 backward passes an iteration
                    seeded = torch.Generator().manual_seed(4)
                    options = {"sampler": sampler, "tolerance": tolerance}
                    found = method(digits, z, logsnr, None, seeded, **options)
                    row = {"sampler": sampler.__name__, "method": name, "steps": steps}
                    row |= {"tolerance": tolerance, "iterations": found.iterations}
                    row |= {"evaluations": found.evaluations}
                    row["difference"] = (found.z - one_by_one).abs().max().item()
                    rows.append(row)
    return pd.DataFrame(rows)


# %%
def described(x, asked, held_out, label):
    """Diversity of samples, their place in held-out digits, and how many are of the class asked."""
    between = torch.cdist(held_out, held_out)
    length = between.kthvalue(2).values.median()  # of a digit to the next
    same = (-0.5 * (torch.cdist(x, x) / length).square()).exp()
    found = precision_recall(held_out, x)
    right = (label[torch.cdist(x, held_out).argmin(1)] == asked).double().mean().item()
    return {"vendi": vendi(same), **found._asdict(), "right": right}


def guided(digits, own_label, held_out, label):
    """Conditional samples pushed by guidance, and percepts where sampling stops early."""
    asked, rows = torch.arange(10).repeat_interleave(40), []
    for scale, stop in [(s, 12.0) for s in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)] + [
        (1.0, s) for s in (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0)
    ]:
        drawn = sample(
            ClassifierFree(digits, scale),
            (400, 64),
            schedule=nd.schedule("cosine"),
            steps=20,
            stop=stop,
            cond=asked,
            generator=torch.Generator().manual_seed(5),
            dtype=torch.float64,
        )
        rows.append({"scale": scale, "stop": stop} | described(drawn.x, asked, held_out, label))
    # what precision and recall could be: other digits, as many of each class
    first = torch.cat([torch.nonzero(own_label == c)[:40, 0] for c in range(10)])
    reference = described(digits.all.data[first], asked, held_out, label)
    return pd.DataFrame([*rows, {"scale": np.nan, "stop": np.inf} | reference])


def straight(digits):
    """How straight two paths are for digits, a pixel; and the variance of a pixel."""
    names = ("flow", "cosine")
    found = [straightness(digits, noise(50, 6), nd.schedule(name)).mean() / 64 for name in names]
    rows = [{"path": n, "straightness": v.item()} for n, v in zip(names, found, strict=True)]
    return pd.DataFrame(rows).assign(variance=digits.all.data.var(0).mean().item())


def run():
    """All of the above, to `results/07_*.csv`."""
    torch.set_num_threads(1)
    (x, own_label), (held_out, label) = halves()
    digits = Digits(x, own_label)
    parts = {
        "steps": lambda: few_steps(digits),
        "mixture": on_a_mixture,
        "parallel": lambda: in_parallel(digits),
        "guidance": lambda: guided(digits, own_label, held_out, label),
        "straightness": lambda: straight(digits),
    }
    for name, part in parts.items():
        began = time.perf_counter()
        part().to_csv(RESULTS / f"07_{name}.csv", index=False, float_format="%.4g")
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


# %%
def figure():
    """Grids, samplers, iterations; what guidance and stopping do to diversity."""
    steps, parallel, guidance = (
        pd.read_csv(RESULTS / f"07_{name}.csv") for name in ("steps", "parallel", "guidance")
    )
    with plt.style.context(nd.plot.STYLE):
        drawn, axes = plt.subplots(2, 3, figsize=(7.2, 4.6), layout="constrained")
        percept, end = (steps[steps["stop"] == stop] for stop in STOPS)
        grids(axes[0, 0], percept, "error")
        axes[0, 0].set(yscale="log", title=f"stopped at {STOPS[0]:g} nats")
        axes[0, 0].set_ylabel("error of x̂, a pixel (root mean square)")
        grids(axes[0, 1], end, "other")
        axes[0, 1].set(title=f"to the end, {STOPS[1]:g} nats", ylim=(-0.02, None))
        axes[0, 1].set_ylabel("share that ends at another digit")
        samplers(axes[0, 2], percept)
        iterations(axes[1, 0], parallel)
        ends = guidance["stop"] == 12.0
        diversity(axes[1, 1], guidance[ends], guidance.iloc[-1], "scale")
        axes[1, 1].set_xlabel("guidance scale")
        stops = guidance[guidance["scale"] == 1.0].sort_values("stop")
        diversity(axes[1, 2], stops, guidance.iloc[-1], "stop")
        axes[1, 2].set_xlabel("stops at log SNR (nat)")
        for kind in ("png", "pdf"):
            drawn.savefig(FIGURES / f"07_few_steps.{kind}", dpi=300)
        plt.close(drawn)


def grids(ax, table, column):
    dashes = {"DDIM": ("-", "o"), "DPM-Solver++(2M)": ((0, (3, 1.5)), "s")}
    for sampler, (dash, marker) in dashes.items():
        for name, colour in GRIDS.items():
            mine = table[(table["sampler"] == sampler) & (table["grid"] == name)]
            look = {"ls": dash, "marker": marker, "color": colour}
            ax.plot(mine["evaluations"], mine[column], ms=2.5, lw=0.9, **look)
    for name, colour in GRIDS.items():
        ax.plot([], [], color=colour, label=name)
    for sampler, (dash, marker) in dashes.items():
        ax.plot([], [], color="black", ls=dash, marker=marker, ms=2.5, label=sampler)
    if column == "other":
        ax.legend(fontsize=5)
    evaluations(ax)


def evaluations(ax):
    ax.set_xlabel("evaluations of the denoiser")
    ax.set_xscale("log")
    ax.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
    ax.minorticks_off()


def samplers(ax, table):
    looks = zip([*SAMPLERS, "adaptive"], [BLUE, GREEN, RED, ORANGE, None, PINK], "o^sv D",
                strict=True)  # fmt: skip
    for name, colour, marker in looks:
        mine = table[(table["sampler"] == name) & table["grid"].isin(("cosine", "its own"))]
        if colour:
            ax.plot(mine["evaluations"], mine["error"], color=colour, marker=marker, ms=2.5,
                    lw=0.9, label=name)  # fmt: skip
    ax.set(yscale="log", title=f"stopped at {STOPS[0]:g} nats, cosine levels")
    evaluations(ax)
    ax.legend(fontsize=5)


def iterations(ax, table):
    looks = {"Picard": (BLUE, "o"), "quasi-Newton, 1 probe": (ORANGE, "^"), "Newton": (RED, "s")}
    table = table[table["tolerance"] == 1e-6]
    for sampler, dash in (("ddim", "-"), ("ancestral", (0, (3, 1.5)))):
        for name, (colour, marker) in looks.items():
            mine = table[(table["method"] == name) & (table["sampler"] == sampler)]
            ax.plot(mine["steps"], mine["iterations"], color=colour, marker=marker, ms=2.5, lw=0.9,
                    ls=dash, label=name if sampler == "ddim" else None)  # fmt: skip
    ax.plot([], [], color="black", ls=(0, (3, 1.5)), label="of ancestral")
    ax.plot([0, 100], [0, 100], color="grey", lw=0.7, ls=":")
    ax.text(36, 39, "one by one", fontsize=5.5, color="grey", ha="right", va="bottom")
    ax.set(title="in parallel, to 1e-6", xlabel="steps", ylabel="iterations", ylim=(0, 45))
    ax.set(xlim=(0, 104))
    ax.legend(fontsize=5)


def diversity(ax, table, reference, x):
    """Shares, and the Vendi score as one of that of digits; dotted what digits have."""
    looks = {"precision": (BLUE, "o"), "recall": (ORANGE, "s"), "right": (GREEN, "^")}
    for name, (colour, marker) in looks.items():
        ax.plot(table[x], table[name], color=colour, marker=marker, ms=2.5, lw=0.9,
                label={"right": "of the class asked"}.get(name, name))  # fmt: skip
        ax.axhline(reference[name], color=colour, lw=0.6, ls=":")
    ax.plot(table[x], table["vendi"] / reference["vendi"], color=RED, marker="D", ms=2.5, lw=0.9,
            label=f"Vendi / {reference['vendi']:.1f}")  # fmt: skip
    ax.set(ylim=(-0.03, 1.08), ylabel="share (dotted: of digits themselves)")
    ax.set_title({"scale": "guided", "stop": "stopped early, unguided"}[x])
    if x == "scale":
        ax.legend(fontsize=5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="How few steps will do, and what they sample?")
    parser.add_argument(
        "--fit", action="store_true", help="compute again (two minutes of one core)"
    )
    if parser.parse_args().fit:
        run()
    figure()
