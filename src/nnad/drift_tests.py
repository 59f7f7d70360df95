"""Do new images come from where the good ones came from? Tests, each with its own eye.

Good and new images are taken as one set of exchangeable images unless something changed; nothing
else is assumed of their distribution. The good scores are leave-one-out scores with a bank of
n - 1, the new ones have a bank of n: so far the tests on scores are very nearly exact, not quite
(benchmarks/drift.py measures them). The test on features is exact.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom

from nnad.neighbors import Bank

TAIL = 0.1  # this share of the good images has the highest scores
FEW = 0.25  # up to this share of odd images among good ones is no shift of everything
NEIGHBORS = 5
PERMUTATIONS = 999
_BLOCK = 100  # permutations at a time
_LARGEST_SAMPLE = 2000  # images of a side in the test on features
_BETS = np.array([-2.0, 0.0, 2.0])
_JUMP = 0.01


def exceedances(m: int, r: int, n: int) -> NDArray[np.float64]:
    """P(K >= k) for k = 0..m: so many of m new scores are above the r-th largest of n good ones.

    Of exchangeable images K is beta-binomial, BetaBin(m, r, n + 1 - r), whatever the distribution
    (Gumbel and von Schelling, "The distribution of the number of exceedances", Annals of
    Mathematical Statistics 21, 1950). A binomial test would take the luck of the n good images for
    a change.
    """
    chances = betabinom.pmf(np.arange(m + 1), m, r, n + 1 - r)
    return np.asarray(np.minimum(np.cumsum(chances[::-1])[::-1], 1.0))


def tail_test(good_scores: NDArray[np.float64], scores: NDArray[np.float64], r: int) -> float:
    """Are more new scores (m,) above the r-th largest good score (n,) than chance explains?"""
    n = len(good_scores)
    above = int((scores > np.sort(good_scores)[n - r]).sum())
    return float(exceedances(len(scores), r, n)[above])


def smallest_tail(n: int, m: int, r: int, level: float) -> int | None:
    """The least number of flagged images for which `tail_test` gives `level` or less, if any."""
    enough = np.flatnonzero(exceedances(m, r, n) <= level)
    return int(enough[0]) if len(enough) else None


def bulk_test(good_scores: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Have the scores (m,) of most images moved against the good ones (n,)? Two-sided.

    The control median test (Mathisen, "A method of testing the hypothesis that two samples are from
    the same population", Annals of Mathematical Statistics 14, 1943): K, the number of new scores
    above the median of the good ones, has the distribution of `exceedances`. Upwards, floor(FEW m)
    of them are not counted, nor in m: so many odd images may be among the new ones.
    """
    n, m = len(good_scores), len(scores)
    r = (n + 1) // 2
    median = np.sort(good_scores)[n - r]
    odd = int(FEW * m)
    above, below = int((scores > median).sum()), int((scores < median).sum())
    higher = exceedances(m - odd, r, n)[max(above - odd, 0)]
    lower = exceedances(m, n + 1 - r, n)[below]
    return float(min(1.0, 2 * min(higher, lower)))


def neighbor_test(
    good: NDArray[np.float32], new: NDArray[np.float32], rng: np.random.Generator
) -> tuple[float, float, float]:
    """Do new images have more new images among their nearest than chance explains?

    The nearest-neighbour two-sample test (Schilling, "Multivariate two-sample tests based on
    nearest neighbors", JASA 81, 1986; Henze, Annals of Statistics 16, 1988) by permutations: labels
    are drawn anew, the neighbours stay, so the p-value is exact. It sees shifts that are small
    against the variety of the images, if not against the distance of neighbours, where energy
    distance and means do not. Two changes make it blind to a few odd images: only new images
    count their neighbours, as good images next to odd ones have more good ones around them; and of
    the new images the share FEW that is the most isolated in the pooled sample is left out, in each
    permutation, too. Isolated is who is far from the neighbour of rank FEW m, so that
    a cluster of odd images is as well. Of more than 2,000 images a side, 2,000 are drawn.

    Args:
        good: (n, D), transformed.
        new: (m, D), transformed.
        rng: draws the permutations.

    Returns:
        The p-value; the mean share of new images among the 5 nearest; its mean in permutations.
    """
    good, new = (
        x[np.sort(rng.permutation(len(x))[:_LARGEST_SAMPLE])] if len(x) > _LARGEST_SAMPLE else x
        for x in (good, new)
    )
    n, m = len(good), len(new)
    pooled = np.concatenate([good, new])
    k = min(NEIGHBORS, n + m - 1)
    depth = min(max(k, int(FEW * m)), n + m - 1)
    found = Bank(pooled).nearest(pooled, depth, exclude=np.arange(n + m))
    order = np.argsort(found.sq_dists[:, -1], kind="stable")  # the most isolated last
    nearest = np.argsort(order)[found.rows[order, :k]]  # (N, k), rows in that order
    kept = m - int(FEW * m)

    def shares(is_new: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Labels (P, N), in that order -> (P,)."""
        counts = is_new[:, nearest].sum(axis=2)  # (P, N)
        counted = is_new & (np.cumsum(is_new, axis=1) <= kept)
        return np.asarray((counts * counted).sum(axis=1) / (kept * k))

    labels = order[None] >= n  # (1, N)
    seen = float(shares(labels)[0])
    blocks = [
        shares(rng.permuted(np.repeat(labels, min(_BLOCK, PERMUTATIONS - done), axis=0), axis=1))
        for done in range(0, PERMUTATIONS, _BLOCK)
    ]
    permuted = np.concatenate(blocks)  # (PERMUTATIONS,)
    p_value = (1 + int((permuted >= seen - 1e-12).sum())) / (1 + PERMUTATIONS)
    return p_value, seen, float(permuted.mean())


def online_p_values(
    good_scores: NDArray[np.float64], scores: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Smoothed conformal p-values (m,) of new images, each among the good and all earlier new ones.

    With exchangeable images these are independent and uniform (Vovk, Nouretdinov and Gammerman,
    "Testing exchangeability on-line", ICML 2003, Theorem 1). P-values against one fixed calibration
    set are not: they share its luck, and a martingale on them would not be one.

    Args:
        good_scores: (n,).
        scores: (m,), in the order of the images.
        rng: breaks ties.
    """
    seen = sorted(good_scores.tolist())
    p_values = []
    for score in scores.tolist():
        insort(seen, score)
        first, last = bisect_left(seen, score), bisect_right(seen, score)
        # 1 - random() is above 0
        higher = len(seen) - last + (1 - rng.random()) * (last - first)
        p_values.append(higher / len(seen))
    return np.array(p_values)


def simple_jumper(p_values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """A conformal test martingale (m,): the capital of one who bets that p-values are not uniform.

    The simple jumper (Vovk, Petej, Nouretdinov, Ahlberg, Carlsson and Gammerman, "Retrain or not
    retrain: conformal test martingales for change-point detection", COPA 2021): three parts of the
    capital are multiplied by 1 + b (p - 1/2) with b = -2, 0, 2, and after each image a hundredth of
    all is spread evenly, so that a late change is met with capital on each bet. The paper has
    b = -1, 0, 1; the larger bets see shifts of everything sooner. It starts with 1, and by Ville's
    inequality it ever reaches 1 / a with a probability of at most a: the test may be read after
    each image.
    """
    capital = np.full(len(_BETS), 1 / len(_BETS))
    path = []
    for p_value in p_values:
        capital = (1 - _JUMP) * capital + _JUMP * capital.mean()
        capital = capital * (1 + _BETS * (p_value - 0.5))
        path.append(capital.sum())
    return np.array(path)


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses to reject so that a true one is among them with a probability <= `level`.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6, 1979.
    """
    rejected = [False] * len(p_values)
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[i] > level / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected
