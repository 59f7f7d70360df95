import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nnad import neighbors, search_steps
from nnad.errors import InputError
from nnad.neighbors import Bank
from nnad.operators.compiled_search import COMPILED
from nnad.search_steps import NUMPY


def brute_force(queries, bank, k, exclude=None):
    difference = queries.astype(np.float64)[:, None] - bank.astype(np.float64)[None]
    sq_dists = np.square(difference).sum(axis=2)
    if exclude is not None:
        sq_dists[np.arange(len(queries)), exclude] = np.inf
    order = np.argsort(sq_dists, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(sq_dists, order, 1), order


def test_by_hand():
    bank = Bank(np.array([[0, 0], [3, 4], [1, 0]], dtype=np.float32))
    found = bank.nearest(np.array([[0, 0], [3, 3]]), k=2)
    assert found.sq_dists.tolist() == [[0, 1], [1, 13]]
    assert found.rows.tolist() == [[0, 2], [1, 2]]


@settings(max_examples=150, deadline=None)
@given(
    bank=arrays(
        np.float32,
        st.tuples(st.integers(2, 40), st.integers(1, 6)),
        elements=st.floats(-100, 100, width=16),
    ),
    k=st.integers(1, 40),
    offset=st.sampled_from([0.0, 1000.0, 1e5]),
    scale=st.sampled_from([1.0, 1e-38, 1e-25, 1e-19, 1e8]),
)
def test_equals_a_brute_force_in_float64(bank, k, offset, scale):
    # far from the origin, or with tiny or huge numbers, the float32 product is nearly useless
    bank = (bank + np.float32(offset)) * np.float32(scale)
    k = min(k, len(bank) - 1)
    everyone = np.arange(len(bank))
    for exclude in (None, everyone):
        found = Bank(bank).nearest(bank, k, exclude=exclude)
        sq_dists, rows = brute_force(bank, bank, k, exclude)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_allclose(found.sq_dists, sq_dists, rtol=1e-12)


def test_many_near_ties_are_still_exact():
    rng = np.random.default_rng(0)
    bank = (1000 + rng.normal(0, 1e-3, (3000, 64))).astype(np.float32)
    found = Bank(bank).nearest(bank[:20], 4)
    np.testing.assert_array_equal(found.rows, brute_force(bank[:20], bank, 4)[1])


def test_duplicates_have_distance_zero_and_the_lower_row_comes_first():
    rng = np.random.default_rng(1)
    bank = rng.normal(size=(50, 1280)).astype(np.float32)
    bank[30] = bank[7]
    found = Bank(bank).nearest(bank[30:31], 2)
    assert found.sq_dists[0].tolist() == [0, 0]
    assert found.rows[0].tolist() == [7, 30]
    left_out = Bank(bank).nearest(bank[30:31], 1, exclude=np.array([30]))
    assert left_out.rows.tolist() == [[7]]


def test_a_bank_of_equal_rows():
    found = Bank(np.ones((200, 5))).nearest(np.ones((2, 5)), 3)
    assert found.rows.tolist() == [[0, 1, 2]] * 2
    assert not found.sq_dists.any()


def test_chunked_equals_whole(monkeypatch):
    rng = np.random.default_rng(2)
    bank, queries = rng.normal(size=(300, 16)), rng.normal(size=(70, 16))
    exclude = rng.integers(0, 300, 70)
    whole = Bank(bank).nearest(queries, 5, exclude=exclude)
    monkeypatch.setattr(neighbors, "_QUERY_ROWS", 9)
    monkeypatch.setattr(neighbors, "_BANK_ROWS", 31)
    monkeypatch.setattr(search_steps, "_EXACT_ELEMENTS", 50)
    parts = Bank(bank).nearest(queries, 5, exclude=exclude)
    np.testing.assert_array_equal(whole.sq_dists, parts.sq_dists)
    np.testing.assert_array_equal(whole.rows, parts.rows)


def test_one_query_at_a_time_gives_the_same_bits():
    rng = np.random.default_rng(3)
    bank, queries = Bank(rng.normal(size=(500, 1280))), rng.normal(size=(8, 1280))
    together = bank.nearest(queries, 3)
    alone = [bank.nearest(queries[i : i + 1], 3) for i in range(8)]
    np.testing.assert_array_equal(together.sq_dists, np.vstack([n.sq_dists for n in alone]))


def test_a_read_only_memory_map_is_searched_in_place(tmp_path):
    features = np.random.default_rng(4).normal(size=(20, 4)).astype(np.float32)
    features.tofile(tmp_path / "bank")
    mapped = np.memmap(tmp_path / "bank", np.float32, "r", shape=(20, 4))
    bank = Bank(mapped)
    assert np.shares_memory(bank.features, mapped)
    assert bank.nearest(features[:3], 1).rows.ravel().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        (np.zeros((0, 3)), "no rows"),
        (np.zeros(3), r"shape \(3,\)"),
        (np.array([[0.0], [np.nan]]), "row 1"),
        (np.array([[0.0], [1e300]]), "row 1"),
        (np.array([[0.0], [1e18]]), "row 1 holds a value that is not finite or is too large"),
        (np.array([["a"]]), "dtype"),
    ],
)
def test_bad_banks(bank, message):
    with pytest.raises(InputError, match=message):
        Bank(bank)


def test_bad_queries():
    bank = Bank(np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"queries: shape \(1, 5\)"):
        bank.nearest(np.zeros((1, 5)), 1)
    with pytest.raises(InputError, match="1 to 3 neighbours"):
        bank.nearest(np.zeros((1, 2)), 4)
    with pytest.raises(InputError, match="1 to 2 neighbours"):
        bank.nearest(np.zeros((1, 2)), 3, exclude=np.array([0]))
    with pytest.raises(InputError, match="exclude: shape"):
        bank.nearest(np.zeros((1, 2)), 1, exclude=np.array([0, 1]))


def test_rows_that_do_not_exist_cannot_be_excluded():
    for row in (-1, 3):
        with pytest.raises(InputError, match=r"exclude: rows must lie in 0\.\.2"):
            Bank(np.zeros((3, 2))).nearest(np.zeros((1, 2)), 1, exclude=np.array([row]))


def test_no_queries():
    found = Bank(np.zeros((3, 2))).nearest(np.zeros((0, 2)), 2)
    assert found.sq_dists.shape == found.rows.shape == (0, 2)


@settings(max_examples=50, deadline=None)
@given(
    width=st.integers(1, 3000),
    step=st.integers(1, 1500),
    count=st.integers(1, 150),
    levels=st.sampled_from([3, 1_000_000]),
    dtype=st.sampled_from([np.float32, np.int32]),
    kernels=st.sampled_from([NUMPY, COMPILED]),
    seed=st.integers(0, 1000),
)
def test_the_least_keys_of_some_blocks(width, step, count, levels, dtype, kernels, seed):
    keys = np.random.default_rng(seed).integers(-levels, levels, (3, width)).astype(dtype)
    blocks = ((start, keys[:, start : start + step].copy()) for start in range(0, width, step))
    least, rows = search_steps.proposed(blocks, count, None, kernels)
    count = min(count, width)
    assert all(len(set(row)) == count for row in rows.tolist())
    np.testing.assert_array_equal(np.take_along_axis(keys, rows, 1), least)
    np.testing.assert_array_equal(np.sort(least, axis=1), np.sort(keys, axis=1)[:, :count])
