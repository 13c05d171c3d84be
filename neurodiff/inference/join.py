r"""A model met with data: rows that repeat are merged, units and groups get their names.

.. math:: \sum_i \log p(y_i \mid \text{trial}_i) =
    \sum_{\text{distinct } r} n_r \log p(y_r \mid \text{trial}_r)

Where a row of the design stands by itself (no spike history, no stimulus samples), equal rows of
equal group and unit are computed once with their multiplicity n. A row that is its own unit of
generalisation is still one trial: leave-one-out leaves out one of the n.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn
from torch.distributions import Distribution

from neurodiff.data.schema import DataError, answer_problems
from neurodiff.inference.groups import Grouped
from neurodiff.inference.posterior import Posterior, posterior
from neurodiff.inference.priors import Pooled, nearest, sites


@dataclass(frozen=True)
class Bound:
    """A model met with data: the posterior to explore, and what is needed to describe it.

    Attributes:
        posterior: The log density, one problem.
        start: u at the modules' own values, and at the middle of priors that follow the data.
        place: 1 for the components of u with such a prior: places on logsnr.
        rows: Row of the posterior that each original trial became.
        unit_names: Labels of the units of generalisation.
        unit_dim: Their dimension: ``trial``, ``block`` or the variable asked for.
        groups: Labels of the groups with ``by=``; else None.
        dim: Dimension of the responses in the data.
        by: The grouping variable, which names their dimension.
    """

    posterior: Posterior
    start: Tensor
    place: Tensor
    rows: np.ndarray
    unit_names: np.ndarray
    unit_dim: str
    groups: np.ndarray | None
    dim: str
    by: str | None = None

    @property
    def pooled(self) -> Pooled:
        """The parameters of one group."""
        parameters = self.posterior.parameters
        return parameters if isinstance(parameters, Pooled) else parameters.pooled


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
        model: A model of the trials; a copy in float64 is used.
        data: One study.
        priors: Parameter priors by dotted name, in place of the defaults.
        by: A coordinate of the trials whose values are the groups of hierarchical parameters.
        unit: A coordinate of the trials over which claims generalise; by default ``block`` where
            the data have one, else what the model says (``unit``), else the trial.
        device: Where the tensors live.

    Raises:
        ValueError: If a variable or a prior is missing, ``by`` has a single value, no trial has an
            answer, or a choice is not among the model's.
    """
    model = copy.deepcopy(model).to(device=device, dtype=torch.float64)
    trials, response = bind(model, data, device)
    if torch.isnan(response).all():
        raise ValueError(
            f"{model.response!r} is missing (empty or NaN) in all {len(response)} rows; wanted at "
            "least one answer"
        )
    if model.response == "choice":  # a file is checked as it is read, what is made in Python here
        labels = getattr(getattr(model, "observer", None), "labels", 2)
        asked = data.assign_attrs(n_choices=labels)
        if problems := list(answer_problems(asked, data["choice"], response.cpu().numpy())):
            raise DataError("; ".join(problems))
    dim = str(data[model.response].dims[0])  # pyright: ignore[reportArgumentType]
    if unit is None and "block" in data.coords and data["block"].dims == (dim,):
        unit = "block"
    unit = unit or getattr(model, "unit", None)
    groups, group = (None, None) if by is None else _groups(data, by, dim)
    names, index = (np.arange(len(response)), None) if unit is None else _labels(data, unit, dim)
    # before rows are merged: the middle of the tested logsnr is that of the trials
    centre = centre_of(model, trials)
    found = sites(model, {**centre, **(priors or {})})
    rows = distinct(trials, response, [c for c in (group, index) if c is not None])
    first, weight = None, None
    if rows is None:
        rows = np.arange(len(response))
    else:
        first = np.unique(rows, return_index=True)[1]
        weight = torch.bincount(torch.as_tensor(rows)).to(response)
        trials = {name: value[first] for name, value in trials.items()}
        response = response[first]

    def kept(labels: np.ndarray | None) -> Tensor | None:
        if labels is None:
            return None
        return torch.as_tensor(labels if first is None else labels[first], device=device)

    index, group = kept(index), kept(group)
    parameters = Pooled(found) if group is None else Grouped(found, group)
    joint = posterior(model, parameters, trials, response, index, weight)
    start, place = _start(parameters, centre)
    return Bound(joint, start, place, rows, names, unit or dim, groups, dim, by)


def bind(
    model: nn.Module, data: xr.Dataset, device: str = "cpu"
) -> tuple[dict[str, Tensor], Tensor]:
    """The variables that a model reads, and its responses, as float64 tensors.

    Args:
        model: Has ``requires`` and ``response``, and ``optional`` variables that it reads where the
            data have them; sub-modules with ``prepare`` add what is best computed once.
        data: One study.
        device: Where the tensors live.

    Raises:
        ValueError: If a variable is missing (the nearest is named), or is text or a stimulus NaN
            (the first place is named).
    """
    wanted: str = model.response  # pyright: ignore[reportAssignmentType]
    required = tuple(model.requires)  # pyright: ignore[reportArgumentType]
    trials, more = {}, [n for n in getattr(model, "optional", ()) if n in data.variables]
    for name in dict.fromkeys([*required, *more, wanted]):
        if name not in data.variables:
            known = [str(k) for k in data.variables]
            raise ValueError(f"the data have no variable {name!r}: {nearest(name, known)}")
        values = _numbers(data[name])
        if name != wanted and np.isnan(values).any():
            place = tuple(int(i) for i in np.argwhere(np.isnan(values))[0])
            mend = "drop or mend these rows"
            if values.ndim > 1:  # of trials that are not all as long
                nothing = "the end of the trial" if name.endswith("time") else 0
                mend += f", and where nothing was shown data.fillna({{{name!r}: {nothing}}})"
            raise ValueError(f"{name!r} is NaN at {data[name].dims} = {place}: {mend}")
        trials[name] = torch.as_tensor(values, device=device)
    response = trials[wanted]
    if wanted not in required:
        del trials[wanted]
    for module in model.modules():
        if hasattr(module, "prepare"):
            trials |= module.prepare(trials)  # pyright: ignore[reportCallIssue]
    return trials, response


def _numbers(variable: xr.DataArray) -> np.ndarray:
    """As float64, a copy: files may be read-only."""
    try:
        return np.array(variable.values, dtype=np.float64)
    except ValueError:
        text = np.isnan(np.asarray(pd.to_numeric(variable.values.ravel(), errors="coerce"), float))
        at = np.unravel_index(text.argmax(), variable.shape)
        raise ValueError(
            f"{variable.name!r} is {str(variable.values[at])!r} at {variable.dims} = "
            f"{tuple(map(int, at))} (from 0), wanted a number: recode names as numbers"
            + (", those that the table of evidence has" if variable.name == "shown" else "")
        ) from None


def centre_of(model: nn.Module, trials: dict[str, Tensor]) -> dict[str, Distribution]:
    """Default priors that follow the data, of what is learned."""
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    centre = model.centre(trials) if hasattr(model, "centre") else {}  # pyright: ignore
    return {name: prior for name, prior in centre.items() if name in learned}


def distinct(
    trials: Mapping[str, Tensor], response: Tensor, labels: Sequence[np.ndarray]
) -> np.ndarray | None:
    """For each trial its distinct row, or None where none repeats or a trial is more than a row."""
    n = len(response)
    if any(t.dim() != 1 or len(t) != n for t in trials.values()):
        return None
    columns = [*(t.cpu().numpy() for t in (*trials.values(), response)), *labels]
    frame = pd.DataFrame(dict(enumerate(columns)))
    rows = frame.groupby(list(frame), dropna=False).ngroup().to_numpy(copy=True)
    return rows if rows.max() + 1 < n else None


def _groups(data: xr.Dataset, by: str, dim: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the groups, at least two, and each trial's."""
    names, index = _labels(data, by, dim)
    if len(names) < 2:
        raise ValueError(
            f"got a single {by} ({str(names[0])!r}): hierarchical parameters need at least two, "
            "fit without by="
        )
    return names, index


def _labels(data: xr.Dataset, name: str, dim: str) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values of a coordinate along the trials, and each trial's index among them."""
    if name not in data.variables or data[name].dims != (dim,):
        known = [str(c) for c in data.variables if data[c].dims == (dim,)]
        raise ValueError(f"the data have no {name!r} along {dim}: {nearest(name, known)}")
    return np.unique(data[name].values, return_inverse=True)


def _start(
    parameters: Pooled | Grouped, centre: Mapping[str, Distribution]
) -> tuple[Tensor, Tensor]:
    """The modules' values, with places moved to where the stimuli are; and which are places."""
    pooled = parameters if isinstance(parameters, Pooled) else parameters.pooled
    u = parameters.start()
    place, offset = torch.zeros_like(u), 0
    for site in pooled.sites:
        if site.name in centre:
            middle = site.unconstrain(site.prior.mean)
            place[offset : offset + site.size] = 1.0
            u[offset : offset + site.size] = torch.where(torch.isfinite(middle), middle, 0.0)
        offset += site.size
    return u, place
