"""T_m: the distance to the flat that a neighbour and its own neighbours span.

It is what k-NNN in full dimension tends to (times the ridge) when the ridge goes to 0: moves along
the directions in which the neighbours of a neighbour differ cost nothing, all others count.
There are no frames to store and no ridge to choose.

    H_n = the affine hull of b_n and its m nearest neighbours
    T(q) = mean over the k nearest n of the squared distance from q to H_n
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad.neighbors import Bank, Neighbors
from nnad.operators.arguments import check_count, clipped
from nnad.operators.spaces import directions

Scores = NDArray[np.float64]
_CHUNK = 64  # (queries, m + 1, D) float64 at a time: 7 MB at m = 10, D = 1,280


class AffineHull:
    """Mean squared distance to the affine hulls around the k nearest rows.

    Args:
        k: nearest rows whose hulls are measured.
        m: neighbours of each that span the hull with it; must be well below D.
    """

    def __init__(self, k: int = 3, *, m: int = 10) -> None:
        self.k = check_count("k", k)
        self.m = check_count("m", m)

    def fit(self, bank: Bank) -> Self:
        """Take a bank (N, D)."""
        self.bank = bank
        return self

    def score(self, queries: NDArray[Any], found: Neighbors | None = None) -> Scores:
        """(Q, D) -> (Q,); `found` may hold neighbours of the queries in the bank, k or more."""
        k = clipped(self.k, self.bank)
        if found is None:
            found = self.bank.nearest(queries, k)
        return self._distances(queries, found.rows[:, :k], None)

    def left_out_scores(self) -> Scores:
        """(N,) the score of each bank row against hulls that it has no part in, exactly."""
        k = clipped(self.k, self.bank, left_out=True)
        everyone = np.arange(len(self.bank))
        found = self.bank.nearest(self.bank.features, k, exclude=everyone)
        return self._distances(self.bank.features, found.rows, everyone)

    def _distances(
        self, queries: NDArray[Any], rows: NDArray[np.int64], absent: NDArray[np.int64] | None
    ) -> Scores:
        scores = np.zeros(len(rows))
        for start in range(0, len(rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            chunk = np.asarray(queries[part], dtype=np.float64)
            for column in rows[part].T:  # one neighbour of every query in the chunk
                gone = None if absent is None else absent[part]
                around = self.bank.neighborhoods(column, self.m, absent=gone)  # (q, m)
                members = np.column_stack([column, around])
                points = self.bank.features[members].astype(np.float64)  # (q, m + 1, D)
                _, vectors = directions(points)  # (q, r, D), orthonormal or zero
                difference = chunk - points.mean(axis=1)  # (q, D)
                along = np.einsum("qrd,qd->qr", vectors, difference)
                left = np.square(difference).sum(axis=1) - np.square(along).sum(axis=1)
                scores[part] += np.maximum(left, 0)
        return np.asarray(scores / rows.shape[1])
