"""Compiled helpers of `Bank.nearest`: they find the same neighbours as numpy's, on all cores."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.operators.compiled import in_threads, summing
from nnad.search_steps import Kernels

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bits = NDArray[np.int32]

_LANES = 64  # a multiple of what the processor compares at a time


@summing
def _smallest(start: int, stop: int, bits: Bits, flip: int, picked: Ints) -> None:
    """Columns of the smallest values of each row.

    The largest of some groups' least values bounds what can belong to them. Bisection between
    the few values below this bound finds the largest that does.

    Args:
        start, stop: the rows of `bits` to sort out.
        bits: (Q, n) the values' bits.
        flip: the bits of a negative value that are turned over, so that integers have its order.
        picked: (Q, count) result; unordered.
    """
    width, count = bits.shape[1], picked.shape[1]
    groups = min(-(-count // _LANES) * _LANES, width)
    line, least = np.empty(width, np.int32), np.empty(groups, np.int32)
    columns, below = np.empty(width + 1, np.int64), np.empty(width + 1, np.int32)
    for row in range(start, stop):
        for c in range(width):
            line[c] = bits[row, c] ^ ((bits[row, c] >> 31) & flip)
        least[:] = line[:groups]
        for first in range(groups, width - groups + 1, groups):
            part = line[first : first + groups]
            for j in range(groups):
                least[j] = min(least[j], part[j])
        high, n = np.int64(least[0]), 0
        for j in range(groups):
            high = max(high, np.int64(least[j]))
        for c in range(width):
            columns[n] = c
            n += line[c] <= high
        low, fits = high, n
        for i in range(n):
            below[i] = line[columns[i]]
            low = min(low, np.int64(below[i]) - 1)
        # `fits` values are at most `high`, and fewer than `count` at most `low`
        while fits > count and high - low > 1:
            middle = (low + high) // 2
            at_most = 0
            for i in range(n):
                at_most += below[i] <= middle
            if at_most >= count:
                high, fits = middle, at_most
            else:
                low = middle
        found = 0
        surely = high if fits == count else low
        for i in range(n):
            if below[i] <= surely:
                picked[row, found] = columns[i]
                found += 1
        for i in range(n):  # equal values
            if found < count and surely < below[i] <= high:
                picked[row, found] = columns[i]
                found += 1


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
    """Squared distances in float64 of queries[owner] and bank[rows].

    Four at a time, as memory is slow to answer but answers several questions at once.
    """
    last = stop - 1
    for p0 in range(start, stop, 4):
        p1, p2, p3 = min(p0 + 1, last), min(p0 + 2, last), min(p0 + 3, last)
        q0, q1, q2, q3 = (
            queries[owner[p0]],
            queries[owner[p1]],
            queries[owner[p2]],
            queries[owner[p3]],
        )
        x0, x1, x2, x3 = bank[rows[p0]], bank[rows[p1]], bank[rows[p2]], bank[rows[p3]]
        t0, t1, t2, t3 = 0.0, 0.0, 0.0, 0.0
        for d in range(len(x0)):
            d0 = np.float64(q0[d]) - np.float64(x0[d])
            d1 = np.float64(q1[d]) - np.float64(x1[d])
            d2 = np.float64(q2[d]) - np.float64(x2[d])
            d3 = np.float64(q3[d]) - np.float64(x3[d])
            t0 += d0 * d0
            t1 += d1 * d1
            t2 += d2 * d2
            t3 += d3 * d3
        out[p0], out[p1], out[p2], out[p3] = t0, t1, t2, t3


def _smallest_in_threads(values: NDArray[Any], count: int) -> Ints:
    """`Kernels.smallest` of float32 or int32 values."""
    picked = np.empty((len(values), min(count, values.shape[1])), dtype=np.int64)
    flip = 0x7FFFFFFF if values.dtype.kind == "f" else 0
    in_threads(_smallest, len(values), values.view(np.int32), np.int32(flip), picked)
    return picked


def _sq_dists_in_threads(
    queries: NDArray[np.float32], bank: NDArray[np.float32], owner: Ints, rows: Ints
) -> Floats:
    out = np.empty(len(rows))
    in_threads(_sq_dists, len(rows), queries, bank, owner, rows, out, least=256)
    return out


COMPILED = Kernels(_smallest_in_threads, _sq_dists_in_threads)
