r"""The demonstration on images: which weighting did a simulated observer of digits use?

.. math:: y = x + e^{-λ_s/2} ε, \qquad p(k \mid y) \text{ by a weighting of } m_k(λ),\; λ \le λ_s

scikit-learn's handwritten digits are shown in noise at five SNRs. The denoiser of each class is
exact: it remembers the class's 1,437 training images. Under each named weighting, averaged or
stopped, observers are simulated, all hypotheses are fitted to each, and the one with most evidence
is counted. λ is that of the picture, so that no weighting is shifted (κ = 1, shift = 0); the
sensitivity and the lapse are fitted. Beside it stands what a law without a shape learns at each λ,
from clean digits and from noisy ones: where digits are clean every weighting gives the same answer.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib import style
from torch import Tensor

import neurodiff as nd
from neurodiff import panels
from neurodiff.diffusion.denoiser import ByLabel
from neurodiff.diffusion.flexible import PiecewiseLinear
from neurodiff.diffusion.prior import Empirical
from neurodiff.inference.confusion import confusion, matrix
from neurodiff.inference.curves import contraction
from neurodiff.inference.fit import fitting
from neurodiff.inference.join import join
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.together import alone
from neurodiff.perception.classify import AveragedEvidence, StoppedEvidence, Tabled
from neurodiff.perception.evidence import evidence
from neurodiff.plot import STYLE

SHOWN = (-3.0, -1.5, 0.0, 1.5, np.inf)  # nats at which each digit is shown
GRID = torch.linspace(-8.75, 3.75, 26, dtype=torch.float32)
AVERAGED = ("elbo", "sigmoid", "edm", "edm-monotonic", "flow-matching", "ddpm", "step")
STOPPED = ("sigmoid", "edm-monotonic", "step")
_TRAINING = 1437


def pictures(count: int) -> tuple[ByLabel, Tensor, Tensor, Tensor]:
    """The exact denoisers of the classes; held-out digits at every SNR, their SNR and class."""
    from sklearn.datasets import load_digits

    (pixels, target), g = load_digits(return_X_y=True), torch.Generator().manual_seed(0)
    x = torch.tensor(2 * (pixels + 0.5) / 17 - 1, dtype=torch.float32).reshape(-1, 8, 8)
    y, order = torch.tensor(target), torch.randperm(len(x), generator=g)
    known, held = order[:_TRAINING], order[_TRAINING:][:count]
    denoiser = ByLabel(*(Empirical(x[known][y[known] == k]) for k in range(10)))
    own = torch.tensor(SHOWN, dtype=x.dtype).repeat_interleave(len(held))
    clean = x[held].repeat(len(SHOWN), 1, 1)
    noise = torch.randn(clean.shape, generator=g, dtype=x.dtype)
    shown = clean + (-0.5 * own).exp()[:, None, None] * noise  # no noise where own is inf
    return denoiser, shown, own, y[held].repeat(len(SHOWN))


def observers(table: xr.Dataset, label: np.ndarray) -> dict[str, Tabled]:
    """Every hypothesis, as sensitive as brings it 85 % of the way from chance to its best."""
    made: dict[str, Tabled] = {}
    for kind, model, names in (
        ("averaged", AveragedEvidence, AVERAGED),
        ("stopped", StoppedEvidence, STOPPED),
    ):
        for name in names:
            found = model(nd.weighting(name), table)
            for part in ("shift", "kappa"):
                if hasattr(found.weighting, part):
                    getattr(found.weighting, part).requires_grad_(False)
            _sensitise(found, label)
            made[f"{name}, {kind}"] = found
    return made


@torch.no_grad()
def _sensitise(model: Tabled, label: np.ndarray) -> None:
    right = torch.arange(len(label)), torch.as_tensor(label)

    def accuracy(log_s: float) -> float:
        model.observer.sensitivity.fill_(np.exp(log_s))
        return float(model.chosen()[right].mean())

    low, high = -12.0, 12.0
    wanted = 0.1 + 0.85 * (accuracy(high) - 0.1)
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if accuracy(middle) < wanted else (low, middle)


@on_one_thread
def informed(
    table: xr.Dataset, own: np.ndarray, label: np.ndarray, answers: int, seed: int
) -> pd.DataFrame:
    """How much clean and noisy digits tell about w at each logsnr, for as many answers of each."""
    truth, tables = AveragedEvidence(nd.weighting("edm-monotonic"), table), []
    _sensitise(truth, label)
    for name, some in (("clean", np.isinf(own)), ("noisy", ~np.isinf(own))):
        shown = np.resize(np.flatnonzero(some), answers)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            choice = truth({"row": torch.as_tensor(shown)}).sample().numpy()
        data = xr.Dataset(
            {"shown": ("trial", shown * 1.0), "choice": ("trial", choice.astype(float))}
        )
        law = PiecewiseLinear(torch.arange(-9.0, 4.5, 1.0))
        bound = join(AveragedEvidence(nd.SurvivalWeighting(law), table), data)
        _, u, _ = alone(fitting(bound, nd.Laplace(draws=300, starts=1), seed))
        found = contraction(bound, u.reshape(-1, u.shape[-1]), seed).to_dataframe().reset_index()
        tables.append(found.assign(digits=name))
    return pd.concat(tables, ignore_index=True)


def demonstrate(out: Path, count: int = 100, sets: int = 4, seed: int = 0) -> pd.DataFrame:
    """Make the table of evidence, tell the hypotheses apart, and draw what came out.

    Args:
        out: Folder, new or begun by a demonstration that was cut short, for ``evidence.nc``,
            ``confusion.csv``, ``contraction.csv`` and ``figures/``.
        count: Held-out digits, each shown at five SNRs.
        sets: Observers simulated under each hypothesis; each answers once to every stimulus and
            SNR, four times over.
        seed: The same seed gives the same result.

    Returns:
        The share of observers (row: their hypothesis) for whom each hypothesis has most evidence.

    Raises:
        ValueError: If the folder holds something else, or a whole demonstration.
    """
    begun = ("evidence.nc", "evidence.part", "evidence.parts", "figures", "log_evidence.csv")
    if out.exists() and any(path.name not in begun for path in out.iterdir()):
        raise ValueError(f"{out} is not empty: name a new folder, or one that a demo began")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    denoiser, shown, own, label = pictures(count)
    table = evidence(
        denoiser, shown, range(10), GRID, stimulus_logsnr=own, seed=seed, path=out / "evidence.nc"
    )
    models = observers(table, label.numpy())
    trials = np.tile(np.arange(len(own)), 4) * 1.0
    design = xr.Dataset({"shown": ("trial", trials), "choice": ("trial", 0 * trials)})
    found = confusion(models, design, sets=sets, seed=seed)
    found.to_csv(out / "log_evidence.csv", index=False, float_format="%.6g")
    share, told = matrix(found), informed(table, own.numpy(), label.numpy(), len(trials), seed)
    share.to_csv(out / "confusion.csv")
    told.to_csv(out / "contraction.csv", index=False, float_format="%.4g")
    figure = draw(share, told)
    for kind in ("png", "pdf"):
        figure.savefig(out / "figures" / f"confusion.{kind}", dpi=300)
    plt.close(figure)
    return share


@style.context(STYLE)
def draw(share: pd.DataFrame, told: pd.DataFrame) -> plt.Figure:  # pyright: ignore
    """The confusion matrix, and beneath it what digits tell about w."""
    fig, (top, low) = plt.subplots(
        2, 1, figsize=(3.5, 3.9), height_ratios=[3, 1], layout="constrained"
    )
    image = top.imshow(share.to_numpy(), cmap="cividis", vmin=0, vmax=1)
    number = [str(i + 1) for i in range(len(share))]
    top.set_xticks(range(len(share)), number)
    top.set_yticks(
        range(len(share)), [f"{n}  {h}" for n, h in zip(number, share.index, strict=True)]
    )
    top.set(xlabel="hypothesis of most evidence", ylabel="simulated")
    top.spines[:].set_visible(False)
    top.tick_params(length=0)
    fig.colorbar(image, ax=top, label="share of observers", shrink=0.6)
    for name, colour in (("noisy", panels.BLUE), ("clean", panels.ORANGE)):
        mine = told[told["digits"] == name]
        low.plot(mine["logsnr"], mine["contraction"], color=colour, label=f"{name} digits")
    low.set(xlabel=panels.LOGSNR, ylabel="told about w\n(0 to 1)", ylim=(0, 1))
    panels.legend_above(low, 2)
    return fig
