"""SPADE against numbers by hand and plain loops."""

import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnad import InputError, neighbors
from nnad.neighbors import Bank
from nnad.operators.knn import KNN
from nnad.operators.knnn import KNNN
from nnad.patch_features import resized
from nnad.patch_spool import Spool
from nnad.spade import Spade
from nnad.tiles import View

SHAPES = (5, 7, 3), (2, 3, 6)  # not square, and the coarse grid does not divide the fine one


def images(count: int, seed: int = 0) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Features (count, 4) and the stages of each image."""
    rng = np.random.default_rng(seed)
    stages = [[rng.normal(size=s).astype(np.float32) for s in SHAPES] for _ in range(count)]
    return rng.normal(size=(count, 4)).astype(np.float32), stages


def brute_force(features, stages, query, query_stages, k_images, gallery, sigma, size):
    """k-NN at both levels, a loop for each place."""
    distances = np.linalg.norm(features.astype(float) - query, axis=1)
    order = np.argsort(distances, kind="stable")
    total = np.zeros((size, size))
    for level, stage in enumerate(query_stages):
        near = np.concatenate(
            [stages[i][level].reshape(-1, stage.shape[-1]) for i in order[:gallery]]
        )
        found = np.empty(stage.shape[:2], np.float32)
        for at in np.ndindex(found.shape):
            found[at] = min(np.linalg.norm(patch.astype(float) - stage[at]) for patch in near)
        total += resized(found, size, size)
    smooth = ndimage.gaussian_filter(total / len(query_stages), sigma)
    return smooth, distances[order[:k_images]].mean()


# ------------------------------------------------------------------------------- scores


def test_by_hand():
    features = np.array([[0.0], [4.0], [100.0]])
    fine = np.array([[[0.0], [1]], [[2], [3]]])  # (2, 2, 1)
    coarse = np.zeros((1, 1, 2))
    good = [[fine, coarse], [fine + 10, coarse + 8], [fine + 50, coarse + 6]]
    model = Spade(k_images=2, gallery=2, sigma=0, size=2).fit(features, good)
    found, score = model.score(
        np.array([1.0]), [np.array([[[0.5], [5]], [[11], [14]]]), coarse + 3]
    )
    assert score == (1 + 3) / 2
    # the third image, nearest at the coarse stage, is not among the two nearest
    fine_distances = np.array([[0.5, 2], [0, 1]])
    np.testing.assert_allclose(found, (fine_distances + 18**0.5) / 2, rtol=1e-6)
    # against the others: 4 and 100, 4 and 96, 100 and 96
    assert model.good_scores.tolist() == [52, 50, 98]


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(2, 7),
    k_images=st.integers(1, 4),
    gallery=st.integers(1, 9),
    sigma=st.sampled_from([0, 1.5]),
    seed=st.integers(0, 50),
)
def test_as_a_plain_loop(count, k_images, gallery, sigma, seed):
    features, stages = images(count, seed)
    (query,), (query_stages,) = images(1, seed + 1000)
    settings_ = {"k_images": k_images, "gallery": gallery, "sigma": sigma, "size": 9}
    model = Spade(**settings_).fit(features, iter(stages))
    found, score = model.score(query, query_stages)
    expected, expected_score = brute_force(features, stages, query, query_stages, **settings_)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert score == pytest.approx(expected_score)


def test_a_patch_that_is_good_at_another_place_is_good():
    features, stages = images(3)
    rolled = [np.roll(stage, (1, 2), axis=(0, 1)) for stage in stages[1]]
    found, score = Spade(gallery=3).fit(features, stages).score(features[1], rolled)
    assert (found == 0).all()
    assert score > 0


def test_a_good_patch_of_an_image_outside_of_the_gallery_is_odd():
    features, stages = np.array([[0.0], [1.0], [9.0]]), images(3)[1]
    query = np.array([0.4])
    assert Spade(gallery=2).fit(features, stages).score(query, stages[2])[0].min() > 0
    assert (Spade(gallery=3).fit(features, stages).score(query, stages[2])[0] == 0).all()


def test_an_odd_patch_is_found_where_it_is():
    features, stages = images(6)
    odd = [stages[0][0].copy(), stages[0][1]]
    odd[0][3, 5] = 30
    for operator in ("knn", "knnn"):
        model = Spade(pixel_operator=operator, sigma=4, size=64).fit(features, stages)
        found, _ = model.score(features[0], odd)
        row, column = np.unravel_index(found.argmax(), found.shape)
        assert abs(row - 3.5 / 5 * 64) < 4
        assert abs(column - 5.5 / 7 * 64) < 4


@pytest.mark.parametrize("operator", ["knn", "knnn"])
def test_the_search_in_parts_is_that_of_the_whole(monkeypatch, operator):
    rng = np.random.default_rng(0)
    stages = [[rng.normal(size=(12, 11, 3)).astype(np.float32)] for _ in range(9)]
    features = rng.normal(size=(9, 2))
    query, query_stages = rng.normal(size=2), [rng.normal(size=(12, 11, 3)).astype(np.float32)]
    model = Spade(pixel_operator=operator, sigma=0).fit(features, stages)
    expected, _ = model.score(query, query_stages)  # by integers first: 1,188 patches, 132 queries
    monkeypatch.setattr(neighbors, "_CODING_QUERIES", 10**9)
    monkeypatch.setattr(neighbors, "_BANK_ROWS", 67)  # 17 parts and 49 rows
    monkeypatch.setattr(neighbors, "_QUERY_ROWS", 13)  # 10 parts and 2 queries
    np.testing.assert_array_equal(model.score(query, query_stages)[0], expected)


@pytest.mark.parametrize("operator", ["knn", "knnn"])
def test_left_out_is_fitted_without(operator):
    features, stages = images(8)
    made = {"image_operator": "knn", "pixel_operator": operator, "k_images": 3, "gallery": 4}
    model = Spade(**made).fit(features, stages)
    for i in (0, 5):
        rest = [j for j in range(8) if j != i]
        without = Spade(**made).fit(features[rest], [stages[j] for j in rest])
        expected, expected_score = without.score(features[i], stages[i])
        found, score = model.score(features[i], stages[i], left_out=i)
        np.testing.assert_array_equal(found, expected)
        assert score == model.good_scores[i] == pytest.approx(expected_score)


def test_knnn_between_images():
    features, stages = images(40)
    (query,), (query_stages,) = images(1, seed=1)
    model = Spade(image_operator="knnn", k_images=4).fit(features, stages)
    operator = KNNN(4).fit(Bank(features))
    assert model.score(query, query_stages)[1] == operator.score(query[None])[0]
    np.testing.assert_array_equal(model.good_scores, operator.left_out_scores())
    plain = Spade(k_images=4).fit(features, stages)
    np.testing.assert_array_equal(
        plain.good_scores, KNN(4, squared=False).fit(Bank(features)).left_out_scores()
    )
    np.testing.assert_array_equal(  # the operator of images does not touch the map
        model.score(query, query_stages)[0], plain.score(query, query_stages)[0]
    )


def test_knnn_between_patches():
    features, stages = images(6)
    (query,), (query_stages,) = images(1, seed=1)
    near = np.argsort(np.linalg.norm(features - query, axis=1))[:4]
    expected = np.zeros((10, 10), np.float32)
    for level, stage in enumerate(query_stages):
        gallery = np.concatenate([stages[i][level].reshape(-1, stage.shape[-1]) for i in near])
        operator = KNNN(1, storage="eager").fit(Bank(gallery))
        scores = operator.score(stage.reshape(-1, stage.shape[-1])).reshape(stage.shape[:2])
        expected += resized(scores.astype(np.float32), 10, 10) / 2
    model = Spade(pixel_operator="knnn", gallery=4, sigma=0, size=10).fit(features, stages)
    np.testing.assert_allclose(model.score(query, query_stages)[0], expected, rtol=1e-5)


def test_models_that_cannot_be():
    features, stages = images(4)
    with pytest.raises(InputError, match="image_operator='auto'; choose one of knn, knnn"):
        Spade(image_operator="auto")
    with pytest.raises(InputError, match="gallery=0"):
        Spade(gallery=0)
    with pytest.raises(InputError, match="sigma=-1"):
        Spade(sigma=-1)
    with pytest.raises(InputError, match="too few good images: 1"):
        Spade().fit(features[:1], stages[:1])
    with pytest.raises(InputError, match="images: 3, with 4 features"):
        Spade().fit(features, stages[:3])
    with pytest.raises(InputError, match="stages: shapes"):
        Spade().fit(features, [*stages[:3], stages[3][:1]])
    with pytest.raises(InputError, match="at least 4"):
        Spade(image_operator="knnn").fit(features[:3], stages[:3])


def test_images_that_cannot_be():
    features, stages = images(4)
    model = Spade().fit(features, stages)
    with pytest.raises(InputError, match="fitted on"):
        model.score(features[0], stages[0][:1])
    with pytest.raises(InputError, match="feature: shape"):
        model.score(features[0, :3], stages[0])
    with pytest.raises(InputError, match="left_out=4: there are 4"):
        model.score(features[0], stages[0], left_out=4)


def test_patches_of_views_in_a_file():
    _, stages = images(5)
    with tempfile.TemporaryFile(buffering=0) as file:
        spool = Spool(
            file, ([View(s, (0, 0, 1, 1)) for s in stages[i:j]] for i, j in [(0, 3), (3, 5)]), None
        )
        found = spool.patches(1, np.array([3, 0]))
    expected = np.concatenate([stages[3][1].reshape(-1, 6), stages[0][1].reshape(-1, 6)])
    np.testing.assert_array_equal(found, expected)
