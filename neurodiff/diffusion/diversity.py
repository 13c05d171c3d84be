r"""How many different things samples are, and whether they are those of the data.

.. math:: \exp\Big(-\sum_i μ_i \log μ_i\Big), \quad μ = \text{eigenvalues of } K/n, \; K_{ii} = 1

is the Vendi score, the effective number of different samples under a similarity K: 1 if all are
alike, n if none resembles another. It does not know the data. Precision is the share of samples
within the manifold of the data, recall that of the data within the manifold of the samples, where a
manifold is the union of balls around its points that reach to their k-th neighbours.

References: Friedman & Dieng 2023 (Vendi); Kynkäänniemi et al. 2019 (improved precision and recall).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 2**24  # distances held at once: 128 MiB in float64


class Coverage(NamedTuple):
    """What :func:`precision_recall` finds, shares in [0, 1].

    Attributes:
        precision: samples that could be data.
        recall: data that could be samples.
    """

    precision: float
    recall: float


def vendi(similarity: Float[Tensor, "n n"]) -> float:
    """The effective number of different samples, from 1 to n.

    Args:
        similarity: K, symmetric and positive semi-definite, 1 on the diagonal: cosines of features,
            or exp(-|x - y|²/2l²).

    Raises:
        ValueError: not such a matrix.

    >>> round(vendi(torch.eye(3)), 6), round(vendi(torch.ones(3, 3)), 6)
    (3.0, 1.0)
    """
    near = 1e3 * len(similarity) * torch.finfo(similarity.dtype).eps
    off = (similarity.diagonal() - 1).abs().max(), (similarity - similarity.mT).abs().max()
    if not max(off) < near:
        raise ValueError(
            f"the similarity departs from 1 on its diagonal by {off[0]:.3g} and from symmetry by "
            f"{off[1]:.3g}; wanted K_ii = 1 and K_ij = K_ji: normalise features before"
        )
    mu = torch.linalg.eigvalsh(similarity / len(similarity))
    if mu.min() < -near:
        raise ValueError(
            f"the similarity has a negative eigenvalue, {len(mu) * mu.min():.3g}; wanted a "
            "positive semi-definite kernel, such as cosines or exp(-|x - y|²/2l²)"
        )
    return float(torch.special.entr(mu.clamp_min(0.0)).sum().exp())


def precision_recall(
    data: Float[Tensor, "n *event"], samples: Float[Tensor, "m ..."], neighbours: int = 3
) -> Coverage:
    """Precision and recall of samples with respect to data, by balls to the k-th neighbour.

    Distances are Euclidean: give features where pixels do not say what is alike. Where the data are
    few, held-out data have a precision well below 1: compare with that.

    Args:
        data: n > k examples.
        samples: m > k, of the same event.
        neighbours: k, at least 1; a point is not its own neighbour, but its copy is.

    Raises:
        ValueError: too few of either, events that differ, or what is not finite.

    >>> line = torch.arange(10.0)[:, None]
    >>> precision_recall(line, line[:5], neighbours=1)
    Coverage(precision=1.0, recall=0.6)
    """
    if neighbours < 1 or min(len(data), len(samples)) <= neighbours:
        raise ValueError(
            f"got {len(data)} data, {len(samples)} samples and {neighbours} neighbours; wanted at "
            "least 1 neighbour and more of both than neighbours"
        )
    if data.shape[1:] != samples.shape[1:]:
        raise ValueError(
            f"data have the shape {tuple(data.shape[1:])} and samples {tuple(samples.shape[1:])}; "
            "wanted the same"
        )
    for name, value in (("data", data), ("samples", samples)):
        if not value.isfinite().all():
            raise ValueError(f"{(~value.isfinite()).sum()} numbers of the {name} are not finite")
    true, made = data.flatten(1), samples.flatten(1)
    return Coverage(_within(made, true, neighbours), _within(true, made, neighbours))


def _within(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    """The share of points within the balls around those of the manifold."""
    rows = max(1, CHUNK // len(manifold))
    # the nearest is the point itself
    radius = torch.cat(
        [_distance(p, manifold).kthvalue(neighbours + 1).values for p in manifold.split(rows)]
    )
    inside = [(_distance(p, manifold) <= radius).any(1) for p in points.split(rows)]
    return float(torch.cat(inside).to(manifold.dtype).mean())


def _distance(a: Tensor, b: Tensor) -> Tensor:
    # differences, not |a|² − 2ab + |b|²: a copy must lie at the distance 0
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
