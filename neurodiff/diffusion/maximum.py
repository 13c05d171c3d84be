r"""Maximum likelihood by gradients, for what has a density of its own: sources, classifiers.

.. math:: \hat θ = \arg\max_θ \sum_i \log p_θ(\text{example}_i)

Denoisers have :mod:`~neurodiff.diffusion.train`.
"""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def most_likely(
    model: Model,
    log_prob: Callable[..., Tensor],
    *data: Tensor,
    steps: int,
    batch: int = 128,
    rate: float = 1e-3,
    seed: int = 0,
) -> Model:
    r"""A copy of a model that was trained, by Adam at a rate that falls to 0.

    Args:
        model: to begin with.
        log_prob: (model, \*examples) → (batch,), nats; may draw from torch's own generator.
        *data: (example, ...) each, of which the same rows are taken.
        steps: of the optimiser.
        batch: examples a step.
        rate: learning rate at first.
        seed: the same seed gives the same result.

    Raises:
        FloatingPointError: a likelihood that is not finite.

    >>> class Spread(nn.Linear):
    ...     def log_prob(self, x):
    ...         return torch.distributions.Normal(0.0, self.weight[0].exp()).log_prob(x)
    >>> x = torch.tensor([-2.0, 2.0])
    >>> found = most_likely(Spread(1, 1), Spread.log_prob, x, steps=200, rate=0.1)
    >>> round(found.weight.exp().item(), 2)
    2.0
    """
    own, generator = copy.deepcopy(model).train(), torch.Generator(data[0].device).manual_seed(seed)
    optimizer = torch.optim.Adam(own.parameters(), lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(steps):
            some = torch.randint(len(data[0]), (batch,), generator=generator, device=data[0].device)
            value = log_prob(own, *(part[some] for part in data)).mean()
            if not value.isfinite():
                raise FloatingPointError(
                    f"log p is {value.item()} at step {step}: lower the rate, or look at the data"
                )
            optimizer.zero_grad()
            (-value).backward()
            nn.utils.clip_grad_norm_(own.parameters(), 10.0)
            optimizer.step()
            falling.step()
    return own.eval().requires_grad_(False)
