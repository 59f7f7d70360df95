import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnad.budgets import Stream, alarms_budget, fewest_alarms, within_fdr
from nnad.calibrate import Calibration
from nnad.errors import BudgetError, InputError


def test_benjamini_hochberg_by_hand():
    """Of 5 p-values the i-th smallest is compared with i * 0.1 / 5: 0.02, 0.04, 0.06, 0.08, 0.1."""
    p = np.array([0.5, 0.055, 0.01, 0.045, 0.9])
    assert within_fdr(p, 0.1).tolist() == [False, True, True, True, False]
    assert not within_fdr(np.array([0.03, 0.2, 0.3, 0.4, 0.5]), 0.1).any()
    assert within_fdr(np.array([0.02, 1.0, 1.0, 1.0, 1.0]), 0.1).tolist() == [True] + [False] * 4
    assert within_fdr(np.array([]), 0.1).tolist() == []
    for wrong in (0, 1, -1, float("nan")):
        with pytest.raises(InputError, match="false discovery rate"):
            within_fdr(p, wrong)


@given(st.integers(1, 200), st.integers(1, 300), st.sampled_from([0.01, 0.05, 0.1, 0.3]))
def test_the_fewest_anomalies_that_a_batch_can_have(images, good, fdr):
    smallest = 1 / (good + 1)
    if smallest > fdr:
        with pytest.raises(BudgetError, match="good images to calibrate with are needed"):
            fewest_alarms(images, smallest, fdr)
        return
    fewest = fewest_alarms(images, smallest, fdr)
    p = np.ones(images)
    p[:fewest] = smallest
    assert within_fdr(p, fdr).sum() >= fewest
    p[fewest - 1] = 1
    assert not within_fdr(p, fdr).any()


def test_false_discoveries_in_simulation():
    """100 good images calibrate; 80 good and 20 odd ones come; FDR 20 %, of which 80 % is 16 %."""
    rng, shares, found = np.random.default_rng(0), [], []
    for _ in range(400):
        calibration = Calibration(rng.normal(size=100))
        scores = np.concatenate([rng.normal(size=80), rng.normal(3.5, 1, size=20)])
        called = within_fdr(calibration.p_values(scores), 0.2)
        shares.append(called[:80].sum() / max(called.sum(), 1))
        found.append(called[80:].mean())
    error = np.std(shares) / 20
    assert 0.1 < np.mean(shares) <= 0.16 + 3 * error
    assert np.mean(found) > 0.7


def test_alarms_in_so_many_images():
    assert alarms_budget(2, 100, good=50) == 0.02
    with pytest.raises(BudgetError, match=r"0\.01, which needs at least 99 good images, not 50"):
        alarms_budget(1, 100, good=50)
    # good = 1, r = 1: the false-alarm rate is uniform, and so is the number of alarms, 0..3
    assert alarms_budget(2, 3, good=1, confidence=0.75) == 0.5
    with pytest.raises(BudgetError, match="more than 1 good image"):
        alarms_budget(2, 3, good=1, confidence=0.76)
    for wrong in ((0, 10), (10, 10), (11, 10)):
        with pytest.raises(InputError, match="0 < alarms < images"):
            alarms_budget(*wrong, good=50)
    with pytest.raises(InputError, match="confidence=1"):
        alarms_budget(1, 10, good=50, confidence=1)


def test_the_confidence_in_a_number_of_alarms_in_simulation():
    good, images, alarms = 200, 100, 5
    budget = alarms_budget(alarms, images, good, confidence=0.9)
    assert budget < alarms / images
    rng, kept, kept_by_more = np.random.default_rng(0), [], []
    for _ in range(2000):
        calibration = Calibration(rng.random(good))
        p_values = calibration.p_values(rng.random(images))
        kept.append((p_values <= budget + 1e-9).sum() <= alarms)
        kept_by_more.append((p_values <= budget + 1 / (good + 1) + 1e-9).sum() <= alarms)
    assert np.mean(kept) > 0.9 - 0.02
    assert np.mean(kept_by_more) < 0.9 + 0.02


def test_the_level_of_a_stream_by_hand():
    """gamma_j = j^-1.6 / zeta(1.6), zeta(1.6) = 2.28577; fdr 0.1, W = 0.05."""
    stream = Stream(0.1)
    assert stream.level == pytest.approx(0.05 / 2.2857657)
    assert not stream.decide(0.03)
    assert stream.level == pytest.approx(0.05 / 2.2857657 * 2**-1.6)
    assert stream.decide(0.007)  # the first alarm: W and the rest of fdr
    assert stream.level == pytest.approx((0.05 * 3**-1.6 + 0.05) / 2.2857657)
    assert stream.decide(0.001)
    assert stream.level == pytest.approx((0.05 * 4**-1.6 + 0.05 * 2**-1.6 + 0.1) / 2.2857657)
    assert (stream.seen, stream.alarms) == (3, [2, 3])


def test_after_its_patience_a_stream_is_silent():
    for good in (60, 500, 20_000):
        smallest = 1 / (good + 1)
        patience = Stream(0.1).patience(smallest)
        assert not Stream(0.1, seen=patience - 1).silent(smallest)
        assert Stream(0.1, seen=patience - 1).decide(smallest)
        assert Stream(0.1, seen=patience).silent(smallest)
        assert not Stream(0.1, seen=patience).decide(smallest)
    assert Stream(0.1).patience(1 / 21) == 0
    Stream(0.1).check(1 / 46)  # 1 / level is 45.7
    with pytest.raises(BudgetError, match="at least 45 good images"):
        Stream(0.1).check(1 / 45)


def test_a_stream_goes_on_where_it_was_saved(tmp_path):
    p_values = np.random.default_rng(0).random(60) ** 4
    whole, first = Stream(0.2), Stream(0.2)
    expected = [whole.decide(p) for p in p_values]
    assert 0 < sum(expected) < 60
    decided = [first.decide(p) for p in p_values[:25]]
    first.save(tmp_path / "stream.json")
    again = Stream.load(tmp_path / "stream.json")
    assert decided + [again.decide(p) for p in p_values[25:]] == expected
    assert again == whole


@pytest.mark.parametrize(
    "state",
    ["", "[]", "{}", '{"fdr": 0.1}', {"fdr": 2, "seen": 0, "alarms": []}]
    + [{"fdr": 0.1, "seen": 3, "alarms": wrong} for wrong in ([4], [0], [2, 1], [1, 1], ["x"], 3)],
)
def test_a_file_that_is_no_stream_is_refused(state, tmp_path):
    path = tmp_path / "s.json"
    path.write_text(state if isinstance(state, str) else json.dumps(state))
    with pytest.raises(InputError, match=r"s\.json: not the state of a stream"):
        Stream.load(path)
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        Stream.load(tmp_path / "none.json")


def test_false_discoveries_of_a_stream_in_simulation():
    """Uniform p-values of 60 good images, small ones of 40 odd ones, in any order."""
    rng, shares, found = np.random.default_rng(0), [], []
    for _ in range(300):
        odd = rng.permutation(100) < 40
        p_values = np.where(odd, 1e-4, 1) * rng.random(100)
        stream = Stream(0.2)
        called = np.array([stream.decide(p) for p in p_values])
        shares.append((called & ~odd).sum() / max(called.sum(), 1))
        found.append(called[odd].mean())
    assert np.mean(shares) <= 0.2
    assert np.mean(found) > 0.9
