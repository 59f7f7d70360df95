"""Compiled helpers of `Bank.nearest`: they find the same neighbours as numpy's, on all cores."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.operators.compiled import compiled, in_threads, summing
from nnad.search_steps import Kernels

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled
def _smallest(
    start: int, stop: int, values: NDArray[Any], picked: Ints, heap: NDArray[Any]
) -> None:
    """Columns of the smallest values of each row, by a heap whose root is the largest kept."""
    count = picked.shape[1]
    for row in range(start, stop):
        kept, columns = heap[row], picked[row]
        for column in range(values.shape[1]):
            value = values[row, column]
            if column < count:  # the heap grows: up from its end
                node = column
                while node > 0 and kept[(node - 1) // 2] < value:
                    kept[node], columns[node] = kept[(node - 1) // 2], columns[(node - 1) // 2]
                    node = (node - 1) // 2
            elif value < kept[0]:  # the root goes: down from there
                node = 0
                while 2 * node + 1 < count:
                    child = 2 * node + 1
                    if child + 1 < count and kept[child + 1] > kept[child]:
                        child += 1
                    if kept[child] <= value:
                        break
                    kept[node], columns[node] = kept[child], columns[child]
                    node = child
            else:
                continue
            kept[node], columns[node] = value, column


@summing
def _sq_dists(
    start: int,
    stop: int,
    queries: NDArray[np.float32],
    bank: NDArray[np.float32],
    owner: Ints,
    rows: Ints,
    out: Floats,
) -> None:
    """Squared distances in float64 of queries[owner] and bank[rows]."""
    for pair in range(start, stop):
        query, row = queries[owner[pair]], bank[rows[pair]]
        total = 0.0
        for d in range(len(row)):
            difference = np.float64(query[d]) - np.float64(row[d])
            total += difference * difference
        out[pair] = total


def _smallest_in_threads(values: NDArray[Any], count: int) -> Ints:
    picked = np.empty((len(values), min(count, values.shape[1])), dtype=np.int64)
    in_threads(_smallest, len(values), values, picked, np.empty(picked.shape, values.dtype))
    return picked


def _sq_dists_in_threads(
    queries: NDArray[np.float32], bank: NDArray[np.float32], owner: Ints, rows: Ints
) -> Floats:
    out = np.empty(len(rows))
    in_threads(_sq_dists, len(rows), queries, bank, owner, rows, out, least=256)
    return out


COMPILED = Kernels(_smallest_in_threads, _sq_dists_in_threads)
