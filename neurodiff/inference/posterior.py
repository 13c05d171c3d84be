r"""The log density that is explored, for a batch of problems on one model.

.. math:: \log p(u \mid \text{data}) = \log p(u) + \sum_j m_j \sum_{i \in \text{unit } j} \log
p(y_i \mid x(u))

A *unit* is what a claim generalises over: a block of a time series, a subject, an image, or the
trial itself. Folds
are problems that share all trials and differ in the 0/1 mask m over units; calibration sets are
problems with
responses of their own. Both are one call: the model runs under ``vmap`` over problems and draws.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from neurodiff.inference.priors import Grouped, Pooled, nearest

_CELLS = 4_000_000  # numbers in one temporary of a chunk of draws: about 32 MB


def bind(
    model: nn.Module, data: xr.Dataset, device: str = "cpu"
) -> tuple[dict[str, Tensor], Tensor]:
    """The variables that a model reads, and its responses, as float64 tensors.

    Args:
        model: Has ``requires`` and ``response``; sub-modules with ``prepare`` add what is best
        computed once.
        data: One study.
        device: Where the tensors live.

    Raises:
        ValueError: If a variable is missing (the nearest is named) or a stimulus is NaN (the first
        place is named).
    """
    trials = {}
    for name in dict.fromkeys([*model.requires, model.response]):  # pyright: ignore
        if name not in data.variables:
            known = [str(k) for k in data.variables]
            raise ValueError(f"the data have no variable {name!r}: {nearest(name, known)}")
        values = np.asarray(data[name].values, dtype=np.float64)
        if name != model.response and np.isnan(values).any():
            first = tuple(int(i) for i in np.argwhere(np.isnan(values))[0])
            raise ValueError(
                f"{name!r} is NaN at {data[name].dims} = {first}: drop or mend these rows"
            )
        trials[name] = torch.as_tensor(values, device=device)
    response = trials[model.response]  # pyright: ignore
    if model.response not in model.requires:  # pyright: ignore
        del trials[model.response]  # pyright: ignore
    for module in model.modules():
        if hasattr(module, "prepare"):
            trials |= module.prepare(trials)  # pyright: ignore
    return trials, response


@dataclass(frozen=True)
class Posterior:
    """Log densities of a batch of problems, each a flat unconstrained vector.

    Attributes:
        model: Called as ``model(trials)`` with its parameters replaced.
        parameters: Pooled or Grouped parameters.
        trials: Shared by all problems.
        response: (trial,), or (batch, trial) where each problem has its own.
        unit: Index of the unit of generalisation of each trial.
        mask: (batch, unit), 1 where a unit is trained on.
        weight: (trial,) multiplicity of each row; 0 leaves it out.
    """

    model: nn.Module
    parameters: Pooled | Grouped
    trials: dict[str, Tensor]
    response: Tensor
    unit: Tensor
    mask: Float[Tensor, "batch unit"]
    weight: Tensor

    @property
    def batch(self) -> int:
        """Number of problems."""
        return len(self.mask)

    @property
    def size(self) -> int:
        """Length of u."""
        return self.parameters.size

    def with_mask(self, mask: Float[Tensor, "batch unit"]) -> "Posterior":
        """The same trials with other units trained on."""
        return replace(self, mask=mask)

    def log_likelihood(
        self, u: Float[Tensor, " size"], response: Float[Tensor, " trial"]
    ) -> Tensor:
        """Log p(y_i | x(u)) of each row, times its multiplicity; a missing response contributes nothing."""
        values = self.parameters.trial_values(u)
        answered = ~torch.isnan(response)
        y = torch.where(answered, response, 0.0)
        log_prob = functional_call(self.model, values, (self.trials,)).log_prob(y)
        return torch.where(answered, log_prob, 0.0) * self.weight

    def _terms(self, u: Tensor, response: Tensor) -> tuple[Tensor, Tensor]:
        """Log prior, and log likelihood summed within each unit."""
        by_unit = u.new_zeros(self.mask.shape[1])
        by_unit = by_unit.index_add(0, self.unit, self.log_likelihood(u, response))
        return self.parameters.log_prior(u), by_unit

    def _density(self, u: Tensor, response: Tensor, mask: Tensor) -> Tensor:
        prior, by_unit = self._terms(u, response)
        return prior + (by_unit * mask).sum()

    @property
    def _own(self) -> int | None:
        return 0 if self.response.dim() == 2 else None

    def log_prob(self, u: Float[Tensor, "batch size"]) -> Float[Tensor, " batch"]:
        """Log p(u | data) up to a constant, each problem at its own position."""
        if self.batch == 1:  # vmap over one problem would only cost
            response = self.response if self._own is None else self.response[0]
            return self._density(u[0], response, self.mask[0])[None]
        return vmap(self._density, in_dims=(0, self._own, 0))(u, self.response, self.mask)

    def draws_log_prob(self, u: Float[Tensor, "batch draw size"]) -> Float[Tensor, "batch draw"]:
        """Log p(u | data) at many draws of each problem, differentiable; for designs with few rows."""
        over_draws = vmap(self._density, in_dims=(0, None, None))
        return vmap(over_draws, in_dims=(0, self._own, 0))(u, self.response, self.mask)

    def hessian(self, u: Float[Tensor, "batch size"]) -> Float[Tensor, "batch size size"]:
        """Second derivatives of log_prob, problem by problem."""
        chunk = max(1, _CELLS // max(1, 60 * self.response.shape[-1]))
        function = vmap(
            jacrev(jacrev(self._density), chunk_size=chunk), in_dims=(0, self._own, 0), chunk_size=1
        )
        return function(u, self.response, self.mask).detach()

    def draws_terms(
        self, u: Float[Tensor, "batch draw size"]
    ) -> tuple[Float[Tensor, "batch draw"], Float[Tensor, "batch draw unit"]]:
        """Log prior and log likelihood by unit at many draws, a bounded number of rows at a time."""
        rows = u.reshape(-1, u.shape[-1])
        chunk = max(1, _CELLS // (8 * self.response.shape[-1]))
        if self._own is None:
            function = vmap(lambda v: self._terms(v, self.response), chunk_size=chunk)
            prior, by_unit = function(rows)
        else:
            inner = vmap(self._terms, in_dims=(0, None))
            chunk = max(1, chunk // u.shape[1])
            prior, by_unit = vmap(inner, in_dims=(0, 0), chunk_size=chunk)(u, self.response)
        return prior.reshape(u.shape[:2]), by_unit.reshape(*u.shape[:2], -1)


def posterior(
    model: nn.Module,
    parameters: Pooled | Grouped,
    trials: dict[str, Tensor],
    response: Tensor,
    unit: Tensor | None = None,
) -> Posterior:
    """One problem that trains on every unit; a trial is its own unit unless said otherwise."""
    n = response.shape[-1]
    unit = torch.arange(n, device=response.device) if unit is None else unit
    batch = response.shape[0] if response.dim() == 2 else 1
    mask = torch.ones(batch, int(unit.max()) + 1, dtype=response.dtype, device=response.device)
    weight = torch.ones(n, dtype=response.dtype, device=response.device)
    return Posterior(model, parameters, trials, response, unit, mask, weight)


def on_one_thread(function: Callable) -> Callable:
    """Run with one torch thread, restored after: small problems lose by more."""

    def wrapped(*args: object, **kwargs: object) -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return wrapped
