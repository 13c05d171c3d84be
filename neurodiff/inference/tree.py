"""The result of a fit: an ``xarray.DataTree`` in the ArviZ schema, with the curves over logsnr and exact leave-one-out.

The posterior holds every parameter on its own scale under its dotted name, the weighting w(logsnr)
and the stopping
density -w′(logsnr) of every draw. Leave-one-out is PSIS once per distinct row, in chunks, so that
memory follows the number
of distinct rows and not of trials.
"""

import json

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.func import functional_call, vmap

import neurodiff
from neurodiff.inference.laplace import Laplace
from neurodiff.inference.nuts import NUTS, diagnose
from neurodiff.inference.priors import Grouped, Pooled
from neurodiff.inference.psis import leave_one_out
from neurodiff.inference.svi import SVI

_KEEP = 500  # draws kept of what is large: log likelihoods, curves
_PREDICT = 100  # draws of the posterior predictive
_GRID = 121  # points of a curve over logsnr
_MARGIN = 2.0  # nats that a curve reaches beyond the tested logsnr


def grid_of(bound) -> Tensor:  # noqa: ANN001  (fit.Bound; importing it would be circular)
    """A grid over the tested logsnr and two nats beyond, in the gauge of the stimulus."""
    model = bound.posterior.model
    with torch.no_grad():
        tested = model.front_end(bound.posterior.trials)
    tested = tested[torch.isfinite(tested)]
    low, high = torch.quantile(tested, torch.tensor([0.001, 0.999]).to(tested))
    return torch.linspace(low.item() - _MARGIN, high.item() + _MARGIN, _GRID, dtype=torch.float64)


def curves(bound, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN001
    """Grid, w and -w′ at each of the flat draws (draw, [group,] logsnr)."""
    model, grid = bound.posterior.model, grid_of(bound)
    wide = grid if grid.device == u.device else grid.to(u.device)
    parameters = bound.posterior.parameters
    pooled = parameters if isinstance(parameters, Pooled) else parameters.pooled
    values = pooled.constrain(u if isinstance(parameters, Pooled) else parameters.deviations(u)[2])
    prefix = "weighting."
    own = {k[len(prefix) :]: v for k, v in values.items() if k.startswith(prefix)}

    def w(draw: dict[str, Tensor], at: Tensor) -> Tensor:
        return functional_call(model.weighting, draw, (at,))

    def both(draw: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        value, slope = torch.func.jvp(lambda at: w(draw, at), (wide,), (torch.ones_like(wide),))
        return value, -slope

    function = vmap(both)
    if isinstance(parameters, Grouped):
        function = vmap(function)
    if not own:  # a weighting with nothing to learn: one curve for all draws
        value, density = both({})
        return grid, value.expand(len(u), -1), density.expand(len(u), -1)
    value, density = function(own)
    return grid, value, density


def _thin(draws: int, keep: int) -> np.ndarray:
    return np.linspace(0, draws - 1, min(keep, draws)).astype(int)


def _posterior_group(bound, u: Tensor) -> xr.Dataset:  # noqa: ANN001
    """Parameters and curves; dims chain, draw, [the groups'], and what the parameter is an array over."""
    values = bound.posterior.parameters.constrain(u)
    grouped = bound.groups is not None
    group_dim = [bound.unit_dim if bound.unit_dim != bound.dim else "group"] if grouped else []
    variables = {}
    for name, value in values.items():
        own = grouped and not name.startswith(("population.", "spread."))
        dims = ["chain", "draw", *(group_dim if own else [])]
        short = name.removeprefix("population.").removeprefix("spread.")
        rest = [f"{short}.{i}" for i in range(value.dim() - len(dims))]
        variables[name] = ([*dims, *rest], value.detach().cpu().numpy())
    coords = {group_dim[0]: bound.groups} if grouped else {}
    data = xr.Dataset(variables, coords=coords)
    model = bound.posterior.model
    if hasattr(model, "weighting") and hasattr(model, "front_end"):
        thin = _thin(u.shape[1], max(1, _KEEP // u.shape[0]))
        flat = u[:, thin].reshape(-1, u.shape[-1])
        grid, w, density = curves(bound, flat)
        shape = (u.shape[0], len(thin))
        dims = ["chain", "curve_draw", *group_dim, "logsnr"]
        for name, value in (("weighting", w), ("stopping_density", density)):
            array = value.detach().reshape(*shape, *value.shape[1:]).cpu().numpy()
            data[name] = (dims, array.astype(np.float32))
        data = data.assign_coords(logsnr=("logsnr", grid.numpy(), {"units": "nat"}))
    return data


def _chunks(bound, u: Tensor, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # noqa: ANN001
    """Leave-one-out over all draws and thinned log likelihoods, a bounded number of rows at a time."""
    joint = bound.posterior
    flat = u.reshape(-1, u.shape[-1])
    keep = _thin(len(flat), _KEEP)
    n = joint.response.shape[-1]
    step = max(1, 16_000_000 // len(flat))
    elpd, k_hat, kept = [], [], []
    for low in range(0, n, step):
        part = _rows_of(joint, slice(low, low + step))
        _, by_row = part.draws_terms(flat[None])
        e, k = leave_one_out((by_row[0] / part.weight).cpu().numpy())
        elpd.append(e)
        k_hat.append(k)
        kept.append((by_row[0][keep] / part.weight).cpu().numpy().astype(np.float32))
    return np.concatenate(elpd), np.concatenate(k_hat), np.concatenate(kept, 1)[:, :rows]


def _rows_of(joint, part: slice):  # noqa: ANN001, ANN202
    """The posterior restricted to some rows, each its own unit."""
    n = joint.response.shape[-1]
    if n <= (part.stop - part.start):
        return joint
    trials = {k: v[part] if v.dim() and len(v) == n else v for k, v in joint.trials.items()}
    response, weight = joint.response[part], joint.weight[part]
    unit = torch.arange(len(response), device=response.device)
    mask = torch.ones(1, len(response), dtype=response.dtype, device=response.device)
    parameters = joint.parameters
    if isinstance(parameters, Grouped):
        groups = parameters.groups
        parameters = Grouped(parameters.pooled.sites, parameters.index[part])
        parameters.groups, parameters.sizes[2] = groups, groups * parameters.pooled.size
        parameters.size = sum(parameters.sizes)
    return type(joint)(joint.model, parameters, trials, response, unit, mask, weight)


def _likelihood_groups(bound, u: Tensor) -> dict[str, xr.Dataset]:  # noqa: ANN001
    joint, dim = bound.posterior, bound.unit_dim
    flat = u.reshape(-1, u.shape[-1])
    if dim == bound.dim:  # trials are exchangeable: leave one out
        elpd, k_hat, kept = _chunks(bound, u, joint.response.shape[-1])
        rows = bound.rows
        answered = ~np.isnan(joint.response.cpu().numpy())[rows]
        elpd = np.where(answered, elpd[rows], 0.0)
        loo_group = xr.Dataset({"elpd": (dim, elpd), "k_hat": (dim, k_hat[rows])})
        return {
            "log_likelihood": xr.Dataset(
                {"row": (["draw", "row"], kept)}, coords={"row_of_trial": (dim, rows)}
            ),
            "loo": loo_group,
        }
    keep = _thin(len(flat), _KEEP)
    _, by_unit = joint.draws_terms(flat[keep][None])
    values = by_unit[0].cpu().numpy().astype(np.float32)
    return {
        "log_likelihood": xr.Dataset(
            {dim: (["draw", f"{dim}_unit"], values)}, coords={f"{dim}_unit": bound.unit_names}
        )
    }


def _predictive(bound, u: Tensor, seed: int) -> xr.Dataset:  # noqa: ANN001
    """Responses that the fitted model would give to the same trials."""
    joint = bound.posterior
    flat = u.reshape(-1, u.shape[-1])
    chosen = flat[_thin(len(flat), _PREDICT)]
    rows = torch.as_tensor(bound.rows)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        drawn = []
        for one in chosen:
            values = joint.parameters.trial_values(one)
            answer = functional_call(joint.model, values, (joint.trials,))
            mean = answer.mean if not hasattr(answer, "probs") else answer.probs
            drawn.append(_sample_rows(answer, mean, rows))
    name = str(getattr(joint.model, "response", "response"))
    stacked = torch.stack(drawn).cpu().numpy().astype(np.float32)
    return xr.Dataset({name: (["chain", "draw", bound.dim], stacked[None])})


def _sample_rows(answer, mean: Tensor, rows: Tensor) -> Tensor:  # noqa: ANN001
    """One response for each trial: rows that stand for several trials are drawn several times."""
    if len(rows) == len(mean):
        return answer.sample()
    p = mean[rows.to(mean.device)]
    return torch.bernoulli(p)


def _prior_group(bound, seed: int) -> xr.Dataset:  # noqa: ANN001
    parameters = bound.posterior.parameters
    pooled = parameters if isinstance(parameters, Pooled) else parameters.pooled
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        variables = {}
        for site in pooled.sites:
            batch = site.value.shape[: site.value.dim() - len(site.prior.event_shape)]
            value = site.prior.expand(batch).sample((500,))[None].cpu().numpy()
            rest = [f"{site.name}.{i}" for i in range(value.ndim - 2)]
            variables[site.name] = (["chain", "draw", *rest], value)
    return xr.Dataset(variables)


def _stats_group(u: Tensor, stats: dict) -> xr.Dataset:
    variables = {k: v for k, v in stats.items() if not isinstance(v, np.ndarray)}
    arrays = {k: (["chain", "draw"], v) for k, v in stats.items() if isinstance(v, np.ndarray)}
    data = xr.Dataset({**{k: ((), v) for k, v in variables.items()}, **arrays})
    if u.shape[0] > 1:
        r_hat, bulk = diagnose(u)
        data["r_hat_max"], data["ess_min"] = float(np.nanmax(r_hat)), float(np.nanmin(bulk))
    return data


def build_tree(
    bound,  # noqa: ANN001
    data: xr.Dataset,
    u: Tensor,
    stats: dict,
    method: Laplace | SVI | NUTS,
    seed: int,
    device: str,
    wall: float,
) -> xr.DataTree:
    """Assemble the groups of a fit; the arguments are what :func:`neurodiff.fit` went through."""
    parameters = bound.posterior.parameters
    pooled = parameters if isinstance(parameters, Pooled) else parameters.pooled
    model = bound.posterior.model
    response = str(model.response)
    groups = {
        "posterior": _posterior_group(bound, u),
        "sample_stats": _stats_group(u, stats),
        "posterior_predictive": _predictive(bound, u, seed),
        "prior": _prior_group(bound, seed),
        "observed_data": xr.Dataset({response: (bound.dim, data[response].values)}),
        **_likelihood_groups(bound, u),
    }
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {
        "inference_library": "neurodiff",
        "inference_library_version": neurodiff.__version__,
        "method": repr(method),
        "seed": seed,
        "device": device,
        "wall_seconds": round(wall, 3),
        "priors": json.dumps({site.name: str(site.prior) for site in pooled.sites}),
        "fixed": json.dumps(
            {n: p.tolist() for n, p in model.named_parameters() if not p.requires_grad}
        ),
        "unit": bound.unit_dim,
        "data": str(data.attrs.get("name", "")),
        "data_hash": str(data.attrs.get("data_hash", "")),
        "model": str(model),
    }
    return tree
