r"""Parts that have one law, or one but for a shift of each person, at points of that law.

.. math:: W_c(θ) = \log \frac{p(θ)}{q(θ)} + \sum_i T_{ic}(θ), \qquad
    T_{ic}(θ) = \log \int N(l - l_θ;\, 0, τ^2) \prod_{p \in i} Z_p^{(c)}(l, θ)\,dl

with c what is trained on (all, or all but a fold) and Z_p the likelihood of part p of person i with
all of its own parameters integrated out (:mod:`~neurodiff.inference.marginal`). Where nobody shifts
the integral is the integrand at :math:`l_θ`. Points θ come from t₇ about the mode and from the
prior, then from a cloud about these; sums over them are evidences and held-out densities.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from neurodiff.inference.bridge import bridge
from neurodiff.inference.laplace import Modes, best_modes
from neurodiff.inference.marginal import marginals, pooled
from neurodiff.inference.priors import Pooled
from neurodiff.inference.proposals import Cloud, Prior, SplitT, systematic
from neurodiff.inference.psis import smooth
from neurodiff.inference.tied import FOLDS, Part, Tied, common, least_squares, place, tie

_REACH, _APART, _NODES = 6.0, 0.75, 81  # of nodes over a shift in s.d., and how many at most


@dataclass(frozen=True)
class Points:
    """A group of parts at points of the law that they have in common.

    Attributes:
        parts: Of whom.
        owner: Whose law a part has: the same for all of these.
        shifted: Whether each person adds a shift to the place of the law.
        tied: All parts as one problem.
        modes: Its mode.
        law: Points, unconstrained.
        first: How many of them are not from the cloud,
        log_q: the log density that these were drawn with, at all points, and that of the cloud.
        nodes: Places that each person's shift can bring the law to, if there are shifts.
        terms: Of each part, its marginal likelihoods.
    """

    parts: Sequence[Part]
    owner: Callable[[Part], str]
    shifted: bool
    tied: Tied
    modes: Modes
    law: Float[Tensor, "point size"]
    first: int
    log_q: Float[Tensor, "two point"]
    nodes: Float[Tensor, "person node"] | None
    terms: dict[str, Float[Tensor, "point node _"]]

    @property
    def persons(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(part.person for part in self.parts))

    def weights(self, width: float = 1.0) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """W (point, 1 + fold), T of each person, and what it integrates (point, node, 1 + fold)."""
        prior = Pooled(list(common(self.parts, width).values()))
        total = torch.vmap(prior.log_prior)(self.law) - self._mixture
        total = total[:, None].expand(-1, 1 + FOLDS)
        each, inside = {}, {}
        for i, person in enumerate(self.persons):
            mine = [part for part in self.parts if part.person == person]
            inside[person] = torch.stack(
                [self.terms[part.name][..., : 1 + FOLDS] for part in mine]
            ).sum(0)
            if self.nodes is not None:
                nodes = self.nodes[i]
                shift = nodes - self.law[:, mine[0].columns(ours=True).index(place(mine[0])), None]
                log_p = Normal(0.0, width).log_prob(shift) + (nodes[1] - nodes[0]).log()
                inside[person] = inside[person] + log_p[..., None]
            each[person] = inside[person].logsumexp(1)
            total = total + each[person]
        return total, each, inside

    def held_out(self) -> tuple[dict[str, Float[Tensor, " _"]], float]:
        """Log predictive density of each unit of each part given the other folds; the largest k̂.

        Units that are several equal trials count each alone.
        """
        total, each, inside = self.weights()
        smoothed = [smooth(column.numpy()) for column in total.T]
        log_w = torch.stack([torch.as_tensor(w) for w, _ in smoothed], 1)
        elpd = {}
        for part in self.parts:
            terms, fold = self.terms[part.name], 1 + part.fold
            rest = inside[part.person] - terms[..., : 1 + FOLDS]  # of the person's other parts
            back = (rest[..., fold] + terms[..., 1 + FOLDS :]).logsumexp(1)
            kept = (log_w - each[part.person])[:, fold] + back
            elpd[part.name] = part.copies * kept.logsumexp(0)
        return elpd, max(k_hat for _, k_hat in smoothed)

    def evidence(self, width: float = 1.0) -> tuple[float, float, float]:
        r"""Log evidence by Laplace, by bridge sampling, and the standard error of the latter.

        .. math:: \log p(y, \hat v) + \tfrac{d}{2} \log 2\pi + \log |L|

        Bridges join posterior draws, resampled from the first points, with those of the cloud.
        """
        tied, modes = self.tied, self.modes
        if width != 1.0:
            tied = tie(self.parts, self.owner, self.shifted, width)
            modes = best_modes(tied, modes.u[None])
        laplace = modes.log_prob[0] + 0.5 * tied.size * math.log(2 * math.pi)
        laplace = laplace + torch.linalg.slogdet(modes.factor[0])[1]
        n, log_p = self.first, self.weights(width)[0][:, 0] + self._mixture
        w = torch.softmax(log_p[:n] - self.log_q[0, :n], 0)
        pick = systematic(w[None], n, torch.Generator().manual_seed(0))[0]
        own, other = (log_p - self.log_q[1]).tensor_split([n])
        return float(laplace), *bridge(own[pick], other, float(1 / w.square().sum()))

    @property
    def _mixture(self) -> Float[Tensor, " point"]:
        """Log density of both sorts of points."""
        share = torch.tensor([self.first, len(self.law) - self.first]) / len(self.law)
        return (self.log_q + share.log()[:, None]).logsumexp(0)


def explore(
    parts: Sequence[Part],
    owner: Callable[[Part], str],
    shifted: bool,
    points: int,
    draws: int,
    seed: int,
) -> Points:
    """Points of a law about its mode and from its prior, then about where these say that mass is.

    Args:
        parts: Those that have it in common.
        owner: Whose law a part has.
        shifted: Whether each person adds a shift to its place.
        points: Of the law.
        draws: Of everything else, at each.
        seed: Of both.
    """
    generator = torch.Generator().manual_seed(seed)
    tied = tie(parts, owner, shifted)
    modes = best_modes(tied, _starts(tied, parts)[:, None])
    nodes = _nodes(tied, modes, parts) if shifted else None
    columns = tied.columns(owner(parts[0]))
    covariance = (modes.factor @ modes.factor.mT)[0][columns][:, columns]
    factor = torch.linalg.cholesky(covariance)[None]
    wide = torch.full((1, 2, len(columns)), 1.2, dtype=torch.float64)
    proposals = (
        SplitT(modes.u[:, columns], factor, wide),
        Prior(Pooled(list(common(parts).values()))),
    )
    sizes = points // 2 - points // 8, points // 8
    law = torch.cat([proposals[0].sample(sizes[0], generator)[0],
                     proposals[1].sample(1, sizes[1], generator)[0]])  # fmt: skip

    def density(law: Tensor) -> Tensor:
        log_q = [
            q.log_prob(law[None])[0] + math.log(n) for q, n in zip(proposals, sizes, strict=True)
        ]
        return torch.stack(log_q).logsumexp(0) - math.log(sum(sizes))

    log_q = density(law).expand(2, -1)
    pools = _pools(tied, modes, parts, draws, generator)
    terms = _terms(parts, law, nodes, pools)
    half = Points(parts, owner, shifted, tied, modes, law, len(law), log_q, nodes, terms)
    cloud = Cloud.about(law[None], half.weights()[0][None, :, 0].log_softmax(1), generator)
    more = cloud.sample(points // 2, generator)[0]
    rest = _terms(parts, more, nodes, pools)
    law = torch.cat([law, more])
    log_q = torch.stack([density(law), cloud.log_prob(law[None])[0]])
    terms = {name: torch.cat([value, rest[name]]) for name, value in terms.items()}
    return replace(half, law=law, log_q=log_q, terms=terms)


def _starts(tied: Tied, parts: Sequence[Part]) -> Float[Tensor, "start size"]:
    """The mean of where the parts are by themselves, and with the law as three of them have it."""
    middle = least_squares(tied, [part.modes.u[0] for part in parts])
    starts = [middle]
    for to, part in list(zip(tied.maps, parts, strict=True))[:3]:
        starts.append(torch.where(to.sum(0) > 0, to.mT @ part.modes.u[0], middle))
    return torch.stack(starts)


def _nodes(tied: Tied, modes: Modes, parts: Sequence[Part]) -> Float[Tensor, "person node"]:
    """Places of each person's law, evenly spaced over what the data and the prior leave open."""
    covariance, each = (modes.factor @ modes.factor.mT)[0], {}
    for to, part in zip(tied.maps, parts, strict=True):
        row = to[place(part)]
        each[part.person] = float(row @ modes.u[0]), float((row @ covariance @ row).sqrt())
    # a sum over nodes is the integral where these lie no further apart than .75 of a standard
    # deviation of what is known, and of the prior of shifts
    widest = max(1.0, *(sd for _, sd in each.values()))
    count = min(_NODES, 2 * math.ceil(_REACH * widest / _APART) + 1)
    steps = torch.linspace(-_REACH, _REACH, count, dtype=torch.float64)
    return torch.stack([middle + sd * steps for middle, sd in each.values()])


Pool = tuple[Tensor, Tensor]


def _pools(
    tied: Tied, modes: Modes, parts: Sequence[Part], draws: int, generator: torch.Generator
) -> list[Pool]:
    """Of each part, draws of what is its own: where all parts together, and it alone, put it."""
    pools = []
    for part, to in zip(parts, tied.maps, strict=True):
        rest = to[part.columns(ours=False)]
        root = rest @ modes.factor[0]
        pools.append(pooled(part, rest @ modes.u[0], root @ root.mT, draws, generator))
    return pools


def _terms(
    parts: Sequence[Part], law: Tensor, nodes: Tensor | None, pools: Sequence[Pool]
) -> dict[str, Tensor]:
    """The marginal likelihoods of all parts, at every place that a shift can bring the law to."""
    found, persons = {}, list(dict.fromkeys(part.person for part in parts))
    for part, pool in zip(parts, pools, strict=True):
        at = law[:, None]
        if nodes is not None:
            own = nodes[persons.index(part.person)]
            at = at.repeat(1, len(own), 1)
            at[..., part.columns(ours=True).index(place(part))] = own
        found[part.name] = marginals(part, at.flatten(0, 1), *pool).reshape(*at.shape[:2], -1)
    return found
