"""What each feature adds to a score: one definition for all operators whose terms are squares.

Such a score is a mean, sum or minimum over neighbours x_n (or centres) of a squared length,

    score(q) = mean over n of v' A_n v,    v = q - x_n,

where A_n is the identity (k-NN), or (C + r I)^-1 of a covariance C (Global, Local, Hull; k-NNN with
one C for each set of features). With the symmetric root of A_n, v' A_n v = |A_n^(1/2) v|^2, so that

    share_d(q) = mean over n of (A_n^(1/2) v)_d^2

is never negative and adds up to the score. For k-NN it is the mean of (q_d - x_n,d)^2. Among all
roots of A_n the symmetric one leaves the coordinates nearest to the features they were (Kessy,
Lewin and Strimmer, "Optimal whitening and decorrelation", 2018), so feature d of the root is still
about feature d. For a minimum, only the neighbour that gives the score counts.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.errors import InputError
from nnad.neighbors import checked_features

Array = NDArray[np.float64]


def one_query(query: NDArray[Any], dim: int) -> NDArray[np.float32]:
    """(D,) -> (1, D), or an `InputError`."""
    return checked_features(np.asarray(query)[None], "query", dim=dim)


def check_squares(p: int) -> None:
    """Raise an `InputError` unless p is 2."""
    if p != 2:
        raise InputError("p=1: a sum over directions does not split over features; p=2 does")


def reduced(parts: Array, reduction: str) -> Array:
    """What each neighbour gives (k, D) -> (D,): their `mean`, `sum`, or the row of least sum."""
    if reduction == "min":
        return np.asarray(parts[parts.sum(axis=1).argmin()])
    return np.asarray(parts.mean(axis=0) if reduction == "mean" else parts.sum(axis=0))


def outside(differences: Array, vectors: Array) -> Array:
    """(..., D) differences without what lies along the vectors (..., r, D)."""
    along = np.einsum("...rd,...d->...r", vectors, differences)
    return np.asarray(differences - np.einsum("...r,...rd->...d", along, vectors))


def whitened(differences: Array, values: Array, vectors: Array, ridge: float) -> Array:
    """(C + ridge I)^(-1/2) of differences (..., D), the symmetric root.

    Args:
        differences: (..., D).
        values: (..., r), vectors: (..., r, D): eigenvalues and eigenvectors of C, as from
            `spaces.directions`; where C has none its eigenvalue is 0.
        ridge: added to every eigenvalue; with 0, what is outside of the span is left out.
    """
    along = np.einsum("...rd,...d->...r", vectors, differences)
    varies = values > 0
    weights = np.where(varies, 1 / np.sqrt(np.where(varies, values, 1) + ridge), 0)
    inside = np.einsum("...r,...rd->...d", along * weights, vectors)
    return np.asarray(inside + outside(differences, vectors) / np.sqrt(ridge) if ridge else inside)


def whitened_by_factor(differences: Array, factors: NDArray[Any], ridge: float) -> Array:
    """(C + ridge I)^(-1/2) d of k-NNN's sets, C being their covariances.

    Args:
        differences: (k, L, S).
        factors: (k, L (L + 1) / 2, S), triangles W with W' W = ridge (C + ridge I)^-1, see
            `frames.ridge_frames`.
        ridge: in units of the covariances.

    Returns:
        (k, L, S)
    """
    size = differences.shape[1]
    lower = np.zeros((len(factors), factors.shape[2], size, size))  # (k, S, L, L)
    row, column = np.tril_indices(size)
    lower[:, :, row, column] = np.moveaxis(factors, 1, 2)
    values, vectors = np.linalg.eigh(np.swapaxes(lower, 2, 3) @ lower)  # columns are eigenvectors
    along = np.einsum("ksij,kis->ksj", vectors, differences)
    along *= np.sqrt(np.maximum(values, 0) / ridge)
    return np.asarray(np.einsum("ksij,ksj->kis", vectors, along))


def whitened_by_vectors(differences: Array, found: NDArray[Any], ridge: float) -> Array:
    """The same of n eigenvectors of each set: sum over j of v_j (v_j . d) / sqrt(e_j + ridge).

    They are stored in float32: its squares add up to the score to about 1e-7.

    Args:
        differences: (k, L, S).
        found: (k, n (1 + L), S), see `frames.eigen_frames`.
        ridge: in units of the frames.

    Returns:
        (k, L, S)
    """
    k, size, sets = differences.shape
    n = found.shape[1] // (1 + size)
    roots = found[:, :n].astype(np.float64)  # (k, n, S)
    vectors = found[:, n:].reshape(k, n, size, sets).astype(np.float64)
    along = np.einsum("kjis,kis->kjs", vectors, differences) / np.sqrt(np.square(roots) + ridge)
    return np.asarray(np.einsum("kjis,kjs->kis", vectors, along))
