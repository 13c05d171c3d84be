"""Cubics between the rows of a table, and how far they may leave a straight line."""

import torch

from neurodiff.perception.interpolate import cubic


def test_a_bend_within_bounds_is_the_cubic_in_every_cell():
    at = torch.linspace(0.0, 6.0, 61)
    table = (0.08 * torch.arange(7.0) ** 2)[None, :, None].expand(1, 7, 2)  # bends by .02 a cell
    none = torch.zeros(61, dtype=torch.long)
    assert torch.allclose(cubic(table, at, none, none, 6, 0.1), 0.08 * at**2, atol=1e-6)


def test_a_jump_is_followed_by_a_straight_line():
    table = torch.tensor([0.0, 0.0, 0.0, -300.0, -300.0, -300.0])[None, :, None].expand(1, 6, 2)
    at, none = torch.tensor([1.5, 2.5, 3.5]), torch.zeros(3, dtype=torch.long)
    got = cubic(table, at, none, none, 5, 0.1)
    assert (got - torch.tensor([0.0, -150.0, -300.0])).abs().max() <= 0.1 + 1e-4
