r"""Many parts answered as one batch, each by steps that are written as if it were alone.

.. math:: \{\text{ask}_p\}_{p \in \text{parts}} \mapsto \{(\hat u_p,\ \text{draws}_p)\}_p
    \quad \text{in one call}

What is done with a part is a generator: it yields an :class:`Ask` wherever it needs the modes and
draws of some problems, and is sent them. :func:`alone` answers one such generator; :func:`together`
stacks the asks of many parts and answers them at once. A part draws from its own generator and its
minimisation ends where it would alone, so both give the same numbers up to rounding (chains of
many parts wait for each other, no more). A part that fails ends its own steps only.
"""

from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from neurodiff.inference.draws import posterior_draws
from neurodiff.inference.importance import Draws
from neurodiff.inference.laplace import Modes, best_modes
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.stack import alike, stack
from neurodiff.inference.streams import Streams

_NUMBERS = 30_000_000  # log likelihoods (problem, draw, row) of one batch: 240 MB, held about twice


@dataclass(frozen=True)
class Ask:
    """Problems of one part, whose modes and posterior draws are wanted.

    Attributes:
        joint: The part: one problem with pooled parameters.
        mask: What each problem trains on.
        start: Where to look for the mode, several times over.
        inverse: Inverse Hessians to start with, if known.
        draws: Importance draws of each problem.
        generator: Source of randomness, on the CPU.
    """

    joint: Posterior
    mask: Float[Tensor, "problem unit"]
    start: Float[Tensor, "start problem size"]
    inverse: Float[Tensor, "problem size size"] | None
    draws: int
    generator: torch.Generator

    @property
    def kind(self) -> Hashable:
        """What asks that are answered at once have in common."""
        return alike(self.joint), len(self.start), self.inverse is None, self.draws


Answer = tuple[Modes, Draws]
T = TypeVar("T")
Steps = Generator[Ask, Answer, T]


def answer(asks: Sequence[Ask], device: str | None = None) -> list[Answer]:
    """Modes and draws of the problems of all parts, which are of one kind, in one batch.

    Args:
        asks: One for each part.
        device: Where to compute; by default where a single part lives.

    Raises:
        ValueError: If a log density is not finite at the start.
    """
    home = asks[0].start.device
    joint = stack([ask.joint for ask in asks], home if device is None else device)
    at, units = joint.mask.device, joint.mask.shape[1]
    counts = [len(ask.mask) for ask in asks]
    owner = torch.arange(len(asks)).repeat_interleave(torch.tensor(counts))
    mask = torch.cat([pad(ask.mask, (0, units - ask.mask.shape[1])) for ask in asks]).to(at)
    problems = joint.select(owner.to(at)).with_mask(mask)
    start = torch.cat([ask.start for ask in asks], 1).to(at)
    known = [ask.inverse for ask in asks if ask.inverse is not None]
    modes = best_modes(problems, start, torch.cat(known).to(at) if known else None)
    source = Streams([ask.generator for ask in asks], owner)
    found = posterior_draws(problems, modes, asks[0].draws, source)
    answers, first = [], 0
    for ask, count in zip(asks, counts, strict=True):
        own = slice(first, first := first + count)
        answers.append((_of(modes, own, home), _own(found, own, home, ask.mask.shape[1])))
    return answers


def _of(modes: Modes, own: slice, home: torch.device) -> Modes:
    return Modes(**{name: value[own].to(home) for name, value in vars(modes).items()})


def _own(found: Draws, own: slice, home: torch.device, units: int) -> Draws:
    """The draws of one part, without those that only other parts have."""
    values = {name: value[own].to(home) for name, value in vars(found).items()}
    values["k_hat"] = found.k_hat[own]
    finite = torch.isfinite(values["log_w"]).any(0).nonzero()[:, 0].tolist()
    used = finite[-1] + 1 if finite else values["log_w"].shape[1]
    values["u"], values["log_w"] = values["u"][:, :used], values["log_w"][:, :used]
    return Draws(**values | {"by_unit": values["by_unit"][:, :used, :units]})


def alone(steps: "Steps[T]", device: str | None = None) -> T:
    """Take the steps of one part.

    >>> def steps():
    ...     return 1
    ...     yield
    >>> alone(steps())
    1
    """
    try:
        ask = next(steps)
        while True:
            ask = steps.send(answer([ask], device)[0])
    except StopIteration as end:
        return end.value


def together(many: "Sequence[Steps[T]]", device: str | None = None) -> list[T | Exception]:
    """Take the steps of many parts, side by side.

    Returns:
        What each part returned, or the exception that ended it.
    """
    results: dict[int, T | Exception] = {}
    asks: dict[int, Ask] = {}

    def proceed(i: int, given: Answer | Exception | None) -> None:
        asks.pop(i, None)
        try:
            if isinstance(given, Exception):
                asks[i] = many[i].throw(given)
            else:
                asks[i] = next(many[i]) if given is None else many[i].send(given)
        except StopIteration as end:
            results[i] = end.value
        except Exception as error:
            results[i] = error

    for i in range(len(many)):
        proceed(i, None)
    while asks:
        for batch in _batches(asks):
            answers = _answers([asks[i] for i in batch], device)
            for i, given in zip(batch, answers, strict=True):
                proceed(i, given)
    return [results[i] for i in range(len(many))]


def _batches(asks: dict[int, Ask]) -> list[list[int]]:
    """Asks that are answered at once: of one kind, and no more than memory holds."""
    batches: dict[Hashable, list[list[int]]] = {}
    sizes: dict[Hashable, int] = {}
    for i, ask in asks.items():
        kind, size = ask.kind, len(ask.mask) * ask.draws * ask.joint.response.shape[-1]
        if kind not in batches or sizes[kind] + size > _NUMBERS:
            batches.setdefault(kind, []).append([])
            sizes[kind] = 0
        batches[kind][-1].append(i)
        sizes[kind] += size
    return [batch for own in batches.values() for batch in own]


def _answers(asks: Sequence[Ask], device: str | None) -> list[Answer | Exception]:
    """Answers, by halves where a batch fails: one part is to blame, or memory does not suffice."""
    states = [ask.generator.get_state() for ask in asks]
    try:
        return list(answer(asks, device))
    except Exception as error:
        if len(asks) == 1:
            return [error]
    for ask, state in zip(asks, states, strict=True):
        ask.generator.set_state(state)
    half = len(asks) // 2
    return [*_answers(asks[:half], device), *_answers(asks[half:], device)]
