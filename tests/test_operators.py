"""Each operator against numbers worked out by hand or by a plain reading of its formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnad.crossfit import cross_fitted
from nnad.errors import InputError
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.operators.global_ import Global
from nnad.operators.hull import Hull
from nnad.operators.kmeans import KMeans
from nnad.operators.kmeans_tree import KMeansTree, TreeKNN
from nnad.operators.knn import KNN
from nnad.operators.local import Local
from nnad.operators.spaces import directions, normalized_length, shrunk_sq_lengths

SQUARE = np.array([[0, 0], [2, 0], [0, 2], [2, 2]], dtype=np.float32)


def cloud(count: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, dim)) @ np.diag(np.linspace(0.3, 3, dim))).astype(np.float32)


def test_knn_by_hand():
    bank = Bank(SQUARE)
    query = np.array([[0, 1]])  # squared distances 1, 5, 1, 5
    assert KNN(2).fit(bank).score(query) == [1]
    assert KNN(3).fit(bank).score(query) == [7 / 3]
    assert KNN(3, reduction="sum").fit(bank).score(query) == [7]
    assert KNN(3, squared=False).fit(bank).score(query) == pytest.approx((2 + 5**0.5) / 3)
    assert KNN(2).fit(bank).left_out_scores().tolist() == [4, 4, 4, 4]
    cosine = KNN(1, metric="cosine").fit(Bank(SQUARE[1:]))
    assert cosine.score(np.array([[7, 0], [3, 4]])) == pytest.approx([0, 1 - 7 / 50**0.5], abs=1e-6)


def test_global_by_hand():
    """Covariance of the square: 4/3 in both directions, no ridge."""
    bank = Bank(SQUARE)
    query = np.array([[0, 5]])  # nearest (0, 2): difference (0, 3)
    assert Global(1, ridge=0, p=2).fit(bank).score(query) == pytest.approx([9 / (4 / 3)])
    assert Global(1, ridge=1, p=2).fit(bank).score(query) == pytest.approx([9 / (8 / 3)])
    line = Bank(np.array([[0, 0], [1, 0], [2, 0]]) + np.array([[0, 0.1], [0, -0.2], [0, 0.1]]))
    spread = np.cov(line.features, rowvar=False)
    assert spread[0, 1] == pytest.approx(0)
    score = Global(1, ridge=0, p=1).fit(line).score(np.array([[3.0, 0.6]]))
    assert score == pytest.approx([1 / spread[0, 0] ** 0.5 + 0.5 / spread[1, 1] ** 0.5])


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_global_is_equation_3(p, ridge):
    points, queries = cloud(50, 6), cloud(9, 6, seed=1)
    covariance = np.cov(points.astype(np.float64), rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    values = values + ridge * np.trace(covariance) / 6
    expected = []
    for query in queries.astype(np.float64):
        nearest = points[np.argsort(np.square(points - query).sum(axis=1))[:3]]
        terms = np.abs((query - nearest) @ vectors) / np.sqrt(values)
        expected.append((terms**p).sum(axis=1).mean())
    scores = Global(3, ridge=ridge, p=p).fit(Bank(points)).score(queries)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("ridge", [1e-9, 1.0])
def test_global_is_a_mahalanobis_distance_with_fewer_rows_than_features(ridge):
    points, queries = cloud(20, 50), cloud(9, 50, seed=1)
    queries[0] = points[4]
    covariance = np.cov(points.astype(np.float64), rowvar=False)
    covariance += ridge * np.trace(covariance) / 50 * np.eye(50)
    expected = []
    for query in queries.astype(np.float64):
        steps = query - points[np.argsort(np.square(points - query).sum(axis=1))[:3]]
        expected.append((steps * np.linalg.solve(covariance, steps.T).T).sum(axis=1).mean())
    fitted = Global(3, ridge=ridge).fit(Bank(points))
    np.testing.assert_allclose(fitted.score(queries), expected, rtol=1e-6)
    assert Global(1, ridge=ridge).fit(Bank(points)).score(queries)[0] == 0  # bit for bit


@pytest.mark.parametrize("p", [1, 2])
def test_local_is_equation_3_around_the_query(p):
    points, queries = cloud(80, 3), cloud(9, 3, seed=1)
    vbar = points.astype(np.float64).var(axis=0, ddof=1).mean()
    expected = []
    for query in queries.astype(np.float64):
        around = points[np.argsort(np.square(points - query).sum(axis=1))[:12]].astype(np.float64)
        values, vectors = np.linalg.eigh(np.cov(around, rowvar=False))
        terms = np.abs((query - around[:2]) @ vectors) / np.sqrt(values + 0.5 * vbar)
        expected.append((terms**p).sum(axis=1).mean())
    scores = Local(2, n_local=12, ridge=0.5, p=p).fit(Bank(points)).score(queries)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_huge_ridge_makes_global_and_local_k_nn():
    points, queries = cloud(40, 5), cloud(20, 5, seed=1)
    plain = KNN(3).fit(Bank(points)).score(queries)
    hull = Hull(3, ridge=1e9, reduction="mean")
    for operator in (Global(3, ridge=1e9), Local(3, n_local=10, ridge=1e9), hull):
        scores = operator.fit(Bank(points)).score(queries)
        np.testing.assert_allclose(scores / scores[0], plain / plain[0], rtol=1e-6)


def test_no_ridge_is_refused_where_it_has_no_meaning():
    operator = Global(2, ridge=0).fit(Bank(cloud(5, 20)))
    with pytest.raises(InputError, match="a ridge > 0 is needed"):
        operator.score(cloud(3, 20, seed=1))


@pytest.mark.parametrize("count", [4, 8, 30])
def test_directions_are_those_of_the_covariance(count):
    points = cloud(count, 8).astype(np.float64)
    values, vectors = directions(points)
    rank = min(count - 1, 8)
    assert vectors.shape == (rank, 8)
    rebuilt = vectors.T @ np.diag(values) @ vectors
    np.testing.assert_allclose(rebuilt, np.cov(points, rowvar=False), atol=1e-9)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(rank), atol=1e-6)
    assert (np.diff(values) <= 1e-9).all()


def test_what_is_outside_the_span_counts_as_one_direction():
    values, vectors = np.array([4.0]), np.array([[1.0, 0, 0]])
    difference = np.array([6.0, 3, 4])
    length = normalized_length(difference[None], values, vectors, 5.0, 2)
    assert length == pytest.approx([36 / 9 + 25 / 5])
    length = normalized_length(difference[None], values, vectors, 5.0, 1)
    assert length == pytest.approx([6 / 3 + 5 / 5**0.5])


def test_affine_hull_by_hand():
    """The hull of three points of the plane z = 1 is the plane: only the height counts."""
    plane = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1], [9, 9, 1]], dtype=np.float32)
    operator = Hull(1, m=2, ridge=0).fit(Bank(plane))
    assert operator.score(np.array([[3.0, -2, 4], [0, 0, 1]])) == pytest.approx([9, 0])


def test_affine_hull_is_a_least_squares_distance():
    points, queries = cloud(60, 30), cloud(6, 30, seed=1)
    bank = Bank(points)
    expected = []
    for query in queries.astype(np.float64):
        total = 0.0
        for row in np.argsort(np.square(points - query).sum(axis=1))[:3]:
            order = np.argsort(np.square(points - points[row]).sum(axis=1), kind="stable")
            hull = points[order[:8]].astype(np.float64)  # itself and 7 neighbours
            edges = (hull[1:] - hull[0]).T
            fit = edges @ np.linalg.lstsq(edges, query - hull[0], rcond=None)[0]
            total += np.square(query - hull[0] - fit).sum()
        expected.append(total / 3)
    operator = Hull(3, m=7, ridge=0, reduction="mean").fit(bank)
    np.testing.assert_allclose(operator.score(queries), expected, rtol=1e-6)


@pytest.mark.parametrize("ridge", [1e-12, 1e-3, 3.0])
@pytest.mark.parametrize("dim", [4, 24, 25, 60])
def test_shrunk_lengths_equal_those_by_eigenvectors(dim, ridge):
    points = cloud(25, dim).astype(np.float64)
    steps = cloud(7, dim, seed=1).astype(np.float64)
    values, vectors = directions(points)
    expected = normalized_length(steps, values, vectors, ridge, 2) * ridge
    np.testing.assert_allclose(shrunk_sq_lengths(points, steps, ridge), expected, rtol=1e-6)


def test_local_can_take_the_least_of_the_neighbours():
    points, queries = cloud(50, 30), cloud(6, 30, seed=1)
    found = Bank(points).nearest(queries, 12)
    least = Local(4, n_local=12, ridge=2.0, reduction="min").fit(Bank(points)).score(queries)
    for query, rows, score in zip(queries, found.rows, least, strict=True):
        around = points[rows].astype(np.float64)
        covariance = np.cov(around, rowvar=False)
        covariance += 2 * points.astype(np.float64).var(axis=0, ddof=1).mean() * np.eye(30)
        steps = query - around[:4]
        each = [step @ np.linalg.solve(covariance, step) for step in steps]
        assert score == pytest.approx(min(each), rel=1e-6)


@pytest.mark.parametrize("reduction", ["min", "mean"])
@pytest.mark.parametrize("dim", [4, 40])
def test_hull_is_equation_1_with_a_ridge(dim, reduction):
    """s_n = sum_j (v_j . (q - b_n))^2 ridge vbar / (e_j + ridge vbar), v_j and e_j of all D."""
    points, queries = cloud(70, dim), cloud(6, dim, seed=1)
    ridge = 3 * points.astype(np.float64).var(axis=0, ddof=1).mean()
    expected = []
    for query in queries.astype(np.float64):
        each = []
        for row in np.argsort(np.square(points - query).sum(axis=1))[:5]:
            order = np.argsort(np.square(points - points[row]).sum(axis=1), kind="stable")
            around = points[order[:26]].astype(np.float64)  # itself and 25 neighbours
            values, vectors = np.linalg.eigh(np.cov(around, rowvar=False))
            terms = np.square((query - points[row]) @ vectors) * ridge / (values + ridge)
            each.append(terms.sum())
        expected.append(min(each) if reduction == "min" else np.mean(each))
    scores = Hull(reduction=reduction).fit(Bank(points)).score(queries)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "operator",
    [KNN(3), KNN(2, metric="cosine"), Hull(2, m=4, ridge=0), TreeKNN(2, visit=1.0, leaf_size=5)],
    ids=lambda o: type(o).__name__,
)
def test_left_out_is_a_fit_without_that_row(operator):
    points = cloud(25, 12)
    left_out = operator.fit(Bank(points)).left_out_scores()
    for i in range(len(points)):
        rest = operator.fit(Bank(np.delete(points, i, axis=0)))
        assert rest.score(points[i : i + 1])[0] == pytest.approx(left_out[i], rel=1e-9)


def test_neighborhoods():
    bank = Bank(np.array([[0.0], [1], [3], [7]]))
    rows = np.array([0, 3, 0])
    assert bank.neighborhoods(rows, 2).tolist() == [[1, 2], [2, 1], [1, 2]]
    absent = np.array([1, 0, 3])
    assert bank.neighborhoods(rows, 2, absent=absent).tolist() == [[2, 3], [2, 1], [1, 2]]
    assert bank.neighborhoods(rows, 1, absent=absent).tolist() == [[2], [2], [1]]
    assert bank.neighborhoods(rows, 9).tolist() == [[1, 2, 3], [2, 1, 0], [1, 2, 3]]
    assert bank.neighborhoods(rows, 9, absent=absent).tolist() == [[2, 3], [2, 1], [1, 2]]
    assert Bank(np.ones((1, 1))).neighborhoods(np.array([0]), 3).shape == (1, 0)


def test_kmeans_by_hand():
    points = np.array([[0, 0], [0, 2], [10, 0], [10, 2]])
    operator = KMeans(2).fit(Bank(points))
    assert sorted(operator.centers.tolist()) == [[0, 1], [10, 1]]
    assert operator.score(np.array([[0, 1], [5, 1]])) == pytest.approx([100, 50])
    one = KMeans(1).fit(Bank(points))  # C = 1: the one centre (5, 1)
    assert one.score(np.array([[5, 4]])) == pytest.approx([9])
    every = KMeans(99).fit(Bank(points))
    assert every.score(np.array([[0, 0]])) == pytest.approx([4])  # 0 and 4


def test_kmeans_left_out_scores_do_not_know_the_row():
    points = np.vstack([cloud(40, 3), [[100, 100, 100]]])
    operator = KMeans(41).fit(Bank(points))
    assert operator.score(points[-1:])[0] > 0
    assert operator.left_out_scores()[-1] > 10_000


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 120),
    leaf_size=st.integers(1, 20),
    branching=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_the_tree_is_exact_when_it_may_visit_everything(count, leaf_size, branching, seed):
    points = np.round(cloud(count, 2, seed), 1)  # with duplicates
    bank = Bank(points)
    tree = KMeansTree(bank, leaf_size=leaf_size, branching=branching)
    k, everyone = min(3, count - 1), np.arange(count)
    for exclude in (None, everyone):
        found, exact = (s.nearest(points, k, exclude=exclude) for s in (tree, bank))
        np.testing.assert_array_equal(found.rows, exact.rows)
        np.testing.assert_allclose(found.sq_dists, exact.sq_dists)


def test_a_tree_that_may_visit_less_finds_most_neighbours():
    rng = np.random.default_rng(0)
    points = (rng.normal(size=(40, 16))[rng.integers(0, 40, 2000)] * 4).astype(np.float32)
    points += rng.normal(size=points.shape).astype(np.float32)
    tree = KMeansTree(Bank(points), leaf_size=50)
    exact = Bank(points).nearest(points[:100], 5).rows
    shares = []
    for visit in (0.05, 0.3, 1.0):
        found = tree.nearest(points[:100], 5, visit=visit).rows
        shares.append(np.mean([np.isin(f, e).mean() for f, e in zip(found, exact, strict=True)]))
    assert shares[0] > 0.7
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_bad_searches_of_a_tree():
    tree = KMeansTree(Bank(cloud(9, 2)))
    with pytest.raises(InputError, match="1 to 9 neighbours"):
        tree.nearest(cloud(1, 2), 10)
    with pytest.raises(InputError, match="visit=0"):
        tree.nearest(cloud(1, 2), 1, visit=0)


@pytest.mark.parametrize("name", ["global", "knnn-author", "kmeans"])
def test_what_is_learnt_from_all_rows_is_scored_by_folds(name):
    """With more features than rows the eigenvectors know each row; new rows must not look odd."""
    points, new = np.abs(cloud(60, 200)), np.abs(cloud(60, 200, seed=1))
    operator = make_operator(name).fit(Bank(points))
    left_out, scores = operator.left_out_scores(), operator.score(new)
    assert np.mean(left_out) > 0.9 * np.mean(scores)
    assert np.mean(scores > np.quantile(left_out, 0.9)) < 0.2


def test_cross_fitted_by_hand():
    features = np.arange(10.0)[:, None]
    held: list[float] = []

    def score(bank, held_out):
        assert len(bank) == 8
        assert not np.isin(held_out, bank).any()
        held.extend(held_out[:, 0])
        return held_out[:, 0] * 2

    np.testing.assert_array_equal(cross_fitted(features, score), np.arange(10) * 2)
    assert sorted(held) == list(range(10))
