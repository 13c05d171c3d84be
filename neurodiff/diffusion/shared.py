r"""One batch shared by several processes, each on a GPU of its own.

.. math:: \nabla \frac1n \sum_{i=1}^n \ell_i = \sum_r \nabla \frac1n \sum_{i \,\equiv\, r} \ell_i

Every process draws the noise of the whole batch and keeps its share, so that training in several
processes is, up to rounding, training in one: the same seed, checkpoint and losses. Any launcher
will do that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT: ``torchrun`` or ``accelerate
launch``.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Shared:
    """What process ``rank`` of ``count`` does of each batch; alone, where nothing was launched.

    Args:
        device: ``cuda`` or ``cpu``; of several GPUs each process takes the one of its LOCAL_RANK.

    >>> Shared("cpu").count
    1
    """

    def __init__(self, device: str) -> None:
        self.device, launched = device, int(os.environ.get("WORLD_SIZE", "1")) > 1
        if launched and device == "cuda":
            self.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(self.device)
        if launched and not dist.is_initialized():
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        several = dist.is_available() and dist.is_initialized()
        self.rank, self.count = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        self.mine = slice(self.rank, None, self.count)

    def alike(self, modules: nn.Module) -> None:
        """Give every process the weights and buffers of the first."""
        if self.count > 1:
            for value in modules.state_dict().values():
                dist.broadcast(value, 0)

    def whole(self, share: Tensor, size: int) -> Tensor:
        """The values of all processes, without gradients, where each had ``[mine]`` of them."""
        if self.count == 1:
            return share.detach()
        found = share.new_zeros(size, *share.shape[1:])
        found[self.mine] = share.detach()
        dist.all_reduce(found)
        return found

    def add(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradients of all processes, in one message."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        for gradient, sum_ in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(sum_.reshape(gradient.shape))
