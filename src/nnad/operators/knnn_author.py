"""k-NNN as the paper's author published it: package `knnn` 0.1.0 with its defaults, to the number.

It differs from the paper's Eq. 2 and from `nnad.operators.knnn` in these points:

- neighbours are found by cosine distance, and each bank row is a member of its own neighbourhood;
- the score is a root mean square within each set, then the mean over neighbours, sets weighted by
  their size: mean_n sum_s |s| / D sqrt(mean_j ((q - b_n)_s . v_j / (sd_j + 1e-10))^2);
- a set counts as singular when its smallest eigenvalue is at most machine epsilon times |s| times
  its largest; then every sd_j is 1, so that the term is a plain Euclidean distance;
- features that are constant in the bank come last in the order, and a query that differs from the
  bank in one of them scores the largest float.

Everything is computed in float64 and nothing but the neighbourhoods is kept. A row of zeros has no
cosine: it is refused in the bank, and as a query it is equally far from every row (the lowest win).
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad.crossfit import cross_fitted
from nnad.errors import InputError
from nnad.neighbors import Bank, Neighbors, checked_features
from nnad.operators import frames, ordering
from nnad.operators.arguments import check_count
from nnad.operators.compiled_search import COMPILED
from nnad.operators.knnn import Explanation, checked_order
from nnad.transforms import l2

_PAIRS = 128  # query-neighbour pairs at a time: 8 MB of frames with D = 1,280
_EPSILON = 1e-10


class AuthorKNNN:
    """The author's k-NNN score, for comparison.

    Args:
        k: neighbours of a query; N if the bank holds fewer.
        k_prime: rows of a neighbourhood, itself among them; at least 2, N if the bank holds fewer.
        set_size: features in a set.

    After `fit`: `bank`; `order` (D,).

    Raises:
        InputError: an argument is out of range.
    """

    bank: Bank
    order: NDArray[np.int64]

    def __init__(self, k: int = 3, k_prime: int = 25, *, set_size: int = 5) -> None:
        self.k = check_count("k", k)
        self.k_prime = check_count("k_prime", k_prime, least=2)
        self.set_size = check_count("set_size", set_size)

    def fit(self, bank: Bank) -> Self:
        """Learn the sets.

        Raises:
            InputError: fewer than 2 rows, or a row of zeros, which has no cosine.
        """
        return self._set(bank, author_order(bank.features, self.set_size))

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays for `restore`: order (D,)."""
        return {"order": self.order}

    def restore(self, bank: Bank, state: dict[str, NDArray[Any]]) -> Self:
        """Become what an operator of the same settings was when it gave `state`.

        Raises:
            InputError: the state does not fit the bank.
        """
        return self._set(bank, checked_order(state, bank))

    def _set(self, bank: Bank, order: NDArray[np.int64]) -> Self:
        if len(bank) < 2:
            raise InputError(f"bank: {len(bank)} rows; the author's k-NNN needs at least 2")
        zero = ~bank.features.any(axis=1)
        if zero.any():
            raise InputError(f"bank: row {np.argmax(zero)} is all zeros; it has no cosine")
        self.bank, self.order = bank, order
        self._directions = Bank(l2(bank.features))
        self._constant = np.flatnonzero(np.ptp(bank.features, axis=0) == 0)
        self._layout = ordering.set_layout(order, self.set_size)  # (L, S)
        self._sizes = (self._layout >= 0).sum(axis=0)  # (S,)
        width = min(self.k_prime, len(bank))
        self._near = self._search(self._directions.features, width)  # (N, k'), itself among them
        return self

    def score(self, queries: NDArray[Any], found: Neighbors | None = None) -> NDArray[np.float64]:  # noqa: ARG002 (Euclidean neighbours are of no use here)
        """(Q, D) -> (Q,), higher is more anomalous."""
        queries = checked_features(queries, "queries", dim=self.bank.features.shape[1])
        rows = self._search(l2(queries), min(self.k, len(self.bank)))
        scores = np.empty(len(queries))
        step = max(1, _PAIRS // rows.shape[1])
        for start in range(0, len(queries), step):
            block = slice(start, start + step)
            parts = self._parts(queries[block], rows[block], self._near[rows[block]])
            scores[block] = parts.sum(axis=2).mean(axis=1)
        scores[self._changed(queries)] = np.finfo(np.float64).max
        return scores

    def left_out_scores(self) -> NDArray[np.float64]:
        """(N,) scores by a bank that the row was not in, from five folds.

        The order of the features and their constancy are learnt from all rows at once.

        Raises:
            InputError: fewer than 4 rows.
        """
        if len(self.bank) < 4:
            raise InputError(f"bank: {len(self.bank)} rows; to leave some out takes at least 4")

        def score(bank: NDArray[Any], held_out: NDArray[Any]) -> NDArray[np.float64]:
            author = AuthorKNNN(self.k, self.k_prime, set_size=self.set_size)
            return author.fit(Bank(bank)).score(held_out)

        return cross_fitted(self.bank.features, score)

    def explain(self, query: NDArray[Any]) -> Explanation:
        """(D,) -> what each neighbour and each set of features adds to the score.

        A changed constant feature takes the whole score, at the first neighbour and its set.
        """
        queries = checked_features(
            np.asarray(query)[None], "queries", dim=self.bank.features.shape[1]
        )
        rows = self._search(l2(queries), min(self.k, len(self.bank)))
        parts = self._parts(queries, rows, self._near[rows])[0] / rows.shape[1]
        score = float(self.score(queries)[0])
        if self._changed(queries)[0]:
            constant = self._constant[
                queries[0, self._constant] != self.bank.features[0, self._constant]
            ]
            parts[:] = 0
            parts[0, np.flatnonzero((self._layout == constant[0]).any(axis=0))[0]] = score
        sets = tuple(column[column >= 0] for column in self._layout.T)
        return Explanation(score, rows[0], sets, parts)

    def by_feature(self, query: NDArray[Any]) -> NDArray[np.float64]:  # noqa: ARG002
        """Not of this operator: its terms are roots over whole sets, see `explain`."""
        raise InputError(
            "knnn-author: its terms belong to whole sets of features, not to single ones"
        )

    def _search(self, directions: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Rows of the k nearest by cosine, which is Euclidean among vectors of length 1."""
        return self._directions.nearest(directions, k, kernels=COMPILED).rows

    def _changed(self, queries: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(Q, D) -> (Q,): whether a feature differs that is constant in the bank."""
        constant = self.bank.features[0, self._constant]
        return np.asarray((queries[:, self._constant] != constant).any(axis=1))

    def _parts(
        self, queries: NDArray[np.float32], rows: NDArray[np.int64], members: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """What each set of each neighbour adds before the mean over neighbours.

        Args:
            queries: (Q, D).
            rows: (Q, k) neighbours.
            members: (Q, k, k') their neighbourhoods.

        Returns:
            (Q, k, S).
        """
        size, sets = self._layout.shape
        found = np.empty((rows.size, size * (1 + size), sets))
        members = members.reshape(rows.size, -1)
        frames.build(frames.eigen_frames, self.bank.features, members, self._layout, 1.0, found)
        sd = found[:, :size]  # (P, L, S), ascending; 0 beyond a short last set
        vectors = found[:, size:].reshape(-1, size, size, sets)  # (P, j, i, S)

        diff = np.repeat(queries.astype(np.float64), rows.shape[1], axis=0)  # (P, D)
        diff -= self.bank.features[rows.ravel()]
        diff = np.where(self._layout >= 0, diff[:, self._layout], 0)  # (P, L, S)
        projection = np.einsum("pjis,pis->pjs", vectors, diff)
        variance_ratio = np.finfo(np.float64).eps * self._sizes  # (S,)
        singular = np.square(sd[:, 0]) <= variance_ratio * np.square(sd.max(axis=1))  # (P, S)
        scale = np.where(singular[:, None], 1.0, sd + _EPSILON)
        rms = np.sqrt(np.square(projection / scale).sum(axis=1) / self._sizes)  # (P, S)
        parts = rms * self._sizes / len(self.order)
        return np.asarray(parts.reshape(*rows.shape, sets))


def author_order(features: NDArray[np.float32], set_size: int) -> NDArray[np.int64]:
    """The author's re-ordering, (N, D) -> (D,): `ordering.greedy_order` but for ties and constants.

    Constant features are put last. Each pick changes places with the entry it displaces, and ties
    go to whatever then stands first.
    """
    centred = features - features.mean(axis=0, dtype=np.float64)
    lengths = np.sqrt(np.square(centred).sum(axis=0))
    constant = np.ptp(features, axis=0) == 0
    centred /= np.where(constant, 1.0, lengths)
    abs_corr = np.abs(np.clip(centred.T @ centred, -1, 1))  # (D, D)

    order = np.flatnonzero(~constant)
    for place in range(1, len(order)):
        in_set = place % set_size  # entries that the current set has
        previous = order[place - min(2, in_set or place) : place]
        closeness = abs_corr[previous][:, order[place:]].mean(axis=0)
        pick = place + int(np.argmax(closeness) if in_set else np.argmin(closeness))
        order[place], order[pick] = order[pick], order[place]
    return np.concatenate([order, np.flatnonzero(constant)])
