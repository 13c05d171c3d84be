r"""Importance weights: the exact posterior, from t₇ proposals around its mode.

.. math:: w_s = p(u_s)/q(u_s), \qquad \log p(\text{data}) \approx \log \tfrac1S \sum_s w_s

Plain Laplace undercovers where a parameter leans on its bound (a lapse near zero); so corrected it
does not. q is a mixture: t₇ split along each axis (Geweke 1989), the prior, and where these do not
suffice clouds of t₇ about the draws so far (Cappé et al. 2004). The largest weights are smoothed,
and the Pareto k̂ of their tail says whether to trust the result: above 0.7 use chains.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from neurodiff.inference.laplace import Modes
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.priors import Pooled
from neurodiff.inference.psis import smooth

_DF = 7.0
_SMALL = 12  # parameters up to which the prior and clouds of draws are worth proposing from
_CLOUDS, _CENTRES = 4, 200  # clouds at most, and centres of each


@dataclass(frozen=True)
class Draws:
    """Weighted posterior draws of a batch of problems.

    Attributes:
        u: (batch, draw, size).
        log_w: Smoothed log weights; their exponentials sum to one.
        by_unit: Log likelihood of each unit at each draw.
        log_evidence: log p(data trained on).
        k_hat: Pareto shape of the weights.
    """

    u: Float[Tensor, "batch draw size"]
    log_w: Float[Tensor, "batch draw"]
    by_unit: Float[Tensor, "batch draw unit"]
    log_evidence: Float[Tensor, " batch"]
    k_hat: Float[Tensor, " batch"]

    @property
    def ess(self) -> Float[Tensor, " batch"]:
        """How many draws of equal weight would say as much."""
        return 1 / (2 * self.log_w).exp().sum(-1)

    def select(self, problems: Tensor) -> "Draws":
        """Those of some of the problems."""
        return Draws(
            **{name: value[problems.to(value.device)] for name, value in vars(self).items()}
        )

    def put(self, problems: Tensor, others: "Draws") -> "Draws":
        """These with those of some of the problems replaced; what one lacks in draws weighs 0."""
        count = max(self.u.shape[1], others.u.shape[1])

        def widened(draws: Draws) -> dict[str, Tensor]:
            more = count - draws.u.shape[1]
            pad = torch.nn.functional.pad
            return vars(draws) | {
                "u": pad(draws.u, (0, 0, 0, more)),
                "log_w": pad(draws.log_w, (0, more), value=-math.inf),
                "by_unit": pad(draws.by_unit, (0, 0, 0, more)),
            }

        both = widened(self), widened(others)
        merged = {name: value.clone() for name, value in both[0].items()}
        for name, value in both[1].items():
            merged[name][problems.to(value.device)] = value
        return Draws(**merged)

    def resample(self, draws: int, generator: torch.Generator) -> Tensor:
        """Draws (batch, draw, size) of equal weight."""
        pick = _systematic(self.log_w.exp(), draws, generator)
        return self.u[torch.arange(len(pick), device=pick.device)[:, None], pick]


def _log_t(distance: Tensor, size: int) -> Tensor:
    """Log density of the standard t₇ in ``size`` dimensions at squared distances."""
    constant = (
        math.lgamma((_DF + size) / 2) - math.lgamma(_DF / 2) - size / 2 * math.log(_DF * math.pi)
    )
    return constant - (_DF + size) / 2 * torch.log1p(distance / _DF)


def _widths(posterior: Posterior, modes: Modes) -> Float[Tensor, "batch 2 size"]:
    """Scale of the posterior along each axis of L, to the left and to the right of the mode.

    Geweke's split: the normal that the log density allows at 1.75 standard deviations, so that a
    direction with a long shoulder is proposed along it; never narrower than the Laplace fit.
    """
    batch, size = modes.u.shape
    axes = modes.factor.mT  # row i is the i-th axis
    steps = torch.tensor([-1.75, 1.75], dtype=axes.dtype, device=axes.device)
    u = modes.u[:, None, None, :] + steps[:, None, None] * axes[:, None]
    prior, by_unit = posterior.draws_terms(u.reshape(batch, -1, size))
    log_p = prior + posterior.trained(by_unit)
    drop = (modes.log_prob[:, None] - log_p).reshape(batch, 2, size)
    drop = torch.where(torch.isfinite(drop), drop, torch.inf)
    width = steps.abs()[:, None] / (2 * drop.clamp_min(1e-3)).sqrt()
    return width.clamp(1.0, 5.0)


class _SplitT:
    """t₇ about the mode, stretched along each axis of L to the left and to the right."""

    def __init__(self, u: Tensor, factor: Tensor, widths: Tensor) -> None:
        self.u, self.factor, self.widths = u, factor, widths
        self.inverse = torch.linalg.inv(factor)
        log_det = torch.linalg.slogdet(factor)[1]
        self.log_scale = log_det + (widths.sum(1) / 2).log().sum(-1)

    def select(self, problems: Tensor) -> "_SplitT":
        return _SplitT(self.u[problems], self.factor[problems], self.widths[problems])

    def moved(self, found: Draws) -> "_SplitT":
        """To the mean of weighted draws and their width, which problems of a batch share."""
        z = (found.u - self.u[:, None]) @ self.inverse.mT
        w = found.log_w.exp()[..., None]
        mean = (w * z).sum(1).mean(0)
        sd = (w * (z - mean).square()).sum(1).mean(0).sqrt().clamp(1.0, 3.0)
        return _SplitT(self.u + self.factor @ mean, self.factor, sd.expand(len(z), 2, -1))

    def sample(self, proposals: int, generator: torch.Generator) -> Tensor:
        u, stretch = _even(self.u, proposals, generator)
        # right of the mode with the right side's share of the width: the density is continuous
        share = (self.widths[:, 0] / self.widths.sum(1)).unsqueeze(1)
        right = u > share
        tail = torch.where(right, (1 - u) / (1 - share), u / share)
        z = -torch.special.ndtri(0.5 * tail) * stretch
        steps = torch.where(right, z * self.widths[:, None, 1], -z * self.widths[:, None, 0])
        return self.u[:, None] + steps @ self.factor.mT

    def log_prob(self, u: Tensor) -> Tensor:
        steps = (u - self.u[:, None]) @ self.inverse.mT
        side = torch.where(steps > 0, self.widths[:, None, 1], self.widths[:, None, 0])
        return _log_t((steps / side).square().sum(-1), u.shape[-1]) - self.log_scale[:, None]


class _Prior:
    """The parameter prior itself: with some of it in the mixture no weight can exceed its share."""

    def __init__(self, parameters: Pooled) -> None:
        self.parameters = parameters

    def select(self, problems: Tensor) -> "_Prior":
        return self

    def sample(self, batch: int, count: int, generator: torch.Generator) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            u = self.parameters.draw_prior(batch * count)
        return u.reshape(batch, count, -1)

    def log_prob(self, u: Tensor) -> Tensor:
        flat = torch.vmap(self.parameters.log_prior)(u.reshape(-1, u.shape[-1]))
        return flat.reshape(u.shape[:2])


class _Cloud:
    """A mixture of t₇ about draws of an earlier round: it follows a curved posterior."""

    def __init__(self, centres: Tensor, factor: Tensor) -> None:
        self.centres, self.factor = centres, factor

    @classmethod
    def about(cls, found: Draws, generator: torch.Generator) -> "_Cloud":
        """Centres drawn from weighted draws, with Silverman's width."""
        u, size = found.u, found.u.shape[-1]
        probs = torch.softmax(0.7 * found.log_w, -1)  # tempered: no single draw may own the cloud
        pick = _systematic(probs, _CENTRES, generator)
        rows = torch.arange(len(u), device=u.device)[:, None]
        mean = (probs[..., None] * u).sum(1, keepdim=True)
        covariance = (probs[..., None] * (u - mean)).mT @ (u - mean)
        width = (4 / (size + 2) / _CENTRES) ** (1 / (size + 4))
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        ridge = torch.diag_embed(1e-6 * diagonal + 1e-12)
        return cls(u[rows, pick], width * torch.linalg.cholesky(covariance + ridge))

    def select(self, problems: Tensor) -> "_Cloud":
        return _Cloud(self.centres[problems], self.factor[problems])

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """At least ``count`` draws, as many about each centre."""
        centres = self.centres.repeat(1, -(-count // _CENTRES), 1)
        count = centres.shape[1]
        return centres + _t_noise(self.centres[:, 0], count, generator) @ self.factor.mT

    def log_prob(self, u: Tensor) -> Tensor:
        inverse = torch.linalg.inv(self.factor)
        log_det = torch.linalg.slogdet(self.factor)[1][:, None]
        # problem by problem: all distances together would not fit
        mixture = torch.stack(
            [
                torch.logsumexp(_log_t(torch.cdist(one @ to.mT, c @ to.mT).square(), len(to)), -1)
                for one, c, to in zip(u, self.centres, inverse, strict=True)
            ]
        )
        return mixture - math.log(_CENTRES) - log_det


def _even(
    like: Float[Tensor, "batch size"], n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Uniform points (batch, n, size), and what makes normal ones t₇ (batch, n, 1).

    Sobol points, scrambled anew for each problem: they fill the space more evenly than chance
    would, averages over them converge faster, and problems err independently.
    """
    batch, size = like.shape
    seeds = torch.randint(2**31, (batch,), generator=generator).tolist()
    engines = [torch.quasirandom.SobolEngine(size + 1, scramble=True, seed=s) for s in seeds]
    points = torch.stack([engine.draw(n, dtype=torch.float64) for engine in engines])
    points = points.clamp(1e-12, 1 - 1e-12)
    chi2 = torch.as_tensor(stats.chi2.ppf(points[..., -1:].numpy(), _DF))
    return points[..., :-1].to(like), (_DF / chi2).sqrt().to(like)


def _t_noise(like: Float[Tensor, "batch size"], n: int, generator: torch.Generator) -> Tensor:
    """Standard t₇ vectors (batch, n, size)."""
    u, stretch = _even(like, n, generator)
    return torch.special.ndtri(u) * stretch


def _systematic(probs: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Indices of systematic resampling: the least noise that equal weights can have."""
    position = torch.rand(len(probs), 1, generator=generator, dtype=torch.float64).to(probs)
    points = (torch.arange(draws, device=probs.device) + position) / draws
    return torch.searchsorted(probs.cumsum(-1), points).clamp_max(probs.shape[-1] - 1)


class _Mixture:
    """Draws from several proposals, weighted against their mixture (the balance heuristic)."""

    def __init__(self, posterior: Posterior) -> None:
        self.posterior = posterior
        self.proposals: list[_SplitT | _Prior | _Cloud] = []
        self.counts: list[int] = []
        self.parts: list[tuple[Tensor, ...]] = []

    def add(self, proposal: "_SplitT | _Prior | _Cloud", u: Tensor) -> None:
        self.proposals.append(proposal)
        self.counts.append(u.shape[1])
        self.parts.append((u, *self.posterior.draws_terms(u)))

    def select(self, problems: Tensor) -> "_Mixture":
        """The same draws, of some of the problems."""
        some = _Mixture(self.posterior.select(problems))
        some.proposals = [proposal.select(problems) for proposal in self.proposals]
        some.counts = list(self.counts)
        some.parts = [tuple(x[problems] for x in part) for part in self.parts]
        return some

    def weigh(self) -> Draws:
        """All draws so far."""
        u, prior, by_unit = (torch.cat(part, 1) for part in zip(*self.parts, strict=True))
        log_p = prior + self.posterior.trained(by_unit)
        total = sum(self.counts)
        log_q = torch.stack(
            [
                q.log_prob(u) + math.log(n / total)
                for q, n in zip(self.proposals, self.counts, strict=True)
            ]
        ).logsumexp(0)
        raw = torch.where(torch.isfinite(log_p - log_q), log_p - log_q, -torch.inf)
        log_w, k_hat = raw.clone(), torch.empty(len(raw))
        for i, (row, kept) in enumerate(zip(raw, torch.isfinite(raw), strict=True)):
            smoothed, k_hat[i] = smooth(row[kept].cpu().numpy())
            log_w[i, kept] = torch.as_tensor(smoothed).to(raw)
        evidence = torch.logsumexp(raw, -1) - math.log(total)
        return Draws(u, log_w, by_unit, evidence, k_hat)


def importance_draws(
    posterior: Posterior, modes: Modes, draws: int, generator: torch.Generator
) -> Draws:
    """Weigh split-t₇ proposals around the modes against the exact posterior.

    With at most twelve parameters some draws come from the prior, and problems whose k̂ exceeds 0.5
    get clouds about their draws so far. In more dimensions neither would help, and k̂ says what is
    to be believed.

    Args:
        posterior: The problems.
        modes: Their modes.
        draws: Draws proposed around the mode, and as many by each cloud.
        generator: Source of randomness, on the CPU.
    """
    mixture = _Mixture(posterior)
    around = _SplitT(modes.u, modes.factor, _widths(posterior, modes))
    small = isinstance(posterior.parameters, Pooled) and posterior.size <= _SMALL
    mixture.add(around, around.sample(draws if small else draws // 2, generator))
    if not small:
        moved = around.moved(mixture.weigh())
        mixture.add(moved, moved.sample(draws, generator))
        return mixture.weigh()
    prior = _Prior(posterior.parameters)  # pyright: ignore
    mixture.add(prior, prior.sample(posterior.batch, draws // 4, generator).to(modes.u))
    return _clouded(mixture, draws, generator, _CLOUDS)


def _clouded(mixture: _Mixture, draws: int, generator: torch.Generator, rounds: int) -> Draws:
    """Weighted draws, those of the problems that need it improved by further clouds."""
    found = mixture.weigh()
    bad = (found.k_hat > 0.5).to(found.u.device)
    if not rounds or not bool(bad.any()):
        return found
    part, some = mixture.select(bad), found.select(bad)
    cloud = _Cloud.about(some, generator)
    part.add(cloud, cloud.sample(draws, generator))
    return found.put(bad, _clouded(part, draws, generator, rounds - 1))
