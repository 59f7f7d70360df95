"""Hull: the distance to the local shape of the good features, which is k-NNN without the partition.

A neighbour b_n and its m nearest rows say in which directions good features differ around there.
C_n is their covariance (ddof 1); a step v = q - b_n counts little along those directions:

    s_n(q) = ridge vbar v' (C_n + ridge vbar I)^-1 v           vbar: mean variance of a bank feature
    score(q) = the least (or mean) s_n over the k nearest n

That is k-NNN's Eq. 1 with p = 2 and a ridge, on the scale of a squared distance. No frames are
stored, see `spaces.shrunk_sq_lengths`. As ridge -> infinity s_n becomes |v|^2, k-NN; with ridge = 0
it is the squared distance to the affine hull of the rows, T_m, k-NNN's limit without a ridge.
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad.neighbors import Bank, Neighbors
from nnad.operators.arguments import check_amount, check_choice, check_count, clipped
from nnad.operators.by_feature import one_query, outside, reduced, whitened
from nnad.operators.spaces import directions, mean_variance, shrunk_sq_lengths

Scores = NDArray[np.float64]
_CHUNK_ELEMENTS = 2_000_000  # float64 numbers gathered at a time: 16 MB
_SPAN = 1e-10  # eigenvalues below this part of the largest are rounding


class Hull:
    """Distance to the local shape around the nearest rows.

    Args:
        k: nearest rows whose surroundings are measured; 5.
        m: rows around each; 25, or all others if the bank has fewer.
        ridge: in units of vbar; 3. With 0 all of the hull is free, so m must be below D.
        reduction: `min` or `mean` over the k rows.

    T_10 is `Hull(3, m=10, ridge=0, reduction="mean")`.
    """

    def __init__(
        self, k: int = 5, *, m: int = 25, ridge: float = 3.0, reduction: str = "min"
    ) -> None:
        self.k = check_count("k", k)
        self.m = check_count("m", m)
        self.ridge = check_amount("ridge", ridge)
        self.reduction = check_choice("reduction", reduction, ("min", "mean"))

    def fit(self, bank: Bank) -> Self:
        """Take a bank (N, D)."""
        self.bank = bank
        self._vbar = mean_variance(bank.features)
        return self

    def score(self, queries: NDArray[Any], found: Neighbors | None = None) -> Scores:
        """(Q, D) -> (Q,); `found` may hold neighbours of the queries in the bank, k or more."""
        k = clipped(self.k, self.bank)
        if found is None:
            found = self.bank.nearest(queries, k)
        return self._scores(queries, found.rows[:, :k], None)

    def left_out_scores(self) -> Scores:
        """(N,) the score of each bank row as if it had never been there, exactly but for vbar."""
        k = clipped(self.k, self.bank, left_out=True)
        everyone = np.arange(len(self.bank))
        rows = self.bank.others(max(k, self.m + 1)).rows[:, :k]
        return self._scores(self.bank.features, rows, everyone)

    def by_feature(self, query: NDArray[Any]) -> Scores:
        """(D,) -> (D,) what each feature adds to the score, see by_feature.py."""
        query = one_query(query, self.bank.features.shape[1])
        rows = self.bank.nearest(query, clipped(self.k, self.bank)).rows[0]
        around = self.bank.neighborhoods(rows, self.m)  # (k, m)
        points = self.bank.features[np.column_stack([rows, around])].astype(np.float64)
        steps, (values, vectors) = query - points[:, 0], directions(points)
        ridge = self.ridge * self._vbar
        if ridge > 0:
            steps = np.sqrt(ridge) * whitened(steps, values, vectors, ridge)  # (k, D)
        else:
            steps = outside(steps, vectors)
        return reduced(np.square(steps), self.reduction)

    def _scores(
        self, queries: NDArray[Any], rows: NDArray[np.int64], absent: NDArray[np.int64] | None
    ) -> Scores:
        k = rows.shape[1]
        scores = np.empty(len(rows))
        step = max(1, _CHUNK_ELEMENTS // (k * (self.m + 1) * self.bank.features.shape[1]))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            each_query = np.repeat(np.asarray(queries[part], dtype=np.float64), k, axis=0)
            gone = None if absent is None else np.repeat(absent[part], k)
            each = self._from_hulls(each_query, rows[part].ravel(), gone).reshape(-1, k)  # (q, k)
            scores[part] = each.min(axis=1) if self.reduction == "min" else each.mean(axis=1)
        return scores

    def _from_hulls(
        self, queries: Scores, rows: NDArray[np.int64], absent: NDArray[np.int64] | None
    ) -> Scores:
        """s_n of queries (p, D) and one neighbour n of each, (p,)."""
        around = self.bank.neighborhoods(rows, self.m, absent=absent)  # (p, m)
        points = self.bank.features[np.column_stack([rows, around])].astype(np.float64)
        steps = queries - points[:, 0]  # (p, D), v
        ridge = self.ridge * self._vbar
        if ridge > 0:
            return shrunk_sq_lengths(points, steps[:, None], ridge)[:, 0]
        centred = points - points.mean(axis=1, keepdims=True)  # (p, m + 1, D), X
        values, vectors = np.linalg.eigh(centred @ np.swapaxes(centred, 1, 2))
        spans = values > _SPAN * values.max(axis=1, keepdims=True)
        inverse = np.divide(1, values, out=np.zeros_like(values), where=spans)
        along = np.einsum("qmd,qd->qm", centred, steps)  # (p, m + 1), X v
        turned = np.einsum("qmj,qm->qj", vectors, along)
        free = (np.square(turned) * inverse).sum(axis=1)
        return np.asarray(np.maximum(np.square(steps).sum(axis=1) - free, 0))
