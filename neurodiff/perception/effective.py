r"""What stopping because of the evidence does to it: the weighting of a bounded observer.

.. math:: w_{\text{eff}}(s) =
    \frac{E\big[(\theta - M_s)^2;\ T > s\big]}{E\big[(\theta - M_s)^2\big]}, \qquad
    M_s = E[\theta \mid Y_s]

θ = ±1 is the direction, Y the evidence, M what is believed of θ. An observer who stops at a time
that does not depend on the evidence has w_eff = P(T > s), the survival of the stopping time, which
is then a weighting. One who stops at a bound stops where the error is small: those who go on are
the uncertain ones, and w_eff ≥ P(T > s). What is taken in is exactly

.. math:: \log 2 - h(\text{accuracy}) = \tfrac12 \int v^2\, w_{\text{eff}}(s)\,
    \mathrm{mmse}(v^2 s)\, ds = \tfrac12 \int w_{\text{eff}}\, m\, d\lambda, \quad
    \lambda = \log v^2 s

Over both directions the law of the path has density :math:`\cosh(v Y) e^{-v^2 s/2}` against the
driftless one, E_0, so all strengths are one expectation under E_0, and where v is known

.. math:: w_{\text{eff}}(s) = \frac{E_0[\mathrm{sech}(v Y_s); T > s]}{E_0[\mathrm{sech}(v Y_s)]},
    \qquad E_0[h(X_s); T > s] = E_0 h(X_s) - \sum_\pm \int_0^s g_\pm(u)\,
    E h\big({\pm b(u)} + \sqrt{s - u}\, Z\big)\, du

What was absorbed is a smooth integrand up to u = s, unlike the killed density itself.

References:
    Duncan 1970, "On the calculation of mutual information", with a stopping time.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.perception.first_passage import Bound, bound_of, density

_REACH, _STEP = 8.0, 0.1  # of the sums over Z: spectrally accurate for what is smooth
_SHARP = 0.5  # of a step times v√s: sech(v√s Z) is summed to e^(-π² / 0.5), 3e-9
_END = (3 / 8, 7 / 6, 23 / 24)  # Gregory's weights of the last points of a sum


def survivors(
    function: Callable[[Tensor, Tensor], Tensor],
    bound: Bound,
    time: Float[Tensor, " time"],
    start: float = 0.0,
    step: float = _STEP,
    reach: float = _REACH,
) -> tuple[Float[Tensor, "*condition time"], Float[Tensor, "*condition time"]]:
    """E_0 h(X_s, s) of the free driftless path, and E_0[h(X_s, s); T > s] of those who go on.

    Args:
        function: h of positions (…, node) and a time, smooth; returns (*condition, …, node).
        bound: b: a number, a tensor (time), or a function that returns b and its derivative.
        time: dt, 2 dt, …, seconds.
        start: x_0.
        step: Of the sums over Z.
        reach: How far they go on either side.
    """
    z = torch.arange(-reach, reach + step / 2, step, dtype=time.dtype, device=time.device)
    normal = step / math.sqrt(2 * math.pi) * torch.exp(-0.5 * z * z)
    b, g = bound_of(bound, time)[0], density(0.0, bound, time, start)
    ends = b[..., None, :] * b.new_tensor([[1.0], [-1.0]])  # (side, u)
    every, gone = [], []
    for i, s in enumerate(time):  # one after the other bounds the memory
        every.append(function(start + s.sqrt() * z, s) @ normal)
        lag = s - time[: i + 1]
        there = ends[:, : i + 1, None] + lag.clamp_min(0.0).sqrt()[:, None] * z
        told = function(there, s) @ normal
        weight = torch.ones_like(lag)
        for k, w in enumerate(_END[: i + 1]):
            weight[i - k] = w
        gone.append((told * g[: i + 1].mT * weight).sum((-1, -2)) * time[0])
    free = torch.stack(every, -1)
    return free, free - torch.stack(gone, -1)


def effective_weighting(
    drift: Float[Tensor, " condition"],
    bound: Bound,
    time: Float[Tensor, " time"],
    start: float = 0.0,
    prior: Float[Tensor, " condition"] | None = None,
) -> Float[Tensor, "condition time"]:
    r"""w_eff(s) of each strength; its place on logsnr is :math:`\log v^2 s`.

    Args:
        drift: v > 0 of each strength, per second; θ v moves the evidence.
        bound: b, as in :func:`~neurodiff.perception.first_passage.density`.
        time: dt, 2 dt, …, seconds.
        start: x_0; the belief is about the evidence, X - x_0.
        prior: How often each of the strengths occurs, if the observer does not know which one is
            shown: M is then the belief under the mixture. By default the strength is known, and
            :math:`M = \tanh(v Y)`. Those who are mistaken are carried as if at v/2: steps
            have to tell when that passes the bound, or w_eff errs by 1e-2 while it falls. Up to
            v√s of about 70, beyond which what is missed is below the smallest number.

    Raises:
        ValueError: If a drift is not above 0 (at strength 0 there is nothing to know).

    >>> time = torch.linspace(0.01, 1.0, 100, dtype=torch.float64)
    >>> w = effective_weighting(torch.tensor([1.3]).double(), 0.9, time)
    >>> w[0, [49, 99]].numpy().round(2)  # where 0.44 and 0.14 have not stopped
    array([0.69, 0.38])
    """
    if not (drift > 0).all():
        raise ValueError(f"got a drift of {drift.min():g}, wanted above 0: leave out strength 0")

    far = float(drift.max() * time[-1].sqrt())
    step = min(_STEP, _SHARP / far)

    def miss(x: Tensor, s: Tensor) -> Tensor:
        """(θ - M)² over both directions; of a mixture times e^{-v²s/2}, which keeps it finite."""
        v = drift.reshape(-1, *[1] * x.dim())
        if prior is None:
            return 1 / torch.cosh(v * (x - start))
        size, half = (x - start).abs(), 0.5 * v * v * s
        log = doubt(x - start, s, drift, prior)
        # e^{v|Y|} (1 - |M|)² where the direction is against the evidence, e^{-v|Y|} (1 + |M|)² else
        against = (2 * log + v * size - half).exp()
        return 0.5 * (against + (2 - log.exp()).square() * (-v * size - half).exp())

    # who takes strong evidence for weak is at v s / 2 at most: there the strong is as likely
    reach = _REACH if prior is None else _REACH + far / 2
    free, left = survivors(miss, bound, time, start, step, reach)
    return left / free


def doubt(
    evidence: Float[Tensor, "*point"],
    time: Tensor,
    drift: Float[Tensor, " condition"],
    prior: Float[Tensor, " condition"],
) -> Float[Tensor, "*point"]:
    r"""Log(1 - |M|) of a mixture, :math:`P(\theta v_k) \propto \pi_k e^{\theta v_k Y - v_k^2 t/2}`.

    Args:
        evidence: Y.
        time: Seconds.
        drift: v_k.
        prior: π_k.

    >>> y, t, v = torch.tensor([-0.5, 30.0]), torch.tensor(1.0), torch.tensor([2.0])
    >>> doubt(y, t, v, torch.ones(1))  # 1 - tanh(1), and what no 1 - M could tell
    tensor([  -1.4338, -119.3069])
    """
    size = evidence.abs()[..., None] * drift
    right = size - 0.5 * drift.square() * time + prior.log()
    every = torch.logaddexp(right, right - 2 * size).logsumexp(-1)
    return math.log(2.0) + (right - 2 * size).logsumexp(-1) - every
