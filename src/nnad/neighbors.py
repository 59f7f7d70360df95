"""Exact nearest neighbours: the one search that everything in nnad is built on.

A matrix product in float32 ranks the bank by |x|^2 - 2 q.x, which is fast and slightly wrong (two
equal vectors come out at 0.017 instead of 0). So it only proposes: the best k + 8 rows are measured
again as sum((q - x)^2) in float64, and a bound on the product's rounding error tells whether a row
outside them could belong among the k nearest. Where it could, the query is searched again among all
rows that the bound admits. Many queries of a large bank are proposed by integers first, which is
faster still (codes.py); those for which integers prove nothing go the way above. The result equals
a float64 brute force, ties going to the lower row, and does not depend on the way it was found, how
queries are batched or the bank is cut.
"""

import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad import graph
from nnad.codes import LARGEST_DIM, Codes
from nnad.cores import in_parallel, usable_cores
from nnad.errors import InputError
from nnad.graph import Neighbors as Neighbors
from nnad.search_steps import NUMPY, Kernels, exclude_rows, in_order, proposed

_SPARE = 8  # candidates beyond k that are measured exactly
_CODING_QUERIES = 64  # queries in one call that are worth making codes for
_CODED_QUERIES = 8  # queries in one call for which codes, once made, are the faster way
_QUERY_ROWS = 256  # queries a product
_BANK_ROWS = 65_536  # bank rows a product: 64 MB of float32
_CODING = threading.Lock()  # two threads need not make the same codes
_LARGEST = 1e17  # length of a vector; beyond it float32 products could overflow
_NORM_ROWS = 256  # bank rows squared in float64, or checked, at a time


class Bank:
    """Feature vectors (N, D) float32 that can be searched.

    Args:
        features: (N, D) with N >= 1, finite; taken without a copy when it is float32 and
            C-contiguous, so that a memory-mapped file is searched where it lies. The first search
            of 64 queries or more in a large bank makes codes of it, a quarter of its size.
        coded: False searches without codes, which is faster for short vectors at about equal
            distances, such as patches: integers leave too many rows in doubt.

    Raises:
        InputError: another shape, or a value that is not finite (the row is named).
    """

    def __init__(self, features: NDArray[Any], *, coded: bool = True) -> None:
        self.features = checked_features(features, "bank")
        if not len(self.features):
            raise InputError("bank: no rows")
        blocks = range(0, len(self.features), _NORM_ROWS)
        self._sq_norms = np.concatenate(
            [np.square(self.features[i : i + _NORM_ROWS], dtype=np.float64).sum(1) for i in blocks]
        )  # (N,)
        self.graph = graph.unknown(len(self.features), 0)
        self._codes: Codes | None = None
        self._coding_failed = not coded

    def __len__(self) -> int:
        return len(self.features)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_codes": None}  # they are made anew

    def nearest(
        self,
        queries: NDArray[Any],
        k: int,
        *,
        exclude: NDArray[np.intp] | None = None,
        kernels: Kernels = NUMPY,
    ) -> Neighbors:
        """The k nearest rows of each query.

        Args:
            queries: (Q, D).
            k: 1 <= k <= N, or N - 1 with `exclude`.
            exclude: (Q,) a bank row that each query must not find: itself, when the queries are
                the bank. By row, not by distance, so that duplicates count.
            kernels: numpy functions, or compiled ones that find the same neighbours.

        Raises:
            InputError: a shape or k does not fit.
        """
        queries = checked_features(queries, "queries", dim=self.features.shape[1])
        most = len(self) - (exclude is not None)
        if not 1 <= k <= most:
            raise InputError(f"k={k}: the bank offers 1 to {most} neighbours")
        if exclude is not None:
            if np.shape(exclude) != (len(queries),):
                raise InputError(f"exclude: shape {np.shape(exclude)}; expected ({len(queries)},)")
            if len(exclude) and not 0 <= np.min(exclude) <= np.max(exclude) < len(self):
                raise InputError(f"exclude: rows must lie in 0..{len(self) - 1}")

        sq_dists = np.empty((len(queries), k))
        rows = np.empty((len(queries), k), dtype=np.int64)
        left = np.arange(len(queries))
        if codes := self._codes_for(len(queries), k):
            left = self._search_codes(codes, queries, k, exclude, kernels, sq_dists, rows)
        for start in range(0, len(left), _QUERY_ROWS):
            block = left[start : start + _QUERY_ROWS]
            excluded = None if exclude is None else np.asarray(exclude)[block]
            sq_dists[block], rows[block] = self._nearest_block(queries[block], k, excluded, kernels)
        return Neighbors(sq_dists, rows)

    def others(
        self,
        m: int,
        rows: NDArray[np.int64] | None = None,
        *,
        kernels: Kernels = NUMPY,
    ) -> Neighbors:
        """The m nearest other rows of bank rows, searched once and remembered in `graph`.

        Args:
            m: neighbours; fewer if the bank has not that many.
            rows: (R,) bank rows; all of them by default.
            kernels: as in `nearest`.
        """
        m = min(m, len(self) - 1)
        if self.graph.rows.shape[1] < m:
            self.graph = graph.unknown(len(self), m)
        elif not self.graph.rows.flags.writeable:  # it came out of a read-only file
            self.graph = Neighbors(self.graph.sq_dists.copy(), self.graph.rows.copy())
        rows = np.arange(len(self)) if rows is None else rows
        if m == 0:
            return Neighbors(np.empty((len(rows), 0)), np.empty((len(rows), 0), dtype=np.int64))
        missing = np.unique(rows[self.graph.rows[rows, m - 1] < 0])
        if len(missing):
            points = self.features if len(missing) == len(self) else self.features[missing]
            found = self.nearest(points, self.graph.rows.shape[1], exclude=missing, kernels=kernels)
            self.graph.sq_dists[missing], self.graph.rows[missing] = found
        return Neighbors(self.graph.sq_dists[rows, :m], self.graph.rows[rows, :m])

    def neighborhoods(
        self,
        rows: NDArray[np.int64],
        m: int,
        *,
        absent: NDArray[np.int64] | None = None,
        kernels: Kernels = NUMPY,
    ) -> NDArray[np.int64]:
        """The m nearest other rows of the given bank rows.

        Args:
            rows: (R,) bank rows.
            m: neighbours; fewer if the bank has not that many.
            absent: (R,) a row that must not be among the neighbours of each; the next one takes
                its place.
            kernels: as in `nearest`.

        Returns:
            (R, m) rows, nearest first.
        """
        around = self.others(m + 1, rows, kernels=kernels).rows  # (R, m + 1)
        if absent is None:
            return around[:, :m]
        is_absent = around == absent[:, None]
        kept = np.argsort(is_absent, axis=1, kind="stable")  # the absent goes last
        most = max(0, min(m, len(self) - 2))
        return np.take_along_axis(around, kept[:, :most], axis=1)

    def edited(
        self, features: NDArray[Any], old_rows: NDArray[np.int64], *, kernels: Kernels = NUMPY
    ) -> "Bank":
        """A bank of these features, of which most are rows of this one.

        What is known of neighbours is taken over, so that a change costs a search of the rows that
        come, and of those whose list it leaves too short, instead of all.

        Args:
            features: (N, D).
            old_rows: (N,) the row of this bank that each was, ascending, or -1 for a new one.
            kernels: as in `nearest`; those that the graph was made with.
        """
        new = Bank(features)
        come = np.flatnonzero(old_rows < 0)
        if 2 * len(come) > len(new) or not self.graph.rows.shape[1]:
            return new  # nothing is saved
        new.graph = graph.rearranged(self.graph, old_rows)
        width = new.graph.rows.shape[1]
        if len(come) and width:
            points = new.features[come]
            owner, rows, sq_dists = new._within(points, graph.reach(new.graph), kernels)
            found = new.nearest(points, width, exclude=come, kernels=kernels)
            graph.enter(new.graph, rows, come[owner], sq_dists)
            new.graph.sq_dists[come], new.graph.rows[come] = found
        return new

    def _within(
        self, queries: NDArray[np.float32], reach: NDArray[np.float64], kernels: Kernels
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Pairs of a query and a bank row, at least those within the row's reach (N,).

        Returns:
            (P,) the query, (P,) the bank row, (P,) their squared distance.
        """
        pairs = []
        for start in range(0, len(queries), _QUERY_ROWS):
            block = queries[start : start + _QUERY_ROWS]
            q_sq_norms = np.square(block, dtype=np.float64).sum(1)
            slack = self._error_bound(q_sq_norms) - q_sq_norms  # (q,)
            for first, proxies in self._proxies(block):
                part = reach[first : first + proxies.shape[1]]
                near = (proxies <= part + slack[:, None]) & (part >= 0)
                owner, row = np.nonzero(near)
                sq_dists = kernels.sq_dists(block, self.features, owner, row + first)
                pairs.append((owner + start, row + first, sq_dists))
        owners, rows, dists = (np.concatenate(each) for each in zip(*pairs, strict=True))
        return owners, rows, dists

    def _codes_for(self, n_queries: int, k: int) -> Codes | None:
        """The codes, if to search by them; they are made when enough queries come at once."""
        suits = len(self) >= 8 * _proposals(k) and self.features.shape[1] <= LARGEST_DIM
        if not suits or self._coding_failed or n_queries < _CODED_QUERIES:
            return None
        if self._codes is None and n_queries >= _CODING_QUERIES:
            with _CODING:
                self._codes = self._codes or Codes(self.features)
        return self._codes

    def _search_codes(
        self,
        codes: Codes,
        queries: NDArray[np.float32],
        k: int,
        exclude: NDArray[np.intp] | None,
        kernels: Kernels,
        sq_dists: NDArray[np.float64],
        rows: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Fill in what integers can prove; return which queries they leave open."""
        is_open = np.ones(len(queries), dtype=bool)

        def search(block: slice) -> None:
            if self._coding_failed:
                return
            excluded = None if exclude is None else np.asarray(exclude)[block]
            coded = codes.encode(queries[block])
            keys, candidates = proposed(codes.keys(coded), _proposals(k), excluded, kernels)
            order = np.argsort(keys, axis=1)
            candidates = np.take_along_axis(candidates, order, 1)
            least = codes.least_distances(coded, np.take_along_axis(keys, order, 1))  # (q, c)

            first = self._sq_dists(queries[block], candidates[:, :k], excluded, kernels)
            kth = np.sqrt(first.max(axis=1, keepdims=True))  # no nearest row is farther
            doubtful = least[:, k:] <= kth
            width = k + int(doubtful.sum(axis=1).max(initial=0))
            exact = np.full((len(first), width), np.inf)
            exact[:, :k] = first
            owner, column = np.nonzero(doubtful)
            exact[owner, k + column] = kernels.sq_dists(
                queries[block], self.features, owner, candidates[owner, k + column]
            )
            sq_dists[block], rows[block] = in_order(exact, candidates[:, :width], k)
            is_open[block] = least[:, -1] <= kth[:, 0]  # a row not proposed could be as near
            if is_open[block].mean() > 0.5:  # rounding leaves too little of such features
                self._codes, self._coding_failed = None, True

        in_parallel(search, _even_blocks(len(queries)))
        return np.flatnonzero(is_open)

    def _nearest_block(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: NDArray[np.intp] | None,
        kernels: Kernels,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        q_sq_norms = np.square(queries, dtype=np.float64).sum(1)  # (q,)
        wanted = min(k + _SPARE, len(self))
        proxies, candidates = proposed(self._proxies(queries), wanted, exclude, kernels)
        sq_dists = self._sq_dists(queries, candidates, exclude, kernels)
        sq_dists, rows = in_order(sq_dists, candidates, k)
        if wanted == len(self):
            return sq_dists, rows

        # Every row left out has a true squared distance of at least floor - error.
        error = self._error_bound(q_sq_norms)  # (q,)
        floor = proxies.max(axis=1).astype(np.float64) + q_sq_norms
        for i in np.flatnonzero(sq_dists[:, -1] >= floor - error):
            limit = sq_dists[i, -1] + error[i] - q_sq_norms[i]
            excluded = None if exclude is None else exclude[i : i + 1]
            sq_dists[i], rows[i] = self._nearest_below(
                queries[i : i + 1], k, limit, excluded, kernels
            )
        return sq_dists, rows

    def _nearest_below(
        self,
        query: NDArray[np.float32],
        k: int,
        limit: float,
        exclude: NDArray[np.intp] | None,
        kernels: Kernels,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Search one query (1, D) again among all rows whose proxy is at most `limit`."""
        found = []
        for start, proxies in self._proxies(query):
            exclude_rows(proxies, start, exclude)
            found.append(np.flatnonzero(proxies[0] <= limit) + start)
        candidates = np.concatenate(found)[None]  # (1, c)
        sq_dists, rows = in_order(self._sq_dists(query, candidates, None, kernels), candidates, k)
        return sq_dists[0], rows[0]

    def _proxies(self, queries: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """|x|^2 - 2 q.x of all rows, some rows at a time: (first row, (q, n))."""
        doubled = -2 * queries
        for start in range(0, len(self), _BANK_ROWS):
            rows = slice(start, start + _BANK_ROWS)
            proxies = np.asarray(doubled @ self.features[rows].T, dtype=np.float32)
            proxies += self._sq_norms[rows].astype(np.float32)
            yield start, proxies

    def _sq_dists(
        self,
        queries: NDArray[np.float32],
        candidates: NDArray[np.int64],
        exclude: NDArray[np.intp] | None,
        kernels: Kernels,
    ) -> NDArray[np.float64]:
        """Exact squared distances of each query to its own candidates (q, c) rows."""
        owner = np.repeat(np.arange(len(queries)), candidates.shape[1])
        sq_dists = kernels.sq_dists(queries, self.features, owner, candidates.ravel())
        sq_dists = sq_dists.reshape(candidates.shape)
        if exclude is not None:
            sq_dists[candidates == exclude[:, None]] = np.inf
        return sq_dists

    def _error_bound(self, q_sq_norms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bound on |proxy - its true value| by the standard error analysis of a dot product."""
        unit = np.finfo(np.float32).eps / 2
        dim = self.features.shape[1]
        gamma = (dim + 8) * unit / (1 - (dim + 8) * unit)
        largest = self._sq_norms.max()
        tiny = 4 * (dim + 8) * np.finfo(np.float32).tiny  # underflow of small products
        bound: NDArray[np.float64] = 2 * gamma * np.sqrt(q_sq_norms * largest) + 4 * unit * largest
        return np.asarray(bound + tiny)


def _even_blocks(n_queries: int) -> list[slice]:
    """Blocks of at most `_QUERY_ROWS` queries, as many for each core."""
    count = -(-n_queries // _QUERY_ROWS)
    if count > 1:
        count = -(-count // usable_cores()) * usable_cores()
    bounds = [n_queries * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def _proposals(k: int) -> int:
    """Candidates that integers propose for k neighbours."""
    return 4 * k + 32


def checked_features(
    features: NDArray[Any], name: str, *, dim: int | None = None
) -> NDArray[np.float32]:
    """Features (N, D) as C-contiguous float32, or an `InputError` that names the argument."""
    array = np.asarray(features)
    if array.ndim != 2 or array.shape[1] == 0 or dim not in (None, array.shape[1]):
        raise InputError(f"{name}: shape {array.shape}; expected (rows, {dim or 'features'})")
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise InputError(f"{name}: dtype {array.dtype}; expected real numbers")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    for start in range(0, len(array), _NORM_ROWS):
        largest = np.abs(array[start : start + _NORM_ROWS]).max(axis=1)
        good = largest <= _LARGEST / np.sqrt(array.shape[1])  # false for NaN
        if not good.all():
            row = start + int(np.argmin(good))
            raise InputError(f"{name}: row {row} holds a value that is not finite or is too large")
    return array
