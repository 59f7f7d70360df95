"""Protocols by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnad import InputError
from nnad.protocols import (
    SHAPES,
    all_but_one,
    few_shot,
    first_classes,
    group_task,
    impure,
    impurities,
    one_class,
    plane_box,
    plane_points,
    plane_task,
    sets_together,
    with_holes,
)

TRAIN = [0, 1, 2, 0, 1, 2]
TEST = [2, 1, 0, 0]


def told(task):
    return task.train.tolist(), task.test.tolist(), task.is_anomaly.tolist()


def test_one_class():
    assert told(one_class(TRAIN, TEST, 0)) == ([0, 3], [0, 1, 2, 3], [True, True, False, False])


def test_all_but_one():
    assert told(all_but_one(TRAIN, TEST, 0)) == (
        [1, 2, 4, 5],
        [0, 1, 2, 3],
        [False, False, True, True],
    )


def test_classes_that_cannot_be():
    with pytest.raises(InputError, match=r"normal classes \[7\]: 0 images to train, to test 0"):
        one_class(TRAIN, TEST, 7)
    with pytest.raises(InputError, match="2 images to train, to test 2 normal and 0 odd"):
        one_class(TRAIN, [1, 1], 1)


def test_first_classes_by_alphabet():
    assert first_classes(["d", "a", "c", "b"], 3) == [1, 3, 2]
    assert first_classes(["d", "a"]) == [1, 0]


def test_sets_together():
    """Sets a and c of three; b takes no part."""
    classes = ["a/good", "a/cut", "b/good", "b/cut", "c/good", "c/cut"]
    train, test = [0, 2, 4, 0], [0, 1, 2, 3, 4, 5]
    task = sets_together(train, test, classes, (0, 2, 4), ("a", "c"))
    assert told(task) == ([0, 2, 3], [0, 1, 4, 5], [False, True, False, True])


def test_few_shot():
    task = one_class([0] * 20 + [1], [0, 1], 0)
    drawn = [few_shot(task, 5, seed).train for seed in (0, 0, 1)]
    assert [len(set(rows.tolist())) for rows in drawn] == [5, 5, 5]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert drawn[0].tolist() != drawn[2].tolist()
    assert set(few_shot(task, 10, 0).train) > set(drawn[0])  # more of the same draw
    assert sorted(few_shot(task, None, 0).train) == list(range(20))
    assert sorted(few_shot(task, 99, 0).train) == list(range(20))


def test_impure():
    task = one_class([0] * 8 + [1] * 30, [0, 1], 0)
    mixed = impure(task, 38, 0.2, seed=1).train  # 2 of 10
    assert mixed[:8].tolist() == list(range(8))
    assert len(set(mixed[8:].tolist())) == 2
    assert (mixed[8:] >= 8).all()
    assert impure(task, 38, 0.0, seed=1).train.tolist() == list(range(8))


@given(st.integers(1, 200), st.floats(0, 0.5), st.integers(0, 5))
def test_impurities_make_up_their_share(n_good, share, seed):
    rows = impurities(n_good, 1000, share, seed)
    assert len(rows) / (n_good + len(rows)) == pytest.approx(share, abs=0.5 / n_good)
    assert len(impurities(n_good, 3, share, seed)) <= 3


LABELS = np.repeat(np.arange(4), 30)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.integers(0, 9), st.sampled_from(["literal", "without permutations"]))
def test_groups_of_one_of_each(m, seed, kind):
    task = group_task(LABELS, LABELS, kind, m, n_train=5, n_test=30, seed=seed)
    assert task.is_anomaly.tolist() == [False] * 30 + [True] * 30
    of_each = list(range(m))
    for rows in task.train + task.test[:30]:
        assert sorted(LABELS[rows].tolist()) == of_each
    odd = [sorted(LABELS[rows].tolist()) for rows in task.test[30:]]
    assert all(len(classes) == m and classes[-1] < m for classes in odd)
    if kind == "without permutations":
        assert of_each not in odd


def test_half_of_the_literal_pairs_are_one_of_each():
    task = group_task(LABELS, LABELS, "literal", 2, n_train=1, n_test=2000)
    one_of_each = [len(set(LABELS[rows].tolist())) == 2 for rows in task.test[2000:]]
    assert np.mean(one_of_each) == pytest.approx(0.5, abs=0.05)


def test_sets_of_one_class():
    task = group_task(LABELS, LABELS, "sets", n_train=20, n_test=20, seed=3)
    sizes = [len(rows) for rows in task.train + task.test]
    assert 10 <= min(sizes) < max(sizes) <= 50
    for rows in task.train + task.test[:20]:
        assert len(set(LABELS[rows].tolist())) == 1
        assert len(set(rows.tolist())) == min(len(rows), 30)
    assert all(len(set(LABELS[rows].tolist())) > 1 for rows in task.test[20:])
    again = group_task(LABELS, LABELS, "sets", n_train=20, n_test=20, seed=3)
    for rows, same in zip(task.train + task.test, again.train + again.test, strict=True):
        np.testing.assert_array_equal(rows, same)


def test_groups_that_cannot_be():
    with pytest.raises(InputError, match="kind='pairs'"):
        group_task(LABELS, LABELS, "pairs")
    with pytest.raises(InputError, match="a class has no images"):
        group_task(LABELS, LABELS[LABELS > 0], "literal")
    with pytest.raises(InputError, match="two classes are needed"):
        group_task(LABELS, LABELS, "without permutations", 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_points_in_a_plane(shape):
    task = plane_task(shape, 40, 0.0, 2, n_odd=70)
    assert (task.train.shape, task.test.shape) == ((40, 2), (110, 2))
    assert task.is_anomaly.tolist() == [False] * 40 + [True] * 70
    made = plane_points(shape, 80, 0.0, 2)
    np.testing.assert_array_equal(np.vstack([task.train, task.test[:40]]), made)
    low, high = plane_box(made)
    assert ((task.test >= low) & (task.test <= high)).all()
    assert high - low == pytest.approx(1.2 * np.ptp(made, axis=0))
    with pytest.raises(InputError, match="shape='ring'"):
        plane_points("ring", 3, 0.0, 0)


def test_holes_in_a_curve():
    line = np.column_stack([np.arange(100.0), np.zeros(100)])
    points = np.vstack([line[[20, 70]], np.delete(line, [20, 70], axis=0)])
    kept, hidden = with_holes(points, 2, 0.05)
    expected = np.r_[18:23, 68:73]
    assert sorted(hidden[:, 0]) == expected.tolist()
    assert sorted(kept[:, 0]) == np.delete(np.arange(100), expected).tolist()
    assert len(with_holes(points[:5], 1, 0.0)[1]) == 1
