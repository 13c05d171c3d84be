r"""Rates of many units at once, each with its own shares of the levels of shared features.

.. math:: \log μ_{ij} = b_i + c_i · u_j + \sum_k p_{ik}\; a_i · φ_{jk}, \qquad
    p_i = \mathrm{softmax}(θ_i)

    a_i \sim N(0, τ_i²), \quad c_i \sim N(0, ρ_i²), \quad θ_i \sim N(m, 1)

j is a stimulus, i a unit, k a level. Responses are means over repeats, so they are no counts: of
their variance only its form is taken, μ/κ_i, and κ_i is estimated (quasi-Poisson),

.. math:: \log Q_i = κ_i \sum_j (y_{ij} \log μ_{ij} - μ_{ij}), \qquad
    κ_i = (n - \mathrm{df}_i) \Big/ \sum_j \frac{(y_{ij} - μ_{ij})²}{μ_{ij}}

The mode is found by Fisher scoring, a step for all units in one product; τ, ρ and m are moved to
where the units' modes and curvatures put them (EM on Laplace's approximation), so that what a unit
does not say of its shares it takes from the others. The s.d. of θ is 1, a factor e between units:
where shares are nearly 0 the curvature says nothing of it, and EM would let it grow.

References:
    McCullagh & Nelder 1989, ch. 9 (quasi-likelihood); MacKay 1992 (evidence).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from neurodiff.inference.quasi import Problem, State, curvature, log_rate, scored, value_of

_SMALL = 1e-6  # nats: decrement at which a unit has arrived
_STEPS = 50  # of scoring, at most
_NEAR = 10.0  # nats from which on the curvature is taken as it was, where there is one mode
_LONGEST = 3.0  # nats: a quadratic says nothing of longer steps
_LEAST = 1e-3  # of the s.d. of a prior


class Rates(NamedTuple):
    """What was found of each unit.

    Attributes:
        base: b.
        nuisance: c.
        weights: a.
        logits: θ.
        factor: L with L Lᵀ the covariance of θ, given the population.
        precision: κ: the variance of a response is its mean over κ.
        spread: τ.
        mean: m, of the units together.
        log_quasi: log Q at the mode.
        climb: the largest decrement of a unit in its last step, nats.
    """

    base: Float[Tensor, " unit"]
    nuisance: Float[Tensor, "unit nuisance"]
    weights: Float[Tensor, "unit feature"]
    logits: Float[Tensor, "unit level"]
    factor: Float[Tensor, "unit level level"]
    precision: Float[Tensor, " unit"]
    spread: Float[Tensor, " unit"]
    mean: Float[Tensor, " level"]
    log_quasi: Float[Tensor, " unit"]
    climb: float

    @property
    def shares(self) -> Float[Tensor, "unit level"]:
        """P at the mode."""
        return self.logits.softmax(1)

    def predict(
        self,
        features: Float[Tensor, "stimulus level feature"],
        nuisance: Float[Tensor, "stimulus nuisance"],
    ) -> Float[Tensor, "stimulus unit"]:
        """μ of other stimuli."""
        mixed = torch.einsum("uk,skf,uf->su", self.shares, features, self.weights)
        return (self.base + nuisance @ self.nuisance.T + mixed).exp()

    def draws(self, count: int, generator: torch.Generator) -> Float[Tensor, "draw unit level"]:
        """Shares of each unit from its posterior, by Laplace's approximation in θ."""
        z = torch.randn(count, *self.logits.shape, generator=generator, dtype=self.logits.dtype)
        return (self.logits + torch.einsum("ukl,dul->duk", self.factor, z)).softmax(-1)


def fit_rates(
    features: Float[Tensor, "stimulus level feature"],
    nuisance: Float[Tensor, "stimulus nuisance"],
    response: Float[Tensor, "stimulus unit"],
    *,
    shares: Float[Tensor, "#unit level"] | None = None,
    spread: float | None = None,
    rounds: int = 12,
) -> Rates:
    """Fit every unit, and the population that they come from.

    Args:
        features: φ, standardised.
        nuisance: u, standardised; what rivals share.
        response: mean counts, not negative.
        shares: p, of each unit or of all, if it is given and not learned.
        spread: τ = ρ, if it is given and not learned.
        rounds: of moving the population; with none κ is 1.

    Raises:
        ValueError: responses that are negative or not finite, features that are not finite,
            numbers of stimuli or precisions that differ, a unit that says the same of every
            stimulus, shares that do not sum to 1, a spread that is not above 0, or a unit whose
            responses leave no curvature.

    >>> g = torch.Generator().manual_seed(0)
    >>> φ, u = torch.randn(400, 3, 5, generator=g), torch.zeros(400, 0)
    >>> truth = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    >>> a = torch.full((2, 5), 0.3)
    >>> μ = (1 + torch.einsum("uk,skf,uf->su", truth, φ, a)).exp()
    >>> fit_rates(φ, u, torch.poisson(μ, generator=g)).shares.argmax(1).tolist()
    [0, 2]
    """
    _check(features, nuisance, response, shares)
    if spread is not None and not 0 < spread < float("inf"):
        raise ValueError(f"spread: got {spread}; wanted above 0: no weight could leave 0 under it")
    problem = _problem(features, nuisance, response, shares, spread)
    state = _begin(problem, shares, spread)
    for _ in range(rounds):
        state, _ = _climb(problem, state, 1)
        state = _move(problem, state)
    state, climb = _climb(problem, state, _STEPS)
    parts, levels = problem.split(state.u), features.shape[1]
    factor = torch.zeros(len(state.u), levels, levels).to(state.u)
    if problem.learned:
        _, root = curvature(problem, state, scored(problem, state))
        covariance = torch.cholesky_inverse(root)
        values, vectors = torch.linalg.eigh(covariance[:, -levels:, -levels:])
        factor = vectors * values.clamp_min(0.0).sqrt()[:, None]
    rate = log_rate(problem, state.u)[0].exp().T
    base, c, a, logits = parts
    return Rates(
        base[:, 0], c, a, logits, factor, state.kappa, state.scale[:, 1 + nuisance.shape[1]],
        state.centre[0, -levels:], state.kappa * (torch.xlogy(response, rate) - rate).sum(0), climb,
    )  # fmt: skip


def _check(features: Tensor, nuisance: Tensor, response: Tensor, shares: Tensor | None) -> None:
    if not len(features) == len(nuisance) == len(response):
        raise ValueError(
            f"got {len(features)} stimuli with features, {len(nuisance)} with nuisance and "
            f"{len(response)} with responses; wanted as many"
        )
    for name, values in (("features", features), ("nuisance", nuisance), ("responses", response)):
        bad = ~torch.isfinite(values) | ((values < 0) & (name == "responses"))
        if bad.any():
            at = bad.nonzero()[0].tolist()
            kind = "numbers that are not negative" if name == "responses" else "numbers"
            raise ValueError(
                f"{name}: got {values[tuple(at)].item()} at {at}; wanted finite {kind}"
            )
        if values.dtype != features.dtype:
            raise ValueError(f"{name}: got {values.dtype}; wanted {features.dtype}, as of features")
    still = (response == response[:1]).all(0).nonzero()[:, 0].tolist()
    if still:  # its κ would be infinite
        raise ValueError(f"responses: units {still} never vary; leave them out")
    if shares is not None:
        total, wanted = shares.sum(-1), (response.shape[1], features.shape[1])
        if shares.shape not in ((1, wanted[1]), wanted):
            raise ValueError(
                f"shares: got shape {tuple(shares.shape)}; wanted {(1, wanted[1])} or {wanted}"
            )
        if (shares < -1e-6).any() or not torch.allclose(total, torch.ones_like(total), atol=1e-4):
            raise ValueError(
                f"shares: got {shares.min():.3g} at the least and sums of {total.min():.3g} to "
                f"{total.max():.3g}; wanted none below 0, and sums of 1: divide by their sum"
            )


def _problem(
    features: Tensor,
    nuisance: Tensor,
    response: Tensor,
    shares: Tensor | None,
    spread: float | None,
) -> Problem:
    """With the products that no step changes, where all units look at the same mixture."""
    learned = shares is None and features.shape[1] > 1
    design = products = None
    if not learned and (shares is None or len(shares) == 1):
        p = features.new_ones(1) if shares is None else shares[0]
        ones = nuisance.new_ones(len(nuisance), 1)
        design = torch.cat([ones, nuisance, torch.einsum("k,skf->sf", p, features)], 1)
        single, size = design.float(), design.shape[1]
        products = torch.cat([single[:, i:] * single[:, i : i + 1] for i in range(size)], 1)
    return Problem(features, nuisance, response, learned, spread is None, design, products)


def _begin(problem: Problem, shares: Tensor | None, spread: float | None) -> State:
    """At the mean rate, with no weights and equal shares."""
    total = 1 + problem.nuisance.shape[1] + sum(problem.features.shape[1:])
    u = problem.response.new_zeros(problem.response.shape[1], total)
    scale = torch.full_like(u, 0.1 if spread is None else spread)
    base, _, _, logits = problem.split(u)
    base[:] = problem.response.mean(0).clamp_min(1e-3).log()[:, None]
    if shares is not None:
        logits[:] = shares.clamp_min(1e-30).log()
    problem.split(scale)[0][:], problem.split(scale)[3][:] = 1e3, 1.0
    return State(u, scale, torch.zeros_like(u), torch.ones_like(u[:, 0]))


def _climb(problem: Problem, state: State, steps: int) -> tuple[State, float]:
    """Fisher scoring, each unit's step shortened until it climbs; what the next would still win."""
    slope, root = torch.full_like(state.kappa, torch.inf), None
    at = log_rate(problem, state.u)
    for _ in range(steps):
        score = scored(problem, state, at)
        if root is None or problem.learned or slope.max() > _NEAR:
            _, root = curvature(problem, state, score)
        step = torch.cholesky_solve(score.gradient[:, :, None], root)[:, :, 0]
        slope = (step * score.gradient).sum(1)
        if (slope < _SMALL).all():
            break
        length = (_LONGEST / step.abs().amax(1)).clamp_max(1.0)
        step = pad(step, (0, state.u.shape[1] - step.shape[1]))
        for _ in range(12):
            new = state._replace(u=state.u + length[:, None] * step)
            at = log_rate(problem, new.u)
            bound = score.value + 1e-4 * length * slope
            climbed = (value_of(problem, new, at[0], at[0].exp()) >= bound) | (slope < _SMALL)
            if climbed.all():
                break
            length = torch.where(climbed, length, 0.4 * length)
        state = state._replace(u=torch.where(climbed[:, None], new.u, state.u))
        at = at if climbed.all() else log_rate(problem, state.u)
    return state, slope.max().item()


def _move(problem: Problem, state: State) -> State:
    """κ, and the priors, given every unit's mode and curvature."""
    score = scored(problem, state)
    data, root = curvature(problem, state, score)
    covariance = torch.cholesky_inverse(root)
    free, rate = (covariance * data.mT).sum((1, 2)), score.rate.T
    pearson = ((problem.response - rate).square() / rate).sum(0)
    kappa = (len(problem.response) - free).clamp_min(1.0) / pearson
    scale, centre = state.scale.clone(), state.centre.clone()
    variance = covariance.diagonal(dim1=1, dim2=2)
    second = state.u.square() + pad(variance, (0, state.u.shape[1] - variance.shape[1]))
    if problem.moved:
        for prior, size in zip(problem.split(scale)[1:3], problem.split(second)[1:3], strict=True):
            prior[:] = size.mean(1, keepdim=True).sqrt().clamp_min(_LEAST)
    if problem.learned:
        theta = problem.split(state.u)[3]
        problem.split(centre)[3][:] = (theta - theta.mean(1, keepdim=True)).mean(0)
    return State(state.u, scale, centre, kappa)
