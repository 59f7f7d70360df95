import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnad.calibrate import Calibration, round_up
from nnad.errors import BudgetError, InputError
from nnad.neighbors import Bank


def test_p_values_by_hand():
    calibration = Calibration(np.array([3.0, 1.0, 2.0, 2.0]))
    p = calibration.p_values(np.array([0.0, 1.0, 2.0, 2.5, 3.0, 9.0]))
    np.testing.assert_allclose(p, [1, 1, 0.8, 0.4, 0.4, 0.2])


def test_threshold_by_hand():
    calibration = Calibration(np.arange(1.0, 20.0))  # n = 19: budgets in steps of 0.05
    assert calibration.threshold(0.05) == 19  # only scores above all of them: p = 1/20
    assert calibration.threshold(0.099) == 19
    assert calibration.threshold(0.10) == 18
    assert calibration.threshold(0.99) == 1


def test_a_budget_that_n_images_cannot_support_names_the_smallest():
    calibration = Calibration(np.arange(31.0))
    with pytest.raises(BudgetError, match=r"smallest possible budget is 0\.0313.*at least 99"):
        calibration.threshold(0.01)
    calibration.threshold(0.0313)
    calibration.threshold(1 / 32)
    for wrong in (0, 1, -0.1, float("nan")):
        with pytest.raises(InputError, match="fraction"):
            calibration.threshold(wrong)


@given(st.floats(1e-6, 0.99))
def test_round_up_never_rounds_down(budget):
    assert budget * (1 - 1e-6) <= round_up(budget) <= budget * 1.011


@given(
    scores=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    new=st.integers(-1, 7),
    budget=st.floats(0.001, 0.999),
)
def test_above_the_threshold_is_a_p_value_within_the_budget(scores, new, budget):
    calibration = Calibration(np.array(scores, dtype=float))
    if budget < calibration.smallest_budget:
        with pytest.raises(BudgetError):
            calibration.threshold(budget)
        return
    p = calibration.p_values(np.array([float(new)]))[0]
    assert (new > calibration.threshold(budget)) == (p <= budget + 1e-9)


def test_leave_one_out_p_values_are_at_least_the_exact_conformal_ones():
    """The argument in calibrate.py: exact full conformal p <= our p, for any data."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        n, k = int(rng.integers(4, 25)), int(rng.integers(1, 4))
        points = rng.standard_t(2, size=(n + 1, 2)).astype(np.float32)
        bank = Bank(points[:n])
        left_out = bank.nearest(points[:n], k, exclude=np.arange(n)).sq_dists.mean(axis=1)
        new = bank.nearest(points[n:], k).sq_dists.mean(axis=1)
        ours = Calibration(left_out).p_values(new)[0]

        everyone = Bank(points).nearest(points, k, exclude=np.arange(n + 1)).sq_dists.mean(axis=1)
        exact = np.mean(everyone >= everyone[n])
        assert exact <= ours + 1e-12


def test_the_promise_holds_on_average():
    rng = np.random.default_rng(1)
    budget, alarms = 0.1, []
    for _ in range(400):
        points = rng.normal(size=(60, 3))
        bank = Bank(points[:30])
        left_out = bank.nearest(points[:30], 2, exclude=np.arange(30)).sq_dists.mean(axis=1)
        scores = bank.nearest(points[30:], 2).sq_dists.mean(axis=1)
        alarms.append(np.mean(scores > Calibration(left_out).threshold(budget)))
    error = np.std(alarms) / np.sqrt(len(alarms))
    assert 0.05 < np.mean(alarms) <= budget + 2 * error
