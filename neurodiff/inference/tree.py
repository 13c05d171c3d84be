"""The result of a fit: an ``xarray.DataTree`` in the ArviZ schema.

``posterior`` holds every parameter on its own scale under its dotted name, and the curves
``weighting`` and ``stopping_density`` over logsnr of every draw. ``log_likelihood`` is by unit of
generalisation (where trials are exchangeable, by distinct row). ``loo`` is PSIS once per distinct
row, over all draws, in chunks: memory follows the distinct rows and not the trials. An answer that
is missing has elpd 0, so that sums stay what they are.
"""

import json
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

import neurodiff
from neurodiff.inference.curves import curves
from neurodiff.inference.join import Bound
from neurodiff.inference.laplace import Laplace
from neurodiff.inference.nuts import NUTS, diagnose
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.psis import leave_one_out
from neurodiff.inference.svi import SVI
from neurodiff.perception.classify import Tabled
from neurodiff.perception.reaction import Reaction

_KEEP = 500  # draws kept of log likelihoods
_PREDICT = 100  # draws of the posterior predictive, at most
_PREDICTED = 20_000_000  # its responses, at most
_TILED = 10_000  # of them drawn in one call: more are drawn faster one draw at a time
_CHUNK = 8_000_000  # log likelihoods at a time


def _thin(draws: int, keep: int) -> np.ndarray:
    return np.linspace(0, draws - 1, min(keep, draws)).astype(int)


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _posterior_group(bound: Bound, u: Float[Tensor, "chain draw size"]) -> xr.Dataset:
    """Parameters and curves, over chain, draw, [the groups] and what a parameter is an array of."""
    group = [] if bound.by is None else [bound.by]
    variables: dict[str, tuple] = {}
    for name, value in bound.posterior.parameters.constrain(u).items():
        own = not name.startswith(("population.", "spread."))
        dims = ["chain", "draw", *(group if own else [])]
        short = name.removeprefix("population.").removeprefix("spread.")
        rest = [f"{short}.{i}" for i in range(value.dim() - len(dims))]
        variables[name] = ([*dims, *rest], _array(value))
    coords: dict[str, object] = {} if bound.by is None else {bound.by: bound.groups}
    model = bound.posterior.model
    if hasattr(model, "weighting") and (hasattr(model, "front_end") or isinstance(model, Tabled)):
        grid, *both = curves(bound, u.reshape(-1, u.shape[-1]))
        for name, value in zip(("weighting", "stopping_density"), both, strict=True):
            array = _array(value).astype(np.float32).reshape(*u.shape[:2], *value.shape[1:])
            variables[name] = (["chain", "draw", *group, "logsnr"], array)
        coords["logsnr"] = ("logsnr", grid.numpy(), {"units": "nat"})
    return xr.Dataset(variables, coords)


def _stats_group(bound: Bound, u: Float[Tensor, "chain draw size"], stats: dict) -> xr.Dataset:
    """What the method says of itself; for several chains R-hat and ESS of every component of u.

    Of decision times, at the mean draw, the most by which steps half as long change a probability,
    and where trials have no answer, nats of the probability of that of one of these.
    """
    data = xr.Dataset(
        {k: (["chain", "draw"], v) if isinstance(v, np.ndarray) else v for k, v in stats.items()}
    )
    joint = bound.posterior
    if isinstance(joint.model, Reaction):
        values = joint.parameters.trial_values(u.mean((0, 1)))
        pair = joint, replace(joint, model=joint.model.finer())
        with torch.no_grad():
            both = list(zip(*(one.answers(values, joint.trials) for one in pair), strict=True))
            data["unsure"] = max(float(a.distance(b).max()) for (_, a), (_, b) in both)  # pyright: ignore
            none = torch.isinf(joint.response)
            if none.any():
                nats = (
                    a.omission_distance(b, (none if own is None else none[own]).nonzero()[:, 0])  # pyright: ignore
                    for (own, a), (_, b) in both
                )
                data["unsure_none"] = float(torch.cat(list(nats)).max())
    if u.shape[0] > 1:
        r_hat, ess = diagnose(u)
        data["r_hat"], data["ess_bulk"] = ("component", r_hat), ("component", ess)
        data["r_hat_max"], data["ess_min"] = float(r_hat.max()), float(ess.min())
    return data


def _loo(joint: Posterior, flat: Float[Tensor, "draw size"]) -> tuple[np.ndarray, ...]:
    """Elpd and k̂ of one trial of each row, over all draws, and thinned log likelihoods."""
    keep = _thin(len(flat), _KEEP)
    elpd, k_hat, kept = [], [], []
    rows = torch.arange(len(joint.unit), device=flat.device)
    for part in rows.split(max(1, _CHUNK // len(flat))):
        one = _array(joint.take(part).draws_terms(flat[None])[1][0])
        e, k = leave_one_out(one)
        elpd.append(e)
        k_hat.append(k)
        kept.append(one[keep].astype(np.float32))
    return np.concatenate(elpd), np.concatenate(k_hat), np.concatenate(kept, 1)


def _likelihood_groups(
    bound: Bound, flat: Float[Tensor, "draw size"], loo: bool
) -> dict[str, xr.Dataset]:
    joint, dim, name = bound.posterior, bound.unit_dim, _response(bound)
    if not loo:
        # resampled draws repeat
        distinct, back = flat[_thin(len(flat), _KEEP)].unique(dim=0, return_inverse=True)
        by_unit = joint.draws_terms(distinct[None])[1][0][back]
        kept = (["draw", dim], _array(by_unit).astype(np.float32))
        return {"log_likelihood": xr.Dataset({name: kept}, {dim: bound.unit_names})}
    elpd, k_hat, kept = _loo(joint, flat)
    rows = {"row_of_trial": (dim, bound.rows)}
    return {
        "log_likelihood": xr.Dataset({name: (["draw", "row"], kept)}, rows),
        "loo": xr.Dataset({"elpd": (dim, elpd[bound.rows]), "k_hat": (dim, k_hat[bound.rows])}),
    }


def _predictive(bound: Bound, flat: Float[Tensor, "draw size"], seed: int) -> xr.Dataset:
    """Responses that the fitted model would give to the same trials."""
    most = max(1, _PREDICTED // len(bound.rows))
    chosen = flat[_thin(len(flat), min(_PREDICT, most))]
    rows = torch.as_tensor(bound.rows, device=flat.device)
    # draws side by side differ in their parameters, and so do equal trials then
    single = bound.by is not None or getattr(bound.posterior.model, "apart", False)
    joint, drawn = bound.posterior.take(rows), []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for some in chosen.split(1 if single else max(1, _TILED // len(rows))):
            # several draws are one call: their trials side by side, with parameters of their own
            if len(joint.unit) != len(some) * len(rows):
                joint = bound.posterior.take(rows.repeat(len(some)))
            if len(some) == 1:
                values = joint.parameters.trial_values(some[0])
            else:
                each = joint.parameters.constrain(some).items()
                values = {name: v.repeat_interleave(len(rows), 0) for name, v in each}
            found = torch.empty(len(some) * len(rows), dtype=flat.dtype, device=flat.device)
            for own, answer in joint.answers(values, joint.trials):
                found[slice(None) if own is None else own] = answer.sample().to(found)
            drawn.append(_array(found.reshape(len(some), -1)).astype(np.float32))
    drawn = np.concatenate(drawn)[None]
    return xr.Dataset({_response(bound): (["chain", "draw", bound.dim], drawn)})


def _prior_group(bound: Bound, seed: int) -> xr.Dataset:
    """Draws from the parameter priors (of the population, where parameters are hierarchical)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        u = bound.pooled.draw_prior(500)
    variables = {}
    for name, value in bound.pooled.constrain(u).items():
        rest = [f"{name}.{i}" for i in range(value.dim() - 1)]
        variables[name] = (["chain", "draw", *rest], _array(value)[None])
    return xr.Dataset(variables)


def _response(bound: Bound) -> str:
    return str(bound.posterior.model.response)


def _attributes(bound: Bound, data: xr.Dataset) -> dict[str, str]:
    model = bound.posterior.model
    fixed = {n: p.tolist() for n, p in model.named_parameters() if not p.requires_grad}
    return {
        "inference_library": "neurodiff",
        "inference_library_version": neurodiff.__version__,
        "priors": json.dumps({site.name: str(site.prior) for site in bound.pooled.sites}),
        "fixed": json.dumps(fixed),
        "unit": bound.unit_dim,
        "data": str(data.attrs.get("name", "")),
        "data_hash": str(data.attrs.get("data_hash", "")),
        "model": str(model),
    }


def build_tree(
    bound: Bound,
    data: xr.Dataset,
    u: Float[Tensor, "chain draw size"],
    stats: dict,
    method: Laplace | SVI | NUTS,
    seed: int,
    device: str,
    wall: float,
) -> xr.DataTree:
    """Assemble the groups of a fit.

    Args:
        bound: Model and data.
        data: The data, for what was observed.
        u: Draws.
        stats: What the method says of itself: numbers, or arrays over chain and draw.
        method: How the draws were made.
        seed: Of the fit, and of the predictive draws.
        device: Where it ran.
        wall: Seconds it took.
    """
    flat, observed = u.reshape(-1, u.shape[-1]), data[_response(bound)]
    # the bins of a time series are not exchangeable, blocks and subjects are few
    loo = bound.unit_dim == bound.dim == "trial"
    groups = {
        "posterior": _posterior_group(bound, u),
        "sample_stats": _stats_group(bound, u, stats),
        "posterior_predictive": _predictive(bound, flat, seed),
        "prior": _prior_group(bound, seed),
        "observed_data": xr.Dataset({_response(bound): (observed.dims, observed.values)}),
        **_likelihood_groups(bound, flat, loo),
    }
    for group in groups.values():
        for variable in group.variables.values():
            if variable.ndim > 1:
                variable.encoding = {"zlib": True, "complevel": 2}
    tree = xr.DataTree.from_dict(groups)
    run = {"method": repr(method), "seed": seed, "device": device, "wall_seconds": round(wall, 3)}
    tree.attrs = _attributes(bound, data) | run
    return tree
