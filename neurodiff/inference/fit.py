r"""``fit(model, data, method)``: a posterior over a model's parameters and its weighting curve, as
one DataTree.

.. math:: p(x \mid \text{data}) \propto p(x) \prod_i p(y_i \mid \text{model}_x(\text{trials}_i))

Rows of a design that repeat are computed once with their multiplicity. The tree follows the ArviZ
schema: ``posterior`` (with
the curves ``weighting`` and ``stopping_density`` over logsnr), ``sample_stats``,
``posterior_predictive``, ``prior``,
``observed_data``, ``log_likelihood`` by unit of generalisation and, where trials are exchangeable,
``loo``.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.distributions import Distribution

from neurodiff.inference.laplace import Laplace, Modes, find_modes, importance_draws
from neurodiff.inference.nuts import NUTS, run_chain
from neurodiff.inference.posterior import Posterior, bind, on_one_thread, posterior
from neurodiff.inference.priors import Grouped, Pooled, nearest, sites
from neurodiff.inference.svi import SVI, run_svi

_GPU_ROWS = 200_000  # rows x problems above which one batched step gains from a GPU


@dataclass(frozen=True)
class Bound:
    """A model met with data: the posterior to explore, and what is needed to describe it.

    Attributes:
        posterior: The log density, one problem.
        start: u at the modules' own values, and the default places of the priors.
        rows: Row of the posterior that each original trial became.
        unit_names: Labels of the units of generalisation.
        unit_dim: Their dimension: ``trial``, ``block`` or the grouping variable.
        groups: Labels of the groups with ``by=``; else None.
        dim: Dimension of the responses in the data.
    """

    posterior: Posterior
    start: Tensor
    rows: np.ndarray
    unit_names: np.ndarray
    unit_dim: str
    groups: np.ndarray | None
    dim: str


def _distinct(trials: dict[str, Tensor], response: Tensor, extra: list[Tensor]) -> Tensor | None:
    """For each trial its distinct row, or None where the order of trials matters (lags, samples)."""
    n = len(response)
    if any(t.dim() != 1 or len(t) != n for t in trials.values()):
        return None
    columns = torch.stack([*trials.values(), response, *extra], -1).cpu().numpy()
    _, first, rows = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    return torch.as_tensor(rows.reshape(-1)) if len(first) < n else None


def join(
    model: nn.Module,
    data: xr.Dataset,
    priors: Mapping[str, Distribution] | None = None,
    by: str | None = None,
    unit: str | None = None,
    device: str = "cpu",
) -> Bound:
    """Meet a model with data: bind variables, collect priors, merge equal rows, name the units.

    Args:
        model: A model of the trials.
        data: One study.
        priors: Parameter priors by dotted name, in place of the defaults.
        by: A coordinate of the trials whose values are the groups of hierarchical parameters.
        unit: A coordinate of the trials over which claims generalise; by default ``block`` where
        the data have
            one, else the trial.
        device: Where the tensors live.

    Raises:
        ValueError: If a variable or a prior is missing, or ``by`` has a single value.
    """
    trials, response = bind(model, data, device)
    dim = str(data[model.response].dims[0])  # pyright: ignore
    groups, index = (None, None) if by is None else _labels(data, by, dim)
    if groups is not None and len(groups) < 2:
        raise ValueError(
            f"got a single {by} ({groups[0]!r}): hierarchical parameters need at least two; fit without by="
        )
    unit = unit or ("block" if "block" in data.coords and data["block"].dims == (dim,) else None)
    names, unit_index = (
        (np.arange(len(response)), None) if unit is None else _labels(data, unit, dim)
    )
    extra = [torch.as_tensor(i, dtype=torch.float64) for i in (index, unit_index) if i is not None]
    rows = _distinct(trials, response, extra)
    weight = None
    if rows is not None:
        count = int(rows.max()) + 1
        first = torch.full((count,), len(rows)).scatter_reduce(
            0, rows, torch.arange(len(rows)), "amin"
        )
        trials = {name: value[first] for name, value in trials.items()}
        response = response[first]
        weight = torch.bincount(rows).to(response)
        index = None if index is None else index[first.numpy()]
        unit_index = None if unit_index is None else unit_index[first.numpy()]
    centre = model.centre(trials) if hasattr(model, "centre") else {}  # pyright: ignore
    found = sites(model, {**centre, **(priors or {})})
    parameters = Pooled(found)
    if index is not None:
        parameters = Grouped(found, torch.as_tensor(index, device=device))
    units = None if unit_index is None else torch.as_tensor(unit_index, device=device)
    joint = posterior(model, parameters, trials, response, units)
    if weight is not None:
        joint = Posterior(**{**vars(joint), "weight": weight})
    start = _start(parameters, centre)
    return Bound(joint, start, _rows(rows, response), names, unit or dim, groups, dim)


def _rows(rows: Tensor | None, response: Tensor) -> np.ndarray:
    return np.arange(len(response)) if rows is None else rows.numpy()


def _labels(data: xr.Dataset, name: str, dim: str) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values of a coordinate along the trials, and each trial's index among them."""
    if name not in data.variables:
        known = [str(c) for c in data.variables if data[c].dims == (dim,)]
        raise ValueError(f"the data have no {name!r} along {dim}: {nearest(name, known)}")
    return np.unique(data[name].values, return_inverse=True)


def _start(parameters: Pooled | Grouped, centre: Mapping[str, Distribution]) -> Tensor:
    """The modules' values, with places moved to where the stimuli are."""
    pooled = parameters if isinstance(parameters, Pooled) else parameters.pooled
    u = parameters.start()
    offset = 0
    for site, size in zip(pooled.sites, pooled.sizes, strict=True):
        if site.name in centre:
            middle = site.prior.mean.expand(site.value.shape)
            u[offset : offset + size] = site.transform.inv(middle).reshape(-1)
        offset += size
    return u


def _perturbed(bound: Bound, starts: int, seed: int) -> Tensor:
    """The starting point, and others scattered by half a unit around it."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(starts, bound.posterior.size, generator=generator, dtype=torch.float64)
    noise[0] = 0.0
    return bound.start + 0.5 * noise.to(bound.start)


def modes_of(bound: Bound, starts: int, seed: int) -> Modes:
    """The best mode from several starts; starts whose density is not finite are dropped."""
    best = None
    for u in _perturbed(bound, starts, seed):
        try:
            found = find_modes(bound.posterior, u[None])
        except ValueError:  # not finite there: another start may be
            continue
        if best is None or found.log_prob[0] > best.log_prob[0]:
            best = found
    if best is None:
        raise ValueError(
            "the log density is not finite at any starting point: check the data and the priors"
        )
    return best


def choose_device(device: str, bound_rows: int) -> str:
    """``auto`` takes the GPU only where one batched step is large enough to gain from it."""
    if device != "auto":
        return device
    large = bound_rows > _GPU_ROWS and torch.cuda.is_available()
    return "cuda" if large else "cpu"


@on_one_thread
def fit(
    model: nn.Module,
    data: xr.Dataset,
    method: Laplace | SVI | NUTS | None = None,
    *,
    priors: Mapping[str, Distribution] | None = None,
    by: str | None = None,
    seed: int,
    device: str = "auto",
    executor: Executor | None = None,
) -> xr.DataTree:
    """Infer a model's parameters, and with them its weighting, from data.

    Args:
        model: ``model(trials) -> Distribution`` with ``requires`` and ``response``, for example
            :class:`neurodiff.Threshold`.
        data: One study, from :func:`neurodiff.load` or :func:`neurodiff.read`.
        method: ``Laplace()`` (default), ``SVI()`` or ``NUTS()``.
        priors: Parameter priors by dotted name, in place of the modules' own.
        by: Coordinate whose values (subjects, units) get hierarchical parameters.
        seed: The same seed gives the same result on the same machine.
        device: ``cpu``, ``cuda`` or ``auto``; the choice is written to the attrs.
        executor: Runs the chains of NUTS side by side.

    Returns:
        A tree of groups in the ArviZ schema; ``to_netcdf`` keeps it.

    Raises:
        ValueError: If the data lack a variable, hold a NaN stimulus, or a prior names no parameter.

    >>> import neurodiff as nd, xarray as xr
    >>> data = xr.Dataset({"logsnr": ("trial", [-2.0, 0.0, 2.0] * 20), "correct": ("trial", [0.0, 1, 1] * 20)})
    >>> model = nd.Threshold(nd.SurvivalWeighting(nd.laws.Logistic()), nd.observers.Choice(choices=2))
    >>> result = fit(model, data, Laplace(draws=100), seed=0)
    >>> result["posterior"]["weighting.law.loc"].dims
    ('chain', 'draw')
    """
    from neurodiff.inference.tree import build_tree

    began = time.perf_counter()
    method = Laplace() if method is None else method
    size = int(np.prod([data.sizes[d] for d in data.sizes]))
    device = choose_device(device, size)
    bound = join(model, data, priors, by, device=device)
    starts = method.starts if isinstance(method, Laplace) else 4
    modes = modes_of(bound, starts, seed)
    u, stats = explore(bound, modes, method, seed, executor)
    wall = time.perf_counter() - began
    return build_tree(bound, data, u, stats, method, seed, device, wall)


def explore(
    bound: Bound, modes: Modes, method: Laplace | SVI | NUTS, seed: int, executor: Executor | None
) -> tuple[Tensor, dict]:
    """Draws (chain, draw, size) by the method, and its statistics."""
    shape = {
        "gradient": modes.gradient[0].item(),
        "mode_converged": bool(modes.converged[0]),
        "hessian_definite": bool(modes.definite[0]),
    }
    if isinstance(method, Laplace):
        generator = torch.Generator().manual_seed(seed)
        draws = importance_draws(bound.posterior, modes, method.draws, generator)
        shape |= {
            "k_hat": draws.k_hat[0].item(),
            "ess": draws.ess[0].item(),
            "log_evidence": draws.log_evidence[0].item(),
        }
        return draws.u, shape
    if isinstance(method, SVI):
        u, stats = run_svi(bound.posterior, modes, method, seed)
        return u[None], shape | stats
    mapper = map if executor is None else executor.map
    n = method.chains
    seeds = [seed * n + i for i in range(n)]
    chains = list(mapper(run_chain, [bound.posterior] * n, [modes] * n, [method] * n, seeds))
    u = torch.stack([chain for chain, _ in chains])
    diverging = np.stack([stats["diverging"] for _, stats in chains])
    return u, shape | {"diverging": diverging}
