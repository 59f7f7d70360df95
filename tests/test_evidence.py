"""Why images got their scores: shares that add up, ranks, budgets, text, JSON and picture."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nnad import BudgetError, CallableBackbone, Detector, Ensemble, InputError, load_backbone
from nnad.calibrate import Calibration
from nnad.evidence import Explanation, NearGood, explain, feature_labels
from nnad.evidence_sheet import axis_of, evidence_sheet, rank_of
from nnad.neighbors import Bank
from nnad.onnx_graph import stage_widths
from nnad.operators import make_operator
from nnad.operators.by_feature import whitened
from nnad.operators.global_ import Global
from nnad.operators.hull import Hull
from nnad.operators.kmeans import KMeans
from nnad.operators.knn import KNN
from nnad.operators.local import Local
from nnad.operators.spaces import directions
from nnad.report import GREEN, RED

NNAD = shutil.which("nnad", path=str(Path(sys.executable).parent))
SQUARE = np.array([[0, 0], [2, 0], [0, 2], [2, 2]], dtype=np.float32)
OPERATORS = [
    ("knn", {}),
    ("knn", {"metric": "cosine"}),
    ("knn", {"squared": False, "reduction": "sum", "k": 5}),
    ("global", {}),
    ("local", {}),
    ("local", {"n_local": 3, "ridge": 1e-2}),
    ("auto", {}),
    ("hull", {}),
    ("hull", {"ridge": 0, "m": 4, "reduction": "mean"}),
    ("kmeans", {"n_centers": 4}),
    ("tree", {"visit": 0.5, "leaf_size": 20, "branching": 2}),
    ("knnn", {}),
    ("knnn", {"set_size": 64}),
    ("knnn", {"storage": "eager", "precision": "float16", "reduction": "sum"}),
    ("knnn", {"n_vectors": 3}),
]
IDS = [f"{name}-{'-'.join(map(str, told.values()))}".rstrip("-") for name, told in OPERATORS]


def test_shares_by_hand():
    bank, query = Bank(SQUARE), np.array([0, 1])
    assert KNN(2).fit(bank).by_feature(query).tolist() == [0, 1]
    assert KNN(3, reduction="sum").fit(bank).by_feature(query).tolist() == [4, 3]
    plain = KNN(3, squared=False).fit(bank).by_feature(query)
    np.testing.assert_allclose(plain, [4 / 5**0.5 / 3, (2 + 1 / 5**0.5) / 3])
    cosine = KNN(1, metric="cosine").fit(Bank(SQUARE[1:2]))  # (0.6, 0.8) - (1, 0), halved squares
    np.testing.assert_allclose(cosine.by_feature(np.array([3, 4])), [0.08, 0.32], rtol=1e-6)
    assert KMeans(4).fit(bank).by_feature(query).tolist() == [0, 2]
    whitening = Global(1, ridge=1).fit(bank)  # covariance 4/3 in both directions, and as much ridge
    np.testing.assert_allclose(whitening.by_feature(np.array([1, 5])), [1 * 3 / 8, 9 * 3 / 8])
    line = Bank(np.array([[0, 0], [1, 0], [2, 0], [3, 0]]))  # variance 5/3 along x, vbar 5/6
    for_min = Local(2, n_local=4, ridge=1, reduction="min").fit(line)
    np.testing.assert_allclose(
        for_min.by_feature(np.array([5, 1])), [4 / (5 / 3 + 5 / 6), 1 / (5 / 6)]
    )
    assert for_min.score(np.array([[5, 1]])) == pytest.approx([1.6 + 1.2])
    np.testing.assert_allclose(
        Hull(1, m=3, ridge=0).fit(line).by_feature(np.array([5, 1])), [0, 1], atol=1e-12
    )
    same = KNN(2, squared=False).fit(Bank(np.ones((3, 2)))).by_feature(np.ones(2))
    assert same.tolist() == [0, 0]  # a length of 0 is not divided by


@pytest.mark.parametrize(("count", "dim"), [(9, 4), (5, 20)])
def test_the_root_is_the_symmetric_one(count, dim):
    rng = np.random.default_rng(0)
    points, differences = rng.normal(size=(count, dim)), rng.normal(size=(3, dim))
    values, vectors = np.linalg.eigh(np.cov(points, rowvar=False) + 0.2 * np.eye(dim))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    np.testing.assert_allclose(
        whitened(differences, *directions(points), 0.2), differences @ root, atol=1e-9
    )


@pytest.mark.parametrize(("name", "arguments"), OPERATORS, ids=IDS)
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(40, 7), (12, 60), (6, 5)]))
def test_shares_are_not_negative_and_add_up_to_the_score(name, arguments, seed, shape):
    rng = np.random.default_rng(seed)
    bank = np.maximum(rng.normal(0.3, 1, shape), 0).astype(np.float32)
    bank[:, 0] += 0.1  # no row is all zeros
    query = np.maximum(rng.normal(0.6, 1.5, shape[1]), 0).astype(np.float32)
    operator = make_operator(name, **arguments).fit(Bank(bank))
    shares = operator.by_feature(query)
    assert shares.shape == query.shape
    assert (shares >= 0).all()
    score = float(operator.score(query[None])[0])
    exactness = 1e-6 if name == "knnn" else 1e-9  # its sums are of float32 products
    scale = float(np.square(query - bank).sum(axis=1).max())  # beside which a score may be rounding
    assert shares.sum() == pytest.approx(score, rel=exactness, abs=1e-12 * scale)


@pytest.mark.parametrize("arguments", [{}, {"n_vectors": 2}, {"reduction": "sum"}])
def test_shares_of_k_nnn_are_those_of_its_sets(arguments):
    rng = np.random.default_rng(1)
    operator = make_operator("knnn", **arguments).fit(Bank(rng.normal(size=(30, 23))))
    query = rng.normal(size=23)
    told, shares = operator.explain(query), operator.by_feature(query)
    by_set = [shares[features].sum() for features in told.sets]
    np.testing.assert_allclose(by_set, told.by_set, rtol=1e-6)


def test_operators_that_are_no_sum_over_features_say_so():
    bank = Bank(np.random.default_rng(0).random((9, 6)))
    for name in ("knnn", "global", "local"):
        with pytest.raises(InputError, match="p=1"):
            make_operator(name, p=1).fit(bank).by_feature(np.ones(6))
    with pytest.raises(InputError, match="whole sets"):
        make_operator("knnn-author").fit(bank).by_feature(np.ones(6))


def colours(batch: np.ndarray) -> np.ndarray:
    """(B, 32, 32, 3) -> (B, 48): means of 4 x 4 fields."""
    return batch.reshape(-1, 4, 8, 4, 8, 3).mean(axis=(2, 4)).reshape(len(batch), -1)


def small_detector(good_folder, **arguments) -> Detector:
    backbone = CallableBackbone(colours, size=32, geometry="whole")
    return Detector(backbone, transform="raw", **arguments).fit(good_folder)


def test_explanation_against_brute_force(good_folder, new_folder):
    detector = small_detector(good_folder, operator="knn")
    explained = explain(detector, new_folder)
    results = detector.score(new_folder)
    assert [e.name for e in explained] == [r.name for r in results]
    good, own = detector.features, detector.calibration.good_scores
    apart = np.sqrt(np.square(good[:, None] - good[None]).sum(axis=2, dtype=np.float64))
    np.fill_diagonal(apart, np.inf)
    for e, r in zip(explained, results, strict=True):
        if r.error:
            assert e == Explanation(r.name, error=r.error)
            continue
        assert (e.score, e.p_value, e.is_anomaly) == (r.score, r.p_value, r.is_anomaly)
        assert [(n.name, n.distance) for n in e.nearest] == [
            (n.name, n.distance) for n in r.nearest
        ]
        assert (e.good_images, e.smallest_budget) == (12, 1 / 13)
        assert e.higher_than == sum(score < e.score for score in own)
        rows = sorted(range(12), key=lambda i: abs(own[i] - e.score))[:3]
        assert [(g.name, g.score) for g in e.closest] == [(detector.names[i], own[i]) for i in rows]
        for near in e.nearest:
            row = detector.names.index(near.name)
            assert near.usual == pytest.approx(apart[row].min(), rel=1e-6)
            assert near.score == own[row]
        for below, flips in ((0, True), (1e-6, False)):
            budget = e.p_value - below
            if 1 / 13 <= budget < 1:
                (again,) = detector.score(e.name, false_alarms=budget)
                assert again.is_anomaly is flips
                assert explain(detector, e.name, false_alarms=budget)[0].is_anomaly is flips
    assert explained[0].error  # broken.jpg is the first
    assert any(e.is_anomaly for e in explained)


def test_features_against_brute_force(good_folder, new_folder):
    detector = small_detector(good_folder, operator="knn")
    picture = new_folder / "odd_0.png"
    (e,) = explain(detector, [picture])
    query = detector.backbone.embed(Image.open(picture).convert("RGB"))
    shares = detector.operator.by_feature(query) / e.score
    assert [f.index for f in e.features] == np.argsort(-shares)[:10].tolist()
    for f in e.features:
        good = detector.features[:, f.index]
        assert (f.label, f.value) == (f"colours[{f.index}]", query[f.index])
        assert f.share == pytest.approx(shares[f.index])
        assert (f.low, f.high) == pytest.approx(tuple(np.percentile(good, [5, 95])))
        lower = np.mean([0 if g > f.value else 1 if g < f.value else 0.5 for g in good])
        assert f.percentile == pytest.approx(100 * lower)
        rows = np.argsort(np.abs(good - f.value), kind="stable")[:2]
        assert f.similar == tuple(detector.names[i] for i in rows)
    ordered = np.sort(shares)[::-1]
    half = e.features_for_half
    assert ordered[: half - 1].sum() < 0.5 <= ordered[:half].sum() + 1e-12
    assert e.sets == ()


def test_a_good_image_itself_and_a_score_of_zero(good_folder):
    detector = small_detector(good_folder, operator=KNN(1))
    (e,) = explain(detector, good_folder / "good_03.png")
    assert (e.score, e.nearest[0].distance, e.higher_than) == (0, 0, 0)
    assert e.nearest[0].score == detector.calibration.good_scores[3]
    assert (e.features, e.features_for_half) == ((), None)
    assert e.note == "a score of 0 has no parts"


@pytest.mark.parametrize(
    ("operator", "features", "sets", "note"),
    [
        ("knnn", 10, 10, None),
        ("knnn-author", 0, 10, "knnn-author: its terms"),
        (make_operator("knnn", p=1), 0, 10, "p=1"),
        (make_operator("local", p=1), 0, 0, "p=1"),
        ("kmeans", 10, 0, None),
    ],
    ids=["knnn", "author", "knnn-p1", "local-p1", "kmeans"],
)
def test_what_operators_can_tell(good_folder, new_folder, operator, features, sets, note):
    detector = small_detector(good_folder, operator=operator)
    (e,) = explain(detector, new_folder / "odd_0.png")
    assert (len(e.features), len(e.sets)) == (features, sets)
    assert e.note is None if note is None else e.note.startswith(note)
    assert all(0 <= s.share <= 1 for s in e.sets)
    if sets:
        assert len(e.sets[0].features) == 5
        assert [s.share for s in e.sets] == sorted((s.share for s in e.sets), reverse=True)
        assert len(set(sum((s.features for s in e.sets), ()))) >= 48 - 2  # every feature once


def test_refusals(good_folder, new_folder):
    detector = small_detector(good_folder)
    with pytest.raises(BudgetError, match="smallest possible budget"):
        explain(detector, new_folder, false_alarms=0.01)
    with pytest.raises(InputError, match="call fit first"):
        explain(Detector(detector.backbone), new_folder)
    gone = explain(detector, [new_folder / "gone.png", b""])
    assert [bool(e.error) for e in gone] == [True, True]


def test_labels_name_the_block():
    stages = load_backbone(stages=["s16b", "head"])
    labels = feature_labels(stages, stages.dim)
    assert len(labels) == stages.dim
    head = labels.index("head[0]")
    assert (labels[0], labels[head - 1], labels[-1]) == (
        "s16b[0]",
        f"s16b[{head - 1}]",
        f"head[{stages.dim - head - 1}]",
    )
    plain = CallableBackbone(colours, size=32)
    assert feature_labels(plain, 48)[7] == "colours[7]"
    together = Ensemble([plain, stages])
    labels = feature_labels(together, together.dim)
    assert (labels[47], labels[48]) == ("colours[47]", "efficientnet-lite0 s16b[0]")
    assert len(labels) == together.dim


def test_stage_widths_do_not_depend_on_the_order_in_the_file():
    """An int8 copy holds the constants in another order."""
    stages = load_backbone(stages=["s16b", "s32a", "head"])
    network = onnx.load_from_string(stages.onnx)
    network.graph.initializer.sort(key=lambda tensor: tensor.name, reverse=True)
    assert stage_widths(network.SerializeToString()) == stage_widths(stages.onnx)
    assert sum(stage_widths(stages.onnx)) == stages.dim


def explanation(name: str, score: float, *, is_anomaly: bool) -> Explanation:
    near = tuple(NearGood(f"gone-{'very-' * 20}{i}.png", 1.0, 0.5, 2.0) for i in range(3))
    return Explanation(
        *(name, score, 0.2, is_anomaly, 0.1, 0.1, 4.0),
        higher_than=3,
        good_images=4,
        nearest=near,
    )


def test_the_picture_marks_score_and_threshold(tmp_path):
    Image.new("RGB", (90, 90), "blue").save(tmp_path / "blue.png")
    good_scores = np.array([1.0, 2.0, 3.0, 4.0])
    inside = explanation(str(tmp_path / "blue.png"), 2.5, is_anomaly=False)
    beyond = explanation("image[0]", 1e6, is_anomaly=True)
    unread = Explanation("broken.png", error="broken.png: damaged")
    assert axis_of(good_scores, [inside]) == (1, 4)
    assert axis_of(good_scores, [inside, beyond]) == (1, 7)  # as much again as 1 to 4
    assert axis_of(np.zeros(3), [explanation("a", 9, is_anomaly=True)]) == (0, 8)
    evidence_sheet([inside, unread, beyond], Calibration(good_scores), str(tmp_path / "sheet.png"))
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size[0] == 840
        sheet = np.asarray(picture)
    row = (len(sheet) - 52) // 2
    strips = [sheet[52 + i * row + 248 + 18 : 52 + i * row + 248 + 62] for i in range(2)]
    scale = lambda score: 16 + (score - 1) / 6 * (840 - 32)  # noqa: E731
    # row 1: the anomaly's arrow ends at the right edge
    red = np.argwhere((strips[0] == RED).all(axis=2))
    assert red[:, 1].max() == scale(7)
    # row 2: the good image's line is at its score, the red dashes at the threshold
    green = np.argwhere((strips[1] == GREEN).all(axis=2))
    assert abs(np.median(green[:, 1]) - scale(2.5)) <= 1
    red = np.argwhere((strips[1] == RED).all(axis=2))
    assert set(red[:, 1]) == {round(scale(4))}
    grey = np.argwhere((strips[1] == 150).all(axis=2))
    for score in good_scores:
        assert np.abs(grey[:, 1] - scale(score)).min() < 12
    assert not (np.abs(grey[:, 1] - scale(5.5)) < 12).any()
    blue = np.argwhere((sheet == (0, 0, 255)).all(axis=2))
    assert len(blue) == 8100
    assert blue[:, 0].min() > row  # higher scores come first


def test_the_picture_shows_the_scores_of_the_product(tmp_path):
    calibration = Calibration(
        np.array([1.0, 2.0, 6.0, 7.0]), None, np.array([0, 0, 1, 1]), ("a", "b")
    )
    ours = replace(explanation("image[0]", 1.5, is_anomaly=False), product="a")
    evidence_sheet([ours], calibration, str(tmp_path / "sheet.png"))
    with Image.open(tmp_path / "sheet.png") as picture:
        sheet = np.asarray(picture)
    grey = np.argwhere((sheet[52 + 248 + 18 : 52 + 248 + 62] == 150).all(axis=2))[:, 1]
    assert len(grey) > 0
    assert grey.max() < 840 / 2  # the axis goes from 1 to 7, the bars of a to 2
    assert rank_of(ours) == "higher than 3 of 4 good images of a"
    assert rank_of(replace(ours, threshold=None)).startswith("by the models of the folds higher")


def test_the_picture_is_bounded_and_refuses(tmp_path):
    good_scores = np.array([1.0, 2.0, 3.0, 4.0])
    calibration = Calibration(good_scores)
    many = [explanation(f"image[{i}]", 5 + i, is_anomaly=True) for i in range(9)]
    evidence_sheet(many, calibration, str(tmp_path / "a.jpg"), most=2)
    evidence_sheet(many[:2], calibration, str(tmp_path / "b.jpg"))
    with Image.open(tmp_path / "a.jpg") as a, Image.open(tmp_path / "b.jpg") as b:
        assert a.size == b.size
        assert a.format == "JPEG"
    with pytest.raises(InputError, match="no scored image"):
        evidence_sheet([Explanation("a", error="a: gone")], calibration, str(tmp_path / "c.png"))
    mine = explanation(str(tmp_path / "a.jpg"), 5, is_anomaly=True)
    with pytest.raises(InputError, match="one of the scored pictures"):
        evidence_sheet([mine], calibration, mine.name)


def nnad(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([NNAD, *map(str, arguments)], capture_output=True, text=True)


def test_command(model, good_folder, new_folder, tmp_path):
    out, drawn = tmp_path / "e.json", tmp_path / "e.png"
    done = nnad("explain", model, new_folder, "--json", out, "--picture", drawn)
    assert done.returncode == 0
    assert done.stderr.startswith(f"nnad: {new_folder / 'broken.jpg'}: not an image")
    records = json.loads(out.read_text())
    expected = explain(Detector.load(model), new_folder)
    assert [r["name"] for r in records] == [e.name for e in expected]
    for record, e in zip(records, expected, strict=True):
        assert (record["score"], record["error"]) == (e.score, e.error)
        assert len(record["features"]) == (0 if e.error else 10)
    lines = done.stdout.splitlines()
    odd = next(e for e in expected if e.name.endswith("odd_0.png"))
    at = lines.index(f"ANOMALY, p = {odd.p_value:.4f}: {odd.name}")
    assert lines[at + 1] == (
        "   an anomaly at budgets of 0.077 and more; here 0.077, "
        "the smallest for 12 good images is 0.077"
    )
    assert lines[at + 2].endswith(": higher than 12 of 12 good images")
    assert lines[at + 3].startswith(f"   closest scores: {Path(odd.closest[0].name).name} ")
    assert odd.nearest[0].name in lines[at + 5]
    assert "of 1280 features" in lines[at + 8]
    assert odd.features[0].label in lines[at + 10]
    assert lines[-1] == f"{drawn}: written"
    with Image.open(drawn) as picture:
        assert picture.size[0] == 840

    done = nnad("explain", model, good_folder / "good_03.png", "--json", "-")
    assert done.returncode == 0
    assert json.loads(done.stdout)[0]["nearest"][0]["distance"] == 0
    assert "the same picture: left out, its score is" in done.stderr


def test_command_with_wrong_input(model, new_folder, tmp_path):
    done = nnad("explain", model, new_folder / "broken.jpg")
    assert (done.returncode, done.stdout) == (2, "")
    assert "not an image" in done.stderr
    picture = new_folder / "odd_0.png"
    done = nnad("explain", model, picture, "--picture", picture)
    assert done.returncode == 2
    assert "is an input; choose another name" in done.stderr
    done = nnad("explain", model, picture, "--false-alarms", "0.001")
    assert done.returncode == 2
    assert "smallest possible budget" in done.stderr
    assert nnad("explain", model, picture, "--picture", tmp_path / "a.txt").returncode == 2
