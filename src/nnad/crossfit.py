"""Scores by a fit that did not see the features, for what is learnt from all of them at once.

Which feature goes into which fold is decided by hashes, not by the order of the features, so that
the same images give the same model in any order.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 5


def ranks(features: NDArray[Any], *, seed: int = 0) -> NDArray[np.int64]:
    """(N,) the place of each of the features (N, D) in an order as random as SHA-256.

    Equal features are told apart by a number, so that the places of copies, too, are as random as
    any. Adding a feature moves the others by one place at most.
    """
    copies: Counter[bytes] = Counter()
    keys = []
    for row in np.ascontiguousarray(features):
        content = hashlib.sha256(row).digest()
        keys.append(hashlib.sha256(b"%b %d %d" % (content, copies[content], seed)).digest())
        copies[content] += 1
    places = np.empty(len(keys), dtype=np.int64)
    places[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return places


def folds_of(features: NDArray[Any], count: int, *, seed: int = 0) -> NDArray[np.int64]:
    """(N,) the fold, 0..count-1, of each of the features (N, D); sizes differ by one at most."""
    return ranks(features, seed=seed) * count // max(len(features), 1)


def cross_fitted(
    features: NDArray[Any],
    score: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]],
    *,
    seed: int = 0,
) -> NDArray[np.float64]:
    """(N,) scores of features (N, D), each from a fit on the other folds.

    Args:
        features: (N, D), N >= 2.
        score: (bank features, held-out features) -> scores of the held-out ones.
        seed: of the folds.

    A fold is scored by 4/5 of the features, so the scores are a little high: the safe side.
    """
    count = min(FOLDS, len(features))
    folds = folds_of(features, count, seed=seed)
    scores = np.empty(len(features))
    for i in range(count):
        scores[folds == i] = score(features[folds != i], features[folds == i])
    return scores
