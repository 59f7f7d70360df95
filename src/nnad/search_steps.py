"""The steps of a search beside the products: the least keys, exact distances, the final order.

`NUMPY` are numpy's; `nnad.operators.compiled_search` has compiled ones, for those who import it.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_GROUP = 32  # columns of which only the least is looked at first
_EXACT_ELEMENTS = 100_000  # float64 differences at a time: 0.8 MB, which stays in cache
_LARGEST_KEY = 2**30  # above every integer key


class Kernels(NamedTuple):
    """What a search does beside the matrix product."""

    # keys (Q, c) and their rows (Q, c), further keys (Q, n), the row of their first column, count
    # -> the `count` least of the c + n keys of each query, and their rows; unordered
    least: Callable[
        [NDArray[Any], NDArray[np.int64], NDArray[Any], int, int],
        tuple[NDArray[Any], NDArray[np.int64]],
    ]
    # queries (Q, D), bank (N, D), owner (P,), rows (P,) -> (P,) squared distances in float64 of
    # queries[owner] and bank[rows]
    sq_dists: Callable[
        [NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]],
        NDArray[np.float64],
    ]


def _smallest(values: NDArray[Any], count: int) -> NDArray[np.int64]:
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


def _least(
    keys: NDArray[Any], rows: NDArray[np.int64], more: NDArray[Any], start: int, count: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    best = _smallest(more, count)
    keys = np.hstack([keys, np.take_along_axis(more, best, 1)])
    rows = np.hstack([rows, best + start])
    best = _smallest(keys, count)
    return np.take_along_axis(keys, best, 1), np.take_along_axis(rows, best, 1)


def _sq_dists(
    queries: NDArray[np.float32],
    bank: NDArray[np.float32],
    owner: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    sq_dists = np.empty(len(rows))
    step = max(1, _EXACT_ELEMENTS // bank.shape[1])
    for i in range(0, len(rows), step):
        part = slice(i, i + step)
        difference = bank[rows[part]].astype(np.float64)  # (step, D)
        difference -= queries[owner[part]]
        sq_dists[part] = np.square(difference, out=difference).sum(axis=1)
    return sq_dists


NUMPY = Kernels(_least, _sq_dists)


def proposed(
    blocks: Iterator[tuple[int, NDArray[Any]]],
    wanted: int,
    exclude: NDArray[np.intp] | None,
    kernels: Kernels,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The least keys (q, wanted) of all blocks, and their rows; unordered."""
    keys, rows = np.empty((0, 0)), np.empty((0, 0), dtype=np.int64)
    for start, block in blocks:
        exclude_rows(block, start, exclude)
        if not start:
            keys, rows = block[:, :0], np.empty((len(block), 0), dtype=np.int64)
        keys, rows = kernels.least(keys, rows, block, start, wanted)
    return keys, rows


def exclude_rows(keys: NDArray[Any], start: int, exclude: NDArray[np.intp] | None) -> None:
    """Make the excluded row's key the largest, in place; keys (q, n) are of rows from `start`."""
    if exclude is not None:
        here = np.flatnonzero((exclude >= start) & (exclude < start + keys.shape[1]))
        keys[here, exclude[here] - start] = np.inf if keys.dtype.kind == "f" else _LARGEST_KEY


def in_order(
    sq_dists: NDArray[np.float64], rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The k nearest, by distance and then by row."""
    order = np.lexsort((rows, sq_dists), axis=1)[:, :k]
    return np.take_along_axis(sq_dists, order, 1), np.take_along_axis(rows, order, 1)
