"""Which features belong together: the k-NNN paper's greedy re-ordering (section 3)."""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import ssyrk

from nnad.operators.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ROWS = 256  # at a time while moments and correlations are summed


def moments(features: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Mean (D,) and sum of squared deviations (D,) of each feature, in float64."""
    parts = _parts(features)
    mean = np.asarray(sum(part.sum(axis=0, dtype=np.float64) for part in parts) / len(features))
    scatter = np.zeros(len(mean))
    for part in parts:
        centred = part - mean
        scatter += np.square(centred, out=centred).sum(axis=0)
    return mean, scatter


def abs_correlations(
    features: NDArray[np.float32], mean: Floats, scatter: Floats
) -> NDArray[np.float32]:
    """|correlation| (D, D) of the features, right to about 1e-5; 0 for one that never changes.

    A product in float32 takes half the time of one in float64, and the order needs no more.

    Args:
        features: (N, D).
        mean, scatter: (D,), see `moments`.
    """
    sd = np.sqrt(scatter)
    inverse = np.divide(1, sd, out=np.zeros_like(sd), where=sd > 0)
    corr = np.zeros((len(mean), len(mean)), dtype=np.float32, order="F")
    for part in _parts(features):
        scaled = np.empty_like(part)
        np.subtract(part, mean, out=scaled)  # in float64, rounded
        scaled *= inverse
        corr = ssyrk(1, scaled.T, beta=1, c=corr, lower=True, overwrite_c=True)
    np.abs(corr, out=corr)
    corr += np.tril(corr, -1).T
    return np.asarray(corr.T)  # equal to itself, and in C order


def _parts(features: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [features[i : i + _ROWS] for i in range(0, len(features), _ROWS)]


@compiled
def greedy_order(abs_corr: NDArray[np.float32], set_size: int) -> Ints:
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
