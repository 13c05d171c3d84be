# %% [markdown]
# # Which weighting do people use when they name a photograph?
#
# CIFAR-10H: what some fifty people each called photographs of CIFAR-10's test set. The evidence is
# that of the denoiser of analysis 12 (16×16 greys, where people saw 32×32 in colour), so what is
# compared is ways to use the same evidence: named weightings and learned laws, averaged or stopped,
# beside w fitted to the true labels with people's sensitivity, one noise level alone, noise levels
# permuted, a blur in place of noise (the same denoiser, shown the blurred photograph), and the
# classifier with a temperature (elbo, its own place). Five folds over photographs;
# nats a judgement, the log of the mean over posterior draws; standard errors over photographs.
# Beside them stand predictions that know the true label, which the denoiser does not: these say how
# far all of it is from people.
#
#     python analyses/13_what_people_call_photographs.py [--tables] [--fit] [--photographs 600]
#
# Without options the figure is made from `results/13_*`, which are of all 10,000 photographs (the
# blur of the first 6,000). With `--tables` the evidence of the photographs and of their blurs is
# made, block by block (1,000 take 25 minutes of a core, their blurs 12 more; a run that was stopped
# goes on). No label is given up on the way: that
# keeps the answer of least error, but people's doubts are about how far behind a label is, and that
# is not known where it is looked at no more. With `--fit` all is fitted to those asked for (10,000
# take 50 minutes of a busy core); rows that a stopped run has left, in `runs/cifar10-grey16/fit-*`,
# are not fitted again, so remove that folder after a change of the models.

# %%
import argparse
import copy
import itertools
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.ndimage import gaussian_filter

import neurodiff as nd
from neurodiff import panels
from neurodiff.data.counts import judgements
from neurodiff.data.decode_images import grey16
from neurodiff.diffusion.flexible import PiecewiseLinear
from neurodiff.inference.fit import fitting
from neurodiff.inference.join import join
from neurodiff.inference.labels import attach
from neurodiff.inference.pool import workers
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.together import alone
from neurodiff.perception.classify import AveragedEvidence, StoppedEvidence
from neurodiff.perception.controls import permute
from neurodiff.perception.evidence import evidence
from neurodiff.perception.levels import FreeWeights, OneLevel, Placed
from neurodiff.perception.stored import read_table

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "cifar10-grey16"
FOLDS, DRAWS = 5, 100
BLURS = (0.7, 1.5)  # standard deviations, pixels of the 16×16
BLURRED = 6000  # photographs that are also blurred, at most: a third of the time, and nats behind
GRID = torch.linspace(-6.0, 9.0, 16, dtype=torch.float32)  # as in analysis 12


# %%
def blocks(count):
    """Where blocks of photographs begin and end, first those of analysis 12."""
    edges = [0, 600, *range(1000, 10_001, 1000)]
    if count not in edges[1:]:
        raise ValueError(f"got {count} photographs, wanted one of {edges[1:]}: whole blocks")
    return list(itertools.pairwise(edges[: edges.index(count) + 1]))


def file(first, width=None):
    """The table of a block of photographs, or of the same at a blur."""
    if first == 0:
        return RESULTS / "12_evidence.nc" if width is None else RUNS / f"blurred-{width:g}.nc"
    return RUNS / f"evidence-{first:05d}{'' if width is None else f'-blurred-{width:g}'}.nc"


def tables(count):
    """Make the evidence of so many photographs and of their blurs, where it is not there."""
    x = pictures("cifar10h")[0]
    net = nd.load("cifar10-grey16").to(memory_format=torch.channels_last)  # a tenth faster
    for first, last in blocks(count):
        for width in (None, *(BLURS if last <= BLURRED else ())):
            if first == 0 and width is None:
                continue  # of analysis 12
            some, grid = x[first:last], GRID if width is None else GRID[::2]
            if width is not None:
                some = gaussian_filter(some.numpy(), (0, 0, width, width), mode="nearest")
                some = torch.from_numpy(some)
            evidence(
                net if first else nd.load("cifar10-grey16"), some, range(10), grid,
                pairs=2 if width is None else 1, seed=first + (width is not None),
                batch=128 if first else 512, path=file(first, width), executor=POOL,
            )  # fmt: skip


def joined(count, width=None):
    """The evidence of so many photographs."""
    parts = [
        read_table(file(first, width)).assign_coords(stimulus=np.arange(first, last))
        for first, last in blocks(count)
    ]
    return xr.concat(parts, "stimulus") if len(parts) > 1 else parts[0]


def people(count):
    """Counts of what the judged photographs were called, their true class, and the evidence."""
    table = joined(count)
    data = nd.load("cifar10h").isel(stimulus=table["stimulus"].values)
    return table, data["choices"].values.astype(int), data["label"].values


def pictures(name):
    """Grey 16×16 in [-1, 1], and classes."""
    found = nd.load(name)
    x = torch.from_numpy(grey16(found["image"].values))[:, None]
    return 2 * (x.float() + 0.5) / 256 - 1, found["label"].values


def trials(counts, some):
    """A row for every judgement of some of the photographs."""
    own = xr.Dataset({"choices": (("stimulus", "category"), counts * some[:, None])})
    return judgements(own, counts.shape[1])


def laws():
    return {
        "logistic": nd.laws.Logistic(),
        "normal": nd.laws.Normal(),
        "gumbel-max": nd.laws.GumbelMax(),
        "gumbel-min": nd.laws.GumbelMin(),
        "law without a shape": PiecewiseLinear(torch.linspace(-6.5, 9.5, 9)),
    }


def hypotheses(table):
    """Name, kind and model of every row that uses the evidence."""
    logsnr = torch.tensor(table["logsnr"].values).double()
    for name in ("elbo", "ddpm", "edm", "edm-monotonic", "sigmoid", "flow-matching", "clark-jaini"):
        yield f"{name}, its own place", "averaged", _fixed(name, table)
        if name not in ("elbo", "flow-matching"):
            yield name, "averaged", AveragedEvidence(Placed(nd.weighting(name), free=True), table)
    for name, law in laws().items():
        w = nd.SurvivalWeighting(law)
        yield name, "averaged", AveragedEvidence(w, table)
        yield name, "stopped", StoppedEvidence(copy.deepcopy(w), table)
    yield "no stop", "stopped", StoppedEvidence(nd.weighting("elbo"), table)
    yield "free weights", "averaged", AveragedEvidence(FreeWeights(logsnr), table)
    yield "one noise level", "averaged", AveragedEvidence(OneLevel(1.0), table)
    shuffled = permute(attach(trials(np.ones((1, 1), int), np.ones(1)), table), seed=0)
    w = nd.SurvivalWeighting(nd.laws.Logistic())
    yield "logistic, levels permuted", "averaged", AveragedEvidence(w, shuffled)


def _fixed(name, table):
    model = AveragedEvidence(nd.weighting(name), table)
    model.weighting.shift.requires_grad_(False)
    return model


def draws(model, data, seed=0):
    """Posterior draws as parameters by name, a model in float64, and k̂."""
    bound = join(model, data)
    _, u, stats = alone(fitting(bound, nd.Laplace(draws=DRAWS, starts=3), seed))
    return bound.posterior.model, bound.posterior.parameters.constrain(u.flatten(0, 1)), stats


def predicted(model, values):
    """Probability of each label for every photograph, the mean over draws."""
    total = 0.0
    with torch.no_grad():
        for s in range(DRAWS):
            for name, value in values.items():
                model.get_parameter(name).data.copy_(value[s])
            lapse = model.observer.lapse
            total = total + lapse / model.observer.labels + (1 - lapse) * model.chosen()
    return (total / DRAWS).numpy()


def by_fold(count, predict):
    """What each fold's training photographs predict for those that are held out."""
    p, fold = np.empty((count, 10)), np.arange(count) % FOLDS
    notes = []
    for k in range(FOLDS):
        some, note = predict(fold != k)
        p[fold == k] = some[fold == k]
        notes.append(note)
    return p, notes


def fitted(model, counts, some, labels=None):
    """Predictions of a model fitted to people; with labels, its weighting is fitted to these."""
    if labels is not None:
        truth = np.eye(10, dtype=int)[labels]
        _, values, _ = draws(model, trials(truth, some))
        model = copy.deepcopy(model)
        for name, parameter in model.named_parameters():
            if name.startswith("weighting.") and name in values:
                parameter.data.copy_(values[name].mean(0))
                parameter.requires_grad_(False)
    own, values, stats = draws(model, trials(counts, some))
    note = {n.split(".")[-1]: v.mean(0).tolist() for n, v in values.items() if v.dim() == 1}
    return predicted(own, values), note | {"k_hat": float(stats["k_hat"])}


# %%
def known(counts, labels):
    """Predictions that know the true label, or the judgements of others."""
    truth = np.eye(10)[labels]

    def uniform(some):
        wrong = 1 - (counts * truth)[some].sum() / counts[some].sum()
        return (1 - wrong / 0.9) * truth + wrong / 9, {}

    def confusions(some):
        table = np.stack([counts[some & (labels == k)].sum(0) + 0.5 for k in range(10)])
        return (table / table.sum(1, keepdims=True))[labels], {}

    yield "true label and lapses", by_fold(len(counts), uniform)[0]
    yield "confusions of the true class", by_fold(len(counts), confusions)[0]


def halves(counts, seed=0):
    """Half of the judges predict the other half: both ways, smoothed by the mean of all."""
    rng = np.random.default_rng(seed)
    first = np.stack([_half(row, rng) for row in counts])
    return [
        (a + 0.2 * 0.1) / (a.sum(1, keepdims=True) + 0.2) for a in (first, counts - first)
    ], first


def _half(row, rng):
    each = rng.permutation(np.repeat(np.arange(10), row))[: row.sum() // 2]
    return np.bincount(each, minlength=10)


def scores(p, counts):
    """Nats a judgement: of all, of those not for the top answer, of the most ambiguous tenth."""
    log_p, n = np.log(np.clip(p, 1e-12, None)), counts.sum(1)
    share = counts / n[:, None]
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(1)
    unsure = entropy >= np.quantile(entropy, 0.9)
    top = np.arange(len(n)), counts.argmax(1)
    rest = counts.copy()
    rest[top] = 0
    given = log_p - np.log(np.clip(1 - p[top], 1e-12, None))[:, None]
    for what, c, value in (
        ("all", counts, log_p), ("not the top answer", rest, given),
        ("most ambiguous tenth", counts * unsure[:, None], log_p),
    ):  # fmt: skip
        each, weight = -(c * value).sum(1), c.sum(1)
        mean = each.sum() / weight.sum()
        se = np.sqrt(((each - mean * weight) ** 2).sum()) / weight.sum()
        yield what, mean, se, each, weight


def softest(models, counts, some):
    """Predictions at the blur that training photographs prefer."""
    each = [fitted(model, counts, some) for model in models]
    fit = [(counts * np.log(p))[some].sum() for p, _ in each]
    p, note = each[int(np.argmax(fit))]
    return p, note | {"blur": BLURS[int(np.argmax(fit))]}


@on_one_thread
def run(count):
    """All rows; what a row has left in the run's folder is not fitted again."""
    table, counts, labels = people(count)
    found = {(name, "label known"): p for name, p in known(counts, labels)}
    notes = []

    def row(name, kind, predict, first=count):
        path = RUNS / f"fit-{count:05d}" / f"{name}, {kind}.npz"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            p, each = by_fold(first, predict)
            np.savez(path.with_suffix(".part.npz"), p=p, notes=json.dumps(each))
            path.with_suffix(".part.npz").replace(path)
        kept = np.load(path)
        found[name, kind] = p = kept["p"]
        each = json.loads(str(kept["notes"]))
        notes.extend({"hypothesis": name, "kind": kind, "fold": k, **n} for k, n in enumerate(each))
        print(name, kind, round(next(scores(p, counts[:first]))[1], 4), flush=True)

    for name, kind, model in hypotheses(table):
        row(name, kind, lambda some, m=model: fitted(m, counts, some))
    few = min(count, BLURRED)
    soft = [AveragedEvidence(nd.weighting("elbo"), joined(few, w)) for w in BLURS]
    row("a blur, elbo", "averaged", lambda some: softest(soft, counts[:few], some), few)
    for name, kind, model in of_labels(table):
        row(name, kind, lambda some, m=model: fitted(m, counts, some, labels))
    save(found, notes, counts)


def of_labels(table):
    """Models whose weightings are fitted to the true labels."""
    logistic, logsnr = nd.laws.Logistic, torch.tensor(table["logsnr"].values).double()
    for name, kind, model in (
        ("logistic", "averaged", AveragedEvidence(nd.SurvivalWeighting(logistic()), table)),
        ("free weights", "averaged", AveragedEvidence(FreeWeights(logsnr), table)),
        ("logistic", "stopped", StoppedEvidence(nd.SurvivalWeighting(logistic()), table)),
    ):
        yield f"{name}, fitted to labels", kind, model


def save(found, notes, counts):
    """Scores of every row, and differences to the best law, paired over its photographs."""
    own = {
        k: next(scores(p, counts))[1] for k, p in found.items() if "law" in k[0] or k[0] in laws()
    }
    best = found[min(own, key=own.get)]
    rows = []
    for (name, kind), p in found.items():
        few = len(p)
        rivals = scores(best[:few], counts[:few])
        for (what, mean, se, each, weight), rival in zip(
            scores(p, counts[:few]), rivals, strict=True
        ):
            off = each - rival[3]
            gap = off.sum() / weight.sum()
            paired = np.sqrt(((off - gap * weight) ** 2).sum()) / weight.sum()
            rows.append({"hypothesis": name, "kind": kind, "of": what, "nats": mean, "se": se,
                         "above_best": gap, "paired_se": paired})  # fmt: skip
    (one, two), first = halves(counts)
    both = [list(scores(one, counts - first)), list(scores(two, first))]
    for i, what in enumerate(("all", "not the top answer", "most ambiguous tenth")):
        rows.append({"hypothesis": "the other half of the judges", "kind": "label known",
                     "of": what, "nats": (both[0][i][1] + both[1][i][1]) / 2,
                     "se": (both[0][i][2] + both[1][i][2]) / 2})  # fmt: skip
    pd.DataFrame(rows).to_csv(RESULTS / "13_people.csv", index=False, float_format="%.4f")
    pd.DataFrame(notes).to_csv(RESULTS / "13_parameters.csv", index=False, float_format="%.4g")


# %%
COLOURS = {"averaged": panels.BLUE, "stopped": panels.ORANGE, "label known": "black"}


def figure():
    """Nats a judgement of every row, of all judgements and of those not for the top answer."""
    table = pd.read_csv(RESULTS / "13_people.csv")
    plt.style.use(nd.plot.STYLE)
    order = table[table["of"] == "all"].sort_values("nats", ascending=False)
    keys = list(zip(order["hypothesis"], order["kind"], strict=True))
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 4.2), sharey=True, layout="constrained")
    for ax, what in zip(axes, ("all", "not the top answer"), strict=True):
        mine = table[table["of"] == what].set_index(["hypothesis", "kind"]).loc[keys]
        for i, ((_, kind), row) in enumerate(mine.iterrows()):
            ax.errorbar(row["nats"], i, xerr=row["se"], fmt="o", ms=3, lw=0.8, color=COLOURS[kind])
        ax.set(xlabel=f"nats a judgement, {what}")
    axes[0].set_xscale("log")
    axes[0].set_xticks([0.2, 0.3, 0.5, 1, 2], ["0.2", "0.3", "0.5", "1", "2"])
    axes[0].minorticks_off()
    axes[0].set_yticks(range(len(keys)), [name for name, _ in keys], fontsize=6)
    for kind, colour in COLOURS.items():
        axes[1].plot([], [], "o", ms=3, color=colour, label=kind)
    axes[1].legend(frameon=False)
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"13_people.{kind}", dpi=300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What people call photographs, and by which w")
    parser.add_argument("--tables", action="store_true", help="make tables of evidence")
    parser.add_argument("--fit", action="store_true", help="fit anew")
    parser.add_argument("--photographs", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    if asked.tables:
        with workers(asked.workers) as POOL:
            tables(asked.photographs)
    if asked.fit:
        run(asked.photographs)
    figure()
