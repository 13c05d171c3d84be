r"""What is learned from one read-out predicts another: parameters carried, the rest fitted anew.

.. math::

    \text{elpd}_i = \log \tfrac1D \sum_d \int p(y_i \mid \theta_d, \phi)\,
        p(\phi \mid \theta_d, y_{\text{train}})\,d\phi, \qquad \theta_d \sim p(\theta \mid \text{A})

    T = \frac{\text{transfer} - \text{constant}}{\text{refit} - \text{constant}}

θ comes from read-out A alone: B never changes it. φ, what the read-outs do not share (a rule, a
lapse), is learned from B's training trials. Parts (people) are a batch of problems.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neurodiff.inference.importance import Draws, importance_draws
from neurodiff.inference.laplace import Modes, best_modes, find_modes
from neurodiff.inference.optimise import minimise
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.psis import smooth
from neurodiff.inference.stack import stack


@dataclass(frozen=True)
class Fitted:
    """Parts fitted side by side.

    Attributes:
        posterior: One problem a part.
        modes: Of each.
        draws: Weighted, of each.
    """

    posterior: Posterior
    modes: Modes
    draws: Draws

    def sampled(self, count: int, seed: int) -> dict[str, Tensor]:
        """Posterior draws of equal weight, (part, draw, ...) by dotted name."""
        u = self.draws.resample(count, torch.Generator().manual_seed(seed))
        return self.posterior.parameters.constrain(u)  # pyright: ignore


def fit_parts(
    parts: Sequence[Posterior], draws: int = 400, starts: int = 3, seed: int = 0
) -> Fitted:
    """Modes from several starts, and importance-weighted draws, of every part.

    Args:
        parts: One problem each, of one model.
        draws: Proposed around each mode.
        starts: The modules' own values, and perturbations of them.
        seed: Of perturbations and draws.
    """
    joint, generator = stack(parts), torch.Generator().manual_seed(seed)
    own = torch.stack([part.parameters.start() for part in parts])
    noise = torch.randn(starts, *own.shape, generator=generator, dtype=own.dtype)
    noise[0] = 0.0
    modes = best_modes(joint, own + 0.5 * noise)
    return Fitted(joint, modes, importance_draws(joint, modes, draws, generator))


def held_out(
    fitted: Fitted, fold: Int[Tensor, "part trial"], draws: int = 60
) -> tuple[Float[Tensor, "part trial"], Float[np.ndarray, "part fold"]]:
    """Log predictive density of each trial given the other folds, and the k̂ of each fold.

    Folds have modes and draws of their own: by draws of the whole, however weighted, a trial is
    told something of itself (half a nat a person with seven parameters), which k̂ need not say. A
    trial that only fills up a shorter part has 0.

    Args:
        fitted: Parts, at their modes.
        fold: Of each trial.
        draws: Proposed around the mode of each fold.
    """
    generator, each = torch.Generator().manual_seed(0), fitted.posterior
    elpd, k_hat = torch.zeros_like(each.mask), []
    for k in range(int(fold.max()) + 1):
        left = fold == k
        one = each.with_mask(each.mask * ~left)
        found = importance_draws(one, _moved(one, fitted.modes), draws, generator)
        own = torch.logsumexp(found.log_w[..., None] + found.by_unit, 1)
        elpd = torch.where(left, own, elpd)
        k_hat.append(found.k_hat.numpy())
    return elpd, np.stack(k_hat, 1)


def carry(
    values: Mapping[str, Tensor],
    parts: Sequence[Posterior],
    fold: Int[Tensor, "part trial"],
    draws: int = 40,
    seed: int = 0,
) -> tuple[Float[Tensor, "draw part trial"], Float[np.ndarray, "draw part fold"]]:
    """Held-out log predictive density where some parameters are given, at each of their draws.

    Args:
        values: (part, draw, ...) of the parameters that are carried, by dotted name.
        parts: One problem each, of a model whose parameters of these names are not learned.
        fold: Of each trial.
        draws: Proposed of what is learned, at each of the draws that are carried.
        seed: Of the proposals.

    Returns:
        Log densities, whose mean over draws is :func:`over_draws`, and k̂ of the learned part. Folds
        share their draws here, which tells a trial a little of itself where a rule has many
        parameters: some .4 of a millinat with fifteen.
    """
    joint, generator = stack(parts), torch.Generator().manual_seed(seed)
    modes, found, shapes = None, [], []
    for d in range(next(iter(values.values())).shape[1]):
        given = {name: value[:, d] for name, value in values.items()}
        one = replace(joint, buffers=joint.buffers | given)
        if modes is None:
            start = torch.stack([part.parameters.start() for part in parts])
            modes = find_modes(one, start)
        else:
            modes = _moved(one, modes)
        elpd, k_hat = _shared(importance_draws(one, modes, draws, generator), fold)
        found.append(elpd)
        shapes.append(k_hat)
    return torch.stack(found), np.stack(shapes)


def _shared(
    draws: Draws, fold: Int[Tensor, "part trial"]
) -> tuple[Float[Tensor, "part trial"], Float[np.ndarray, "part fold"]]:
    """Held-out densities of all folds from one set of draws, and k̂."""
    elpd, folds = torch.zeros_like(draws.by_unit[:, 0]), int(fold.max()) + 1
    k_hat = np.empty((len(elpd), folds))
    for i, by_unit in enumerate(draws.by_unit):
        inside = torch.nn.functional.one_hot(fold[i], folds).to(by_unit)
        raw = draws.log_w[i][:, None] - by_unit.nan_to_num(neginf=-1e300) @ inside
        for k in range(folds):
            here, kept = fold[i] == k, torch.isfinite(raw[:, k]) & (draws.log_w[i] > -700)
            log_w, k_hat[i, k] = smooth(raw[kept, k].numpy())
            terms = torch.as_tensor(log_w)[:, None] + by_unit[kept][:, here]
            elpd[i, here] = torch.logsumexp(terms, 0)
    return elpd, k_hat


def _moved(posterior: Posterior, modes: Modes) -> Modes:
    """The modes a little way off: their places anew, their shape as it was (draws are weighted)."""
    inverse = modes.factor @ modes.factor.mT
    found = minimise(lambda u: -posterior.log_prob(u), modes.u, inverse, tolerance=1e-3)
    return replace(modes, u=found.u, log_prob=-found.value, gradient=found.gradient)


def over_draws(
    log_p: Float[Tensor, "draw part trial"],
) -> tuple[Float[np.ndarray, " part"], Float[np.ndarray, " part"]]:
    """Each part's elpd, from the mean of densities over draws, and what it errs for their number.

    The error is that of the jackknife over draws.

    >>> over_draws(torch.zeros(3, 1, 2))
    (array([0.]), array([0.]))
    """
    count, total = len(log_p), torch.logsumexp(log_p, 0)
    elpd = (total - math.log(count)).sum(-1)
    # what is left of the sum without each draw
    rest = total + torch.log1p(-(log_p - total).exp().clamp(max=1 - 1e-12))
    without = (rest - math.log(count - 1)).sum(-1)
    error = ((count - 1) * without.var(0, correction=0)).sqrt()
    return elpd.numpy(), error.numpy()
