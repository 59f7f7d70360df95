"""Local normalisation (k-NNN paper, section 5.1): eigenvectors of the query's own neighbourhood.

Eq. 3 (see global_.py) with the v_j and e_j of the query's nearest good features. The paper takes
the same k neighbours for both; with k = 3 their covariance has a rank of 2, so the neighbours that
give the covariance are a number of their own here.
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad.neighbors import Bank, Neighbors
from nnad.operators.arguments import check_amount, check_choice, check_count, clipped
from nnad.operators.spaces import directions, normalized_length

Scores = NDArray[np.float64]


class Local:
    """Distances to the k nearest rows, normalised by the spread of the query's neighbourhood.

    Args:
        k: neighbours that are compared with.
        n_local: neighbours whose covariance is taken, at least k.
        ridge: added to every eigenvalue, in units of vbar, the mean variance of a bank feature.
        p: 1 as in Eq. 3, or 2: squared terms.
    """

    def __init__(self, k: int = 3, *, n_local: int = 25, ridge: float = 1.0, p: int = 2) -> None:
        self.k = check_count("k", k)
        self.n_local = check_count("n_local", n_local, least=self.k)
        self.ridge = check_amount("ridge", ridge)
        self.p = check_choice("p", p, (1, 2))

    def fit(self, bank: Bank) -> Self:
        """Take a bank (N, D)."""
        self.bank = bank
        vbar = bank.features.var(axis=0, dtype=np.float64, ddof=min(1, len(bank) - 1)).mean()
        self._ridge = self.ridge * (float(vbar) or 1.0)
        return self

    def score(self, queries: NDArray[Any], found: Neighbors | None = None) -> Scores:
        """(Q, D) -> (Q,); `found` may hold neighbours of the queries in the bank."""
        count = clipped(self.n_local, self.bank)
        if found is None or found.rows.shape[1] < count:
            found = self.bank.nearest(queries, count)
        return self._normalized(queries, found.rows[:, :count])

    def left_out_scores(self) -> Scores:
        """(N,) the score of each bank row against the others, exactly (but for vbar)."""
        count = clipped(self.n_local, self.bank, left_out=True)
        everyone = np.arange(len(self.bank))
        found = self.bank.nearest(self.bank.features, count, exclude=everyone)
        return self._normalized(self.bank.features, found.rows)

    def _normalized(self, queries: NDArray[Any], rows: NDArray[np.int64]) -> Scores:
        scores = np.empty(len(rows))
        for i, row in enumerate(rows):
            around = self.bank.features[row].astype(np.float64)  # (n_local, D)
            values, vectors = directions(around)
            differences = np.asarray(queries[i], dtype=np.float64) - around[: self.k]  # (k, D)
            lengths = normalized_length(
                differences, values[None], vectors[None], self._ridge, self.p
            )
            scores[i] = lengths.mean()
        return scores
