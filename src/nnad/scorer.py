"""Good features made ready: transform -> bank -> operator -> calibration, and a score for new ones.

A detector has one for its images; whatever has features of another kind can have one, too.
"""

import copy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad.calibrate import Calibration
from nnad.crossfit import cross_fitted
from nnad.neighbors import Bank, Neighbors
from nnad.operators import Operator
from nnad.search_steps import NUMPY
from nnad.transforms import LEARNT, fit_transform

EVIDENCE = 3  # nearest good images told for each decision


class Known(NamedTuple):
    """What a saved model knows and a fit has to find out."""

    graph: Neighbors
    operator_state: dict[str, NDArray[Any]]
    good_scores: NDArray[np.float64]  # (N,)


class Scored(NamedTuple):
    """What features (Q, D) were found to be."""

    scores: NDArray[np.float64]  # (Q,)
    p_values: NDArray[np.float64]  # (Q,)
    nearest: Neighbors  # (Q, 3 or more), distances of transformed features


class Scorer:
    """Scores features by good ones.

    Args:
        features: (N, D) of good images, as the backbone returned them.
        transform: a name of `nnad.transforms`.
        operator: copied, not changed.
        known: what a saved model knows.

    Attributes: `bank`, of transformed features; `operator`; `calibration`.
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        transform: str,
        operator: Operator,
        known: Known | None = None,
    ) -> None:
        self._name = transform
        self.transformed = fit_transform(transform, features)
        self.bank = Bank(self.transformed(features))
        self.operator = copy.copy(operator)
        if known:
            self.bank.graph = known.graph
        if known and known.operator_state:
            self.operator.restore(self.bank, known.operator_state)  # type: ignore[attr-defined]
        else:
            self.operator.fit(self.bank)
        self.calibration = Calibration(
            known.good_scores if known else self._left_out_scores(features)
        )

    def edited(self, features: NDArray[np.float32], old_rows: NDArray[np.int64]) -> "Scorer":
        """What `Scorer(features, ...)` would be, bit for bit, for the price of the change.

        Only new rows, and rows that lost a neighbour, are searched. What an operator learns from
        all rows (variances, centres, eigenvectors) is learnt anew, and so are the transforms `log`
        and `white`; the leave-one-out scores of k-NN cost next to nothing, those of other operators
        as much as scoring the bank.

        Args:
            features: (N, D) of all good images.
            old_rows: (N,) ascending, the row that each had in this bank, or -1 for a new one.
        """
        if self._name in LEARNT:
            return Scorer(features, self._name, self.operator)
        is_new = old_rows < 0
        transformed = np.empty(features.shape, dtype=np.float32)
        transformed[~is_new] = self.bank.features[old_rows[~is_new]]
        transformed[is_new] = self.transformed(features[is_new])
        new = copy.copy(self)
        kernels = getattr(self.operator, "kernels", NUMPY)
        new.bank = self.bank.edited(transformed, old_rows, kernels=kernels)
        new.operator = copy.copy(self.operator).fit(new.bank)
        new.calibration = Calibration(new._left_out_scores(features))
        return new

    def score(self, features: NDArray[np.float32]) -> Scored:
        """Features (Q, D) as the backbone returned them."""
        queries = self.transformed(features)
        told = min(max(EVIDENCE, getattr(self.operator, "k", 1)), len(self.bank))
        needed = min(max(told, getattr(self.operator, "n_local", 1)), len(self.bank))
        found = self.bank.nearest(queries, needed)
        scores = self.operator.score(queries, found)
        nearest = Neighbors(found.sq_dists[:, :told], found.rows[:, :told])
        return Scored(scores, self.calibration.p_values(scores), nearest)

    def _left_out_scores(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        if self._name != "white":  # what it learns from all images would know each of them
            return self.operator.left_out_scores()

        def score(good: NDArray[Any], held_out: NDArray[Any]) -> NDArray[np.float64]:
            transformed = fit_transform(self._name, good)
            operator = copy.copy(self.operator).fit(Bank(transformed(good)))
            return operator.score(transformed(held_out))

        return cross_fitted(features, score)
