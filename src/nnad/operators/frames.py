"""Kernels of k-NNN: the local frames of a neighbourhood in every set of features.

Features are grouped into S sets of L (`layout`, see ordering.py). A frame describes, for one
neighbourhood of K bank rows, the covariance (L, L) of each set: either as its Cholesky factor or as
its eigenvectors. Every inner loop runs over the sets, which lie side by side in memory, so that the
compiler turns it into vector instructions: decompositions of 5 x 5 matrices are done 64 at a time.

Accuracy: means, covariances and decompositions are computed in float64 from the float32 features
(covariances with the mean removed first, error a few 1e-16 of the largest variance in the set);
only the finished frame is rounded. A rounded factor C moves the small eigenvalues e of C C' + r by
at most 2 sqrt(e) |dC|, where rounding the covariance itself would move them by |d(C C')|.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.operators.compiled import compiled, in_threads

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCK = 64  # sets handled side by side
_SWEEPS = 30  # Jacobi converges in 5 to 8
_NEGLIGIBLE = 1e-34  # an entry whose square is this part of its diagonal entries' product
_PIVOT = 1e-15  # a pivot below this part of its diagonal entry is rounding error: rank is lost


@compiled
def _gather(features: NDArray[np.float32], members: Ints, places: Ints, gathered: Floats) -> None:
    """Copy the member rows (K,) in the order of `places` (D,) into gathered (K, blocks, L, B)."""
    flat = gathered.reshape(len(gathered), -1)
    for m in range(len(members)):
        row = members[m]
        for d in range(len(places)):
            flat[m, places[d]] = features[row, d]


@compiled
def _places(layout: Ints, block: int) -> Ints:
    """Where each feature goes in (blocks, L, B), as a flat index; (D,)."""
    size, sets = layout.shape
    places = np.zeros((layout >= 0).sum(), np.int64)
    for i in range(size):
        for s in range(sets):
            if layout[i, s] >= 0:
                places[layout[i, s]] = (s // block * size + i) * block + s % block
    return places


@compiled
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


@compiled
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
    block = min(BLOCK, sets)
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


@compiled
def _diagonal(cov: Floats, size: int) -> bool:
    """Whether all entries beside the diagonal have become negligible."""
    for q in range(size):
        for p in range(q):
            pp, qq, pq = p * (p + 3) // 2, q * (q + 3) // 2, q * (q + 1) // 2 + p
            for s in range(cov.shape[1]):
                if cov[pq, s] ** 2 > _NEGLIGIBLE * np.abs(cov[pp, s] * cov[qq, s]) + 1e-300:
                    return False
    return True


@compiled
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


@compiled
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
    block = min(BLOCK, sets)
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


@compiled
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
