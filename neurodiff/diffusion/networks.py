r"""Two small networks, enough for the analyses here; anything larger comes from elsewhere.

.. math:: \text{net}(z, λ, y), \qquad
    h \leftarrow h + f\big((1 + a)\,\mathrm{norm}(h) + b\big), \quad
    (a, b) = A\,\mathrm{SiLU}(\text{embed}(λ, y))

A residual MLP and a U-Net, both modulated in every block by logsnr and by a class. Nothing is said
of what the output means: :class:`~neurodiff.diffusion.denoiser.NetworkDenoiser` does. The last
layer begins at 0, and so does every block.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

_REACH = 20.0  # nats; beyond it nothing changes, and ±inf is here


class Embedding(nn.Module):
    """Logsnr, and a class or none, as a vector.

    Args:
        width: of the vector.
        classes: number of classes; 0 for none.
        drop: share of the conditions that are left out in training, so that one network is both
            conditional and unconditional.
    """

    frequency: Tensor

    def __init__(self, width: int, classes: int, drop: float) -> None:
        super().__init__()
        # from one turn over the whole range of logsnr to one in 1.25 nats
        self.register_buffer("frequency", math.pi / _REACH * 2.0 ** torch.arange(0, 5.01, 0.5))
        self.logsnr = nn.Linear(2 * len(self.frequency) + 1, width)
        self.out = nn.Linear(width, width)
        self.classes, self.drop = classes, drop
        # the last row is of no class
        self.label = nn.Embedding(classes + 1, width) if classes else None

    def forward(
        self, logsnr: Float[Tensor, " batch"], cond: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch width"]:
        """(batch, width)."""
        level = logsnr.clamp(-_REACH, _REACH)[:, None]
        angle = level * self.frequency
        features = torch.cat([level / _REACH, angle.sin(), angle.cos()], -1)
        h = self.logsnr(features.to(self.logsnr.weight))
        if self.label is None and cond is not None:
            raise ValueError("got a condition, and the network has no classes: give classes=")
        if self.label is not None:
            none = torch.full((len(logsnr),), self.classes, device=logsnr.device)
            kept = none if cond is None else cond
            if self.training and self.drop and cond is not None:
                lost = torch.rand(len(logsnr), device=logsnr.device) < self.drop
                kept = torch.where(lost, none, kept)
            h = h + self.label(kept)
        return silu(self.out(silu(h)))


class MLP(nn.Module):
    """A residual MLP on whatever shape, flattened.

    Args:
        shape: of one x.
        width: of the hidden layers.
        depth: number of blocks.
        classes: number of classes; 0 for none.
        outputs: values for each number of x, of which ``LevelDenoiser`` wants several; the output
            is (batch, outputs, ...) then, and the shape of z otherwise.
        dropout: in every block.
        drop: share of conditions left out in training.

    >>> MLP((8, 8), classes=10)(torch.zeros(5, 8, 8), torch.zeros(5)).shape
    torch.Size([5, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 256,
        depth: int = 4,
        *,
        classes: int = 0,
        outputs: int | None = None,
        dropout: float = 0.0,
        drop: float = 0.1,
    ) -> None:
        super().__init__()
        self.settings = {
            "shape": list(shape), "width": width, "depth": depth, "classes": classes,
            "outputs": outputs, "dropout": dropout, "drop": drop,
        }  # fmt: skip
        size = math.prod(shape)
        self.shape = (*(() if outputs is None else (outputs,)), *shape)
        self.embed = Embedding(width, classes, drop)
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Dense(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = _zero(nn.Linear(width, math.prod(self.shape)))

    def forward(
        self,
        z: Float[Tensor, "batch *event"],
        logsnr: Float[Tensor, " batch"],
        cond: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """What ``NetworkDenoiser`` reads as one of the parameterizations."""
        at = self.embed(logsnr, cond)
        h = self.first(z.reshape(len(z), -1))
        for block in self.blocks:
            h = block(h, at)
        return self.last(silu(self.norm(h))).reshape(len(z), *self.shape)


class _Dense(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = _zero(nn.Linear(width, 2 * width))
        self.first, self.drop = nn.Linear(width, 2 * width), nn.Dropout(dropout)
        self.last = _zero(nn.Linear(2 * width, width))

    def forward(self, h: Tensor, at: Tensor) -> Tensor:
        a, b = self.modulate(at).chunk(2, -1)
        return h + self.last(self.drop(silu(self.first((1 + a) * self.norm(h) + b))))


class Beside(nn.Module):
    """A network that sees an image beside z: it gets both, along the first axis, and answers for z.

    Args:
        network: for an event of as many rows (or channels) as z and the image have together.

    >>> Beside(MLP((3, 8)))(torch.zeros(5, 2, 8), torch.zeros(5), torch.zeros(5, 1, 8)).shape
    torch.Size([5, 2, 8])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        z: Float[Tensor, "batch channel *rest"],
        logsnr: Float[Tensor, " batch"],
        cond: Float[Tensor, "batch other *rest"],
    ) -> Float[Tensor, "batch channel *rest"]:
        """The first of the outputs, as many as z has; ``cond`` is the image."""
        return self.network(torch.cat([z, cond], 1), logsnr)[:, : z.shape[1]]


class UNet(nn.Module):
    """A U-Net for small images: residual blocks, attention at the coarser levels.

    Args:
        channels: of the images.
        width: channels at full resolution.
        multiples: channels at each level, halving the resolution from one to the next.
        depth: residual blocks a level.
        attention: levels with self-attention, from 0; by default all but the first.
        classes: number of classes; 0 for none.
        outputs: values for each number of x, as in :class:`MLP`.
        dropout: in every block.
        drop: share of conditions left out in training.

    Raises:
        ValueError: when called with images that cannot be halved that often.

    >>> UNet(1, 32, (1, 2))(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 64,
        multiples: Sequence[int] = (1, 2, 2),
        depth: int = 2,
        *,
        attention: Sequence[int] | None = None,
        classes: int = 0,
        outputs: int | None = None,
        dropout: float = 0.0,
        drop: float = 0.1,
    ) -> None:
        super().__init__()
        inner = 4 * width
        seen = list(range(1, len(multiples)) if attention is None else attention)
        self.settings = {
            "channels": channels, "width": width, "multiples": list(multiples), "depth": depth,
            "attention": seen, "classes": classes, "outputs": outputs, "dropout": dropout,
            "drop": drop,
        }  # fmt: skip
        self.channels, self.outputs, self.halvings = channels, outputs, len(multiples) - 1
        self.embed = Embedding(inner, classes, drop)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        now, kept = width, [width]

        def block(before: int, after: int, level: int) -> _Residual:
            return _Residual(before, after, inner, dropout, attend=level in seen)

        for level, multiple in enumerate(multiples):
            for _ in range(depth):
                self.down.append(block(now, now := multiple * width, level))
                kept.append(now)
            if level < self.halvings:
                self.down.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                kept.append(now)
        self.middle = block(now, now, self.halvings)
        for level, multiple in reversed(list(enumerate(multiples))):
            for _ in range(depth + 1):
                self.up.append(block(now + kept.pop(), now := multiple * width, level))
            if level:
                self.up.append(_Larger(now))
        self.norm = nn.GroupNorm(_groups(now), now)
        self.last = _zero(nn.Conv2d(now, channels * (outputs or 1), 3, padding=1))

    def forward(
        self,
        z: Float[Tensor, "batch channel height width"],
        logsnr: Float[Tensor, " batch"],
        cond: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """What ``NetworkDenoiser`` reads as one of the parameterizations."""
        whole = 2**self.halvings
        if z.shape[-1] % whole or z.shape[-2] % whole:
            raise ValueError(
                f"got images of {tuple(z.shape[-2:])}, wanted sides that are multiples of {whole}, "
                f"which {self.halvings} halvings need"
            )
        at, h = self.embed(logsnr, cond), self.first(z)
        kept = [h]
        for layer in self.down:
            h = layer(h, at) if isinstance(layer, _Residual) else layer(h)
            kept.append(h)
        h = self.middle(h, at)
        for layer in self.up:
            h = (
                layer(torch.cat([h, kept.pop()], 1), at)
                if isinstance(layer, _Residual)
                else layer(h)
            )
        h = self.last(silu(self.norm(h)))
        if self.outputs is None:
            return h
        return h.reshape(len(z), self.outputs, *z.shape[1:])


class _Residual(nn.Module):
    """Two convolutions modulated between, and attention over places if asked."""

    def __init__(self, before: int, after: int, inner: int, dropout: float, attend: bool) -> None:
        super().__init__()
        self.norm, self.first = nn.GroupNorm(_groups(before), before), _conv(before, after)
        self.modulate = _zero(nn.Linear(inner, 2 * after))
        self.inner = nn.GroupNorm(_groups(after), after, affine=False)
        self.drop, self.second = nn.Dropout(dropout), _zero(_conv(after, after))
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        self.attend = _Attention(after) if attend else nn.Identity()

    def forward(self, h: Tensor, at: Tensor) -> Tensor:
        a, b = self.modulate(at)[:, :, None, None].chunk(2, 1)
        f = self.inner(self.first(silu(self.norm(h))))
        return self.attend(self.skip(h) + self.second(self.drop(silu((1 + a) * f + b))))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.norm = nn.GroupNorm(_groups(width), width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), _zero(nn.Conv2d(width, width, 1))

    def forward(self, h: Tensor) -> Tensor:
        parts = self.qkv(self.norm(h)).flatten(2).unflatten(1, (3, self.heads, -1))
        q, k, v = parts.transpose(-1, -2).unbind(1)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        return h + self.out(seen.transpose(-1, -2).reshape(h.shape))


class _Larger(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(width, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(nn.functional.interpolate(h, scale_factor=2.0))


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def _groups(width: int) -> int:
    """Groups of at least four channels, 32 at most."""
    return max(g for g in range(1, 33) if g == 1 or (width % g == 0 and width // g >= 4))


def _zero(layer: nn.Linear | nn.Conv2d):  # noqa: ANN202  # the layer itself
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer
