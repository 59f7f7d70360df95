import multiprocessing
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnad import neighbors
from nnad.codes import Codes
from nnad.neighbors import Bank
from nnad.operators.compiled_search import COMPILED
from nnad.search_steps import NUMPY


def distances(queries, bank):
    difference = queries.astype(np.float64)[:, None] - bank.astype(np.float64)[None]
    return np.sqrt(np.square(difference).sum(axis=2))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    dim=st.sampled_from([1, 2, 31, 32, 33, 300]),
    kind=st.sampled_from(["normal", "sparse", "constant", "heavy"]),
    offset=st.sampled_from([0.0, -1.0, 1e6]),
    scale=st.sampled_from([1.0, 1e-30, 1e12]),
    seed=st.integers(0, 1000),
)
def test_no_distance_is_below_what_its_codes_prove(rows, dim, kind, offset, scale, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows + 5, dim))
    values = {
        "normal": values,
        "sparse": np.maximum(values - 1, 0),
        "constant": np.ones_like(values),
        "heavy": values**5,
    }[kind]
    features = ((values + offset) * scale).astype(np.float32)
    bank, queries = features[:rows], features[rows:]
    queries[0] = 100 * queries[0]  # far outside the bank's values
    codes = Codes(bank)
    coded = codes.encode(queries)
    (keys,) = [keys for _, keys in codes.keys(coded)]
    least = codes.least_distances(coded, keys)
    assert (least <= distances(queries, bank)).all()


def test_keys_are_exact_at_the_extremes_of_the_codes():
    # products of 255 and 63 or -64, which processors may add in 16 bits
    bank = np.array([[0.0] * 1280, [127.0] * 1280], dtype=np.float32)  # codes 0 and 127
    codes = Codes(bank)
    for n_queries in (1, 3, 64):
        queries = np.full((n_queries, 1280), 191, dtype=np.float32)
        queries[0] = -64
        coded = codes.encode(queries)
        ((start, keys),) = codes.keys(coded)
        sq_dists = keys + coded.sq_norms[:, None]
        expected = [[1280 * 64**2, 1280 * 191**2]] + [[1280 * 191**2, 1280 * 64**2]] * n_queries
        assert start == 0
        np.testing.assert_array_equal(sq_dists, expected[:n_queries])
        assert coded.lost.max() < 0.01  # nothing but what float32 cannot tell


def features(n_rows, dim, kind, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n_rows, 8)) @ rng.normal(size=(8, dim))
    if kind == "low rank":
        return (mixed + 0.1 * rng.normal(size=mixed.shape)).astype(np.float32)
    if kind == "noise":  # all rows are about as far: rounding proves little
        return rng.normal(size=mixed.shape).astype(np.float32)
    if kind == "outlier":  # one value that leaves the others a single code
        mixed[17, 3] = 1e7
        return mixed.astype(np.float32)
    return np.repeat(mixed, 3, axis=0)[:n_rows].astype(np.float32)  # copies


@pytest.mark.parametrize("kind", ["low rank", "noise", "outlier", "copies"])
@pytest.mark.parametrize("kernels", [NUMPY, COMPILED], ids=["numpy", "compiled"])
@pytest.mark.parametrize("k", [1, 5, 26])
def test_searching_by_codes_gives_the_same_bits(kind, kernels, k, monkeypatch):
    bank, queries = features(1700, 96, kind), features(200, 96, kind, seed=1)
    queries[:20] = bank[100:120]
    exclude = np.arange(200) + 90
    by_codes, by_floats = Bank(bank), Bank(bank)
    monkeypatch.setattr(neighbors, "_QUERY_ROWS", 64)
    for excluded in (None, exclude):
        found = by_codes.nearest(queries, k, exclude=excluded, kernels=kernels)
        if kind != "outlier":  # codes proved the neighbours of more than half of each block
            assert by_codes._codes is not None
        monkeypatch.setattr(neighbors, "_CODED_QUERIES", 10**9)
        expected = by_floats.nearest(queries, k, exclude=excluded, kernels=kernels)
        monkeypatch.undo()
        monkeypatch.setattr(neighbors, "_QUERY_ROWS", 64)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.sq_dists, expected.sq_dists)


def test_codes_that_prove_nothing_are_given_up():
    bank = Bank(features(1700, 96, "outlier"))
    bank.nearest(features(100, 96, "low rank"), 5)
    assert bank._coding_failed
    assert bank._codes is None


def test_rows_in_several_blocks(monkeypatch):
    from nnad import codes

    bank, queries = features(2000, 40, "low rank"), features(150, 40, "low rank", seed=1)
    whole = Bank(bank).nearest(queries, 4)
    monkeypatch.setattr(codes, "_BANK_ROWS", 70)
    monkeypatch.setattr(codes, "_ROUNDED_ROWS", 33)
    parts = Bank(bank)
    found = parts.nearest(queries, 4)
    assert len(parts._codes._blocks) == 29
    np.testing.assert_array_equal(whole.rows, found.rows)
    np.testing.assert_array_equal(whole.sq_dists, found.sq_dists)


def nearest_rows(bank, queries):
    return bank.nearest(queries, 3).rows


def test_a_forked_process_can_search_too():
    bank, queries = Bank(features(1700, 96, "low rank")), features(100, 96, "low rank", seed=1)
    here = nearest_rows(bank, queries)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, on forking with threads
        with multiprocessing.get_context("fork").Pool(1) as pool:
            there = pool.apply_async(nearest_rows, (bank, queries)).get(timeout=60)
    np.testing.assert_array_equal(here, there)


def test_few_queries_are_not_worth_the_codes():
    bank = Bank(features(1700, 96, "low rank"))
    bank.nearest(features(5, 96, "low rank"), 5)
    assert bank._codes is None
