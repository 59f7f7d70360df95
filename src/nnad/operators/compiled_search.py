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
def _least(
    start: int,
    stop: int,
    known: Bits,
    known_rows: Ints,
    more: Bits,
    first: int,
    flip: int,
    keys: Bits,
    rows: Ints,
) -> None:
    """The least keys of each query among those known and more.

    What belongs to them is bounded by the largest of those known, or at first by the largest of
    some groups' least keys. Bisection between the few keys below this bound finds the largest that
    does.

    Args:
        start, stop: the queries to sort out.
        known, known_rows: (Q, c) bits of keys, and their rows.
        more: (Q, n) bits of further keys.
        first: the row of their first column.
        flip: the bits of a negative key that are turned over, so that integers have its order.
        keys, rows: (Q, count) result, count <= c + n; unordered.
    """
    n_known, count = known.shape[1], keys.shape[1]
    width = n_known + more.shape[1]
    groups = min(-(-count // _LANES) * _LANES, width)
    line, least = np.empty(width, np.int32), np.empty(groups, np.int32)
    columns, below = np.empty(width + 1, np.int64), np.empty(width + 1, np.int32)
    picked = np.empty(count, np.int64)
    for q in range(start, stop):
        line[:n_known] = known[q]
        line[n_known:] = more[q]
        for c in range(width):
            line[c] ^= (line[c] >> 31) & flip
        bounds = line[:n_known]
        if n_known < count:
            least[:] = line[:groups]
            for begin in range(groups, width - groups + 1, groups):
                part = line[begin : begin + groups]
                for j in range(groups):
                    least[j] = min(least[j], part[j])
            bounds = least
        high, n = int(bounds[0]), 0
        for j in range(len(bounds)):
            high = max(high, int(bounds[j]))
        for c in range(width):
            columns[n] = c
            n += line[c] <= high
        low, fits = high, n
        for i in range(n):
            below[i] = line[columns[i]]
            low = min(low, int(below[i]) - 1)
        # `fits` keys are at most `high`, and fewer than `count` at most `low`
        while fits > count and high - low > 1:
            middle, at_most = (low + high) // 2, 0
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
                picked[found] = columns[i]
                found += 1
        for i in range(n):  # equal keys
            if found < count and surely < below[i] <= high:
                picked[found] = columns[i]
                found += 1
        for i in range(count):
            c = picked[i]
            keys[q, i] = line[c] ^ ((line[c] >> 31) & flip)
            rows[q, i] = known_rows[q, c] if c < n_known else first + c - n_known


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


def _least_in_threads(
    known: NDArray[Any], known_rows: Ints, more: NDArray[Any], first: int, count: int
) -> tuple[NDArray[Any], Ints]:
    """`Kernels.least` of float32 or int32 keys."""
    shape = len(more), min(count, known.shape[1] + more.shape[1])
    keys, rows = np.empty(shape, more.dtype), np.empty(shape, np.int64)
    flip = np.int32(0x7FFFFFFF if more.dtype.kind == "f" else 0)
    args = known.view(np.int32), known_rows, more.view(np.int32), first, flip
    in_threads(_least, len(more), *args, keys.view(np.int32), rows)
    return keys, rows


def _sq_dists_in_threads(
    queries: NDArray[np.float32], bank: NDArray[np.float32], owner: Ints, rows: Ints
) -> Floats:
    out = np.empty(len(rows))
    in_threads(_sq_dists, len(rows), queries, bank, owner, rows, out, least=256)
    return out


COMPILED = Kernels(_least_in_threads, _sq_dists_in_threads)
