"""Do new images come from where the good ones came from? Tests, each with its own eye.

Good and new images are taken as exchangeable unless something changed; nothing else is assumed of
their distribution. In a model of several products each product is compared with itself, so that
their mixture may change. Scores come as samples, a pair (good scores (n,), new scores (m,)) for
each product that new images have.

The good scores are leave-one-out scores with a bank of n - 1, the new ones have a bank of n: so far
the tests on scores are very nearly exact, not quite (benchmarks/drift.py measures them). The test
on features is exact.
"""

import math
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
_BLOCK = 111  # permutations at a time
_LARGEST_SAMPLE = 2000  # images of a side in the test on features
_BETS = np.array([-2.0, 0.0, 2.0])
_JUMP = 0.01

Samples = Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]


def exceedances(parts: Sequence[tuple[int, int, int]]) -> NDArray[np.float64]:
    """P(K >= k) for k = 0..M, where K of M new scores are above the r-th largest of the good ones.

    Of n good and m new exchangeable images K is beta-binomial, BetaBin(m, r, n + 1 - r), whatever
    the distribution (Gumbel and von Schelling, "The distribution of the number of exceedances",
    Annals of Mathematical Statistics 21, 1950). A binomial test would take the luck of the n good
    images for a change.

    Args:
        parts: (m, r, n) of each product; K is their sum.
    """
    chances = np.ones(1)  # of K = 0, 1, ...
    for m, r, n in parts:
        chances = np.convolve(chances, betabinom.pmf(np.arange(m + 1), m, r, n + 1 - r))
    return np.asarray(np.minimum(np.cumsum(chances[::-1])[::-1], 1.0))


def tail_parts(samples: Samples, share: float) -> list[tuple[int, int, int]]:
    """For `exceedances`: r is the rank above which `share` of good images are, 1 at least."""
    return [
        (len(new), max(math.floor(share * (len(good) + 1) + 1e-9), 1), len(good))
        for good, new in samples
    ]


def tail_count(samples: Samples, share: float) -> int:
    """How many new scores are above the r-th largest good one of their product."""
    return sum(
        int((new > np.sort(good)[n - r]).sum())
        for (good, new), (_, r, n) in zip(samples, tail_parts(samples, share), strict=True)
    )


def tail_test(samples: Samples, share: float) -> float:
    """Are more new scores in the highest `share` of the good ones than chance explains?"""
    return float(exceedances(tail_parts(samples, share))[tail_count(samples, share)])


def bulk_test(samples: Samples) -> float:
    """Have the scores of most images moved? Two-sided.

    The control median test (Mathisen, "A method of testing the hypothesis that two samples are from
    the same population", Annals of Mathematical Statistics 14, 1943): K, the number of new scores
    above the median of the good ones, has the distribution of `exceedances`. Upwards, floor(FEW m)
    of them are not counted, nor in m: so many odd images may be among the new ones.
    """
    above = below = 0
    higher, lower = [], []
    for good, new in samples:
        n, m = len(good), len(new)
        r, odd = (n + 1) // 2, int(FEW * m)
        median = np.sort(good)[n - r]
        above += max(int((new > median).sum()) - odd, 0)
        below += int((new < median).sum())
        higher.append((m - odd, r, n))
        lower.append((m, n + 1 - r, n))
    p_values = exceedances(higher)[above], exceedances(lower)[below]
    return float(min(1.0, 2 * min(p_values)))


def neighbor_test(
    good: NDArray[np.float32],
    new: NDArray[np.float32],
    products: NDArray[np.int64],
    rng: np.random.Generator,
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
        products: (n + m,) of good and new images; labels are permuted within them.
        rng: draws the permutations.

    Returns:
        The p-value; the mean share of new images among the 5 nearest; its mean in permutations.
    """
    rows = [
        start + np.sort(rng.permutation(count)[:_LARGEST_SAMPLE])
        for start, count in ((0, len(good)), (len(good), len(new)))
    ]
    n, m = len(rows[0]), len(rows[1])
    drawn = np.concatenate(rows)
    pooled, products = np.concatenate([good, new])[drawn], products[drawn]
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

    labels = np.repeat(order[None] >= n, _BLOCK, axis=0)  # (_BLOCK, N)
    seen = float(shares(labels[:1])[0])
    permuted = []
    for _ in range(PERMUTATIONS // _BLOCK):
        for product in np.unique(products):
            own = np.flatnonzero(products[order] == product)
            labels[:, own] = rng.permuted(labels[:, own], axis=1)
        permuted.append(shares(labels))
    expected = np.concatenate(permuted)  # (PERMUTATIONS,)
    p_value = (1 + int((expected >= seen - 1e-12).sum())) / (1 + PERMUTATIONS)
    return p_value, seen, float(expected.mean())


def online_p_values(
    good: Sequence[NDArray[np.float64]],
    scores: NDArray[np.float64],
    products: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Smoothed conformal p-values (m,), each among the good and all earlier new images.

    With exchangeable images these are independent and uniform (Vovk, Nouretdinov and Gammerman,
    "Testing exchangeability on-line", ICML 2003, Theorem 1). P-values against one fixed calibration
    set are not: they share its luck, and a martingale on them would not be one.

    Args:
        good: the good scores of each product.
        scores: (m,), in the order of the images.
        products: (m,) of each, places in `good`.
        rng: breaks ties.
    """
    seen = [sorted(known.tolist()) for known in good]
    p_values = []
    for score, product in zip(scores.tolist(), products.tolist(), strict=True):
        alike = seen[product]
        insort(alike, score)
        first, last = bisect_left(alike, score), bisect_right(alike, score)
        # 1 - random() is above 0
        higher = len(alike) - last + (1 - rng.random()) * (last - first)
        p_values.append(higher / len(alike))
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
