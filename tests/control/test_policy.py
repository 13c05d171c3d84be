"""The flow policy: how actions are drawn, in which units, and what it refuses."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from neurodiff.control.fpo import FPO
from neurodiff.control.gridworld import TwoGoals
from neurodiff.control.policy import FlowPolicy
from neurodiff.diffusion.sample import ddim
from neurodiff.diffusion.schedule import schedule


class Bandit(gymnasium.Env):
    """One step; the reward is a function of the action."""

    def __init__(self, reward, low=-1.0, high=1.0, size=1):
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Box(low, high, (size,), np.float32)
        self.reward = reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), float(self.reward(action)), True, False, {}


def policy(size=2, **kwargs):
    env = Bandit(lambda a: 0.0, low=-3.0, high=1.0, size=size)
    made = FlowPolicy(env.observation_space, env.action_space, lambda _: 1e-3, **kwargs)
    torch.nn.init.normal_(made.denoiser.network.layers[-1].weight)  # or actions are noise
    return made


def test_actions_come_by_eulers_steps_on_the_straight_path():
    made, s = policy(sampling_steps=7), torch.randn(5, 3)
    with torch.random.fork_rng():
        noise = torch.randn(5, 2, dtype=torch.float32)
    found = made._predict(s)
    level, t = made.logsnr, schedule("flow").t(made.logsnr)
    z = noise * torch.hypot(1 - t[0], t[0])
    with torch.no_grad():
        for k in range(7):
            seen = z / torch.hypot(1 - t[k], t[k])  # the network's scaling
            u = made.denoiser.network(seen, level[k].expand(5), s.float())
            z = z + (t[k + 1] - t[k]) * u
    assert (found - z / torch.hypot(1 - t[-1], t[-1])).abs().max() < 1e-4
    assert t[0] > 0.998
    assert t[-1] < 0.002


def test_a_flow_is_its_noise_before_it_learns():
    env = Bandit(lambda a: 0.0, size=2)
    made = FlowPolicy(env.observation_space, env.action_space, lambda _: 1e-3)
    a = made._predict(torch.zeros(20_000, 3))
    assert (a.mean(0).abs() < 0.05).all()
    assert ((a.std(0) - 1).abs() < 0.05).all()


def test_actions_are_in_units_of_the_bounds_and_clipped_to_them():
    made = policy()
    drawn = made._predict(torch.zeros(200, 3)).detach().numpy()
    assert np.abs(drawn).max() > 1
    given = made.unscale_action(drawn)
    assert np.allclose(given, np.clip(2 * drawn - 1, -3.0, 1.0), atol=1e-6)
    a, _ = made.predict(np.zeros((200, 3), np.float32))
    assert a.min() >= -3.0
    assert a.max() <= 1.0


def test_one_action_without_noise_and_many_with():
    made, s = policy(), np.zeros((4, 3), np.float32)
    assert np.array_equal(
        made.predict(s, deterministic=True)[0], made.predict(s, deterministic=True)[0]
    )
    assert not np.array_equal(made.predict(s)[0], made.predict(s)[0])
    assert made.predict(s[0])[0].shape == (2,)


@pytest.mark.parametrize("parameterization", ["eps", "v", "x", "flow"])
def test_any_parameterization_draws_by_ddim(parameterization):
    made, s = policy(parameterization=parameterization), torch.zeros(5, 3)
    with torch.random.fork_rng():
        noise = torch.randn(5, 2, dtype=torch.float32)
    wanted = ddim(made.denoiser, noise, made.logsnr, s.float())
    assert (made._predict(s) - wanted).abs().max() < 1e-3 * (1 + wanted.abs().max())


def test_what_a_flow_has_not_is_refused():
    made = policy()
    with pytest.raises(NotImplementedError, match="no distribution in closed form"):
        made.get_distribution(torch.zeros(1, 3))
    with pytest.raises(NotImplementedError, match="no log-probability in closed form"):
        made.evaluate_actions(torch.zeros(1, 3), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        made.predict(np.zeros(4, np.float32))


def test_without_the_extra_the_error_names_it():
    code = (
        "import sys; sys.modules['stable_baselines3'] = None\n"
        "import neurodiff\n"
        "try: neurodiff.control.fpo\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "stable_baselines3 is not installed" in out.stdout
    assert "pip install 'neurodiff[control]'" in out.stdout


def test_two_goals_keep_the_promises_of_gymnasium():
    from gymnasium.utils.env_checker import check_env

    check_env(TwoGoals(spread=0.5), skip_render_check=True)
    env = TwoGoals()
    for direction, goal in ((0.5, 0), (-0.5, 1)):
        env.reset(seed=0)
        total, done, info = 0.0, False, {}
        while not done:
            _, reward, done, _, info = env.step(np.array([0.0, direction], np.float32))
            total += reward
        assert info["goal"] == goal
        assert (total, env.steps) == (1.0, 1)
    env.reset(seed=0)
    ends = [env.step(np.array([1.0, 0.0], np.float32))[2:4] for _ in range(20)]
    assert ends[-1] == (False, True)
    assert not any(ended for ended, _ in ends)


def test_agents_are_made_from_names_of_environments():
    agent = FPO("MlpPolicy", "Pendulum-v1", seed=0, n_steps=8, batch_size=8)
    a, _ = agent.predict(agent.get_env().reset())
    assert np.abs(a).max() <= 2
