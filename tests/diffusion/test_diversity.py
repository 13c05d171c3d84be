"""The Vendi score against its closed forms, precision and recall against loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurodiff.diffusion import diversity
from neurodiff.diffusion.diversity import precision_recall, vendi


@pytest.mark.parametrize("n", [1, 5, 200])
def test_alike_is_one_and_orthogonal_is_n(n):
    assert vendi(torch.ones(n, n)) == pytest.approx(1, abs=1e-9)
    assert vendi(torch.eye(n)) == pytest.approx(n, rel=1e-12)


def test_blocks_count_as_the_entropy_of_their_sizes():
    sizes = torch.tensor([1, 3, 6])
    blocks = torch.block_diag(*(torch.ones(int(n), int(n)) for n in sizes))
    order = torch.randperm(10)
    share = sizes / 10
    expected = math.exp(-(share * share.log()).sum())
    assert vendi(blocks[order][:, order]) == pytest.approx(expected, rel=1e-9)


@given(st.floats(0.0, 1.0))
def test_two_samples_have_the_entropy_of_one_and_the_other(similarity):
    kernel = torch.tensor([[1.0, similarity], [similarity, 1.0]])
    p = torch.tensor([1 + similarity, 1 - similarity]) / 2
    assert vendi(kernel) == pytest.approx(float(torch.special.entr(p).sum().exp()), rel=1e-9)


def brute(points, manifold, k):
    found = 0
    for p in points:
        for i, centre in enumerate(manifold):
            others = [math.dist(centre, m) for j, m in enumerate(manifold) if j != i]
            if math.dist(p, centre) <= sorted(others)[k - 1]:
                found += 1
                break
    return found / len(points)


@given(st.integers(4, 15), st.integers(4, 15), st.integers(1, 3), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_precision_and_recall_are_what_loops_find(n, m, k, seed):
    torch.manual_seed(seed)
    data, samples = torch.randn(n, 2), 1.5 * torch.randn(m, 2) + 0.5
    found = precision_recall(data, samples, k)
    assert found.precision == pytest.approx(brute(samples.tolist(), data.tolist(), k))
    assert found.recall == pytest.approx(brute(data.tolist(), samples.tolist(), k))


def test_a_part_of_the_data_is_precise_and_data_and_more_are_recalled():
    data = torch.randn(100, 2, 3)
    part = precision_recall(data, data[:50] * 1.0)
    assert part.precision == 1.0
    assert part.recall < 1.0
    more = torch.cat([data, 100 + torch.randn(60, 2, 3)])
    assert precision_recall(data, more) == pytest.approx((100 / 160, 1.0))
    assert precision_recall(data, data + 100.0) == (0.0, 0.0)


def test_memory_bounds_the_rows_and_not_the_result(monkeypatch):
    data, samples = torch.randn(30, 4), torch.randn(20, 4)
    whole = precision_recall(data, samples)
    monkeypatch.setattr(diversity, "CHUNK", 50)
    assert precision_recall(data, samples) == whole


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vendi(2 * torch.eye(3)), "diagonal by 1 "),
        (lambda: vendi(torch.eye(2) + torch.tensor([[0.0, 0.5], [0.0, 0.0]])), "symmetry by 0.5"),
        (lambda: vendi(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "negative eigenvalue, -1"),
        (lambda: vendi(torch.full((2, 2), torch.nan)), "wanted K_ii = 1"),
        (lambda: precision_recall(torch.randn(3, 2), torch.randn(9, 2)), "got 3 data"),
        (lambda: precision_recall(torch.randn(9, 2), torch.randn(9, 2), 0), "0 neighbours"),
        (lambda: precision_recall(torch.randn(9, 2), torch.randn(9, 3)), "wanted the same"),
        (
            lambda: precision_recall(torch.randn(9, 2), torch.full((9, 2), torch.inf)),
            "18 numbers of the samples are not finite",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
