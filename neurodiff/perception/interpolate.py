r"""Tables of conditions over cells of equal width, between their rows.

.. math:: y(s) = \sum_{k=-1}^{2} y_k \prod_{j \ne k} \frac{s - j}{k - j}, \qquad j = -1, \dots, 2

is the cubic through the four nearest rows, s cells past the second of them.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def cubic(
    table: Float[Tensor, "condition cell 2"],
    at: Tensor,
    side: Tensor,
    condition: Tensor,
    last: int,
    bend: float = math.inf,
) -> Tensor:
    """Interpolation by the cubic through the four nearest rows of a condition and side.

    It departs from the straight line between two of them by ``bend`` at most.
    """
    cell = at.detach().nan_to_num().floor().clamp(1.0, last - 2.0)
    s = at - cell
    place = 2 * ((last + 1) * condition + cell.long()) + side
    flat = table.reshape(-1)
    before, here, after, later = (flat[place + 2 * k] for k in (-1, 0, 1, 2))
    outer = s * (s - 1) / 6 * ((s + 1) * later - (s - 2) * before)
    whole = outer + (s + 1) * (s - 2) / 2 * ((s - 1) * here - s * after)
    if math.isinf(bend):
        return whole
    # the first and the last cell are those of the cubic beside them
    ends = torch.where(s < 0, torch.lerp(before, here, s + 1), torch.lerp(after, later, s - 1))
    chord = torch.where((s < 0) | (s > 1), ends, torch.lerp(here, after, s))
    return chord + (whole - chord).clamp(-bend, bend)
