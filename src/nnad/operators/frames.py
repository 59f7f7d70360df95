"""Kernels of k-NNN: sets of features, and local frames of a neighbourhood in every set.

Features are grouped into S sets of L (`layout`). A frame describes, for one neighbourhood of K bank
rows, the covariance (L, L) of each set: either as its Cholesky factor or as its eigenvectors.
Every inner loop runs over the sets, which lie side by side in memory, so that the compiler turns
it into vector instructions: decompositions of 5 x 5 matrices are done 64 at a time.

Accuracy: means, covariances and decompositions are computed in float64 from the float32 features
(covariances with the mean removed first, error a few 1e-16 of the largest variance in the set);
only the finished frame is rounded. A rounded factor C moves the small eigenvalues e of C C' + r by
at most 2 sqrt(e) |dC|, where rounding the covariance itself would move them by |d(C C')|.

The compiled code is cached beside this file, or in the user's cache where that is not writable.
It holds no Python lock: `in_threads` runs it on all cores and is safe to call from any thread.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from nnad.neighbors import Kernels

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_Function = TypeVar("_Function", bound=Callable[..., Any])

_BLOCK = 64  # sets handled side by side
_CORR_ROWS = 512  # rows a product while correlations are summed
_SWEEPS = 30  # Jacobi converges in 5 to 8
_NEGLIGIBLE = 1e-34  # an entry whose square is this part of its diagonal entries' product
_PIVOT = 1e-15  # a pivot below this part of its diagonal entry is rounding error: rank is lost


def _compiled(function: _Function) -> _Function:
    """Compile with numba; `contract` permits fused multiply-add, and nothing else is relaxed."""
    compiler: Any = numba.njit(cache=True, nogil=True, fastmath={"contract"})
    compiled: _Function = compiler(function)
    return compiled


def _summing(function: _Function) -> _Function:
    """Compile as above, and let sums be taken in any order."""
    compiler: Any = numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
    compiled: _Function = compiler(function)
    return compiled


def in_threads(kernel: Callable[..., None], count: int, *args: object) -> None:
    """Call kernel(start, stop, *args) for parts of range(count) on all cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = min(4 * (cores or 1), count)  # more parts than cores, so that none waits long
    if parts <= 1 or cores == 1:
        kernel(0, count, *args)
        return
    bounds = [count * i // parts for i in range(parts + 1)]
    with ThreadPoolExecutor(cores) as pool:
        jobs = [pool.submit(kernel, a, b, *args) for a, b in pairwise(bounds)]
        for job in jobs:
            job.result()


def moments(features: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Mean (D,) and scatter matrix (D, D), the sum of (x - mean)(x - mean)', in float64."""
    blocks = [slice(i, i + _CORR_ROWS) for i in range(0, len(features), _CORR_ROWS)]
    mean = sum(features[b].sum(axis=0, dtype=np.float64) for b in blocks) / len(features)
    scatter = np.zeros((features.shape[1], features.shape[1]))
    for b in blocks:
        centred = features[b] - mean
        scatter += centred.T @ centred
    return np.asarray(mean), scatter


def abs_correlations(scatter: Floats) -> Floats:
    """(D, D) scatter -> (D, D) |correlation| in its place; 0 for a feature that never changes."""
    sd = np.sqrt(scatter.diagonal())
    inverse = np.divide(1, sd, out=np.zeros_like(sd), where=sd > 0)
    corr = np.abs(scatter, out=scatter)
    corr *= inverse
    corr *= inverse[:, None]
    return corr


@_compiled
def greedy_order(abs_corr: Floats, set_size: int) -> Ints:
    """The paper's re-ordering, (D, D) -> (D,) feature indices, to be cut into sets of `set_size`.

    Entry 0 stays. Within a set the next entry has the highest mean |corr| with the previous at
    most two entries of that set; a new set starts with the entry of lowest mean |corr| with the
    last two entries placed. Ties go to the lower index.
    """
    dim = len(abs_corr)
    order = np.zeros(dim, np.int64)
    free = np.ones(dim, np.bool_)
    free[0] = False
    for place in range(1, dim):
        new_set = place % set_size == 0
        last = abs_corr[order[place - 1]]
        two = place >= 2 if new_set else place % set_size >= 2
        before = abs_corr[order[place - 2]] if two else last
        sign = -1.0 if new_set else 1.0
        best, best_value = -1, 0.0
        for d in range(dim):
            value = sign * (last[d] + before[d])
            if free[d] and (best < 0 or value > best_value):
                best, best_value = d, value
        order[place] = best
        free[best] = False
    return order


def set_layout(order: Ints, set_size: int) -> Ints:
    """(D,) -> (L, S): column s holds the features of set s; -1 fills up a short last set."""
    sets = -(-len(order) // set_size)
    padded = np.full(sets * set_size, -1, dtype=np.int64)
    padded[: len(order)] = order
    return np.ascontiguousarray(padded.reshape(sets, set_size).T)


@_compiled
def _gather(features: NDArray[np.float32], members: Ints, places: Ints, gathered: Floats) -> None:
    """Copy the member rows (K,) in the order of `places` (D,) into gathered (K, blocks, L, B)."""
    flat = gathered.reshape(len(gathered), -1)
    for m in range(len(members)):
        row = members[m]
        for d in range(len(places)):
            flat[m, places[d]] = features[row, d]


@_compiled
def _places(layout: Ints, block: int) -> Ints:
    """Where each feature goes in (blocks, L, B), as a flat index; (D,)."""
    size, sets = layout.shape
    places = np.zeros((layout >= 0).sum(), np.int64)
    for i in range(size):
        for s in range(sets):
            if layout[i, s] >= 0:
                places[layout[i, s]] = (s // block * size + i) * block + s % block
    return places


@_compiled
def _covariances(gathered: Floats, b: int, mean: Floats, cov: Floats) -> None:
    """Covariance (ddof 1) of the sets in block b over the gathered rows; lower triangle.

    Args:
        gathered: (K, blocks, L, B), K >= 2; the block is centred in place.
        b: the block.
        mean: (L, B) work space.
        cov: (L (L + 1) / 2, B) result; entry (i, j) at row i (i + 1) / 2 + j.
    """
    n_rows, _, size, block = gathered.shape
    mean[:] = 0
    for m in range(n_rows):
        for i in range(size):
            for s in range(block):
                mean[i, s] += gathered[m, b, i, s]
    mean /= n_rows
    for m in range(n_rows):
        for i in range(size):
            for s in range(block):
                gathered[m, b, i, s] -= mean[i, s]
    cov[:] = 0
    for m in range(n_rows):
        for i in range(size):
            for j in range(i + 1):
                entry = i * (i + 1) // 2 + j
                for s in range(block):
                    cov[entry, s] += gathered[m, b, i, s] * gathered[m, b, j, s]
    cov /= n_rows - 1


@_compiled
def factor_frames(
    start: int,
    stop: int,
    features: NDArray[np.float32],
    members: Ints,
    layout: Ints,
    unit: float,
    out: NDArray[np.float32],
) -> None:
    """Cholesky factors C with C C' = covariance / unit of each set; rank may be lost.

    Args:
        start, stop: the frames to compute.
        features: (N, D).
        members: (M, K) rows of each neighbourhood.
        layout: (L, S).
        unit: variance that counts as 1.
        out: (M, L (L + 1) / 2, S).
    """
    size, sets = layout.shape
    block = min(_BLOCK, sets)
    n_blocks = (sets + block - 1) // block
    places = _places(layout, block)
    gathered = np.zeros((members.shape[1], n_blocks, size, block))
    mean = np.zeros((size, block))
    cov = np.zeros((size * (size + 1) // 2, block))
    inverse = np.zeros(block)
    diagonal = np.zeros((size, block))
    for frame in range(start, stop):
        _gather(features, members[frame], places, gathered)
        for b in range(n_blocks):
            first, width = b * block, min(block, sets - b * block)
            _covariances(gathered, b, mean, cov)
            for i in range(size):
                diagonal[i] = cov[i * (i + 3) // 2]
            for j in range(size):
                pivot = j * (j + 3) // 2
                for s in range(block):
                    kept = cov[pivot, s] > _PIVOT * diagonal[j, s]
                    cov[pivot, s] = np.sqrt(cov[pivot, s]) if kept else 0.0
                    inverse[s] = 1.0 / cov[pivot, s] if kept else 0.0
                for i in range(j + 1, size):
                    below = i * (i + 1) // 2 + j
                    for s in range(block):
                        cov[below, s] *= inverse[s]
                    for m in range(j + 1, i + 1):
                        entry, other = i * (i + 1) // 2 + m, m * (m + 1) // 2 + j
                        for s in range(block):
                            cov[entry, s] -= cov[below, s] * cov[other, s]
            scale = 1.0 / np.sqrt(unit)
            for t in range(len(cov)):
                for s in range(width):
                    out[frame, t, first + s] = cov[t, s] * scale


@_compiled
def _diagonal(cov: Floats, size: int) -> bool:
    """Whether all entries beside the diagonal have become negligible."""
    for q in range(size):
        for p in range(q):
            pp, qq, pq = p * (p + 3) // 2, q * (q + 3) // 2, q * (q + 1) // 2 + p
            for s in range(cov.shape[1]):
                if cov[pq, s] ** 2 > _NEGLIGIBLE * np.abs(cov[pp, s] * cov[qq, s]) + 1e-300:
                    return False
    return True


@_compiled
def _jacobi(cov: Floats, vectors: Floats, work: Floats) -> None:
    """Eigenvalues and eigenvectors of B symmetric matrices by cyclic Jacobi rotations, in place.

    Args:
        cov: (L (L + 1) / 2, B) lower triangles; the diagonal becomes the eigenvalues.
        vectors: (L, L, B) result: vectors[j, :, b] belongs to diagonal entry j.
        work: (2, B) work space for the cosines and sines.
    """
    size, _, block = vectors.shape
    vectors[:] = 0
    for i in range(size):
        vectors[i, i] = 1
    for _ in range(_SWEEPS):
        if _diagonal(cov, size):
            return
        for q in range(size):
            for p in range(q):
                pp, qq, pq = p * (p + 3) // 2, q * (q + 3) // 2, q * (q + 1) // 2 + p
                for s in range(block):  # rotate so that entry pq becomes 0
                    a = cov[pq, s]
                    small = a * a <= _NEGLIGIBLE * np.abs(cov[pp, s] * cov[qq, s]) + 1e-300
                    theta = (cov[qq, s] - cov[pp, s]) / (1.0 if small else 2 * a)
                    tangent = 1 / (np.abs(theta) + np.sqrt(theta * theta + 1))
                    tangent = 0.0 if small else (-tangent if theta < 0 else tangent)
                    work[0, s] = 1 / np.sqrt(tangent * tangent + 1)
                    work[1, s] = tangent * work[0, s]
                    cov[pp, s] -= tangent * a
                    cov[qq, s] += tangent * a
                    cov[pq, s] = 0
                for r in range(size):
                    if r not in (p, q):
                        rp = r * (r + 1) // 2 + p if r > p else p * (p + 1) // 2 + r
                        rq = r * (r + 1) // 2 + q if r > q else q * (q + 1) // 2 + r
                        for s in range(block):
                            x, y = cov[rp, s], cov[rq, s]
                            cov[rp, s] = work[0, s] * x - work[1, s] * y
                            cov[rq, s] = work[1, s] * x + work[0, s] * y
                    for s in range(block):
                        x, y = vectors[p, r, s], vectors[q, r, s]
                        vectors[p, r, s] = work[0, s] * x - work[1, s] * y
                        vectors[q, r, s] = work[1, s] * x + work[0, s] * y


@_compiled
def eigen_frames(
    start: int,
    stop: int,
    features: NDArray[np.float32],
    members: Ints,
    layout: Ints,
    unit: float,
    out: NDArray[Any],
) -> None:
    """sqrt(e / unit) and v of the n smallest eigenvalues e of each set's covariance.

    Args:
        start, stop, features, members, layout, unit: as in `factor_frames`.
        out: (M, n (1 + L), S): n square roots, smallest first, then n vectors of L entries.
            What a short last set lacks is zero.
    """
    size, sets = layout.shape
    n = out.shape[1] // (1 + size)
    block = min(_BLOCK, sets)
    n_blocks = (sets + block - 1) // block
    places = _places(layout, block)
    gathered = np.zeros((members.shape[1], n_blocks, size, block))
    mean = np.zeros((size, block))
    cov = np.zeros((size * (size + 1) // 2, block))
    vectors = np.zeros((size, size, block))
    work = np.zeros((2, block))
    values = np.zeros(size)
    for frame in range(start, stop):
        out[frame] = 0
        _gather(features, members[frame], places, gathered)
        for b in range(n_blocks):
            first = b * block
            _covariances(gathered, b, mean, cov)
            _jacobi(cov, vectors, work)
            for s in range(min(block, sets - first)):
                for i in range(size):
                    real = layout[i, first + s] >= 0
                    values[i] = cov[i * (i + 3) // 2, s] if real else np.inf
                for rank in range(n):
                    j = np.argmin(values)
                    if values[j] == np.inf:
                        break
                    out[frame, rank, first + s] = np.sqrt(max(values[j], 0.0) / unit)
                    for i in range(size):
                        out[frame, n + rank * size + i, first + s] = vectors[j, i, s]
                    values[j] = np.inf


@_compiled
def _differences(
    query: NDArray[np.float32], row: NDArray[np.float32], layout: Ints, out: Floats
) -> None:
    """query - row in the order of `layout`, (D,), (D,) -> (L, S)."""
    size, sets = layout.shape
    for i in range(size):
        for s in range(sets):
            d = layout[i, s]
            out[i, s] = np.float64(query[d]) - np.float64(row[d]) if d >= 0 else 0.0


@_compiled
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


@_compiled
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


@_compiled
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
    block = min(_BLOCK, sets)
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


@_compiled
def decode_halves(
    start: int,
    stop: int,
    halves: NDArray[np.uint16],
    picked: Ints,
    bits: NDArray[np.uint32],
    out: NDArray[np.float32],
) -> None:
    """float16 -> float32 for the picked rows: the bits are moved and the exponent is corrected.

    Args:
        start, stop: the rows of `out` to fill.
        halves: (M, ...) the bits of float16, two axes after the first; finite numbers only.
        picked: (P,) rows of `halves`.
        bits: (P, ...) the memory of `out` seen as uint32.
        out: (P, ...) result.
    """
    for row in range(start, stop):
        for t in range(halves.shape[1]):
            half, bit, value = halves[picked[row], t], bits[row, t], out[row, t]
            for s in range(len(half)):
                bit[s] = (np.uint32(half[s]) & np.uint32(0x7FFF)) << np.uint32(13)
            for s in range(len(half)):
                value[s] *= np.float32(2.0**112)
            for s in range(len(half)):
                bit[s] |= (np.uint32(half[s]) & np.uint32(0x8000)) << np.uint32(16)


def unpacked(stored: NDArray[Any], picked: Ints) -> NDArray[np.float32]:
    """(M, ., S) float32 or float16 frames -> the picked ones in float32."""
    if stored.dtype == np.float32:
        return np.asarray(stored[picked])
    out = np.empty((len(picked), *stored.shape[1:]), dtype=np.float32)
    args = (stored.view(np.uint16), picked, out.view(np.uint32), out)
    in_threads(decode_halves, len(picked), *args)
    return out


@_compiled
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


@_summing
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
