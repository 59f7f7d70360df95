"""What is done to features before distances are taken.

- `raw`: nothing, as DN2 does.
- `l2`: each feature vector is scaled to length 1.
- `root`: signed square root of each entry, then length 1. Pooled features are sparse and their
  spread grows with their mean; the root evens that out (docs/decisions.md has the measurements).
- `log`: sign(x) log(1 + |x| / s), then length 1; s is 0.3 of the mean |x| of the good features.
- `white`: root, then global whitening with a ridge: along each eigenvector of the good features'
  covariance they are divided by sqrt(e + 3 vbar), vbar being the mean variance.

`log` and `white` learn numbers from the good features, the others nothing. Zero vectors stay zero.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.errors import InputError

Features = NDArray[np.float32]
Wide = NDArray[np.float64]
_BLOCK = 1_000_000  # numbers transformed at a time: 8 MB of float64


def raw(features: NDArray[Any]) -> Features:
    """(N, D) -> (N, D), unchanged."""
    return np.asarray(features, dtype=np.float32)


def l2(features: NDArray[Any]) -> Features:
    """(N, D) -> (N, D): x / |x|."""
    return _unit_rows(features, lambda wide: wide)


def root(features: NDArray[Any]) -> Features:
    """(N, D) -> (N, D): sign(x) sqrt|x|, then x / |x|."""
    return _unit_rows(features, lambda wide: np.sign(wide) * np.sqrt(np.abs(wide)))


def log(features: NDArray[Any], scale: float) -> Features:
    """(N, D) -> (N, D): sign(x) log(1 + |x| / scale), then x / |x|."""
    return _unit_rows(features, lambda wide: np.sign(wide) * np.log1p(np.abs(wide) / scale))


def _unit_rows(features: NDArray[Any], change: Callable[[Wide], Wide]) -> Features:
    """Changed features (N, D), each scaled to length 1; in blocks of rows, as float64 is large."""
    features = np.asarray(features)
    made = np.empty(features.shape, np.float32)
    step = max(_BLOCK // max(features.shape[1], 1), 1)
    for start in range(0, len(features), step):
        block = slice(start, start + step)
        changed = change(features[block].astype(np.float64, order="C"))
        norms = np.sqrt(np.square(changed).sum(axis=1, keepdims=True))
        norms[norms == 0] = 1
        made[block] = changed / norms
    return made


Transform = Callable[[NDArray[Any]], Features]
TRANSFORMS = ("raw", "l2", "root", "log", "white")
LEARNT = ("log", "white")  # learn numbers from the good features


def usual_transform(good: NDArray[Any]) -> str:
    """What `auto` stands for: `root`, or `l2` if a twentieth of good features (N, D) is negative.

    The root helps features that are sparse and not negative, such as those after a ReLU; signed
    ones it makes worse (docs/decisions.md).
    """
    return "l2" if np.mean(good < 0) > 0.05 else "root"


def fit_transform(name: str, good: NDArray[Any]) -> Transform:
    """The transform of that name, with what it learns from good features (N, D).

    Raises:
        InputError: no such transform.
    """
    if name == "log":
        scale = 0.3 * float(np.abs(good).mean(dtype=np.float64)) or 1.0
        return lambda features: log(features, scale)
    if name == "white":
        return _fit_white(good)
    plain = {"raw": raw, "l2": l2, "root": root}
    if name not in plain:
        raise InputError(f"transform={name!r}; choose one of {', '.join(TRANSFORMS)}")
    return plain[name]


def _fit_white(good: NDArray[Any]) -> Transform:
    """x -> (C + 3 vbar I)^(-1/2) (x - mean), with the covariance C of the good rooted features."""
    rooted = root(good).astype(np.float64)
    mean = rooted.mean(axis=0)
    centred = rooted - mean
    # directions in which good features vary, at most N; all others have the ridge alone
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)  # (r,), (r, D)
    values = np.square(spread) / max(len(rooted) - 1, 1)
    ridge = 3 * float(values.sum() / rooted.shape[1]) or 3.0
    gain = 1 / np.sqrt(values + ridge) - 1 / np.sqrt(ridge)  # (r,)

    def white(features: NDArray[Any]) -> Features:
        centred = root(features) - mean  # (N, D)
        # row by row: a product of many rows at once may round differently
        rows = [row / np.sqrt(ridge) + (gain * (directions @ row)) @ directions for row in centred]
        return np.asarray(rows, dtype=np.float32).reshape(centred.shape)

    return white
