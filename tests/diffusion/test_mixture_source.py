"""A mixture as a source: what is whitened is plain noise, densities are scikit-learn's."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.mixture import GaussianMixture

from neurodiff.diffusion.mixture_source import MixtureSource


def three():
    weights = torch.tensor([0.2, 0.5, 0.3])
    means = torch.tensor([[-1.0, 0.0], [0.5, 0.5], [1.0, -1.0]])
    return MixtureSource(weights, means, torch.tensor([[0.5, 0.2], [0.7, 0.7], [0.3, 1.0]]))


def drawn(source, count):
    g = torch.Generator().manual_seed(0)
    k = torch.multinomial(source.weights, count, True, generator=g)
    return source.colour(torch.randn(count, 2, generator=g, dtype=torch.float64), k)


def test_whitened_by_a_drawn_component_it_is_plain_noise():
    source = three()
    x = drawn(source, 20_000)
    k = torch.multinomial(source.posterior(x), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    r = source.whiten(x, k)
    for j in range(3):
        for i in range(2):
            assert stats.kstest(r[k == j, i].numpy(), "norm").pvalue > 1e-3
    assert torch.allclose(source.colour(r, k), x)
    shares = torch.bincount(k).double() / len(k)
    assert torch.all((shares - source.weights).abs() < 4 * (0.25 / len(k)) ** 0.5)


def test_densities_and_posteriors_are_those_of_scikit_learn():
    x = drawn(three(), 500)
    other = GaussianMixture(3, covariance_type="diag", random_state=0).fit(x.numpy())
    mine = MixtureSource(
        *(torch.tensor(v) for v in (other.weights_, other.means_, other.covariances_**0.5))
    )
    assert np.allclose(mine.log_prob(x), other.score_samples(x.numpy()), atol=1e-8)
    assert np.allclose(mine.posterior(x), other.predict_proba(x.numpy()), atol=1e-8)


def test_the_density_is_that_of_the_parts():
    # log p(x) = log Σ p(k) p(r|k) − Σ log s_k, for any shares: here the mixture's own
    source = three()
    x = drawn(source, 50)
    parts = [
        source.weights[k].log() - source.scales[k].log().sum()
        + torch.distributions.Normal(0.0, 1.0).log_prob(
            source.whiten(x, torch.full((50,), k))).sum(1)
        for k in range(3)
    ]  # fmt: skip
    assert torch.allclose(torch.stack(parts).logsumexp(0), source.log_prob(x))


@pytest.mark.parametrize(
    ("weights", "scales", "words"),
    [([0.5, 0.4], [[1.0], [1.0]], "sum to 0.9"), ([0.5, 0.5], [[1.0], [0.0]], "scale of 0"),
     ([1.0], [[1.0], [1.0]], "as many of each")],
)  # fmt: skip
def test_what_is_no_mixture(weights, scales, words):
    with pytest.raises(ValueError, match=words):
        MixtureSource(torch.tensor(weights), torch.zeros(2, 1), torch.tensor(scales))
