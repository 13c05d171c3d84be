# %% [markdown]
# # From one image to another: bridges that see y learn sooner
#
# scikit-learn's 8 x 8 digits, 360 held out. From a blurred and noisy digit to the clean one, and
# from the left half to the right: plain noise, a Gaussian source around a linear regression, and
# bridges, Brownian (I2SB) and straight (data-dependent coupling), whose networks see y or are blind
# to it. All networks are equal but for the rows they see, and trained alike.
#
# Bridges that see y have the best energy scores at equal training; plain noise comes near where it
# is trained three times as long, when the straight bridge has begun to remember. A diagonal
# Gaussian source saves evaluations; one with its whole covariance is worse than plain noise. One
# whose mean and scale a network makes of y says better how likely degraded digits are (held out,
# 16.3 ± .7 nats for 3.4 ± 1.1 of the diagonal one; on halves, some of which it all but excludes,
# -3.5 ± 3.5 for -9.1 ± 1.1) and needs no more than two evaluations. But it ends worse than the
# diagonal one and than plain noise: what it says is nearly certain counts as much in the loss as
# what is open. A mixture of ten Gaussians, of which y picks one, is the best of the sources on
# degraded digits and no better than the whole covariance on halves, where the pick is too sure of
# itself. Blind bridges lose what y says of the other half; of degraded digits the Brownian one
# loses little. The weighting counts as much: with w = 1 in place of I2SB's, a sigmoid, the Brownian
# bridge falls from among the best to the last on degraded digits, and to plain noise on halves.
#
#     python analyses/10_image_to_image.py [--fit]
#
# Without `--fit` the figure is made from `results/10_image_to_image.csv`.

# %%
import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from torch import nn
from torch.distributions import Normal

import neurodiff as nd
from neurodiff.diffusion.denoiser import Denoiser, NetworkDenoiser
from neurodiff.diffusion.learned_source import LearnedSource
from neurodiff.diffusion.maximum import most_likely
from neurodiff.diffusion.mixture_source import MixtureSource
from neurodiff.diffusion.networks import MLP, Beside
from neurodiff.diffusion.prior import Gaussian
from neurodiff.diffusion.sample import ancestral, ddim, dpm_solver, levels
from neurodiff.diffusion.source import Bridge, circle, colour, whiten
from neurodiff.diffusion.train import train
from neurodiff.panels import BLUE, GREEN, ORANGE, PINK, RED, SKY

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "paper" / "figures"
RUNS = HERE.parent / "runs" / "image-to-image"
STEPS, DRAWS, EVALUATIONS = 1500, 8, (2, 4, 8, 16, 32)
SPREAD = 0.5  # of the bridges; chosen beforehand, as was all else
FLOW = nd.weighting("flow-matching")
ROUNDING = (2 / 17) ** 2 / 12  # variance of rounding to 17 grey levels, the floor of a source


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %%
def pairs(problem):
    """(x, y) for training and held out: 1437 and 360 digits, in [-1, 1]."""
    images = load_digits().images / 8 - 1
    order = torch.randperm(len(images), generator=seeded(0))
    x = torch.tensor(images, dtype=torch.float32)
    if problem == "other half":  # y is mirrored, so that its seam lies where x has it
        x, y = x[:, :, 4:], x[:, :, :4].flip(-1)
        return (x[order[:1437]], y[order[:1437]]), (x[order[1437:]], y[order[1437:]])
    blurred = torch.tensor(gaussian_filter(images, (0, 1, 1)), dtype=torch.float32)
    again = order[:1437].repeat(4)  # each with four draws of noise
    y = [
        blurred[i] + 0.4 * torch.randn(len(i), 8, 8, generator=seeded(1 + k))
        for k, i in enumerate((again, order[1437:]))
    ]
    return (x[again], y[0]), (x[order[1437:]], y[1])


class Regression:
    """The Gaussian source: x around what is linear in y, as N(m(y), 4 Σ), or a diagonal of it."""

    def __init__(self, x, y, diagonal=False):
        flat = y.flatten(1)
        self.offset, centred = flat.mean(0), flat - flat.mean(0)
        gram = centred.T @ centred + 1e-3 * len(y) * torch.eye(flat.shape[1])
        self.middle = x.mean(0)
        self.slope = torch.linalg.solve(gram, centred.T @ (x - self.middle).flatten(1))
        rest = self.residual(x, y)
        covariance = torch.cov(rest.flatten(1).T.double()).float()
        covariance = 0.5 * (covariance + covariance.T) + ROUNDING / 4 * torch.eye(len(covariance))
        covariance = covariance.diag().reshape(x[0].shape) if diagonal else covariance
        self.source = Gaussian(torch.zeros_like(x[0]), covariance)

    def mean(self, y):
        found = (y.flatten(1) - self.offset) @ self.slope
        return (self.middle + found.reshape(len(y), *self.middle.shape)).clamp(-1, 1)

    def residual(self, x, y):
        """Halved, to stay in [-1, 1]."""
        return 0.5 * (x - self.mean(y))

    def image(self, z, y):
        return self.mean(y) + 2 * colour(z, self.source)


def learned(x, y):
    """The Gaussian source whose mean and scale a network makes of y, of maximum likelihood."""
    torch.manual_seed(0)
    network = MLP(x.shape[1:], 64, 2, outputs=2, dropout=0.2)
    source = LearnedSource(network, ROUNDING)
    return most_likely(source, LearnedSource.log_prob, x, y, steps=500)


class Mixed(Denoiser):
    """A denoiser that sees y and the component that y suggests, drawn once for each place."""

    def __init__(self, x, y):
        super().__init__()
        both = torch.cat([x, y], 1)
        found = GaussianMixture(10, covariance_type="diag", reg_covar=ROUNDING, random_state=0)
        found.fit(both.flatten(1).numpy())
        weights, means, variances = (
            torch.tensor(v, dtype=torch.float32)
            for v in (found.weights_, found.means_, found.covariances_)
        )
        means, scales = (v.reshape(-1, *both.shape[1:]) for v in (means, variances.sqrt()))
        rows = x.shape[1]
        self.both = MixtureSource(weights, means, scales)
        self.x = MixtureSource(weights, means[:, :rows], scales[:, :rows])
        self.y = MixtureSource(weights, means[:, rows:], scales[:, rows:])
        self.inner = None

    def component(self, y):
        return torch.multinomial(self.y.posterior(y), 1, generator=seeded(6))[:, 0]

    @staticmethod
    def told(y, k):
        """y, and beneath it the component as rows of zeros and a one."""
        rows = math.ceil(10 / y.shape[2])
        flags = nn.functional.one_hot(k, rows * y.shape[2]).reshape(len(k), rows, y.shape[2])
        return torch.cat([y, flags.to(y)], 1)

    def forward(self, z, logsnr, cond=None):
        return self.inner(z, logsnr, self.told(cond, self.component(cond)))

    def image(self, z, y):
        return self.x.colour(z, self.component(y))


# %%
def methods(x, y, problem):
    """Each way from y to x: a trained denoiser, where its levels lie, how its z is an image, and
    the samplers that are right for it."""
    shape = x.shape[1:]
    cosine, flows = nd.schedule("cosine"), (ddim, dpm_solver)

    def network(seen, seed=0):
        torch.manual_seed(seed)
        net = MLP((2 * shape[0], shape[1]) if seen else shape, 128, 3, dropout=0.1)
        return NetworkDenoiser(Beside(net) if seen else net, "v")

    def learn(name, start, schedule, weighting=FLOW, data=x, **kwargs):
        done = train(
            start, data, cond=y, weighting=weighting, schedule=schedule,
            folder=RUNS / problem / name, **{"steps": STEPS, **kwargs},
        )  # fmt: skip
        return done.denoiser

    def as_it_is(z, y):
        return z

    def bridge(pinned, seen, seed=0):
        return Bridge(network(seen, seed), SPREAD, pinned=pinned, seen=seen)

    yield "plain", learn("plain", network(True), cosine), cosine, as_it_is, (*flows, ancestral)
    # the levels of the straight bridge, without the bridge
    near = nd.schedule("flow-shifted", ratio=SPREAD)
    yield "plain, its levels", learn("near", network(True), near), near, as_it_is, flows
    for name in ("Gaussian", "diagonal Gaussian"):
        linear = Regression(x, y, diagonal=name != "Gaussian")
        white = learn(
            name, network(True), cosine, data=linear.residual(x, y),
            prepare=lambda r, _, source=linear.source: whiten(r, source),
        )  # fmt: skip
        yield name, white, cosine, linear.image, (ddim, circle)
    source = learned(x, y)
    white = source.whiten(x, y)
    most = white.abs().max()
    done = learn("learned Gaussian", network(True), cosine, data=white / most,
                 prepare=lambda r, _: most * r)  # fmt: skip
    yield "learned Gaussian", done, cosine, source.colour, (ddim, circle)
    mixed = Mixed(x, y)
    k = torch.multinomial(mixed.both.posterior(torch.cat([x, y], 1)), 1, generator=seeded(7))[:, 0]
    white, beside = mixed.x.whiten(x, k), mixed.told(y, k)
    most = white.abs().max()
    torch.manual_seed(0)
    net = MLP((shape[0] + beside.shape[1], shape[1]), 128, 3, dropout=0.1)
    mixed.inner = train(
        NetworkDenoiser(Beside(net), "v"), white / most, cond=beside, weighting=FLOW,
        schedule=cosine, steps=STEPS, folder=RUNS / problem / "mixture",
        prepare=lambda r, _: most * r,
    ).denoiser  # fmt: skip
    yield "mixture", mixed, cosine, mixed.image, (ddim, circle)
    # evenly over its own t, a straight bridge is taught |x̂ - x|² / t², as a flow is, and a Brownian
    # one |x̂ - x|² / t, as I2SB: the sigmoid weighting, S(−λ − 2 log κ)
    i2sb = nd.weighting("sigmoid", bias=-2 * math.log(SPREAD))
    for seen, how in ((True, "sees y"), (False, "blind")):
        start, name = bridge(True, seen), f"Brownian, {how}"
        done = learn(name, start, start.schedule(), i2sb)
        yield name, done, start.schedule(), as_it_is, (ancestral, ddim) if seen else (ancestral,)
        start, name = bridge(False, seen), f"straight, {how}"
        yield name, learn(name, start, start.schedule()), start.schedule(), as_it_is, flows
    start = bridge(True, True)
    done = learn("Brownian, w = 1", start, start.schedule(), nd.weighting("elbo"))
    yield "Brownian, sees y, w = 1", done, start.schedule(), as_it_is, (ancestral, ddim)
    # the two that matter most, trained again; and, where that is cheap, longer
    again = {"again": {"seed": 1}} | ({"3x": {"steps": 3 * STEPS}} if x.shape[2] == 4 else {})
    for name, how in again.items():
        seed = how.get("seed", 0)
        done = learn(f"plain, {name}", network(True, seed), cosine, **how)
        yield f"plain, {name}", done, cosine, as_it_is, flows
        start = bridge(False, True, seed)
        done = learn(f"straight, {name}", start, start.schedule(), **how)
        yield f"straight, sees y, {name}", done, start.schedule(), as_it_is, flows


def scores(drawn, x):
    """Energy score, and squared error of the mean without what few draws add: one each a digit."""
    flat, truth = drawn.flatten(2), x.flatten(1)
    k = len(flat)
    apart = torch.stack([(flat - one).norm(dim=-1).sum(0) for one in flat]).sum(0) / (k * (k - 1))
    energy = (flat - truth).norm(dim=-1).mean(0) - 0.5 * apart
    error = (flat.mean(0) - truth).square() - flat.var(0) / k
    return {"energy": energy.double(), "error": error.mean(-1).double()}


@torch.no_grad()
def images(denoiser, schedule, sampler, count, y, image):
    """From y to x in that many evaluations, all of the same noise."""
    g = seeded(5)
    z = torch.randn(y.shape, generator=g)
    return image(sampler(denoiser, z, levels(schedule, count).float(), y, g), y)


def measured(problem):
    """Scores of every method, sampler and number of evaluations, and the gain over plain noise."""
    train_pairs, (x, y) = pairs(problem)
    many, found = y.repeat(DRAWS, *(1,) * (y.ndim - 1)), {}

    def score(z):
        return scores(z.reshape(DRAWS, *x.shape), x)

    linear = Regression(*train_pairs)
    noise = torch.randn(DRAWS * len(x), *x.shape[1:], generator=seeded(4))
    found["linear, no network", "", 0] = score(linear.image(noise, many))
    found["learned Gaussian, no diffusion", "", 0] = score(
        learned(*train_pairs).colour(noise, many)
    )
    for name, denoiser, schedule, image, samplers in methods(*train_pairs, problem):
        for sampler in samplers:
            for count in EVALUATIONS:
                drawn = images(denoiser, schedule, sampler, count, many, image)
                found[name, sampler.__name__, count] = score(drawn)
    for (name, sampler, count), mine in found.items():
        row = {"problem": problem, "method": name, "sampler": sampler, "evaluations": count}
        plain = found["plain", "ddim", count or max(EVALUATIONS)]
        for what, value in mine.items():
            gain = plain[what] - value
            row[what], row[f"{what}_se"] = value.mean().item(), value.std().item() / len(x) ** 0.5
            row[f"{what}_gain"] = gain.mean().item()
            row[f"{what}_gain_se"] = gain.std().item() / len(x) ** 0.5
        yield row


def densities(problem):
    """What two sources say of held-out x without diffusion: nats, the mean over digits."""
    (x, y), held = pairs(problem)
    linear = Regression(x, y, diagonal=True)
    spread = 2 * linear.source.variance.sqrt().reshape(x[0].shape)
    for name, log_prob in {
        "diagonal Gaussian": lambda x, y: Normal(linear.mean(y), spread).log_prob(x),
        "learned Gaussian": learned(x, y).log_prob,
    }.items():
        each = log_prob(*held).reshape(len(held[0]), -1).sum(1).double()
        yield {"problem": problem, "source": name, "log_prob": each.mean().item(),
               "se": each.std().item() / len(each) ** 0.5}  # fmt: skip


def run():
    """Train, sample, and save the tables."""
    torch.set_num_threads(1)
    told = [row for problem in ("degraded", "other half") for row in densities(problem)]
    told = pd.DataFrame(told)
    told.to_csv(RESULTS / "10_sources.csv", index=False, float_format="%.5g")
    rows = [row for problem in ("degraded", "other half") for row in measured(problem)]
    table = pd.DataFrame(rows)
    table.to_csv(RESULTS / "10_image_to_image.csv", index=False, float_format="%.5g")


# %%
# the sampler that is shown of each, of first order; the table has dpm_solver too, which needs fewer
SHOWN = {
    "plain": ("ddim", BLUE, "-"),
    "plain, its levels": ("ddim", SKY, "--"),
    "plain, 3x": ("ddim", BLUE, ":"),
    "Gaussian": ("circle", GREEN, "-"),
    "diagonal Gaussian": ("circle", GREEN, "--"),
    "learned Gaussian": ("circle", PINK, "-"),
    "mixture": ("circle", PINK, "--"),
    "Brownian, sees y": ("ancestral", ORANGE, "-"),
    "Brownian, blind": ("ancestral", ORANGE, "--"),
    "Brownian, sees y, w = 1": ("ancestral", ORANGE, ":"),
    "straight, sees y": ("ddim", RED, "-"),
    "straight, blind": ("ddim", RED, "--"),
    "straight, sees y, 3x": ("ddim", RED, ":"),
}


def figure():
    """Scores against evaluations; bars are the s.e. of the difference to plain noise."""
    table = pd.read_csv(RESULTS / "10_image_to_image.csv")
    plt.style.use(nd.plot.STYLE)
    fig, axes = plt.subplots(2, 2, figsize=(7.2, 5.0), layout="constrained", sharex=True)
    for column, (problem, rows) in zip(axes.T, table.groupby("problem"), strict=True):
        for ax, what in zip(column, ("energy", "error"), strict=True):
            for k, (name, (sampler, hue, dash)) in enumerate(SHOWN.items()):
                mine = rows[(rows["method"] == name) & (rows["sampler"] == sampler)]
                at = mine["evaluations"] * 1.015 ** (k - 4)
                ax.errorbar(at, mine[what], mine[f"{what}_gain_se"], fmt="o", ms=2.5, lw=1,
                            ls=dash, color=hue, label=f"{name} ({sampler})")  # fmt: skip
            linear = rows[rows["method"] == "linear, no network"][what].item()
            ax.axhline(linear, color="grey", lw=0.8, ls=":", label="linear, no network")
            ax.set_xscale("log", base=2)
            ax.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
            ax.minorticks_off()
        column[0].set_title({"degraded": "blurred and noisy → clean"}.get(problem, "left → right"))
        column[1].set(xlabel="network evaluations")
    axes[0, 0].set(ylabel="energy score (pixels in [−1, 1])")
    axes[1, 0].set(ylabel="squared error of the mean, a pixel")
    handles, labels = axes[0, 1].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center", fontsize=6)
    for kind in ("png", "pdf"):
        fig.savefig(FIGURES / f"10_image_to_image.{kind}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="From one image to another")
    parser.add_argument(
        "--fit", action="store_true", help="train and measure again (eight minutes)"
    )
    if parser.parse_args().fit:
        run()
    figure()
