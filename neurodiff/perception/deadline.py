r"""A bounded accumulator that may also give up, at a time of its own, and answer by the sign of X.

.. math:: g_\pm(t) = g^b_\pm(t)\, P(D > t) + f_D(t)\, P(\pm X_t > 0,\; T > t), \qquad
    \log D \sim \text{law}

T is the passage through the bound, with densities g^b, and D a deadline that asks nothing of the
evidence. What has not yet passed is what would be there without bounds, less what came back from
them,

.. math:: P(X_t > 0,\; T > t) = P(X_t > 0)
    - \sum_{j = \pm} \int_0^t g^b_j(u)\, P(X_t > 0 \mid X_u = S_j(u))\, du

The last factor tends to 1 or 0 as u tends to t, with all its derivatives, so what is summed is the
density times the factor's distance from there.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import pad

from neurodiff.diffusion.law import Law, LawDistribution
from neurodiff.perception.bounded import CONDITIONS, Bounded
from neurodiff.perception.bounds import Bound
from neurodiff.perception.drifts import Steady, position
from neurodiff.perception.early import FINE, early_of
from neurodiff.perception.first_passage import through
from neurodiff.perception.on_clock import OnClock, masses
from neurodiff.perception.reaction import part
from neurodiff.perception.timed import normal_cdf
from neurodiff.perception.volterra import Path, decayed


class DeadlineMixture(OnClock, Bounded):
    """Stop at a bound, or at a time that does not depend on the evidence, whichever comes first.

    Args:
        drift: What moves the evidence.
        bound: Half-height ±b(t).
        law: Of log D, D in seconds, with the priors of a
            :class:`~neurodiff.perception.timed.TimeStop`.
        horizon: Seconds after which no answer is taken.
        steps: Time steps up to the horizon.
        jitter: S.d. of the delay over trials.
        **nuisances: ``delay``, ``start``, ``start_spread`` and ``lapse`` of a
            :class:`~neurodiff.perception.bounded.Bounded`.

    >>> from neurodiff.diffusion.laws import Normal
    >>> from neurodiff.perception.bounds import Constant
    >>> from neurodiff.perception.drifts import Power
    >>> trials = {"strength": torch.tensor([0.0]), "choice_known": torch.ones(1)}
    >>> own = Power(), Constant()
    >>> late, soon = (DeadlineMixture(*own, Normal(at, 0.2), 2.0) for at in (1.0, -1.0))
    >>> soon(trials).log_prob(torch.tensor([0.7])) > late(trials).log_prob(torch.tensor([0.7]))
    tensor([True])
    """

    def __init__(
        self,
        drift: nn.Module,
        bound: Bound,
        law: Law,
        horizon: float,
        steps: int = 100,
        *,
        jitter: float = 0.05,
        **nuisances: float | None,
    ) -> None:
        super().__init__(drift, bound, horizon, steps, jitter=jitter, **nuisances)  # pyright: ignore
        self.law = law
        self._dims = {name: p.dim() for name, p in self.named_parameters()}

    @property
    def cells(self) -> int:
        """Numbers in the largest temporary of one evaluation."""
        return 2 * CONDITIONS * len(self.time) ** 2

    def _decisions(
        self, values: dict[str, Tensor], stimulus: dict[str, Tensor]
    ) -> Float[Tensor, "condition node 2"]:
        """Densities of decision time and choice."""
        b, slope = functional_call(self.bound, part("bound.", values), (self.nodes,))
        moved = functional_call(self.drift, part("drift.", values), (stimulus, self.nodes))
        x, weight = self._starts(values)
        passed = self._passages(b, slope, moved, x)
        law = functional_call(self.law, part("law.", values), ())
        still = law.survival(self.nodes.log())[..., None, :, None]
        given_up = self._given_up(law)[..., None, :, None]
        each = passed * still + self._remaining(passed, b, moved, x) * given_up
        return (each * weight[:, None, None]).sum(-3)

    def _sines(
        self, until: Float[Tensor, " time"], values: dict[str, Tensor], stimulus: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Neither the bound is reached nor the time is up."""
        log, trusted = super()._sines(until, values, stimulus)
        law = functional_call(self.law, part("law.", values), ())
        return log + pad(law.log_survival(until[1:].log()), (1, 0)), trusted

    def _given_up(self, law: LawDistribution) -> Float[Tensor, "*condition node"]:
        """Density of D: what the law gives to the cell of time about each node."""
        early, times = self._parts(self.nodes)
        edges = torch.cat([t + 0.5 * t[0] for t in (early, times)])
        parts = len(early), len(times)
        step = torch.cat([t[:1].expand(len(t)) for t in (early, times)])
        return masses(law.survival(edges.log()), parts) / step

    def _remaining(
        self, passed: Tensor, b: Tensor, moved: Steady | Path, x: Tensor
    ) -> Float[Tensor, "condition start node 2"]:
        """P(±X_t > 0, T > t): on which side the paths are that have not yet passed a bound."""
        mean, variance = position(moved, self.nodes, x)
        z = mean / variance.sqrt()
        n = len(self.time)
        parts = zip(self._parts(passed.mT), self._parts(self.nodes), strict=True)
        early, times = (through(y, t).mT for y, t in parts)
        # decisions within a step are counted at the early nodes
        k = early.shape[-2] // FINE
        later = times[..., k:, :] - times[..., k - 1 : k, :] + early[..., -1:, :]
        gone = torch.cat([early, early[..., FINE - 1 :: FINE, :], later], -2)
        if isinstance(moved, Path):
            moved = Path(moved.mean[..., -n:], moved.slope[..., -n:], moved.leak)
        back = came_back(passed[..., -n:, :], b[..., -n:], moved, self.time, x)
        back = torch.cat([early_of(back, len(self.nodes) - n), back], -2)
        return (normal_cdf(torch.stack([z, -z], -1)) - gone + back).clamp_min(0.0)


def came_back(
    passed: Float[Tensor, "condition start time 2"],
    bound: Float[Tensor, "*#condition time"],
    moved: Steady | Path,
    time: Float[Tensor, " time"],
    start: Float[Tensor, "*#condition start"],
) -> Float[Tensor, "condition start time 2"]:
    r"""What bounds took from each side of 0, beyond what passed through the bound of that side.

    Free paths that have passed one bound may be on the other side by t; with bounds they are not.

    Args:
        passed: Densities of passage.
        bound: Half-height b.
        moved: The drift at these times.
        time: dt, 2 dt, …
        start: :math:`X_0`.

    >>> from neurodiff.perception.first_passage import density, survival
    >>> time = torch.linspace(0.02, 1.0, 50)
    >>> g, steady = density(1.0, 1.0, time), Steady(torch.ones(1), None)
    >>> back = came_back(g[None, None], torch.ones(50), steady, time, torch.zeros(1))
    >>> free = normal_cdf(time.sqrt())  # P(X_t > 0) of the free path
    >>> there = free - through(g[:, 0], time) + back[0, 0, :, 0]
    >>> bool(((there > 0) & (there < survival(g, time))).all())
    True
    """
    sign = bound.new_tensor([1.0, -1.0])
    # from bound j at u to the other side of 0 at t: (condition, start, t, u, j)
    mean, variance, later = _onward(sign * bound[..., None], moved, time, start)
    other = normal_cdf(mean * (-sign * variance.rsqrt())) * (time[0] * later)
    crossed = torch.einsum("...tuj,...uj->...tj", other, passed)
    return crossed - crossed.flip(-1)


def _onward(
    at: Float[Tensor, "*#condition time 2"], moved: Steady | Path, time: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of X_t given X_u = ``at``, at (…, node, t, u, 2), and whether t > u.

    Of a drift that differs over trials, what X_u says about it is used.
    """
    lag = (time[:, None] - time)[..., None]  # (t, u, 1)
    later = lag > 0.5 * time[0]
    lag = torch.where(later, lag, 1.0)
    at = at[..., None, None, :, :]  # (…, 1, 1, u, 2)
    if isinstance(moved, Path):
        leak = None if moved.leak is None else moved.leak[..., None, None, None, None]
        left, variance = decayed(lag, leak)
        now, then = moved.mean[..., None, :, None, None], moved.mean[..., None, None, :, None]
        return now + left * (at - then), variance, later
    v, x = moved.slope[..., None, None, None, None], start[..., None, None, None]
    if moved.spread is None:
        return at + v * lag, lag, later
    eta2 = moved.spread[..., None, None, None, None].square()
    known = 1 + eta2 * time[:, None]
    v = (v + eta2 * (at - x)) / known
    return at + v * lag, lag + eta2 * lag * lag / known, later
