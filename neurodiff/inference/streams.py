"""Random numbers for a batch of problems: of one generator, or of one for each part.

A part (a session) whose problems draw from a generator of their own gets the numbers that it would
get alone, whatever else is in the batch.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor


class Streams:
    """Generators of the parts of a batch.

    Args:
        generators: One for each part, on the CPU.
        owner: (batch,) the part that each problem belongs to, in ascending order.
    """

    def __init__(self, generators: Sequence[torch.Generator], owner: Int[Tensor, " batch"]) -> None:
        self.generators, self.owner = generators, owner.cpu()

    def __iter__(self):  # noqa: ANN204
        """Part, its generator, and the number of its problems, of those that have any."""
        counts = torch.bincount(self.owner, minlength=len(self.generators)).tolist()
        for part, (generator, count) in enumerate(zip(self.generators, counts, strict=True)):
            if count:
                yield part, generator, count


Source = torch.Generator | Streams


def streams(source: Source, batch: int) -> Streams:
    """One generator is that of a single part."""
    if isinstance(source, Streams):
        return source
    return Streams([source], torch.zeros(batch, dtype=torch.int64))


def some(source: Source, problems: Tensor) -> Source:
    """The source for some of the problems."""
    if isinstance(source, Streams):
        return Streams(source.generators, source.owner[problems.cpu()])
    return source


def draw(function: Callable[..., Tensor], batch: int, *shape: int, source: Source) -> Tensor:
    """``torch.rand`` or ``torch.randn`` (batch, *shape) in float64, each part's from its stream.

    >>> one, two = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    >>> both = draw(torch.rand, 3, 2, source=Streams([one, two], torch.tensor([0, 0, 1])))
    >>> alone = draw(torch.rand, 1, 2, source=torch.Generator().manual_seed(1))
    >>> torch.equal(both[2:], alone)
    True
    """
    each = [
        function(count, *shape, generator=generator, dtype=torch.float64)
        for _, generator, count in streams(source, batch)
    ]
    return torch.cat(each)
