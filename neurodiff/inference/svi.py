r"""Stochastic variational inference with a full-rank normal guide, started at the Laplace fit.

.. math:: \max_{m, C} \; E_{u \sim N(m, C C^T)}\,[\log p(u, \text{data}) - \log q(u)]

The guide starts at the mode with the Laplace covariance, so what is left to learn is skew and
weight. Convergence is judged, not assumed: the ELBO of the last quarter must not exceed that of the
quarter before by more than two standard errors, and the Pareto k̂ of p/q over fresh draws must stay
below 0.7.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor
from torch.func import vmap

from neurodiff.inference.groups import Grouped
from neurodiff.inference.laplace import Modes
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.priors import Pooled, Site
from neurodiff.inference.psis import smooth


@dataclass(frozen=True)
class SVI:
    """Fit by stochastic variational inference.

    Args:
        draws: Draws from the fitted guide.
        steps: Optimiser steps.
        particles: Draws behind each gradient.
        rate: Learning rate of Adam, lowered tenfold along a cosine.
    """

    draws: int = 1000
    steps: int = 1000
    particles: int = 8
    rate: float = 0.01


def program(posterior: Posterior) -> None:
    """The Pyro program of a model: each prior by its dotted name, then the likelihood as a factor.

    Hierarchical parameters are sampled as ``population.NAME``, ``spread.NAME`` and ``z.NAME``. The
    problem trained on is the first of the batch. Its log density is that of
    :meth:`~neurodiff.inference.posterior.Posterior.log_prob`, by another way: a test.
    """
    parameters = posterior.parameters
    prefix = "" if isinstance(parameters, Pooled) else "population."
    sampled = {prefix + s.name: _sample(prefix + s.name, s) for s in parameters.sites}
    if isinstance(parameters, Grouped):
        sampled |= _sample_groups(parameters)

    def log_likelihood(values: dict[str, Tensor]) -> Tensor:
        if isinstance(parameters, Grouped):
            values = _by_trial(parameters, values)
        return posterior.log_likelihood(values)

    first = parameters.sites[0]
    if sampled[prefix + first.name].dim() > first.value.dim():  # particles side by side
        log_likelihood = vmap(log_likelihood)
    pyro.factor("loglik", log_likelihood(sampled))


def _sample(name: str, site: Site) -> Tensor:
    batch = site.value.shape[: site.value.dim() - len(site.prior.event_shape)]
    return pyro.sample(name, site.prior.expand(batch).to_event(len(batch)))  # pyright: ignore


def _sample_groups(parameters: Grouped) -> dict[str, Tensor]:
    """Spread and deviations of each parameter."""
    values = {}
    for s in parameters.sites:
        half = dist.HalfNormal(s.value.new_ones(s.size)).to_event(1)
        values[f"spread.{s.name}"] = pyro.sample(f"spread.{s.name}", half)
    for s in parameters.sites:
        normal = dist.Normal(s.value.new_zeros(parameters.groups, s.size), 1.0).to_event(2)
        values[f"z.{s.name}"] = pyro.sample(f"z.{s.name}", normal)
    return values


def _by_trial(parameters: Grouped, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each trial's parameters: T(μ + τ z) of its group."""
    found = {}
    for s in parameters.sites:
        mean = s.unconstrain(values[f"population.{s.name}"])
        own = s.constrain(mean + values[f"spread.{s.name}"] * values[f"z.{s.name}"])
        found[s.name] = own[parameters.index]
    return found


def run_svi(
    posterior: Posterior, modes: Modes, method: SVI, seed: int
) -> tuple[Float[Tensor, "draw size"], dict[str, float | bool]]:
    """Fit the guide to the first problem; draws of u and how far the fit is to be trusted."""

    def model() -> None:
        program(posterior)

    order = _order(posterior)
    with torch.random.fork_rng(), pyro.settings.context(module_local_params=True):
        pyro.set_rng_seed(seed)
        guide = AutoMultivariateNormal(model)
        elbo = Trace_ELBO(method.particles, max_plate_nesting=0, vectorize_particles=True)
        loss = elbo(model, guide)  # pyright: ignore[reportArgumentType]
        loss()  # builds the guide's parameters
        _start_at(guide, order, modes)
        history = _descend(loss, method)
        with torch.no_grad():
            q = guide.get_posterior()
            raw = q.sample(torch.Size([method.draws]))
            log_q = q.log_prob(raw)
    u = raw[:, order]
    prior, by_unit = posterior.draws_terms(u[None])
    log_p = prior[0] + by_unit[0] @ posterior.mask[0]
    k_hat = smooth((log_p - log_q).cpu().numpy())[1]
    elbo = -history[-(len(history) // 4) :].mean().item()
    return u, {"elbo": elbo, "k_hat": k_hat, "converged": not _falls(history) and k_hat < 0.7}


def _descend(loss: torch.nn.Module, method: SVI) -> Float[Tensor, " step"]:
    """Adam on the negative ELBO; its history."""
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
    return torch.tensor(history)


def _order(posterior: Posterior) -> Tensor:
    """Where the guide, which goes site by site, keeps each component of u."""
    parameters = posterior.parameters
    if isinstance(parameters, Pooled):
        return torch.arange(parameters.size)
    d, sizes, groups = parameters.pooled.size, parameters.pooled.sizes, parameters.groups
    places, offset = [], 2 * d
    for size in sizes:
        places.append((offset + torch.arange(groups * size)).reshape(groups, size))
        offset += groups * size
    return torch.cat([torch.arange(2 * d), torch.cat(places, -1).reshape(-1)])


def _start_at(guide: AutoMultivariateNormal, order: Tensor, modes: Modes) -> None:
    """Put the guide at the mode with the Laplace covariance."""
    covariance = modes.factor[0] @ modes.factor[0].T
    loc, shuffled = torch.empty_like(modes.u[0]), torch.empty_like(covariance)
    loc[order] = modes.u[0]
    shuffled[order[:, None], order[None, :]] = covariance
    lower = torch.linalg.cholesky(shuffled)
    scale = lower.diagonal()
    with torch.no_grad():
        guide.loc.copy_(loc)
        guide.scale = scale  # pyright: ignore[reportAttributeAccessIssue]
        guide.scale_tril = lower / scale[:, None]  # pyright: ignore[reportAttributeAccessIssue]


def _falls(history: Float[Tensor, " step"]) -> bool:
    """Whether the loss still falls: the last quarter against the one before it."""
    quarter = max(2, len(history) // 4)
    last, before = history[-quarter:], history[-2 * quarter : -quarter]
    se = ((last.var() + before.var()) / quarter).sqrt()
    return bool(before.mean() - last.mean() > 2 * se + 0.01)
