r"""Log densities of what a fit has not seen: blocked K-fold, and refits where PSIS fails.

.. math:: \log \sum_s w_s\, p(y_j \mid x_s) = \log \frac{p(y_j, y_{train})}{p(y_{train})},
    \qquad (x_s, w_s) \sim p(x \mid y_{train})

The left is the average over draws; where a unit is so surprising that few of them carry it, the
right, a ratio of evidences. Folds are problems that share every tensor and differ in a 0/1 mask
over units; they start at the full fit, and share their draws (:mod:`neurodiff.inference.shared`). A
row that stands for n equal trials is left out one trial at a time by a mask of (n - 1)/n.
"""

import math
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from neurodiff.inference.draws import ROWS
from neurodiff.inference.fit import explore
from neurodiff.inference.join import Bound
from neurodiff.inference.laplace import Modes
from neurodiff.inference.nuts import NUTS, diagnose
from neurodiff.inference.psis import leave_one_out, smooth
from neurodiff.inference.shared import Shared
from neurodiff.inference.together import Ask, Steps

_ROUNDS = 6  # in which folds and units that need it get more draws, at most
_MOST = 32  # times the draws of a fold that a recording gets, roughly: then its k̂ is what it is
_REFITS = 64  # rows refitted at most; the rest keep their k̂, which the verdict then names


def alternating(units: int, folds: int = 5) -> np.ndarray:
    """Fold of each unit: every ``folds``-th block, so that each fold covers the whole recording.

    >>> alternating(7, 3)
    array([0, 1, 2, 0, 1, 2, 0])
    """
    return np.arange(units) % folds


def kfold(
    bound: Bound,
    modes: Modes,
    fold: np.ndarray,
    draws: int,
    seed: int,
    nuts: NUTS | None = None,
) -> Steps[tuple[np.ndarray, np.ndarray]]:
    """The steps to the held-out elpd of each unit by K-fold, all folds as one batch.

    Args:
        bound: Model and data.
        modes: The mode of the full fit.
        fold: Fold of each unit.
        draws: Draws proposed about each fold, and half as many about a surprising unit's problem.
        seed: Of the draws.
        nuts: Chains that take over where a fold's k̂ exceeds 0.7; their draws have no k̂ (-inf).

    Returns:
        elpd of each unit, and its Pareto k̂: the larger of its fold's posterior and of its own.

    Raises:
        ValueError: If there are fewer than two folds.
    """
    count = int(fold.max()) + 1
    if count < 2:
        raise ValueError(
            f"got {len(fold)} unit in {count} fold, wanted at least 2 blocks to hold out"
        )
    held = torch.as_tensor(fold)[None] == torch.arange(count)[:, None]
    train = (~held).to(bound.posterior.mask)
    with_it = train[fold]
    with_it.fill_diagonal_(1.0)
    shared = Shared(bound.posterior, modes, torch.Generator().manual_seed(seed))
    # the fit on everything belongs to the cloud too: it lies where a fold and a unit held out do
    shared.about(torch.cat([train, torch.ones_like(train[:1])]), draws)
    rare = np.zeros(len(fold), dtype=bool)
    for turn in range(_ROUNDS + 1):
        log_w, shape, evidence = shared.weigh(train)
        log_p = log_w[fold] + shared.by_unit.mT
        elpd, own = torch.logsumexp(log_p, -1).cpu().numpy(), _shapes(log_p)
        if rare.any():
            _, alone, more = shared.weigh(with_it[np.flatnonzero(rare)])
            elpd[rare] = (more - evidence[fold[rare]]).cpu().numpy()
            own[rare] = alone.numpy()
        lost, unsure = np.flatnonzero(shape.numpy() > 0.7), np.flatnonzero(own > 0.7)
        if turn == _ROUNDS or len(shared.u) > _MOST * draws or not len(lost) + len(unsure):
            break
        # few draws explain such a unit: its own evidence, given the fold's training data, instead;
        # of many such units the worst, the others keep their k̂
        room = (_MOST * draws - len(shared.u)) // (draws // 2)
        unsure = unsure[np.argsort(-own[unsure], kind="stable")][:room]
        rare[unsure] = True
        shared.about(torch.cat([train[lost], with_it[unsure]]), draws // 2)
    k_hat = np.maximum(own, shape.numpy()[fold])
    chains = nuts is not None or len(bound.posterior.unit) <= ROWS
    for k in np.flatnonzero(shape.numpy() > 0.7) if chains else ():
        ((log_w, by_unit),), its, _ = yield from _without(
            bound, modes, train[k : k + 1], draws, seed, nuts
        )
        here = fold == k
        log_p = (log_w[:, None] + by_unit[:, here]).mT
        elpd[here] = torch.logsumexp(log_p, -1).cpu().numpy()
        k_hat[here] = np.maximum(_shapes(log_p), its[0])
    return elpd, k_hat


def _shapes(log_w: Float[Tensor, "row draw"]) -> np.ndarray:
    """Pareto k̂ of each row of log weights."""
    return np.array([smooth(row[torch.isfinite(row)].cpu().numpy())[1] for row in log_w])


def refit(
    bound: Bound, modes: Modes, loo: xr.Dataset, draws: int, seed: int, nuts: NUTS | None = None
) -> Steps[xr.Dataset]:
    """The steps to leave-one-out with the rows of k̂ above 0.7 refitted without one of their trials.

    Args:
        bound: Model and data whose trials are exchangeable.
        modes: The mode of the full fit.
        loo: ``elpd`` and ``k_hat`` of each trial.
        draws: Posterior draws of each refit.
        seed: Of the draws.
        nuts: Chains that take over where a refit's own k̂ exceeds 0.7.
    """
    k_hat = np.full(len(bound.posterior.response), -np.inf)
    # where nearly all weights are equal the smoothing itself can fail
    k_hat[bound.rows] = np.where(np.isfinite(loo["elpd"]), loo["k_hat"], np.inf)
    bad = np.argsort(-k_hat)[: min(_REFITS, int((k_hat > 0.7).sum()))]
    if not len(bad):
        return loo
    rows = torch.as_tensor(bad.copy(), device=bound.posterior.mask.device)
    each = torch.arange(len(bad), device=rows.device)
    weight = bound.posterior.weight[rows]
    mask = bound.posterior.mask.expand(len(bad), -1).clone()
    mask[each, rows] = (weight - 1) / weight
    found, fresh, _ = yield from _without(bound, modes, mask, draws, seed, nuts)
    elpd, own = loo["elpd"].values.copy(), loo["k_hat"].values.copy()
    for i, row in enumerate(bad):
        here = bound.rows == row
        log_w, by_unit = found[i]
        elpd[here] = _log_mean(log_w, by_unit[:, row] / weight[i])
        own[here] = fresh[i]
    return loo.assign(elpd=(loo["elpd"].dims, elpd), k_hat=(loo["k_hat"].dims, own))


def by_trial(
    bound: Bound, u: Float[Tensor, "draw size"], cell: np.ndarray, correct: np.ndarray
) -> xr.Dataset:
    """Leave-one-out over the trials that a model of cells counted: each given all the others.

    Args:
        bound: A beta-binomial model of cells.
        u: Posterior draws.
        cell: The cell of each trial, -1 for a missing answer.
        correct: Whether each trial was right.

    Returns:
        ``elpd`` and ``k_hat`` of each trial; 0 and -inf for a missing answer.
    """
    joint = bound.posterior

    def given(one: Tensor) -> Tensor:
        answer = functional_call(joint.model, joint.parameters.trial_values(one), (joint.trials,))
        return torch.cat(answer.each_given_the_others(joint.response))

    each, shape = leave_one_out(torch.vmap(given)(u).detach().cpu().numpy())
    there = cell >= 0
    column = bound.rows[cell[there]] + np.where(correct[there] > 0.5, 0, len(joint.response))
    elpd, k_hat = np.zeros(len(cell)), np.full(len(cell), -np.inf)
    elpd[there], k_hat[there] = each[column], shape[column]
    return xr.Dataset({"elpd": ("trial", elpd), "k_hat": ("trial", k_hat)})


def _log_mean(log_w: Tensor, log_p: Tensor) -> np.ndarray:
    return torch.logsumexp(log_w + log_p, 0).cpu().numpy()


def _without(
    bound: Bound, modes: Modes, mask: Tensor, draws: int, seed: int, nuts: NUTS | None
) -> Steps[tuple[list[tuple[Tensor, Tensor]], np.ndarray, np.ndarray]]:
    """Problems that differ in what they train on: draws, their k̂ and log evidence.

    Draws are log weights and log likelihoods (draw, unit).
    """
    inverse = (modes.factor @ modes.factor.mT).expand(len(mask), -1, -1)
    start, generator = modes.u.expand(1, len(mask), -1), torch.Generator().manual_seed(seed)
    found, result = yield Ask(bound.posterior, mask, start, inverse, draws, generator)
    weighted = list(zip(result.log_w, result.by_unit, strict=True))
    k_hat, evidence = result.k_hat.cpu().numpy().copy(), result.log_evidence.cpu().numpy()
    for i in np.flatnonzero(k_hat > 0.7) if nuts is not None else ():
        one = replace(bound, posterior=bound.posterior.with_mask(mask[i : i + 1]))
        own = {name: value[i : i + 1] for name, value in vars(found).items()}
        u, _ = explore(one, Modes(**own), nuts, seed, None)  # pyright: ignore
        by_unit = one.posterior.draws_terms(u.flatten(0, 1)[None])[1][0]
        weighted[i] = by_unit.new_full((len(by_unit),), -math.log(len(by_unit))), by_unit
        k_hat[i] = -np.inf if diagnose(u)[0].max() < 1.05 else np.inf
    return weighted, k_hat, evidence
