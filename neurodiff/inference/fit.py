r"""``fit(model, data, method)``: a posterior over a model's parameters and its weighting curve.

.. math:: p(x \mid \text{data}) \propto p(x) \prod_i p(y_i \mid \text{model}_x(\text{trials}_i))

Modes come first, whatever the method: Laplace draws around them (of a hierarchy group by group, in
two stages), SVI starts its guide there, and NUTS takes its metric from them. The result is one
DataTree, see :mod:`~neurodiff.inference.tree`.
"""

import math
import re
import time
from collections.abc import Mapping
from concurrent.futures import Executor

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.distributions import Distribution

from neurodiff.inference.groups import Grouped
from neurodiff.inference.join import Bound as Bound
from neurodiff.inference.join import join as join
from neurodiff.inference.laplace import Laplace, Modes, best_modes
from neurodiff.inference.nuts import NUTS, run_chain
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.stages import First, first_stage, two_stages
from neurodiff.inference.svi import SVI, run_svi
from neurodiff.inference.together import Ask, Steps, alone
from neurodiff.inference.tree import build_tree

_AWAY = 1.5  # nats between the places of starts
_GPU_ROWS = 200_000  # rows x problems above which one batched step gains from a GPU


def _perturbed(bound: Bound, starts: int, seed: int) -> Tensor:
    """The starting point, others with its places moved either way, then scattered ones.

    A law whose place lies beyond all tested logsnr says nothing, so that a start there stays there:
    a step is found from near it alone.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(starts, bound.posterior.size, generator=generator, dtype=torch.float64)
    u = bound.start + 0.5 * noise.to(bound.start)
    u[0] = bound.start
    if bound.place.any():
        for i, away in zip(range(1, starts), (_AWAY, -_AWAY), strict=False):
            u[i] = bound.start + away * bound.place
    return u


def modes_of(bound: Bound, starts: int, seed: int) -> Modes:
    """The best mode from several starts; starts whose density is not finite are dropped."""
    return best_modes(bound.posterior, _perturbed(bound, starts, seed)[:, None])


def choose_device(device: str, bound_rows: int) -> str:
    """``auto`` takes the GPU only where one batched step is large enough to gain from it.

    Raises:
        ValueError: If it is neither ``auto``, ``cpu``, ``cuda`` nor ``cuda:N``.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"got device {device!r}, wanted auto, cpu, cuda or cuda:N (a GPU is cuda)")
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
    >>> columns = {"logsnr": [-2.0, 0.0, 2.0] * 20, "correct": [0.0, 1.0, 1.0] * 20}
    >>> data = xr.Dataset({name: ("trial", values) for name, values in columns.items()})
    >>> model = nd.Threshold(nd.weighting("sigmoid"), nd.observers.Choice(choices=2))
    >>> fit(model, data, Laplace(draws=100), seed=0)["posterior"]["weighting.shift"].dims
    ('chain', 'draw')
    """
    began = time.perf_counter()
    method = Laplace() if method is None else method
    device = choose_device(device, max(data.sizes.values(), default=0))
    bound = join(model, data, priors, by, device=device)
    _, u, stats = alone(fitting(bound, method, seed, executor))
    wall = time.perf_counter() - began
    return build_tree(bound, data, u, stats, method, seed, device, wall)


def fitting(
    bound: Bound, method: Laplace | SVI | NUTS, seed: int, executor: Executor | None = None
) -> Steps[tuple[Modes | First, Tensor, dict]]:
    """The steps of a fit: modes, draws (chain, draw, size) by the method, and its statistics.

    Laplace fits without groups ask, so that those of many parts are answered in one batch; what
    else there is (hierarchies, SVI, NUTS) explores by itself. A hierarchy by Laplace begins with
    the modes of its groups, and has no joint one.
    """
    if not isinstance(method, Laplace):
        modes = modes_of(bound, 4, seed)
        return modes, *explore(bound, modes, method, seed, executor)
    if isinstance(bound.posterior.parameters, Grouped):
        generator = torch.Generator().manual_seed(seed)
        first = first_stage(bound.posterior, generator)
        u, k_hat = two_stages(first, method.draws, generator)
        return first, u[None], {"k_hat": k_hat}
    start = _perturbed(bound, method.starts, seed)[:, None]
    generator = torch.Generator().manual_seed(seed)
    joint = bound.posterior
    modes, found = yield Ask(joint, joint.mask, start, None, 2 * method.draws, generator)
    stats = _shape(modes) | {
        "k_hat": found.k_hat[0].item(),
        # of chains, which took over where k̂ is infinite, weights say nothing
        "ess": found.ess[0].item() if math.isfinite(found.k_hat[0]) else math.nan,
        "log_evidence": found.log_evidence[0].item(),
    }
    return modes, found.resample(method.draws, generator), stats


def _shape(modes: Modes) -> dict:
    return {
        "gradient": modes.gradient[0].item(),
        "mode_converged": bool(modes.converged[0]),
        "hessian_definite": bool(modes.definite[0]),
    }


def explore(
    bound: Bound,
    modes: Modes,
    method: SVI | NUTS,
    seed: int,
    executor: Executor | None,
) -> tuple[Tensor, dict]:
    """Draws (chain, draw, size) by SVI or NUTS, and the statistics."""
    if isinstance(method, SVI):
        u, stats = run_svi(bound.posterior, modes, method, seed)
        return u[None], _shape(modes) | stats
    mapper = map if executor is None else executor.map
    n = method.chains
    seeds = [seed * n + i for i in range(n)]
    chains = list(mapper(run_chain, [bound.posterior] * n, [modes] * n, [method] * n, seeds))
    u = torch.stack([chain for chain, _ in chains])
    diverging = np.stack([stats["diverging"] for _, stats in chains])
    return u, _shape(modes) | {"diverging": diverging}
