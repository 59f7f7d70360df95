"""Scores of good images -> p-values and thresholds that keep a false-alarm promise.

A new image with score s gets p = (1 + #{good scores >= s}) / (n + 1) and is called an anomaly when
p is at most the budget. If the new image is as good as the n calibration images (exchangeable with
them), that happens with a probability of at most the budget, whatever the distribution: the rank
argument of conformal prediction (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random
World", 2005). Where good scores come from, and what each source promises, is in `nnad.conformal`.

Two refinements use the same formula. In cross-conformal prediction good images are in folds, each
with a model that did not see it, and a good score is compared with the new image's score by that
model. In a model of several products a new image is compared only with the good images that
are assigned to the same product, that of the nearest good image (Mondrian conformal prediction,
ibid., section 4.5), so that one with ragged images neither hides the anomalies of another nor fills
its budget. The budget holds for the images assigned to each product; products that overlap borrow
from each other.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.errors import BudgetError, InputError, counted

DEFAULT_FALSE_ALARMS = 0.01
_ROUNDING = 1e-9  # relative: 0.07 * 100 is not quite 7


@dataclass(frozen=True)
class Calibration:
    """Scores of good images, none of which saw itself.

    Args:
        good_scores: (n,).
        folds: (n,) 0..F-1, which of F models each score is by; one model by default.
        products: (n,) 0..C-1, the product that each is assigned to; one product by default.
        product_names: C names; an empty one says that there is one product.
    """

    good_scores: NDArray[np.float64]
    folds: NDArray[np.int64] | None = None
    products: NDArray[np.int64] | None = None
    product_names: tuple[str, ...] = ("",)

    def of_product(self, product: int) -> NDArray[np.bool_]:
        """(n,) which good scores are of images assigned to a product."""
        if self.products is None:
            return np.ones(len(self.good_scores), dtype=bool)
        return np.asarray(self.products == product)

    @cached_property
    def _sorted(self) -> list[list[NDArray[np.float64]]]:
        """Ascending good scores of each product and fold."""
        none = np.zeros(len(self.good_scores), dtype=np.int64)
        folds = none if self.folds is None else self.folds
        return [
            [
                np.sort(self.good_scores[self.of_product(product) & (folds == fold)])
                for fold in range(folds.max(initial=0) + 1)
            ]
            for product in range(len(self.product_names))
        ]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Good scores of each product."""
        return tuple(sum(map(len, folds)) for folds in self._sorted)

    @property
    def smallest_budget(self) -> float:
        """1 / (n + 1) of the smallest product: none of its p-values is smaller."""
        return 1 / (min(self.sizes) + 1)

    @property
    def smallest_p_value(self) -> float:
        """1 / (n + 1) of the largest product: no p-value is smaller."""
        return 1 / (max(self.sizes) + 1)

    def p_values(
        self, scores: NDArray[Any], categories: NDArray[Any] | None = None
    ) -> NDArray[np.float64]:
        """p-values of new images; a small one is rarely seen among good images.

        Args:
            scores: (Q,), or (Q, F) by the model of each fold.
            categories: (Q,) the product that each is assigned to; the only one by default.

        Returns:
            (Q,)
        """
        by_fold = np.asarray(scores, dtype=np.float64).reshape(len(scores), -1)  # (Q, F)
        if categories is None:
            categories = np.zeros(len(by_fold), dtype=np.int64)
        p_values = np.ones(len(by_fold))
        for product, folds in enumerate(self._sorted):
            mine = categories == product
            at_least = sum(
                len(good) - np.searchsorted(good, by_fold[mine, fold], side="left")
                for fold, good in enumerate(folds)
            )
            p_values[mine] = (1 + at_least) / (self.sizes[product] + 1)
        return p_values

    def threshold(self, budget: float, product: int = 0) -> float:
        """The score above which p is at most the budget, so that an image is an anomaly.

        Raises:
            InputError: the budget is not between 0 and 1; or there are folds, each of which
                compares with a score of its own.
            BudgetError: the budget is below 1 / (n + 1).
        """
        self.check(budget)
        if self.folds is not None:
            raise InputError("threshold: with folds there is none; decide by p-values")
        good, n = self._sorted[product][0], self.sizes[product]
        allowed = min(math.floor(budget * (n + 1) * (1 + _ROUNDING)) - 1, n - 1)  # above it
        return float(good[n - 1 - allowed])

    def check(self, budget: float, noun: str = "good image") -> None:
        """Raise the errors of `threshold` if this budget cannot be promised; `noun` is counted."""
        if not 0 < budget < 1:
            raise InputError(
                f"false_alarms={budget:g}: a budget is a fraction between 0 and 1, "
                f"for example 0.01 for 1 %"
            )
        if within(self.smallest_budget, budget):
            return
        smallest = int(np.argmin(self.sizes))
        n, product = self.sizes[smallest], self.product_names[smallest]
        needed = images_needed(budget)
        raise BudgetError(
            f"false_alarms={budget:g}: {counted(n, noun)} "
            f"{f'of product {product!r} ' if product else ''}to calibrate with cannot support it; "
            f"the smallest possible budget is {round_up(self.smallest_budget):g}, "
            f"and {budget:g} needs at least {needed}"
        )

    def default_budget(self) -> float:
        """1 %, or the smallest budget that n images support if that is larger."""
        return max(DEFAULT_FALSE_ALARMS, self.smallest_budget)


def images_needed(p_value: float) -> int:
    """Good images with which a p-value can be as small as this."""
    return math.ceil(1 / p_value * (1 - _ROUNDING)) - 1


def within(p_value: float, budget: float) -> bool:
    """Whether a p-value is at most the budget, but for rounding."""
    return p_value <= budget * (1 + _ROUNDING)


def round_up(budget: float) -> float:
    """Round to three digits, upwards, so that what is printed can be typed back."""
    scale: float = 10.0 ** (2 - math.floor(math.log10(budget)))
    return math.ceil(budget * scale - 1e-9) / scale
