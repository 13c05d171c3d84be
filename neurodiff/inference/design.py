r"""Which stimuli tell hypotheses apart, and how many trials that takes.

.. math:: I(H; Y) = \sum_h π_h\, \mathrm{KL}(p_h \,\|\, \bar p), \qquad
    p_h(y) = E_{θ|h}\, p(y \mid h, θ), \quad \bar p = \sum_h π_h\, p_h

is the expected gain of one answer about which hypothesis is true. Answers are few (a label, right
or wrong), so that the sum over them is exact, and only the parameters are averaged by draws: a
nested estimate without noise from answers. It is bounded by the gain about hypothesis and
parameters together, with the entropy S,

.. math:: I(H; Y) \le I(H, Θ; Y) = S[\bar p] - \sum_h π_h\, E_{θ|h}\, S[p(\cdot|h, θ)]

which a stimulus may have much of that says nothing about the hypothesis.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution
from torch.func import functional_call

from neurodiff.inference.calibration import design_of
from neurodiff.inference.posterior import on_one_thread

Table = Float[np.ndarray, "hypothesis draw stimulus answer"]


@on_one_thread
def predictions(
    models: Mapping[str, nn.Module],
    data: xr.Dataset,
    *,
    draws: int = 100,
    fixed: bool = False,
    seed: int,
) -> Table:
    """Probability of each answer to each trial of a pool, under every hypothesis.

    Args:
        models: Hypotheses by name, of choices.
        data: The pool: one trial a stimulus; its responses are not used.
        draws: Of each hypothesis's parameters, from their priors.
        fixed: Whether the parameters stay at the modules' own values instead, on the edge of their
            support too.
        seed: Of the draws.

    Raises:
        ValueError: If a model's answers are not few.

    >>> import neurodiff as nd
    >>> pool = xr.Dataset({"logsnr": ("trial", [-4.0, 4.0]), "correct": ("trial", [1.0, 1.0])})
    >>> def model(w):
    ...     return nd.Threshold(nd.weighting(w), nd.observers.Choice(choices=2))
    >>> predictions({w: model(w) for w in ("sigmoid", "step")}, pool, draws=5, seed=0).shape
    (2, 5, 2, 2)
    """
    tables = []
    for model in models.values():
        joint = design_of(model, data)
        if len(joint.response) != data.sizes["trial"]:
            raise ValueError("got a pool with equal trials, wanted each stimulus once")
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            if fixed:  # not by way of u, which is infinite on the edge of a support
                learned = joint.model.named_parameters()
                values = [{name: p.double() for name, p in learned if p.requires_grad}]
            else:
                u = joint.parameters.draw_prior(draws)  # pyright: ignore
                values = [joint.parameters.trial_values(one) for one in u]
            each = [_answers(functional_call(joint.model, v, (joint.trials,))) for v in values]
        tables.append(torch.stack(each).numpy())
    return np.stack(tables)


def _answers(found: Distribution) -> Float[Tensor, "trial answer"]:
    probs = getattr(found, "probs", None)
    if probs is None:
        raise ValueError(f"got answers of {type(found).__name__}, wanted choices among few")
    return torch.stack([1 - probs, probs], -1) if isinstance(found, Bernoulli) else probs


@dataclass(frozen=True)
class Gain:
    """What one answer to each stimulus would tell, nats.

    Attributes:
        hypothesis: About which hypothesis is true, I(H; Y).
        bound: About hypothesis and parameters together, which is never less.
        disagreement: The cheap rule: the largest total variation between two hypotheses' answers.
    """

    hypothesis: Float[np.ndarray, " stimulus"]
    bound: Float[np.ndarray, " stimulus"]
    disagreement: Float[np.ndarray, " stimulus"]


def gain(p: Table, weights: Float[np.ndarray, "..."] | None = None) -> Gain:
    """The expected gain of one answer to each stimulus.

    Args:
        p: From :func:`predictions`.
        weights: (hypothesis, draw): joint probability, such as what answers have left of them;
            equal by default.

    Raises:
        ValueError: Weights that are not of each hypothesis and draw, or no probabilities.

    >>> same = np.full((2, 1, 1, 2), 0.5)
    >>> apart = np.array([[[[1.0, 0.0]]], [[[0.0, 1.0]]]])
    >>> gain(np.concatenate([same, apart], 2)).hypothesis.round(3)      # 0 and log 2
    array([0.   , 0.693])
    """
    weights = np.full(p.shape[:2], 1 / p[..., 0, 0].size) if weights is None else weights
    if weights.shape != p.shape[:2]:
        raise ValueError(f"weights: got shape {weights.shape}, wanted {p.shape[:2]}, as of p")
    if not (weights >= 0).all() or abs(weights.sum() - 1) > 1e-6:
        raise ValueError(
            f"weights: got {weights.min():.3g} at the least and a sum of {weights.sum():.6g}; "
            "wanted none below 0, and a sum of 1: divide by it"
        )
    prior = weights.sum(1)
    each = np.einsum("hd,hdsk->hsk", weights / prior.clip(1e-300)[:, None], p)
    of_mean = _entropy(np.einsum("h,hsk->sk", prior, each))
    hypothesis = of_mean - np.einsum("h,hs->s", prior, _entropy(each))
    bound = of_mean - np.einsum("hd,hds->s", weights, _entropy(p))
    apart = 0.5 * np.abs(each[:, None] - each[None]).sum(-1).max((0, 1))
    return Gain(hypothesis.clip(0), bound, apart)


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)


def trials_needed(
    p: Table, chosen: Int[np.ndarray, " some"], odds: float = 20.0
) -> Float[np.ndarray, "hypothesis hypothesis"]:
    r"""Trials after which the odds for the truth (row) over a rival (column) are expected to hold.

    .. math:: n = \frac{\log \text{odds}}{\text{mean over stimuli of KL}(p_{true} \,\|\, p_{rival})}

    Args:
        p: From :func:`predictions`.
        chosen: The stimuli that are shown, equally often.
        odds: Wanted.

    >>> p = np.array([[[[0.9, 0.1]]], [[[0.5, 0.5]]]])
    >>> trials_needed(p, np.array([0])).round(1)
    array([[inf, 8.1],
           [5.9, inf]])
    """
    each = p.mean(1)[:, chosen].clip(1e-300)
    apart = (each[:, None] * (np.log(each[:, None]) - np.log(each[None]))).sum(-1).mean(-1)
    with np.errstate(divide="ignore"):
        return np.where(apart > 1e-12, math.log(odds) / np.maximum(apart, 1e-300), np.inf)


def settled(
    p: Table,
    chosen: Int[np.ndarray, " trial"] | None,
    *,
    trials: int = 100,
    sets: int = 50,
    seed: int,
) -> Float[np.ndarray, " trial"]:
    """Posterior probability of the truth after each trial, the mean over truths and simulations.

    Parameters differ between simulated observers, and are not known to who judges: each draw has
    its own likelihood, and p(y|h) is the mean over draws of the product over trials.

    Args:
        p: From :func:`predictions`.
        chosen: The stimulus of each trial; None takes, at each, the one of largest gain given all
            answers before.
        trials: How many, where stimuli are not given.
        sets: Observers simulated under each hypothesis.
        seed: Of their parameters and answers.
    """
    rng, log_p = np.random.default_rng(seed), np.log(p.clip(1e-300))
    path = np.zeros((len(p), sets, trials if chosen is None else len(chosen)))
    for h, i in np.ndindex(*path.shape[:2]):
        own, told = p[h, rng.integers(p.shape[1])], np.zeros(p.shape[:2])
        for t in range(path.shape[-1]):
            if chosen is None:
                stimulus = int(gain(p, _posterior(told)).hypothesis.argmax())
            else:
                stimulus = chosen[t]
            answer = int((rng.random() > own[stimulus].cumsum()[:-1]).sum())
            told += log_p[:, :, stimulus, answer]
            path[h, i, t] = _posterior(told)[h].sum()
    return path.mean((0, 1))


def _posterior(told: np.ndarray) -> np.ndarray:
    weights = np.exp(told - told.max())
    return weights / weights.sum()
