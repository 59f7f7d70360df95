"""Good features made ready: transform -> bank -> operator, and a score for new ones."""

import copy
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad.crossfit import cross_fitted
from nnad.neighbors import Bank, Neighbors
from nnad.operators import Operator
from nnad.search_steps import NUMPY
from nnad.transforms import LEARNT, fit_transform


class Fitted:
    """A transform, a bank and an operator, fitted on the same good features.

    Args:
        features: (N, D) of good images, as the backbone returned them.
        transform: a name of `nnad.transforms`.
        operator: copied, not changed.
        graph: what is known of the bank's neighbours.
        operator_state: what the operator would have to learn.

    Attributes: `transformed`, the function; `bank`, of transformed features; `operator`.
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        transform: str,
        operator: Operator,
        graph: Neighbors | None = None,
        operator_state: dict[str, NDArray[Any]] | None = None,
    ) -> None:
        self._name = transform
        self.transformed = fit_transform(transform, features)
        self.bank = Bank(self.transformed(features))
        self.operator = copy.copy(operator)
        if graph:
            self.bank.graph = graph
        if operator_state:
            self.operator.restore(self.bank, operator_state)  # type: ignore[attr-defined]
        else:
            self.operator.fit(self.bank)

    def edited(self, features: NDArray[np.float32], old_rows: NDArray[np.int64]) -> Self:
        """What a fit on these features would be, bit for bit, see `Scorer.edited`."""
        if self._name in LEARNT:
            return type(self)(features, self._name, self.operator)
        is_new = old_rows < 0
        transformed = np.empty(features.shape, dtype=np.float32)
        transformed[~is_new] = self.bank.features[old_rows[~is_new]]
        transformed[is_new] = self.transformed(features[is_new])
        new = copy.copy(self)
        kernels = getattr(self.operator, "kernels", NUMPY)
        new.bank = self.bank.edited(transformed, old_rows, kernels=kernels)
        new.operator = copy.copy(self.operator).fit(new.bank)
        return new

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(Q, D) as the backbone returned them -> (Q,)."""
        return self.operator.score(self.transformed(features))

    def nearest(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """(Q, D) -> (Q,) the nearest bank row of each."""
        return self.bank.nearest(self.transformed(features), 1).rows[:, 0]

    def left_out_scores(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """The score (N,) of each of the features that this was fitted on, against the others."""
        if self._name != "white":  # what it learns from all images would know each of them
            return self.operator.left_out_scores()

        def score(good: NDArray[Any], held_out: NDArray[Any]) -> NDArray[np.float64]:
            return Fitted(good, self._name, self.operator).score(held_out)

        return cross_fitted(features, score)
