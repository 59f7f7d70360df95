"""What a choice among candidates is worth, measured on labels that had no part in it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.evaluate import Estimate

SPLITS = 200  # of the labels into halves


def chosen_gain(
    scores: NDArray[Any], odd: NDArray[np.bool_], *, splits: int = SPLITS, seed: int = 0
) -> Estimate:
    """What choosing by labels gains in AUROC over the first candidate.

    In each split a random half of the good images and of the anomalies chooses the candidate with
    the highest AUROC; the other half measures its gain.

    Args:
        scores: (C, T) of C candidates.
        odd: (T,) which images are anomalies.
        splits: how many.
        seed: of the halves.

    Returns:
        The mean gain, and the 2.5th and 97.5th percentile of the splits: 97.5 % of them gained more
        than the lower one. The splits share their images, so that this is no confidence interval.
    """
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(splits):
        chooses = np.zeros(len(odd), dtype=bool)
        for kind in (odd, ~odd):
            rows = rng.permutation(np.flatnonzero(kind))
            chooses[rows[: len(rows) // 2]] = True
        chosen = int(np.argmax([roc_auc_score(odd[chooses], each[chooses]) for each in scores]))
        measured = [roc_auc_score(odd[~chooses], scores[i][~chooses]) for i in (chosen, 0)]
        gains.append(measured[0] - measured[1])
    low, high = np.percentile(gains, [2.5, 97.5])
    return Estimate(float(np.mean(gains)), float(low), float(high))
