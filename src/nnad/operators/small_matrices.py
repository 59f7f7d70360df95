"""Decompositions of many small symmetric matrices side by side, (entries, B) in float64."""

import numpy as np
from numpy.typing import NDArray

from nnad.operators.compiled import compiled

Floats = NDArray[np.float64]

_SWEEPS = 30  # Jacobi converges in 5 to 8
_NEGLIGIBLE = 1e-34  # an entry whose square is this part of its diagonal entries' product


@compiled
def inverse_factor(matrix: Floats) -> None:
    """Lower triangles A (L (L + 1) / 2, B) of definite matrices -> W with W' W = A^-1, in place.

    A = C C' by Cholesky, then W = C^-1.
    """
    n_entries, block = matrix.shape
    size = int(np.sqrt(2 * n_entries))
    for j in range(size):
        pivot = matrix[j * (j + 3) // 2]
        for s in range(block):
            pivot[s] = 1 / np.sqrt(pivot[s])  # of W already
        for i in range(j + 1, size):
            below = matrix[i * (i + 1) // 2 + j]
            for s in range(block):
                below[s] *= pivot[s]
            for m in range(j + 1, i + 1):
                entry, other = matrix[i * (i + 1) // 2 + m], matrix[m * (m + 1) // 2 + j]
                for s in range(block):
                    entry[s] -= below[s] * other[s]
    for j in range(size):
        for i in range(j + 1, size):  # w_ij = -w_ii sum_m c_im w_mj, j <= m < i
            entry, first, pivot = (
                matrix[i * (i + 1) // 2 + j],
                matrix[j * (j + 3) // 2],
                matrix[i * (i + 3) // 2],
            )
            for s in range(block):
                entry[s] *= first[s]
            for m in range(j + 1, i):
                c, w = matrix[i * (i + 1) // 2 + m], matrix[m * (m + 1) // 2 + j]
                for s in range(block):
                    entry[s] += c[s] * w[s]
            for s in range(block):
                entry[s] *= -pivot[s]


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
def jacobi(cov: Floats, vectors: Floats, work: Floats) -> None:
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
