r"""Proposals of importance sampling, for a batch of problems: split t₇, the prior, clouds.

.. math:: q(u) \propto t_7\big(L^{-1}(u - \hat u) / s_\pm\big), \qquad
    q(u) = p(u), \qquad q(u) = \tfrac1K \textstyle\sum_k t_7\big(C^{-1}(u - u_k)\big)

Each draws points for every problem and gives its log density at any. Noise is of scrambled Sobol
points, over which averages converge faster than over chance.

References:
    Geweke 1989, "Bayesian inference in econometric models using Monte Carlo integration".
    Owen 1998, "Latin supercube sampling for very high-dimensional simulations".
"""

import math

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from neurodiff.inference.laplace import Modes
from neurodiff.inference.posterior import Posterior
from neurodiff.inference.priors import Pooled
from neurodiff.inference.streams import Source, draw, streams

_DF = 7.0
CENTRES = 200  # of a cloud


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


class SplitT:
    """t₇ about the mode, stretched along each axis of L to the left and to the right."""

    def __init__(self, u: Tensor, factor: Tensor, widths: Tensor) -> None:
        self.u, self.factor, self.widths = u, factor, widths
        self.inverse = torch.linalg.inv(factor)
        log_det = torch.linalg.slogdet(factor)[1]
        self.log_scale = log_det + (widths.sum(1) / 2).log().sum(-1)

    @classmethod
    def at(cls, posterior: Posterior, modes: Modes) -> "SplitT":
        """About the modes."""
        return cls(modes.u, modes.factor, _widths(posterior, modes))

    def select(self, problems: Tensor) -> "SplitT":
        """Of some of the problems."""
        return SplitT(self.u[problems], self.factor[problems], self.widths[problems])

    def moved(self, u: Tensor, log_w: Tensor, source: Source) -> "SplitT":
        """To the mean of weighted draws and their width, which the problems of a part share."""
        z = (u - self.u[:, None]) @ self.inverse.mT
        w = log_w.exp()[..., None]
        owner = streams(source, len(z)).owner.to(z.device)
        share = (owner[:, None] == owner).to(z)
        share = share / share.sum(-1, keepdim=True)
        mean = share @ (w * z).sum(1)
        variance = share @ (w * (z - mean[:, None]).square()).sum(1)
        widths = variance.sqrt().clamp(1.0, 3.0)[:, None].expand(-1, 2, -1)
        return SplitT(self.u + (self.factor @ mean[..., None])[..., 0], self.factor, widths)

    def sample(self, proposals: int, source: Source) -> Tensor:
        """Points (batch, draw, size)."""
        u, stretch = _even(self.u, proposals, source)
        # right of the mode with the right side's share of the width: the density is continuous
        share = (self.widths[:, 0] / self.widths.sum(1)).unsqueeze(1)
        right = u > share
        tail = torch.where(right, (1 - u) / (1 - share), u / share)
        z = -torch.special.ndtri(0.5 * tail) * stretch
        steps = torch.where(right, z * self.widths[:, None, 1], -z * self.widths[:, None, 0])
        return self.u[:, None] + steps @ self.factor.mT

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density at points (batch, draw, size)."""
        steps = (u - self.u[:, None]) @ self.inverse.mT
        side = torch.where(steps > 0, self.widths[:, None, 1], self.widths[:, None, 0])
        return _log_t((steps / side).square().sum(-1), u.shape[-1]) - self.log_scale[:, None]


class Prior:
    """The parameter prior itself: with some of it in the mixture no weight can exceed its share."""

    def __init__(self, parameters: Pooled) -> None:
        self.parameters = parameters

    def select(self, problems: Tensor) -> "Prior":
        """Of some of the problems."""
        return Prior(self.parameters.select(problems))

    def sample(self, batch: int, count: int, source: Source) -> Tensor:
        """Points (batch, draw, size)."""
        each = []
        with torch.random.fork_rng():
            for part, generator, own in streams(source, batch):
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
                each.append(self.parameters.of_part(part).draw_prior(own * count))
        return torch.cat(each).reshape(batch, count, -1)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density at points (batch, draw, size)."""
        return self.parameters.draws_log_prior(u)


class Cloud:
    """A mixture of t₇ about draws of an earlier round: it follows a curved posterior."""

    def __init__(self, centres: Tensor, factor: Tensor) -> None:
        self.centres, self.factor = centres, factor

    @classmethod
    def about(cls, u: Tensor, log_w: Tensor, source: Source) -> "Cloud":
        """Centres drawn from weighted draws, with Silverman's width."""
        size = u.shape[-1]
        probs = torch.softmax(0.7 * log_w, -1)  # tempered: no single draw may own the cloud
        pick = systematic(probs, CENTRES, source)
        rows = torch.arange(len(u), device=u.device)[:, None]
        mean = (probs[..., None] * u).sum(1, keepdim=True)
        covariance = (probs[..., None] * (u - mean)).mT @ (u - mean)
        width = (4 / (size + 2) / CENTRES) ** (1 / (size + 4))
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        ridge = torch.diag_embed(1e-6 * diagonal + 1e-12)
        return cls(u[rows, pick], width * torch.linalg.cholesky(covariance + ridge))

    def select(self, problems: Tensor) -> "Cloud":
        """Of some of the problems."""
        return Cloud(self.centres[problems], self.factor[problems])

    def sample(self, count: int, source: Source) -> Tensor:
        """At least ``count`` draws, as many about each centre."""
        centres = self.centres.repeat(1, -(-count // CENTRES), 1)
        count = centres.shape[1]
        return centres + _t_noise(self.centres[:, 0], count, source) @ self.factor.mT

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density at points (batch, draw, size)."""
        inverse = torch.linalg.inv(self.factor)
        log_det = torch.linalg.slogdet(self.factor)[1][:, None]
        # problem by problem: all distances together would not fit
        mixture = torch.stack(
            [
                torch.logsumexp(_log_t(torch.cdist(one @ to.mT, c @ to.mT).square(), len(to)), -1)
                for one, c, to in zip(u, self.centres, inverse, strict=True)
            ]
        )
        return mixture - math.log(CENTRES) - log_det


def _even(like: Float[Tensor, "batch size"], n: int, source: Source) -> tuple[Tensor, Tensor]:
    """Uniform points (batch, n, size), and what makes normal ones t₇ (batch, n, 1).

    Scrambled anew for each problem, so that problems err independently. What stretches points is in
    an order of its own: as one more dimension of Sobol's it goes with products of two others, and
    at 22 parameters half of all scramblings leave two axes of weighted draws correlated by 0.27.
    """
    batch, size = like.shape
    seeds = [
        seed
        for _, generator, own in streams(source, batch)
        for seed in torch.randint(2**31, (own,), generator=generator).tolist()
    ]
    engines = [torch.quasirandom.SobolEngine(size + 1, scramble=True, seed=s) for s in seeds]
    points = torch.stack([engine.draw(n, dtype=torch.float64) for engine in engines])
    points = points.clamp(1e-12, 1 - 1e-12)
    order = draw(torch.rand, batch, n, source=source).argsort(-1)
    chi2 = torch.as_tensor(stats.chi2.ppf(points[..., -1].gather(-1, order).numpy(), _DF))
    return points[..., :-1].to(like), (_DF / chi2).sqrt()[..., None].to(like)


def _t_noise(like: Float[Tensor, "batch size"], n: int, source: Source) -> Tensor:
    """Standard t₇ vectors (batch, n, size)."""
    u, stretch = _even(like, n, source)
    return torch.special.ndtri(u) * stretch


def systematic(probs: Tensor, draws: int, source: Source) -> Tensor:
    """Indices of systematic resampling: the least noise that equal weights can have."""
    position = draw(torch.rand, len(probs), 1, source=source).to(probs)
    points = (torch.arange(draws, device=probs.device) + position) / draws
    return torch.searchsorted(probs.cumsum(-1), points).clamp_max(probs.shape[-1] - 1)
