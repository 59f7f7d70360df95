import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import knnn as author_package
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnad.errors import InputError
from nnad.neighbors import Bank
from nnad.operators import frames, ordering
from nnad.operators import knnn as knnn_module
from nnad.operators import settings as operator_settings
from nnad.operators.halves import decode_halves, encode_halves
from nnad.operators.knnn import KNNN
from nnad.operators.knnn_author import AuthorKNNN, author_order
from nnad.presets import preset


def relu_like(n_rows, dim, seed=0):
    """Sparse non-negative features with some correlation, (n_rows, dim) float32."""
    mix = np.random.default_rng(99).normal(size=(6, dim))
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n_rows, 6)) @ mix + rng.normal(size=(n_rows, dim)) - 1
    return np.maximum(z, 0).astype(np.float32)


def slow_nearest(bank, row, k, exclude=None):
    sq_dists = np.square(bank - row).sum(axis=1)
    if exclude is not None:
        sq_dists[exclude] = np.inf
    return np.argsort(sq_dists, kind="stable")[:k]


def slow_scores(operator, queries, ridge=None):
    """Eq. 2 with ridge, power and mean, a loop for each sum."""
    bank, queries = operator.bank.features.astype(float), queries.astype(float)
    ridge = operator.ridge if ridge is None else ridge
    k, k_prime = min(operator.k, len(bank)), min(operator.k_prime, len(bank) - 1)
    scores = []
    for q in queries:
        terms = []
        for n in slow_nearest(bank, q, k):
            members = bank[slow_nearest(bank, bank[n], k_prime, exclude=n)]
            for start in range(0, bank.shape[1], operator.set_size):
                features = operator.order[start : start + operator.set_size]
                covariance = np.atleast_2d(np.cov(members[:, features], rowvar=False))
                e, v = np.linalg.eigh(covariance)  # ascending
                e = np.maximum(e, 0) + ridge * operator.vbar
                projections = np.abs((q - bank[n])[features] @ v)
                terms += [
                    *((projections**operator.p) / e ** (operator.p / 2))[: operator.n_vectors]
                ]
        scores.append(np.sum(terms) if operator.reduction == "sum" else np.mean(terms))
    return np.array(scores)


def slow_order(features, set_size):
    """The greedy rule as it is told in the paper; ties to the lower index."""
    constant = np.ptp(features, axis=0) == 0
    corr = np.zeros((len(constant), len(constant)))
    live = np.flatnonzero(~constant)
    corr[np.ix_(live, live)] = np.atleast_2d(
        np.corrcoef(features[:, live].astype(float), rowvar=False)
    )
    corr = np.abs(corr)
    order, rest = [0], list(range(1, len(corr)))
    while rest:
        in_set = len(order) % set_size
        if in_set == 0:
            nxt = min(rest, key=lambda d: (corr[order[-2:], d].mean().round(12), d))
        else:
            last = order[-min(2, in_set) :]
            nxt = min(rest, key=lambda d: (-corr[last, d].mean().round(12), d))
        order.append(nxt)
        rest.remove(nxt)
    return order


VARIANTS = [
    {},
    {"p": 1},
    {"ridge": 1e-3},
    {"ridge": 50.0, "k": 1},
    {"n_vectors": 2},
    {"n_vectors": 4, "p": 1, "ridge": 0.1},
    {"set_size": 1},
    {"set_size": 7, "k": 5, "k_prime": 9},
    {"set_size": 100, "k_prime": 6},  # Eq. 1: one set, of lost rank
    {"reorder": False, "reduction": "sum"},
    {"k": 500, "k_prime": 500},  # more than there are
    {"k": 30, "k_prime": 4},
]


def test_by_hand():
    # Left cluster: variances 1 in x and 4 in y (ddof 1), no covariance; right cluster far away.
    left = [[0, 0], [1, 0], [-1, 0], [0, 2], [0, -2]]
    bank = Bank(np.array([*left, [100, 0], [101, 0], [100, 1]], dtype=np.float32))
    operator = KNNN(1, 4, set_size=2, ridge=1e-12, reorder=False).fit(bank)
    # The query's neighbour is (0, 0); its neighbourhood is the four others of the left cluster,
    # with variances 2/3 and 8/3: score = mean of 0.3^2 / (2/3) and 0.4^2 / (8/3).
    assert operator.score([[0.3, 0.4]]) == pytest.approx([(0.135 + 0.06) / 2])
    operator = KNNN(1, 4, set_size=1, ridge=1e-12, p=1, reduction="sum", reorder=False).fit(bank)
    expected = 0.3 / np.sqrt(2 / 3) + 0.4 / np.sqrt(8 / 3)
    assert operator.score([[0.3, 0.4]]) == pytest.approx([expected])
    # Only the smallest eigenvalue of a set, which is the one along x.
    operator = KNNN(1, 4, set_size=2, ridge=1e-12, n_vectors=1, reorder=False).fit(bank)
    assert operator.score([[0.3, 0.4]]) == pytest.approx([0.135])


def test_ridge_and_vbar_by_hand():
    bank = Bank(np.array([[0], [1], [2], [3]], dtype=np.float32))
    operator = KNNN(1, 2, set_size=1, ridge=0.5).fit(bank)
    assert operator.vbar == pytest.approx(5 / 3)
    # Nearest to -1 is 0, whose neighbours 1 and 2 have variance 1/2.
    assert operator.score([[-1]]) == pytest.approx([1 / (0.5 + 0.5 * 5 / 3)])


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("dim", [1, 2, 13, 335])
def test_equals_the_slow_equation(changes, dim):
    operator = KNNN(**changes).fit(Bank(relu_like(40, dim)))
    queries = relu_like(7, dim, seed=1) + np.float32(0.5)
    np.testing.assert_allclose(
        operator.score(queries), slow_scores(operator, queries), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("changes", VARIANTS)
def test_eager_equals_lazy_equals_one_frame_at_a_time(changes, monkeypatch):
    bank, queries = Bank(relu_like(60, 23)), relu_like(40, 23, seed=1)
    lazy = KNNN(**changes).fit(bank).score(queries)
    eager = KNNN(**changes, storage="eager").fit(bank)
    np.testing.assert_array_equal(eager.score(queries), lazy)
    tiny = KNNN(**changes, cache_mb=1e-9).fit(bank)  # evicts all the time
    np.testing.assert_array_equal(tiny.score(queries), lazy)
    np.testing.assert_array_equal(tiny.score(queries[::-1])[::-1], lazy)
    monkeypatch.setattr(knnn_module, "_BLOCK_BYTES", 1)
    np.testing.assert_array_equal(eager.score(queries), lazy)
    np.testing.assert_array_equal(np.concatenate([eager.score(q[None]) for q in queries]), lazy)
    assert eager.score(queries[:0]).shape == (0,)


@pytest.mark.parametrize("changes", VARIANTS)
def test_left_out_equals_a_bank_without_that_row(changes, monkeypatch):
    features = relu_like(35, 12)
    features[9] = features[8]  # a duplicate may be the neighbour of its twin
    operator = KNNN(**changes).fit(Bank(features))
    left_out = operator.left_out_scores()
    refit = [
        KNNN(**changes)
        .restore(Bank(np.delete(features, i, axis=0)), operator.state())
        .score(features[i : i + 1])[0]
        for i in range(len(features))
    ]
    np.testing.assert_array_equal(left_out, refit)
    monkeypatch.setattr(knnn_module, "_BLOCK_BYTES", 1)
    np.testing.assert_array_equal(operator.left_out_scores(), left_out)


@pytest.mark.parametrize("changes", [{}, {"p": 1}, {"n_vectors": 3}])
@pytest.mark.parametrize("storage", ["eager", "lazy"])
def test_one_set_of_frames_serves_many_ridges(changes, storage):
    bank, queries = Bank(relu_like(50, 12)), relu_like(9, 12, seed=1)
    ridges = [1e-3, 0.1, 1, 30]
    operator = KNNN(**changes, storage=storage).fit(bank)
    scores, left_out = operator.score_ridges(queries, ridges), operator.left_out_ridges(ridges)
    assert (scores.shape, left_out.shape) == ((9, 4), (50, 4))
    for r, ridge in enumerate(ridges):
        alone = KNNN(**changes, ridge=ridge).fit(bank)
        np.testing.assert_array_equal(scores[:, r], alone.score(queries))
        np.testing.assert_array_equal(left_out[:, r], alone.left_out_scores())


def test_a_large_ridge_is_knn():
    bank, queries = Bank(relu_like(80, 17)), relu_like(30, 17, seed=1)
    operator = KNNN(ridge=1e7).fit(bank)
    knn = bank.nearest(queries, 3).sq_dists.mean(axis=1) / 17
    np.testing.assert_allclose(operator.score(queries) * 1e7 * operator.vbar, knn, rtol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS)
def test_half_precision(changes):
    bank, queries = Bank(relu_like(60, 40)), relu_like(20, 40, seed=1)
    full = KNNN(**changes).fit(bank)
    half = KNNN(**changes, precision="float16", storage="eager").fit(bank)
    np.testing.assert_allclose(half.score(queries), full.score(queries), rtol=5e-3)
    lazy = KNNN(**changes, precision="float16").fit(bank)
    np.testing.assert_array_equal(half.score(queries), lazy.score(queries))


def test_every_half_is_decoded():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(2, -1)
    decoded = np.empty(halves.shape, dtype=np.float32)
    decode_halves(halves.view(np.uint16), decoded.view(np.uint32), decoded)
    np.testing.assert_array_equal(decoded.view(np.uint32), np.float32(halves).view("u4"))


def test_halves_are_encoded_to_the_nearest():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    exact = np.float32(halves[np.isfinite(halves)])
    between = (exact[:-1] + exact[1:]) / 2  # ties
    values = np.concatenate([exact, between, between * np.float32(1 + 1e-6), [1e-9, 7e4, -1e38]])
    values = values.astype(np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    encoded = np.empty(len(values), dtype=np.uint16)
    encode_halves(values, values.view(np.uint32), encoded)
    np.testing.assert_array_equal(encoded.view(np.float16), expected)


def test_the_order_of_bank_rows_does_not_matter():
    features, queries = relu_like(90, 31), relu_like(20, 31, seed=1)
    shuffled = features[np.random.default_rng(0).permutation(90)]
    scores = [KNNN().fit(Bank(f)).score(queries) for f in (features, shuffled)]
    np.testing.assert_allclose(*scores, rtol=1e-6)


@pytest.mark.parametrize("storage", ["eager", "lazy"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("with_frames", [True, False])
def test_saved_equals_restored(storage, precision, with_frames, tmp_path):
    bank, queries = Bank(relu_like(60, 23)), relu_like(20, 23, seed=1)
    operator = KNNN(storage=storage, precision=precision, p=1).fit(bank)
    np.savez(tmp_path / "state.npz", **operator.state(with_frames=with_frames))
    settings_json = json.dumps(operator_settings(operator))
    with np.load(tmp_path / "state.npz") as state:
        assert ("frames" in state) == (with_frames and storage == "eager")
        restored = KNNN(**json.loads(settings_json)).restore(bank, dict(state))
    assert operator_settings(restored) == operator_settings(operator)
    np.testing.assert_array_equal(restored.score(queries), operator.score(queries))
    np.testing.assert_array_equal(restored.left_out_scores(), operator.left_out_scores())


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_parts_of_an_explanation_add_up(changes):
    operator = KNNN(**changes).fit(Bank(relu_like(40, 13)))
    query = relu_like(1, 13, seed=1)[0]
    told = operator.explain(query)
    assert told.score == operator.score(query[None])[0]
    assert told.by_neighbor.sum() == pytest.approx(told.score, rel=1e-12)
    assert told.by_set.sum() == pytest.approx(told.score, rel=1e-12)
    assert sorted(np.concatenate(told.sets)) == list(range(13))
    assert told.parts.shape == (operator.k_used, len(told.sets))
    nearest = operator.bank.nearest(query[None], operator.k_used).rows[0]
    np.testing.assert_array_equal(told.rows, nearest)


def test_the_set_that_is_wrong_is_blamed():
    features = np.random.default_rng(0).normal(size=(200, 10)).astype(np.float32)
    operator = KNNN(set_size=5, reorder=False).fit(Bank(features))
    query = features[0].copy()
    query[7] += 6
    told = operator.explain(query)
    assert told.by_set.argmax() == 1
    assert 7 in told.sets[1]


@pytest.mark.parametrize("set_size", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("dim", [1, 2, 5, 12, 33])
def test_greedy_order(dim, set_size):
    features = relu_like(70, dim)
    features[:, dim // 2] = 1  # a constant feature correlates with nothing
    corr = ordering.abs_correlations(features, *ordering.moments(features))
    order = ordering.greedy_order(corr, set_size)
    assert order.tolist() == slow_order(features, set_size)


def test_greedy_order_by_hand():
    corr = np.eye(6)
    for i, j, value in [(0, 4, 0.9), (0, 2, 0.8), (4, 2, 0.1), (4, 5, 0.7), (1, 3, 0.6)]:
        corr[i, j] = corr[j, i] = value
    # 0; 4 is closest to it; 2 is closest to (0, 4); then the least close to (4, 2): 1, the lower
    # of 1 and 3; 3 is closest to 1; 5 is left.
    assert ordering.greedy_order(corr, 3).tolist() == [0, 4, 2, 1, 3, 5]
    assert ordering.set_layout(np.arange(5), 3).tolist() == [[0, 3], [1, 4], [2, -1]]


def test_moments_do_not_depend_on_blocks(monkeypatch):
    features = relu_like(300, 9) + np.float32(1000)
    monkeypatch.setattr(ordering, "_ROWS", 7)
    mean, scatter = ordering.moments(features)
    np.testing.assert_allclose(mean, features.mean(axis=0, dtype=float), rtol=1e-14)
    np.testing.assert_allclose(scatter, features.var(axis=0, dtype=float) * 300, rtol=1e-9)
    corr = ordering.abs_correlations(features, mean, scatter)
    expected = np.abs(np.corrcoef(features.astype(float), rowvar=False))
    np.testing.assert_allclose(corr, expected, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    n_members=st.integers(2, 30),
    dim=st.integers(1, 150),
    set_size=st.integers(1, 12),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    kind=st.sampled_from(["random", "sparse", "doubled", "constant"]),
    seed=st.integers(0, 1000),
)
def test_kernels_equal_numpy(n_members, dim, set_size, scale, kind, seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n_members, dim))
    if kind == "sparse":
        features = np.maximum(features - 1, 0)
    if kind == "doubled":
        features[:, dim // 2 :] = features[:, : dim - dim // 2]
    if kind == "constant":
        features[:] = features[0]
    features = (features * scale).astype(np.float32)
    layout = ordering.set_layout(rng.permutation(dim), set_size)
    size, n_sets = layout.shape
    members, unit = np.arange(n_members)[None], scale**2
    n = int(rng.integers(1, size + 1))
    ridges, n_entries = np.array([0.1, 3]), size * (size + 1) // 2
    inverse = np.empty((1, 2 * n_entries, n_sets))
    eigen = np.empty((1, n * (1 + size), n_sets))
    frames.build(frames.ridge_frames, features, members, layout, ridges * unit, inverse)
    frames.build(frames.eigen_frames, features, members, layout, unit, eigen)
    for s in range(n_sets):
        which = layout[layout[:, s] >= 0, s]
        used = len(which)
        cov = np.atleast_2d(np.cov(features[:, which].astype(float), rowvar=False)) / unit
        largest = cov.trace() + 1e-30
        for ridge, entries in zip(ridges, inverse[0, :, s].reshape(2, n_entries), strict=True):
            factor = np.zeros((size, size))
            factor[np.tril_indices(size)] = entries
            factor = factor[:used, :used]
            expected = ridge * np.linalg.inv(cov + ridge * np.eye(used))
            np.testing.assert_allclose(factor.T @ factor, expected, atol=1e-12)
        e = np.linalg.eigvalsh(cov)
        kept = min(n, used)
        root, vectors = eigen[0, :kept, s], eigen[0, n:, s].reshape(n, size)[:kept, :used]
        np.testing.assert_allclose(root**2, np.maximum(e[:kept], 0), atol=1e-13 * largest)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(kept), atol=1e-12)
        np.testing.assert_allclose(
            vectors @ cov, (root**2)[:, None] * vectors, atol=1e-13 * largest
        )


@settings(max_examples=150, deadline=None)
@given(
    n_rows=st.integers(4, 30),
    dim=st.integers(1, 20),
    k=st.integers(1, 6),
    k_prime=st.integers(2, 30),
    set_size=st.integers(1, 8),
    p=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_properties(n_rows, dim, k, k_prime, set_size, p, seed):
    rng = np.random.default_rng(seed)
    bank = rng.integers(0, 3, (n_rows, dim)).astype(np.float32)  # ties, duplicates, constants
    queries = rng.normal(size=(5, dim)).astype(np.float32)
    operator = KNNN(k, k_prime, set_size=set_size, p=p).fit(Bank(bank))
    scores = operator.score_ridges(queries, [0.1, 1, 10])
    assert np.isfinite(scores).all() and (scores >= 0).all()
    assert (np.diff(scores, axis=1) <= 1e-12).all()  # a larger ridge lowers every score
    assert np.isfinite(operator.left_out_scores()).all()
    if np.ptp(bank, axis=0).any():  # the score has no unit, unless equal rows leave it 1
        scaled = KNNN(k, k_prime, set_size=set_size, p=p).fit(Bank(bank * 8))
        np.testing.assert_allclose(scaled.score(queries * 8), operator.score(queries), rtol=1e-6)


def test_constant_features_are_left_to_the_ridge():
    features = relu_like(50, 12)
    features[:, [0, 5]] = 3
    operator = KNNN().fit(Bank(features))
    query = features[:1].copy()
    unchanged = operator.score(query)[0]
    query[0, 5] += 1
    assert np.isfinite(operator.score(query)[0])
    assert operator.score(query)[0] > unchanged


def test_equal_rows():
    operator = KNNN().fit(Bank(np.ones((10, 6))))
    assert operator.vbar == 1
    assert operator.score(np.ones((1, 6))) == [0]
    assert operator.score(np.zeros((1, 6))) == pytest.approx([1])  # |q - b|^2 / D / (0 + 1)
    assert not operator.left_out_scores().any()


def test_small_banks():
    features = relu_like(3, 7)
    operator = KNNN().fit(Bank(features))
    assert (operator.k_used, operator.k_prime_used) == (3, 2)
    np.testing.assert_allclose(operator.score(features), slow_scores(operator, features), rtol=1e-6)
    with pytest.raises(InputError, match="3 rows; to leave one out takes at least 4"):
        operator.left_out_scores()
    for n_rows in (1, 2):
        with pytest.raises(InputError, match=f"bank: {n_rows} rows; k-NNN needs at least 3"):
            KNNN().fit(Bank(features[:n_rows]))


def test_a_memory_mapped_bank(tmp_path):
    features = relu_like(50, 12)
    np.save(tmp_path / "bank.npy", features)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    for operator, other in [(KNNN(), KNNN()), (KNNN(p=1), KNNN(p=1)), (AuthorKNNN(), AuthorKNNN())]:
        scores = operator.fit(Bank(mapped)).score(mapped[:9])
        np.testing.assert_array_equal(scores, other.fit(Bank(features)).score(features[:9]))
        assert np.isfinite(operator.left_out_scores()).all()


def test_many_threads_may_score():
    bank, queries = Bank(relu_like(200, 23)), relu_like(64, 23, seed=1)
    expected = KNNN().fit(bank).score(queries)
    shared = KNNN(cache_mb=0.05).fit(bank)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: shared.score(queries[i : i + 4]), range(0, 64, 4)))
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_paper_preset_is_eq_2():
    operator = preset("knnn-paper")[1].fit(
        Bank(np.random.default_rng(0).normal(size=(80, 22)).astype(np.float32))
    )
    assert (operator.k, operator.k_prime, operator.set_size) == (3, 25, 5)
    assert (operator.p, operator.n_vectors, operator.reduction) == (1, 4, "sum")
    queries = np.random.default_rng(1).normal(size=(9, 22)).astype(np.float32)
    without_ridge = slow_scores(operator, queries, ridge=0)
    np.testing.assert_allclose(operator.score(queries), without_ridge, rtol=1e-6)


def author_data(kind, n_rows, dim):
    if kind == "random":
        rng = np.random.default_rng(0)
        data = rng.normal(size=(n_rows + 60, dim)).astype(np.float32)
    else:
        data = relu_like(n_rows + 60, dim)
    if kind == "constant":
        data[:, 1::4] = 2
        data[n_rows : n_rows + 5, 1] = 3  # queries that change it
    if kind == "duplicates":
        data[10:20] = data[5]
    data = data[data.any(axis=1)]
    return data[:n_rows], data[n_rows:]


@pytest.mark.parametrize(
    ("kind", "n_rows", "dim"),
    [
        ("random", 300, 40),
        ("random", 12, 8),
        ("random", 200, 2),
        ("sparse", 300, 64),
        ("sparse", 500, 333),
        ("sparse", 60, 23),
        ("constant", 300, 41),
        ("duplicates", 100, 33),
    ],
)
@pytest.mark.parametrize(("k", "k_prime", "set_size"), [(3, 25, 5), (1, 8, 4), (7, 3, 6)])
def test_author_preset_equals_the_package(kind, n_rows, dim, k, k_prime, set_size):
    bank, queries = author_data(kind, n_rows, dim)
    theirs = author_package.KNNN(k, k_prime, set_size).fit(bank)
    ours = AuthorKNNN(k, k_prime, set_size=set_size).fit(Bank(bank))
    np.testing.assert_allclose(ours.score(queries), theirs(queries), rtol=1e-5)
    sets = {frozenset(features) for features in theirs.feature_indices_}
    assert {frozenset(column[column >= 0]) for column in ours._layout.T} == sets


def test_author_order_of_tied_features_equals_the_package():
    features = relu_like(40, 16)
    features[:, 12] = features[:, 3]
    features[:, [2, 7]] = 1
    theirs = author_package.KNNN().fit(features.astype(float)).features_clusters_
    order = author_order(features, 5)
    np.testing.assert_array_equal(theirs[order], np.arange(16) // 5)


def test_author_left_out_restored_and_explained():
    features, queries = author_data("constant", 40, 13)
    operator = AuthorKNNN().fit(Bank(features))
    restored = AuthorKNNN().restore(operator.bank, operator.state())
    np.testing.assert_array_equal(restored.score(queries), operator.score(queries))
    for query in (queries[0], queries[-1]):  # one that changes a constant, and one that does not
        told = operator.explain(query)
        assert told.score == operator.score(query[None])[0]
        assert told.by_set.sum() == pytest.approx(told.score, rel=1e-12)
    assert operator.explain(queries[0]).score == np.finfo(float).max


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k=0; expected a whole number, at least 1"),
        ({"k": 2.5}, "k=2.5"),
        ({"k_prime": 1}, "k_prime=1; expected a whole number, at least 2"),
        ({"set_size": True}, "set_size=True"),
        ({"n_vectors": 6}, "n_vectors=6: a set has 5"),
        ({"ridge": 0}, "ridge="),
        ({"ridge": float("nan")}, "ridge="),
        ({"p": 3}, "p=3; choose one of 1, 2"),
        ({"storage": "disk"}, "storage='disk'; choose one of eager, lazy"),
        ({"precision": "int8"}, "precision='int8'"),
        ({"reduction": "max"}, "reduction='max'"),
        ({"cache_mb": 0}, "cache_mb=0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError) as caught:
        KNNN(**arguments)
    assert message in str(caught.value)


def test_wrong_inputs():
    bank = Bank(relu_like(20, 6))
    operator = KNNN(storage="eager").fit(bank)
    with pytest.raises(InputError, match=r"queries: shape \(2, 5\)"):
        operator.score(np.ones((2, 5)))
    with pytest.raises(InputError, match="ridges="):
        operator.score_ridges(np.ones((2, 6)), [1, -1])
    with pytest.raises(InputError, match="ridges="):
        operator.left_out_ridges([])
    for state in ({}, {"order": np.zeros(6)}, {"order": np.arange(5)}, {"order": np.arange(6)}):
        with pytest.raises(InputError, match="state: "):
            KNNN().restore(bank, {**state})
    with pytest.raises(InputError, match="state: frames"):
        KNNN(storage="eager", p=1).restore(bank, operator.state(with_frames=True))
    with pytest.raises(InputError, match="row 1 is all zeros"):
        AuthorKNNN().fit(Bank(np.array([[1.0, 2], [0, 0], [1, 1]])))
    with pytest.raises(InputError, match="at least 2"):
        AuthorKNNN().fit(Bank(np.ones((1, 2))))
    with pytest.raises(InputError, match="at least 4"):
        AuthorKNNN().fit(Bank(np.ones((2, 2)))).left_out_scores()


def test_numba_is_not_imported_by_the_knn_path():
    code = "import sys, nnad.detector, nnad.cli, nnad.operators; assert 'numba' not in sys.modules"
    code += "; assert 'scipy.ndimage' not in sys.modules"  # patches need it, and start-up shall not
    subprocess.run([sys.executable, "-c", code], check=True)
