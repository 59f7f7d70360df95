"""Scores by a fit that did not see the features, for what is learnt from all of them at once."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 5


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
    folds = min(FOLDS, len(features))
    fold = np.random.default_rng(seed).permutation(len(features)) % folds
    scores = np.empty(len(features))
    for i in range(folds):
        scores[fold == i] = score(features[fold != i], features[fold == i])
    return scores
