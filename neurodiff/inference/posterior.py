r"""The log density that is explored, for a batch of problems on one model.

.. math:: \log p(u \mid \text{data}) = \log p(u)
    + \sum_j m_j \sum_{i \in \text{unit } j} n_i \log p(y_i \mid x(u))

A *unit* is what a claim generalises over: a block of a time series, a subject, an image, or the
trial itself; n_i counts how often a row of the design occurs. Folds are problems that share all
trials and differ in the 0/1 mask m over units; calibration sets are problems with responses of
their own; sessions have everything of their own (:mod:`~neurodiff.inference.stack`). All are one
call: the model runs under ``vmap`` over problems and draws.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from neurodiff.inference.groups import Grouped
from neurodiff.inference.priors import Pooled

_CACHE = 400_000  # numbers in one temporary of a chunk of draws: on a CPU it stays in the cache
_MEMORY = 20_000_000  # the same on a GPU, which wants large steps
_CELLS = 2_000_000  # numbers in one temporary of a Hessian
_LONG = 5_000  # rows from which draws are weighed in single precision: memory is what they wait for


@dataclass(frozen=True)
class Posterior:
    """Log densities of a batch of problems, each of a flat unconstrained vector u.

    Attributes:
        model: Called as ``model(trials)`` with its parameters replaced.
        parameters: Pooled or Grouped parameters.
        trials: Shared by all problems, or with a leading (batch,) where weight has it.
        response: (trial,), or (batch, trial) where each problem has its own; NaN is no answer.
        unit: (trial,) or (batch, trial) index of the unit of generalisation of each trial.
        mask: 1 where a unit is trained on.
        weight: Multiplicity of each row, 0 leaves it out: (trial,), or (batch, trial) where each
            problem has trials of its own.
        buffers: Those of the model that differ between problems: (batch, …) by dotted name.
    """

    model: nn.Module
    parameters: Pooled | Grouped
    trials: dict[str, Tensor]
    response: Tensor
    unit: Int[Tensor, "*apart trial"]
    mask: Float[Tensor, "batch unit"]
    weight: Float[Tensor, "*batch trial"]
    buffers: dict[str, Tensor] = field(default_factory=dict)

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
        some = replace(self, response=response, mask=self.mask[problems])
        if not self._apart:
            return some
        return replace(
            some,
            parameters=self.parameters.select(problems),
            trials={name: value[problems] for name, value in self.trials.items()},
            unit=self.unit if self.unit.dim() == 1 else self.unit[problems],
            weight=self.weight[problems],
            buffers={name: value[problems] for name, value in self.buffers.items()},
        )

    def take(self, rows: Int[Tensor, " row"]) -> "Posterior":
        """One problem on some of the rows, in that order, each its own unit and counted once."""
        n = self.unit.shape[-1]
        trials = {k: v[rows] if v.dim() and len(v) == n else v for k, v in self.trials.items()}
        one = self.parameters.take(rows)
        return posterior(self.model, one, trials, self.response[..., rows])

    @cached_property
    def _shared(self) -> bool:
        """Whether all problems have the same responses."""
        return self.response.dim() == 1

    @cached_property
    def _apart(self) -> bool:
        """Whether each problem has trials, and priors, of its own."""
        return self.weight.dim() == 2

    @cached_property
    def _answers(self) -> tuple[Tensor, Tensor]:
        """Responses (where one is missing, another stands in) and how often each counts."""
        missing = torch.isnan(self.response)
        each = self.response.nanmedian(-1, keepdim=True).values
        stand_in = torch.nan_to_num(each if self._apart else self.response.nanmedian())
        return torch.where(missing, stand_in, self.response), self.weight * ~missing

    @cached_property
    def _counts(self) -> Float[Tensor, "batch trial"]:
        """How often each row counts in each problem."""
        mask = self.mask
        mask = mask[:, self.unit] if self.unit.dim() == 1 else mask.gather(1, self.unit)
        return mask * self._answers[1]

    @cached_property
    def _each_once(self) -> bool:
        """Whether every row counts once."""
        return bool((self._answers[1] == 1).all())

    @cached_property
    def by_row(self) -> bool:
        """Whether each row is its own unit."""
        each = torch.arange(self.mask.shape[1], device=self.unit.device)
        return torch.equal(self.unit, each)

    @cached_property
    def _order(self) -> tuple[Tensor | None, Tensor]:
        """The rows sorted by unit (None where they are), and the number of rows of each."""
        sorted_already = bool((self.unit.diff() >= 0).all())
        order = None if sorted_already else self.unit.argsort(stable=True)
        return order, torch.bincount(self.unit, minlength=self.mask.shape[1])

    @cached_property
    def _case(self) -> tuple[dict[str, Any], dict[str, int | None]]:
        """What, besides u, each density is of, and which of it differs between problems."""
        apart, own = 0 if self._apart else None, None if self._shared else 0
        case = {
            "trials": self.trials,
            "buffers": self.buffers,
            "y": self._answers[0],
            "prior": (self.parameters.coefficients,) if self._apart else (),  # pyright: ignore
            "counts": self._counts,
        }
        return case, {"trials": apart, "buffers": apart, "y": own, "prior": apart, "counts": 0}

    def _at(self, problems: int | Tensor) -> dict[str, Any]:
        """The cases of some of the problems."""
        case, dims = self._case
        own = {k: tree_map(lambda x: x[problems], case[k]) for k, dim in dims.items() if dim == 0}
        return case | own

    @cached_property
    def _first(self) -> dict[str, Any]:
        return self._at(0)

    def _each(
        self, function: Callable[..., Tensor], u: Tensor, problems: Tensor | None = None
    ) -> Tensor:
        """A function of u and the case, of each problem; vmap over one alone would only cost."""
        if self.batch == 1:
            return function(u[0], self._first)[None]
        case, dims = self._case
        return vmap(function, (0, dims))(u, case if problems is None else self._at(problems))

    def _rows(self, u: Float[Tensor, " size"], case: dict[str, Any]) -> Tensor:
        """Log p(y_i | x(u)) of each row, in the precision of y."""
        y = case["y"]
        values = {k: v.to(y.dtype) for k, v in self.parameters.trial_values(u).items()}
        return self._log_prob(values, case)

    def _log_prob(self, values: dict[str, Tensor], case: dict[str, Any]) -> Tensor:
        """Log p(y_i | x) of each row, at each row's parameters."""
        found = [
            answer.log_prob(case["y"] if rows is None else case["y"][rows])
            for rows, answer in self.answers(values, case["trials"], case["buffers"])
        ]
        if self._groups is None:
            return found[0]
        return torch.cat(found)[torch.cat(self._groups).argsort()]

    def answers(
        self,
        values: dict[str, Tensor],
        trials: dict[str, Tensor],
        buffers: dict[str, Tensor] | None = None,
    ) -> Iterator[tuple[Tensor | None, Distribution]]:
        """The distribution of all responses; or group by group, with the rows of each.

        A model that computes equal trials once (``apart``) has to be called for each group: what is
        equal to one is not to another. So it also solves once for what a group has in common.
        """
        given, n = values | (buffers or {}), self.unit.shape[-1]
        if self._groups is None:
            yield None, functional_call(self.model, given, (trials,))
        for rows in self._groups or ():
            own = {k: v[rows] if v.dim() and len(v) == n else v for k, v in trials.items()}
            at = {k: v[rows[0]] for k, v in values.items()}
            yield rows, functional_call(self.model, at, (own,))

    @property
    def _groups(self) -> list[Tensor] | None:
        apart = isinstance(self.parameters, Grouped) and getattr(self.model, "apart", False)
        return self.parameters.rows if apart else None  # pyright: ignore

    def log_likelihood(self, values: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Log p(data | x) of the first problem, at each trial's parameters by dotted name."""
        case = self._first
        return self._log_prob(values, case) @ case["counts"]

    def _density(self, u: Tensor, case: dict[str, Any]) -> Tensor:
        return self.parameters.log_prior(u, *case["prior"]) + self._rows(u, case) @ case["counts"]

    def trained(self, by_unit: Float[Tensor, "batch draw unit"]) -> Float[Tensor, "batch draw"]:
        """Log likelihood of what is trained on; what is held out may even be impossible."""
        mask = self.mask[:, None, :]
        if bool((mask == 1).all()):
            return by_unit.sum(-1)  # no copies of what may fill the memory
        return torch.where(mask > 0, by_unit * mask, 0.0).sum(-1)

    @property
    def _fits_single(self) -> bool:
        observer = getattr(self.model, "observer", self.model)
        long = max(self.response.shape[-1], getattr(self.model, "cells", 0)) >= _LONG
        return long and getattr(observer, "single", False)

    @cached_property
    def _single(self) -> "Posterior":
        """The same in single precision, but for u and the priors."""
        model = copy.deepcopy(self.model).float()
        trials = {k: v.float() for k, v in self.trials.items()}
        response, weight = self.response.float(), self.weight.float()
        buffers = {k: v.float() for k, v in self.buffers.items()}
        return replace(
            self, model=model, trials=trials, response=response, weight=weight, buffers=buffers
        )

    def log_prob(self, u: Float[Tensor, "batch size"]) -> Float[Tensor, " batch"]:
        """Log p(u | data) up to a constant, each problem at its own position."""
        return self._each(self._density, u)

    def draws_log_prob(self, u: Float[Tensor, "batch draw size"]) -> Float[Tensor, "batch draw"]:
        """Log p(u | data) at many draws of each problem, differentiable; for few distinct rows."""
        return self._each(vmap(self._density, (0, None)), u)

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

        A long design whose observer, or model, says so (``single``) is evaluated in single
        precision. Where the model gives no number the log likelihood is -inf.
        """
        batch, draws, _ = u.shape
        by_unit = u.new_empty(batch, draws, self.mask.shape[1])
        quick, counts = self._single if self._fits_single else self, self._answers[1]
        over_draws = vmap(quick._rows, (0, None))
        # a model may say that its largest temporary is not of the trials
        each = max(self.response.shape[-1], getattr(self.model, "cells", 0))
        width = max(1, (_MEMORY if u.is_cuda else _CACHE) // each)
        for p in torch.arange(batch, device=u.device).split(max(1, width // draws)):
            for d in range(0, draws, width):
                rows = quick._each(over_draws, u[p, d : d + width], p)
                if not self._each_once:
                    rows = rows * (counts if counts.dim() == 1 else counts[p][:, None])
                found = self._by_unit(rows.to(by_unit), p)
                by_unit[p, d : d + width] = torch.where(torch.isnan(found), -torch.inf, found)
        return self.parameters.draws_log_prior(u), by_unit

    def _by_unit(self, rows: Float[Tensor, "problem draw trial"], problems: Tensor) -> Tensor:
        """Sums over the rows of each unit."""
        if self.by_row:
            return rows
        if self.unit.dim() == 2:
            index = self.unit[problems][:, None].expand_as(rows)
            return rows.new_zeros(*rows.shape[:2], self.mask.shape[1]).scatter_add(2, index, rows)
        order, lengths = self._order
        # transposed, as a product with a matrix under vmap leaves them: no copy
        rows = rows.flatten(0, 1).mT
        rows = rows if order is None else rows[order]
        summed = torch.segment_reduce(rows.contiguous(), "sum", lengths=lengths, axis=0).mT
        return summed.reshape(len(problems), -1, len(lengths))


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
