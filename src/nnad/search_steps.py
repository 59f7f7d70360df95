"""The steps of a search beside the products: the least keys, exact distances, the final order.

`NUMPY` are numpy's; `nnad.operators.compiled_search` has compiled ones, for those who import it.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_GROUP = 32  # columns of which only the least is looked at first
_EXACT_ELEMENTS = 100_000  # float64 differences at a time: 0.8 MB, which stays in cache
_PENDING = 8  # blocks whose candidates are sorted out together
_LARGEST_KEY = 2**30  # above every integer key


class Kernels(NamedTuple):
    """What a search does beside the matrix product."""

    # values (Q, n), count -> (Q, count) columns of the smallest values in each row, unordered
    smallest: Callable[[NDArray[Any], int], NDArray[np.int64]]
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


NUMPY = Kernels(_smallest, _sq_dists)


def proposed(
    blocks: Iterator[tuple[int, NDArray[Any]]],
    wanted: int,
    exclude: NDArray[np.intp] | None,
    kernels: Kernels,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The least keys (q, wanted) of all blocks, and their rows; unordered."""
    keys: list[NDArray[Any]] = []
    rows: list[NDArray[np.int64]] = []
    for start, block in blocks:
        exclude_rows(block, start, exclude)
        best = kernels.smallest(block, wanted)
        keys.append(np.take_along_axis(block, best, 1))
        rows.append(best + start)
        if len(keys) == _PENDING:
            best_keys, best_rows = _least_of(keys, rows, wanted, kernels)
            keys, rows = [best_keys], [best_rows]
    return _least_of(keys, rows, wanted, kernels)


def _least_of(
    keys: list[NDArray[Any]], rows: list[NDArray[np.int64]], wanted: int, kernels: Kernels
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The least keys (q, wanted) among those of several blocks, and their rows."""
    all_keys, all_rows = np.hstack(keys), np.hstack(rows)
    if len(keys) == 1:
        return all_keys, all_rows
    least = kernels.smallest(all_keys, wanted)
    return np.take_along_axis(all_keys, least, 1), np.take_along_axis(all_rows, least, 1)


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
