"""Exact nearest neighbours: the one search that everything in nnad is built on.

A matrix product in float32 ranks the bank by |x|^2 - 2 q.x, which is fast and slightly wrong (two
equal vectors come out at 0.017 instead of 0). So it only proposes: the best k + 8 rows are measured
again as sum((q - x)^2) in float64, and a bound on the product's rounding error tells whether a row
outside them could belong among the k nearest. Where it could, the query is searched again among all
rows that the bound admits. The result equals a float64 brute force, ties going to the lower row,
and does not depend on how queries are batched or the bank is cut.

The two steps beside the product are numpy functions (`NUMPY`); `nnad.operators.compiled_search`
has compiled ones, for those who import it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad.errors import InputError

_SPARE = 8  # candidates beyond k that are measured exactly
_QUERY_ROWS = 256  # queries a product
_BANK_ROWS = 65_536  # bank rows a product: 64 MB of float32
_LARGEST = 1e17  # length of a vector; beyond it float32 products could overflow
_NORM_ROWS = 1024  # bank rows squared in float64 at a time
_GROUP = 32  # columns of which only the least is looked at first
_EXACT_ELEMENTS = 100_000  # float64 differences at a time: 0.8 MB, which stays in cache


class Neighbors(NamedTuple):
    """The k nearest bank rows of each query, nearest first."""

    sq_dists: NDArray[np.float64]  # (Q, k) squared Euclidean distances
    rows: NDArray[np.int64]  # (Q, k)


class Kernels(NamedTuple):
    """What a search does beside the matrix product."""

    # values (Q, n), count -> (Q, count) columns of the smallest values in each row, unordered
    smallest: Callable[[NDArray[np.float32], int], NDArray[np.int64]]
    # queries (Q, D), bank (N, D), candidates (Q, c) rows -> (Q, c) squared distances in float64
    sq_dists: Callable[
        [NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]], NDArray[np.float64]
    ]


def _smallest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    width = values.shape[1]
    if count >= width:
        return np.broadcast_to(np.arange(width), values.shape)
    groups = width // _GROUP
    if groups <= 4 * count:
        return np.argpartition(values, count - 1, axis=1)[:, :count]
    # Group j holds columns j, j + groups, ... The smallest values of a row lie in the groups with
    # the smallest minima, so only few columns have to be sorted out.
    grouped = values[:, : groups * _GROUP].reshape(len(values), _GROUP, groups)
    best = np.argpartition(grouped.min(axis=1), count - 1, axis=1)[:, :count]  # (Q, count)
    columns = best[:, :, None] + groups * np.arange(_GROUP)  # (Q, count, _GROUP)
    rest = np.broadcast_to(np.arange(groups * _GROUP, width), (len(values), width % _GROUP))
    columns = np.hstack([columns.reshape(len(values), -1), rest])
    picked = np.argpartition(np.take_along_axis(values, columns, 1), count - 1, axis=1)
    return np.take_along_axis(columns, picked[:, :count], 1)


def _sq_dists(
    queries: NDArray[np.float32], bank: NDArray[np.float32], candidates: NDArray[np.int64]
) -> NDArray[np.float64]:
    owner = np.repeat(np.arange(len(queries)), candidates.shape[1])
    flat = candidates.ravel()
    sq_dists = np.empty(len(flat))
    step = max(1, _EXACT_ELEMENTS // bank.shape[1])
    for i in range(0, len(flat), step):
        part = slice(i, i + step)
        difference = bank[flat[part]].astype(np.float64)  # (step, D)
        difference -= queries[owner[part]]
        sq_dists[part] = np.square(difference, out=difference).sum(axis=1)
    return sq_dists.reshape(candidates.shape)


NUMPY = Kernels(_smallest, _sq_dists)


class Bank:
    """Feature vectors (N, D) float32 that can be searched.

    Args:
        features: (N, D) with N >= 1, finite; taken without a copy when it is float32 and
            C-contiguous, so that a memory-mapped file is searched where it lies.

    Raises:
        InputError: another shape, or a value that is not finite (the row is named).
    """

    def __init__(self, features: NDArray[Any]) -> None:
        self.features = checked_features(features, "bank")
        if not len(self.features):
            raise InputError("bank: no rows")
        blocks = range(0, len(self.features), _NORM_ROWS)
        self._sq_norms = np.concatenate(
            [np.square(self.features[i : i + _NORM_ROWS], dtype=np.float64).sum(1) for i in blocks]
        )  # (N,)
        self._graph = np.empty((len(self.features), 0), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.features)

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
        for start in range(0, len(queries), _QUERY_ROWS):
            block = slice(start, start + _QUERY_ROWS)
            excluded = None if exclude is None else np.asarray(exclude[block])
            sq_dists[block], rows[block] = self._nearest_block(queries[block], k, excluded, kernels)
        return Neighbors(sq_dists, rows)

    def neighborhoods(
        self,
        rows: NDArray[np.int64],
        m: int,
        *,
        absent: NDArray[np.int64] | None = None,
        kernels: Kernels = NUMPY,
    ) -> NDArray[np.int64]:
        """The m nearest other rows of the given bank rows, searched once and remembered.

        Args:
            rows: (R,) bank rows.
            m: neighbours; fewer if the bank has not that many.
            absent: (R,) a row that must not be among the neighbours of each; the next one takes
                its place.
            kernels: as in `nearest`.

        Returns:
            (R, m) rows, nearest first.
        """
        width = min(m + 1, len(self) - 1)  # one to spare, for the absent
        if self._graph.shape[1] < width:
            self._graph = np.full((len(self), width), -1)
        elif not self._graph.flags.writeable:  # it came out of a read-only file
            self._graph = self._graph.copy()
        graph = self._graph
        if width == 0:
            return np.empty((len(rows), 0), dtype=np.int64)
        unknown = np.unique(rows[graph[rows, 0] < 0])
        if len(unknown):
            points = self.features[unknown]
            found = self.nearest(points, graph.shape[1], exclude=unknown, kernels=kernels)
            graph[unknown] = found.rows
        around = graph[rows]  # (R, width or more)
        if absent is None:
            return np.asarray(around[:, :m])
        is_absent = around == absent[:, None]
        kept = np.argsort(is_absent, axis=1, kind="stable")  # the absent goes last
        most = min(m, len(self) - 2)
        return np.take_along_axis(around, kept[:, :most], axis=1)

    def _nearest_block(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: NDArray[np.intp] | None,
        kernels: Kernels,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        q_sq_norms = np.square(queries, dtype=np.float64).sum(1)  # (q,)
        wanted = min(k + _SPARE, len(self))
        proxies = np.empty((len(queries), 0), dtype=np.float32)  # |x|^2 - 2 q.x
        candidates = np.empty((len(queries), 0), dtype=np.int64)
        for start in range(0, len(self), _BANK_ROWS):
            proxy = self._proxies(queries, start, exclude)  # (q, n)
            best = kernels.smallest(proxy, wanted)
            proxies = np.hstack([proxies, np.take_along_axis(proxy, best, 1)])
            candidates = np.hstack([candidates, best + start])
        best = kernels.smallest(proxies, wanted)
        proxies = np.take_along_axis(proxies, best, 1)  # (q, wanted)
        candidates = np.take_along_axis(candidates, best, 1)

        sq_dists = kernels.sq_dists(queries, self.features, candidates)
        if exclude is not None:
            sq_dists[candidates == exclude[:, None]] = np.inf
        sq_dists, rows = _sorted(sq_dists, candidates, k)
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
        for start in range(0, len(self), _BANK_ROWS):
            proxy = self._proxies(query, start, exclude)[0]
            found.append(np.flatnonzero(proxy <= limit) + start)
        candidates = np.concatenate(found)[None]  # (1, c)
        sq_dists, rows = _sorted(kernels.sq_dists(query, self.features, candidates), candidates, k)
        return sq_dists[0], rows[0]

    def _proxies(
        self, queries: NDArray[np.float32], start: int, exclude: NDArray[np.intp] | None
    ) -> NDArray[np.float32]:
        """|x|^2 - 2 q.x for the bank rows from `start`, (q, n); infinite where excluded."""
        stop = min(start + _BANK_ROWS, len(self))
        proxy = np.asarray(queries @ self.features[start:stop].T, dtype=np.float32)
        proxy *= -2
        proxy += self._sq_norms[start:stop].astype(np.float32)
        if exclude is not None:
            here = np.flatnonzero((exclude >= start) & (exclude < stop))
            proxy[here, exclude[here] - start] = np.inf
        return proxy

    def _error_bound(self, q_sq_norms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bound on |proxy - its true value| by the standard error analysis of a dot product."""
        unit = np.finfo(np.float32).eps / 2
        dim = self.features.shape[1]
        gamma = (dim + 8) * unit / (1 - (dim + 8) * unit)
        largest = self._sq_norms.max()
        tiny = 4 * (dim + 8) * np.finfo(np.float32).tiny  # underflow of small products
        bound: NDArray[np.float64] = 2 * gamma * np.sqrt(q_sq_norms * largest) + 4 * unit * largest
        return np.asarray(bound + tiny)


def _sorted(
    sq_dists: NDArray[np.float64], rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The k nearest, by distance and then by row."""
    order = np.lexsort((rows, sq_dists), axis=1)[:, :k]
    return np.take_along_axis(sq_dists, order, 1), np.take_along_axis(rows, order, 1)


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
    for start in range(0, len(array), _BANK_ROWS):
        largest = np.abs(array[start : start + _BANK_ROWS]).max(axis=1)
        good = largest <= _LARGEST / np.sqrt(array.shape[1])  # false for NaN
        if not good.all():
            row = start + int(np.argmin(good))
            raise InputError(f"{name}: row {row} holds a value that is not finite or is too large")
    return array
