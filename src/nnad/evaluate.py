"""How good a model is on labelled images, with intervals. They are reported, never learnt from."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.calibrate import within
from nnad.detector import Detector
from nnad.errors import InputError, counted
from nnad.images import Source
from nnad.results import Result

BUDGETS = (0.01, 0.02, 0.05, 0.1)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class AtBudget:
    """What a false-alarm budget gives."""

    budget: float
    false_alarms: Estimate
    detections: Estimate


@dataclass(frozen=True)
class Evaluation:
    """A model on labelled images.

    Attributes:
        good: good images that could be read.
        anomalies: anomalies that could be read.
        unreadable: images that could not.
        known: good test images that are in the model's bank, bit for bit: they tell nothing.
        auroc: the probability that an anomaly scores higher than a good image.
        at_budget: at the model's budget, or the one asked for.
        table: at 1 / (n + 1) and at 1, 2, 5 and 10 %, as far as n good images support them.
    """

    good: int
    anomalies: int
    unreadable: int
    known: int
    auroc: Estimate
    at_budget: AtBudget
    table: tuple[AtBudget, ...]


def evaluate(
    detector: Detector,
    good: Source | Iterable[Source],
    anomalies: Source | Iterable[Source],
    *,
    false_alarms: float | None = None,
    progress: bool = False,
) -> Evaluation:
    """Score labelled images and tell false-alarm and detection rates.

    Args:
        detector: fitted.
        good: good images that were not fitted, see `find_images`.
        anomalies: anomalous ones.
        false_alarms: another budget than the detector's.
        progress: show bars on a terminal.

    Raises:
        InputError: no good image or no anomaly can be read.
        BudgetError: the good images cannot support the budget.
    """
    budget = detector.false_alarms if false_alarms is None else false_alarms
    detector.calibration.check(budget)
    scored, unreadable = [], 0
    for what, images in (("good", good), ("anomalies", anomalies)):
        results = detector.score(images, progress=progress)
        read = [r for r in results if r.error is None]
        if not read:
            raise InputError(f"{what}: none of {counted(len(results), 'image')} can be read")
        scored.append(read)
        unreadable += len(results) - len(read)
    smallest = detector.calibration.smallest_budget
    budgets = sorted({smallest, *(b for b in BUDGETS if b > smallest)})
    return Evaluation(
        good=len(scored[0]),
        anomalies=len(scored[1]),
        unreadable=unreadable,
        known=sum(r.nearest[0].distance == 0 for r in scored[0]),
        auroc=auroc(*(np.array([r.score for r in results]) for results in scored)),
        at_budget=_at(budget, scored),
        table=tuple(_at(b, scored) for b in budgets),
    )


def _at(budget: float, scored: Sequence[Sequence[Result]]) -> AtBudget:
    rates = [
        rate(sum(within(r.p_value or 0.0, budget) for r in results), len(results))
        for results in scored
    ]
    return AtBudget(budget, *rates)


def rate(count: int, total: int) -> Estimate:
    """count / total with the exact interval of Clopper and Pearson (1934)."""
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(CONFIDENCE, method="exact")
    return Estimate(count / total, float(interval.low), float(interval.high))


def auroc(good: NDArray[Any], anomalies: NDArray[Any]) -> Estimate:
    """Area under the ROC curve of scores (G,) and (A,), higher being more anomalous.

    The interval is Newcombe's (2006, "Confidence intervals for an effect size measure based on the
    Mann-Whitney statistic. Part 2", method 5): all areas a with |area - a| <= z sd(a), where

        sd(a)^2 = a (1 - a) (1 + m ((1 - a) / (2 - a) + a / (1 + a))) / (G A),  m = (G + A) / 2 - 1.

    It has a width even when the area is 0 or 1.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm
    from sklearn.metrics import roc_auc_score

    labels = np.repeat([0, 1], [len(good), len(anomalies)])
    area = float(roc_auc_score(labels, np.concatenate([good, anomalies])))
    m = (len(good) + len(anomalies)) / 2 - 1
    z = float(norm.ppf((1 + CONFIDENCE) / 2))

    def outside(a: float) -> float:
        variance = a * (1 - a) * (1 + m * ((1 - a) / (2 - a) + a / (1 + a)))
        return float(abs(area - a) - z * math.sqrt(variance / (len(good) * len(anomalies))))

    inside = min(max(area, 1e-9), 1 - 1e-9)  # at 0 and at 1 sd is 0
    low = brentq(outside, 0, inside) if area > 0 else 0.0
    high = brentq(outside, inside, 1) if area < 1 else 1.0
    return Estimate(area, float(low), float(high))
