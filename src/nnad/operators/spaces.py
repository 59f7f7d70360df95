"""Eigenvectors of a set of points: the directions in which the good features vary.

Of n points in D dimensions at most n - 1 directions have a variance. The others are equal: no basis
of them is better than another. So they are never enumerated: what a difference has outside the
span counts as one more direction, whose eigenvalue is the ridge. With more points than dimensions
nothing is outside, and the sums below are those of the k-NNN paper.
"""

import numpy as np
from numpy.typing import NDArray

from nnad.errors import InputError

Array = NDArray[np.float64]


def directions(points: Array) -> tuple[Array, Array]:
    """Eigenvalues (..., r) and eigenvectors (..., r, D) of the covariance of points (..., n, D).

    ddof = 1; r = min(n - 1, D), largest first; directions without variance have eigenvalue 0 and a
    vector of zeros.
    """
    n, dim = points.shape[-2:]
    centred = points - points.mean(axis=-2, keepdims=True)
    if n > dim:
        covariance = np.swapaxes(centred, -1, -2) @ centred / (n - 1)  # (..., D, D)
        values, vectors = np.linalg.eigh(covariance)
        vectors = np.swapaxes(vectors, -1, -2)
    else:  # the Gram matrix (..., n, n) has the same eigenvalues and is smaller
        gram = centred @ np.swapaxes(centred, -1, -2) / max(n - 1, 1)
        values, weights = np.linalg.eigh(gram)
        scale = np.sqrt(np.maximum(values, np.finfo(float).tiny) * max(n - 1, 1))
        vectors = np.swapaxes(weights / scale[..., None, :], -1, -2) @ centred
    values, vectors = values[..., ::-1], vectors[..., ::-1, :]
    rank = min(n - 1, dim)
    values, vectors = values[..., :rank].copy(), vectors[..., :rank, :].copy()
    nothing = values <= 1e-10 * values.max(axis=-1, keepdims=True, initial=0)
    values[nothing] = 0
    vectors[nothing] = 0
    return values, vectors


def mean_variance(features: NDArray[np.float32]) -> float:
    """vbar, the mean variance (ddof 1) of the features (N, D); 0 for one row."""
    return float(features.var(axis=0, dtype=np.float64, ddof=min(1, len(features) - 1)).mean())


def shrunk_sq_lengths(points: Array, steps: Array, ridge: float) -> Array:
    """ridge v' (C + ridge I)^-1 v of steps v, where C is the covariance of the points.

    It is |v|^2 for steps in directions in which the points do not vary, and less in others. For
    n <= D, with X the centred points and r = ridge (n - 1), it is by Woodbury's identity

        |v|^2 - (X v)' (X X' + r I)^-1 (X v)

    which needs matrices of n x n only.

    Args:
        points: (..., n, D), n >= 2.
        steps: (..., j, D).
        ridge: above 0, a variance.

    Returns:
        (..., j)
    """
    n, dim = points.shape[-2:]
    centred = points - points.mean(axis=-2, keepdims=True)
    if n > dim:
        covariance = np.swapaxes(centred, -1, -2) @ centred / (n - 1)  # (..., D, D)
        covariance[..., np.arange(dim), np.arange(dim)] += ridge
        solved = np.linalg.solve(covariance, np.swapaxes(steps, -1, -2))  # (..., D, j)
        return np.asarray(ridge * (np.swapaxes(solved, -1, -2) * steps).sum(axis=-1))
    gram = centred @ np.swapaxes(centred, -1, -2)  # (..., n, n), X X'
    gram[..., np.arange(n), np.arange(n)] += ridge * (n - 1)
    along = centred @ np.swapaxes(steps, -1, -2)  # (..., n, j), X v
    free = (along * np.linalg.solve(gram, along)).sum(axis=-2)  # (..., j)
    return np.asarray(np.maximum(np.square(steps).sum(axis=-1) - free, 0))


def normalized_length(
    differences: Array, values: Array, vectors: Array, ridge: float, p: int
) -> Array:
    """sum_j (|d . v_j| / sqrt(e_j + ridge))^p of differences (..., k, D), the rest as one more.

    k-NNN paper Eq. 3 with p = 1; p = 2 is the squared Mahalanobis distance.

    Args:
        differences: (..., k, D).
        values: (..., r), vectors: (..., r, D), as from `directions`, of all k.
        ridge: added to every eigenvalue.
        p: 1 or 2.

    Returns:
        (..., k)
    """
    along = differences @ np.swapaxes(vectors, -1, -2)  # (..., k, r)
    squares = np.square(differences).sum(axis=-1)  # (..., k)
    outside = np.maximum(squares - np.square(along).sum(axis=-1), 0)
    outside[outside <= 1e-10 * squares] = 0  # rounding
    if ridge == 0 and (outside > 0).any():
        raise InputError("ridge=0; features leave the span of the bank: a ridge > 0 is needed")
    varies = values > 0
    weights = np.where(varies, 1 / np.sqrt(np.where(varies, values, 1) + ridge), 0)
    inside = np.power(np.abs(along) * weights[..., None, :], p).sum(axis=-1)
    if ridge == 0:
        return np.asarray(inside)
    return np.asarray(inside + np.power(np.sqrt(outside / ridge), p))
