import numpy as np
import pytest
import torch
import toys
from torch import distributions as td

import neurodiff as nd
from neurodiff.inference.groups import Grouped
from neurodiff.inference.priors import Pooled, sites, to_pyro

FAMILIES = {
    "normal": td.Normal(0.3, 2.0),
    "lognormal": td.LogNormal(0.3, 0.5),
    "uniform": td.Uniform(-1.0, 2.5),
    "beta": td.Beta(1.5, 30.0),
    "gamma": td.Gamma(2.0, 3.0),
    "half normal": td.HalfNormal(0.7),
    "student": td.StudentT(4.0, 0.5, 2.0),
    "independent": td.Independent(td.Normal(torch.zeros(3), 2.0), 1),
    "dirichlet": td.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
    "multivariate": td.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    "transformed": td.TransformedDistribution(td.Normal(0.0, 1.0), [td.transforms.ExpTransform()]),
}


class Holder(torch.nn.Module):
    def __init__(self, prior):
        super().__init__()
        value = prior.sample()
        self.value = torch.nn.Parameter(value)
        self.constraints = {"value": prior.support}
        self.priors = {"value": prior}


@pytest.mark.parametrize("name", FAMILIES)
def test_log_prior_is_the_density_of_u(name):
    """By the change of variables, written with torch's own distribution of u = T⁻¹(x)."""
    prior = FAMILIES[name]
    pooled = Pooled(sites(Holder(prior)))
    transform = td.biject_to(prior.support)
    direct = td.TransformedDistribution(prior, [transform.inv])
    u = torch.randn(5, pooled.size)
    for row in u:
        inner = row if transform.inverse_shape(prior.sample().shape) else row[0]
        assert torch.isclose(pooled.log_prior(row), direct.log_prob(inner).sum(), atol=1e-10)


@pytest.mark.parametrize("name", ["normal", "lognormal", "uniform", "beta", "gamma"])
def test_density_of_u_integrates_to_one(name):
    pooled = Pooled(sites(Holder(FAMILIES[name])))
    u = torch.linspace(-60, 40, 200_001)
    density = torch.vmap(pooled.log_prior)(u[:, None]).exp()
    assert torch.trapezoid(density, u).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_to_pyro_keeps_the_density_and_the_support(name):
    prior = FAMILIES[name]
    lifted = to_pyro(prior)
    x = prior.sample((7,))
    assert torch.allclose(lifted.log_prob(x), prior.log_prob(x))
    assert type(lifted).__module__.startswith("pyro")
    assert lifted.sample((3,)).shape == prior.sample((3,)).shape


def test_pyro_priors_are_taken_as_they_are():
    import pyro.distributions as pd

    found = sites(nd.laws.Logistic(), {"loc": pd.Cauchy(0.0, 2.0)})
    expected = td.Cauchy(0.0, 2.0).log_prob(torch.tensor(1.7))
    assert torch.isclose(found[0].log_prior(torch.tensor([1.7])), expected)


def test_start_is_the_value_the_modules_hold():
    module = nd.laws.Logistic(1.3, 0.4)
    pooled = Pooled(sites(module))
    values = pooled.constrain(pooled.start())
    assert values["loc"].item() == pytest.approx(1.3)
    assert values["scale"].item() == pytest.approx(0.4)


def test_a_value_outside_a_given_prior_starts_inside_it():
    found = sites(nd.laws.Logistic(0.0, 1.0), {"scale": td.Uniform(2.0, 3.0)})
    start = Pooled(found).constrain(Pooled(found).start())["scale"]
    assert 2.0 < start.item() < 3.0


@pytest.mark.parametrize(
    ("priors", "message"),
    [
        ({"locc": td.Normal(0.0, 1.0)}, "did you mean 'loc'"),
        ({"scale": td.Normal(0.0, 1.0)}, "reaches beyond its support"),
        ({"loc": td.Normal(torch.zeros(3), 1.0)}, "wanted that of the parameter"),
    ],
)
def test_bad_priors_are_refused(priors, message):
    with pytest.raises(ValueError, match=message):
        sites(nd.laws.Logistic(), priors)


def test_no_prior_and_nothing_to_learn_are_refused():
    with pytest.raises(ValueError, match="has no prior"):
        sites(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="nothing to learn"):
        sites(nd.laws.Logistic().requires_grad_(False))


def test_unknown_family_is_a_type_error():
    class Odd(td.Normal):
        pass

    with pytest.raises(TypeError, match="Odd"):
        to_pyro(Odd(0.0, 1.0))


def test_draws_of_the_prior_have_its_moments():
    pooled = Pooled(sites(toys.model(("weighting.law.loc", "weighting.law.scale"))))
    u = pooled.draw_prior(20_000).numpy()
    se = np.array([5.0, 1.0]) / np.sqrt(20_000)
    assert (np.abs(u.mean(0)) < 4 * se).all()
    assert np.allclose(u.std(0), [5.0, 1.0], rtol=0.03)


def test_hierarchical_log_prior_is_the_explicit_sum():
    found = sites(toys.model(("weighting.law.loc", "weighting.law.scale", "observer.lapse")))
    index = torch.tensor([0, 1, 1, 2, 0])
    grouped = Grouped(found, index)
    assert grouped.size == 3 + 3 + 9
    u = torch.randn(grouped.size)
    mean, log_sd, z = u[:3], u[3:6], u[6:].reshape(3, 3)
    expected = Pooled(found).log_prior(mean) + td.Normal(0.0, 1.0).log_prob(z).sum()
    expected = expected + (td.HalfNormal(1.0).log_prob(log_sd.exp()) + log_sd).sum()
    assert torch.isclose(grouped.log_prior(u), expected)
    values = grouped.trial_values(u)
    own = mean + log_sd.exp() * z
    assert torch.allclose(values["weighting.law.loc"], own[index, 0])
    assert torch.allclose(values["weighting.law.scale"], own[index, 1].exp())
    assert torch.allclose(values["observer.lapse"], own[index, 2].sigmoid())
    assert torch.equal(
        grouped.take(torch.tensor([3, 0])).trial_values(u)["observer.lapse"],
        values["observer.lapse"][[3, 0]],
    )


def test_a_prior_that_begins_above_zero_begins_there_in_groups_too():
    """A jitter of 0.7 steps and more: u is that of the normal beneath, whatever the spread."""
    above = [td.transforms.ExpTransform(), td.transforms.AffineTransform(0.014, 1.0)]
    prior = td.TransformedDistribution(td.Normal(-3.0, 0.7), above)
    found = sites(Holder(prior))
    u = torch.linspace(-30.0, 3.0, 50, dtype=torch.float64)[:, None]
    value = Pooled(found).constrain(u)["value"]
    assert (value >= 0.014).all()
    log_p = torch.vmap(Pooled(found).log_prior)(u)
    assert torch.allclose(log_p, td.Normal(-3.0, 0.7).log_prob(u[:, 0]), atol=1e-9)
    grouped = Grouped(found, torch.arange(4))
    u = 5 * torch.randn(200, grouped.size, dtype=torch.float64)
    assert (grouped.constrain(u)["value"] >= 0.014).all()
