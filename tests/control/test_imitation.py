"""DIFO and SMILING: exact discriminators and costs, what they learn, and what they refuse."""

import math

import gymnasium
import numpy as np
import pytest
import torch
import xarray as xr
from gymnasium import spaces
from imitators import ARGUMENTS, DIMS, agent, upwards
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import neurodiff as nd
from neurodiff.control.demonstrations import demonstrations
from neurodiff.control.difo import AGENT, DIFO, EXPERT, logit
from neurodiff.control.gridworld import TwoGoals
from neurodiff.control.smiling import SMILING, cost
from neurodiff.diffusion.denoiser import ByLabel
from neurodiff.diffusion.divergence import looks, losses, score_divergence
from neurodiff.diffusion.prior import Gaussian


def two():
    """Gaussians of an expert and an agent, over pairs of two numbers."""
    g = torch.Generator().manual_seed(0)
    half = 0.3 * torch.randn(4, 4, generator=g)
    low = Gaussian(torch.zeros(4), half @ half.mT + 0.5 * torch.eye(4))
    high = Gaussian(torch.full((4,), 0.4), torch.tensor([0.5, 1.0, 1.5, 0.7]))
    return low, high


def log_density(prior, x):
    """Without noise, from the covariance itself."""
    axes = torch.eye(4) if prior.axes is None else prior.axes
    own = axes @ torch.diag(prior.variance) @ axes.mT
    return torch.distributions.MultivariateNormal(prior.mean, own).log_prob(x)


def test_the_discriminator_of_exact_denoisers_is_that_of_densities():
    """D = p_E / (p_E + p_A) at w = 1, k = 1, up to the standard error over looks."""
    found = {AGENT: two()[0], EXPERT: two()[1]}
    either, x = ByLabel(found[0], found[1]), two()[1].sample(6)
    count = 20_000
    seen = looks(x.repeat_interleave(count, 0), nd.schedule("flow"), 1)
    each, _ = logit(either, x.repeat_interleave(count, 0), seen, weighting=nd.weighting("elbo"))
    each = each.reshape(6, count)
    ratio = log_density(found[EXPERT], x) - log_density(found[AGENT], x)
    se = each.std(1) / math.sqrt(count)
    assert ((each.mean(1) - ratio).abs() < 4 * se).all()
    assert (se < 0.1).all()
    d, wanted = each.mean(1).sigmoid(), ratio.sigmoid()
    assert ((d - wanted).abs() < se).all()  # the slope of a sigmoid is at most ¼


def test_gain_and_weighting_scale_the_logit():
    either, x = ByLabel(*two()), two()[0].sample(5)
    seen, w = looks(x, nd.schedule("flow"), 3), nd.weighting("elbo")
    one, expert = logit(either, x, seen, weighting=w)
    twice, _ = logit(either, x, seen, weighting=lambda level: 2 * w(level))
    ten, _ = logit(either, x, seen, weighting=w, gain=10.0)
    assert torch.allclose(twice, 2 * one)
    assert torch.allclose(ten, 10 * one)
    own = losses(two()[1], x, seen, weighting=w).mean(1)
    assert torch.allclose(expert, own)


@pytest.mark.parametrize("name", ["elbo", "smiling", "ddpm"])
def test_the_mean_cost_of_learners_is_the_divergence_of_scores(name):
    """E c = D_w(learner, expert) where g_k is exact; by sampling, and for w = 1 in closed form."""
    expert, learner = two()
    s, w = learner.sample(100_000), nd.weighting(name)
    times = nd.schedule("truncated-cosine", logsnr_min=-12.0, logsnr_max=8.0)
    each = cost(expert, learner, s, looks(s, times, 2), weighting=w)
    wanted, se = score_divergence(learner, expert, s, weighting=w, schedule=times, count=2)
    both = math.hypot(each.std() / math.sqrt(len(s)), se)
    assert abs(each.mean() - wanted) < 4 * both
    assert both < 0.1 * wanted
    if name == "elbo":
        kl = (log_density(learner, s) - log_density(expert, s)).mean()
        assert abs(each.mean() - kl) < 4 * both + 0.01  # what is below -12 and above 8


def test_the_plain_norm_of_scores_has_the_weighting_smiling():
    """½ w/p |ε̂ − ε|² = |g − ∇log q(s_t|s)|² at each look."""
    expert, learner = two()
    s, w = learner.sample(7), nd.weighting("smiling")
    seen = looks(s, nd.schedule("cosine"), 1)
    found = cost(expert, learner, s, seen, weighting=w)
    level = seen.logsnr[:, 0]
    a, sd = torch.sigmoid(level).sqrt()[:, None], torch.sigmoid(-level).sqrt()[:, None]
    z = a * s + sd * seen.eps[:, 0]
    truth = -(z - a * s) / sd**2

    def off(prior):
        # of N(α m, α² C + σ² I)
        axes = torch.eye(4) if prior.axes is None else prior.axes
        rotated = (z - a * prior.mean) @ axes / (a**2 * prior.variance + sd**2)
        return (-(rotated @ axes.mT) - truth).square().sum(1)

    assert torch.allclose(found, off(expert) - off(learner), rtol=1e-6)


def test_rewards_are_what_they_are_said_to_be():
    s, after = torch.zeros(6, 2), 0.1 * torch.randn(6, 2)
    difo = agent(DIFO)
    torch.manual_seed(3)
    found = difo.reward(s, after)
    torch.manual_seed(3)
    x = difo.pairs(s, after)
    value, _ = logit(difo.denoiser, x, looks(x, difo.noise, 4, stratified=True),
                     weighting=difo.weighting)  # fmt: skip
    assert torch.allclose(found, -(1 - value.double().sigmoid()).log().float())
    assert found.shape == (6,)
    smiling = agent(SMILING).learn(32)
    found = smiling.reward(s, after)
    assert abs(found.mean()) < 1e-6
    assert found.std().item() == pytest.approx(0.1, rel=1e-4)


def test_difo_tells_an_expert_from_others():
    """The loss alone: after some steps D is high for what was shown, low for what was not."""
    found = agent(DIFO, width=32, rate=3e-3)
    pairs = found.shown.pairs
    away = torch.stack([torch.zeros(64, 2), torch.full((64, 2), -0.2)], 1).float()
    optimizer = found.denoiser_optimizer
    for _ in range(150):
        optimizer.zero_grad()
        found.denoiser_loss(away[:, 0], away[:, 1]).backward()
        optimizer.step()
    half, centre = found.shown.half, found.shown.centre
    with torch.no_grad():
        shown = found.reward(*(half * pairs[:, i] + centre for i in (0, 1)))
        other = found.reward(away[:, 0], away[:, 1])
    assert shown.mean() > 3 * other.mean()


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_it_is_used_as_sac_is(kind):
    env = make_vec_env("Pendulum-v1", 2, seed=0)
    state = np.random.default_rng(0).normal(size=(3, 20, 3))
    found = agent(kind, env, xr.Dataset({"state": (DIMS, state)}),
                  weighting=nd.weighting("sigmoid"), schedule=nd.schedule("flow"))  # fmt: skip
    before = [p.clone() for p in found.denoiser.parameters()]
    found.learn(60)
    after = list(found.denoiser.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert np.isfinite(found.logger.name_to_value.get("train/denoiser_loss", 0.0))
    assert isinstance(evaluate_policy(found, env, 2)[0], float)


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_the_environment_does_not_pay(kind):
    """Another reward of the environment changes nothing of what is learned."""

    class Other(TwoGoals):
        def step(self, action):
            state, _, *rest = super().step(action)
            return state, 100.0, *rest

    first, second = (agent(kind, env).learn(48) for env in (TwoGoals(), Other()))
    for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_trials_may_end_early_and_the_scale_is_theirs():
    state = np.full((2, 4, 2), np.nan)
    state[0] = np.arange(8).reshape(4, 2)
    state[1, :2] = [[10.0, 1.0], [20.0, 3.0]]
    data = xr.Dataset({"state": (("feature", "trial", "time"), state.transpose(2, 0, 1))})
    data["sex"] = ("trial", ["f", "m"])  # whatever else there is
    found = demonstrations(data, features=2)
    assert found.states.shape == (6, 2)
    assert found.pairs.shape == (4, 2, 2)
    assert found.states.min(0).values.tolist() == [-1, -1]
    assert found.states.max(0).values.tolist() == [1, 1]
    raw = torch.from_numpy(state[1, :2])
    assert torch.allclose(found.scaled(raw), found.pairs[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.rename(state="place"), r"wanted a variable state with \('trial', 'time'"),
        (lambda d: d.isel(trial=0), "wanted a variable state"),
        (lambda d: d.isel(feature=[0, 1, 1]), "got demonstrations of 3 features, .* have 2"),
        (lambda d: d.where((d["time"] != 4) | (d["feature"] != 1)), "nan at trial 0, time 4, fea"),
        (lambda d: d.where(d["time"] > 0), r"nan at trial 0, time 0, feature 0 .*\(|8 such"),
        (lambda d: d.where(d["time"] != 2, np.inf), "inf at trial 0, time 2"),
        (lambda d: d.where(d["feature"] == 0, 1.0), "feature 1 is 1 throughout"),
        (lambda d: d.isel(time=[0]), "trials of at most one sample"),
    ],
)
def test_demonstrations_that_cannot_be_used_are_refused(change, message):
    data = upwards().assign_coords(time=np.arange(9), feature=[0, 1])
    with pytest.raises(ValueError, match=message):
        agent(DIFO, data=change(data))


class Odd(gymnasium.Env):
    """Two numbers seen, one done; what comes back is up to the test."""

    def __init__(self, shape=(2,), actions=None, seen=None, paid=0.0, state=0.0):
        self.observation_space = seen or spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = actions or spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.shape, self.paid, self.state = shape, paid, state

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(self.shape, np.float32), {}

    def step(self, action):
        return np.full(self.shape, self.state, np.float32), self.paid, False, False, {}


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (lambda: Odd(actions=spaces.Discrete(2)), r"actions Discrete\(2\), wanted a Box"),
        (lambda: Odd(seen=spaces.Discrete(2)), "wanted a Box of one dimension"),
        (lambda: Odd((2, 2), seen=spaces.Box(-1, 1, (2, 2))), "FlattenObservation"),
        (lambda: Odd((3,)), r"environment 0 gave an observation of shape \(3,\).*\(2,\)"),
        (lambda: DummyVecEnv([Odd, lambda: Odd((1,))]), r"environment 1 gave .*\(1,\)"),
        (lambda: VecNormalize(DummyVecEnv([Odd])), "got a VecNormalize"),
        (lambda: "Pendulum-v1", "got demonstrations of 2 features, .* have 3"),
        (lambda: "CartPole-v1", "wanted a Box: soft actor-critic"),
    ],
)
def test_environments_that_cannot_be_used_are_refused(env, message):
    with pytest.raises(ValueError, match=message):
        agent(DIFO, env())


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_what_is_not_finite_is_refused(kind):
    with pytest.raises(ValueError, match=r"reward \[nan\] of the environment at its step 1"):
        agent(kind, Odd(paid=math.nan)).learn(5)
    with pytest.raises(ValueError, match=r"next observation .*nan.* at its step 1"):
        agent(kind, Odd(state=math.nan)).learn(5)
    found = agent(kind).learn(32)
    with torch.no_grad():
        next(found.denoiser.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the learned reward is not finite for 16 of 16"):
        found.replay_buffer.sample(16)
    with pytest.raises(FloatingPointError, match="the denoiser's loss is nan after 32 steps"):
        found.train(1, 16)


def test_weights_of_the_loss_are_checked():
    for mse, bce in ((-1.0, 1.0), (0.0, 0.0)):
        with pytest.raises(ValueError, match="wanted neither below 0 and one above"):
            agent(DIFO, mse=mse, bce=bce)
