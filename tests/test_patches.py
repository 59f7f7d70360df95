"""Patch features, coreset, patch scores and maps, against numbers by hand and plain loops."""

import errno
import io
import json
import re
import shutil
import tempfile

import numpy as np
import pytest
import safetensors.numpy
from conftest import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nnad import ImageWarning, InputError, load_backbone
from nnad import coreset as coreset_module
from nnad.anomaly_maps import Region, patch_box, regions, to_image
from nnad.coreset import budget, coreset, estimate
from nnad.operators.knnn import KNNN
from nnad.patch_features import (
    Whitening,
    aligned,
    bilinear,
    neighborhood_mean,
    patch_stages,
    random_projection,
    resized,
    soft_norm,
)
from nnad.patch_model import PRESETS, PatchModel
from nnad.patches import (
    PatchBank,
    calibrated_scores,
    image_score,
    knn_scores,
    knnn_scores,
    patchcore_score,
)
from nnad.preprocessing import Preprocessing
from nnad.tiles import View

# ----------------------------------------------------------------------------- features


def test_the_mean_over_a_neighborhood_counts_only_places_that_there_are():
    stage = np.arange(9, dtype=np.float32).reshape(3, 3, 1)
    found = neighborhood_mean(stage, 3)[:, :, 0]
    assert found[1, 1] == pytest.approx(4)
    assert found[0, 0] == pytest.approx(np.mean([0, 1, 3, 4]))
    assert found[0, 1] == pytest.approx(np.mean([0, 1, 2, 3, 4, 5]))
    assert neighborhood_mean(stage, 1) is stage


def test_bilinear_by_hand():
    # two places have their centres at 1/4 and 3/4, four pixels at 1/8, 3/8, 5/8, 7/8
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(bilinear(2, 4), expected)
    np.testing.assert_allclose(bilinear(2, 2, 0.5, 1.5), [[0, 1], [0, 1]])
    np.testing.assert_allclose(bilinear(3, 3), np.eye(3))


def test_resizing_up_is_that_of_pillow():
    grid = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    expected = np.asarray(Image.fromarray(grid).resize((50, 31), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resized(grid, 31, 50), expected, atol=1e-5)
    channels = np.stack([grid, 2 * grid], axis=-1)
    np.testing.assert_allclose(resized(channels, 31, 50)[:, :, 1], 2 * expected, atol=1e-5)


def test_stages_are_brought_to_the_finest_grid():
    fine, coarse = np.zeros((4, 4, 2), np.float32), np.ones((2, 2, 3), np.float32)
    found = aligned([coarse, fine])
    assert [x.shape for x in found] == [(4, 4, 3), (4, 4, 2)]
    assert (found[0] == 1).all()
    assert found[1] is fine


def test_stages_of_a_picture():
    backbone = load_backbone(size=64, stages=("s8", "s16b"), pooling="map", geometry="whole")
    fine, coarse = patch_stages(backbone, Image.fromarray(draw(0)))
    assert fine.shape == (8, 8, 40)
    assert coarse.shape == (8, 8, 112)
    raw = backbone.maps(Image.fromarray(draw(0)))
    np.testing.assert_allclose(fine[3, 3], raw[0][2:5, 2:5].mean(axis=(0, 1)), rtol=1e-4, atol=1e-5)


def test_soft_norm_by_hand():
    found = soft_norm(np.array([[3.0, 4.0], [0.0, 0.0]]), 12.0)
    np.testing.assert_allclose(found, [[3 / 13, 4 / 13], [0, 0]])


def test_whitened_patches_are_uncorrelated():
    rng = np.random.default_rng(0)
    patches = (rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 3).astype(np.float32)
    found = Whitening.fit(patches, ridge=1e-9, keep=1)(patches)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(found, rowvar=False), np.eye(6) / 6, atol=1e-4)


def test_a_ridge_holds_weak_directions_down():
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(4000, 2)) * [1, 0.01]
    whitening = Whitening.fit(patches.astype(np.float32), ridge=0.1, keep=1)
    normed = soft_norm(patches, whitening.scale)
    values = np.linalg.eigvalsh(np.cov(normed, rowvar=False))
    spread = np.linalg.eigvalsh(np.cov(whitening(patches.astype(np.float32)), rowvar=False))
    np.testing.assert_allclose(spread, values / (values + 0.1 * values.mean()) / 2, rtol=1e-3)


def test_of_weak_directions_only_their_length_stays():
    rng = np.random.default_rng(0)
    patches = (rng.normal(size=(4000, 5)) * [3, 2, 1, 0.02, 0.01]).astype(np.float32)
    every = Whitening.fit(patches, keep=1)
    variances = every(patches).var(axis=0)
    assert (np.diff(variances) < 0).all()
    held = variances.cumsum() / variances.sum()
    for keep, kept in ((0.3, 1), (0.5, 2), (0.9, 3)):
        assert held[kept - 1] >= keep > held[kept - 1] - variances[kept - 1] / variances.sum()
        found = Whitening.fit(patches, keep=keep)(patches)
        assert found.shape == (4000, kept + 1)
        np.testing.assert_array_equal(found[:, :kept], every(patches)[:, :kept])
        # no patch becomes longer or shorter, so what is foreign stays so
        np.testing.assert_allclose(
            np.linalg.norm(found, axis=1), np.linalg.norm(every(patches), axis=1), rtol=1e-5
        )


def test_equal_patches_are_whitened_to_zero():
    assert (Whitening.fit(np.ones((5, 3), np.float32))(np.ones((2, 3), np.float32)) == 0).all()
    blank = Whitening.fit(np.zeros((5, 1), np.float32))
    assert np.isfinite(blank(np.ones((1, 1), np.float32))).all()


def test_a_random_projection_keeps_lengths_and_is_seeded():
    matrix = random_projection(300, 48)
    np.testing.assert_array_equal(matrix, random_projection(300, 48))
    assert (matrix != random_projection(300, 48, seed=1)).any()
    vectors = np.random.default_rng(0).normal(size=(200, 300))
    ratios = np.linalg.norm(vectors @ matrix, axis=1) / np.linalg.norm(vectors, axis=1)
    assert abs(ratios.mean() - 1) < 0.05


# ------------------------------------------------------------------------------ coreset


def plain_loop(vectors: np.ndarray, count: int) -> list[int]:
    """Whole numbers (N, D) -> the greedy k-centre choice, as one would write it down."""
    vectors = vectors.astype(np.int64)
    chosen = [int(np.square(vectors).sum(axis=1).argmin())]
    nearest = np.square(vectors - vectors[chosen[0]]).sum(axis=1)
    while len(chosen) < count and nearest.max() > 0:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(vectors - vectors[chosen[-1]]).sum(axis=1))
    return chosen


def test_coreset_of_points_on_a_line():
    points = np.array([[0], [1], [4], [5], [10]], np.float32)  # mean 4
    assert coreset(points, 4).tolist() == [2, 4, 0, 1]  # then 1 and 5 are both at distance 1
    assert coreset(points, 5).tolist() == [2, 4, 0, 1, 3]


@pytest.mark.filterwarnings("ignore:coreset")
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 120),
    dim=st.integers(1, 5),
    levels=st.sampled_from([2, 6, 1000]),
    block=st.sampled_from([1, 3, 256]),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_coreset_equals_the_plain_loop(rows, dim, levels, block, share, seed):
    vectors = np.random.default_rng(seed).integers(0, levels, (rows, dim)).astype(np.float32)
    count = max(1, round(share * rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreset_module, "_CENTRES", block)
        patch.setattr(coreset_module, "_PATCHES", 2 * block)
        found = coreset(vectors, count)
    expected = plain_loop(coreset_module._whole_numbers(vectors), count)
    assert found.tolist() == expected


def test_a_large_coreset_equals_the_plain_loop():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 60)) * 3
    patches = (centres[rng.integers(0, 30, 6000)] + rng.normal(size=(6000, 60))).astype(np.float32)
    projected = patches @ random_projection(60, 48)
    expected = plain_loop(coreset_module._whole_numbers(projected), 600)
    assert coreset(patches, 600).tolist() == expected


def test_whole_numbers_can_be_multiplied_in_float32_exactly():
    rng = np.random.default_rng(0)
    for dim in (1, 48, 3000):
        vectors = rng.standard_t(2, size=(100, dim)).astype(np.float32)
        rounded = coreset_module._whole_numbers(vectors)
        assert (rounded == np.rint(rounded)).all()
        assert np.square(rounded.astype(np.int64)).sum(axis=1).max() <= 2**22


def test_copies_are_chosen_once():
    patches = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    with pytest.warns(ImageWarning, match="coreset: 3 rows instead of 20; .* are copies of these"):
        assert sorted(coreset(patches, 20) // 10) == [0, 1, 2]
    assert len(coreset(patches, 3)) == 3


def test_one_patch_far_longer_than_all_others_is_told():
    patches = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    patches[7] *= 3000 * np.linalg.norm(patches, axis=1).max() / np.linalg.norm(patches[7])
    with pytest.warns(ImageWarning, match="rows instead of 100; one patch is over 100 times"):
        assert len(coreset(patches, 100)) < 100


def test_coresets_that_cannot_be():
    with pytest.raises(InputError, match="n_rows=4: there are 3"):
        coreset(np.eye(3, dtype=np.float32), 4)
    with pytest.raises(InputError, match="row 1"):
        coreset(np.array([[0.0], [np.nan]]), 1)


def test_budgets():
    assert budget(1000, 10) == 1000
    assert budget(1000, 10, share=0.1) == 100
    assert budget(1000, 10, share=0.1, rows=50) == 50
    assert budget(1000, 250, megabytes=0.1) == 100  # 1,000 bytes a row
    assert budget(1000, 250, megabytes=1e-9) == 1
    assert budget(10, 3, rows=50) == 10
    with pytest.raises(InputError, match="share"):
        budget(10, 3, share=0)


def test_an_estimate_is_told_in_words():
    assert "MB" in str(estimate(1000, 100))
    # vectors, their squared norms and bounds for 200,000 patches in 48 dimensions
    assert 40 < estimate(200_000, 20_000).megabytes < 200


def test_the_cost_is_told_beside_the_bar(monkeypatch):
    labels = []

    def told(items, total, label, *, show, **how):
        labels.append(label)
        return items

    monkeypatch.setattr(coreset_module, "track", told)
    PatchModel(sample=400, rows=20).fit((made_up(i) for i in range(3)), progress=True)
    PatchModel(sample=400, rows=20).fit(made_up(i) for i in range(3))
    assert re.fullmatch(r"coreset: about \d+ s and \d+ MB", labels[0])
    assert labels[1] == "coreset"


# ------------------------------------------------------------------------------- scores

BANK = PatchBank(
    np.array([[0, 0], [0, 3], [4, 0], [4, 3], [10, 0]], np.float32),
    images=np.array([0, 0, 1, 1, 2]),
    places=np.arange(5),
)


def test_neighbours_from_other_images():
    query = np.array([[1.0, 0.0]])
    assert BANK.nearest(query, 2).rows.tolist() == [[0, 2]]
    assert BANK.nearest(query, 2, left_out=0).rows.tolist() == [[2, 3]]
    assert BANK.nearest(query, 2, left_out=7).rows.tolist() == [[0, 2]]
    assert BANK.nearest(query, 9, left_out=1).rows.shape == (1, 3)
    # nearest of another image: 4, 4, 4, 4, 6
    assert BANK.spacing.tolist() == [4, 4, 4, 4, 6]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(2, 300),
    n_images=st.integers(2, 6),
    k=st.integers(1, 5),
    seed=st.integers(0, 100),
)
def test_leaving_an_image_out_is_searching_the_others(rows, n_images, k, seed):
    rng = np.random.default_rng(seed)
    features = rng.integers(0, 9, (rows, 2)).astype(np.float32)
    images = rng.integers(0, n_images, rows)
    images[:2] = 0, 1
    queries = rng.normal(size=(7, 2)) * 5
    bank = PatchBank(features, images, np.zeros(rows))
    others = np.flatnonzero(images != 0)
    found = bank.nearest(queries, k, left_out=0)
    k = found.rows.shape[1]
    expected = PatchBank(features[others], images[others], others).nearest(queries, k)
    np.testing.assert_array_equal(found.rows, others[expected.rows])
    np.testing.assert_array_equal(found.sq_dists, expected.sq_dists)


def test_patch_scores_by_hand():
    patches = np.array([[1.0, 0.0], [10.0, 4.0]])
    assert knn_scores(BANK, patches).tolist() == [1, 4]
    assert knn_scores(BANK, patches, k=2).tolist() == pytest.approx([2, (4 + 37**0.5) / 2])
    # the three nearest of the first have spacings 4, 4, 4; those of the second 6, 4, 4
    assert calibrated_scores(BANK, patches).tolist() == pytest.approx([1 - 2, 4 - 7 / 3])
    assert calibrated_scores(BANK, patches, k=1, share=1)[1] == -2


def test_knnn_of_patches():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 8)).astype(np.float32)
    bank = PatchBank(features, np.arange(60) // 10, np.arange(60))
    operator = KNNN().fit(bank.rows)
    queries = rng.normal(size=(5, 8)).astype(np.float32)
    np.testing.assert_array_equal(knnn_scores(bank, operator, queries), operator.score(queries))


def test_the_image_score_is_the_mean_of_the_highest():
    assert image_score(np.arange(100).reshape(10, 10)) == 97
    assert image_score(np.arange(4), share=0.05) == 3


def test_patchcore_by_hand():
    patches = np.array([[1.0, 0.0], [10.0, 4.0]])
    # the farthest patch has distance 4 to row 4, whose 2 nearest are itself and row 2
    weight = 1 - np.exp(4) / (np.exp(4) + np.exp(np.sqrt(36 + 16)))
    assert patchcore_score(BANK, patches, n_support=2) == pytest.approx(4 * weight)
    assert patchcore_score(BANK, patches * 1000, n_support=2) < 1e5  # no overflow


def test_banks_that_cannot_be():
    with pytest.raises(InputError, match="expected 2 of each"):
        PatchBank(np.eye(2), np.zeros(3), np.zeros(2))
    one = PatchBank(np.eye(2), np.zeros(2), np.zeros(2))
    with pytest.raises(InputError, match="all bank patches are from one image"):
        one.nearest(np.eye(2), 1, left_out=0)


# -------------------------------------------------------------------------------- model


def made_up(seed: int, *, odd: bool = False, n_views: int = 1) -> list[View]:
    """Views of stages (6, 6, 5) and (6, 6, 3), one direction and noise.

    With `odd` one place of the last view is foreign.
    """
    rng = np.random.default_rng(seed)
    views = []
    for _ in range(n_views):
        stages = [1 + 0.1 * rng.normal(size=(6, 6, c)).astype(np.float32) for c in (5, 3)]
        views.append(View(stages, (0, 0, 60, 60)))
    if odd:
        views[-1].stages[0][4, 1] = -1
    return views


def patches_of(views: list[View]) -> np.ndarray:
    return np.concatenate([np.concatenate(view.stages, axis=-1).reshape(36, 8) for view in views])


@pytest.mark.parametrize("operator", ["calibrated", "knn", "knnn"])
@pytest.mark.parametrize("whiten", [True, False])
def test_a_foreign_patch_is_found_where_it_is(operator, whiten):
    model = PatchModel(operator=operator, whiten=whiten, sample=400, rows=200)
    model.fit(made_up(i) for i in range(20))
    assert len(model.bank) == 200
    (scores,), image = model.score(made_up(100, odd=True))
    assert np.unravel_index(scores.argmax(), scores.shape) == (4, 1)
    assert image > model.good_scores.max()
    assert scores[4, 1] > model.pixel_threshold() >= model.usual
    (normal,), _ = model.score(made_up(101))
    assert (normal > model.pixel_threshold(0.5)).mean() < 0.2


def test_good_images_are_scored_without_their_own_patches():
    model = PatchModel(operator="knn", whiten=False, rows=None, top=1.0)
    images = [made_up(i, n_views=1 + i % 2) for i in range(4)]
    model.fit(images)
    assert len(model.bank) == 6 * 36
    patches = [patches_of(views) for views in images]
    for i in range(4):
        others = np.concatenate([p for j, p in enumerate(patches) if j != i])
        distances = np.linalg.norm(patches[i][:, None] - others[None], axis=2).min(axis=1)
        of_views = distances.reshape(-1, 36).mean(axis=1)
        assert model.good_scores[i] == pytest.approx(of_views.max(), rel=1e-5)
        assert model.good_peaks[i] == pytest.approx(distances.max(), rel=1e-5)


def test_good_images_are_scored_by_models_of_other_folds():
    images = [made_up(i) for i in range(7)]
    model = PatchModel(rows=None).fit(images)  # all patches, in order
    for i in range(7):
        others = [image for j, image in enumerate(images) if j % 5 != i % 5]
        _, score = PatchModel(rows=None).fit(others).score(images[i])
        assert model.good_scores[i] == pytest.approx(score, rel=1e-4)


def test_few_good_images_do_not_make_new_ones_odd():
    model = PatchModel().fit(made_up(i) for i in range(8))
    new = [model.score(made_up(100 + i))[1] for i in range(60)]
    assert np.mean(np.array(new) > model.good_scores.max()) < 0.2  # 1 in 9 is expected
    with pytest.raises(InputError, match="patches need 3"):
        PatchModel().fit(made_up(i) for i in range(2))


def test_patchcore_as_a_model():
    model = PatchModel(operator="knn", whiten=False, reweight=True, share=0.5, rows=None)
    model.fit(made_up(i) for i in range(6))
    assert len(model.bank) == 108
    for n_views in (1, 3):
        views = made_up(100, odd=True, n_views=n_views)
        assert model.score(views)[1] == patchcore_score(model.bank, patches_of(views))


def test_fitting_twice_gives_the_same_model():
    first, second = (
        PatchModel(sample=100, rows=40).fit(made_up(i) for i in range(5)) for _ in range(2)
    )
    np.testing.assert_array_equal(first.bank.rows.features, second.bank.rows.features)
    np.testing.assert_array_equal(first.good_scores, second.good_scores)
    other = PatchModel(sample=100, rows=40, seed=1).fit(made_up(i) for i in range(5))
    assert (first.bank.rows.features != other.bank.rows.features).any()


def test_models_that_cannot_be():
    with pytest.raises(InputError, match="too few good images: 1"):
        PatchModel().fit([made_up(0)])
    with pytest.raises(InputError, match="stages: shapes"):
        PatchModel().fit([made_up(0), [View([np.zeros((3, 3, 5), np.float32)], (0, 0, 1, 1))]])
    with pytest.raises(InputError, match="good image 1: no views"):
        PatchModel().fit([made_up(0), []])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("operator", "nearest"),
        ("whiten", "no"),
        ("sample", 1),
        ("rows", 1),
        ("rows", 20.0),
        ("share", 0),
        ("share", 1.01),
        ("share", "10%"),
        ("megabytes", 0),
        ("megabytes", np.nan),
        ("top", 0),
        ("top", "all"),
        ("reweight", None),
        ("projection", 0),
        ("seed", -1),
        ("seed", None),
    ],
)
def test_arguments_out_of_range_are_named_at_once(name, value):
    with pytest.raises(InputError, match=f"^{name}="):
        PatchModel(**{name: value})


def test_a_bank_of_one_image_is_too_small():
    images = [made_up(0), made_up(1), made_up(2)]
    with pytest.raises(InputError, match="bank too small: 1 patches, all of one image"):
        PatchModel(megabytes=1e-6).fit(images)
    with pytest.raises(InputError, match=r"sample too small: [12] patches, all of one image"):
        PatchModel(sample=2, rows=2).fit(images)


def test_more_rows_than_the_sample_raise_it():
    images = [made_up(i) for i in range(4)]
    assert len(PatchModel(sample=20, rows=100).fit(images).bank) == 100
    assert len(PatchModel(sample=20, rows=None, share=0.5).fit(images).bank) == 10


def test_patchcore_takes_its_share_of_all_patches():
    images = [made_up(i, n_views=100) for i in range(10)]  # more than the usual sample
    model = PatchModel(**{**PRESETS["patchcore"], "share": 0.001}).fit(images)
    assert len(model.bank) == 36


def test_images_of_different_sizes_are_sampled_patch_by_patch():
    images = [made_up(i, n_views=n) for i, n in enumerate((1, 3, 2))]
    patches = [patches_of(views) for views in images]
    model = PatchModel(operator="knn", whiten=False, rows=None, sample=150)
    model.fit(iter(views) for views in images)
    assert model.grid == (6, 6)
    for row, i, place in zip(
        model.bank.rows.features, model.bank.images, model.bank.places, strict=True
    ):
        np.testing.assert_array_equal(row, patches[i][place])
    assert model.bank.boxes[model.bank.places == 13].tolist()[0] == [10, 20, 20, 30]
    # a uniform draw without repetition: 36, 108 and 72 of 216 patches
    pairs = set(zip(model.bank.images.tolist(), model.bank.places.tolist(), strict=True))
    assert len(pairs) == 150
    drawn = np.random.default_rng(0).choice(216, 150, replace=False)
    starts = np.array([0, 36, 144])
    assert {(i, place) for i, place in pairs} == {
        (int(i), int(x - starts[i])) for x in drawn for i in [np.sum(starts[1:] <= x)]
    }


def test_the_image_score_is_that_of_the_oddest_view():
    model = PatchModel(top=0.1, sample=200, rows=50).fit(made_up(i) for i in range(9))
    grids, score = model.score(made_up(20, odd=True, n_views=3))
    assert [grid.shape for grid in grids] == [(6, 6)] * 3
    highest = [np.sort(grid, axis=None)[-4:].mean() for grid in grids]  # a tenth of 36
    assert score == pytest.approx(max(highest))
    singly = [model.score([view])[0][0] for view in made_up(20, odd=True, n_views=3)]
    np.testing.assert_array_equal(grids, singly)


@pytest.mark.parametrize("operator", ["calibrated", "knn", "knnn"])
@pytest.mark.parametrize("whiten", [True, False])
def test_a_restored_model_scores_the_same(operator, whiten):
    model = PatchModel(operator=operator, whiten=whiten, sample=200, rows=60, reweight=not whiten)
    model.fit(made_up(i, n_views=1 + i % 2) for i in range(8))
    content = safetensors.numpy.save(model.arrays())
    told = json.loads(json.dumps(model.settings()))
    again = PatchModel.restore(told, safetensors.numpy.load(content))
    assert again.settings() == model.settings()
    assert (again.usual, again.grid) == (model.usual, model.grid)
    assert again.pixel_threshold() == model.pixel_threshold()
    np.testing.assert_array_equal(again.good_scores, model.good_scores)
    np.testing.assert_array_equal(again.bank.boxes, model.bank.boxes)
    views = made_up(50, odd=True, n_views=2)
    grids, score = model.score(views)
    grids_again, score_again = again.score(views)
    np.testing.assert_array_equal(grids, grids_again)
    assert score == score_again


def fitted_arrays(**settings) -> tuple[dict, dict]:
    model = PatchModel(sample=100, rows=40, **settings).fit(made_up(i) for i in range(5))
    return model.settings(), model.arrays()


def test_every_restored_operator_knows_how_far_is_usual():
    for operator in ("calibrated", "knn", "knnn"):
        told, arrays = fitted_arrays(operator=operator)
        again = PatchModel.restore(told, arrays, n_good=5, n_calibrating=5)
        assert vars(again.bank)["spacing"] is arrays["bank_spacing"]  # not measured again


def changed(array: np.ndarray, at: object, value: float) -> np.ndarray:
    array = array.copy()
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("name", "tamper"),
    [
        *((name, lambda x: changed(x, 0, np.nan)) for name in ("good_scores", "good_peaks")),
        *((name, lambda x: x[:-1]) for name in ("good_scores", "good_peaks")),
        ("good_scores", lambda x: x.astype(np.float32)),
        ("usual", lambda x: x[:0]),
        ("usual", lambda x: changed(x, 0, np.inf)),
        ("bank", lambda x: changed(x, (3, 1), np.nan)),
        ("bank", lambda x: x[:0]),
        ("bank", lambda x: x.astype(np.float64)),
        ("bank_images", lambda x: changed(x, 0, 5)),
        ("bank_images", lambda x: changed(x, 0, -1)),
        ("bank_images", lambda x: x.astype(np.float64)),
        ("bank_images", np.zeros_like),
        ("bank_places", lambda x: changed(x, 0, -1)),
        ("bank_places", lambda x: x[1:]),
        ("bank_boxes", lambda x: changed(x, (0, 0), np.nan)),
        ("bank_boxes", lambda x: x[:, [2, 1, 0, 3]]),
        ("bank_boxes", lambda x: x[:, :3]),
        ("bank_spacing", lambda x: changed(x, 0, np.nan)),
        ("bank_spacing", lambda x: changed(x, 0, -1)),
        ("bank_spacing", lambda x: x[:-1]),
        ("grid", lambda x: x[:1]),
        ("grid", lambda x: changed(x, 0, 0)),
        ("whitening_0_scale", lambda x: changed(x, 0, 0)),
        ("whitening_0_mean", lambda x: changed(x, 0, np.nan)),
        ("whitening_0_matrix", lambda x: x[:, :-1]),
        ("whitening_0_matrix", lambda x: changed(x, (0, 0), np.inf)),
        ("whitening_0_kept", lambda x: x * 0),
        ("whitening_0_kept", lambda x: x * 0 + 6),
    ],
)
def test_damaged_arrays_are_named(name, tamper):
    told, arrays = fitted_arrays()
    with pytest.raises(InputError, match=f"^{name}: "):
        PatchModel.restore(told, {**arrays, name: tamper(arrays[name])}, n_good=5, n_calibrating=5)


def test_arrays_that_do_not_fit_each_other():
    told, arrays = fitted_arrays()
    for name in arrays:
        less = {other: array for other, array in arrays.items() if other != name}
        with pytest.raises(InputError, match=r"missing|of 1 stages|gives patches of"):
            PatchModel.restore(told, less)
    kept = np.array([1])
    assert arrays["whitening_0_kept"] != kept
    with pytest.raises(InputError, match="whitening: gives patches of"):
        PatchModel.restore(told, {**arrays, "whitening_0_kept": kept})
    with pytest.raises(InputError, match=r"whitening: of 2 stages, but whiten=False"):
        PatchModel.restore({**told, "whiten": False}, arrays)
    plain, plain_arrays = fitted_arrays(whiten=False)
    with pytest.raises(InputError, match=r"whitening: of 0 stages, but whiten=True"):
        PatchModel.restore({**plain, "whiten": True}, plain_arrays)
    both = {name: arrays[name][:-1] for name in ("good_scores", "good_peaks")}
    with pytest.raises(InputError, match=r"good_scores: .* expected float64, \(5\)"):
        PatchModel.restore(told, {**arrays, **both}, n_calibrating=5)
    assert len(PatchModel.restore(told, {**arrays, **both}).good_scores) == 4


def test_a_disk_that_is_too_small_is_told_at_once(monkeypatch):
    taken = []

    def images():
        for i in range(50):
            taken.append(i)
            yield made_up(i, n_views=100)  # 115 kB each

    usage = shutil.disk_usage(tempfile.gettempdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(InputError, match=r"the disk is too small.*about 0.0058 GB for 50 images"):
        PatchModel().fit(images(), total=50)
    assert len(taken) == 1


class SmallDisk(io.FileIO):
    """A file with room for 10,000 bytes; like a real one it takes what still fits."""

    def write(self, content):
        room = 10_000 - self.tell()
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content[:room])


def test_a_disk_that_becomes_full(monkeypatch, tmp_path):
    monkeypatch.setattr(
        tempfile, "TemporaryFile", lambda buffering: SmallDisk(tmp_path / "spool", "w+")
    )
    PatchModel().fit(made_up(i) for i in range(8))  # 1,152 bytes each
    told = re.escape(tempfile.gettempdir()) + ": the disk is too small; .* more than 1e-05 GB. Set"
    with pytest.raises(InputError, match=told):
        PatchModel().fit(made_up(i) for i in range(9))


# --------------------------------------------------------------------------------- maps


def test_a_map_of_the_whole_image():
    scores = np.array([[0.0, 1.0], [2.0, 3.0]])
    found = to_image([scores], (8, 4))
    assert found.shape == (4, 8)
    np.testing.assert_allclose(found, resized(scores.astype(np.float32), 4, 8), rtol=1e-6)


def test_what_was_not_looked_at_is_nan():
    found = to_image([np.ones((2, 2))], (10, 10), [(2.0, 0.0, 10.0, 5.0)])
    assert np.isnan(found[:, :2]).all()
    assert np.isnan(found[5:]).all()
    assert (found[:5, 2:] == 1).all()


def test_overlapping_views_are_blended_without_seams():
    # 1 until 4 and 3 from 6 on; in between the weights are 1.5 : 0.5 and 0.5 : 1.5, of 3 and 5
    found = to_image(
        [np.full((1, 1), 1.0), np.full((1, 1), 3.0)], (10, 1), [(0, 0, 6, 1), (4, 0, 10, 1)]
    )
    np.testing.assert_allclose(found[0], [1, 1, 1, 1, 1.5, 2.5, 3, 3, 3, 3], rtol=1e-6)


@pytest.mark.parametrize("geometry", ["crop", "whole", "letterbox"])
@pytest.mark.parametrize("region", [None, (0.25, 0.5, 1.0, 1.0)])
@pytest.mark.parametrize("size", [(400, 300), (90, 200)])
def test_a_spot_is_found_again_where_it_was(geometry, region, size):
    width, height = size
    at = (0.6 * width, 0.7 * height)
    y, x = np.mgrid[:height, :width] + 0.5
    spot = 255 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (0.1 * min(size)) ** 2)
    picture = Image.fromarray(np.repeat(spot.astype(np.uint8)[:, :, None], 3, axis=2))
    preprocessing = Preprocessing(64, geometry=geometry, region=region)
    grid = preprocessing(picture)[0, :, :, 0]
    found = to_image([grid], size, [preprocessing.seen(*size)])
    row, column = np.unravel_index(np.nanargmax(found), found.shape)
    assert abs(column + 0.5 - at[0]) < width / 64 + 1
    assert abs(row + 0.5 - at[1]) < height / 64 + 1
    assert np.isnan(found).any() == (region is not None or geometry == "crop")


def test_the_box_of_a_patch():
    assert patch_box((10, 0, 30, 60), (6, 4), 2, 1) == (15, 20, 20, 30)


def test_regions_by_hand():
    found = np.zeros((5, 6), np.float32)
    found[0, 0] = found[1, 1] = 2  # they touch at a corner
    found[3:5, 3:6] = 1
    found[4, 4] = 5
    found[2, 5] = np.nan
    assert regions(found, 0.5) == [
        Region(box=(3, 3, 6, 5), area=6, peak=5.0, place=(4, 4)),
        Region(box=(0, 0, 2, 2), area=2, peak=2.0, place=(0, 0)),
    ]
    assert regions(found, 5.0) == []
