"""An operator with PyOD's names and signs: higher is more abnormal, labels are 0 and 1.

It needs no PyOD. `decision_scores_` are leave-one-out scores, so `labels_` are those of an
unlabelled training set that contains a share `contamination` of anomalies.
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from nnad.errors import InputError
from nnad.neighbors import Bank
from nnad.operators import make_operator


class OperatorOD:
    """PyOD's interface to one operator.

    Args:
        operator: a name for `nnad.operators.make_operator`.
        contamination: the share of anomalies in the training set, above 0 and at most 0.5.
        **arguments: the operator's.

    After `fit`: `decision_scores_` (N,), `threshold_`, `labels_` (N,), `operator_`.
    """

    decision_scores_: NDArray[np.float64]
    labels_: NDArray[np.int64]
    threshold_: float

    def __init__(
        self, operator: str = "knn", *, contamination: float = 0.1, **arguments: Any
    ) -> None:
        if not 0 < contamination <= 0.5:
            raise InputError(f"contamination={contamination!r}; expected above 0 and at most 0.5")
        self.contamination = contamination
        self.operator_ = make_operator(operator, **arguments)

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002, N803
        """Learn from rows X (N, D); y is ignored."""
        self.operator_.fit(Bank(X))
        self.decision_scores_ = self.operator_.left_out_scores()
        self.threshold_ = float(
            np.percentile(self.decision_scores_, 100 * (1 - self.contamination))
        )
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(np.int64)
        return self

    def fit_predict(self, X: Any, y: Any = None) -> NDArray[np.int64]:  # noqa: N803
        """`fit`, then `labels_`."""
        return self.fit(X, y).labels_

    def decision_function(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """(Q, D) -> (Q,) scores."""
        if not hasattr(self, "decision_scores_"):
            raise InputError("this detector has seen no rows; call fit first")
        return self.operator_.score(X)

    def predict(self, X: Any) -> NDArray[np.int64]:  # noqa: N803
        """(Q, D) -> (Q,) 1 for outliers, 0 for inliers."""
        return (self.decision_function(X) > self.threshold_).astype(np.int64)

    def predict_proba(self, X: Any, method: str = "linear") -> NDArray[np.float64]:  # noqa: N803
        """(Q, D) -> (Q, 2): probability of being an inlier and an outlier.

        Args:
            X: rows.
            method: `linear`: the score between the training set's lowest and highest; `unify`: the
                Gauss error function of its standard score (Kriegel et al., SDM 2011).
        """
        scores, train = self.decision_function(X), self.decision_scores_
        if method == "linear":
            spread = float(np.ptp(train)) or 1.0
            outlier = np.clip((scores - train.min()) / spread, 0, 1)
        elif method == "unify":
            from scipy.special import erf

            deviation = float(train.std()) or 1.0
            outlier = np.clip(erf((scores - train.mean()) / (deviation * np.sqrt(2))), 0, 1)
        else:
            raise InputError(f"method={method!r}; choose linear or unify")
        return np.column_stack([1 - outlier, outlier])

    def predict_confidence(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """(Q, D) -> (Q,) the probability that the label stays the same on another training set.

        Perini, Vercruyssen and Davis, "Quantifying the confidence of anomaly detectors in their
        example-wise predictions", ECML-PKDD 2020.
        """
        scores = self.decision_function(X)
        n = len(self.decision_scores_)
        below = np.searchsorted(np.sort(self.decision_scores_), scores, side="right")
        posterior = (1 + below) / (2 + n)  # that a training row scores lower
        allowed = n - int(n * self.contamination)
        confidence = 1 - binom.cdf(allowed - 1, n, posterior)
        return np.asarray(np.where(self.predict(X) == 1, confidence, 1 - confidence))
