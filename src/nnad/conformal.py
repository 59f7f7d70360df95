"""Where the good scores of a calibration come from, and what that promises.

- `leave-one-out`: every good image is in the bank, and its score is against all the others. Every
  image serves twice. For k-NN distances that costs the promise nothing: full conformal prediction
  would add the new image to the bank and score each of the n + 1 images against the other n. A
  larger bank can only shorten k-NN distances, so the leave-one-out scores are at least as high as
  those, p is at least as large as the exact p, and the promise holds. For operators whose scores a
  larger bank can also raise there is no such proof; benchmarks/false_alarms.py measures them.
- `split`: a part of the good images, half by default, calibrates; the others are the bank. The
  promise is exact for every operator (Papadopoulos et al. 2002; Vovk 2012), the bank is smaller.
- `cross`: K folds, each with a model of the other folds. A good image's score is compared with the
  new image's score by the model that did not see that good image: p = (1 + c) / (n + 1), c being
  how many good images score at least as high. Proven is p <= budget with a probability of at most

      2 b + 2 (1 - b) (K - 1) / (n + K)

  for a budget b (Vovk 2015, "Cross-conformal predictors", by Vovk, Nouretdinov, Manokhin and
  Gammerman 2018; it follows from twice the mean of p-values being one), and with folds of equal
  size m also 2 b + (1 - 2 b) (m - 1) / (n + m) (Barber et al. 2021, "Predictive inference with the
  jackknife+", Theorem 4 and its proof). In practice it is close to b.
- `jackknife+`: cross with a fold for each image: at most 2 b (ibid., Theorem 1).

All of these average over the draw of the good images, too. In a model of several products `split`
proves it for the images that are assigned to each product, those nearest to its good images, and
not for the images that truly show it: where products overlap, one borrows good scores from another,
and the true ones may raise more alarms, or fewer, than the budget. An int8 network, calibrated on a
sample of all good images (`nnad.int8`), has seen some of those that calibrate p-values; nothing is
proven with it. Which image goes where is decided by
hashes of the features (`nnad.crossfit`): balanced, the same in any order of the images, and moved
by an image that is added or removed as little as can be. A transform that learns is fitted on the
bank it belongs to.

Full conformal prediction, which is exact for k-NN, was left out: its p-values differ from those of
leave-one-out only where a new image is among the k nearest of a good image that scores higher.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad.calibrate import Calibration
from nnad.crossfit import FOLDS, folds_of, ranks
from nnad.errors import InputError
from nnad.fitted import Fitted

METHODS = ("leave-one-out", "split", "cross", "jackknife+")
MOST_JACKKNIFE = 200  # images; each has a model of its own, with a bank of all others


@dataclass(frozen=True)
class Method:
    """How good images calibrate: one of `METHODS`.

    Attributes:
        name: the method.
        share: of `split`: the fraction of the good images that calibrates.
        folds: of `cross`.
    """

    name: str = "leave-one-out"
    share: float = 0.5
    folds: int = FOLDS

    @classmethod
    def parse(cls, text: str) -> Self:
        """A method by its name; `split:0.25` and `cross:10` say the share and the folds.

        Raises:
            InputError: no such method, or a number out of range.
        """
        name, colon, number = text.partition(":")
        try:
            if not colon and name in METHODS:
                return cls(name)
            if name == "split" and 0 < float(number) < 1:
                return cls(name, share=float(number))
            if name == "cross" and int(number) >= 2:
                return cls(name, folds=int(number))
        except ValueError:
            pass
        raise InputError(
            f"calibration={text!r}; choose one of {', '.join(METHODS)}; split:0.25 lets a quarter "
            f"of the good images calibrate, cross:10 makes 10 folds"
        )

    def __str__(self) -> str:
        if self.name == "split" and self.share != 0.5:
            return f"split:{self.share!r}"
        if self.name == "cross" and self.folds != FOLDS:
            return f"cross:{self.folds}"
        return self.name

    def calibrating(self, count: int) -> int:
        """How many of so many good images calibrate."""
        if self.name != "split":
            return count
        return math.ceil(self.share * count * (1 - 1e-9))  # 0.07 * 100 is a little above 7

    def check(self, count: int) -> None:
        """Raise an `InputError` if so many good images are too few or too many for the method."""
        if self.name == "split" and count - self.calibrating(count) < 2:
            raise InputError(f"calibration={str(self)!r}: leaves no bank of {count} good images")
        if self.name == "cross" and count < self.folds:
            raise InputError(f"calibration={str(self)!r}: {count} good images are too few")
        if self.name == "jackknife+" and count > MOST_JACKKNIFE:
            raise InputError(
                f"calibration='jackknife+': {count} good images would need {count} models of all "
                f"the others; it is meant for at most {MOST_JACKKNIFE}: choose cross"
            )

    @property
    def has_folds(self) -> bool:
        """Whether each fold of the good images has a model of its own."""
        return self.name in ("cross", "jackknife+")

    def scored_by(self, features: NDArray[Any]) -> NDArray[np.int64]:
        """(N,) the model by which each of the good features (N, D) is scored, -1 for none.

        With `has_folds` that of its fold, 0, 1, ...; else the only one, 0.
        """
        if self.has_folds:
            return folds_of(features, self.folds if self.name == "cross" else len(features))
        if self.name == "split":
            return np.where(ranks(features) < self.calibrating(len(features)), 0, -1)
        return np.zeros(len(features), dtype=np.int64)

    def bank_rows(self, features: NDArray[Any]) -> NDArray[np.int64]:
        """Which of the good features (N, D) are in the bank, in order: all, but for `split`."""
        if self.name == "split":
            return np.flatnonzero(self.scored_by(features) < 0)
        return np.arange(len(features))

    def calibrating_rows(self, features: NDArray[Any]) -> NDArray[np.int64]:
        """Which of the good features (N, D) calibrate, in order: all, but for `split`."""
        return np.flatnonzero(self.scored_by(features) >= 0)

    def bound(self, budget: float, count: int) -> float:
        """What is proven of the false-alarm rate for any operator, with so many good images.

        1 if nothing is.
        """
        if self.name == "split":
            return budget
        if self.name == "leave-one-out":
            return 1.0
        folds = self.folds if self.name == "cross" else count
        bounds = [1.0, 2 * budget + 2 * (1 - budget) * (folds - 1) / (count + folds)]
        if count % folds == 0:
            size = count // folds
            bounds.append(2 * budget + max(1 - 2 * budget, 0) * (size - 1) / (count + size))
        return min(bounds)


LEAVE_ONE_OUT = Method()


def fold_models(
    method: Method,
    features: NDArray[Any],
    fit: Callable[[NDArray[Any]], Fitted],
) -> tuple[Fitted, ...]:
    """The model of each fold, fitted on the others; none but for `cross` and `jackknife+`."""
    if not method.has_folds:
        return ()
    folds = method.scored_by(features)
    return tuple(fit(features[folds != fold]) for fold in range(folds.max() + 1))


def calibrate(
    method: Method,
    features: NDArray[Any],
    main: Fitted,
    models: Sequence[Fitted] = (),
    bank_products: NDArray[np.int64] | None = None,
    product_names: tuple[str, ...] = ("",),
) -> Calibration:
    """Score the good images by models that did not see them.

    Args:
        method: how.
        features: (N, D) of the good images, before any transform.
        main: the model, fitted on `method.bank_rows(features)`.
        models: `fold_models(method, features, ...)`.
        bank_products: the product (B,) of each row of the bank; one by default. An image's
            category, the product that it is assigned to, is that of the nearest good image other
            than itself, for good and new images alike.
        product_names: of the products 0, 1, ...

    Raises:
        InputError: no good image calibrates one of the products.
    """
    categories = None
    if method.name == "leave-one-out":
        scores = main.left_out_scores(features)
        if bank_products is not None:
            categories = bank_products[main.bank.others(1).rows[:, 0]]
        return _checked(Calibration(scores, None, categories, product_names))
    rows, scored_by = method.bank_rows(features), method.scored_by(features)
    scores = np.empty(len(features))
    nearest = np.empty(len(features), dtype=np.int64)  # places in the main bank
    for i, model in enumerate(models or [main]):
        held = scored_by == i
        scores[held] = model.score(features[held])
        if bank_products is not None:
            nearest[held] = np.flatnonzero(scored_by[rows] != i)[model.nearest(features[held])]
    calibrates = scored_by >= 0
    if bank_products is not None:
        categories = bank_products[nearest[calibrates]]
    folds = scored_by if models else None
    return _checked(Calibration(scores[calibrates], folds, categories, product_names))


def _checked(calibration: Calibration) -> Calibration:
    if 0 in calibration.sizes:
        empty = calibration.product_names[calibration.sizes.index(0)]
        raise InputError(
            f"products: no good image calibrates {empty!r}: it has too few images, or they look "
            f"like those of another product; give more, or leave the product out (a product has "
            f"the name of its images' folder: new ones of a known product belong in one so named)"
        )
    return calibration


def guarantee(
    method: Method,
    budget: float,
    count: int,
    *,
    k_nn: bool,
    measured: bool,
    products: bool = False,
    int8: bool = False,
    adapted: bool = False,
) -> tuple[str, str]:
    """What is known of the false-alarm budget for good images from the same source.

    Args:
        method: how the model was calibrated.
        budget: the false-alarm budget.
        count: good images.
        k_nn: whether scores are k-NN distances, by a transform that learns nothing.
        measured: whether benchmarks/false_alarms.py measures this operator and transform.
        products: whether the model has several products.
        int8: whether its network is an int8 copy.
        adapted: whether its network was adapted to good images.

    Returns:
        In a few words, and what there is to add, or an empty text.
    """
    neither = "neither proven nor measured"
    if adapted:
        return neither, "the network was adapted to good images; it holds if these are others"
    if int8:
        return neither, "the int8 network has seen images that calibrate; float32 has not"
    if method.name == "split":
        return "proven" + (" for the images assigned to each product" if products else ""), ""
    if products:
        return neither, "split proves it for the images assigned to each product"
    known = "measured, not proven" if measured else neither
    if method.name == "leave-one-out":
        return ("proven for k-NN distances", "") if k_nn else (known, "split proves it")
    bound = method.bound(budget, count)
    return f"proven is at most {bound:.3g}", f"the budget itself is {known}; split proves it"
