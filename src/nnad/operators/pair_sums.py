"""Kernels of k-NNN: Eq. 2's inner sums for a query and each of its neighbours."""

import numpy as np
from numpy.typing import NDArray

from nnad.operators.compiled import compiled
from nnad.operators.frames import BLOCK

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled
def _differences(
    query: NDArray[np.float32], row: NDArray[np.float32], layout: Ints, out: Floats
) -> None:
    """query - row in the order of `layout`, (D,), (D,) -> (L, S)."""
    size, sets = layout.shape
    for i in range(size):
        for s in range(sets):
            d = layout[i, s]
            out[i, s] = np.float64(query[d]) - np.float64(row[d]) if d >= 0 else 0.0


@compiled
def _factor_parts(
    diff: Floats,
    frame: NDArray[np.float32],
    ridges: Floats,
    factor: Floats,
    gram: Floats,
    work: Floats,
    parts: Floats,
) -> None:
    """parts[r, s] = d' (C C' + ridge_r)^-1 d of each set, which is sum_j (v_j.d)^2 / (e_j + ridge).

    Gaussian elimination on [C C' + ridge | d]: with pivots p_j and eliminated d, sum_j d_j^2 / p_j.

    Args:
        diff: (L, S).
        frame: (L (L + 1) / 2, S), C.
        ridges: (R,).
        factor, gram, work: work spaces of L (L + 1) / 2 rows, `work` of L + 2 more; (., B).
        parts: (R, S) result.
    """
    size, sets = diff.shape
    n_entries, block = gram.shape
    inverse, ratio = n_entries + size, n_entries + size + 1  # rows of `work`, after d
    for first in range(0, sets, block):
        width = min(block, sets - first)
        for t in range(n_entries):
            for s in range(width):
                factor[t, s] = frame[t, first + s]
        for i in range(size):
            for j in range(i + 1):
                row, column = i * (i + 1) // 2, j * (j + 1) // 2
                for s in range(width):
                    gram[row + j, s] = factor[row, s] * factor[column, s]
                for m in range(1, j + 1):
                    for s in range(width):
                        gram[row + j, s] += factor[row + m, s] * factor[column + m, s]
        for r in range(len(ridges)):
            for t in range(n_entries):
                for s in range(width):
                    work[t, s] = gram[t, s]
            for i in range(size):
                for s in range(width):
                    work[i * (i + 3) // 2, s] += ridges[r]
                    work[n_entries + i, s] = diff[i, first + s]
            for s in range(width):
                parts[r, first + s] = 0
            for j in range(size):
                pivot, dj = j * (j + 3) // 2, n_entries + j
                for s in range(width):
                    work[inverse, s] = 1 / work[pivot, s]
                for s in range(width):
                    parts[r, first + s] += work[dj, s] * work[dj, s] * work[inverse, s]
                for i in range(size - 1, j, -1):
                    below, di = i * (i + 1) // 2 + j, n_entries + i
                    for s in range(width):
                        work[ratio, s] = work[below, s] * work[inverse, s]
                    for s in range(width):
                        work[di, s] -= work[ratio, s] * work[dj, s]
                    for m in range(j + 1, i + 1):
                        entry, other = i * (i + 1) // 2 + m, m * (m + 1) // 2 + j
                        for s in range(width):
                            work[entry, s] -= work[ratio, s] * work[other, s]


@compiled
def _eigen_parts(
    diff: Floats,
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
                projection[s] += np.float64(vector[s]) * d[s]
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
        frames: (M, n (1 + L), S), or (M, L (L + 1) / 2, S) for p = 0.
        layout: (L, S).
        ridges: (R,) in units of the frames.
        p: 1 or 2 with eigenvectors; 0 with Cholesky factors (power 2, all eigenvectors).
        by_set: (Q, K, S) terms under the first ridge, or (0, K, S) if they are not wanted.
        totals: (Q, K, R) the same summed over the sets.
    """
    size, sets = layout.shape
    n_entries = size * (size + 1) // 2
    diff = np.zeros((size, sets))
    block = min(BLOCK, sets)
    factor, gram = np.zeros((n_entries, block)), np.zeros((n_entries, block))
    work = np.zeros((n_entries + size + 2, block))
    projection, parts = np.zeros(sets), np.zeros((len(ridges), sets))
    for q in range(start, stop):
        for k in range(rows.shape[1]):
            _differences(queries[q], features[rows[q, k]], layout, diff)
            frame = frames[slots[q, k]]
            if p == 0:
                _factor_parts(diff, frame, ridges, factor, gram, work, parts)
            else:
                _eigen_parts(diff, frame, ridges, p, projection, parts)
            for r in range(len(ridges)):
                totals[q, k, r] = parts[r].sum()
            if len(by_set):
                by_set[q, k] = parts[0]
