r"""Newton's iteration on a whole trajectory (DEER), its diagonal, and a trust region (ELK).

.. math::

    z^{k+1}_{i+1} = f_i(z^k_i) + J_i\,(z^{k+1}_i - z^k_i), \qquad
    J_i = a_i I + b_i \frac{∂\hat x}{∂z}(z^k_i)

for the steps :math:`f_i(z) = a_i z + b_i \hat x(z) + \dots` of DDIM or of the ancestral sampler,
solved by the scan of :mod:`~neurodiff.diffusion.parallel`. The whole Jacobian is for few
dimensions; its diagonal is exact where dimensions are independent and a compromise elsewhere.
``damping`` holds an iterate near the last one: it pays where x̂ is a rough function of z, so that
products of Jacobians grow, and costs iterations elsewhere (with every exact denoiser tried).

References: Lim et al. 2024 (DEER); Gonzalez et al. 2024 (quasi-DEER, ELK).
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from neurodiff.diffusion.denoiser import Denoiser
from neurodiff.diffusion.parallel import Maps, Parallel, Steps, associative, iterate
from neurodiff.diffusion.sample import Sampler, ddim


def newton(
    denoiser: Denoiser,
    z: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, "level *batch"],
    cond: Shaped[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
    *,
    sampler: Sampler = ddim,
    window: int | None = None,
    tolerance: float = 1e-6,
    damping: float = 0.0,
) -> Parallel:
    """Newton's iteration on the whole trajectory (DEER): for few dimensions.

    The Jacobian takes d backward passes and (step, batch, d, d) of memory.

    Args:
        denoiser: as in :func:`~neurodiff.diffusion.parallel.picard`; where autograd cannot follow
            it, convergence is slower and its end the same.
        z: at ``logsnr[0]``.
        logsnr: levels (step + 1,), or (step + 1, batch).
        cond: (batch, ...).
        generator: of the noise of ``ancestral``, as there.
        sampler: ``ddim`` or ``ancestral``.
        window: steps evaluated at once.
        tolerance: as there.
        damping: see :func:`damped`; 0 is Newton's own step, ∞ no Jacobian at all.

    Raises:
        ValueError: as there; or a damping below 0.

    >>> import neurodiff as nd
    >>> from neurodiff.diffusion.prior import Binary
    >>> from neurodiff.diffusion.sample import levels
    >>> z = torch.randn(5)
    >>> logsnr = levels(nd.schedule("cosine"), 100, stop=4.0).to(z)
    >>> newton(Binary(), z, logsnr, tolerance=1e-4).iterations < 10
    True
    """

    def linearise(steps: Steps) -> tuple[Tensor, Tensor]:
        x, rows = _rows(denoiser, steps, None, None)
        a, b = steps.gains()
        jacobian = b[:, None, None] * rows + torch.diag_embed(a[:, None].expand(rows.shape[:2]))
        return x, damped(jacobian.unflatten(0, (-1, len(z))), damping)

    return iterate(linearise, z, logsnr, cond, generator, sampler, window, tolerance)


def quasi_newton(
    denoiser: Denoiser,
    z: Float[Tensor, "batch *event"],
    logsnr: Float[Tensor, "level *batch"],
    cond: Shaped[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
    *,
    sampler: Sampler = ddim,
    window: int | None = None,
    tolerance: float = 1e-6,
    damping: float = 0.0,
    probes: int | None = None,
) -> Parallel:
    r"""Newton's iteration with the diagonal of the Jacobian only (quasi-DEER).

    There is no cheap diagonal of a general network. Either it is exact, by the d backward passes
    that the whole Jacobian takes too (what is saved then is memory, and the matrices of the scan);
    or it is Hutchinson's estimate, one backward pass a probe,

    .. math:: \mathrm{diag} J = E[v ⊙ J^\top v], \qquad v_i = ±1,

    whose error, the sum of the squares of what is off the diagonal, slows the iteration down.

    Args:
        denoiser: as in :func:`newton`.
        z: at ``logsnr[0]``.
        logsnr: levels (step + 1,), or (step + 1, batch).
        cond: (batch, ...).
        generator: of the noise of ``ancestral``, as there; and then of the probes.
        sampler: ``ddim`` or ``ancestral``.
        window: steps evaluated at once.
        tolerance: as there.
        damping: see :func:`damped`.
        probes: of Hutchinson's estimate; the exact diagonal if not given.

    Raises:
        ValueError: as :func:`newton`; or fewer than 1 probe.

    >>> import neurodiff as nd
    >>> from neurodiff.diffusion.prior import Binary
    >>> from neurodiff.diffusion.sample import levels
    >>> z = torch.randn(5, 2)
    >>> logsnr = levels(nd.schedule("cosine"), 100, stop=4.0).to(z)
    >>> quasi_newton(Binary((2,)), z, logsnr, tolerance=1e-4).iterations < 10
    True
    """
    if probes is not None and probes < 1:
        raise ValueError(f"wanted at least 1 probe, got {probes}; None for the exact diagonal")

    def linearise(steps: Steps) -> tuple[Tensor, Tensor]:
        x, rows = _rows(denoiser, steps, probes, generator)
        diagonal = rows if probes else rows.diagonal(dim1=1, dim2=2)
        a, b = steps.gains()
        jacobian = a[:, None] + b[:, None] * diagonal
        return x, damped(jacobian.unflatten(0, (-1, len(z))), damping)

    return iterate(linearise, z, logsnr, cond, generator, sampler, window, tolerance)


def damped(
    jacobian: Float[Tensor, "step batch *d"], damping: float
) -> Float[Tensor, "step batch *d"]:
    r"""J within a trust region, by a Kalman filter that takes the last iterate for observations.

    .. math:: J_i (1 - K_i), \quad K_i = \frac{μ P_i}{1 + μ P_i}, \quad
        P_{i+1} = J_i^2 \frac{P_i}{1 + μ P_i} + 1, \quad P_0 = 0

    Steps are dynamics with noise of unit variance, :math:`z^k_i` observes :math:`z_i` with
    variance 1/μ, and :math:`z^{k+1}_i` is the filter's prediction. (ELK reads the filtered mean,
    in which every step keeps a share K of the last iterate; the prediction is exact after N
    iterations for every μ.) P is a ratio of linear forms of the last P, hence a scan of 2 x 2
    matrices. For a whole Jacobian J² is its largest singular value squared: a bound of P.

    Args:
        jacobian: (step, batch, d), or (step, batch, d, d).
        damping: μ, at least 0; 0 leaves J as it is.

    Raises:
        ValueError: a damping below 0.

    References: Gonzalez et al. 2024 (ELK); Särkkä & García-Fernández 2021.

    >>> damped(torch.full((2, 1, 1), 4.0), 1.0).flatten().tolist()      # P = 0, 1
    [4.0, 2.0]
    """
    if not damping >= 0:
        raise ValueError(f"wanted a damping of at least 0, got {damping}")
    if damping == 0:
        return jacobian
    full = jacobian.ndim == 4
    square = torch.linalg.matrix_norm(jacobian, 2).square() if full else jacobian.square()
    one = torch.ones_like(square)
    riccati = torch.stack([square + damping, one, damping * one, one], -1).unflatten(-1, (2, 2))

    def combine(first: Maps, second: Maps) -> Maps:
        product = second[0] @ first[0]
        # a ratio does not change with the scale of its two forms, which else overflow
        return (product / product.amax((-2, -1), keepdim=True),)

    (after,) = associative(combine, (riccati[:-1],))
    variance = torch.cat([torch.zeros_like(one[:1]), after[..., 0, 1] / after[..., 1, 1]])
    trust = 1 / (1 + damping * variance)
    return jacobian * (trust[..., None, None] if full else trust)


def _rows(
    denoiser: Denoiser, steps: Steps, probes: int | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """X̂, and its Jacobian (example, d, d); or v ⊙ Jᵀ v, the mean over probes, (example, d)."""
    with torch.enable_grad():
        leaf = steps.z.detach().requires_grad_(True)
        x = denoiser(leaf, steps.now, steps.cond)
        flat = x.reshape(len(x), -1)

        def pull(v: Tensor) -> Tensor:
            # an x̂ that does not depend on z, or that autograd cannot follow, has no Jacobian
            if not flat.requires_grad:
                return torch.zeros_like(flat)
            (row,) = torch.autograd.grad(flat, leaf, v.expand_as(flat), retain_graph=True)
            return row.reshape(flat.shape)

        if probes is None:
            eye = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)
            return x.detach(), torch.stack([pull(v) for v in eye], 1)
        draw = {"generator": generator, "dtype": flat.dtype, "device": flat.device}
        signs = [torch.randn(flat.shape, **draw).sign() for _ in range(probes)]
        return x.detach(), torch.stack([v * pull(v) for v in signs]).mean(0)
