"""k-NNN: nearest neighbours of neighbours (Nizan and Tal, arXiv 2305.17695), Eq. 1 and 2.

    AS(q) = sum over the k neighbours b_n of q, sets s and eigenvectors j of
            |(q_s - b_n,s) . v_nj,s| / sqrt(e_nj,s)                                           (2)

where v, e belong to the covariance of the features of set s over the k' neighbours of b_n: a step
away from the good images counts for more in a direction in which they hardly vary. Eq. 1 is the
same with one set. Here each term is taken to the power p, a ridge is added to each eigenvalue, and
the mean is taken instead of the sum:

    score(q) = mean of (|(q_s - b_n,s) . v|^2 / (e + ridge * vbar))^(p/2)

vbar is the mean variance of a bank feature. With p = 2 and all eigenvectors the sum over j equals
d' (covariance + ridge * vbar)^-1 d, so that an inverse Cholesky factor takes their place. As
ridge -> infinity, p = 2 becomes k-NN: ridge * vbar * score -> mean squared distance / D.
"""

import math
import threading
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad.errors import InputError
from nnad.neighbors import Bank, Neighbors, checked_features
from nnad.operators import frames, ordering
from nnad.operators.arguments import check_choice, check_count
from nnad.operators.by_feature import (
    check_squares,
    one_query,
    whitened_by_factor,
    whitened_by_vectors,
)
from nnad.operators.compiled import in_threads
from nnad.operators.compiled_search import COMPILED
from nnad.operators.frame_cache import FrameCache
from nnad.operators.pair_sums import pair_parts

_BLOCK_BYTES = 1_000_000  # frames made or copied at a time for queries
_LOCK = threading.RLock()  # what operators remember is filled by one thread at a time


@dataclass(frozen=True)
class Explanation:
    """Where the score of one query comes from."""

    score: float
    rows: NDArray[np.int64]  # (k,) bank rows of the neighbours
    sets: tuple[NDArray[np.int64], ...]  # S arrays of feature indices
    parts: NDArray[np.float64]  # (k, S) what each neighbour and set adds to the score

    @property
    def by_neighbor(self) -> NDArray[np.float64]:
        """(k,) what each neighbour adds to the score."""
        return np.asarray(self.parts.sum(axis=1))

    @property
    def by_set(self) -> NDArray[np.float64]:
        """(S,) what each set of features adds to the score."""
        return np.asarray(self.parts.sum(axis=0))


class KNNN:
    """The k-NNN score of queries against a bank of transformed features.

    Args:
        k: neighbours of a query; all N rows if the bank holds fewer.
        k_prime: neighbours of a neighbour, itself excluded by row; at least 2, and N - 1 if the
            bank holds fewer. `k_used` and `k_prime_used` tell what was possible.
        set_size: L, features in a set; a short last set is kept. L >= D makes it Eq. 1.
        ridge: what is added to each eigenvalue, in units of vbar; above 0.
        p: power of a term, 1 as in the paper or 2.
        reorder: put correlated features into one set, as the paper does; or keep their order.
        n_vectors: eigenvectors used in a set, those with the SMALLEST eigenvalues, which matter
            most (paper, Section 3); None for all L.
        storage: `eager` computes all N frames in `fit`; `lazy` those of neighbours that queries
            really have, of which the most recently used are kept.
        precision: `float32` or `float16` frames. The storage does not change the scores.
        cache_mb: memory for lazy frames.
        reduction: `mean` over neighbours and eigenvectors, or `sum` as in Eq. 2.

    After `fit`: `bank`; `order` (D,), features as cut into sets; `vbar`; `k_used`; `k_prime_used`.

    Raises:
        InputError: an argument is out of range.
    """

    kernels = COMPILED
    bank: Bank
    order: NDArray[np.int64]
    vbar: float
    k_used: int
    k_prime_used: int

    def __init__(
        self,
        k: int = 3,
        k_prime: int = 25,
        *,
        set_size: int = 5,
        ridge: float = 1.0,
        p: int = 2,
        reorder: bool = True,
        n_vectors: int | None = None,
        storage: str = "lazy",
        precision: str = "float32",
        cache_mb: float = 16,
        reduction: str = "mean",
    ) -> None:
        self.k = check_count("k", k)
        self.k_prime = check_count("k_prime", k_prime, least=2)
        self.set_size = check_count("set_size", set_size)
        if n_vectors is not None:
            check_count("n_vectors", n_vectors)
            if n_vectors > set_size:
                raise InputError(f"n_vectors={n_vectors}: a set has {set_size}")
        _check_ridges("ridge", [ridge])
        self.p = check_choice("p", p, (1, 2))
        self.storage = check_choice("storage", storage, ("eager", "lazy"))
        self.precision = check_choice("precision", precision, ("float32", "float16"))
        self.reduction = check_choice("reduction", reduction, ("mean", "sum"))
        if not 0 < cache_mb < np.inf:
            raise InputError(f"cache_mb={cache_mb!r}; expected a number above 0")
        self.ridge, self.cache_mb = float(ridge), float(cache_mb)
        self.reorder, self.n_vectors = bool(reorder), n_vectors

    def fit(self, bank: Bank) -> Self:
        """Learn the sets, and with `eager` storage every frame.

        Raises:
            InputError: fewer than 3 rows, so that a row has no 2 neighbours to vary.
        """
        _check_rows(bank)
        mean, scatter = ordering.moments(bank.features)
        vbar = float(scatter.mean()) / (len(bank) - 1)
        order = np.arange(len(mean))
        if self.reorder:
            corr = ordering.abs_correlations(bank.features, mean, scatter)
            order = ordering.greedy_order(corr, self.set_size)
            del corr
        return self._set(bank, order, vbar)

    def state(self, *, with_frames: bool = False) -> dict[str, NDArray[Any]]:
        """Arrays for `restore`: order (D,), vbar (), and if asked for the eager frames.

        Without frames, an eager operator computes them again when it is restored.
        """
        state: dict[str, NDArray[Any]] = {"order": self.order, "vbar": np.array([self.vbar])}
        if with_frames and self.storage == "eager":
            state["frames"] = self._frames
        return state

    def restore(self, bank: Bank, state: dict[str, NDArray[Any]]) -> Self:
        """Become what an operator of the same settings was when it gave `state`.

        Raises:
            InputError: the state does not fit the bank or the settings.
        """
        _check_rows(bank)
        order = checked_order(state, bank)
        if np.shape(state.get("vbar", 0)) != (1,):
            raise InputError("state: no vbar")
        return self._set(bank, order, float(state["vbar"][0]), state.get("frames"))

    def _set(
        self,
        bank: Bank,
        order: NDArray[np.int64],
        vbar: float,
        stored: NDArray[Any] | None = None,
    ) -> Self:
        self.bank, self.order = bank, order
        self.vbar = vbar if vbar > 0 else 1.0  # equal rows: every direction is as good
        self.k_used = min(self.k, len(bank))
        self.k_prime_used = min(self.k_prime, len(bank) - 1)
        self._layout = ordering.set_layout(order, self.set_size)  # (L, S)
        size, sets = self._layout.shape
        self._by_ridge = self.p == 2 and self.n_vectors in (None, size)
        n = self.n_vectors or size
        entries = size * (size + 1) // 2 if self._by_ridge else n * (1 + size)
        self._frame_shape: tuple[int, int] = (entries, int(sets))
        last = len(order) - (sets - 1) * size  # features in the last set
        self._n_terms = (sets - 1) * n + min(n, last)

        if self.storage == "lazy":
            self._cache = self._empty_cache()
            return self
        if stored is None:
            stored = self._build(self._around(np.arange(len(bank)), self.k_prime_used))
        if stored.shape != (len(bank), *self._frame_shape) or stored.dtype != self.precision:
            raise InputError(
                f"state: frames of shape {stored.shape}, {stored.dtype}; expected "
                f"{(len(bank), *self._frame_shape)}, {self.precision}"
            )
        self._frames = stored
        return self

    def score(self, queries: NDArray[Any], found: Neighbors | None = None) -> NDArray[np.float64]:
        """(Q, D) -> (Q,); `found` may hold neighbours of the queries in the bank, k or more."""
        return self.score_ridges(queries, [self.ridge], found)[:, 0]

    def score_ridges(
        self, queries: NDArray[Any], ridges: Any, found: Neighbors | None = None
    ) -> NDArray[np.float64]:
        """(Q, D) -> (Q, R): the scores under R ridges.

        For p = 2 with all eigenvectors frames are made for one ridge: those of other ridges than
        the operator's own are made anew, for the neighbours that the queries have.

        Raises:
            InputError: the queries' shape does not fit, or a ridge is not above 0.
        """
        ridges = _check_ridges("ridges", ridges)
        queries = self._checked(queries)
        if found is None:
            rows = self._search(queries, self.k_used)
        else:
            rows = np.ascontiguousarray(found.rows[:, : self.k_used])
        scores = np.empty((len(queries), len(ridges)))
        step = min(self._block_frames(len(ridges)), self._cache_frames()) // self.k_used
        if self.storage == "eager" and self._remembered(ridges):
            step = len(queries)
        for block in _blocks(len(queries), max(1, step)):
            stored, slots = self._frames_of(rows[block], ridges)
            totals, _ = self._totals(queries[block], rows[block], slots, stored, ridges)
            scores[block] = self._reduced(totals)
        return scores

    def left_out_scores(self) -> NDArray[np.float64]:
        """(N,) scores of the bank's rows, each as if it had never been in the bank.

        A row is neither its own neighbour nor a member of its neighbours' neighbourhoods, where
        the next neighbour takes its place. Only `order` and `vbar` stay those of the full bank.
        """
        return self.left_out_ridges([self.ridge])[:, 0]

    def left_out_ridges(self, ridges: Any) -> NDArray[np.float64]:
        """(N, R) `left_out_scores` under R ridges.

        Raises:
            InputError: fewer than 4 rows, so that 3 are not left; or a ridge is not above 0.
        """
        ridges = _check_ridges("ridges", ridges)
        n_rows = len(self.bank)
        if n_rows < 4:
            raise InputError(f"bank: {n_rows} rows; to leave one out takes at least 4")
        scores = np.empty((n_rows, len(ridges)))
        k, k_prime = min(self.k, n_rows - 1), min(self.k_prime, n_rows - 2)
        for block in _blocks(n_rows, max(1, self._block_frames(len(ridges)) // k)):
            left_out = np.arange(n_rows)[block]
            rows = self._around(left_out, max(k, k_prime))[:, :k]  # (q, k)
            members = self._around(rows.ravel(), k_prime, absent=np.repeat(left_out, k))
            found = self._build(members, ridges)  # (q k, ., S)
            slots = np.arange(rows.size).reshape(rows.shape)
            totals, _ = self._totals(self.bank.features[block], rows, slots, found, ridges)
            scores[block] = self._reduced(totals)
        return scores

    def explain(self, query: NDArray[Any]) -> Explanation:
        """(D,) -> what each neighbour and each set of features adds to the score.

        Raises:
            InputError: the query's shape does not fit.
        """
        queries = self._checked(np.asarray(query)[None])
        rows = self._search(queries, self.k_used)
        ridges = np.array([self.ridge])
        found, slots = self._frames_of(rows, ridges)
        totals, parts = self._totals(queries, rows, slots, found, ridges, by_set=True)
        score = float(self._reduced(totals)[0, 0])
        sets = tuple(column[column >= 0] for column in self._layout.T)
        return Explanation(score, rows[0], sets, parts[0] * self._weight(self.k_used))

    def by_feature(self, query: NDArray[Any]) -> NDArray[np.float64]:
        """(D,) -> (D,) what each feature adds to the score, see by_feature.py.

        Raises:
            InputError: p is 1, or the query's shape does not fit.
        """
        check_squares(self.p)
        query = one_query(query, self.bank.features.shape[1])
        rows = self._search(query, self.k_used)
        found, slots = self._frames_of(rows, np.array([self.ridge]))
        steps = query.astype(np.float64) - self.bank.features[rows[0]]  # (k, D)
        steps = np.where(self._layout >= 0, steps[:, self._layout], 0)  # (k, L, S)
        whiten = whitened_by_factor if self._by_ridge else whitened_by_vectors
        parts = np.square(whiten(steps, found[slots[0]], self.ridge)).sum(axis=0)  # (L, S)
        shares = np.empty(len(self.order))
        shares[self._layout[self._layout >= 0]] = parts[self._layout >= 0]
        return shares * self._weight(self.k_used)

    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: NDArray[np.intp] | None = None,
    ) -> NDArray[np.int64]:
        return self.bank.nearest(queries, k, exclude=exclude, kernels=COMPILED).rows

    def _checked(self, queries: NDArray[Any]) -> NDArray[np.float32]:
        return checked_features(queries, "queries", dim=self.bank.features.shape[1])

    def _totals(
        self,
        queries: NDArray[np.float32],
        rows: NDArray[np.int64],
        slots: NDArray[np.int64],
        found: NDArray[Any],
        ridges: NDArray[np.float64],
        *,
        by_set: bool = False,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums over sets and eigenvectors (Q, k, R), and if asked for their parts (Q, k, S)."""
        totals = np.empty((*rows.shape, len(ridges)))
        parts = np.empty((len(rows) if by_set else 0, rows.shape[1], self._layout.shape[1]))
        halves = np.empty((0, *found.shape[1:]), dtype=np.uint16)
        if found.dtype == np.float16:
            halves, found = found.view(np.uint16), np.empty(halves.shape, dtype=np.float32)
        in_threads(
            pair_parts,
            len(queries),
            *(queries, self.bank.features, rows, slots, found, halves, self._layout),
            *(ridges, 0 if self._by_ridge else self.p, parts, totals),
        )
        return totals, parts

    def _reduced(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """(Q, k, R) -> (Q, R)."""
        return np.asarray(totals.sum(axis=1) * self._weight(totals.shape[1]))

    def _weight(self, k: int) -> float:
        unit: float = self.vbar ** (-self.p / 2)  # frames are in units of vbar, differences not
        return unit if self.reduction == "sum" else unit / (k * self._n_terms)

    def _around(
        self, rows: NDArray[np.int64], count: int, absent: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """(M,) bank rows -> (M, count) their nearest other rows."""
        return self.bank.neighborhoods(rows, count, absent=absent, kernels=COMPILED)

    def _build(
        self, members: NDArray[np.int64], ridges: NDArray[np.float64] | None = None
    ) -> NDArray[Any]:
        """(M, k') neighbourhoods -> (M, ., S) frames in the chosen precision.

        If frames depend on the ridge, those of R ridges (by default of its own) come in a row.
        """
        entries, sets = self._frame_shape
        kernel: Any = frames.eigen_frames
        unit: Any = self.vbar
        if self._by_ridge:
            units = self.vbar * (np.array([self.ridge]) if ridges is None else ridges)
            kernel, unit, entries = frames.ridge_frames, units, entries * len(units)
        built = np.empty((len(members), entries, sets), dtype=self.precision)
        frames.build(kernel, self.bank.features, members, self._layout, unit, built)
        return built

    def _remembered(self, ridges: NDArray[np.float64]) -> bool:
        """Whether stored or cached frames serve these ridges."""
        return not self._by_ridge or ridges.tolist() == [self.ridge]

    def _frames_of(
        self, rows: NDArray[np.int64], ridges: NDArray[np.float64]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """(Q, k) bank rows -> frames (M, ., S) and which of them (Q, k) each row has."""
        if self.storage == "eager" and self._remembered(ridges):
            return self._frames, rows
        touched, slots = np.unique(rows, return_inverse=True)
        slots = slots.reshape(rows.shape)
        if not self._remembered(ridges):
            return self._build(self._around(touched, self.k_prime_used), ridges), slots
        with _LOCK:
            places, missing = self._cache.places(touched)
            self._cache.frames[places[missing]] = self._build(
                self._around(touched[missing], self.k_prime_used)
            )
            return self._cache.frames[places], slots

    def _empty_cache(self) -> "FrameCache":
        return FrameCache(len(self.bank), self._frame_shape, self.precision, self._cache_frames())

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if hasattr(self, "bank") and self.storage == "lazy":
            self._cache = self._empty_cache()

    def _block_frames(self, n_ridges: int) -> int:
        return max(1, _BLOCK_BYTES // (4 * n_ridges * math.prod(self._frame_shape)))

    def _cache_frames(self) -> int:
        """Frames in the lazy cache; at least those of one query."""
        entries, sets = self._frame_shape
        affordable = int(self.cache_mb * 1e6) // (
            np.dtype(self.precision).itemsize * entries * sets
        )
        return int(min(len(self.bank), max(self.k_used, affordable)))


def checked_order(state: dict[str, NDArray[Any]], bank: Bank) -> NDArray[np.int64]:
    """The stored order (D,), or an `InputError` if it is not a permutation of the features."""
    dim = bank.features.shape[1]
    order = np.asarray(state.get("order"))
    if order.shape != (dim,) or not np.array_equal(np.sort(order), np.arange(dim)):
        raise InputError(f"state: order of shape {order.shape} is not one of {dim} features")
    return np.asarray(order, dtype=np.int64)


def _check_ridges(name: str, ridges: Any) -> NDArray[np.float64]:
    values = np.asarray(ridges, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values > 0)).all():
        raise InputError(f"{name}={ridges!r}; expected numbers above 0")
    return values


def _check_rows(bank: Bank) -> None:
    if len(bank) < 3:
        raise InputError(f"bank: {len(bank)} rows; k-NNN needs at least 3")


def _blocks(count: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, count)) for i in range(0, count, step)]
