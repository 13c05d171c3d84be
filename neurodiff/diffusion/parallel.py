r"""Parallel-in-time sampling: all steps at once, again and again until none moves.

.. math::

    z_{i+1} = f_i(z_i), \qquad
    z^{k+1}_{i+1} = f_i(z^k_i) + J_i\,(z^{k+1}_i - z^k_i), \quad z^{k+1}_0 = z_0

The left is a sampler: one evaluation of the denoiser after the other. On the right an iteration
evaluates it at every step of the last trajectory at once, and what is left is linear, solved in
log N rounds by composing :math:`(A_2, b_2) ∘ (A_1, b_1) = (A_2 A_1, A_2 b_1 + b_2)` (an
associative scan). The methods are choices of J:

=======================  =========================================================================
``picard``               a number: that of white data of unit variance, 1 but for h² (ParaDiGMS)
``newton.newton``        ∂f/∂z, (d, d): DEER. Quadratic near the solution
``newton.quasi_newton``  the diagonal of ∂f/∂z: quasi-DEER
=======================  =========================================================================

Whatever J (if finite), step i is exact after i iterations: none takes more than N. What is gained
is waiting time, where the evaluations of an iteration run side by side; the work is always more.

References: Shih et al. 2023 (ParaDiGMS); Lim et al. 2024 (DEER); Hillis & Steele 1986 (scan).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.logsnr import alpha
from neurodiff.diffusion.sample import Sampler, ancestral, ddim, renoised, step


class Parallel(NamedTuple):
    """Where a parallel sampler ends.

    Attributes:
        z: at the last level, (batch, ...).
        iterations: evaluations of the denoiser one after the other.
        evaluations: of the denoiser for each sample, side by side or not; a derivative of it,
            which costs about two more, is not counted.
    """

    z: Tensor
    iterations: int
    evaluations: int


class Steps(NamedTuple):
    """Some steps of all samples laid flat, each (step * batch, ...).

    Attributes:
        z: where each begins.
        now: its logsnr, and ...
        then: ... that where it ends, nats.
        xi: the noise of ``ancestral``; None for ``ddim``.
        cond: of the sample.
    """

    z: Tensor
    now: Tensor
    then: Tensor
    xi: Tensor | None
    cond: Tensor | None

    def take(self, x: Tensor) -> Tensor:
        """f, where the denoiser said x."""
        if self.xi is None:
            return step(self.z, x, self.now, self.then)
        return renoised(self.z, x, self.xi, self.now, self.then)

    def gains(self) -> tuple[Tensor, Tensor]:
        """What f makes of z and of x̂: f = a z + b x̂ + noise, each (step * batch,)."""
        one, zero = torch.ones_like(self.now), torch.zeros_like(self.now)
        if self.xi is None:
            return step(one, zero, self.now, self.then), step(zero, one, self.now, self.then)
        return (
            renoised(one, zero, zero, self.now, self.then),
            renoised(zero, one, zero, self.now, self.then),
        )


Maps = tuple[Tensor, ...]
# x̂, and J (step, batch, 1), (step, batch, d) or (step, batch, d, d)
Linearise = Callable[[Steps], tuple[Tensor, Tensor]]


def picard(
    denoiser: Denoiser,
    z: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, "level *batch"],
    cond: Shaped[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
    *,
    sampler: Sampler = ddim,
    window: int | None = None,
    tolerance: float = 1e-6,
) -> Parallel:
    r"""Picard's iteration: no derivative, so as cheap as can be, and linear in its convergence.

    .. math:: J_i = a_i + b_i α_i, \qquad f_i = a_i z + b_i \hat x(z) + \dots

    where x̂ = α z, that of N(0, 1). DDIM then has J = 1 + O(h²), which is ParaDiGMS; the ancestral
    sampler forgets, J < 1.

    Args:
        denoiser: (z, logsnr, cond) → E[x|z]; called with (steps x batch) examples at once.
        z: at ``logsnr[0]``.
        logsnr: levels (step + 1,), or (step + 1, batch).
        cond: (batch, ...).
        generator: of the noise of ``ancestral``, all drawn beforehand and in its order: the same
            seed gives the same samples as one step after the other.
        sampler: ``ddim`` or ``ancestral``.
        window: steps evaluated at once, for want of memory; all of them if not given. The window
            goes on to the first step that still moves.
        tolerance: a step has settled where an iteration moves it by no more, root mean square over
            a sample, the largest of the batch.

    Raises:
        ValueError: a tolerance that is not above 0, a window below 1, or another sampler.

    >>> import neurodiff as nd
    >>> from neurodiff.diffusion.prior import Binary
    >>> from neurodiff.diffusion.sample import levels
    >>> z = torch.randn(5)
    >>> logsnr = levels(nd.schedule("cosine"), 100, stop=4.0).to(z)
    >>> found = picard(Binary(), z, logsnr, tolerance=1e-4)
    >>> found.iterations < 30, bool((found.z - ddim(Binary(), z, logsnr)).abs().max() < 1e-4)
    (True, True)
    """

    def linearise(steps: Steps) -> tuple[Tensor, Tensor]:
        a, b = steps.gains()
        jacobian = (a + b * alpha(steps.now)).reshape(-1, len(z), 1)
        return denoiser(steps.z, steps.now, steps.cond), jacobian

    return iterate(linearise, z, logsnr, cond, generator, sampler, window, tolerance)


def associative(combine: Callable[[Maps, Maps], Maps], maps: Maps) -> Maps:
    """Compositions m_i ∘ … ∘ m_1 of all i, twice as far in each of log₂ N rounds.

    Args:
        combine: (first, second) → second after first, elementwise in the first dimension.
        maps: tensors (step, ...) that hold the maps together.

    >>> associative(lambda m, n: (m[0] + n[0],), (torch.arange(5),))[0].tolist()
    [0, 1, 3, 6, 10]
    """
    far = 1
    while far < len(maps[0]):
        after = combine(tuple(m[:-far] for m in maps), tuple(m[far:] for m in maps))
        maps = tuple(torch.cat([m[:far], n]) for m, n in zip(maps, after, strict=True))
        far *= 2
    return maps


def scan(
    a: Float[Tensor, "step ..."], b: Float[Tensor, "step batch d"], first: Float[Tensor, "batch d"]
) -> Float[Tensor, "step batch d"]:
    r"""Solve y_{i+1} = A_i y_i + b_i, with :func:`associative`.

    Args:
        a: (step, batch, d, d) matrices; or numbers that multiply b, such as (step, batch, 1).
        b: (step, batch, d).
        first: y_0.

    Returns:
        y_1, …, y_N.

    >>> scan(torch.full((3, 1, 1), 2.0), torch.ones(3, 1, 1), torch.ones(1, 1)).flatten().tolist()
    [3.0, 7.0, 15.0]
    """

    def combine(one: Maps, two: Maps) -> Maps:
        product = two[0] @ one[0] if a.ndim == 4 else two[0] * one[0]
        return product, _times(two[0], one[1]) + two[1]

    begun = torch.cat([_times(a[:1], first[None]) + b[:1], b[1:]])
    return associative(combine, (a, begun))[1]


def _times(a: Tensor, v: Tensor) -> Tensor:
    return (a @ v[..., None])[..., 0] if a.ndim == 4 else a * v


def iterate(
    linearise: Linearise,
    z: Tensor,
    logsnr: Tensor,
    cond: Tensor | None,
    generator: torch.Generator | None,
    sampler: Sampler,
    window: int | None,
    tolerance: float,
) -> Parallel:
    """The iteration at the head, with the J of ``linearise``; arguments as in :func:`picard`."""
    _check(sampler, window, tolerance)
    many, batch = len(logsnr) - 1, len(z)
    level = logsnr.reshape(len(logsnr), -1).expand(-1, batch)
    noise = None
    if sampler is ancestral:
        draw = {"generator": generator, "dtype": z.dtype, "device": z.device}
        noise = torch.stack([torch.randn(z.shape, **draw) for _ in range(many)])
    path = z.expand(many + 1, *z.shape).clone()
    begin = iterations = evaluations = 0
    while begin < many:
        end = min(many, begin + (window or many))
        steps = Steps(
            path[begin:end].flatten(0, 1),
            level[begin:end].flatten(),
            level[begin + 1 : end + 1].flatten(),
            None if noise is None else noise[begin:end].flatten(0, 1),
            None if cond is None else cond.repeat(end - begin, *(1,) * (cond.ndim - 1)),
        )
        x, jacobian = linearise(steps)
        shape = (end - begin, batch, -1)
        old, value = steps.z.reshape(shape), steps.take(x).reshape(shape)
        new = scan(jacobian, value - _times(jacobian, old), old[0]).reshape(-1, *z.shape)
        moved = (new - path[begin + 1 : end + 1]).reshape(shape).square().mean(2).amax(1).sqrt()
        path[begin + 1 : end + 1], path[end + 1 :] = new, new[-1]
        iterations, evaluations = iterations + 1, evaluations + end - begin
        # the first step began where all has settled: it is exact
        begin += max(1, int((moved <= tolerance).cumprod(0).sum()))
    return Parallel(path[-1], iterations, evaluations)


def _check(sampler: Sampler, window: int | None, tolerance: float) -> None:
    if sampler not in (ddim, ancestral):
        raise ValueError(
            f"the sampler is {getattr(sampler, '__name__', sampler)}; wanted ddim or ancestral, "
            "whose step depends on the last z alone"
        )
    if not tolerance > 0:
        raise ValueError(f"wanted a tolerance above 0, got {tolerance}")
    if window is not None and window < 1:
        raise ValueError(f"wanted a window of at least 1 step, got {window}")
