r"""The log density that is explored, for a batch of problems on one model.

.. math:: \log p(u \mid \text{data}) = \log p(u)
    + \sum_j m_j \sum_{i \in \text{unit } j} n_i \log p(y_i \mid x(u))

A *unit* is what a claim generalises over: a block of a time series, a subject, an image, or the
trial itself; n_i counts how often a row of the design occurs. Folds are problems that share all
trials and differ in the 0/1 mask m over units; calibration sets are problems with responses of
their own. Both are one call: the model runs under ``vmap`` over problems and draws.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vmap

from neurodiff.inference.groups import Grouped
from neurodiff.inference.priors import Pooled, nearest

_CACHE = 400_000  # numbers in one temporary of a chunk of draws
_CELLS = 2_000_000  # numbers in one temporary of a Hessian
_LONG = 5_000  # rows from which draws are weighed in single precision: memory is what they wait for


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
    wanted: str = model.response  # pyright: ignore[reportAssignmentType]
    required = tuple(model.requires)  # pyright: ignore[reportArgumentType]
    trials = {}
    for name in dict.fromkeys([*required, wanted]):
        if name not in data.variables:
            known = [str(k) for k in data.variables]
            raise ValueError(f"the data have no variable {name!r}: {nearest(name, known)}")
        values = np.array(data[name].values, dtype=np.float64)  # a copy: files may be read-only
        if name != wanted and np.isnan(values).any():
            place = tuple(int(i) for i in np.argwhere(np.isnan(values))[0])
            raise ValueError(
                f"{name!r} is NaN at {data[name].dims} = {place}: drop or mend these rows"
            )
        trials[name] = torch.as_tensor(values, device=device)
    response = trials[wanted]
    if wanted not in required:
        del trials[wanted]
    for module in model.modules():
        if hasattr(module, "prepare"):
            trials |= module.prepare(trials)  # pyright: ignore[reportCallIssue]
    return trials, response


@dataclass(frozen=True)
class Posterior:
    """Log densities of a batch of problems, each of a flat unconstrained vector u.

    Attributes:
        model: Called as ``model(trials)`` with its parameters replaced.
        parameters: Pooled or Grouped parameters.
        trials: Shared by all problems.
        response: (trial,), or (batch, trial) where each problem has its own; NaN is no answer.
        unit: Index of the unit of generalisation of each trial.
        mask: 1 where a unit is trained on.
        weight: (trial,) multiplicity of each row; 0 leaves it out.
    """

    model: nn.Module
    parameters: Pooled | Grouped
    trials: dict[str, Tensor]
    response: Tensor
    unit: Int[Tensor, " trial"]
    mask: Float[Tensor, "batch unit"]
    weight: Float[Tensor, " trial"]

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

    def select(self, problems: Tensor) -> "Posterior":
        """Some of the problems, by index or as a boolean mask."""
        response = self.response if self._shared else self.response[problems]
        return replace(self, response=response, mask=self.mask[problems])

    def take(self, rows: Int[Tensor, " row"]) -> "Posterior":
        """One problem on some of the rows, in that order, each its own unit and counted once."""
        n = len(self.unit)
        trials = {k: v[rows] if v.dim() and len(v) == n else v for k, v in self.trials.items()}
        one = self.parameters.take(rows)
        return posterior(self.model, one, trials, self.response[..., rows])

    @cached_property
    def _shared(self) -> bool:
        """Whether all problems have the same responses."""
        return self.response.dim() == 1

    @cached_property
    def _answers(self) -> tuple[Tensor, Tensor]:
        """Responses (where one is missing, another stands in) and how often each counts."""
        missing = torch.isnan(self.response)
        stand_in = torch.nan_to_num(self.response.nanmedian())
        return torch.where(missing, stand_in, self.response), self.weight * ~missing

    @cached_property
    def _counts(self) -> Float[Tensor, "batch trial"]:
        """How often each row counts in each problem."""
        return self.mask[:, self.unit] * self._answers[1]

    @cached_property
    def _each_once(self) -> bool:
        """Whether every row counts once."""
        return bool((self._answers[1] == 1).all())

    @cached_property
    def _by_row(self) -> bool:
        """Whether each row is its own unit."""
        n = self.mask.shape[1]
        return n == len(self.unit) and torch.equal(self.unit, torch.arange(n).to(self.unit))

    @cached_property
    def _order(self) -> tuple[Tensor | None, Tensor]:
        """The rows sorted by unit (None where they are), and the number of rows of each."""
        sorted_already = bool((self.unit.diff() >= 0).all())
        order = None if sorted_already else self.unit.argsort(stable=True)
        return order, torch.bincount(self.unit, minlength=self.mask.shape[1])

    def rows(self, u: Float[Tensor, " size"], y: Float[Tensor, " trial"]) -> Tensor:
        """Log p(y_i | x(u)) of each row, in the precision of y."""
        values = {k: v.to(y.dtype) for k, v in self.parameters.trial_values(u).items()}
        return functional_call(self.model, values, (self.trials,)).log_prob(y)

    def log_likelihood(self, values: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Log p(data | x) of the first problem, at each trial's parameters by dotted name."""
        y = self._answers[0] if self._shared else self._answers[0][0]
        answer = functional_call(self.model, values, (self.trials,))
        return answer.log_prob(y) @ self._counts[0]

    def _density(self, u: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        return self.parameters.log_prior(u) + self.rows(u, y) @ counts

    def trained(self, by_unit: Float[Tensor, "batch draw unit"]) -> Float[Tensor, "batch draw"]:
        """Log likelihood of what is trained on; what is held out may even be impossible."""
        mask = self.mask[:, None, :]
        return torch.where(mask > 0, by_unit * mask, 0.0).sum(-1)

    @property
    def _fits_single(self) -> bool:
        observer = getattr(self.model, "observer", None)
        return self.response.shape[-1] >= _LONG and getattr(observer, "single", False)

    @cached_property
    def _single(self) -> "Posterior":
        """The same in single precision, but for u and the priors."""
        model = copy.deepcopy(self.model).float()
        trials = {k: v.float() for k, v in self.trials.items()}
        response, weight = self.response.float(), self.weight.float()
        return replace(self, model=model, trials=trials, response=response, weight=weight)

    @property
    def _in_dims(self) -> tuple[int, int | None, int]:
        return 0, None if self._shared else 0, 0

    def log_prob(self, u: Float[Tensor, "batch size"]) -> Float[Tensor, " batch"]:
        """Log p(u | data) up to a constant, each problem at its own position."""
        y, counts = self._answers[0], self._counts
        if self.batch == 1:  # vmap over one problem would only cost
            return self._density(u[0], y if self._shared else y[0], counts[0])[None]
        return vmap(self._density, self._in_dims)(u, y, counts)

    def draws_log_prob(self, u: Float[Tensor, "batch draw size"]) -> Float[Tensor, "batch draw"]:
        """Log p(u | data) at many draws of each problem, differentiable; for few distinct rows."""
        over_draws = vmap(self._density, (0, None, None))
        if self.batch == 1:
            y = self._answers[0] if self._shared else self._answers[0][0]
            return over_draws(u[0], y, self._counts[0])[None]
        return vmap(over_draws, self._in_dims)(u, self._answers[0], self._counts)

    def hessian(self, u: Float[Tensor, "batch size"]) -> Float[Tensor, "batch size size"]:
        """Second derivatives of log_prob."""
        each = self.size * self.response.shape[-1]
        parts = torch.arange(self.batch, device=u.device).split(max(1, _CELLS // each))
        return torch.cat([self.select(part)._hessian(u[part]) for part in parts])

    def _hessian(self, u: Float[Tensor, "batch size"]) -> Float[Tensor, "batch size size"]:
        # not jacrev: it would load torch's compiler, two seconds in every worker
        leaf = u.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.log_prob(leaf).sum(), leaf, create_graph=True)
        eye = torch.eye(self.size, dtype=u.dtype, device=u.device)[:, None].expand(-1, len(u), -1)
        rows = [
            torch.autograd.grad(gradient, leaf, some, retain_graph=True, is_grads_batched=True)[0]
            for some in eye.split(max(1, _CELLS // self.response.shape[-1]))
        ]
        return torch.cat(rows).transpose(0, 1)

    @torch.no_grad()
    def draws_terms(
        self, u: Float[Tensor, "batch draw size"]
    ) -> tuple[Float[Tensor, "batch draw"], Float[Tensor, "batch draw unit"]]:
        """Log prior and log likelihood by unit at many draws, a bounded number at a time.

        A long design whose observer says so (``single``) is evaluated in single precision. Where
        the model gives no number the log likelihood is -inf.
        """
        flat = u.reshape(-1, u.shape[-1])
        prior = vmap(self.parameters.log_prior)(flat)
        by_unit = flat.new_empty(len(flat), self.mask.shape[1])
        quick = self._single if self._fits_single else self
        (y, counts), in_dims = quick._answers, self._in_dims[:2]
        for part in torch.arange(len(flat)).split(max(1, _CACHE // self.response.shape[-1])):
            problem = ... if self._shared else part.to(u.device) // u.shape[1]
            rows = vmap(quick.rows, in_dims)(flat[part], y[problem])
            rows = rows if self._each_once else rows * counts[problem]
            found = self._by_unit(rows).to(by_unit)
            by_unit[part] = torch.where(torch.isnan(found), -torch.inf, found)
        return prior.reshape(u.shape[:2]), by_unit.reshape(*u.shape[:2], -1)

    def _by_unit(self, rows: Float[Tensor, "draw trial"]) -> Float[Tensor, "draw unit"]:
        """Sums over the rows of each unit."""
        if self._by_row:
            return rows
        order, lengths = self._order
        # transposed, as a product with a matrix under vmap leaves them: no copy
        rows = rows.mT if order is None else rows.mT[order]
        return torch.segment_reduce(rows.contiguous(), "sum", lengths=lengths, axis=0).mT


def posterior(
    model: nn.Module,
    parameters: Pooled | Grouped,
    trials: dict[str, Tensor],
    response: Tensor,
    unit: Tensor | None = None,
    weight: Tensor | None = None,
) -> Posterior:
    """One problem that trains on every unit; a trial is its own unit unless said otherwise."""
    if unit is None:
        unit = torch.arange(response.shape[-1], device=response.device)
    batch = len(response) if response.dim() == 2 else 1
    mask = response.new_ones(batch, int(unit.max()) + 1)
    weight = response.new_ones(response.shape[-1]) if weight is None else weight
    return Posterior(model, parameters, trials, response, unit, mask, weight)


P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def _one_thread() -> Iterator[None]:
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


def on_one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Run in float64 on one torch thread, both restored after: small problems lose by more."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with _one_thread():
            return function(*args, **kwargs)

    return wrapped
