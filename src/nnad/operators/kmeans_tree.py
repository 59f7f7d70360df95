"""The recursive k-means tree that DN2 (sections 5.1 and 6) names for very large sets.

Fukunaga and Narendra, "A branch and bound algorithm for computing k-nearest neighbors", IEEE
Transactions on Computers, 1975. The bank is split by k-means, each part again, until parts are
small. A part with centre c and radius r holds no row nearer to q than |q - c| - r. Parts are opened
nearest centre first, and those that cannot hold a nearer row are passed over: exact. The search may
also end after a fraction of the bank: faster, and no longer exact.
"""

import heapq
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from nnad.errors import InputError
from nnad.neighbors import Bank, Neighbors, checked_features
from nnad.operators.arguments import check_amount, check_count, clipped
from nnad.operators.by_feature import one_query, reduced

Scores = NDArray[np.float64]


class _Part(NamedTuple):
    """A leaf holds rows; an inner part holds the centres and radii of its children."""

    rows: NDArray[np.int64] | None
    centers: NDArray[np.float64]  # (C, D)
    radii: NDArray[np.float64]  # (C,)
    children: tuple["_Part", ...]


def _leaf(rows: NDArray[np.int64]) -> _Part:
    return _Part(rows, np.empty((0, 0)), np.empty(0), ())


class KMeansTree:
    """Nearest neighbours by branch and bound over a tree of k-means clusters.

    Args:
        bank: what is searched.
        branching: clusters of each split.
        leaf_size: parts of at most this many rows are not split.
        seed: of the k-means starts.
    """

    def __init__(
        self, bank: Bank, *, branching: int = 16, leaf_size: int = 128, seed: int = 0
    ) -> None:
        self.bank = bank
        self._branching = check_count("branching", branching, least=2)
        self._leaf_size = check_count("leaf_size", leaf_size)
        self._seed = check_count("seed", seed, least=0)
        self._root = self._split(np.arange(len(bank)))

    def nearest(
        self,
        queries: NDArray[Any],
        k: int,
        *,
        visit: float = 1.0,
        exclude: NDArray[np.intp] | None = None,
    ) -> Neighbors:
        """Like `Bank.nearest`.

        Args:
            visit: the search of a query ends once this fraction of the bank has been measured (and
                k rows are known); 1 is exact.
        """
        queries = checked_features(queries, "queries", dim=self.bank.features.shape[1])
        most = len(self.bank) - (exclude is not None)
        if not 1 <= k <= most:
            raise InputError(f"k={k}: the bank offers 1 to {most} neighbours")
        if not 0 < visit <= 1:
            raise InputError(f"visit={visit!r}; expected a fraction above 0 and at most 1")
        sq_dists = np.empty((len(queries), k))
        rows = np.empty((len(queries), k), dtype=np.int64)
        for i, query in enumerate(queries.astype(np.float64)):
            absent = -1 if exclude is None else int(exclude[i])
            sq_dists[i], rows[i] = self._search(query, k, visit * len(self.bank), absent)
        return Neighbors(sq_dists, rows)

    def _search(
        self, query: NDArray[np.float64], k: int, budget: float, absent: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        best, best_rows = np.full(k, np.inf), np.full(k, -1, dtype=np.int64)
        measured, arrived = 0, 0
        queue = [(0.0, arrived, 0.0, self._root)]  # (distance of the centre, ..., bound, part)
        while queue:
            _, _, bound, part = heapq.heappop(queue)
            if bound > np.sqrt(best[-1]):
                continue
            if measured >= budget and best_rows[-1] >= 0:
                break
            if part.rows is not None:
                rows = part.rows[part.rows != absent]
                difference = self.bank.features[rows] - query  # (n, D)
                found = np.concatenate([best, np.square(difference).sum(axis=1)])
                found_rows = np.concatenate([best_rows, rows])
                order = np.lexsort((found_rows, found))[:k]
                best, best_rows = found[order], found_rows[order]
                measured += len(rows)
            for center, radius, child in zip(part.centers, part.radii, part.children, strict=True):
                distance = float(np.sqrt(np.square(center - query).sum()))
                bound = distance * (1 - 1e-9) - radius * (1 + 1e-9)  # room for rounding
                arrived += 1
                heapq.heappush(queue, (distance, arrived, bound, child))
        return best, best_rows

    def _split(self, rows: NDArray[np.int64]) -> _Part:
        if len(rows) <= self._leaf_size:
            return _leaf(rows)
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits

        features = self.bank.features[rows]
        count = min(self._branching, len(rows))
        clusters = MiniBatchKMeans(
            count, n_init=1, random_state=self._seed, batch_size=2048, max_iter=20
        )
        with threadpool_limits(1):  # one thread adds in one order
            labels = clusters.fit_predict(features)
        parts = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        if len(parts) == 1:  # equal rows cannot be split
            return _leaf(rows)
        centers = np.stack([features[p].mean(axis=0, dtype=np.float64) for p in parts])
        radii = np.array(
            [
                np.sqrt(np.square(features[p] - center).sum(axis=1).max())
                for p, center in zip(parts, centers, strict=True)
            ]
        )
        children = tuple(self._split(rows[p]) for p in parts)
        return _Part(None, centers, radii, children)


class TreeKNN:
    """k-NN (see knn.py) with the neighbours from a k-means tree.

    Args:
        k: neighbours.
        visit: the fraction of the bank after which a search ends; 1 is exact.
        branching, leaf_size, seed: of the tree.
    """

    def __init__(
        self,
        k: int = 2,
        *,
        visit: float = 0.1,
        branching: int = 16,
        leaf_size: int = 128,
        seed: int = 0,
    ) -> None:
        self.k = check_count("k", k)
        self.visit = check_amount("visit", visit)
        self.branching = check_count("branching", branching, least=2)
        self.leaf_size = check_count("leaf_size", leaf_size)
        self.seed = check_count("seed", seed, least=0)

    def fit(self, bank: Bank) -> Self:
        """Take a bank (N, D) and build the tree."""
        self.bank = bank
        self._tree = KMeansTree(
            bank, branching=self.branching, leaf_size=self.leaf_size, seed=self.seed
        )
        return self

    def score(self, queries: NDArray[Any], found: Neighbors | None = None) -> Scores:  # noqa: ARG002
        """(Q, D) -> (Q,), by the tree's own search, as the left-out scores are."""
        nearest = self._tree.nearest(queries, clipped(self.k, self.bank), visit=self.visit)
        return np.asarray(nearest.sq_dists.mean(axis=1))

    def left_out_scores(self) -> Scores:
        """(N,) the score of each bank row against the others."""
        k = clipped(self.k, self.bank, left_out=True)
        everyone = np.arange(len(self.bank))
        found = self._tree.nearest(self.bank.features, k, visit=self.visit, exclude=everyone)
        return np.asarray(found.sq_dists.mean(axis=1))

    def by_feature(self, query: NDArray[Any]) -> Scores:
        """(D,) -> (D,) what each feature adds to the score, see by_feature.py."""
        query = one_query(query, self.bank.features.shape[1])
        k = clipped(self.k, self.bank)
        rows = self._tree.nearest(query, k, visit=self.visit).rows[0]
        return reduced(np.square(query - self.bank.features[rows].astype(np.float64)), "mean")
