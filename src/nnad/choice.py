"""What a choice among candidates is worth, measured on labels that had no part in it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

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
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(splits):
        chooses = np.zeros(len(odd), dtype=bool)
        for kind in (odd, ~odd):
            rows = rng.permutation(np.flatnonzero(kind))
            chooses[rows[: len(rows) // 2]] = True
        chosen = int(np.argmax([_area(each[chooses], odd[chooses]) for each in scores]))
        measured = [_area(scores[i][~chooses], odd[~chooses]) for i in (chosen, 0)]
        gains.append(measured[0] - measured[1])
    low, high = np.percentile(gains, [2.5, 97.5])
    return Estimate(float(np.mean(gains)), float(low), float(high))


def _area(scores: NDArray[Any], odd: NDArray[np.bool_]) -> float:
    """AUROC, by ranks."""
    ranks = rankdata(scores)[odd]
    n_odd, n_good = len(ranks), int((~odd).sum())
    return float((ranks.sum() - n_odd * (n_odd + 1) / 2) / (n_odd * n_good))
