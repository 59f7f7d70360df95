"""Good groups as points that new groups are compared with, and the p-values of any size of group.

The mean of few members is noisier than that of many: its variance is proportional to 1 / M. So a
group of M members gets its p-value from good groups of its own size: of each, at most M members are
drawn, pooled and scored against all other good groups in full. If the new group is like M random
members of a good one, its score and theirs are exchangeable, but for the one group more that it is
compared with, and the argument of calibrate.py holds as for single images. Good groups with fewer
members than M count as they are: the safe side for the mean and the trace, whose spread falls with
M, but not for the maximum, which grows with it.
"""

import copy
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad.calibrate import Calibration
from nnad.group_pooling import pooled, spread_parts, trace_of_covariance, without_each
from nnad.neighbors import Bank
from nnad.operators import Operator
from nnad.results import Neighbor

Points = NDArray[np.float32]
Scores = NDArray[np.float64]
_EVIDENCE = 3  # nearest good groups told for each decision


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
        operator: fitted here to the pooled features; None for `trace`.
        seed: of the order of members in `concat`, and of those drawn for a smaller group.
        operator_state, good_scores: what an equal bank found before: its operator's state, and the
            left-out scores (G,) of its groups in full.
    """

    def __init__(
        self,
        names: Sequence[str],
        points: Sequence[Points],
        *,
        pooling: str,
        operator: Operator | None,
        seed: int = 0,
        operator_state: dict[str, NDArray[Any]] | None = None,
        good_scores: Scores | None = None,
    ) -> None:
        self.names, self.points = names, points
        self.pooling, self.operator, self.seed = pooling, operator, seed
        if operator is not None:
            each = [self.pooled(name, group) for name, group in zip(names, points, strict=True)]
            self._bank = Bank(np.stack(each))  # (G, P)
            if operator_state:
                operator.restore(self._bank, operator_state)  # type: ignore[attr-defined]
            else:
                operator.fit(self._bank)
        self.largest = max(map(len, points))
        full = self._left_out_scores() if good_scores is None else good_scores
        self._calibrations = {self.largest: Calibration(full)}

    def pooled(self, name: str, points: Points) -> Points:
        """(M, D) -> (P,), the pooled feature of a group of that name."""
        if self.pooling == "concat":
            points = points[self._order(name, len(points))]
        return pooled(points, self.pooling)

    def compare(self, name: str, points: Points) -> Compared:
        """Score a new group (M, D); M >= 2 for `trace`."""
        if self.operator is None:
            parts = spread_parts(points)
            return Compared(float(parts.sum()), parts, ())
        query = self.pooled(name, points)[None]  # (1, P)
        score = float(self.operator.score(query)[0])
        found = self._bank.nearest(query, min(_EVIDENCE, len(self._bank)))
        nearest = tuple(
            Neighbor(self.names[row], float(distance))
            for row, distance in zip(found.rows[0], np.sqrt(found.sq_dists[0]), strict=True)
        )
        if self.pooling == "concat":
            step = query[0].astype(np.float64) - self._bank.features[found.rows[0, 0]]
            parts = np.empty(len(points))
            parts[self._order(name, len(points))] = np.square(step.reshape(points.shape)).sum(1)
        elif len(points) == 1:
            parts = np.array([score])
        else:
            parts = score - self.operator.score(without_each(points, self.pooling))
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
        if self.operator is None:
            return np.array([trace_of_covariance(points) for points in self.points])
        return self.operator.left_out_scores()

    def _cut_score(self, row: int, size: int) -> float:
        points = self.points[row]
        points = points[self._order(self.names[row], len(points))[:size]]
        if self.operator is None:
            return trace_of_covariance(points)
        others = Bank(np.delete(self._bank.features, row, axis=0))
        operator = copy.copy(self.operator).fit(others)
        return float(operator.score(pooled(points, self.pooling)[None])[0])

    def _order(self, name: str, count: int) -> NDArray[np.int64]:
        """Members in an order that depends on nothing but the seed and the group's name."""
        key = zlib.crc32(name.encode("utf-8", "surrogatepass"))
        return np.random.default_rng([self.seed, key]).permutation(count)
