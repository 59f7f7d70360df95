"""k-means (DN2, section 5.1): the bank is replaced by C centres, so that a search costs C, not N.

The score is the sum of the squared distances to the 2 nearest centres (to the one, with C = 1).
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad.crossfit import cross_fitted
from nnad.neighbors import Bank, Neighbors
from nnad.operators.arguments import check_count
from nnad.operators.by_feature import one_query, reduced

Scores = NDArray[np.float64]


class KMeans:
    """Sum of the squared distances to the 2 nearest of C centres of the bank.

    Args:
        n_centers: C; with fewer rows in the bank, every row is a centre.
        seed: of the k-means starts.
    """

    def __init__(self, n_centers: int = 10, *, seed: int = 0) -> None:
        self.n_centers = check_count("n_centers", n_centers)
        self.seed = check_count("seed", seed, least=0)

    def fit(self, bank: Bank) -> Self:
        """Take a bank (N, D) and find its centres (C, D)."""
        self.bank = bank
        self.centers = self._centers(bank.features)
        return self

    def state(self) -> dict[str, NDArray[Any]]:
        """The centres."""
        return {"centers": self.centers}

    def restore(self, bank: Bank, state: dict[str, NDArray[Any]]) -> Self:
        """Take a bank and the centres that were found in it."""
        self.bank, self.centers = bank, state["centers"]
        return self

    def score(self, queries: NDArray[Any], found: Neighbors | None = None) -> Scores:  # noqa: ARG002
        """(Q, D) -> (Q,)."""
        return _two_nearest(queries, self.centers)

    def left_out_scores(self) -> Scores:
        """(N,) scores against centres that the row had no part in, from five folds of the bank."""
        return cross_fitted(
            self.bank.features,
            lambda bank, held_out: _two_nearest(held_out, self._centers(bank)),
            seed=self.seed,
        )

    def by_feature(self, query: NDArray[Any]) -> Scores:
        """(D,) -> (D,) what each feature adds to the score, see by_feature.py."""
        query = one_query(query, self.centers.shape[1])
        rows = Bank(self.centers).nearest(query, min(2, len(self.centers))).rows[0]
        return reduced(np.square(query - self.centers[rows].astype(np.float64)), "sum")

    def _centers(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        from sklearn.cluster import KMeans as SklearnKMeans
        from threadpoolctl import threadpool_limits

        distinct = len(np.unique(features, axis=0))
        count = min(self.n_centers, distinct)
        if count == distinct:
            return np.unique(features, axis=0)
        with threadpool_limits(1):  # few rows; and one thread adds in one order
            fitted = SklearnKMeans(count, n_init=4, random_state=self.seed).fit(features)
        return np.ascontiguousarray(fitted.cluster_centers_, dtype=np.float32)


def _two_nearest(queries: NDArray[Any], centers: NDArray[np.float32]) -> Scores:
    found = Bank(centers).nearest(queries, min(2, len(centers)))
    return np.asarray(found.sq_dists.sum(axis=1))
