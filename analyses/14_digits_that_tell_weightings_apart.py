# %% [markdown]
# # Which digits tell weightings apart?
#
# scikit-learn's digits in noise, and the exact denoisers of their classes. Observers are simulated
# under ten hypotheses (a weighting, averaged or stopped) and all are fitted to each: the matrix
# says which can be told apart by 2,000 answers. Then stimuli are chosen, to tell three of them
# apart: by the expected gain about the hypothesis, once or anew after every answer; by the cheap
# rule of the largest disagreement; and by chance. Sensitivity and lapse of the observers are not
# known to who chooses.
#
#     python analyses/14_digits_that_tell_weightings_apart.py [--fit]
#
# Without `--fit` the figure is made from `results/14_*`. With it, five minutes on one core.

# %%
import argparse
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr

import neurodiff as nd
from neurodiff import digits, panels
from neurodiff.inference.design import gain, predictions, settled, trials_needed
from neurodiff.perception.stored import read_table

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
DIGITS, SETS, TRIALS, BEST = 100, 10, 100, 25
PAIR = ("edm-monotonic, averaged", "edm-monotonic, stopped", "sigmoid, averaged")


# %%
def run():
    """The matrix, what clean and noisy digits tell, and the curves of three ways to choose."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        digits.demonstrate(out, count=DIGITS, sets=SETS, seed=0)
        for name in ("confusion", "contraction"):
            shutil.copy(out / f"{name}.csv", RESULTS / f"14_{name}.csv")
        table = read_table(out / "evidence.nc")
    label = digits.pictures(DIGITS)[3].numpy()
    models = digits.observers(table, label)
    count = np.arange(len(label)) * 1.0
    pool = xr.Dataset({"shown": ("trial", count), "choice": ("trial", 0 * count)})
    p = _draws({name: models[name] for name in PAIR}, pool)
    found, rng = gain(p), np.random.default_rng(0)
    ways = {
        "gain": rng.choice(np.argsort(-found.hypothesis)[:BEST], TRIALS),
        "disagreement": rng.choice(np.argsort(-found.disagreement)[:BEST], TRIALS),
        "chance": rng.integers(len(label), size=TRIALS),
    }
    curves = {way: settled(p, chosen, sets=SETS * 10, seed=1) for way, chosen in ways.items()}
    curves["gain, in turn"] = settled(p, None, trials=TRIALS, sets=SETS * 3, seed=1)
    pd.DataFrame({"answers": np.arange(1, TRIALS + 1), **curves}).to_csv(
        RESULTS / "14_choosing.csv", index=False, float_format="%.4f"
    )
    rows = []
    for way, chosen in ways.items():
        needed = trials_needed(p, chosen)
        rows.append({
            "way": way, "gain": found.hypothesis[chosen].mean(),
            "bound": found.bound[chosen].mean(),
            "answers_to_20_to_1": needed[np.isfinite(needed)].max(),
            "probability_of_truth": curves[way][-1],
        })  # fmt: skip
    rows.append({"way": "gain, in turn", "probability_of_truth": curves["gain, in turn"][-1]})
    pd.DataFrame(rows).to_csv(RESULTS / "14_ways.csv", index=False, float_format="%.4g")


def _draws(models, pool):
    """Predictions of observers whose sensitivity and lapse vary: half an octave either way."""
    each = []
    for factor in np.exp(np.linspace(-0.5, 0.5, 9)):
        for lapse in (0.005, 0.02, 0.06):
            for model in models.values():
                model.observer.lapse.data.fill_(lapse)
                model.observer.sensitivity.data.mul_(factor)
            each.append(predictions(models, pool, fixed=True, seed=0))
            for model in models.values():
                model.observer.sensitivity.data.div_(factor)
    return np.concatenate(each, 1)


# %%
def figure():
    """The matrix beside the curves."""
    share = pd.read_csv(RESULTS / "14_confusion.csv", index_col=0)
    told = pd.read_csv(RESULTS / "14_contraction.csv")
    curves = pd.read_csv(RESULTS / "14_choosing.csv")
    plt.style.use(nd.plot.STYLE)
    fig = digits.draw(share, told)
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"14_digits.{kind}", dpi=300)
    fig, ax = plt.subplots(figsize=(3.5, 2.4), layout="constrained")
    for way, colour in (
        ("gain, in turn", panels.GREEN), ("gain", panels.BLUE), ("disagreement", panels.ORANGE),
        ("chance", "grey"),
    ):  # fmt: skip
        ax.plot(curves["answers"], curves[way], color=colour, label=way)
    ax.axhline(1 / len(PAIR), color="grey", lw=0.6, ls=":")
    ax.set(xlabel="answers", ylabel="probability of the true hypothesis", ylim=(0.3, 1.01))
    panels.legend_above(ax, 2)
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"14_choosing.{kind}", dpi=300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Which digits tell weightings apart")
    parser.add_argument("--fit", action="store_true", help="simulate and fit anew")
    if parser.parse_args().fit:
        run()
    figure()
