r"""The quasi-likelihood of many units at once, its slope and its curvature.

.. math:: \nabla_u = κ_i J_i^T (y_i - μ_i) - \frac{u - m}{s²}, \qquad
    I_i = κ_i\, J_i^T \mathrm{diag}(μ_i)\, J_i, \qquad J_i = \frac{∂ \log μ_i}{∂ u}

u is all that is learned of a unit (:mod:`~neurodiff.inference.population`), normal about m with
s.d. s before it is seen. I is Fisher's information, which the prior's 1/s² is added to.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """What was shown and answered, and which parts of u are learned.

    Features are (stimulus, level, feature), nuisances (stimulus, nuisance), responses (stimulus,
    unit).
    """

    features: Tensor
    nuisance: Tensor
    response: Tensor
    learned: bool  # are shares learned
    moved: bool  # are spreads learned
    design: Tensor | None  # (stimulus, parameter), where it is one for all units
    products: Tensor | None  # of its columns, upper triangle, in single precision

    def split(self, u: Tensor) -> tuple[Tensor, ...]:
        """b, c, a and θ."""
        _, level, feature = self.features.shape
        return u.split((1, self.nuisance.shape[1], feature, level), 1)


class State(NamedTuple):
    """Where the units are, and the priors that they are under: (unit, parameter) each."""

    u: Tensor
    scale: Tensor
    centre: Tensor
    kappa: Tensor


class Score(NamedTuple):
    """Value and gradient of every unit, what it predicts, and its own Jacobian of log μ."""

    value: Tensor
    gradient: Tensor
    rate: Tensor
    jacobian: Tensor | None


def log_rate(problem: Problem, u: Tensor) -> tuple[Tensor, Tensor]:
    """Log μ (unit, stimulus), and each unit's mixture of levels (none where all share one)."""
    if problem.design is not None:
        return u[:, : problem.design.shape[1]] @ problem.design.T, u
    base, c, a, logits = problem.split(u)
    flat = problem.features.movedim(1, 0).flatten(1)
    mixed = (logits.softmax(1) @ flat).reshape(len(u), *problem.features.shape[::2])
    return base + c @ problem.nuisance.T + (mixed @ a[:, :, None])[:, :, 0], mixed


def scored(problem: Problem, state: State, at: tuple[Tensor, Tensor] | None = None) -> Score:
    """The slope at a state, or where its log rates are known already."""
    eta, mixed = log_rate(problem, state.u) if at is None else at
    rate = eta.exp()
    error, jacobian = state.kappa[:, None] * (problem.response.T - rate), None
    if problem.design is None:
        jacobian = _jacobian(problem, state.u, mixed)
        lifted = (jacobian.mT @ error[:, :, None])[:, :, 0]
    else:
        lifted = error @ problem.design
    pull = (state.u - state.centre) / state.scale.square()
    value = value_of(problem, state, eta, rate)
    return Score(value, lifted - pull[:, : lifted.shape[1]], rate, jacobian)


def _information(problem: Problem, state: State, score: Score) -> Tensor:
    """Fisher's, of the data: in single precision, for it steers steps and is never their aim."""
    weight = (state.kappa[:, None] * score.rate).float()
    if score.jacobian is not None:
        j = score.jacobian.float()
        return (j.mT @ (j * weight[:, :, None])).to(score.rate)
    size, products = score.gradient.shape[1], problem.products
    # before the first step all stimuli count alike
    alike = bool((weight == weight[:, :1]).all())
    packed = weight[:, :1] * products.sum(0) if alike else weight @ products  # pyright: ignore
    row, column = torch.triu_indices(size, size)
    data = score.rate.new_empty(len(weight), size, size)
    data[:, row, column] = data[:, column, row] = packed.to(data)
    return data


def curvature(problem: Problem, state: State, score: Score) -> tuple[Tensor, Tensor]:
    """Information of the data, and the Cholesky factor of what is learned from them and priors."""
    data = _information(problem, state, score)
    prior = torch.diag_embed(state.scale[:, : data.shape[1]].pow(-2))
    root, failed = torch.linalg.cholesky_ex(data + prior)
    if (again := failed.nonzero()[:, 0]).numel():  # single precision has lost the least directions
        weight = (state.kappa[:, None] * score.rate)[again, :, None].double()
        j = problem.design if score.jacobian is None else score.jacobian[again]
        exact = j.double().mT @ (j.double() * weight)  # pyright: ignore
        factor, failed = torch.linalg.cholesky_ex(exact + prior[again].double())
        if failed.any():
            raise ValueError(
                f"responses: units {again[failed > 0].tolist()} leave no curvature to climb by; "
                "look for responses far above all others of theirs, or leave them out"
            )
        data[again], root[again] = exact.to(data), factor.to(data)
    return data, root


def _jacobian(problem: Problem, u: Tensor, mixed: Tensor) -> Tensor:
    """Of log μ in all that is learned: (unit, stimulus, parameter)."""
    _, _, a, logits = problem.split(u)
    ones = problem.nuisance.new_ones(len(problem.nuisance), 1)
    shared = torch.cat([ones, problem.nuisance], 1).expand(len(u), -1, -1)
    if not problem.learned:
        return torch.cat([shared, mixed], 2)
    p = logits.softmax(1)[:, None]
    each = torch.einsum("skf,uf->usk", problem.features, a)
    return torch.cat([shared, mixed, p * (each - (each * p).sum(2, keepdim=True))], 2)


def value_of(problem: Problem, state: State, eta: Tensor, rate: Tensor) -> Tensor:
    """Log Q + log prior, up to what does not depend on u."""
    quasi = state.kappa * (problem.response.T * eta - rate).sum(1)
    off = ((state.u - state.centre) / state.scale).square()
    return quasi - 0.5 * off.sum(1) + (0 if problem.learned else 0.5 * problem.split(off)[3].sum(1))
