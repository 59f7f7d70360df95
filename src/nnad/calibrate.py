"""Scores of good images -> p-values and a threshold that keep a false-alarm promise.

A new image with score s gets p = (1 + #{good scores >= s}) / (n + 1) and is called an anomaly when
p is at most the budget. If the new image is as good as the n calibration images (exchangeable with
them), that happens with a probability of at most the budget, whatever the distribution: the rank
argument of conformal prediction (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random
World", 2005).

The good scores are leave-one-out scores, which makes every image serve twice, as bank and as
calibration. For k-NN distances that costs the promise nothing. Full conformal prediction would add
the new image to the bank and score each of the n + 1 images against the other n. A larger bank
can only shorten k-NN distances, so the leave-one-out scores are at least as high as those, p is at
least as large as the exact p, and the promise holds. (It holds on average over banks, as every such
promise does.) For operators whose scores a larger bank can also raise there is no such proof;
benchmarks/false_alarms.py measures them.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.errors import BudgetError, InputError, counted

DEFAULT_FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class Calibration:
    """Scores (n,) of good images, none of which saw itself."""

    good_scores: NDArray[np.float64]

    @cached_property
    def _sorted(self) -> NDArray[np.float64]:
        return np.sort(self.good_scores)

    @property
    def smallest_budget(self) -> float:
        """1 / (n + 1): no p-value is smaller."""
        return 1 / (len(self.good_scores) + 1)

    def p_values(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """(Q,) scores -> (Q,) p-values; a small one is rarely seen among good images."""
        n = len(self._sorted)
        at_least = n - np.searchsorted(self._sorted, scores, side="left")
        return np.asarray((1 + at_least) / (n + 1), dtype=np.float64)

    def threshold(self, budget: float) -> float:
        """The score above which p is at most the budget, so that an image is an anomaly.

        Raises:
            InputError: the budget is not between 0 and 1.
            BudgetError: the budget is below 1 / (n + 1).
        """
        self.check(budget)
        n = len(self._sorted)
        allowed = min(math.floor(budget * (n + 1) + 1e-9) - 1, n - 1)  # good scores above it
        return float(self._sorted[n - 1 - allowed])

    def check(self, budget: float) -> None:
        """Raise the errors of `threshold` if this budget cannot be promised."""
        if not 0 < budget < 1:
            raise InputError(
                f"false_alarms={budget:g}: a budget is a fraction between 0 and 1, "
                f"for example 0.01 for 1 %"
            )
        if budget * (len(self.good_scores) + 1) + 1e-9 < 1:
            needed = math.ceil(1 / budget - 1e-9) - 1
            raise BudgetError(
                f"false_alarms={budget:g}: {counted(len(self.good_scores), 'good image')} "
                f"cannot support it; "
                f"the smallest possible budget is {round_up(self.smallest_budget):g}, "
                f"and {budget:g} needs at least {needed} good images"
            )

    def default_budget(self) -> float:
        """1 %, or the smallest budget that n images support if that is larger."""
        return max(DEFAULT_FALSE_ALARMS, self.smallest_budget)


def round_up(budget: float) -> float:
    """Round to three digits, upwards, so that what is printed can be typed back."""
    scale: float = 10.0 ** (2 - math.floor(math.log10(budget)))
    return math.ceil(budget * scale - 1e-9) / scale
