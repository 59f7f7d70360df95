"""What is done to features before distances are taken.

- `raw`: nothing, as DN2 does.
- `l2`: each feature vector is scaled to length 1.
- `root`: signed square root of each entry, then length 1. Pooled features are sparse and their
  spread grows with their mean; the root evens that out (docs/decisions.md has the measurements).

Zero vectors stay zero.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]


def raw(features: NDArray[Any]) -> Features:
    """(N, D) -> (N, D), unchanged."""
    return np.asarray(features, dtype=np.float32)


def l2(features: NDArray[Any]) -> Features:
    """(N, D) -> (N, D): x / |x|."""
    wide = np.asarray(features, dtype=np.float64)
    norms = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    norms[norms == 0] = 1
    return np.asarray(wide / norms, dtype=np.float32)


def root(features: NDArray[Any]) -> Features:
    """(N, D) -> (N, D): sign(x) sqrt|x|, then x / |x|."""
    wide = np.asarray(features, dtype=np.float64)
    return l2(np.sign(wide) * np.sqrt(np.abs(wide)))


TRANSFORMS: dict[str, Callable[[NDArray[Any]], Features]] = {"raw": raw, "l2": l2, "root": root}
