"""Metrics against numbers by hand, scikit-learn, and a walk through all thresholds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from nnad import InputError, metrics
from nnad.metrics import image_metrics, pixel_metrics


def test_image_metrics_by_hand():
    found = image_metrics([1, 1, 0, 0, 0], [4, 2, 3, 2, 1])
    # pairs: 4 beats all three; 2 loses to 3, ties with 2, beats 1
    assert found.auroc == pytest.approx(4.5 / 6)
    # thresholds 4, 3, 2, 1: precision 1, 1/2, 2/4, 2/5; recall 1/2, 1/2, 1, 1
    assert found.ap == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert found.f1_max == pytest.approx(2 / 3)
    assert found.fpr_at_95_tpr == pytest.approx(2 / 3)


def test_the_95_percent_are_reached_with_19_of_20():
    is_anomaly = np.arange(40) < 20
    scores = np.where(is_anomaly, 2.0, 1.0)
    scores[0] = 0.0  # one anomaly below all good images
    assert image_metrics(is_anomaly, scores).fpr_at_95_tpr == 0
    scores[1] = 0.0
    assert image_metrics(is_anomaly, scores).fpr_at_95_tpr == 1


@pytest.mark.parametrize(
    ("is_anomaly", "scores", "message"),
    [
        ([1, 0], [1.0], "shape"),
        ([1, 0], [1.0, np.nan], "finite"),
        ([1, 1], [1.0, 2.0], "good images and anomalies"),
        ([0, 0], [1.0, 2.0], "good images and anomalies"),
    ],
)
def test_images_that_cannot_be_compared(is_anomaly, scores, message):
    with pytest.raises(InputError, match=message):
        image_metrics(is_anomaly, scores)


def test_pro_by_hand():
    """Two regions, of 1 and 3 pixels; 10 good pixels, so that 0.3 is 3 of them."""
    mask = np.zeros((2, 7), bool)
    mask[0, 0] = True
    mask[0, 4:7] = True
    scores = np.array([[9, 1, 2, 8, 7, 7, 2], [3, 4, 1, 1, 1, 1, 8]], float)
    # false positives 0 / 2 / 3 / 4 after level 9 / 8 / 4 / 3; found: 9 -> region 1, 7 -> 2/3 of 2
    # overlap: 1/2 up to 2 false positives, then 1/2 + 1/3
    expected = (0.5 * 2 + (0.5 + 1 / 3) * 1) / 3
    assert pixel_metrics([(scores, mask)]).pro == pytest.approx(expected)


def test_pixels_that_touch_at_a_corner_are_one_region():
    mask = np.zeros((3, 5), bool)
    mask[0, 0] = mask[1, 1] = mask[0, 4] = True
    scores = np.zeros((3, 5))
    scores[0, 0] = 1  # half of the first of two regions
    # all other pixels are tied at 0: straight from (0, 1/4) to (1, 1)
    expected = 1 / 4 + 0.3 / 2 * 3 / 4
    assert pixel_metrics([(scores, mask)]).pro == pytest.approx(expected)


def by_thresholds(maps, limit):
    """AUROC, AP and PRO read off at every score that occurs."""
    labelled = [ndimage.label(mask, np.ones((3, 3))) for _, mask in maps]
    good = np.concatenate([scores[~mask] for scores, mask in maps])
    odd = np.concatenate([scores[mask] for scores, mask in maps])
    parts = [
        scores[labels == region]
        for (scores, _), (labels, count) in zip(maps, labelled, strict=True)
        for region in range(1, count + 1)
    ]
    x, y = [0.0], [0.0]
    for level in np.unique(np.concatenate([good, odd]))[::-1]:
        x.append((good >= level).mean())
        y.append(np.mean([(part >= level).mean() for part in parts]))
    fine = np.interp(limit, x, y) if limit < 1 else 1.0
    inside = np.array(x) <= limit
    x, y = np.append(np.array(x)[inside], limit), np.append(np.array(y)[inside], fine)
    labels = np.concatenate([np.zeros(len(good)), np.ones(len(odd))])
    scores = np.concatenate([good, odd])
    area = np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / limit
    return roc_auc_score(labels, scores), average_precision_score(labels, scores), area


@settings(max_examples=100, deadline=None)
@given(
    levels=st.sampled_from([2, 5, 10_000]),
    n_images=st.integers(1, 4),
    odd=st.floats(0.02, 0.9),
    limit=st.sampled_from([0.05, 0.3, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_pixel_metrics_equal_a_walk_through_all_thresholds(levels, n_images, odd, limit, seed):
    rng = np.random.default_rng(seed)
    maps = []
    for _ in range(n_images):
        shape = rng.integers(1, 9, 2)
        maps.append((rng.integers(0, levels, shape) / np.float32(7), rng.random(shape) < odd))
    maps.append((np.array([[0, 3], [1, 1]], np.float32), np.array([[True, False], [False, False]])))
    found = pixel_metrics(maps, pro_limit=limit)
    np.testing.assert_allclose(found, by_thresholds(maps, limit), rtol=1e-9)


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    maps = [(rng.random((20, 30)), rng.random((20, 30)) < 0.1) for _ in range(3)]
    maps.append((rng.random((5, 5)), None))
    whole = pixel_metrics(iter(maps))
    monkeypatch.setattr(metrics, "_BLOCK", 17)
    assert pixel_metrics(maps) == whole


def test_maps_that_cannot_be_compared():
    scores, mask = np.zeros((2, 2)), np.eye(2)
    with pytest.raises(InputError, match="image 1: its mask"):
        pixel_metrics([(scores, mask), (scores, np.eye(3))])
    with pytest.raises(InputError, match="image 0: scores"):
        pixel_metrics([(scores + np.nan, mask)])
    with pytest.raises(InputError, match="defect pixels"):
        pixel_metrics([(scores, None)])
    with pytest.raises(InputError, match="good pixels"):
        pixel_metrics([(scores, np.ones((2, 2)))])
    with pytest.raises(InputError, match="pro_limit"):
        pixel_metrics([(scores, mask)], pro_limit=0)
