"""Kernels of k-NNN: the local frames of a neighbourhood in every set of features.

Features are grouped into S sets of L (`layout`, see ordering.py). A frame describes, for one
neighbourhood of K bank rows, the covariance (L, L) of each set: either by its eigenvectors or, with
a ridge, by a triangular W with W' W = ridge (covariance + ridge)^-1. Every inner loop runs over
sets, which lie side by side in memory, so that the compiler turns it into vector instructions:
decompositions of 5 x 5 matrices are done 64 at a time. It does so only if the lines of an array are
sliced before they are looped over.

Accuracy: covariances and decompositions are computed in float64 from the float32 features (the
neighbourhood's first row is subtracted, error a few 1e-16 of the largest variance in the set); only
the finished frame is rounded. No entry of W is above 1, so that float16 can hold it, and a relative
error u of its entries moves |W d|^2 by about u sqrt(1 + e / ridge), e being the largest eigenvalue.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.operators.compiled import compiled, in_threads
from nnad.operators.halves import encode_halves
from nnad.operators.small_matrices import inverse_factor, jacobi

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK = 64  # sets handled side by side


def build(
    kernel: Callable[..., None],
    features: NDArray[np.float32],
    members: Ints,
    layout: Ints,
    unit: Any,
    out: NDArray[Any],
) -> None:
    """Compute frames with `ridge_frames` or `eigen_frames`, on all cores.

    Args:
        kernel: one of the two.
        features: (N, D).
        members: (M, K) rows of each neighbourhood, K >= 2.
        layout: (L, S).
        unit: variance that counts as 1; for `ridge_frames` R of them, (R,).
        out: (M, ., S) result in float16, float32 or float64, see the kernels.
    """
    used = np.zeros(len(features), dtype=bool)
    used[members] = True
    rows, members = np.flatnonzero(used), (np.cumsum(used) - 1)[members]
    halves = np.empty((0, *out.shape[1:]), dtype=np.uint16)
    if out.dtype == np.float16:
        halves, out = out.view(np.uint16), np.empty(halves.shape, dtype=np.float32)
    args = (features, rows, members, layout, unit, out, halves)
    in_threads(kernel, len(members), *args, per_core=1)  # as each part arranges its rows


@compiled
def _seen(rows: Ints, members: Ints) -> tuple[Ints, Ints]:
    """Those of the rows (U,) that some members (M, K) mean, and the members among these."""
    place, local = np.full(len(rows), -1), np.empty(members.shape, np.int64)
    seen, n = np.empty(len(rows), np.int64), 0
    for m in range(len(members)):
        for k in range(members.shape[1]):
            row = members[m, k]
            if place[row] < 0:
                place[row], seen[n] = n, rows[row]
                n += 1
            local[m, k] = place[row]
    return seen[:n], local


@compiled
def _arrange(
    features: NDArray[np.float32],
    rows: Ints,
    layout: Ints,
    first: int,
    out: NDArray[np.float32],
) -> None:
    """Copy rows (U,) so that a line holds one feature of each set from `first` on, (U, L, B)."""
    size, sets = layout.shape
    width = min(out.shape[2], sets - first)
    out[:, :, width:] = 0
    for u in range(len(rows)):
        row = features[rows[u]]
        for i in range(size):
            line, column = out[u, i], layout[i, first : first + width]
            for s in range(width):
                line[s] = row[column[s]]
            if column[width - 1] < 0:  # only the last set may be short
                line[width - 1] = 0


@compiled
def _store(
    made: NDArray[Any],
    width: int,
    frame: int,
    first: int,
    out: NDArray[Any],
    halves: NDArray[np.uint16],
) -> None:
    """Round a block of sets (T, B) to its place in `out`, or in `halves` if this is not empty."""
    bits = made.view(np.uint32)
    for t in range(len(made)):
        if len(halves):
            encode_halves(made[t], bits[t], halves[frame, t, first : first + width])
        else:
            source, target = made[t], out[frame, t, first : first + width]
            for s in range(width):
                target[s] = source[s]


@compiled
def _covariances(
    arranged: NDArray[np.float32], members: Ints, shifted: Floats, total: Floats, cov: Floats
) -> None:
    """Covariance (ddof 1) of B sets over the member rows; lower triangle.

    Three rows are added at a time: the compiler keeps no more lines apart.

    Args:
        arranged: (U, L, B).
        members: (K,), K >= 2.
        shifted: (3, L, B) work space.
        total: (L, B) work space.
        cov: (L (L + 1) / 2, B) result; entry (i, j) at row i (i + 1) / 2 + j.
    """
    _, size, block = arranged.shape
    n = len(members)
    total[:] = 0
    cov[:] = 0
    for first in range(1, n, 3):
        second, third = first + 1, first + 2  # or the origin again, which adds 0
        row0, row1, row2, origin = (
            arranged[members[first]],
            arranged[members[second if second < n else 0]],
            arranged[members[third if third < n else 0]],
            arranged[members[0]],
        )
        for i in range(size):
            a0, a1, a2, centre = row0[i], row1[i], row2[i], origin[i]
            d0, d1, d2, so_far = shifted[0, i], shifted[1, i], shifted[2, i], total[i]
            for s in range(block):
                d0[s] = np.float64(a0[s]) - np.float64(centre[s])
                d1[s] = np.float64(a1[s]) - np.float64(centre[s])
                d2[s] = np.float64(a2[s]) - np.float64(centre[s])
            for s in range(block):
                so_far[s] += d0[s] + d1[s] + d2[s]
        for i in range(size):
            d0, d1, d2 = shifted[0, i], shifted[1, i], shifted[2, i]
            for j in range(i + 1):
                b0, b1, b2 = shifted[0, j], shifted[1, j], shifted[2, j]
                entry = cov[i * (i + 1) // 2 + j]
                for s in range(block):
                    entry[s] += d0[s] * b0[s] + d1[s] * b1[s] + d2[s] * b2[s]
    for i in range(size):
        for j in range(i + 1):
            entry, d0, b0 = cov[i * (i + 1) // 2 + j], total[i], total[j]
            for s in range(block):
                entry[s] = (entry[s] - d0[s] * b0[s] * (1 / n)) * (1 / (n - 1))


@compiled
def ridge_frames(
    start: int,
    stop: int,
    features: NDArray[np.float32],
    rows: Ints,
    members: Ints,
    layout: Ints,
    units: Floats,
    out: NDArray[Any],
    halves: NDArray[np.uint16],
) -> None:
    """W with W' W = (covariance / unit + 1)^-1 of each set, for R units.

    Args:
        start, stop: the frames to compute.
        features: (N, D).
        rows: (U,) rows of the features.
        members: (M, K) which of these make each neighbourhood.
        layout: (L, S).
        units: (R,) variances that count as 1: ridges.
        out: (M, R L (L + 1) / 2, S) result, lower triangles; or empty.
        halves: the same as bits of float16; or empty.
    """
    size, sets = layout.shape
    block, n_entries = min(_BLOCK, sets), size * (size + 1) // 2
    seen, local = _seen(rows, members[start:stop])
    arranged = np.empty((len(seen), size, block), np.float32)
    shifted, total = np.empty((3, size, block)), np.empty((size, block))
    cov, matrix = np.empty((n_entries, block)), np.empty((n_entries, block))
    made = np.empty((len(units) * n_entries, block), out.dtype)
    for first in range(0, sets, block):
        _arrange(features, seen, layout, first, arranged)
        for frame in range(start, stop):
            _covariances(arranged, local[frame - start], shifted, total, cov)
            for r in range(len(units)):
                for t in range(n_entries):
                    source, target = cov[t], matrix[t]
                    for s in range(block):
                        target[s] = source[s] * (1 / units[r])
                for i in range(size):
                    matrix[i * (i + 3) // 2] += 1
                inverse_factor(matrix)
                made[r * n_entries : (r + 1) * n_entries] = matrix
            _store(made, min(block, sets - first), frame, first, out, halves)


@compiled
def eigen_frames(
    start: int,
    stop: int,
    features: NDArray[np.float32],
    rows: Ints,
    members: Ints,
    layout: Ints,
    unit: float,
    out: NDArray[Any],
    halves: NDArray[np.uint16],
) -> None:
    """sqrt(e / unit) and v of the n smallest eigenvalues e of each set's covariance.

    Args:
        start, stop, features, rows, members, layout, halves: as in `ridge_frames`.
        unit: variance that counts as 1.
        out: (M, n (1 + L), S): n square roots, smallest first, then n vectors of L entries.
            What a short last set lacks is zero.
    """
    size, sets = layout.shape
    block, n = min(_BLOCK, sets), out.shape[1] // (1 + size)
    seen, local = _seen(rows, members[start:stop])
    arranged = np.empty((len(seen), size, block), np.float32)
    shifted, total = np.empty((3, size, block)), np.empty((size, block))
    cov = np.empty((size * (size + 1) // 2, block))
    vectors, work = np.empty((size, size, block)), np.empty((2, block))
    values, made = np.empty(size), np.empty((out.shape[1], block), out.dtype)
    for first in range(0, sets, block):
        width = min(block, sets - first)
        _arrange(features, seen, layout, first, arranged)
        for frame in range(start, stop):
            made[:] = 0
            _covariances(arranged, local[frame - start], shifted, total, cov)
            jacobi(cov, vectors, work)
            for s in range(width):
                for i in range(size):
                    real = layout[i, first + s] >= 0
                    values[i] = cov[i * (i + 3) // 2, s] if real else np.inf
                for rank in range(n):
                    j = np.argmin(values)
                    if values[j] == np.inf:
                        break
                    made[rank, s] = np.sqrt(max(values[j], 0.0) / unit)
                    for i in range(size):
                        made[n + rank * size + i, s] = vectors[j, i, s]
                    values[j] = np.inf
            _store(made, width, frame, first, out, halves)
