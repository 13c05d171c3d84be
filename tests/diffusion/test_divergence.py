"""Ratios of densities by losses, and score divergences, on Gaussians and mixtures."""

import math

import numpy as np
import pytest
import torch
from contracts_denoiser import error_1d, hermite, information_1d, within
from scipy import integrate

import neurodiff as nd
from neurodiff.diffusion.denoiser import ByLabel, Denoiser, NetworkDenoiser
from neurodiff.diffusion.divergence import (
    Looks,
    likelihood_ratio,
    looks,
    losses,
    of_few_looks,
    score_divergence,
)
from neurodiff.diffusion.logsnr import alpha_sigma, diffuse
from neurodiff.diffusion.networks import MLP
from neurodiff.diffusion.parameterization import convert
from neurodiff.diffusion.prior import Gaussian, GaussianMixture

ELBO, FLOW = nd.weighting("elbo"), nd.schedule("flow")
OLD = GaussianMixture(torch.tensor([1.0, 2.0]), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
NEW = GaussianMixture(
    torch.tensor([2.0, 1.0]), torch.tensor([[-0.5], [1.2]]), torch.tensor([[0.3], [0.6]])
)


def normal(mean, variance):
    return Gaussian(torch.tensor([mean]), torch.tensor([variance]))


def every_look(levels=4001, reach=30.0):
    """Looks that are a quadrature: (1, look), whose mean of ½ w/p |e|² is ½ ∫ w m dλ."""
    node, weight = hermite(40)
    level = torch.linspace(-reach, reach, levels)
    share = torch.full_like(level, level[1] - level[0])
    share[[0, -1]] /= 2
    count = levels * len(node)
    importance = count * (share[:, None] * weight).flatten()
    logsnr = level.repeat_interleave(len(node))
    return Looks(logsnr[None], importance[None], node.repeat(levels)[None, :, None])


@pytest.mark.parametrize(
    ("old", "new"),
    [(normal(0.3, 1.0), normal(-0.2, 0.5)), (OLD, NEW), (normal(0.0, 1.0), NEW)],
    ids=["Gaussians", "mixtures", "both"],
)
def test_for_w_1_the_ratio_is_that_of_densities(old, new):
    x, end = torch.tensor([[0.4]]), torch.tensor(math.inf)
    seen = every_look()
    by_loss = likelihood_ratio(*(losses(d, x, seen, weighting=ELBO) for d in (old, new)))
    exact = (new.log_prob(x, end) - old.log_prob(x, end)).exp()
    assert (by_loss / exact - 1).abs() < 1e-6


def test_the_ratio_of_densities_in_three_dimensions():
    mean, spread = torch.tensor([0.2, -0.5, 1.0]), torch.tensor([[1.0, 0.3, 0], [0, 0.8, 0.2]])
    old = Gaussian(mean, torch.eye(3))
    new = Gaussian(0.5 * mean, spread.mT @ spread + 0.2 * torch.eye(3))
    x, end = torch.tensor([[0.5, 0.1, -0.3]]), torch.tensor(math.inf)
    seen = looks(x, nd.schedule("cosine"), 200_000)
    one, two = (losses(d, x, seen, weighting=ELBO) for d in (old, new))
    assert within((one - two)[0] - (new.log_prob(x, end) - old.log_prob(x, end)))


def expectations(old, new, x, counts, schedule=FLOW):
    """E r̂_N and E r̂_N² by quadrature over a uniform t and ε, with formulas of their own."""
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    t = (np.arange(4000) + 0.5) / 4000
    level = schedule.logsnr(torch.tensor(t)).numpy()[:, None]
    p = np.exp(schedule.log_density(torch.tensor(level)).numpy())
    a, s = 1 / np.sqrt(1 + np.exp(-level)), 1 / np.sqrt(1 + np.exp(level))

    def error(mean, variance):
        eps_hat = s * (a * x + s * node - a * mean) / (a**2 * variance + s**2)
        return (eps_hat - node) ** 2

    d = 0.5 / p * (error(*old) - error(*new))
    share = weight / weight.sum() / len(t)
    return [[float((np.exp(k * d / n) * share).sum()) ** n for k in (1, 2)] for n in counts]


def test_few_looks_exceed_the_ratio_and_fall_to_it():
    """N(0, .8) to N(.5, .8) at 1, w = 1: E r̂ of 1, 4, 16, 64, 256 looks, and r = 1.60."""
    old, new, x = (0.0, 0.8), (0.5, 0.8), 1.0
    counts = (1, 4, 16, 64, 256)
    exact = expectations(old, new, x, counts)
    means = [mean for mean, _ in exact]
    r = math.exp((x**2 - (x - 0.5) ** 2) / 1.6)
    assert all(a > b for a, b in zip(means, [*means[1:], r], strict=True))
    assert [round(m, 2) for m in means] == [3.71, 1.89, 1.67, 1.61, 1.60]
    there = torch.full((200_000, 1), x)
    for count, (mean, square) in list(zip(counts, exact, strict=True))[1:3]:
        some = there[: len(there) // count]
        seen = looks(some, FLOW, count)
        pair = [losses(normal(*d), some, seen, weighting=ELBO) for d in (old, new)]
        ratio = likelihood_ratio(*pair)
        assert within(ratio - mean)
        assert within((ratio - mean).square() - (square - mean**2))


def test_bias_and_spread_from_the_looks_at_hand():
    old, new, x = (0.0, 0.8), (0.3, 0.7), 0.9
    there = torch.full((1, 1), x)
    seen = looks(there, FLOW, 400_000)
    one, two = (losses(normal(*d), there, seen, weighting=ELBO) for d in (old, new))
    difference = one - two
    r = math.exp(0.5 * (x**2 / 0.8 - (x - 0.3) ** 2 / 0.7 + math.log(0.8 / 0.7)))
    for count in (4, 8, 32):
        ((mean, square),) = expectations(old, new, x, (count,))
        found = of_few_looks(difference, count)
        # of Monte Carlo: the mean has an error of r sd(d) / √looks, which is .002; the sd of tails
        assert abs(float(found.limit) - r) < 0.01
        assert abs(float(found.mean) - mean) < 0.01
        assert abs(float(found.sd) / math.sqrt(square - mean**2) - 1) < 0.05
    bias = r / (2 * 512) * float(difference.var())  # of second order
    ((mean, _),) = expectations(old, new, x, (512,))
    assert abs((mean - r) / bias - 1) < 0.03


def test_fpo_losses_are_plain_errors():
    """On the straight path: flow-eps is |ε̂ − ε|², flow-matching |û − u|², whatever the network."""
    denoiser, x = NetworkDenoiser(MLP((3,), width=8, depth=1), "flow"), torch.randn(20, 3)
    torch.nn.init.normal_(denoiser.network.last.weight)
    seen = looks(x, FLOW, 5)
    many, eps = x.repeat_interleave(5, 0), seen.eps.flatten(0, 1)
    level = seen.logsnr.flatten()
    z = diffuse(many, eps, level)
    u = denoiser.network(z, level)
    eps_hat = convert(u, "flow", "eps", z=z, logsnr=level)
    for name, error in {"flow-eps": eps_hat - eps, "flow-matching": u - (eps - many)}.items():
        got = losses(denoiser, x, seen, weighting=nd.weighting(name))
        wanted = error.square().sum(1).reshape(20, 5)
        assert ((got - wanted).abs() <= 1e-9 * (1 + wanted)).all()


def test_other_weights_are_a_ratio_at_a_random_stop():
    """w = e^{−λ/2} from λ_min: E_Λ of the log ratio, less that at λ_min; not the log ratio."""
    x, low, high = 0.7, -8.0, 18.0
    level = torch.linspace(low, high, 1001)
    w = nd.weighting("flow-matching")(level)
    # m and L of each, by quadratures of their own
    m, ratio = (f(OLD, x, level) - f(NEW, x, level) for f in (error_1d, information_1d))
    by_loss = integrate.simpson((0.5 * w * m).numpy(), x=level.numpy())
    stop = integrate.simpson((0.5 * w * ratio).numpy(), x=level.numpy())  # −w′ = w / 2
    at_stop = stop + float(w[-1] * ratio[-1] - w[0] * ratio[0])
    assert abs(by_loss - at_stop) < 1e-7
    exact = NEW.log_prob(torch.tensor([[x]]), torch.tensor(math.inf))
    exact -= OLD.log_prob(torch.tensor([[x]]), torch.tensor(math.inf))
    assert abs(by_loss / float(exact) - 1) > 0.1


def kl(p, q):
    """KL of two one-number priors, by quadrature."""
    x, end = torch.linspace(-12, 12, 20_001)[:, None], torch.tensor(math.inf)
    log_p, log_q = p.log_prob(x, end), q.log_prob(x, end)
    return float(integrate.simpson((log_p.exp() * (log_p - log_q)).numpy(), x=x[:, 0].numpy()))


@pytest.mark.parametrize("schedule", ["cosine", "flow"])
@pytest.mark.parametrize(
    ("p", "q"), [(normal(0.3, 1.0), normal(-0.2, 0.5)), (NEW, OLD)], ids=["Gaussians", "mixtures"]
)
def test_the_divergence_with_w_1_is_the_kl(p, q, schedule):
    value, se = score_divergence(
        p, q, p.sample(20_000), weighting=ELBO, schedule=nd.schedule(schedule), count=4
    )
    assert abs(float(value) - kl(p, q)) < 4.5 * float(se)
    assert float(se) < 0.1 * kl(p, q)


def test_a_plain_norm_of_scores_is_the_weighting_smiling():
    """E_t E |∇ log P_t − ∇ log Q_t|² of two Gaussians in closed form, t ~ U on the cosine."""
    mean, variance = (0.4, -0.6), (1.5, 0.5)
    t = torch.linspace(0, 1, 4001)[1:-1]
    a, s = alpha_sigma(nd.schedule("cosine").logsnr(t))
    total = [a**2 * v + s**2 for v in variance]
    shift = a * (mean[0] - mean[1])
    # the scores differ by (z − α m₁)(1/T₂ − 1/T₁) + shift/T₂, and z − α m₁ has variance T₁
    apart = total[0] * (1 / total[1] - 1 / total[0]) ** 2 + (shift / total[1]) ** 2
    exact = integrate.simpson(apart.numpy(), x=t.numpy())
    p, q = (normal(*each) for each in zip(mean, variance, strict=True))
    value, se = score_divergence(
        p, q, p.sample(40_000), weighting=nd.weighting("smiling"),
        schedule=nd.schedule("cosine"), count=2,
    )  # fmt: skip
    assert abs(float(value) - exact) < 4.5 * float(se)


def test_the_standard_error_is_that_of_repetitions():
    w, s = nd.weighting("sigmoid"), nd.schedule("flow")
    found = [
        score_divergence(NEW, OLD, NEW.sample(200), weighting=w, schedule=s) for _ in range(300)
    ]
    values, errors = (torch.stack(part) for part in zip(*found, strict=True))
    # sd of an sd over 300 repetitions: 4 %, and the draws have heavier tails than normal ones
    assert abs(float(values.std() / errors.square().mean().sqrt()) - 1) < 0.2


def test_a_cost_of_states_has_the_divergence_as_its_mean():
    """c(x) = L of the expert's score − L of the learner's own; E over the learner is D_w."""
    learner, expert, w = NEW, OLD, nd.weighting("smiling")
    x = learner.sample(100_000)
    schedule = nd.schedule("cosine")
    seen = looks(x, schedule, 2)
    of = [losses(d, x, seen, weighting=w).mean(1) for d in (expert, learner)]
    value, se = score_divergence(
        learner, expert, learner.sample(100_000), weighting=w, schedule=schedule, count=2
    )
    cost = of[0] - of[1]
    spread = math.hypot(float(cost.std()) / math.sqrt(len(cost)), float(se))
    assert abs(float(cost.mean() - value)) < 4.5 * spread


def test_two_labels_at_the_same_looks_are_a_discriminator():
    """sig(L_A − L_E) is p_E/(p_E + p_A) where w is 1."""
    both, x = ByLabel(OLD, NEW), torch.tensor([[0.4]])
    end = torch.tensor(math.inf)
    seen = looks(x, FLOW, 400_000)
    agent, expert = (
        losses(both, x, seen, weighting=ELBO, cond=torch.tensor([label])) for label in (0, 1)
    )
    exact = float(NEW.log_prob(x, end) - OLD.log_prob(x, end))
    assert within((agent - expert)[0] - exact)
    assert torch.sigmoid((agent - expert).mean()) == pytest.approx(
        1 / (1 + math.exp(-exact)), abs=0.01
    )


def test_gradients_reach_the_new_denoiser():
    denoiser, x = NetworkDenoiser(MLP((2,), width=8, depth=1), "eps"), torch.randn(4, 2)
    seen = looks(x, FLOW, 3)
    new = losses(denoiser, x, seen, weighting=nd.weighting("flow-eps"))
    likelihood_ratio(new.detach(), new).sum().backward()
    assert likelihood_ratio(new.detach(), new).detach().eq(1).all()
    assert denoiser.network.last.bias.grad.abs().sum() > 0


def test_a_limit_holds_the_ratio_and_its_gradient():
    new = torch.tensor([[0.0], [-5.0], [2.0]], requires_grad=True)
    ratio = likelihood_ratio(torch.zeros(3, 1), new, limit=3.0)
    assert torch.allclose(ratio, torch.tensor([0.0, 3.0, -2.0]).exp())
    (slope,) = torch.autograd.grad(ratio.sum(), new)
    assert torch.allclose(slope[:, 0], torch.tensor([-1.0, 0.0, -math.exp(-2.0)]))


def test_looks_of_some_examples_and_spread_evenly():
    x = torch.randn(6, 2)
    seen = looks(x, FLOW, 4, torch.Generator().manual_seed(1), stratified=True)
    gaps = FLOW.t(seen.logsnr).sort(1).values.diff(dim=1)
    assert (gaps - 0.25).abs().max() < 1e-9
    some = torch.tensor([4, 1])
    all_, few = (
        losses(OLD, x_[:, :1], Looks(s.logsnr, s.importance, s.eps[..., :1]), weighting=ELBO)
        for x_, s in ((x, seen), (x[some], seen.at(some)))
    )
    assert torch.equal(all_[some], few)
    assert torch.equal(looks(x, FLOW, 4, torch.Generator().manual_seed(1), True).eps, seen.eps)


def test_refusals():
    class Mean(Denoiser):
        def forward(self, z, logsnr, cond=None):
            return z.mean(1)

    x, options = torch.zeros(3, 2), {"weighting": ELBO, "schedule": FLOW}
    with pytest.raises(ValueError, match="at least 1 look"):
        looks(x, FLOW, 0)
    with pytest.raises(ValueError, match="at least 1 look"):
        of_few_looks(torch.zeros(1, 3), 0)
    with pytest.raises(ValueError, match="at least 2 draws of P, got 1"):
        score_divergence(OLD, NEW, x[:1, :1], **options)
    with pytest.raises(ValueError, match="denoiser of Q returned"):
        score_divergence(Gaussian(torch.zeros(2), torch.ones(2)), Mean(), x, **options)
