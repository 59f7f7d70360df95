"""k-NN: the distance to the k nearest good features (DN2, Eq. 2).

d(y) = 1/k * sum over f in N_k(f_y) of |f - f_y|^2
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad.neighbors import Bank, Neighbors
from nnad.operators.arguments import check_choice, check_count, clipped
from nnad.operators.by_feature import one_query, reduced
from nnad.transforms import l2

Scores = NDArray[np.float64]


class KNN:
    """Mean or sum of the distances to the k nearest bank rows.

    Args:
        k: neighbours; 2 as in DN2. With fewer other rows in the bank, all of them are used.
        squared: squared Euclidean distances, as in DN2, or plain ones.
        reduction: `mean` or `sum` over the neighbours.
        metric: `euclidean`, or `cosine`: 1 - the cosine of the angle; `squared` then says nothing.
    """

    def __init__(
        self,
        k: int = 2,
        *,
        squared: bool = True,
        reduction: str = "mean",
        metric: str = "euclidean",
    ) -> None:
        self.k = check_count("k", k)
        self.squared = squared
        self.reduction = check_choice("reduction", reduction, ("mean", "sum"))
        self.metric = check_choice("metric", metric, ("euclidean", "cosine"))

    def fit(self, bank: Bank) -> Self:
        """Take a bank (N, D)."""
        self.bank = bank
        self._searched = Bank(l2(bank.features)) if self.metric == "cosine" else bank
        return self

    def score(self, queries: NDArray[Any], found: Neighbors | None = None) -> Scores:
        """(Q, D) -> (Q,); `found` may hold neighbours of the queries in the bank, k or more."""
        if self.metric == "cosine":
            found, queries = None, l2(queries)
        k = clipped(self.k, self.bank)
        if found is None:
            found = self._searched.nearest(queries, k)
        return self._reduced(found.sq_dists[:, :k])

    def left_out_scores(self) -> Scores:
        """(N,) the score of each bank row against the others, exactly."""
        k = clipped(self.k, self.bank, left_out=True)
        return self._reduced(self._searched.others(k).sq_dists)

    def by_feature(self, query: NDArray[Any]) -> Scores:
        """(D,) -> (D,) what each feature adds to the score, see by_feature.py.

        A plain distance |v| is split in proportion to the squares, v_d^2 / |v|.
        """
        query = one_query(query, self.bank.features.shape[1])
        query = l2(query) if self.metric == "cosine" else query
        rows = self._searched.nearest(query, clipped(self.k, self.bank)).rows[0]
        parts = np.square(query - self._searched.features[rows].astype(np.float64))  # (k, D)
        if self.metric == "cosine":
            parts /= 2
        elif not self.squared:
            lengths = np.sqrt(parts.sum(axis=1, keepdims=True))
            parts = np.divide(parts, lengths, out=np.zeros_like(parts), where=lengths > 0)
        return reduced(parts, self.reduction)

    def _reduced(self, sq_dists: Scores) -> Scores:
        if self.metric == "cosine":
            distances = sq_dists / 2
        else:
            distances = sq_dists if self.squared else np.sqrt(sq_dists)
        return np.asarray(
            distances.mean(axis=1) if self.reduction == "mean" else distances.sum(axis=1)
        )
