"""The neighbour graph of a bank: the nearest other rows of each row, kept as rows come and go.

A list may be short: of w places the first few are known, the rest hold row -1 at an infinite
distance. What is known is always the row's nearest others, without a gap, so a change of the bank
only has to find what it brings nearer than the last known neighbour, and what it takes away.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Neighbors(NamedTuple):
    """The k nearest bank rows of each query, nearest first."""

    sq_dists: NDArray[np.float64]  # (Q, k) squared Euclidean distances
    rows: NDArray[np.int64]  # (Q, k)


def unknown(count: int, width: int) -> Neighbors:
    """A graph (count, width) of which nothing is known."""
    return Neighbors(np.full((count, width), np.inf), np.full((count, width), -1))


def rearranged(graph: Neighbors, old_rows: NDArray[np.int64]) -> Neighbors:
    """The graph of a bank whose row i was `old_rows[i]`; -1 for a new row, whose list is unknown.

    Rows that are not among `old_rows` leave all lists. Those that stay keep their order.
    """
    place = np.full(len(graph.rows) + 1, -1)  # old row -> new row; the last entry stands for -1
    stays = old_rows >= 0
    place[old_rows[stays]] = np.flatnonzero(stays)
    result = unknown(len(old_rows), min(graph.rows.shape[1], len(old_rows) - 1))
    rows = place[graph.rows[old_rows[stays]]]  # (n, w)
    sq_dists = np.where(rows >= 0, graph.sq_dists[old_rows[stays]], np.inf)
    order = np.argsort(rows < 0, axis=1, kind="stable")[:, : result.rows.shape[1]]
    result.rows[stays] = np.take_along_axis(rows, order, 1)
    result.sq_dists[stays] = np.take_along_axis(sq_dists, order, 1)
    return result


def reach(graph: Neighbors) -> NDArray[np.float64]:
    """(N,) the squared distance within which a list is complete; -1 where nothing is known."""
    count = (graph.rows >= 0).sum(axis=1)
    last = np.take_along_axis(graph.sq_dists, np.maximum(count - 1, 0)[:, None], 1)[:, 0]
    return np.where(count > 0, last, -1.0)


def enter(
    graph: Neighbors,
    rows: NDArray[np.int64],
    others: NDArray[np.int64],
    sq_dists: NDArray[np.float64],
) -> None:
    """Put new neighbours into the lists of `rows`, in place.

    Args:
        graph: (N, w).
        rows: (P,) whose list.
        others: (P,) the new neighbour.
        sq_dists: (P,) how far it is. What is beyond a list's reach does not enter.
    """
    width = graph.rows.shape[1]
    count = (graph.rows >= 0).sum(axis=1)
    last = graph.rows[rows, np.maximum(count[rows] - 1, 0)]
    limit = reach(graph)[rows]
    enters = (sq_dists < limit) | ((sq_dists == limit) & (others < last))
    rows, others, sq_dists = rows[enters], others[enters], sq_dists[enters]

    changed = np.unique(rows)
    owner = np.concatenate([np.repeat(changed, count[changed]), rows])
    is_known = graph.rows[changed] >= 0
    all_others = np.concatenate([graph.rows[changed][is_known], others])
    all_dists = np.concatenate([graph.sq_dists[changed][is_known], sq_dists])
    order = np.lexsort((all_others, all_dists, owner))
    owner, all_others, all_dists = owner[order], all_others[order], all_dists[order]
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    fits = rank < width
    graph.rows[owner[fits], rank[fits]] = all_others[fits]
    graph.sq_dists[owner[fits], rank[fits]] = all_dists[fits]
