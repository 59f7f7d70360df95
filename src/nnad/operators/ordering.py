"""Which features belong together: the k-NNN paper's greedy re-ordering (section 3)."""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk

from nnad.operators.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CORR_ROWS = 512  # rows a product while correlations are summed


def moments(features: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Mean (D,) and scatter matrix (D, D), the sum of (x - mean)(x - mean)', in float64."""
    blocks = [slice(i, i + _CORR_ROWS) for i in range(0, len(features), _CORR_ROWS)]
    mean = sum(features[b].sum(axis=0, dtype=np.float64) for b in blocks) / len(features)
    scatter = np.zeros((features.shape[1], features.shape[1]), order="F")
    for b in blocks:
        centred = features[b] - mean
        scatter = dsyrk(1, centred.T, beta=1, c=scatter, lower=True, overwrite_c=True)
    scatter += np.tril(scatter, -1).T
    return np.asarray(mean), scatter.T  # equal to itself, and in C order


def abs_correlations(scatter: Floats) -> Floats:
    """(D, D) scatter -> (D, D) |correlation| in its place; 0 for a feature that never changes."""
    sd = np.sqrt(scatter.diagonal())
    inverse = np.divide(1, sd, out=np.zeros_like(sd), where=sd > 0)
    corr = np.abs(scatter, out=scatter)
    corr *= inverse
    corr *= inverse[:, None]
    return corr


@compiled
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
