"""Kernels of k-NNN: Eq. 2's inner sums for a query and each of its neighbours."""

import numpy as np
from numpy.typing import NDArray

from nnad.operators.compiled import compiled
from nnad.operators.halves import decode_halves

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled
def _differences(
    query: NDArray[np.float32],
    row: NDArray[np.float32],
    layout: Ints,
    plain: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """query - row in the order of `layout`, (D,), (D,) -> (L, S).

    Args:
        query, row, layout, out: as above.
        plain: (D + 1,) work space that ends in 0, which is what a feature -1 finds.
    """
    for d in range(len(row)):
        plain[d] = query[d] - row[d]
    size, sets = layout.shape
    for i in range(size):
        for s in range(sets):
            out[i, s] = plain[layout[i, s]]


@compiled
def _ridge_parts(
    diff: NDArray[np.float32],
    frame: NDArray[np.float32],
    ridges: Floats,
    rounded: NDArray[np.float32],
    parts: Floats,
) -> None:
    """parts[r, s] = |W_r d|^2 / ridge_r of each set, which is sum_j (v_j.d)^2 / (e_j + ridge_r).

    Args:
        diff: (L, S).
        frame: (R L (L + 1) / 2, S), see `ridge_frames`.
        ridges: (R,).
        rounded: (S,) work space.
        parts: (R, S) result.
    """
    size, sets = diff.shape
    parts[:] = 0
    t = 0
    for r in range(len(ridges)):
        part = parts[r]
        for i in range(size):
            rounded[:] = 0
            for j in range(i + 1):
                w, d = frame[t], diff[j]
                for s in range(sets):
                    rounded[s] += w[s] * d[s]
                t += 1
            for s in range(sets):
                part[s] += np.float64(rounded[s]) * np.float64(rounded[s])
        for s in range(sets):
            part[s] /= ridges[r]


@compiled
def _eigen_parts(
    diff: NDArray[np.float32],
    frame: NDArray[np.float32],
    ridges: Floats,
    p: int,
    projection: Floats,
    parts: Floats,
) -> None:
    """parts[r, s] = sum_j |v_j.d|^p / (e_j + ridge_r)^(p/2) of each set.

    Args:
        diff: (L, S).
        frame: (n (1 + L), S), see `eigen_frames`.
        ridges: (R,).
        p: 1 or 2.
        projection: (S,) work space.
        parts: (R, S) result.
    """
    size, sets = diff.shape
    n = len(frame) // (1 + size)
    parts[:] = 0
    for j in range(n):
        projection[:] = 0
        for i in range(size):
            vector, d = frame[n + j * size + i], diff[i]
            for s in range(sets):
                projection[s] += np.float64(vector[s]) * np.float64(d[s])
        for r in range(len(ridges)):
            part, root = parts[r], frame[j]
            for s in range(sets):
                spread = np.float64(root[s]) * np.float64(root[s]) + ridges[r]
                square = projection[s] * projection[s] / spread
                part[s] += square if p == 2 else np.sqrt(square)


@compiled
def pair_parts(
    start: int,
    stop: int,
    queries: NDArray[np.float32],
    features: NDArray[np.float32],
    rows: Ints,
    slots: Ints,
    frames: NDArray[np.float32],
    halves: NDArray[np.uint16],
    layout: Ints,
    ridges: Floats,
    p: int,
    by_set: Floats,
    totals: Floats,
) -> None:
    """Eq. 2's inner sums for each query and each of its neighbours.

    Args:
        start, stop: the queries to score.
        queries, features: (Q, D), (N, D).
        rows: (Q, K) bank rows, the neighbours.
        slots: (Q, K) which frame belongs to each.
        frames: (M, n (1 + L), S), or (M, R L (L + 1) / 2, S) for p = 0.
        halves: (M, ., S) the bits of float16 frames; what of the two is not used is empty.
        layout: (L, S).
        ridges: (R,) in units of the frames.
        p: 1 or 2 with eigenvectors; 0 with `ridge_frames` (power 2, all eigenvectors).
        by_set: (Q, K, S) terms under the first ridge, or (0, K, S) if they are not wanted.
        totals: (Q, K, R) the same summed over the sets.
    """
    size, sets = layout.shape
    diff, plain = np.zeros((size, sets), np.float32), np.zeros(queries.shape[1] + 1, np.float32)
    rounded, projection = np.zeros(sets, np.float32), np.zeros(sets)
    parts = np.zeros((len(ridges), sets))
    decoded = np.empty(halves.shape[1:], np.float32)
    bits = decoded.view(np.uint32)
    for q in range(start, stop):
        for k in range(rows.shape[1]):
            _differences(queries[q], features[rows[q, k]], layout, plain, diff)
            if len(halves):
                decode_halves(halves[slots[q, k]], bits, decoded)
                frame = decoded
            else:
                frame = frames[slots[q, k]]
            if p == 0:
                _ridge_parts(diff, frame, ridges, rounded, parts)
            else:
                _eigen_parts(diff, frame, ridges, p, projection, parts)
            for r in range(len(ridges)):
                totals[q, k, r] = parts[r].sum()
            if len(by_set):
                by_set[q, k] = parts[0]
