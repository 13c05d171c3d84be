r"""Which hypotheses would such data tell apart? Simulate under each, fit all, see which one wins.

.. math:: P(\hat h = h' \mid h), \qquad \hat h = \arg\max_{h'} \log p(y \mid h'), \quad
    \log p(y \mid h) \approx \log p(y, \hat u \mid h) + \tfrac d2 \log 2π
    + \tfrac12 \log |\hat Σ|

with Laplace's approximation of the evidence. A null verdict in a comparison means little where this
matrix is far from the identity.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from neurodiff.inference.calibration import at_truths, design_of
from neurodiff.inference.laplace import best_modes
from neurodiff.inference.posterior import Posterior, on_one_thread
from neurodiff.inference.priors import Pooled


@on_one_thread
def confusion(
    models: Mapping[str, nn.Module], data: xr.Dataset, *, sets: int = 20, seed: int
) -> pd.DataFrame:
    """Simulate from each model at its own parameter values, fit all, and count the winners.

    Args:
        models: Hypotheses by name. Their parameters' present values are the truths.
        data: A design; its responses are not used.
        sets: Data sets simulated under each.
        seed: Of the responses.

    Returns:
        A row for each truth, set and hypothesis: ``truth, set, hypothesis, log_evidence`` (nats).

    Raises:
        ValueError: If fewer than two models are given, or a parameter is on or beyond the edge of
            its prior's support, which no fit can reach.

    >>> import neurodiff as nd
    >>> columns = {"logsnr": ("trial", [-4.0, -2.0, 0.0, 2.0, 4.0] * 40)}
    >>> design = xr.Dataset({**columns, "correct": ("trial", [1.0] * 200)})
    >>> def model(w):
    ...     return nd.Threshold(nd.weighting(w), nd.observers.Choice(choices=2))
    >>> found = confusion({w: model(w) for w in ("sigmoid", "step")}, design, sets=5, seed=0)
    >>> matrix(found).loc["step", "step"] > 0.5
    np.True_
    """
    if len(models) < 2:
        raise ValueError(f"got {list(models)}, wanted at least two hypotheses to tell apart")
    designs = {name: design_of(model, data) for name, model in models.items()}
    rows = []
    for truth, design in designs.items():
        parameters = design.parameters
        assert isinstance(parameters, Pooled)
        _same(truth, models[truth], parameters)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            problems = at_truths(design, parameters.start().expand(sets, -1))
        for name, rival in designs.items():
            fitted = _given(rival, problems)
            start = rival.parameters.start().expand(1, sets, -1)  # pyright: ignore
            for i, value in enumerate(_log_evidence(fitted, start).tolist()):
                rows.append({"truth": truth, "set": i, "hypothesis": name, "log_evidence": value})
    return pd.DataFrame(rows)


def _same(truth: str, model: nn.Module, parameters: Pooled) -> None:
    """Refuse a truth that fits would begin elsewhere than at: see ``inference.priors``."""
    own = dict(model.named_parameters())
    for site in parameters.sites:
        if not torch.equal(site.value, value := own[site.name].detach().double()):
            raise ValueError(
                f"{truth}: got {site.name} = {value.tolist()}, wanted a value within the support "
                f"of its prior ({site.prior.support}): move it off the edge, or fix it by "
                "requires_grad_(False)"
            )


def _given(rival: Posterior, problems: Posterior) -> Posterior:
    """A rival's posteriors, given the responses of the problems, on the same design."""
    model, parameters = rival.model, rival.parameters
    if problems.model.response != "correct":
        return replace(problems, model=model, parameters=parameters, trials=rival.trials)
    trials = {name: torch.cat([value, value]) for name, value in rival.trials.items()}
    return replace(problems, model=model, parameters=parameters, trials=trials)


def _log_evidence(
    problems: Posterior, start: Float[Tensor, "start batch size"]
) -> Float[Tensor, " batch"]:
    modes = best_modes(problems, start)
    volume = torch.linalg.slogdet(modes.factor)[1] + 0.5 * problems.size * math.log(2 * math.pi)
    return (modes.log_prob + volume).detach()


def matrix(found: pd.DataFrame) -> pd.DataFrame:
    """Share of the sets of each truth (rows) in which each hypothesis (columns) has most evidence.

    >>> rows = [("a", 0, "a", 1.0), ("a", 0, "b", 0.0), ("b", 0, "a", 2.0), ("b", 0, "b", 1.0)]
    >>> columns = ["truth", "set", "hypothesis", "log_evidence"]
    >>> matrix(pd.DataFrame(rows, columns=columns)).values.tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """
    best = found.loc[found.groupby(["truth", "set"], sort=False)["log_evidence"].idxmax()]
    order = list(dict.fromkeys(found["hypothesis"]))
    share = pd.crosstab(best["truth"], best["hypothesis"], normalize="index")
    rows = list(dict.fromkeys(found["truth"]))
    return share.reindex(index=rows, columns=order, fill_value=np.float64(0.0))
