r"""Choosing among labels by their evidence: two ways to use a table, and what tells them apart.

With :math:`C_k(λ) = \frac12 \int_{-\infty}^{λ} m_k\,dl` the evidence against label k that has come
in by λ (:mod:`~neurodiff.perception.evidence`), s the sensitivity and π the softmax over labels,

.. math::

    \text{averaged (b):}\quad & p = π\Big({-s} \int p_w(λ)\, C(λ)\,dλ\Big)
        = π\Big({-\frac s2} \int w\, m\,dλ\Big)

    \text{stopped (c):}\quad & p = \int p_w(λ)\; π\big({-s}\, C(λ)\big)\,dλ

    P(\text{choice} = k) = \text{lapse}/K + (1 - \text{lapse})\, p_k

(b) is the diffusion classifier, that answers once from an average; (c) halts at a random SNR and
answers from what it has. They differ by Jensen's inequality. w = 1 and s = 1 is the ideal observer
of an exact denoiser. A picture shown in noise has no evidence above its own SNR: C is constant from
there, which is kind (a′).
"""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from neurodiff.diffusion.weighting import SurvivalWeighting, Weighting
from neurodiff.perception.levels import FreeWeights, OneLevel, Placed
from neurodiff.perception.observers import Categories
from neurodiff.perception.stopping import Gauge, stopped

_SOME = 512  # stimuli whose answers are computed at once
_PART = 0.25  # nats, at most, between places where denoising may halt


class Tabled(nn.Module, ABC):
    """What the two kinds have in common: the table, and who saw which stimulus.

    Args:
        weighting: A law to learn as :class:`~neurodiff.SurvivalWeighting`, or a named weighting.
        table: From :func:`~neurodiff.perception.evidence.evidence`.
        observer: By default :class:`~neurodiff.observers.Categories` over the table's labels.

    Raises:
        ValueError: A table with NaN below a stimulus's own logsnr, or trials of a stimulus that the
            table lacks.
    """

    requires, response = ("shown",), "choice"
    unit = "shown"  # what is said holds for other stimuli
    apart = True  # equal stimuli are computed once, so each group has a call of its own
    cost: Tensor
    middle: Tensor
    edges: Tensor
    stimulus: Tensor
    width: Tensor
    of: Tensor

    def __init__(
        self, weighting: Weighting, table: xr.Dataset, observer: Categories | None = None
    ) -> None:
        super().__init__()
        # float64 from the start: a cost is a small difference of large errors
        error = table["error"].transpose("stimulus", "label", "logsnr").values
        error = torch.from_numpy(error.astype(np.float64))
        width = table["width"].transpose("stimulus", "logsnr").values.astype(np.float64)
        # the cells of most stimuli are alike: what a weighting is in them is computed once
        shapes, of = np.unique(width, axis=0, return_inverse=True)
        self.register_buffer("width", torch.from_numpy(shapes))
        self.register_buffer("of", torch.from_numpy(of.ravel()))
        width = torch.from_numpy(width)[:, None]
        if (bad := (torch.isnan(error) & (width > 0)).nonzero()).numel():
            raise ValueError(
                f"the table is NaN at (stimulus, label, logsnr) = {tuple(bad[0].tolist())}, below "
                "the stimulus's own logsnr: compute it anew"
            )
        cost = 0.5 * torch.where(width > 0, width * error, 0.0)
        logsnr = torch.from_numpy(table["logsnr"].values.astype(np.float64))
        half = 0.5 * (logsnr[1] - logsnr[0])
        # of labels only differences matter, and these keep their digits
        self.register_buffer("cost", cost - cost.mean(1, keepdim=True))
        self.register_buffer("middle", logsnr)
        self.register_buffer("edges", torch.cat([logsnr[:1] - half, logsnr + half]))
        order = torch.from_numpy(table["stimulus"].values.astype(np.int64))
        self.register_buffer("stimulus", order)
        self.weighting = weighting
        self.observer = Categories(error.shape[1]) if observer is None else observer
        if self.observer.labels != error.shape[1]:
            raise ValueError(
                f"got an observer of {self.observer.labels} labels and a table of "
                f"{error.shape[1]}: give it as many"
            )
        if observer is None:
            spread = self.cost.sum(-1).std(1).median().item()
            with torch.no_grad():  # where answers are neither all alike nor all guesses
                self.observer.sensitivity.fill_(1.0 / max(spread, 1e-6))

    @property
    def cells(self) -> int:
        """Numbers in the largest temporary of one call."""
        return self.cost[..., 0].numel()

    def prepare(self, trials: dict[str, Tensor]) -> dict[str, Tensor]:
        """The row of the table that each trial's stimulus is."""
        order = self.stimulus.argsort()
        at = torch.searchsorted(self.stimulus[order], trials["shown"].long())
        row = order[at.clamp_max(len(order) - 1)]
        if (lost := (self.stimulus[row] != trials["shown"]).nonzero()).numel():
            i = int(lost[0])
            raise ValueError(
                f"trial {i} shows stimulus {trials['shown'][i]:g}, which the table of evidence "
                f"lacks: it holds {len(order)}, {self.stimulus.min()} to {self.stimulus.max()}"
            )
        return {"row": row.to(trials["shown"])}

    def centre(self, trials: dict[str, Tensor]) -> dict[str, Distribution]:
        """Default priors of what has a place on logsnr: Normal(middle of the grid, 5 nats)."""
        middle = self.middle.mean()
        if isinstance(self.weighting, Placed | Gauge):
            return {"weighting.shift": Normal(-middle, 5.0)}
        if isinstance(self.weighting, OneLevel):
            return {"weighting.loc": Normal(middle, 5.0)}
        has = hasattr(getattr(self.weighting, "law", None), "loc")
        return {"weighting.law.loc": Normal(middle, 5.0)} if has else {}

    @abstractmethod
    def chosen(self) -> Float[Tensor, "stimulus label"]:
        """Probability of each label for each stimulus, without lapses."""

    def forward(self, trials: dict[str, Tensor]) -> Distribution:
        """The distribution of the choices, batch shape (trial,)."""
        return self.observer(self.chosen()[trials["row"].long()], trials)


class AveragedEvidence(Tabled):
    r"""Kind (b): one answer, from the evidence averaged under the weighting.

    .. math:: p = π\Big({-\frac s2} \int w\, m\,dλ\Big)

    w is averaged over each cell of the table, or what of it lies below the stimulus's own logsnr. A
    survival function is 1 where λ is low; any other weighting is scaled to 1 at its largest, since
    its height is a sensitivity.

    Args:
        weighting: :class:`~neurodiff.SurvivalWeighting` of a law to learn, :class:`FreeWeights`,
            :class:`OneLevel`, or a named weighting, which is :class:`Placed`.
        table: From :func:`~neurodiff.perception.evidence.evidence`.
        observer: By default :class:`~neurodiff.observers.Categories` over the table's labels.

    Raises:
        ValueError: As :class:`Tabled`.

    >>> import neurodiff as nd
    >>> one = xr.Dataset({"error": (("stimulus", "label", "logsnr"), [[[2.0, 2.0], [0.0, 0.0]]]),
    ...                   "width": (("stimulus", "logsnr"), [[1.0, 1.0]])},
    ...                  {"stimulus": [7], "logsnr": [0.0, 1.0]})
    >>> model = AveragedEvidence(nd.weighting("elbo"), one)
    >>> _ = model.observer.sensitivity.data.fill_(1.0)
    >>> model.chosen().detach().numpy().round(3)      # 1 / (1 + e²)
    array([[0.119, 0.881]])
    """

    def __init__(
        self, weighting: Weighting, table: xr.Dataset, observer: Categories | None = None
    ) -> None:
        own = isinstance(weighting, SurvivalWeighting | FreeWeights | OneLevel | Placed)
        super().__init__(weighting if own else Placed(weighting), table, observer)

    def chosen(self) -> Float[Tensor, "stimulus label"]:
        """Probability of each label for each stimulus, without lapses."""
        node, part = (torch.as_tensor(x).to(self.cost) for x in np.polynomial.legendre.leggauss(8))
        at = self.edges[:-1, None] + 0.5 * self.width[..., None] * (1 + node)
        w = self.weighting(at).to(self.cost) @ (0.5 * part)
        if not isinstance(self.weighting, SurvivalWeighting):
            w = w / w.amax().clamp_min(torch.finfo(w.dtype).tiny)
        return self.observer.answer(-(self.cost @ w[self.of][..., None])[..., 0])


class StoppedEvidence(Tabled):
    r"""Kind (c): denoising halts at a random SNR, and the answer is from the evidence by then.

    .. math:: p = \frac{F(λ_0)}{K} + \sum_j [F(λ_{j+1}) - F(λ_j)]\, π\big({-s}\, C(\barλ_j)\big)
        + [1 - F(λ_J)]\, π\big({-s}\, C(λ_J)\big)

    with F the stopping law, :math:`\barλ_j` the middle between λ_j and λ_{j+1}, which are a quarter
    of a nat apart at most, and λ_J where the table ends or the stimulus's own logsnr. Within a cell
    of the table the evidence goes up evenly.

    Args:
        weighting: :class:`~neurodiff.SurvivalWeighting` of a law to learn, or a monotone named
            weighting, which is given its :class:`~neurodiff.perception.stopping.Gauge`; ``elbo``
            never stops.
        table: From :func:`~neurodiff.perception.evidence.evidence`.
        observer: By default :class:`~neurodiff.observers.Categories` over the table's labels.

    Raises:
        ValueError: A weighting that rises has no stopping law: the message says where. And as
            :class:`Tabled`.
    """

    by: Tensor
    fine: Tensor

    def __init__(
        self, weighting: Weighting, table: xr.Dataset, observer: Categories | None = None
    ) -> None:
        known = isinstance(weighting, SurvivalWeighting | Gauge) or weighting.name == "elbo"
        super().__init__(weighting if known else Gauge(weighting), table, observer)
        step = float(self.edges[1] - self.edges[0])
        parts = max(1, math.ceil(step / _PART - 1e-6))
        places = len(self.middle) * parts
        fine = self.edges[0] + step / parts * torch.arange(places + 1).to(self.edges)
        cell = torch.arange(places) // parts
        # how much of its cell has come in by the middle of a part; all of it above the stimulus
        share = (0.5 * (fine[1:] + fine[:-1]) - self.edges[cell]) / self.width[:, cell]
        share = share.clamp(0.0, 1.0)[self.of]
        whole = self.cost.cumsum(-1)
        by = (whole - self.cost)[..., cell] + share[:, None] * self.cost[..., cell]
        by = torch.cat([by, whole[..., -1:]], -1)
        self.register_buffer("fine", fine)
        self.register_buffer("by", by)

    @property
    def cells(self) -> int:
        """Numbers in the largest temporary of one call."""
        return self.by.numel()

    def chosen(self) -> Float[Tensor, "stimulus label"]:
        """Probability of each label for each stimulus, without lapses."""
        if self.weighting.name == "elbo":
            return self.observer.answer(-self.by[..., -1])
        done = stopped(self.weighting, self.fine)  # pyright: ignore
        mass = torch.cat([done.diff(), 1 - done[-1:]]).to(self.by)
        # some stimuli at a time stay in the processor's cache
        each = [self.observer.answer(-by, 1) @ mass for by in self.by.split(_SOME)]
        return done[0] / self.observer.labels + torch.cat(each)
