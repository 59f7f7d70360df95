import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from nnad import BudgetError, InputError
from nnad.neighbors import Bank
from nnad.operators.knn import KNN
from nnad.pyod_style import OperatorOD
from nnad.sklearn_estimators import (
    GlobalDetector,
    HullDetector,
    KMeansDetector,
    KNNDetector,
    KNNNDetector,
    LocalDetector,
)

ESTIMATORS = [
    KNNDetector(),
    KNNNDetector(),
    GlobalDetector(),
    LocalDetector(),
    HullDetector(),
    KMeansDetector(),
]
ROWS = np.random.default_rng(0).normal(size=(150, 6))
ODD = np.random.default_rng(1).normal(size=(20, 6)) + 6


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_signs_and_threshold(estimator):
    fitted = clone(estimator).set_params(false_alarms=0.05).fit(ROWS)
    assert (fitted.predict(ODD) == -1).all()
    assert (fitted.score_samples(ODD) < fitted.score_samples(ROWS).min()).all()
    assert (fitted.decision_function(ODD) < 0).all()
    assert np.mean(-fitted.left_out_scores_ < fitted.offset_) <= 0.05
    assert 1 <= (fitted.predict(ROWS) == -1).sum() <= 0.05 * 151  # seen as by the others
    fresh = np.random.default_rng(2).normal(size=(400, 6))
    assert np.mean(fitted.predict(fresh) == -1) < 0.15
    with pytest.raises(BudgetError, match="smallest possible budget"):
        clone(estimator).set_params(false_alarms=0.001).fit(ROWS)


def test_pipeline_and_grid_search():
    pipeline = make_pipeline(StandardScaler(), KNNDetector(false_alarms=0.05))
    assert (pipeline.fit(ROWS).predict(ODD) == -1).all()
    rows, labels = np.vstack([ROWS, ODD]), np.r_[np.ones(150), -np.ones(20)]
    search = GridSearchCV(KNNDetector(), {"k": [1, 3]}, scoring="roc_auc", cv=3)
    shuffled = np.random.default_rng(0).permutation(170)
    search.fit(rows[shuffled], labels[shuffled])
    assert search.best_params_["k"] in (1, 3)


def test_pyod_names_and_signs():
    detector = OperatorOD("knn", k=12, contamination=0.1)  # more than the 10 odd ones
    with pytest.raises(InputError, match="call fit first"):
        detector.predict(ROWS)
    train = np.vstack([ROWS, ODD[:10]])
    assert detector.fit_predict(train)[-10:].all()
    assert detector.labels_.sum() == 16
    np.testing.assert_allclose(
        detector.decision_scores_, KNN(12).fit(Bank(train)).left_out_scores()
    )
    assert detector.predict(ODD).all()
    probability = detector.predict_proba(np.vstack([ROWS[:5], ODD]))
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    assert probability[5:, 1].min() > probability[:5, 1].max()
    unified = detector.predict_proba(ODD, method="unify")
    assert (unified[:, 1] >= 0).all()
    confidence = detector.predict_confidence(np.vstack([ROWS[:5], ODD[10:]]))
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert confidence[5:].min() > 0.9


@pytest.mark.parametrize("method", ["linear", "unify"])
def test_probabilities_and_confidence_equal_pyods(method):
    from pyod.models import knn

    peer = knn.KNN(n_neighbors=3, method="mean", contamination=0.2).fit(ROWS)
    ours = OperatorOD("knn", k=3, squared=False, contamination=0.2).fit(ROWS)
    np.testing.assert_allclose(ours.decision_function(ODD), peer.decision_function(ODD), rtol=1e-5)
    ours.decision_scores_, ours.threshold_ = peer.decision_scores_, peer.threshold_
    queries = np.vstack([ODD * 0.4, ODD])
    np.testing.assert_array_equal(ours.predict(queries), peer.predict(queries))
    expected = peer.predict_proba(queries, method=method)
    np.testing.assert_allclose(ours.predict_proba(queries, method=method), expected, atol=1e-5)
    np.testing.assert_allclose(
        ours.predict_confidence(queries), peer.predict_confidence(queries), atol=1e-6
    )


def test_wrong_arguments():
    with pytest.raises(InputError, match=r"contamination=0\.7"):
        OperatorOD(contamination=0.7)
    with pytest.raises(InputError, match="method='other'"):
        OperatorOD().fit(ROWS).predict_proba(ROWS, method="other")
