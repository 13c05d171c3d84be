r"""Stochastic variational inference with a full-rank normal guide, started at the Laplace fit.

.. math:: \max_{m, C} \; E_{u \sim N(m, C C^T)}\,[\log p(u, \text{data}) - \log q(u)]

The guide starts at the mode with the Laplace covariance, so what is left to learn is skew and
weight. Convergence is
judged, not assumed: the ELBO of the last quarter must not exceed that of the quarter before by
more than two standard
errors, and the Pareto k̂ of p/q over fresh draws must stay below 0.7.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor
from torch.func import functional_call

from neurodiff.inference.laplace import Modes
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.priors import Grouped, Pooled, to_pyro
from neurodiff.inference.psis import smooth


@dataclass(frozen=True)
class SVI:
    """Fit by stochastic variational inference.

    Args:
        draws: Draws from the fitted guide.
        steps: Optimiser steps at most.
        particles: Draws behind each gradient.
        rate: Learning rate of Adam, lowered tenfold along a cosine.
    """

    draws: int = 1000
    steps: int = 1000
    particles: int = 8
    rate: float = 0.01


def program(posterior: Posterior) -> None:
    """The Pyro program of a model: each parameter prior by its dotted name, then the likelihood as a factor.

    Hierarchical parameters are sampled as ``population.NAME``, ``spread.NAME`` and ``z.NAME``. The
    problem trained
    on is the first of the batch.
    """
    parameters = posterior.parameters
    if isinstance(parameters, Pooled):
        values = {s.name: _sample(s.name, s.prior, s.value) for s in parameters.sites}
    else:
        values = _sample_groups(parameters)
    response = posterior.response if posterior.response.dim() == 1 else posterior.response[0]
    answered = ~torch.isnan(response)
    likelihood = functional_call(posterior.model, values, (posterior.trials,))
    log_prob = likelihood.log_prob(torch.where(answered, response, 0.0))
    keep = posterior.mask[0][posterior.unit] * posterior.weight * answered
    pyro.factor("loglik", (log_prob * keep).sum())


def _sample(name: str, prior: torch.distributions.Distribution, value: Tensor) -> Tensor:
    lifted = to_pyro(prior)
    batch = value.shape[: value.dim() - len(prior.event_shape)]
    return pyro.sample(name, lifted.expand(batch).to_event(len(batch)))  # pyright: ignore


def _sample_groups(parameters: Grouped) -> dict[str, Tensor]:
    values = {}
    sites = parameters.pooled.sites
    means = {s.name: _sample(f"population.{s.name}", s.prior, s.value) for s in sites}
    spreads = {}
    for s in sites:
        half = dist.HalfNormal(torch.ones(s.size, dtype=s.value.dtype, device=s.value.device))
        spreads[s.name] = pyro.sample(f"spread.{s.name}", half.to_event(1))
    for s in sites:
        zero = torch.zeros(parameters.groups, s.size, dtype=s.value.dtype, device=s.value.device)
        z = pyro.sample(f"z.{s.name}", dist.Normal(zero, 1.0).to_event(2))
        mean = s.transform.inv(means[s.name]).reshape(-1)
        values[s.name] = s.constrain(mean + spreads[s.name] * z)[parameters.index]
    return values


def run_svi(
    posterior: Posterior, modes: Modes, method: SVI, seed: int
) -> tuple[Float[Tensor, "draw size"], dict[str, float | bool]]:
    """Fit the guide to the first problem; draws of u and how far the fit is to be trusted."""
    with torch.random.fork_rng(), pyro.settings.context(module_local_params=True):
        pyro.set_rng_seed(seed)
        guide = _guide(posterior, modes)
        loss = Trace_ELBO(num_particles=method.particles)(lambda: program(posterior), guide)
        loss()  # builds the guide's parameters
        _start_at(guide, posterior, modes)
        optimiser = torch.optim.Adam(loss.parameters(), lr=method.rate)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimiser, method.steps, eta_min=method.rate / 10
        )
        history = []
        for _ in range(method.steps):
            optimiser.zero_grad()
            value = loss()
            value.backward()
            optimiser.step()
            decay.step()
            history.append(value.item())
        q = guide.get_posterior()
        order = _order(posterior)
        raw = q.sample((method.draws,)).detach()
        log_q = q.log_prob(raw).detach()
    u = raw[:, order]
    prior, by_unit = posterior.draws_terms(u[None])
    log_p = prior[0] + (by_unit[0] * posterior.mask[0]).sum(-1)
    return u, {"k_hat": smooth((log_p - log_q).cpu().numpy())[1], **_judge(torch.tensor(history))}


def _guide(posterior: Posterior, modes: Modes) -> AutoMultivariateNormal:
    return AutoMultivariateNormal(lambda: program(posterior), init_scale=0.1)


def _order(posterior: Posterior) -> Tensor:
    """Where the guide, which goes site by site, keeps each component of u."""
    parameters = posterior.parameters
    if isinstance(parameters, Pooled):
        return torch.arange(parameters.size)
    d, sizes = parameters.pooled.size, parameters.pooled.sizes
    place, offset = torch.empty(parameters.groups, d, dtype=torch.int64), 2 * d
    start = 0
    for size in sizes:
        count = parameters.groups * size
        place[:, start : start + size] = (offset + torch.arange(count)).reshape(-1, size)
        start, offset = start + size, offset + count
    return torch.cat([torch.arange(2 * d), place.reshape(-1)])


def _start_at(guide: AutoMultivariateNormal, posterior: Posterior, modes: Modes) -> None:
    """Put the guide at the mode with the Laplace covariance."""
    order = _order(posterior)
    covariance = modes.factor[0] @ modes.factor[0].T
    loc, shuffled = torch.empty_like(modes.u[0]), torch.empty_like(covariance)
    loc[order] = modes.u[0]
    shuffled[order[:, None], order[None, :]] = covariance
    lower = torch.linalg.cholesky(shuffled)
    scale = lower.diagonal()
    with torch.no_grad():
        guide.loc.copy_(loc)
        guide.scale.copy_(scale)
        guide.scale_tril.copy_(lower / scale[:, None])


def _judge(history: Tensor) -> dict[str, float | bool]:
    """Whether the loss still falls: the last quarter against the one before it."""
    quarter = len(history) // 4
    last, before = history[-quarter:], history[-2 * quarter : -quarter]
    se = ((last.var() + before.var()) / quarter).sqrt()
    fall = before.mean() - last.mean()
    return {"elbo": -last.mean().item(), "converged": bool(fall < 2 * se + 0.01)}
