r"""Simulation-based calibration and recovery: are the truths that went in given back?

.. math:: x^* \sim p(x), \quad y \sim p(y \mid x^*), \quad
    r = \#\{s : x_s < x^*\} \sim \mathrm{Uniform}\{0, \dots, L\}

if the draws :math:`x_1 \dots x_L` come from the true posterior (Talts et al. 2018). All data
sets of an observer are fitted in one batched call. Uniformity is judged by the largest departure of
the ranks' distribution function from its binomial envelope, simultaneous over ranks (Säilynoja et
al. 2022), family-wise over parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

from neurodiff.inference.draws import posterior_draws
from neurodiff.inference.hypotheses import Hypothesis, build, priors_of
from neurodiff.inference.join import bind, centre_of, distinct
from neurodiff.inference.laplace import find_modes
from neurodiff.inference.posterior import Posterior, on_one_thread, posterior
from neurodiff.inference.priors import Pooled, sites
from neurodiff.inference.tasks import Task

Draw = Callable[[Posterior, int], Float[Tensor, "batch draw size"]]


@dataclass(frozen=True)
class Calibration:
    """Ranks of truths among posterior draws, and how well they were recovered.

    Attributes:
        names: Component names, ``parameter`` or ``parameter.i``.
        ranks: (set, component), 0 … draws.
        draws: L.
        truth: (set, component) on the unconstrained scale.
        mean: Posterior means there.
        sd: Posterior standard deviations there.
        k_hat: Pareto k̂ of each set's fit; nan where the method has none.
    """

    names: list[str]
    ranks: Int[np.ndarray, "set component"]
    draws: int
    truth: Float[np.ndarray, "set component"]
    mean: Float[np.ndarray, "set component"]
    sd: Float[np.ndarray, "set component"]
    k_hat: Float[np.ndarray, " set"]

    @property
    def p_values(self) -> dict[str, float]:
        """Uniformity p-value of each component, see :func:`uniformity`."""
        columns = zip(self.names, self.ranks.T, strict=True)
        return {name: uniformity(column, self.draws) for name, column in columns}

    @property
    def family_p(self) -> float:
        """Family-wise p-value: the smallest, times the number of components (Bonferroni)."""
        return min(1.0, min(self.p_values.values()) * len(self.names))

    def to_dataset(self) -> xr.Dataset:
        """All arrays, with named dimensions."""
        dims = ("set", "component")
        arrays = {k: (dims, getattr(self, k)) for k in ("ranks", "truth", "mean", "sd")}
        data = xr.Dataset({**arrays, "k_hat": ("set", self.k_hat)}, {"component": self.names})
        return data.assign_attrs(draws=self.draws)


def _departure(ranks: Int[np.ndarray, "*batch set"], draws: int) -> np.ndarray:
    """Smallest two-sided binomial tail probability of the ranks' distribution function."""
    n = ranks.shape[-1]
    levels = np.arange(1, draws + 1) / (draws + 1)
    flat = ranks.reshape(-1, n)
    counts = np.stack([np.bincount(row, minlength=draws + 1) for row in flat]).cumsum(-1)[:, :-1]
    low = stats.binom.cdf(counts, n, levels)
    high = stats.binom.sf(counts - 1, n, levels)
    return (2 * np.minimum(low, high)).min(-1).reshape(ranks.shape[:-1])


def uniformity(ranks: Int[np.ndarray, " set"], draws: int, simulations: int = 2000) -> float:
    """p-value of the hypothesis that ranks are uniform on 0 … draws, simultaneous over ranks.

    >>> bool(uniformity(np.arange(100) % 20, 19) > 0.5)
    True
    """
    rng = np.random.default_rng(0)
    null = _departure(rng.integers(0, draws + 1, (simulations, len(ranks))), draws)
    observed = _departure(np.asarray(ranks), draws)
    return float((1 + (null <= observed * (1 + 1e-9)).sum()) / (1 + simulations))


def _names(parameters: Pooled) -> list[str]:
    names = []
    for site, size in zip(parameters.sites, parameters.sizes, strict=True):
        names += [site.name] if size == 1 else [f"{site.name}.{i}" for i in range(size)]
    return names


def design_of(
    model: nn.Module, data: xr.Dataset, priors: Mapping[str, Distribution] | None = None
) -> Posterior:
    """The posterior whose rows are to be simulated: of choices the distinct ones, and how often."""
    trials, response = bind(model, data)
    parameters = Pooled(sites(model, {**centre_of(model, trials), **(priors or {})}))
    if model.response != "correct":
        return posterior(model, parameters, trials, response, torch.zeros_like(response).long())
    rows = distinct(trials, torch.zeros_like(response), [])
    rows = np.arange(len(response)) if rows is None else rows
    _, first, count = np.unique(rows, return_index=True, return_counts=True)
    trials = {name: value[first] for name, value in trials.items()}
    return posterior(
        model, parameters, trials, response[first], weight=torch.as_tensor(count * 1.0)
    )


def simulate(joint: Posterior, u: Float[Tensor, "set size"]) -> Float[Tensor, "set trial"]:
    """Responses to each row at each truth, of choices the number that are right.

    From torch's global generator.

    Raises:
        ValueError: If responses depend on earlier ones (a spike history).
    """
    if "count_lags" in joint.trials:
        raise ValueError(
            "responses with a history cannot be drawn independently: calibrate Counts(history=0)"
        )
    answers = []
    for one in u:
        values = joint.parameters.trial_values(one)
        answer = functional_call(joint.model, values, (joint.trials,))
        if joint.model.response == "correct":
            answers.append(torch.binomial(joint.weight, answer.probs.detach()))
        else:
            answers.append(answer.sample().to(joint.response))  # labels are drawn as integers
    return torch.stack(answers)


def at_truths(joint: Posterior, u: Float[Tensor, "set size"]) -> Posterior:
    """The posterior of data sets simulated at each truth: a batch of problems on one design.

    Data sets of choices share their rows, each once as right and once as wrong, and differ in how
    often either happened.
    """
    answers = simulate(joint, u)
    if joint.model.response != "correct":
        return replace(joint, response=answers, mask=joint.mask[:1].expand(len(u), -1))
    trials = {name: torch.cat([value, value]) for name, value in joint.trials.items()}
    right = torch.ones_like(joint.weight)
    both = posterior(joint.model, joint.parameters, trials, torch.cat([right, 0 * right]))
    return both.with_mask(torch.cat([answers, joint.weight - answers], -1))


def calibrate(
    model: nn.Module,
    data: xr.Dataset,
    *,
    sets: int = 300,
    draws: int = 99,
    truths: Mapping[str, float] | None = None,
    priors: Mapping[str, Distribution] | None = None,
    draw: Draw | None = None,
    seed: int,
) -> Calibration:
    """Simulate data sets on the design of ``data``, fit them all, and rank the truths.

    Args:
        model: The model, both of the simulation and of the fit.
        data: A design; its responses are not used.
        sets: Number of data sets.
        draws: Posterior draws behind each rank.
        truths: Fixed true values by dotted name (recovery: bias and RMSE); by default truths are
            drawn from the priors, which is what calibration needs.
        priors: Parameter priors by dotted name, in place of the defaults.
        draw: How draws are made from a batch of problems; by default Laplace with importance
            weights.
        seed: Of truths, data and draws.

    Raises:
        ValueError: If a row of the design depends on the responses before it.

    >>> import neurodiff as nd
    >>> columns = {"logsnr": ("trial", [-2.0, 0, 2] * 30), "correct": ("trial", [1.0] * 90)}
    >>> design = xr.Dataset(columns)
    >>> model = nd.Threshold(nd.weighting("sigmoid"), nd.observers.Choice(choices=2))
    >>> calibrate(model, design, sets=20, seed=0).ranks.shape
    (20, 3)
    """
    design = design_of(model, data, priors)
    parameters = design.parameters
    assert isinstance(parameters, Pooled)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        truth = parameters.draw_prior(sets)
        if truths is not None:
            truth = _fixed(parameters, truths, sets)
        problems = at_truths(design, truth)
    k_hat = np.full(sets, np.nan)
    if draw is None:
        modes = find_modes(problems, truth)  # where better to look for the mode
        generator = torch.Generator().manual_seed(seed)
        found = posterior_draws(problems, modes, 10 * draws, generator)
        u, k_hat = found.resample(draws, generator), found.k_hat.cpu().numpy()
    else:
        u = draw(problems, draws)
    less = (u < truth[:, None]).sum(1)
    # repeated draws tie with nothing: truths are continuous
    return Calibration(
        _names(parameters),
        less.cpu().numpy(),
        u.shape[1],
        truth.cpu().numpy(),
        u.mean(1).cpu().numpy(),
        u.std(1).cpu().numpy(),
        k_hat,
    )


def _fixed(parameters: Pooled, truths: Mapping[str, float], sets: int) -> Tensor:
    parts = []
    for site in parameters.sites:
        value = torch.as_tensor(truths.get(site.name, site.value)).to(site.value)
        parts.append(site.unconstrain(value.expand(site.value.shape)))
    return torch.cat(parts).expand(sets, -1)


def recovery(result: Calibration) -> dict[str, dict[str, float]]:
    """Bias, RMSE and coverage of 90 % intervals of each component, on the unconstrained scale."""
    error = result.mean - result.truth
    inside = (result.ranks >= 0.05 * (result.draws + 1)) & (
        result.ranks < 0.95 * (result.draws + 1)
    )
    return {
        name: {
            "bias": float(error[:, j].mean()),
            "rmse": float(np.sqrt((error[:, j] ** 2).mean())),
            "coverage_90": float(inside[:, j].mean()),
        }
        for j, name in enumerate(result.names)
    }


@on_one_thread
def recovery_table(
    hypotheses: Sequence[Hypothesis], task: Task, design: xr.Dataset, sets: int, seed: int
) -> pd.DataFrame:
    """A row for each parameter of each hypothesis: bias, RMSE, coverage, uniformity of ranks.

    Args:
        hypotheses: From :func:`~neurodiff.inference.hypotheses.plan`.
        task: How responses are read.
        design: Data whose responses are not used.
        sets: Data sets simulated for each.
        seed: Of truths, data and draws.

    Raises:
        ValueError: If ``sets`` is below 20, too few to say anything, or responses have a history.
    """
    if sets < 20:
        raise ValueError(f"got {sets} sets, wanted at least 20 to judge coverage by")
    rows = []
    for hypothesis in hypotheses:
        model = build(hypothesis, task, design)
        result = calibrate(model, design, sets=sets, priors=priors_of(model), seed=seed)
        p_values = result.p_values
        unsure = float((result.k_hat > 0.7).mean())
        for name, values in recovery(result).items():
            row = {"hypothesis": hypothesis.name, "gauge": hypothesis.gauge, "parameter": name}
            rows.append(
                row | values | {"p_uniform": p_values[name], "share_k_hat_above_0.7": unsure}
            )
    return pd.DataFrame(rows)
