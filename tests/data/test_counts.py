"""Counts of answers: every one becomes a row, and what cannot be counts is refused."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neurodiff.data.counts import judgements
from neurodiff.data.schema import DataError


def counted(counts, dims=("stimulus", "category"), **more):
    return xr.Dataset({"choices": (dims, counts)}).assign(**more)


@given(arrays(int, (4, 3), elements=st.integers(0, 5)))
def test_rows_are_counted_back(counts):
    rows = judgements(counted(counts), 3)
    back = np.zeros_like(counts)
    np.add.at(back, (rows["shown"].values.astype(int), rows["choice"].values.astype(int)), 1)
    assert np.array_equal(back, counts)
    # the order of dimensions does not matter
    turned = judgements(counted(counts.T, ("category", "stimulus")), 3)
    assert turned.identical(rows)


def test_numbers_of_categories_are_kept_in_any_order():
    data = counted(np.array([[1, 2, 0], [0, 1, 4]])).assign_coords(category=range(3))
    turned = judgements(data.isel(category=[2, 0, 1]), 3)
    assert turned.sortby(["shown", "choice"]).identical(judgements(data, 3))


def test_who_answered_and_what_stimuli_are_called_are_kept():
    counts = np.arange(12).reshape(2, 2, 3)
    data = counted(counts, ("subject", "stimulus", "category"))
    data = data.assign_coords(stimulus=[20, 10], subject=["a", "b"])
    rows = judgements(data.assign(trials=(("subject", "stimulus"), counts.sum(-1))), 3)
    assert rows.sizes["trial"] == counts.sum()
    some = rows.isel(trial=(rows["subject"] == "b") & (rows["shown"] == 10))
    assert np.array_equal(np.bincount(some["choice"].values.astype(int)), counts[1, 1])
    short = data.assign(
        trials=(("subject", "stimulus"), counts.sum(-1) + np.eye(2)[1] * [[0], [1]])
    )
    with pytest.raises(DataError, match="stimulus 10 by b: counts sum to 30, wanted the 31"):
        judgements(short, 3)


@pytest.mark.parametrize("dims", [("stimulus",), ("stimulus", "session"), ("session", "stimulus")])
def test_counts_are_held_against_trials_of_whatever_these_are_of(dims):
    counts = np.arange(12).reshape(2, 2, 3)
    data = counted(counts, ("session", "stimulus", "category"))
    stated = data["choices"].sum({"session", "stimulus", "category"} - {*dims}).transpose(*dims)
    assert judgements(data.assign(trials=stated), 3).sizes["trial"] == counts.sum()
    with pytest.raises(DataError, match="counts sum to"):
        judgements(data.assign(trials=stated + 1), 3)


def test_rows_with_a_count():
    columns = {"shown": [1.0, 1.0, 2.0], "choice": [0.0, 1.0, 1.0], "count": [2.0, 0.0, 3.0]}
    data = xr.Dataset({name: ("trial", np.array(values)) for name, values in columns.items()})
    rows = judgements(data, 2)
    assert rows["choice"].values.tolist() == [0, 0, 1, 1, 1]
    assert "count" not in rows
    with pytest.raises(DataError, match="stimulus 1: counts sum to 2, wanted the 3"):
        judgements(data.assign(trials=("trial", np.array([3.0, 3.0, 3.0]))), 2)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([[1, -1]], "count: -1 of choice 1 to stimulus 0"),
        ([[0.5, 1]], "count: 0.5 of choice 0"),
        ([[1, np.nan]], "count: nan of choice 1"),
        ([[1, 1, 1]], "counts 3 categories; wanted 2"),
    ],
)
def test_what_counts_nothing_is_refused(counts, words):
    with pytest.raises(DataError, match=words):
        judgements(counted(np.array(counts)), 2)


def test_trials_are_left_as_they_are():
    data = xr.Dataset({"shown": ("trial", [1.0]), "choice": ("trial", [0.0])})
    assert judgements(data, 2) is data


def test_stimuli_have_numbers():
    data = counted(np.array([[1, 2]])).assign_coords(stimulus=["face"])
    with pytest.raises(DataError, match="stimulus: is 'face'; wanted numbers"):
        judgements(data, 2)
