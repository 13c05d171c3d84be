r"""The beta-binomial psychometric fit: the curve that a psychophysicist would draw.

.. math::

    p(y_{1:n}) = \frac{B(k + \alpha,\ n - k + \beta)}{B(\alpha, \beta)},
    \quad \alpha = \nu p,\ \beta = \nu (1 - p),\ \nu = 1/\eta^2 - 1

A cell is a level shown to a subject: n answers, k of them right, whose probability varies from cell
to cell around the logistic curve p(λ) with correlation η². The density is that of the answers in
their order, without the binomial coefficient that others include: it compares with single trials.

References:
    Schütt, Harmeling, Macke & Wichmann 2016, "Painfree and accurate Bayesian estimation of
    psychometric functions for (potentially) overdispersed data".
"""

from typing import ClassVar

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Beta, Distribution, constraints

from neurodiff.data.schema import require
from neurodiff.diffusion.laws import Logistic
from neurodiff.diffusion.weighting import SurvivalWeighting
from neurodiff.perception.observers import Choice
from neurodiff.perception.stopping import Threshold


class OrderedBetaBinomial(Distribution):
    r"""k right among n answers in a given order, whose probability varies from cell to cell.

    .. math:: \log p = \log B(k + \nu p,\ n - k + \nu(1 - p)) - \log B(\nu p,\ \nu(1 - p))

    There is no binomial coefficient, so that log densities compare with those of single trials.

    >>> p = OrderedBetaBinomial(torch.tensor(2.0), torch.tensor(0.5), torch.tensor(0.5))
    >>> p.log_prob(torch.tensor(1.0)).exp()
    tensor(0.1875)
    """

    arg_constraints: ClassVar = {"probs": constraints.unit_interval}  # pyright: ignore

    def __init__(
        self, total: Float[Tensor, "*cell"], probs: Tensor, overdispersion: Tensor
    ) -> None:
        self.total = total
        # within rounding of 0 and 1, and of a binomial, the logarithms would overflow
        self.probs = probs.clamp(1e-12, 1 - 1e-12)
        self.nu = 1 / overdispersion.square().clamp(1e-8, 1 - 1e-12) - 1
        shape = torch.broadcast_shapes(total.shape, probs.shape, overdispersion.shape)
        super().__init__(shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """E k."""
        return self.total * self.probs

    @property
    def variance(self) -> Tensor:
        """Binomial, n p (1 − p), times 1 + (n − 1) η²."""
        binomial = self.total * self.probs * (1 - self.probs)
        return binomial * (1 + (self.total - 1) / (1 + self.nu))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of one order of k right answers."""
        a, b = self.nu * self.probs, self.nu * (1 - self.probs)
        right = torch.lgamma(value + a) - torch.lgamma(a)
        wrong = torch.lgamma(self.total - value + b) - torch.lgamma(b)
        return right + wrong - (torch.lgamma(self.total + self.nu) - torch.lgamma(self.nu))

    def each_given_the_others(self, value: Tensor) -> tuple[Tensor, Tensor]:
        r"""Log probability of one right answer of a cell, and of one wrong one, given the rest.

        .. math:: \frac{k - 1 + \nu p}{n - 1 + \nu}, \qquad
            \frac{n - k - 1 + \nu (1 - p)}{n - 1 + \nu}

        0 where the cell has no such answer.
        """
        wrong = self.total - value
        right_mass = torch.where(value > 0, value - 1, 0.0) + self.nu * self.probs
        wrong_mass = torch.where(wrong > 0, wrong - 1, 0.0) + self.nu * (1 - self.probs)
        log_total = torch.log((self.total - 1) + self.nu)
        right = torch.where(value > 0, right_mass.log() - log_total, 0.0)
        return right, torch.where(wrong > 0, wrong_mass.log() - log_total, 0.0)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Counts of right answers."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            p = Beta(self.nu * self.probs, self.nu * (1 - self.probs)).sample(sample_shape)
            return torch.binomial(self.total.expand(shape).contiguous(), p.expand(shape))


class BetaBinomial(nn.Module):
    r"""A logistic psychometric function with overdispersed cells, for data from :func:`by_level`.

    Guess, ceiling and lapse are those of :class:`~neurodiff.observers.Choice`. The overdispersion
    η, Beta(1, 10), is the square root of the correlation between the answers of a cell; 0 is the
    binomial.

    Args:
        choices: Number of alternatives.
        guess: The guess rate, when it is not 1/choices; with neither, it is learned.
        front_end: What turns the level of a cell into logsnr; by default its logsnr.

    >>> cells = {"logsnr": torch.tensor([-torch.inf]), "n": torch.tensor([10.0])}
    >>> BetaBinomial(choices=2)(cells).mean.detach()
    tensor([5.])
    """

    response = "correct_count"
    constraints: ClassVar = {"overdispersion": constraints.unit_interval}
    priors: ClassVar = {"overdispersion": Beta(1.0, 10.0)}

    def __init__(
        self,
        choices: int | None = None,
        guess: float | None = None,
        front_end: nn.Module | None = None,
    ) -> None:
        super().__init__()
        observer = Choice(choices=choices, guess=guess)
        self.psychometric = Threshold(SurvivalWeighting(Logistic()), observer, front_end)
        self.overdispersion = nn.Parameter(torch.tensor(0.1))

    @property
    def requires(self) -> tuple[str, ...]:
        """The variables of the front end, and the number of answers of a cell."""
        return (*self.psychometric.requires, "n")

    def centre(self, trials: dict[str, Tensor]) -> dict[str, Distribution]:
        """Default prior of the psychometric function's place."""
        places = self.psychometric.centre(trials)
        return {f"psychometric.{name}": prior for name, prior in places.items()}

    def forward(self, trials: dict[str, Tensor]) -> Distribution:
        """The number of right answers in each cell, for one order of them."""
        probs = self.psychometric(trials).probs  # pyright: ignore
        return OrderedBetaBinomial(trials["n"], probs, self.overdispersion)


def by_level(data: xr.Dataset) -> xr.Dataset:
    """Count right answers in cells of equal logsnr, and equal subject where there is one.

    Returns:
        A row of dimension ``trial`` for each cell: ``correct_count``, ``n`` (answers given; NaN is
        none), ``logsnr`` and ``subject``. Cells without an answer are left out.

    Raises:
        DataError: If ``logsnr`` or ``correct`` is missing.

    >>> logsnr, correct = [0.0, 0.0, 1.0], [1.0, 0.0, torch.nan]
    >>> data = xr.Dataset({"logsnr": ("trial", logsnr), "correct": ("trial", correct)})
    >>> cells = by_level(data)
    >>> cells["n"].values, cells["correct_count"].values
    (array([2.]), array([1.]))
    """
    require(data, ["logsnr", "correct"])
    frame, keys = _answers(data)
    cells = frame.groupby(keys)["correct"].agg(["sum", "count"]).reset_index()
    columns = {"correct_count": cells["sum"], "n": cells["count"], "logsnr": cells["logsnr"]}
    counted = xr.Dataset(
        {name: ("trial", column.to_numpy(float)) for name, column in columns.items()},
        attrs=data.attrs,
    )
    counted["logsnr"].attrs = data["logsnr"].attrs
    if "subject" not in cells:
        return counted
    return counted.assign_coords(subject=("trial", cells["subject"].to_numpy(str)))


def cell_of(data: xr.Dataset) -> np.ndarray:
    """The row of :func:`by_level` that each trial is counted in; -1 for a missing answer.

    >>> logsnr, correct = [0.0, 0.0, 1.0, 1.0], [1.0, 0.0, torch.nan, 0.0]
    >>> data = xr.Dataset({"logsnr": ("trial", logsnr), "correct": ("trial", correct)})
    >>> cell_of(data)
    array([ 0,  0, -1,  1])
    """
    frame, keys = _answers(data)
    cell = np.full(data.sizes["trial"], -1)
    cell[frame.index] = frame.groupby(keys).ngroup()
    return cell


def _answers(data: xr.Dataset) -> tuple[pd.DataFrame, list[str]]:
    """The answers that were given, and what makes a cell."""
    names = ["logsnr", "correct", *(["subject"] if "subject" in data.coords else [])]
    frame = data[names].to_dataframe().reset_index(drop=True).dropna(subset=["correct"])
    return frame, [name for name in ("subject", "logsnr") if name in frame]
