"""Suites that every implementation of a concept inherits: closed forms against a generic route.

A subclass names how to make one instance; what is specific to it (independent references, known
values) stands in its own test file.
"""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.func import functional_call, grad, jacrev, vmap

INF = torch.inf
QUICK = settings(max_examples=30, deadline=None)
EPS = torch.finfo(torch.float64).eps


class TailsContract:
    """What any law's distribution promises, learnable or not. Subclasses give ``make()``."""

    smooth = True  # the density is continuous

    def make(self):
        raise NotImplementedError

    def grid(self, n=41):
        """Quantiles of the law: inside the support, off the knots."""
        p = torch.linspace(0.013, 0.987, n)
        return self.make()().icdf(p).detach()

    def test_limits_are_exact(self):
        law = self.make()()
        ends = torch.tensor([-INF, INF])
        assert law.cdf(ends).tolist() == [0.0, 1.0]
        assert law.survival(ends).tolist() == [1.0, 0.0]
        assert law.log_survival(ends)[1] < -30
        assert bool((law.log_prob(ends) < -30).all())

    def test_cdf_rises_and_complements_survival(self):
        law, wide = self.make()(), torch.linspace(-60.0, 60.0, 1001)
        assert bool((law.cdf(wide).diff() >= 0).all())
        assert bool((law.survival(wide).diff() <= 0).all())
        assert (law.cdf(wide) + law.survival(wide) - 1).abs().max() <= 4 * EPS

    def test_log_survival_is_the_log(self):
        law, logsnr = self.make()(), self.grid()
        torch.testing.assert_close(
            law.log_survival(logsnr), law.survival(logsnr).log(), rtol=1e-13, atol=1e-13
        )

    def test_quantiles_invert(self):
        law = self.make()()

        @QUICK
        @given(p=st.floats(1e-6, 1 - 1e-6))
        def check(p):
            p = torch.tensor(p)
            assert abs(law.cdf(law.icdf(p)) - p) <= 64 * EPS
            assert abs(law.survival(law.isf(p)) - p) <= 64 * EPS

        check()

    def test_isf_reaches_the_far_tail(self):
        law = self.make()()

        @QUICK
        @given(exponent=st.floats(-200.0, -6.0))
        def check(exponent):
            p = torch.tensor(10.0**exponent)
            far = law.isf(p)
            if law.survival(far) > 0:  # the last bits before the end of a bounded law
                slope = (law.log_prob(far) - law.log_survival(far)).exp() * far.abs()
                assert abs(law.survival(far) / p - 1) <= 64 * EPS * (1 + slope)

        check()

    def test_density_is_the_slope_of_both_tails(self):
        law, logsnr = self.make()(), self.grid()
        density = law.log_prob(logsnr).exp()
        up = vmap(grad(law.cdf))(logsnr)
        down = vmap(grad(law.survival))(logsnr)
        torch.testing.assert_close(up, density, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(down, -density, rtol=1e-12, atol=1e-14)

    def test_density_integrates_to_the_cdf(self):
        law = self.make()()
        low, high = law.icdf(torch.tensor(0.01)).item(), law.icdf(torch.tensor(0.99)).item()
        n = 20001
        fine = torch.linspace(low, high, n).detach()
        area = torch.trapezoid(law.log_prob(fine).exp(), fine)
        order = 2 if self.smooth else 1
        tolerance = 10.0 * ((high - low) / n) ** order
        assert abs(area - 0.98) <= tolerance

    def test_samples_follow_the_cdf(self):
        law = self.make()()
        draws = law.sample((4000,))
        statistic = stats.kstest(draws.numpy(), lambda v: law.cdf(torch.tensor(v)).detach().numpy())
        assert statistic.pvalue > 1e-3


class LawContract(TailsContract):
    """What a law with parameters promises."""

    def parameters(self, law):
        return {name: value.detach() for name, value in law.named_parameters()}

    def test_gradients_reach_every_parameter(self):
        for use in (
            lambda d: d.cdf(self.grid(5) + 0.1).square().sum(),
            lambda d: d.log_survival(self.grid(5)[1:] - 0.1).sum(),
            lambda d: d.rsample((16,)).square().sum(),
        ):
            law = self.make()
            use(law()).backward()
            for name, value in law.named_parameters():
                assert value.grad is not None, name
                assert bool(value.grad.isfinite().all()), name
                assert bool((value.grad != 0).any()), name

    def test_rsample_moves_with_the_quantile(self):
        law, p = self.make(), torch.tensor([0.2, 0.55, 0.9])
        values = self.parameters(law)

        def quantile(values):
            return _call(law, values, "icdf", p)

        name = next(iter(values))
        step = 1e-5 * torch.randn_like(values[name])
        moved = quantile({**values, name: values[name] + step})
        back = quantile({**values, name: values[name] - step})
        slope = jacrev(quantile)(values)[name].reshape(3, -1) @ step.reshape(-1)
        torch.testing.assert_close((moved - back) / 2, slope, rtol=1e-4, atol=1e-9)

    def test_second_derivatives_are_finite_even_at_the_ends(self):
        law = self.make()
        logsnr = torch.tensor([-INF, -300.0, -1.03, 0.07, 1.1, 300.0, INF])
        for method in ("cdf", "survival"):
            hessian = jacrev(jacrev(lambda v, m=method: _call(law, v, m, logsnr)))(
                self.parameters(law)
            )
            for row in hessian.values():
                assert all(bool(block.isfinite().all()) for block in row.values()), method

    def test_parameters_broadcast_against_trials_and_samples(self):
        law, logsnr = self.make(), self.grid(6)
        values = self.parameters(law)
        each = torch.stack([_call(law, values, "survival", x) for x in logsnr])
        trial = {k: v.expand(6, *v.shape) for k, v in values.items()}
        sample = {k: v.expand(3, 1, *v.shape) for k, v in values.items()}
        torch.testing.assert_close(_call(law, trial, "survival", logsnr), each)
        for method in ("survival", "cdf", "log_survival", "log_prob"):
            out = _call(law, sample, method, logsnr)
            assert out.shape == (3, 6), method
            many = vmap(lambda v, m=method: _call(law, v, m, logsnr))(
                {k: v.expand(3, *v.shape) for k, v in values.items()}
            )
            torch.testing.assert_close(many, out)
        assert functional_call(law, sample, ()).rsample((2,)).shape[:2] == (2, 3)

    def test_priors_and_supports_cover_the_parameters(self):
        law = self.make()
        own = dict(law.named_parameters(recurse=False))
        assert set(law.constraints) == set(own) == set(law.priors)
        for name, value in own.items():
            assert bool(law.constraints[name].check(value.detach()).all())
            assert bool(law.priors[name].log_prob(value.detach()).isfinite())
            draw = law.priors[name].sample()
            assert draw.shape == value.shape
            assert bool(law.constraints[name].check(draw).all())

    def test_state_survives_saving(self):
        law = self.make()
        other = self.make()
        for value in other.parameters():
            value.data.mul_(1.5)
        other.load_state_dict(law.state_dict())
        logsnr = self.grid(5)
        assert bool((law().cdf(logsnr) == other().cdf(logsnr)).all())


class ScipyLawContract(LawContract):
    """A Law that scipy.stats knows too: ``oracle`` is its frozen distribution."""

    oracle = None

    def test_agrees_with_scipy(self):
        law, logsnr = (
            self.make()(),
            torch.cat([self.grid(), torch.tensor([-20.0, -7.0, 6.0, 25.0])]),
        )
        x = logsnr.numpy()
        for ours, theirs in (
            (law.cdf(logsnr), self.oracle.cdf(x)),
            (law.survival(logsnr), self.oracle.sf(x)),
            (law.log_prob(logsnr).exp(), self.oracle.pdf(x)),
        ):
            torch.testing.assert_close(
                ours.detach(), torch.as_tensor(theirs), rtol=1e-11, atol=1e-300
            )
        for moment, theirs in ((law.mean, self.oracle.mean()), (law.variance, self.oracle.var())):
            torch.testing.assert_close(
                moment.detach(), torch.tensor(float(theirs)), rtol=1e-12, atol=1e-12, equal_nan=True
            )


def _call(law, values, method, argument):
    return getattr(functional_call(law, values, ()), method)(argument)


class ScheduleContract:
    """What a NoiseSchedule promises: ``make()``; ``inner`` are the t at which it is probed."""

    inner = (1e-3, 1 - 1e-3)

    def make(self):
        raise NotImplementedError

    def times(self, n=201):
        return torch.linspace(*self.inner, n)

    def test_falls_from_data_to_noise(self):
        schedule, ends = self.make(), torch.tensor([0.0, 1.0])
        logsnr = schedule.logsnr(torch.cat([ends[:1], self.times(), ends[1:]]))
        assert bool((logsnr.diff() < 0).all())

    def test_inverse(self):
        schedule = self.make()
        low, high = self.inner

        @QUICK
        @given(t=st.floats(low, high))
        def check(t):
            assert abs(schedule.t(schedule.logsnr(torch.tensor(t))) - t) <= 1e-12

        check()
        logsnr = schedule.logsnr(self.times())
        assert (schedule.logsnr(schedule.t(logsnr)) - logsnr).abs().max() <= 1e-8

    def test_slope_is_the_derivative(self):
        schedule, t = self.make(), self.times()
        slope = vmap(grad(schedule.logsnr))(t)
        torch.testing.assert_close(schedule.dlogsnr_dt(t), slope, rtol=1e-8, atol=0.0)

    def test_density_is_that_of_uniform_t(self):
        schedule, t = self.make(), self.times()
        logsnr = schedule.logsnr(t)
        slope = vmap(grad(schedule.t))(logsnr)
        torch.testing.assert_close(schedule.log_density(logsnr).exp(), -slope, rtol=1e-8, atol=0.0)

    def test_scales_have_the_logsnr(self):
        schedule, t = self.make(), self.times()
        alpha, sigma = schedule.alpha_sigma(t)
        torch.testing.assert_close(
            2 * (alpha.log() - sigma.log()), schedule.logsnr(t), rtol=1e-11, atol=1e-11
        )


class WeightingContract:
    """What a Weighting promises: ``make()``; ``kinks`` are where it is not smooth."""

    kinks = ()

    def make(self):
        raise NotImplementedError

    def grid(self):
        logsnr = torch.linspace(-11.983, 12.017, 481)
        return logsnr[(logsnr[:, None] - torch.tensor(self.kinks)).abs().gt(1e-3).all(-1)]

    def test_is_nonnegative_and_has_limits(self):
        w = self.make()
        assert bool((w(torch.linspace(-300.0, 300.0, 601)) >= 0).all())
        assert not bool(w(torch.tensor([-INF, INF])).isnan().any())

    def test_monotone_is_what_it_says(self):
        w = self.make()
        values = w(torch.linspace(-40.0, 40.0, 40001)).detach()
        rise = values - values.cummin(0).values
        rises = bool((rise > 1e-9 * values).any())
        assert rises != w.monotone

    def test_log_is_the_log(self):
        w, logsnr = self.make(), self.grid()
        some = w(logsnr) > 0
        torch.testing.assert_close(w.log(logsnr)[some].exp(), w(logsnr)[some], rtol=1e-12, atol=0)

    def test_stopping_density_is_minus_the_slope(self):
        from neurodiff.diffusion.weighting import stopping_density

        w, logsnr, h = self.make(), self.grid(), 1e-4
        steps = [w(logsnr + k * h).detach() for k in (-2, -1, 1, 2)]
        slope = (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)
        torch.testing.assert_close(
            stopping_density(w, logsnr).detach(), -slope, rtol=1e-7, atol=1e-9
        )

    def test_maps_over_batches(self):
        w, logsnr = self.make(), self.grid()[:20]
        torch.testing.assert_close(vmap(w)(logsnr), w(logsnr))
        assert w(logsnr.reshape(4, 5)).shape == (4, 5)
        assert bool(vmap(grad(w))(logsnr).isfinite().all())

    def test_loss_is_a_difference_of_stopping_losses(self):
        """L_w = w(b)L(b) − w(a)L(a) − ∫ w′L for a unit Gaussian, m = S(λ), L = softplus(λ)/2."""
        from neurodiff.diffusion.weighting import stopping_density

        w = self.make()
        edges = torch.tensor([-9.0, *sorted(self.kinks), 8.0])
        node, weight = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(120))
        half = edges.diff()[:, None] / 2
        logsnr = edges[:-1, None] + half * (1 + node)
        information = torch.nn.functional.softplus(logsnr) / 2
        loss = (half * weight * w(logsnr) * torch.sigmoid(logsnr) / 2).sum()
        stopped = (half * weight * stopping_density(w, logsnr) * information).sum()
        ends = torch.stack([edges[:-1] + 1e-12, edges[1:] - 1e-12])  # an atom is a step in w
        low, high = w(ends) * torch.nn.functional.softplus(ends) / 2
        torch.testing.assert_close(loss, (high - low).sum() + stopped, rtol=1e-9, atol=1e-10)
