"""Local normalisation (k-NNN paper, section 5.1): eigenvectors of the query's own neighbourhood.

Eq. 3 (see global_.py) with the v_j and e_j of the query's nearest good features. The paper takes
the same k neighbours for both; with k = 3 their covariance has a rank of 2, so the neighbours that
give the covariance are a number of their own here. With p = 2 the terms of a difference d add up to
d' (C + ridge)^-1 d, which needs no eigenvectors.

`auto` is Local with the least over 5 neighbours instead of the mean (docs/auto.md).
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad.neighbors import Bank, Neighbors
from nnad.operators.arguments import check_amount, check_choice, check_count, clipped
from nnad.operators.by_feature import check_squares, one_query, reduced, whitened
from nnad.operators.spaces import (
    directions,
    mean_variance,
    normalized_length,
    shrunk_sq_lengths,
)

Array = NDArray[np.float64]
_CHUNK_ELEMENTS = 2_000_000  # float64 numbers gathered at a time: 16 MB


class Local:
    """Distances to the k nearest rows, normalised by the spread of the query's neighbourhood.

    Args:
        k: neighbours that are compared with.
        n_local: neighbours whose covariance is taken, at least k.
        ridge: added to every eigenvalue, in units of vbar, the mean variance of a bank feature.
        p: 1 as in Eq. 3, or 2: squared terms.
        reduction: `mean` or `min` over the k rows.
    """

    def __init__(
        self,
        k: int = 3,
        *,
        n_local: int = 25,
        ridge: float = 1.0,
        p: int = 2,
        reduction: str = "mean",
    ) -> None:
        self.k = check_count("k", k)
        self.n_local = check_count("n_local", n_local, least=self.k)
        self.ridge = check_amount("ridge", ridge)
        self.p = check_choice("p", p, (1, 2))
        self.reduction = check_choice("reduction", reduction, ("mean", "min"))

    def fit(self, bank: Bank) -> Self:
        """Take a bank (N, D)."""
        self.bank = bank
        self._ridge = self.ridge * (mean_variance(bank.features) or 1.0)
        return self

    def score(self, queries: NDArray[Any], found: Neighbors | None = None) -> Array:
        """(Q, D) -> (Q,); `found` may hold neighbours of the queries in the bank."""
        count = clipped(self.n_local, self.bank)
        if found is None or found.rows.shape[1] < count:
            found = self.bank.nearest(queries, count)
        return self._normalized(queries, found.rows[:, :count])

    def left_out_scores(self) -> Array:
        """(N,) the score of each bank row against the others, exactly (but for vbar)."""
        count = clipped(self.n_local, self.bank, left_out=True)
        return self._normalized(self.bank.features, self.bank.others(count).rows)

    def by_feature(self, query: NDArray[Any]) -> Array:
        """(D,) -> (D,) what each feature adds to the score, see by_feature.py.

        Raises:
            InputError: p is 1.
        """
        check_squares(self.p)
        query = one_query(query, self.bank.features.shape[1])
        rows = self.bank.nearest(query, clipped(self.n_local, self.bank)).rows[0]
        around = self.bank.features[rows].astype(np.float64)  # (n_local, D)
        steps = whitened(query - around[: self.k], *directions(around), self._ridge)  # (k, D)
        return reduced(np.square(steps), self.reduction)

    def _normalized(self, queries: NDArray[Any], rows: NDArray[np.int64]) -> Array:
        scores = np.empty(len(rows))
        step = max(1, _CHUNK_ELEMENTS // (rows.shape[1] * self.bank.features.shape[1]))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            around = self.bank.features[rows[part]].astype(np.float64)  # (q, n_local, D)
            query = np.asarray(queries[part], dtype=np.float64)[:, None]  # (q, 1, D)
            lengths = self._lengths(query - around[:, : self.k], around)  # (q, k)
            scores[part] = lengths.min(axis=1) if self.reduction == "min" else lengths.mean(axis=1)
        return scores

    def _lengths(self, differences: Array, around: Array) -> Array:
        """(q, k, D), (q, n_local, D) -> (q, k)."""
        if self.p == 2 and self._ridge > 0 and around.shape[1] > 1:
            return shrunk_sq_lengths(around, differences, self._ridge) / self._ridge
        values, vectors = directions(around)
        return normalized_length(differences, values, vectors, self._ridge, self.p)
