"""FPO: its ratio, its updates, what it learns, how it is used, and what it refuses."""

import csv
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import neurodiff as nd
from neurodiff.control.fpo import FPO
from neurodiff.control.gridworld import TwoGoals
from neurodiff.diffusion.divergence import looks

SMALL = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


class Bandit(gymnasium.Env):
    """One step of one number; the reward is a function of the action."""

    def __init__(self, reward=lambda a: 0.0, space=None, seen=(3,), shape=(3,)):
        self.observation_space = spaces.Box(-1.0, 1.0, seen, np.float32)
        self.action_space = space or spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.reward, self.shape = reward, shape

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(self.shape, np.float32), {}

    def step(self, action):
        return np.zeros(self.shape, np.float32), float(self.reward(action)), True, False, {}


def collected(agent):
    """One rollout, and all of it as a batch."""
    agent.learn(agent.n_steps * agent.n_envs)
    return next(agent.rollout_buffer.get())


def test_the_default_is_the_mean_eps_error_on_the_straight_path():
    agent = FPO("MlpPolicy", TwoGoals(), **SMALL)
    data = collected(agent)
    seen = looks(data.actions, agent.schedule, agent.n_mc)
    with torch.no_grad():
        found = agent._losses(data, seen)
        t = agent.schedule.t(seen.logsnr).float()[..., None]
        z = (1 - t) * data.actions[:, None] + t * seen.eps
        flat = (z / torch.hypot(1 - t, t)).flatten(0, 1)
        s = agent.policy.features(data.observations).repeat_interleave(8, 0)
        u = agent.policy.denoiser.network(flat, seen.logsnr.flatten(), s).reshape(z.shape)
    error = (z + (1 - t) * u - seen.eps).square().mean(-1)
    assert found.shape == (32, 8)
    assert ((found - error).abs() < 1e-3 * (1 + error)).all()
    agent.mean_over_dimensions = False
    with torch.no_grad():
        assert torch.allclose(agent._losses(data, seen), 2 * found)


def test_any_weighting_parameterization_and_number_of_looks():
    for name, output in (("elbo", "eps"), ("flow-matching", "flow"), ("sigmoid", "v")):
        agent = FPO("MlpPolicy", TwoGoals(), weighting=nd.weighting(name), n_mc=3,
                    schedule=nd.schedule("cosine"), parameterization=output, **SMALL)  # fmt: skip
        before = [p.clone() for p in agent.policy.parameters()]
        agent.learn(32)
        assert any(
            not torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True)
        )


def test_the_first_gradient_is_that_of_advantages_times_losses():
    """At θ_old r̂ is 1 and ∇J = −E[A ∇L]; in two more numbers the value adds its own."""
    agent = FPO("MlpPolicy", TwoGoals(), n_epochs=1, n_steps=32, batch_size=32, seed=0, vf_coef=0.0)
    data = collected(agent)
    seen = looks(data.actions, agent.schedule, 8)
    gain = (data.advantages - data.advantages.mean()) / (data.advantages.std() + 1e-8)
    wanted = torch.autograd.grad(
        (gain * agent._losses(data, seen).mean(1)).mean(), list(agent.policy.denoiser.parameters())
    )
    agent.max_grad_norm = math.inf
    with torch.no_grad():
        old = agent._losses(data, seen)
    agent._step(data, seen, old, 0.05, log := {})
    assert log["approx_kl"] == pytest.approx([0.0], abs=1e-6)
    assert log["clip_fraction"] == [0.0]
    for p, g in zip(agent.policy.denoiser.parameters(), wanted, strict=True):
        assert (p.grad - g).abs().max() < 1e-5 * (1 + g.abs().max())


def test_what_is_clipped_has_no_gradient():
    agent = FPO("MlpPolicy", TwoGoals(), seed=0, n_steps=32, batch_size=32, n_epochs=1, vf_coef=0.0)
    data = collected(agent)
    seen = looks(data.actions, agent.schedule, 8)
    with torch.no_grad():
        now = agent._losses(data, seen)
    # ratios far above 1 for all: only what was worse than the mean still moves
    up = data._replace(advantages=torch.arange(32.0, dtype=torch.float32))
    agent.policy.optimizer.param_groups[0]["lr"] = 0.0
    agent._step(up, seen, now + 1.0, 0.05, {})
    below = torch.arange(32) < 16
    gain = (up.advantages - up.advantages.mean()) / (up.advantages.std() + 1e-8)
    agent.policy.optimizer.zero_grad()
    moved = [p.grad for p in agent.policy.denoiser.parameters()]
    ratio = (now + 1.0 - agent._losses(data, seen)).mean(1).exp()
    wanted = torch.autograd.grad(
        -(gain * ratio)[below].sum() / 32, list(agent.policy.denoiser.parameters())
    )
    agent.max_grad_norm = math.inf
    agent._step(up, seen, now + 1.0, 0.05, {})
    moved = [p.grad for p in agent.policy.denoiser.parameters()]
    for got, g in zip(moved, wanted, strict=True):
        assert (got - g).abs().max() < 1e-5 * (1 + g.abs().max())


def test_a_bandit_is_learned():
    env = make_vec_env(lambda: Bandit(lambda a: -np.square(a - 0.5).sum()), 8, seed=0)
    agent = FPO("MlpPolicy", env, n_steps=32, n_epochs=5, learning_rate=3e-3, seed=0)
    before = evaluate_policy(agent, env, 200, deterministic=False)[0]
    agent.learn(3_000)
    after = evaluate_policy(agent, env, 200, deterministic=False)[0]
    assert before < -0.6
    assert after > -0.2


def test_it_is_used_as_stable_baselines3_is(tmp_path):
    env = VecNormalize(
        make_vec_env("Pendulum-v1", 2, seed=0, monitor_dir=str(tmp_path / "monitor"))
    )
    held = VecNormalize(make_vec_env("Pendulum-v1", 1, seed=1), training=False, norm_reward=False)
    options = {"n_steps": 128, "batch_size": 64, "n_epochs": 1, "seed": 0}
    agent = FPO("MlpPolicy", env, **options)
    agent.set_logger(configure(str(tmp_path / "log"), ["csv"]))
    best = EvalCallback(held, eval_freq=128, n_eval_episodes=1, verbose=0,
                        best_model_save_path=str(tmp_path))  # fmt: skip
    agent.learn(512, callback=best)
    assert (tmp_path / "best_model.safetensors").exists()
    agent.logger.close()
    env.close()
    assert len(list((tmp_path / "monitor").glob("*.csv"))) == 2
    with open(tmp_path / "log" / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/approx_kl", "train/clip_fraction", "train/value_loss", "eval/mean_reward",
                 "rollout/ep_rew_mean", "time/total_timesteps"):  # fmt: skip
        assert all(np.isfinite(float(row[name])) for row in rows if row[name])
        assert any(row[name] for row in rows)
    again = VecNormalize(make_vec_env("Pendulum-v1", 2))
    loaded = FPO.load(tmp_path / "best_model", again, **options)
    assert np.isfinite(again.obs_rms.mean).all()
    assert isinstance(evaluate_policy(loaded, held, 1)[0], float)


def test_the_same_seed_gives_the_same_agent():
    first, second = (
        FPO("MlpPolicy", make_vec_env(TwoGoals, 2, seed=3), **{**SMALL, "seed": 3}).learn(128)
        for _ in range(2)
    )
    for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("space", [spaces.Discrete(2), spaces.MultiBinary(3)])
def test_discrete_actions_are_refused(space):
    with pytest.raises(ValueError, match="wanted a Box: a flow policy draws continuous"):
        FPO("MlpPolicy", Bandit(space=space), **SMALL)
    with pytest.raises(ValueError, match=r"got an environment with actions Discrete\(2\)"):
        FPO("MlpPolicy", "CartPole-v1", **SMALL)


def test_actions_without_bounds_are_refused():
    with pytest.raises(ValueError, match="between -inf and inf, wanted finite bounds"):
        FPO("MlpPolicy", Bandit(space=spaces.Box(-np.inf, np.inf, (1,))), **SMALL)


def test_observations_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"environment 0 gave .* \(1,\), and .* of shape \(3,\)"):
        FPO("MlpPolicy", Bandit(shape=(1,)), **SMALL)
    two = DummyVecEnv([Bandit, lambda: Bandit(shape=(4,))])
    with pytest.raises(ValueError, match=r"environment 1 gave .* \(4,\), and .* of shape \(3,\)"):
        FPO("MlpPolicy", two, **SMALL)


def test_rewards_that_are_not_finite_are_refused():
    rewards = iter([0.0] * 7 + [math.nan] + [0.0] * 100)
    agent = FPO("MlpPolicy", Monitor(Bandit(lambda a: next(rewards))), **SMALL)
    before = [p.clone() for p in agent.policy.parameters()]
    with pytest.raises(ValueError, match=r"reward nan of environment 0 at step 7 of 32 .*1 in all"):
        agent.learn(32)
    for a, b in zip(before, agent.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_is_refused():
    agent = FPO("MlpPolicy", TwoGoals(), **SMALL)
    data = collected(agent)
    seen = looks(data.actions, agent.schedule, 8)
    with pytest.raises(FloatingPointError, match="lower learning_rate or clip_range"):
        agent._step(data, seen, torch.full((32, 8), math.nan, dtype=torch.float32), 0.05, {})
