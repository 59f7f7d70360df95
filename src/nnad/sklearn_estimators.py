"""The operators as scikit-learn outlier detectors, for Pipeline, GridSearchCV, clone and the rest.

Signs as scikit-learn has them: `score_samples` is higher for normal rows, `predict` is +1 for
normal and -1 for anomalies. The threshold comes from leave-one-out scores of the training rows and
a false-alarm budget (see calibrate.py). A row at distance 0 from a training row is taken for it and
scored as the others see it, so that `predict` on the training set means something.
"""

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from nnad.calibrate import Calibration
from nnad.neighbors import Bank
from nnad.operators import make_operator


class _OperatorEstimator(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """What the estimators below share; a subclass names its operator and its arguments.

    Attributes (after `fit`):
        operator_: the fitted operator.
        left_out_scores_: (N,) the operator's score of each training row against the others.
        offset_: what `decision_function` subtracts from `score_samples`.
        n_features_in_: D.
    """

    _operator: ClassVar[str]
    false_alarms: float | None

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002, N803
        """Learn from normal rows X (N, D), N >= 3; y is ignored."""
        X = validate_data(self, X, dtype=np.float32, ensure_min_samples=3)  # noqa: N806
        arguments = self.get_params(deep=False)
        budget = arguments.pop("false_alarms")
        self._bank = Bank(X)
        self.operator_ = make_operator(self._operator, **arguments).fit(self._bank)
        self.left_out_scores_ = self.operator_.left_out_scores()
        calibration = Calibration(self.left_out_scores_)
        self.offset_ = -calibration.threshold(
            calibration.default_budget() if budget is None else budget
        )
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """(Q, D) -> (Q,) minus the operator's score: higher is more normal."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)  # noqa: N806
        nearest = self._bank.nearest(X, 1)
        known = nearest.sq_dists[:, 0] == 0
        scores = self.operator_.score(X)
        scores[known] = self.left_out_scores_[nearest.rows[known, 0]]
        return -scores

    def decision_function(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """(Q, D) -> (Q,); below 0 for anomalies."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:  # noqa: N803
        """(Q, D) -> (Q,); -1 for anomalies, 1 for normal rows."""
        return np.where(self.decision_function(X) < 0, -1, 1)


class KNNDetector(_OperatorEstimator):
    """k-NN, see `nnad.operators.knn.KNN`; `false_alarms` as in `Detector`, 0.1 by default."""

    _operator = "knn"

    def __init__(
        self,
        k: int = 2,
        *,
        squared: bool = True,
        reduction: str = "mean",
        metric: str = "euclidean",
        false_alarms: float | None = 0.1,
    ) -> None:
        self.k = k
        self.squared = squared
        self.reduction = reduction
        self.metric = metric
        self.false_alarms = false_alarms


class KNNNDetector(_OperatorEstimator):
    """k-NNN, see `nnad.operators.knnn.KNNN`; `false_alarms` as in `KNNDetector`."""

    _operator = "knnn"

    def __init__(
        self,
        k: int = 3,
        k_prime: int = 25,
        *,
        set_size: int = 5,
        ridge: float = 1.0,
        p: int = 2,
        reorder: bool = True,
        false_alarms: float | None = 0.1,
    ) -> None:
        self.k = k
        self.k_prime = k_prime
        self.set_size = set_size
        self.ridge = ridge
        self.p = p
        self.reorder = reorder
        self.false_alarms = false_alarms


class GlobalDetector(_OperatorEstimator):
    """Global normalisation, see `nnad.operators.global_.Global`."""

    _operator = "global"

    def __init__(
        self, k: int = 3, *, ridge: float = 1.0, p: int = 2, false_alarms: float | None = 0.1
    ) -> None:
        self.k = k
        self.ridge = ridge
        self.p = p
        self.false_alarms = false_alarms


class LocalDetector(_OperatorEstimator):
    """Local normalisation, see `nnad.operators.local.Local`."""

    _operator = "local"

    def __init__(
        self,
        k: int = 3,
        *,
        n_local: int = 25,
        ridge: float = 1.0,
        p: int = 2,
        reduction: str = "mean",
        false_alarms: float | None = 0.1,
    ) -> None:
        self.k = k
        self.n_local = n_local
        self.ridge = ridge
        self.p = p
        self.reduction = reduction
        self.false_alarms = false_alarms


class HullDetector(_OperatorEstimator):
    """Distance to the local shape, see `nnad.operators.hull.Hull`."""

    _operator = "hull"

    def __init__(
        self,
        k: int = 5,
        *,
        m: int = 25,
        ridge: float = 3.0,
        reduction: str = "min",
        false_alarms: float | None = 0.1,
    ) -> None:
        self.k = k
        self.m = m
        self.ridge = ridge
        self.reduction = reduction
        self.false_alarms = false_alarms


class KMeansDetector(_OperatorEstimator):
    """k-means, see `nnad.operators.kmeans.KMeans`."""

    _operator = "kmeans"

    def __init__(
        self, n_centers: int = 10, *, seed: int = 0, false_alarms: float | None = 0.1
    ) -> None:
        self.n_centers = n_centers
        self.seed = seed
        self.false_alarms = false_alarms
