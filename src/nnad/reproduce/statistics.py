"""How sure a mean AUROC is, and whether one system is better than another."""

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

REPLICATES = 500
_CHUNK = 300_000  # weights looked at in one step
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


class Scored(NamedTuple):
    """Scores (M,) of test items, and which are odd (M,).

    Items with the same `space` and number are the same picture, whichever cell they are in.
    """

    space: str
    items: NDArray[np.int64]
    is_anomaly: NDArray[np.bool_]
    scores: NDArray[np.float64]


def resampled(
    cells: Sequence[Scored], *, replicates: int = REPLICATES, seed: int = 0
) -> NDArray[np.float64]:
    """AUROC of each cell in each bootstrap replicate, (cells, replicates).

    Test items are drawn with replacement, the same draw for all cells: in a one-class table every
    image is in all of them. Strata are items that are normal and odd in the same cells, so that
    each cell keeps its numbers of both.
    """
    rng = np.random.default_rng(seed)
    aurocs = np.empty((len(cells), replicates))
    for space in dict.fromkeys(cell.space for cell in cells):
        chosen = [i for i, cell in enumerate(cells) if cell.space == space]
        items = np.unique(np.concatenate([cells[i].items for i in chosen]))
        kinds = np.full((len(items), len(chosen)), -1, np.int8)  # absent
        places = [np.searchsorted(items, cells[i].items) for i in chosen]
        for column, (i, place) in enumerate(zip(chosen, places, strict=True)):
            kinds[place, column] = cells[i].is_anomaly
        strata = np.unique(kinds, axis=0, return_inverse=True)[1].ravel()
        counts = np.zeros((replicates, len(items)), np.uint16)
        for stratum in range(strata.max() + 1):
            rows = np.flatnonzero(strata == stratum)
            counts[:, rows] = _drawn_counts(rng, len(rows), replicates)
        for i, place in zip(chosen, places, strict=True):
            aurocs[i] = weighted_aurocs(cells[i], counts, place)
    return aurocs


def _drawn_counts(rng: np.random.Generator, n: int, replicates: int) -> NDArray[np.int64]:
    """(replicates, n) how often each of n items is drawn when n are drawn with replacement."""
    counts = np.empty((replicates, n), np.int64)
    for start in range(0, replicates, 100):
        size = min(100, replicates - start)
        places = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts[start : start + size] = np.bincount(places.ravel(), minlength=size * n).reshape(
            -1, n
        )
    return counts


def weighted_aurocs(
    cell: Scored, counts: NDArray[Any], places: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(R,) areas under the ROC curve when items count several times or not at all; ties are halves.

    Args:
        cell: M items.
        counts: (R, I) how often each of I items counts.
        places: (M,) where the cell's items are among those.
    """
    is_odd = cell.is_anomaly
    good = np.flatnonzero(~is_odd)
    good = good[np.argsort(cell.scores[good])]
    first, last = (  # how many good items score lower than each odd one, and lower or equal
        np.searchsorted(cell.scores[good], cell.scores[is_odd], side) for side in _SIDES
    )
    ties = np.any(first != last)
    found = []
    step = max(_CHUNK // len(places), 1)
    for start in range(0, len(counts), step):
        chunk = counts[start : start + step]
        odd = chunk[:, places[is_odd]].astype(np.float64)  # (r, odd)
        below = np.zeros((len(chunk), len(good) + 1))
        np.cumsum(chunk[:, places[good]], axis=1, out=below[:, 1:])
        beaten = (below[:, first] + below[:, last]) / 2 if ties else below[:, first]
        found.append(np.einsum("rm,rm->r", odd, beaten) / (odd.sum(axis=1) * below[:, -1]))
    return np.concatenate(found)


def auroc(cell: Scored) -> float:
    """The area under its ROC curve."""
    total = len(cell.scores)
    return float(weighted_aurocs(cell, np.ones((1, total)), np.arange(total))[0])


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of replicates (R,)."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """p-value, two-sided, that paired differences (n,) come from a law symmetric around 0.

    The sign-flip permutation test of the mean: all 2^n signs up to n = 13, beyond that 9,999 random
    ones. None for fewer than two. With n classes it cannot fall below 2 / 2^n.
    """
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    if n < 2:
        return None
    if n <= 13:
        flips = np.array(list(product((1, -1), repeat=n)))
    else:
        random = np.random.default_rng(0).choice((1, -1), (9999, n))
        flips = np.vstack([np.ones((1, n)), random])
    means = np.abs(flips @ values)
    return float(np.mean(means >= means[0] * (1 - 1e-9)))
