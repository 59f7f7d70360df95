"""Global normalisation (k-NNN paper, section 5.1): one set of eigenvectors for the whole bank.

    AS(f) = sum_i sum_j |(f - f_i) . v_j| / sqrt(e_j)                                   (Eq. 3)

over the k nearest f_i and the eigenvectors v_j and eigenvalues e_j of all good features.
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad.crossfit import cross_fitted
from nnad.neighbors import Bank, Neighbors
from nnad.operators.arguments import check_amount, check_choice, check_count, clipped
from nnad.operators.by_feature import check_squares, one_query, reduced, whitened
from nnad.operators.spaces import directions, normalized_length

Scores = NDArray[np.float64]


class Global:
    """Distances to the k nearest rows, normalised by the spread of the whole bank.

    Args:
        k: neighbours, found by Euclidean distance.
        ridge: added to every eigenvalue, in units of vbar, the mean variance of a bank feature.
        p: 1 as in Eq. 3, or 2: squared terms, which make the Mahalanobis distance.

    The score is the mean over neighbours, which ranks as the sum does.
    """

    def __init__(self, k: int = 3, *, ridge: float = 1.0, p: int = 2) -> None:
        self.k = check_count("k", k)
        self.ridge = check_amount("ridge", ridge)
        self.p = check_choice("p", p, (1, 2))

    def fit(self, bank: Bank) -> Self:
        """Take a bank (N, D) and find its eigenvectors."""
        self.bank = bank
        points = bank.features.astype(np.float64)
        self._values, self._vectors = directions(points)  # (r,), (r, D)
        vbar = self._values.sum() / points.shape[1]
        self._ridge = self.ridge * (vbar or 1.0)
        return self

    def score(self, queries: NDArray[Any], found: Neighbors | None = None) -> Scores:
        """(Q, D) -> (Q,); `found` may hold neighbours of the queries in the bank, k or more."""
        k = clipped(self.k, self.bank)
        if found is None:
            found = self.bank.nearest(queries, k)
        return self._normalized(queries, found.rows[:, :k])

    def left_out_scores(self) -> Scores:
        """(N,) scores by eigenvectors that the row had no part in, from five folds of the bank.

        With fewer rows than features the eigenvectors of all rows would know each of them.
        """
        return cross_fitted(
            self.bank.features,
            lambda bank, held_out: (
                Global(self.k, ridge=self.ridge, p=self.p).fit(Bank(bank)).score(held_out)
            ),
        )

    def by_feature(self, query: NDArray[Any]) -> Scores:
        """(D,) -> (D,) what each feature adds to the score, see by_feature.py.

        Raises:
            InputError: p is 1.
        """
        check_squares(self.p)
        query = one_query(query, self.bank.features.shape[1])
        rows = self.bank.nearest(query, clipped(self.k, self.bank)).rows[0]
        differences = query - self.bank.features[rows].astype(np.float64)  # (k, D)
        steps = whitened(differences, self._values, self._vectors, self._ridge)
        return reduced(np.square(steps), "mean")

    def _normalized(self, queries: NDArray[Any], rows: NDArray[np.int64]) -> Scores:
        scores = np.zeros(len(rows))
        queries = np.asarray(queries, dtype=np.float64)
        for column in rows.T:  # one neighbour of all queries: (Q, D) differences
            differences = queries - self.bank.features[column]
            scores += normalized_length(
                differences, self._values, self._vectors, self._ridge, self.p
            )
        return np.asarray(scores / rows.shape[1])
