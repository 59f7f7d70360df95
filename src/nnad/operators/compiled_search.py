"""Compiled helpers of `Bank.nearest`: they find the same neighbours as numpy's, on all cores."""

import numpy as np
from numpy.typing import NDArray

from nnad.neighbors import Kernels
from nnad.operators.compiled import compiled, in_threads, summing

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled
def _smallest(
    start: int, stop: int, values: NDArray[np.float32], picked: Ints, heap: NDArray[np.float32]
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
    candidates: Ints,
    out: Floats,
) -> None:
    """Squared distances in float64 of each query to its own candidates."""
    for q in range(start, stop):
        for c in range(candidates.shape[1]):
            query, row = queries[q], bank[candidates[q, c]]
            total = 0.0
            for d in range(len(row)):
                difference = np.float64(query[d]) - np.float64(row[d])
                total += difference * difference
            out[q, c] = total


def _smallest_in_threads(values: NDArray[np.float32], count: int) -> Ints:
    picked = np.empty((len(values), min(count, values.shape[1])), dtype=np.int64)
    in_threads(_smallest, len(values), values, picked, np.empty(picked.shape, dtype=np.float32))
    return picked


def _sq_dists_in_threads(
    queries: NDArray[np.float32], bank: NDArray[np.float32], candidates: Ints
) -> Floats:
    out = np.empty(candidates.shape)
    in_threads(_sq_dists, len(queries), queries, bank, np.ascontiguousarray(candidates), out)
    return out


COMPILED = Kernels(_smallest_in_threads, _sq_dists_in_threads)
