"""A bank that is edited equals one that is made anew, neighbours and all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnad.neighbors import Bank
from nnad.operators.compiled_search import COMPILED
from nnad.search_steps import NUMPY


def points(seed: int, count: int, levels: int = 0) -> np.ndarray:
    """(count, 4); few `levels` make many ties."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(count, 4))
    return (np.round(drawn * levels) if levels else drawn).astype(np.float32)


def test_by_hand():
    bank = Bank(np.array([[0.0], [1], [3], [7]]))
    assert bank.others(2).rows.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert bank.others(2).sq_dists.tolist() == [[1, 9], [1, 4], [4, 9], [16, 36]]

    # row 1 goes, 2.5 comes at the end
    edited = bank.edited(np.array([[0.0], [3], [7], [2.5]]), np.array([0, 2, 3, -1]))
    assert edited.graph.rows.tolist() == [[3, 1], [3, 0], [1, -1], [1, 0]]
    assert edited.others(2).rows.tolist() == [[3, 1], [3, 0], [1, 3], [1, 0]]
    assert edited.others(2).sq_dists.tolist() == [[6.25, 9], [0.25, 9], [16, 20.25], [0.25, 6.25]]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kernels", [NUMPY, COMPILED], ids=["numpy", "compiled"])
def test_any_sequence_of_edits_equals_a_new_bank(kernels, data):
    draw = data.draw
    levels = draw(st.sampled_from([0, 1, 3]))
    m = draw(st.integers(1, 6))
    everything = points(draw(st.integers(0, 99)), 40, levels)
    alive = np.arange(draw(st.integers(2, 30)))
    bank = Bank(everything[alive])
    if draw(st.booleans()):
        bank.others(m, kernels=kernels)  # otherwise little is known
    else:
        bank.others(m, np.array([0, 1]), kernels=kernels)
    for _ in range(draw(st.integers(1, 4))):
        # rows go, come at the end, or come back in the middle, as an undo brings them
        flipped = draw(st.sets(st.integers(0, 39), max_size=6))
        new_alive = np.array(sorted(set(alive.tolist()) ^ flipped))
        if len(new_alive) < 2:
            continue
        place = {row: i for i, row in enumerate(alive.tolist())}
        old_rows = np.array([place.get(row, -1) for row in new_alive.tolist()])
        bank = bank.edited(everything[new_alive], old_rows, kernels=kernels)
        alive = new_alive
        if draw(st.booleans()):
            expected = Bank(everything[alive]).others(m, kernels=kernels)
            found = bank.others(m, kernels=kernels)
            assert found.rows.tolist() == expected.rows.tolist()
            assert found.sq_dists.tolist() == expected.sq_dists.tolist()
    whole = Bank(everything[alive])
    queries = points(1000, 5, levels)
    assert bank.nearest(queries, 2).rows.tolist() == whole.nearest(queries, 2).rows.tolist()
    assert bank.others(m, kernels=kernels).rows.tolist() == whole.others(m).rows.tolist()


def test_an_edit_searches_what_came_and_what_lost_a_neighbour_only(monkeypatch):
    everything = points(0, 300)
    bank = Bank(everything[:280])
    bank.others(3)
    searched = []
    nearest = Bank.nearest

    def counted(self, queries, k, **options):
        searched.append(len(queries))
        return nearest(self, queries, k, **options)

    monkeypatch.setattr(Bank, "nearest", counted)
    added = bank.edited(everything, np.r_[np.arange(280), np.full(20, -1)])
    added.others(3)
    assert searched == [20]
    searched.clear()
    gone = 7
    holders = int((added.graph.rows == gone).any(axis=1).sum())
    old_rows = np.delete(np.arange(300), gone)
    added.edited(everything[old_rows], old_rows).others(3)
    assert searched == [holders]
    assert holders < 20
