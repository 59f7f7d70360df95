"""Cleaning: which images of an unlabelled folder look least like the others (DN2, section 3.2).

Each image is scored by its distance to the nearest others, itself left out by row and not by
distance, so that duplicates count; the images with the highest scores are dropped. DN2 does that
once, with 2 neighbours, and drops half. Here:

1. Half of the images are the core, those with the lowest scores. A bank that holds anomalies gives
   anomalies low scores, so all images are scored again against the core alone, each of its own
   against the others of it, and the core is chosen anew, until nothing changes.
2. From the core on the same is done with what is kept, 65 %: to drop good images costs something,
   too, and half is more than is needed once the core says which.

Anomalies of one kind vouch for each other: among k neighbours, k + 1 of them are in company. So k
grows with the folder, to 3 % of it. docs/cleaning.md has what all this gains and costs.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from nnad.errors import InputError
from nnad.neighbors import Bank
from nnad.operators import Operator, make_operator
from nnad.operators.arguments import check_amount, check_count

FRACTION = 0.35
LEAST = 4  # images that are left
_SHARE, _MOST = 0.03, 200  # neighbours: a share of the images, and a bound on memory

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Cleaning:
    """What is proposed for N images.

    Attributes:
        scores: (N,) higher is more anomalous; of the last round.
        kept: (N,) bool.
        nearest: (N,) the row of the nearest image among those that the score compares with.
        distances: (N,) the Euclidean distance to it.
        rounds: how many were taken.
    """

    scores: Scores
    kept: NDArray[np.bool_]
    nearest: NDArray[np.int64]
    distances: Scores
    rounds: int

    @property
    def order(self) -> NDArray[np.int64]:
        """(N,) rows, the highest score first, equal ones in their own order."""
        return np.argsort(-self.scores, kind="stable")


def clean(
    features: NDArray[np.float32],
    *,
    operator: str | Operator = "knn",
    k: int | None = None,
    fraction: float | None = None,
    drop_good: float | None = None,
    rounds: int = 10,
) -> Cleaning:
    """Propose which of unlabelled images to keep.

    Args:
        features: (N, D) of all images, transformed.
        operator: what scores them: a name for `make_operator`, or an operator.
        k: its neighbours. By default 3 % of N, 2 to 200, for `knn`; for others their own.
        fraction: drop exactly floor(fraction N) images, of equal scores the first; 0.35 by default.
        drop_good: instead of a fraction, the share of good images that may be dropped, see `limit`.
        rounds: at most so many for the core, and as many from there. 1: a single one, without a
            core; with `k` = 2 and `fraction` = 0.5 it is DN2's cleaning.

    Raises:
        InputError: an argument is out of range, or fewer than 4 images would be left.
    """
    if fraction is not None and drop_good is not None:
        raise InputError("fraction and drop_good: give one of them")
    if drop_good is None:
        fraction = check_amount("fraction", FRACTION if fraction is None else fraction)
        if fraction >= 1:
            raise InputError(f"fraction={fraction:g}; expected less than 1, such as 0.5 for half")
    rounds = check_count("rounds", rounds)
    if isinstance(operator, str):
        if operator == "knn" and k is None:
            k = min(max(2, math.ceil(_SHARE * len(features))), _MOST)
        operator = make_operator(operator, **({} if k is None else {"k": k}))
    elif k is not None:
        raise InputError("k: goes with the name of an operator; this operator has its own")

    def core(scores: Scores) -> NDArray[np.bool_]:
        return _lowest(scores, min(len(scores) // 2, len(scores) - LEAST))

    def choice(scores: Scores) -> NDArray[np.bool_]:
        if drop_good is not None:
            return np.asarray(scores <= limit(scores, drop_good))
        return _lowest(scores, math.floor((fraction or 0) * len(scores) + 1e-9))

    kept = np.ones(len(features), dtype=bool)
    _check_left(kept)
    taken = 0
    for keep in (core, choice) if rounds > 1 else (choice,):
        for _ in range(rounds):
            scores, nearest, distances = _scored(features, kept, operator)
            before, kept = kept, keep(scores)
            _check_left(kept)
            taken += 1
            if np.array_equal(kept, before):
                break
    return Cleaning(scores, kept, nearest, distances, taken)


def limit(scores: Scores, drop_good: float) -> float:
    """The score (N,) that good images exceed with a probability of `drop_good`, if:

    more than half of the images are good, anomalies score higher than half of the good ones, and
    the logarithms of good scores are normally distributed. Then their mean and spread are read from
    the cleaner half, the median m and the lower quartile q, as (m - q) / 0.674; anomalies move both
    up, so that less is dropped. This is Hampel's identifier (1974) with the spread of the lower
    half alone; to read the null distribution from the bulk of the scores is Efron's empirical null
    ("Large-scale simultaneous hypothesis testing", 2004). Nothing of it is proven without clean
    images; docs/cleaning.md has measurements.

    Raises:
        InputError: `drop_good` is not a fraction between 0 and 0.5.
    """
    if not 0 < check_amount("drop_good", drop_good) <= 0.5:
        raise InputError(
            f"drop_good={drop_good:g}; a share of the good images, such as 0.05 for 5 %"
        )
    quartile, median = np.quantile(scores, [0.25, 0.5])
    if not 0 < quartile < median:  # so many copies that nothing can be said about the spread
        return math.inf
    spread = math.log(median / quartile) / norm.ppf(0.75)
    return float(median * math.exp(spread * norm.ppf(1 - drop_good)))


def rough_rate(budget: float, kept: int, unseen: int) -> float:
    """Roughly this share of good images is called anomalies by a model of the kept ones.

    Dropping cuts the tail off the scores that calibrate. If all `unseen` images, dropped without a
    person's word, are good and score above the threshold, then of kept + unseen good scores
    budget (kept + 1) + unseen lie above it. That is no bound: each kept image voted for itself in
    the cleaning, and a new one did not, so that the true share can be higher; where few of those
    dropped are good, it is lower. With none unseen this is the budget.

    Args:
        budget: the model's own.
        kept: images of the model.
        unseen: images that were dropped and that no person rejected.
    """
    return (budget * (kept + 1) + unseen) / (kept + unseen + 1)


def _lowest(scores: Scores, dropped: int) -> NDArray[np.bool_]:
    """(N,) which images stay when so many with the highest scores go, of equal ones the first."""
    kept = np.ones(len(scores), dtype=bool)
    kept[np.argsort(-scores, kind="stable")[:dropped]] = False
    return kept


def _check_left(kept: NDArray[np.bool_]) -> None:
    if kept.sum() < LEAST:
        raise InputError(
            f"cleaning would leave {kept.sum()} of {len(kept)} images; {LEAST} are needed"
        )


def _scored(
    features: NDArray[np.float32], kept: NDArray[np.bool_], operator: Operator
) -> tuple[Scores, NDArray[np.int64], Scores]:
    """Scores, nearest rows and distances of all (N, D) against the kept, each without itself."""
    rows = np.flatnonzero(kept)
    bank = Bank(features[rows])
    operator = copy.copy(operator).fit(bank)
    scores, nearest, sq_dists = np.empty(len(kept)), np.empty(len(kept), int), np.empty(len(kept))
    scores[kept] = operator.left_out_scores()
    found = bank.others(1)  # known from the scores, for most operators
    nearest[kept], sq_dists[kept] = rows[found.rows[:, 0]], found.sq_dists[:, 0]
    if len(rows) < len(kept):
        found = bank.nearest(features[~kept], min(getattr(operator, "k", 1), len(bank)))
        scores[~kept] = operator.score(features[~kept], found)
        nearest[~kept], sq_dists[~kept] = rows[found.rows[:, 0]], found.sq_dists[:, 0]
    return scores, nearest, np.sqrt(sq_dists)
