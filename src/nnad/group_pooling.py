"""The features of a group's members (M, D) -> one vector, or one number, for the group (DN2 3.3).

- `mean`, `max`: over the members, whatever their order. The mean is what the paper chose.
- `concat`: one after the other, the paper's baseline, in an order that is drawn; every group needs
  as many members.
- `trace`: no vector but a score, the trace of the covariance of the members (DN2 4.5), which needs
  no other group. With ddof = 1 its mean does not depend on M.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
POOLINGS = ("mean", "max", "concat", "trace")


def pooled(members: NDArray[Any], pooling: str) -> Vector:
    """(M, D) -> (D,), or (M D,) for `concat`, which takes the order as it is."""
    if pooling == "concat":
        vector = members.ravel()
    elif pooling == "max":
        vector = members.max(axis=0)
    else:
        vector = members.mean(axis=0, dtype=np.float64)
    return np.asarray(vector, dtype=np.float32)


def without_each(members: NDArray[Any], pooling: str) -> Vector:
    """(M, D) -> (M, D), the mean or maximum of the group without each member in turn; M >= 2."""
    if pooling == "max":
        second, first = np.partition(members, -2, axis=0)[-2:]
        return np.asarray(np.where(members == first, second, first), dtype=np.float32)
    wide = np.asarray(members, dtype=np.float64)
    return np.asarray((wide.sum(axis=0) - wide) / (len(wide) - 1), dtype=np.float32)


def spread_parts(members: NDArray[Any]) -> NDArray[np.float64]:
    """(M, D) -> (M,) |x_i - mean|^2 / (M - 1): what each member adds to the trace; M >= 2."""
    wide = np.asarray(members, dtype=np.float64)
    sq_dists = np.square(wide - wide.mean(axis=0)).sum(axis=1)
    return np.asarray(sq_dists / (len(wide) - 1))


def trace_of_covariance(members: NDArray[Any]) -> float:
    """(M, D) -> the sum of the features' variances within the group, ddof = 1; M >= 2."""
    return float(spread_parts(members).sum())
