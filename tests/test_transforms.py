import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nnad import transforms
from nnad.errors import InputError
from nnad.transforms import TRANSFORMS, fit_transform, l2, raw, root

FEATURES = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 8)),
    elements=st.floats(-1e3, 1e3, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3),
)


def test_by_hand():
    features = np.array([[9.0, -16.0], [0.0, 0.0]])
    np.testing.assert_allclose(raw(features), features)
    np.testing.assert_allclose(l2(features), [[9 / 337**0.5, -16 / 337**0.5], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(root(features), [[0.6, -0.8], [0, 0]], rtol=1e-6)


@given(FEATURES)
def test_l2_and_root_have_length_one_or_zero(features):
    for transform in (l2, root):
        lengths = np.linalg.norm(transform(features).astype(np.float64), axis=1)
        expected = (features != 0).any(axis=1)
        np.testing.assert_allclose(lengths, expected, atol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMS)
@given(FEATURES)
def test_rows_are_independent_and_the_input_is_left_alone(name, features):
    before = features.copy()
    transform = fit_transform(name, features)
    whole = transform(features)
    rows = [transform(features[i : i + 1]) for i in range(len(features))]
    np.testing.assert_array_equal(whole, np.vstack(rows))
    np.testing.assert_array_equal(features, before)
    assert whole.dtype == np.float32
    assert np.isfinite(whole).all()


@pytest.mark.parametrize("name", ["l2", "root", "log"])
def test_blocks_change_no_bit_and_hold_the_memory_down(name, monkeypatch):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20_000, 40)).astype(np.float32)  # 3.2 MB
    features[7] = 0
    transform = fit_transform(name, features)
    monkeypatch.setattr(transforms, "_BLOCK", features.size)
    whole = transform(features)
    monkeypatch.setattr(transforms, "_BLOCK", 40 * 300)
    tracemalloc.start()
    by_blocks = transform(features)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(by_blocks, whole)
    assert peak < 2 * features.nbytes  # the result and a little
    np.testing.assert_array_equal(transform(np.asfortranarray(features)), whole)


def test_log_by_hand():
    good = np.array([[1.0, 3.0], [0.0, 4.0]])  # mean 2, so the scale is 0.6
    expected = l2(np.array([[np.log1p(5), -np.log1p(10)]]))
    np.testing.assert_allclose(fit_transform("log", good)(np.array([[3.0, -6.0]])), expected)


def test_white_evens_out_the_spread():
    rng = np.random.default_rng(0)
    good = np.abs(rng.normal(size=(500, 6)) * [1, 1, 1, 1, 1, 30])
    white = fit_transform("white", good)(good).astype(np.float64)
    spread = np.linalg.eigvalsh(np.cov(white, rowvar=False))
    covariance = np.cov(root(good).astype(np.float64), rowvar=False)
    values = np.linalg.eigvalsh(covariance)
    np.testing.assert_allclose(spread, values / (values + 3 * values.mean()), rtol=1e-3)


def test_white_by_definition_also_with_fewer_images_than_features():
    good = np.abs(np.random.default_rng(0).normal(size=(9, 30)))
    rooted = root(good).astype(np.float64)
    covariance = np.cov(rooted, rowvar=False)
    covariance += 3 * np.trace(covariance) / 30 * np.eye(30)
    values, vectors = np.linalg.eigh(covariance)
    expected = (rooted - rooted.mean(axis=0)) @ vectors / np.sqrt(values) @ vectors.T
    np.testing.assert_allclose(fit_transform("white", good)(good), expected, atol=1e-4)


def test_unknown():
    with pytest.raises(InputError, match="transform='cube'; choose one of raw, l2, root, log"):
        fit_transform("cube", np.ones((2, 2)))
