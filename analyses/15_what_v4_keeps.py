# %% [markdown]
# # Which noise level do neurons of V4 keep?
#
# 223 units of three macaques saw photographs. A denoiser, trained on other photographs, says what
# can be known of each image at eight noise levels; the features are the local oriented energy of
# what it says, and each unit has its own shares p of the levels: log rate = b + c·colour +
# Σ p(λ_k) a·φ(x; λ_k). Rivals have the same parameters and as many levels: a Gaussian blur, bands
# of a steerable pyramid, and a linear denoiser (the Wiener filter of a 1/f² prior) in the place of
# the learned one; and the same denoiser with one free level, with shares that are permuted, another
# unit's, equal, the population's, or those of a named weighting whose place is free. What is held
# out are images (five folds); what is compared is the correlation of predicted and recorded mean
# counts, paired over units. Where a blur ties the result is a scale, not a noise level. Units that
# are simulated, from each family's own fit, say what these data could have shown.
#
#     python analyses/15_what_v4_keeps.py [--fit]
#
# Without `--fit` the figure is made from `results/15_*`. With it the denoiser is trained (seven
# minutes of an idle core), features are made and all is fitted (an hour and a half); what was there
# is gone on from.

# %%
import argparse
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr
from torch.nn.functional import adaptive_avg_pool2d

import neurodiff as nd
from neurodiff import panels
from neurodiff.diffusion.adaptive import AdaptiveSchedule
from neurodiff.diffusion.denoiser import NetworkDenoiser
from neurodiff.diffusion.loss import squared_error
from neurodiff.diffusion.networks import UNet
from neurodiff.diffusion.prior import PowerLaw
from neurodiff.diffusion.train import train
from neurodiff.inference.population import fit_rates
from neurodiff.perception.distance import distances
from neurodiff.perception.energy import band_energy, blurred_energy, denoised_energy

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "v4"
SESSIONS = ("210325", "190923", "210621", "201025")
SIDE, FOLDS, STEPS, IMAGES = 56, 5, 2500, 200
LOGSNR = torch.linspace(-6.0, 8.0, 8)
BLURS = torch.tensor([0.0, 0.5, 0.8, 1.3, 2.0, 3.0, 5.0, 8.0])  # pixels
BANDS = 0.35 / 2 ** (torch.arange(8) / 2)  # cycles a pixel
NAMED = ("flow-matching", "sigmoid", "deadline", "edm-monotonic")
PLACES = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)


# %%
def luma(image):
    """(stimulus, 1, height, width) in [-1, 1], by ITU-R BT.601, of photographs of 0 to 255."""
    x = 2 * (torch.from_numpy(np.asarray(image)).float() + 0.5) / 256 - 1
    return torch.tensordot(torch.tensor([0.299, 0.587, 0.114]), x, ([0], [1]))[:, None]


def mirrored(x, generator):
    """Half of them left for right."""
    flip = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], x.flip(-1), x)


def trained():
    """A U-Net of 0.6 million parameters without attention, on CIFAR-10's luma; any size will do."""
    x = torch.cat([luma(nd.load(f"cifar10/{k}")["image"].values) for k in (1, 2)])
    torch.manual_seed(0)
    net = UNet(1, 16, (1, 2, 4), 1, attention=())
    return train(
        NetworkDenoiser(net, "v"), x, weighting=nd.weighting("sigmoid", bias=4.0),
        schedule=AdaptiveSchedule(-9.0, 11.0), steps=STEPS, batch=32, folder=RUNS, every=250,
        prepare=mirrored,
    ).denoiser  # fmt: skip


class Session:
    """Images at half their size, the colour of their cells, and mean counts of every unit."""

    def __init__(self, name):
        data = nd.load(f"cowley2023-macaque-v4/{name}")
        self.name, image = name, data["image"].values
        self.x = adaptive_avg_pool2d(luma(image), SIDE)
        colour = adaptive_avg_pool2d(torch.from_numpy(image).double(), 4).flatten(1)
        grey = bool((image == image[:, :1]).all())
        self.colour = colour[:, :16] if grey else colour
        self.y = torch.from_numpy(data["mean_count"].values)
        self.counts = data["count"].values if "count" in data else None
        self.fold = torch.from_numpy(np.random.default_rng(0).permutation(len(self.y)) % FOLDS)

    def features(self, family, make):
        """Made once, and kept."""
        path = RUNS / f"{self.name}-{family}.npy"
        if not path.exists():
            found = make(self.x).numpy()
            part = path.with_suffix(".part.npy")
            np.save(part, found)
            part.rename(path)
        return torch.from_numpy(np.load(path)).double()

    def ceiling(self):
        """Of each unit the correlation of a perfect prediction with the mean of its repeats."""
        rng, halves = np.random.default_rng(0), []
        for _ in range(20):
            order = rng.permuted(np.broadcast_to(np.arange(10), self.counts.shape), axis=2)
            # of the repeats that were shown, half and half
            shuffled = np.take_along_axis(self.counts, order, 2)
            rank = np.cumsum(~np.isnan(shuffled), 2)
            first = rank <= rank[..., -1:] / 2
            two = [np.nanmean(np.where(h, shuffled, np.nan), 2) for h in (first, ~first)]
            halves.append(
                [np.corrcoef(a, b)[0, 1] for a, b in zip(*(t.T for t in two), strict=True)]
            )
        r = np.mean(halves, 0)
        return np.sqrt(2 * r / (1 + r))


def families(denoiser):
    """Name ↦ features of images, (stimulus, level, feature)."""
    return {
        "denoised": partial(denoised_energy, denoiser, logsnr=LOGSNR),
        "Gaussian blur": partial(blurred_energy, sd=BLURS),
        "steerable pyramid": partial(band_energy, centre=BANDS),
        "linear denoiser": partial(denoised_energy, PowerLaw((1, SIDE, SIDE), 2.5, 0.28),
                                   logsnr=LOGSNR),
    }  # fmt: skip


# %%
def standard(values, some):
    """Mean 0 and s.d. 1 over the training images."""
    return (values - values[some].mean(0)) / values[some].std(0).clamp_min(1e-9)


def held_out(session, features, response, how):
    """Predictions of images that were not seen, and each fold's fit."""
    predicted, fits = torch.zeros_like(response), []
    for k in range(FOLDS):
        some = session.fold != k
        φ, u = standard(features, some), standard(session.colour, some)
        fits.append(how(φ[some], u[some], response[some]))
        predicted[~some] = fits[-1].predict(φ[~some], u[~some])
    return predicted, fits


def correlation(predicted, response):
    a, b = (v - v.mean(0) for v in (predicted, response))
    return ((a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp_min(1e-12)).numpy()


def own(φ, u, y):
    return fit_rates(φ, u, y)


def one_level(φ, u, y):
    """Each unit at the level that explains its training images best (κ counts what was free)."""
    each = [fit_rates(φ, u, y, shares=torch.eye(φ.shape[1])[k : k + 1].double())
            for k in range(φ.shape[1])]  # fmt: skip
    best = torch.stack([f.precision for f in each]).argmax(0)
    return fit_rates(φ, u, y, shares=torch.eye(φ.shape[1], dtype=y.dtype)[best])


def given(shares):
    """Shares that are the same for all units, or each unit's."""
    return lambda φ, u, y: fit_rates(φ, u, y, shares=shares)


def refitted(change):
    """Each unit's shares, changed, and all else fitted anew."""
    return lambda φ, u, y: fit_rates(φ, u, y, shares=change(fit_rates(φ, u, y).shares))


def permuted(shares, seed=0):
    """Of each unit by a permutation of its own."""
    g = torch.Generator().manual_seed(seed)
    return shares.gather(1, torch.rand(shares.shape, generator=g).argsort(1))


def named(name, place):
    """Shares of the grid's cells under a weighting's stopping law; what is beyond is at its ends.

    Flow matching has no law without a lower end, and its place is that.
    """
    w, edges = nd.weighting(name), (LOGSNR[1:] + LOGSNR[:-1]).double() / 2
    top = w(torch.tensor(0.0 if name == "flow-matching" else -50.0, dtype=torch.float64))
    inner = (w(edges - place) / top).clamp_max(1.0)
    survival = torch.cat([inner.new_ones(1), inner, inner.new_zeros(1)])
    return (survival[:-1] - survival[1:])[None]


def best_place(name):
    """The place of a named weighting, one for all units, that explains training images best."""

    def fit(φ, u, y):
        each = [fit_rates(φ, u, y, shares=named(name, place)) for place in PLACES]
        fits = [f.precision.log().sum().item() for f in each]
        return each[int(np.argmax(fits))]

    return fit


def rows(session, made):
    """Family, shares and how they are had."""
    y = session.y
    none = torch.zeros(len(y), 1, 1, dtype=y.dtype)
    yield "no energy", "-", none, own
    yield "denoised", "own", made["denoised"], own
    for family in (
        "Gaussian blur", "steerable pyramid", "linear denoiser", "denoised, 8 draws"
    ):  # fmt: skip
        if family in made:
            yield family, "own", made[family], own
    yield "denoised", "one free level", made["denoised"], one_level
    yield "Gaussian blur", "one free level", made["Gaussian blur"], one_level
    yield "denoised", "the clean image (elbo)", made["denoised"][:, -1:], own
    yield "denoised", "equal", made["denoised"], given(torch.full((1, 8), 0.125, dtype=y.dtype))
    yield "denoised", "own, permuted", made["denoised"], refitted(permuted)
    yield "denoised", "another unit's", made["denoised"], refitted(lambda p: p.roll(1, 0))
    yield (
        "denoised",
        "the population's",
        made["denoised"],
        refitted(lambda p: p.log().mean(0, keepdim=True).softmax(1)),
    )
    for name in NAMED:
        yield "denoised", name, made["denoised"], best_place(name)


def kept(path, make):
    """A table that is made once."""
    if not path.exists():
        part = path.with_suffix(".part")
        make().to_csv(part, index=False, float_format="%.5g")
        part.rename(path)
    return pd.read_csv(path)


def scores(session, made):
    """Correlation of every row and unit, and the shares that the denoised row found."""
    found, shares = [], []
    top = session.ceiling() if session.counts is not None else np.full(session.y.shape[1], np.nan)
    for family, how_named, features, how in rows(session, made):
        path = RUNS / f"{session.name}-{family}-{how_named}.csv".replace(" ", "_")

        def make(family=family, how_named=how_named, features=features, how=how, path=path):
            predicted, fits = held_out(session, features, session.y, how)
            p = torch.stack([f.shares for f in fits]).mean(0)
            draws = [f.draws(100, torch.Generator().manual_seed(0)) for f in fits]
            if how_named == "own" and p.shape[1] > 1:
                np.save(path.with_suffix(".npy"), torch.cat(draws).mean(1).numpy())
            columns = {f"p{k}": p[:, k].numpy() for k in range(p.shape[1])}
            climb = max(f.climb for f in fits)
            print(session.name, family, how_named, f"climb {climb:.2g}", flush=True)
            return pd.DataFrame({"r": correlation(predicted, session.y)} | columns)

        table = kept(path, make)
        for unit, r in enumerate(table["r"]):
            found.append({"session": session.name, "unit": unit, "family": family,
                          "shares": how_named, "r": r, "ceiling": top[unit]})  # fmt: skip
        if how_named == "own" and family != "no energy":
            shares.append(table.drop(columns="r").assign(session=session.name, family=family,
                                                         unit=range(len(table))))  # fmt: skip
    return pd.DataFrame(found), pd.concat(shares)


# %%
def simulated(session, features, seed):
    """Mean counts of units like the fitted ones, with shares and weights drawn from the prior."""
    every = torch.ones(len(session.y), dtype=torch.bool)
    φ, u = standard(features, every), standard(session.colour, every)
    fit = fit_rates(φ, u, session.y)
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(fit.logits.shape, generator=g, dtype=torch.float64)
    truth = (fit.mean + logits).softmax(1)
    weights = torch.randn(fit.weights.shape, generator=g, dtype=torch.float64)
    fit = fit._replace(logits=truth.log(), weights=fit.spread[:, None] * weights)
    # a Poisson variable over κ has the variance μ/κ
    y = torch.poisson(fit.predict(φ, u) * fit.precision, generator=g) / fit.precision
    return y, truth


def recovery(session, made):
    """What simulated units of each family give when fitted as each of three."""
    paths = [RUNS / f"{session.name}-{what}.csv" for what in ("simulated", "centres")]
    if all(p.exists() for p in paths):
        return [pd.read_csv(p) for p in paths]
    found, shares = [], []
    for truth_of in ("denoised", "Gaussian blur"):
        y, truth = simulated(session, made[truth_of], seed=1)
        for family in ("denoised", "Gaussian blur", "steerable pyramid"):
            predicted, fits = held_out(session, made[family], y, own)
            for unit, r in enumerate(correlation(predicted, y)):
                found.append({"session": session.name, "truth": truth_of, "fitted": family,
                              "unit": unit, "r": r})  # fmt: skip
            if family == truth_of:
                shares.append(_centres(fits[0], truth, truth_of, session.name))
        print(session.name, "simulated", truth_of, flush=True)
    both = pd.DataFrame(found), pd.concat(shares)
    return [kept(path, lambda table=table: table) for path, table in zip(paths, both, strict=True)]


def _centres(fit, truth, family, session):
    """Centre of a unit's shares, in levels: what was true, and the posterior of one fold."""
    at = torch.arange(8.0, dtype=torch.float64)
    drawn = (fit.draws(1000, torch.Generator().manual_seed(2)) * at).sum(-1)
    low, high = drawn.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64), 0)
    return pd.DataFrame({
        "session": session, "family": family, "truth": (truth * at).sum(1), "mean": drawn.mean(0),
        "low": low, "high": high,
    })  # fmt: skip


def similarity(session, denoiser):
    """Do images that are far apart at a level drive the units apart? Rank correlations over pairs.

    The standard error is that of halves of the images drawn without return, the same halves for all
    rows: of n/2 out of n the variance over halves is the variance of the whole.
    """
    x, y = session.x[:IMAGES], session.y[:IMAGES].numpy()
    apart = pdist((y - y.mean(0)) / y.std(0))
    near = distances(denoiser, x, LOGSNR)["distance"].values
    soft = np.stack([
        squareform(pdist(gaussian_filter(x.numpy(), (0, 0, s, s)).reshape(len(x), -1)))
        for s in BLURS.tolist()
    ], -1)  # fmt: skip
    rng, found = np.random.default_rng(0), []
    again = [rng.permutation(len(x))[: len(x) // 2] for _ in range(100)]
    upper = np.triu_indices(len(x), 1)
    for family, each, at in (("denoised", near, LOGSNR), ("Gaussian blur", soft, BLURS)):
        for k, level in enumerate(at.tolist()):
            full, units = each[..., k], squareform(apart)

            def rank(some, full=full, units=units):
                pairs = np.ix_(some, some)
                one = np.triu_indices(len(some), 1)
                return spearmanr(full[pairs][one], units[pairs][one]).statistic

            found.append({
                "session": session.name, "family": family, "level": level,
                "rank": spearmanr(full[upper], apart).statistic,
                "se": np.std([rank(some) for some in again]),
            })  # fmt: skip
    return pd.DataFrame(found)


def errors(denoiser):
    """½ of the error a pixel at each level: of the denoiser, and of the linear one."""
    x = torch.cat([Session(s).x[:100] for s in SESSIONS])
    g, found = torch.Generator().manual_seed(3), []
    linear = PowerLaw((1, SIDE, SIDE), 2.5, 0.28)
    for level in LOGSNR:
        eps = torch.randn(x.shape, generator=g)
        at = level.expand(len(x))
        for name, p in (("U-Net", denoiser), ("linear", linear)):
            with torch.no_grad():
                each = squared_error(p, x, at, eps) / (2 * SIDE**2)
            found.append({"logsnr": level.item(), "denoiser": name, "nats": each.mean().item(),
                          "se": each.std().item() / len(x) ** 0.5})  # fmt: skip
    return pd.DataFrame(found)


def run():
    torch.set_num_threads(1)
    RUNS.mkdir(parents=True, exist_ok=True)
    denoiser = trained()
    level = kept(RUNS / "errors.csv", lambda: errors(denoiser))
    level.to_csv(RESULTS / "15_errors.csv", index=False, float_format="%.5g")
    units, shares, sim, centres, near = [], [], [], [], []
    for name in SESSIONS:
        session = Session(name)
        made = {f: session.features(f, make) for f, make in families(denoiser).items()}
        if name == SESSIONS[0]:  # is what a denoiser makes of two draws of noise enough?
            more = partial(denoised_energy, denoiser, logsnr=LOGSNR, pairs=4)
            made["denoised, 8 draws"] = session.features("denoised-8", more)
        near.append(
            kept(RUNS / f"{name}-similarity.csv", lambda s=session: similarity(s, denoiser))
        )
        for many, one in zip((units, shares), scores(session, made), strict=True):
            many.append(one)
        if name in ("210325", "190923"):
            for many, one in zip((sim, centres), recovery(session, made), strict=True):
                many.append(one)
    for what, many in (("units", units), ("shares", shares), ("simulated", sim),
                       ("centres", centres), ("distances", near)):  # fmt: skip
        pd.concat(many).to_csv(RESULTS / f"15_{what}.csv", index=False, float_format="%.4g")
    summary(pd.concat(units)).to_csv(RESULTS / "15_rows.csv", index=False, float_format="%.4f")


def summary(units):
    """Mean correlation of each row, and its difference to the denoiser's, paired over units."""
    found = []
    wide = units.pivot_table(index=["session", "unit"], columns=["family", "shares"], values="r")
    tops = units.groupby(["session", "unit"])["ceiling"].first().loc[wide.index]
    for session in ("all", *SESSIONS):
        some = wide if session == "all" else wide.loc[[session]]
        for key in wide.columns:
            off = (some[key] - some["denoised", "own"]).dropna()  # a row may be of one session
            if off.empty:
                continue
            r, top = some.loc[off.index, key], tops.loc[off.index]
            found.append({
                "session": session, "family": key[0], "shares": key[1], "units": len(off),
                "r": r.mean(), "se": r.std() / len(off) ** 0.5,
                "difference": off.mean(), "paired_se": off.std() / len(off) ** 0.5,
                "of_ceiling": (r / top).mean() if session == "210325" else np.nan,
            })  # fmt: skip
    return pd.DataFrame(found)


# %%
COLOURS = dict(zip(SESSIONS, (panels.BLUE, panels.RED, panels.GREEN, panels.ORANGE), strict=True))


def figure():
    """Which levels units keep, what it is worth, and what these data could have shown."""
    plt.style.use(nd.plot.STYLE)
    fig = plt.figure(figsize=(7.2, 5.2), layout="constrained")
    above, below = fig.subfigures(2, 1, height_ratios=(1.15, 1))
    axes = dict(zip("AB", above.subplots(1, 2, width_ratios=(1, 1.6)), strict=True))
    axes |= dict(zip("CDE", below.subplots(1, 3), strict=True))
    kept_levels(axes["A"])
    differences(axes["B"])
    power(axes["C"])
    centre(axes["D"])
    ranks(axes["E"])
    for name, ax in axes.items():
        ax.set_title(name.lower(), loc="left", fontweight="bold", fontsize=8)
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"15_v4.{kind}", dpi=300)


def kept_levels(ax):
    """Mean over units of the survival function of their shares."""
    table = pd.read_csv(RESULTS / "15_shares.csv")
    edges = np.append((LOGSNR[1:] + LOGSNR[:-1]).numpy() / 2, LOGSNR[-1] + 1)
    for session, some in table[table["family"] == "denoised"].groupby("session"):
        p = some[[f"p{k}" for k in range(8)]].to_numpy()
        survival = 1 - p.cumsum(1)
        mean, se = survival.mean(0), survival.std(0) / len(p) ** 0.5
        x = np.insert(edges, 0, LOGSNR[0] - 1)
        ax.stairs(np.append(1, mean)[:-1], x, color=COLOURS[str(session)], lw=1.2, baseline=None,
                  label=str(session))  # fmt: skip
        ax.fill_between(edges[:-1], (mean - 2 * se)[:-1], (mean + 2 * se)[:-1], step="post", lw=0,
                        alpha=0.2, color=COLOURS[str(session)])  # fmt: skip
    ax.set(xlabel="logsnr λ (nats a pixel)", ylabel="w(λ), mean of units", ylim=(0, 1.05))
    ax.legend(frameon=False, title="session", fontsize=6, title_fontsize=6)


def differences(ax):
    """Mean difference in correlation of every row to the denoiser's own shares."""
    table = pd.read_csv(RESULTS / "15_rows.csv", dtype={"session": str})
    whole = table[(table["session"] == "all") & (table["family"] != "no energy")]
    whole = whole[whole["units"] == whole["units"].max()]
    order = whole.sort_values("difference")
    for i, (_, row) in enumerate(order.iterrows()):
        ax.errorbar(row["difference"], i, xerr=2 * row["paired_se"], fmt="o", ms=3.5, color="black")
        each = table[(table["family"] == row["family"]) & (table["shares"] == row["shares"])]
        for session in SESSIONS:
            one = each[each["session"] == session]
            ax.plot(one["difference"], i, "|", ms=6, color=COLOURS[session])
    names = [f"{f}: {s}" for f, s in zip(order["family"], order["shares"], strict=True)]
    ax.set_yticks(range(len(order)), names, fontsize=6)
    ax.axvline(0, lw=0.6, color="grey")
    ax.set_xlabel("held-out correlation less that of denoised: own (2 s.e.)")


def power(ax):
    """The difference that simulated units show, beside the recorded ones."""
    table = pd.read_csv(RESULTS / "15_simulated.csv")
    wide = table.pivot_table(index=["truth", "session", "unit"], columns="fitted", values="r")
    off = wide["Gaussian blur"] - wide["denoised"]
    real = pd.read_csv(RESULTS / "15_units.csv")
    real = real[real["shares"] == "own"].pivot_table(
        index=["session", "unit"], columns="family", values="r"
    )
    groups = {
        "truth: denoised": off.xs("denoised"), "truth: blur": off.xs("Gaussian blur"),
        "recorded": real["Gaussian blur"] - real["denoised"],
    }  # fmt: skip
    for i, value in enumerate(groups.values()):
        ax.errorbar(i, value.mean(), 2 * value.std() / len(value) ** 0.5, fmt="o", ms=4,
                    color="black")  # fmt: skip
    ax.axhline(0, lw=0.6, color="grey")
    ax.set_xticks(range(3), [name.replace(": ", ":\n") for name in groups], fontsize=6)
    ax.set(ylabel="correlation: blur − denoised", xlim=(-0.5, 2.5))


def centre(ax):
    """Centres of simulated shares: true, and with 90 % of the posterior."""
    table = pd.read_csv(RESULTS / "15_centres.csv")
    some = table[table["family"] == "denoised"]
    x, y = (LOGSNR[0].item() + 2 * some[c] for c in ("truth", "mean"))
    low, high = (LOGSNR[0].item() + 2 * some[c] for c in ("low", "high"))
    # a skewed posterior may have its mean beyond its 95 % quantile
    bars = np.stack([(y - low).clip(lower=0), (high - y).clip(lower=0)])
    ax.errorbar(x, y, bars, fmt="o", ms=2, lw=0.4, color=panels.BLUE)
    ax.plot([-2, 8], [-2, 8], lw=0.6, color="grey")
    ax.set(xlabel="true centre of shares (nats)", ylabel="found, 90 % interval")


def ranks(ax):
    """How images' distances at each level go with the units' distances."""
    table = pd.read_csv(RESULTS / "15_distances.csv", dtype={"session": str})
    for session, some in table.groupby("session"):
        for family, style in (("denoised", "-"), ("Gaussian blur", ":")):
            one = some[some["family"] == family]
            # a blur of 0 is the clean image, and so is the highest level: blurs by their order
            x = one["level"] if family == "denoised" else LOGSNR.flip(0)
            ax.plot(x, one["rank"], style, color=COLOURS[str(session)], lw=1)
    for style, name in (("-", "at λ"), (":", "blurred")):
        ax.plot([], [], style, color="black", label=name)
    ax.set(xlabel="logsnr λ (nats a pixel)", ylabel="rank correlation with units")
    above = ax.secondary_xaxis("top")
    above.set_xticks(LOGSNR.flip(0)[::2].tolist(), [f"{s:g}" for s in BLURS[::2].tolist()])
    above.set_xlabel("s.d. of the blur (pixels)")
    ax.legend(frameon=False, fontsize=6, loc="center", bbox_to_anchor=(0.45, 0.33))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Which noise level units of V4 keep")
    parser.add_argument("--fit", action="store_true", help="fit anew")
    if parser.parse_args().fit:
        run()
    figure()
