"""Good groups as points that new groups are compared with, and the p-values of any size of group.

The mean of few members is noisier than that of many: its variance is proportional to 1 / M. So a
group of M members gets its p-value from good groups of its own size: of each, at most M members are
drawn, pooled and scored against all other good groups in full. If the new group is like M random
members of a good one, its score and theirs are exchangeable, but for the one group more that it is
compared with, and the argument of calibrate.py holds as for single images. Good groups with fewer
members than M count as they are: the safe side for the mean and the trace, whose spread falls with
M, but not for the maximum, which grows with it.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad.calibrate import Calibration
from nnad.fitted import Fitted
from nnad.group_pooling import pooled, spread_parts, trace_of_covariance, without_each
from nnad.operators import Operator
from nnad.results import Neighbor
from nnad.scorer import EVIDENCE

Points = NDArray[np.float32]
Scores = NDArray[np.float64]


class Compared(NamedTuple):
    """A new group beside the good ones."""

    score: float
    contributions: Scores  # (M,), see `nnad.results.Member`
    nearest: tuple[Neighbor, ...]  # none for `trace`


class GroupBank:
    """Good groups, pooled.

    Args:
        names: of the G groups.
        points: G arrays (M, D) of transformed features; as many members in each for `concat`.
        pooling: see `nnad.group_pooling`.
        operator: compares the pooled features; not used by `trace`.
        seed: of the order of members in `concat`, and of those drawn for a smaller group.
        good_scores: the left-out scores (G,) of the groups in full, if known.
        operator_state: what the operator would be slow to find again, if known.

    Attributes: `fitted`, the operator on pooled features; None for `trace`.
    """

    def __init__(
        self,
        names: Sequence[str],
        points: Sequence[Points],
        *,
        pooling: str,
        operator: Operator | None = None,
        seed: int = 0,
        good_scores: Scores | None = None,
        operator_state: dict[str, NDArray[Any]] | None = None,
    ) -> None:
        self.names, self.points, self.pooling, self.seed = names, points, pooling, seed
        self.fitted: Fitted | None = None
        if operator is not None:
            pools = np.stack([self.pooled(group) for group in points])  # (G, P)
            self.fitted = Fitted(pools, "raw", operator, operator_state=operator_state)
        self.largest = max(map(len, points))
        full = self._left_out_scores() if good_scores is None else good_scores
        self._calibrations = {self.largest: Calibration(full)}

    def pooled(self, points: Points) -> Points:
        """(M, D) -> (P,), the pooled feature of a group."""
        if self.pooling == "concat":
            points = points[self.order(points)]
        return pooled(points, self.pooling)

    def compare(self, points: Points) -> Compared:
        """Score a new group (M, D); M >= 2 for `trace`."""
        if self.fitted is None:
            return of_spread(points)
        query = self.pooled(points)[None]  # (1, P)
        score = float(self.fitted.score(query)[0])
        found = self.fitted.bank.nearest(query, min(EVIDENCE, len(self.names)))
        nearest = tuple(
            Neighbor(self.names[row], float(distance))
            for row, distance in zip(found.rows[0], np.sqrt(found.sq_dists[0]), strict=True)
        )
        if self.pooling == "concat":
            step = query[0].astype(np.float64) - self.fitted.bank.features[found.rows[0, 0]]
            parts = np.empty(len(points))
            parts[self.order(points)] = np.square(step.reshape(points.shape)).sum(1)
        elif len(points) == 1:
            parts = np.array([score])
        else:
            parts = score - self.fitted.score(without_each(points, self.pooling))
        return Compared(score, parts, nearest)

    def calibration(self, size: int) -> Calibration:
        """For new groups of `size` members: scores of good groups cut to as many.

        Each is scored by the operator fitted to all others, once for each size.
        """
        size = min(size, self.largest)
        if size not in self._calibrations:
            scores = [self._cut_score(row, size) for row in range(len(self.names))]
            self._calibrations[size] = Calibration(np.array(scores))
        return self._calibrations[size]

    def _left_out_scores(self) -> Scores:
        """(G,) the score of each good group in full, as if it were not there."""
        if self.fitted is None:
            return np.array([trace_of_covariance(group) for group in self.points])
        return self.fitted.operator.left_out_scores()

    def _cut_score(self, row: int, size: int) -> float:
        points = self.points[row]
        points = points[self.order(points)[:size]]
        if self.fitted is None:
            return trace_of_covariance(points)
        others = np.delete(self.fitted.bank.features, row, axis=0)
        without = Fitted(others, "raw", self.fitted.operator)
        return float(without.score(pooled(points, self.pooling)[None])[0])

    def order(self, points: Points) -> NDArray[np.int64]:
        """(M, D) -> (M,) as if drawn, by nothing but the seed and what the members are.

        Neither names nor the order in which members come change it.
        """
        seed = str(self.seed).encode()
        keys = [hashlib.sha256(seed + point.tobytes()).digest() for point in points]
        return np.array(sorted(range(len(keys)), key=keys.__getitem__))


def of_spread(points: Points) -> Compared:
    """The score of `trace` for a group (M, D), M >= 2."""
    parts = spread_parts(points)
    return Compared(float(parts.sum()), parts, ())
