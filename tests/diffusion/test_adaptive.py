"""The adaptive schedule finds the density of least variance; stratified times miss nothing."""

from itertools import pairwise

import pytest
import torch

import neurodiff as nd
from neurodiff.diffusion.adaptive import AdaptiveSchedule, Running
from neurodiff.diffusion.loss import denoising_loss, look, squared_error
from neurodiff.diffusion.prior import Binary, PowerLaw


def learned(prior, moment, batches=1000):
    g = torch.Generator().manual_seed(0)
    schedule = AdaptiveSchedule(-10.0, 10.0, moment=moment, bins=40, rate=0.999)
    for _ in range(batches):
        x = prior.sample(256, generator=g)
        logsnr, _ = look(x, schedule, g, stratified=True)
        eps = torch.randn(x.shape, generator=g)
        schedule.update(logsnr, squared_error(prior, x, logsnr, eps))
    return schedule


def variance(prior, schedule, count=200_000):
    """Of a draw of the ELBO, and its own standard error."""
    g = torch.Generator().manual_seed(1)
    x = prior.sample(count, generator=g)
    loss = denoising_loss(prior, x, weighting=nd.weighting("elbo"), schedule=schedule, generator=g)
    square = (loss - loss.mean()).square()
    return square.mean(), square.std() / count**0.5


@pytest.mark.parametrize("moment", [1, 2])
def test_the_density_is_the_moment_that_it_claims(moment):
    # m of the ±1 source by brute force in each bin
    prior, schedule = Binary(), learned(Binary(), moment)
    edges = schedule.seen.edges
    wanted = []
    for low, high in pairwise(edges.tolist()):
        logsnr = torch.linspace(low, high, 50).repeat(2000)
        x = torch.ones(len(logsnr))
        m = squared_error(prior, x, logsnr, torch.randn(len(logsnr)))
        wanted.append(m.pow(moment).mean().pow(1 / moment))
    wanted = torch.stack(wanted)
    found = schedule.law.logits.softmax(0)
    wanted = 0.98 * wanted / wanted.sum() + 0.02 / 40
    assert 0.5 * (found - wanted).abs().sum() < 0.05


def test_second_moments_vary_less_than_means_and_than_fixed_schedules():
    prior = Binary()
    fixed, _ = variance(prior, nd.schedule("truncated-cosine", logsnr_min=-10.0, logsnr_max=10.0))
    by_mean, _ = variance(prior, learned(prior, 1))
    by_square, se = variance(prior, learned(prior, 2))
    assert by_square + 4 * se < by_mean
    assert by_square + 4 * se < fixed


def test_both_targets_are_one_where_the_error_hardly_varies():
    prior = PowerLaw((16, 16))
    by_mean, _ = variance(prior, learned(prior, 1, 60), 4000)
    by_square, se = variance(prior, learned(prior, 2, 60), 4000)
    cosine, _ = variance(
        prior, nd.schedule("truncated-cosine", logsnr_min=-10.0, logsnr_max=10.0), 4000
    )
    assert abs(by_mean - by_square) < 6 * se + 0.2 * by_square
    assert by_square < 0.05 * cosine


def test_stratified_times_are_each_uniform_and_together_even():
    x, flat = torch.zeros(64), AdaptiveSchedule(0.0, 1.0, bins=1)
    draws = torch.stack([look(x, flat, stratified=True)[0] for _ in range(2000)])
    assert abs(draws[:, 0].mean() - 0.5) < 4 * (1 / 12 / 2000) ** 0.5
    inside = draws.sort(1).values.diff(dim=1)
    assert (inside - 1 / 64).abs().max() < 1e-9
    assert torch.equal(look(x, flat, stratified=True)[1], torch.ones(64))


def test_running_averages_begin_as_means_and_forget():
    running = Running(torch.tensor([0.0, 1.0, 2.0]), rate=0.9)
    assert running.filled().tolist() == [1.0, 1.0]
    for value in (1.0, 3.0):
        running.update(torch.tensor([0.5, -9.0]), torch.tensor([value, value]))
    assert running.filled().tolist() == [2.0, 2.0]  # the bin that was never seen follows
    for _ in range(200):
        running.update(torch.tensor([0.5, 1.5]), torch.tensor([7.0, 0.0]))
    assert running.filled()[0] == pytest.approx(7.0, abs=1e-3)
    assert running.filled()[1] == 0.0


def test_ends_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"logsnr_min < logsnr_max, got 3\.0 and 1\.0"):
        AdaptiveSchedule(3.0, 1.0)
