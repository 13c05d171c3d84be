import numpy as np
import pytest
import torch
from scipy import optimize

from neurodiff.inference.optimise import minimise


def rosenbrock(u):
    return (100 * (u[:, 1:] - u[:, :-1] ** 2) ** 2 + (1 - u[:, :-1]) ** 2).sum(-1)


def test_rosenbrock():
    best = minimise(rosenbrock, torch.tensor([[-1.2, 1.0]]), tolerance=1e-12)
    assert torch.allclose(best.u, torch.ones(1, 2), atol=1e-6)
    assert best.converged(1e-12).all()
    assert best.steps < 60


def test_as_good_as_scipy_in_ten_dimensions():
    start = np.full(10, 0.3)
    own = minimise(rosenbrock, torch.as_tensor(start)[None], tolerance=1e-12)
    theirs = optimize.minimize(
        lambda x: rosenbrock(torch.as_tensor(x)[None]).item(), start, method="BFGS"
    )
    assert own.value.item() < theirs.fun + 1e-8
    assert own.steps < 2 * theirs.nit


def test_ill_conditioned_quadratic():
    scales = torch.logspace(-1, 4, 12)
    q, _ = torch.linalg.qr(torch.randn(12, 12))
    a = q @ torch.diag(scales) @ q.T
    centre = torch.randn(12)
    start = centre + torch.randn(1, 12)
    best = minimise(lambda u: 0.5 * ((u - centre) @ a * (u - centre)).sum(-1), start, steps=200)
    assert best.value.item() < 1e-6
    # the decrement is what is left to win, g·H⁻¹g/2 twice over
    assert best.decrement.item() == pytest.approx(2 * best.value.item(), abs=1e-6)


def test_with_the_exact_inverse_it_is_newtons_method():
    a = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    best = minimise(
        lambda u: 0.5 * (u @ a * u).sum(-1), torch.ones(1, 2), torch.linalg.inv(a)[None]
    )
    assert best.steps == 1
    assert torch.allclose(best.u, torch.zeros(1, 2), atol=1e-12)


def test_problems_of_a_batch_do_not_touch_each_other():
    """Easy and hard ones side by side end where they end alone, even short of the minimum."""
    weight = torch.tensor([1.0, 1e-3, 30.0])
    start = torch.tensor([[1.0, 1.0], [-1.2, 1.0], [4.0, -3.0]])
    together = minimise(lambda u: weight * rosenbrock(u), start, tolerance=1e-3)
    for i in range(3):
        one = slice(i, i + 1)
        alone = minimise(lambda u, i=i: weight[i] * rosenbrock(u), start[one], tolerance=1e-3)
        assert torch.allclose(together.u[one], alone.u, atol=1e-9)
        assert torch.allclose(together.inverse[one], alone.inverse, rtol=1e-6)
        assert alone.converged(1e-3).all()
    assert not torch.allclose(together.u, torch.ones(3, 2), atol=1e-6)


def test_values_that_are_not_finite_are_stepped_around():
    best = minimise(lambda u: (u - torch.log(u)).sum(-1), torch.tensor([[5.0]]))
    assert best.u.item() == pytest.approx(1.0, abs=1e-3)


def test_a_start_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite at the starting point"):
        minimise(lambda u: torch.log(u).sum(-1), torch.tensor([[-1.0]]))


def test_a_value_without_a_minimum_is_not_called_converged():
    best = minimise(lambda u: u.sum(-1), torch.zeros(1, 2), steps=20)
    assert not best.converged(1e-5).any()
