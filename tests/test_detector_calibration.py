"""Calibration methods, products and batch and stream budgets through Detector and the command."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from nnad import BudgetError, CallableBackbone, Detector, InputError
from nnad.budgets import Stream, within_fdr
from nnad.cli.score import _streamed as streamed
from nnad.cli.telling import grounds, promise
from nnad.conformal import Method
from nnad.evidence import explain
from nnad.evidence_sheet import evidence_sheet

NNAD = shutil.which("nnad", path=str(Path(sys.executable).parent))
METHODS = ["leave-one-out", "split", "split:0.25", "cross", "jackknife+"]


def nnad(*arguments):
    command = [NNAD, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def patches(images):
    """(B, 32, 32, 3) -> (B, 48): mean colours of 16 squares."""
    return images.reshape(-1, 4, 8, 4, 8, 3).mean(axis=(2, 4)).reshape(len(images), -1) / 255


BACKBONE = CallableBackbone(patches, size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two products, discs and their negatives: of each 14 good pictures, 4 new ones, 2 odd ones."""
    folder = tmp_path_factory.mktemp("products")
    for product in ("disc", "ring"):
        for part, seeds in (("good", range(14)), ("new", range(50, 54)), ("odd", range(90, 92))):
            (folder / part / product).mkdir(parents=True)
            for seed in seeds:
                picture = draw(seed, odd=part == "odd")
                picture = picture if product == "disc" else 255 - picture
                Image.fromarray(picture).save(folder / part / product / f"{seed}.png")
    return folder


def told(detector, folder, **options):
    return detector.score([folder / "new", folder / "odd"], **options)


@pytest.mark.parametrize("products", [None, "folders", 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_model_and_one_that_was_changed_say_the_same(method, products, folder, tmp_path):
    def new():
        return Detector(BACKBONE, calibration=method, products=products)

    detector = new().fit(folder / "good")
    expected = told(detector, folder)
    assert len({r.p_value for r in expected}) > 2
    detector.save(tmp_path / "m")
    loaded = Detector.load(tmp_path / "m", backbone=BACKBONE)
    assert told(loaded, folder) == expected
    assert str(loaded.method) == method

    files = sorted((folder / "good").glob("*/*"))
    changed = new().fit(files[2:])
    changed.add(files[:2])
    changed.remove([str(f) for f in files[5:7]])
    scratch = new().fit([*files[7:], *files[2:5], *files[:2]])  # in another order
    assert [(r.p_value, r.product) for r in told(changed, folder)] == [
        (r.p_value, r.product) for r in told(scratch, folder)
    ]
    changed.save(tmp_path / "changed")
    assert told(Detector.load(tmp_path / "changed", backbone=BACKBONE), folder) == told(
        changed, folder
    )


def test_images_that_calibrate_are_not_in_the_bank(folder):
    detector = Detector(BACKBONE, operator="knn", calibration="split").fit(folder / "good")
    bank = Method("split").bank_rows(detector.features)
    assert len(bank) == len(detector.calibration.good_scores) == 14
    in_bank = {detector.names[row] for row in bank}
    for result in detector.score(folder / "good"):
        assert {n.name for n in result.nearest} <= in_bank
        assert (result.nearest[0].distance == 0) == (result.name in in_bank)
        if result.name in in_bank:
            assert result.nearest[0].name == result.name
    assert detector.false_alarms == pytest.approx(1 / 15)
    with pytest.raises(BudgetError, match=r"14 good images to calibrate with .* at least 19"):
        detector.score(folder / "new", false_alarms=0.05)


def test_what_does_not_fit_is_refused_before_any_work(folder, monkeypatch):
    with pytest.raises(InputError, match="calibration='loo'; choose one of leave-one-out"):
        Detector(BACKBONE, calibration="loo")
    with pytest.raises(InputError, match="products='many'; folders, or a number"):
        Detector(BACKBONE, products="many")
    monkeypatch.setattr(CallableBackbone, "embed", lambda *_: 1 / 0)
    files = sorted((folder / "good").glob("*/*"))
    with pytest.raises(BudgetError, match="14 good images to calibrate with"):
        Detector(BACKBONE, calibration="split", false_alarms=0.05).fit(files)
    with pytest.raises(InputError, match="choose cross"):
        Detector(BACKBONE, calibration="jackknife+").fit([draw(0)] * 201)


def test_each_product_has_its_budget(folder):
    detector = Detector(BACKBONE, products="folders").fit(folder / "good")
    assert detector.calibration.product_names == ("disc", "ring")
    assert detector.calibration.sizes == (14, 14)
    assert detector.false_alarms == pytest.approx(1 / 15)
    for result in told(detector, folder):
        assert result.product == Path(result.name).parent.name
        assert result.is_anomaly == (result.p_value <= 1 / 15 + 1e-9)
    detector.remove([str(folder / f"good/ring/{i}.png") for i in range(6)])
    assert detector.calibration.sizes == (14, 8)
    assert detector.false_alarms == pytest.approx(1 / 9)
    told(detector, folder, fdr=0.1)  # the p-values of the other product go down to 1 / 15
    with pytest.raises(BudgetError, match=r"no p-value is below 0\.0667"):
        told(detector, folder, fdr=0.06)
    with pytest.raises(BudgetError, match="8 good images of product 'ring' to calibrate with"):
        detector.set_budget(1 / 15)
    with pytest.raises(BudgetError, match="of product 'ring'"):
        Detector(BACKBONE, products="folders", false_alarms=1 / 15).fit(
            [folder / "good" / "disc", *sorted((folder / "good" / "ring").glob("*"))[:8]]
        )
    with pytest.raises(InputError, match="all good images are in a folder 'disc'"):
        Detector(BACKBONE, products="folders").fit(folder / "good" / "disc")
    one = Detector(BACKBONE).fit(folder / "good")
    assert {r.product for r in told(one, folder)} == {None}


def test_a_batch_decided_by_its_false_discovery_rate(folder):
    detector = Detector(BACKBONE).fit(folder / "good")
    images = [folder / "odd", b"no picture", folder / "new"]
    plain, batch = detector.score(images), detector.score(images, fdr=0.3)
    p_values = np.array([r.p_value for r in plain if r.error is None])
    assert [r.is_anomaly for r in batch if r.error is None] == within_fdr(p_values, 0.3).tolist()
    assert 0 < sum(bool(r.is_anomaly) for r in batch) < len(p_values)
    assert [replace(r, is_anomaly=None) for r in batch] == [
        replace(r, is_anomaly=None) for r in plain
    ]
    with pytest.raises(InputError, match="not both"):
        detector.score(images, fdr=0.3, false_alarms=0.3)
    with pytest.raises(BudgetError, match=r"below 0\.0345, .* at least 49 good images"):
        detector.score(images, fdr=0.02)


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    model = tmp_path_factory.mktemp("model") / "m.nnad"
    options = ["--calibration", "split:0.8", "--products", "folders", "--false-alarms", "1/11"]
    done = nnad("fit", folder / "good", "--model", model, *options)
    assert done.returncode == 0, done.stderr
    return model


def test_info_tells_the_promise(model):
    done = nnad("info", model)
    assert done.returncode == 0, done.stderr
    sizes = Detector.load(model).calibration.sizes
    for text in (
        "false alarms     false-alarm budget 0.091 of good images, proven for the images assigned",
        "calibration      split:0.8, 23 images",
        "guarantee        proven for the images assigned to each product\n",
        f"product          disc, {sizes[0]} images, threshold ",
        f"product          ring, {sizes[1]} images, threshold ",
    ):
        assert text in done.stdout
    assert sum(sizes) == 23


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        ({"operator": "knn"}, "proven for k-NN distances"),
        ({"operator": "knn", "k": 3, "transform": "l2"}, "proven for k-NN distances"),
        ({"operator": "knn", "transform": "white"}, "neither proven nor measured"),
        ({"transform": "root"}, "measured, not proven"),
        ({"transform": "l2"}, "neither proven nor measured"),
        ({"transform": "root", "k": 4}, "neither proven nor measured"),
        ({"operator": "kmeans", "transform": "root"}, "neither proven nor measured"),
        ({"operator": "kmeans", "calibration": "split"}, "proven"),
        ({"operator": "knn", "products": "folders"}, "neither proven nor measured"),
        ({"transform": "root", "calibration": "cross"}, "proven is at most 0.303"),
        ({"operator": "knn", "calibration": "jackknife+"}, "proven is at most 0.069"),
    ],
)
def test_what_is_known_of_the_budget(arguments, known, folder):
    detector = Detector(BACKBONE, **arguments).fit(folder / "good")
    assert grounds(detector)[0] == known
    assert f"of good images, {known} (the smallest for " in promise(detector)


def test_nothing_is_known_of_an_int8_network(folder):
    backbone = CallableBackbone(patches, size=32)
    detector = Detector(backbone, operator="knn", calibration="split").fit(folder / "good")
    assert grounds(detector) == ("proven", "")
    backbone.details["precision"] = "int8"  # as of its copies
    assert grounds(detector)[0] == "neither proven nor measured"


def test_score_by_fdr(model, folder, tmp_path):
    done = nnad("score", model, folder / "odd", "--fdr", "1/5", "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "r.json").read_text())
    expected = Detector.load(model).score(folder / "odd", fdr=0.2)
    assert [r["is_anomaly"] for r in records] == [r.is_anomaly for r in expected]
    assert [r["product"] for r in records] == [r.product for r in expected]
    assert "at a false discovery rate of 0.2" in done.stdout.splitlines()[-1]
    assert "a batch of 4 images has 2 anomalies or more, or none" in done.stderr
    assert nnad("score", model, folder / "odd", "--fdr", 0.2, "--false-alarms", 0.1).returncode == 2
    done = nnad("score", model, folder / "odd", "--fdr", 0.01)
    assert (done.returncode, done.stderr.startswith("nnad: fdr=0.01: no p-value is below")) == (
        2,
        True,
    )


def test_score_a_stream(folder, tmp_path):
    model, state = tmp_path / "m.nnad", tmp_path / "line-3.json"
    Detector(false_alarms=0.1).fit(folder / "good").save(model)
    images = sorted((folder / "odd").glob("*/*")) + sorted((folder / "new").glob("*/*"))
    whole = Stream(0.5)
    expected = [whole.decide(r.p_value) for r in Detector.load(model).score(images)]
    decided = []
    for part in (images[:3], images[3:]):
        done = nnad("score", model, *part, "--stream", state, "--fdr", 0.5, "--csv", "-")
        assert done.returncode == 0, done.stderr
        decided += [line.split(",")[3] == "1" for line in done.stdout.splitlines()[1:]]
        assert "in a stream" in done.stderr
    assert decided == expected
    assert any(expected)
    assert Stream.load(state) == whole

    done = nnad("score", model, images[0], "--stream", state, "--fdr", 0.4)
    assert (done.returncode, "the stream in" in done.stderr) == (2, True)
    done = nnad("score", model, images[0], "--stream", tmp_path / "new.json", "--fdr", 0.01)
    assert (done.returncode, "a stream needs at least 457 good images" in done.stderr) == (2, True)
    done = nnad(
        "score", model, images[-1], images[-2], "--stream", tmp_path / "quiet.json", "--fdr", 0.17
    )
    assert "no further image can be an anomaly" in done.stderr
    gate = "--stream", tmp_path / "quiet.json", "--fail-on-anomaly"
    assert nnad("score", model, images[0], *gate).returncode == 2  # nothing was watched
    done = nnad("score", model, images[0], "--stream", images[0])
    assert (done.returncode, "is an input" in done.stderr) == (2, True)


def test_an_interrupted_stream_goes_on_and_has_one_writer(folder, tmp_path):
    disc, ring = sorted((folder / "good/disc").glob("*")), sorted((folder / "good/ring").glob("*"))
    detector = Detector(BACKBONE, products="folders").fit([*disc, *ring[:8]])
    assert detector.calibration.sizes == (14, 8)
    images = [folder / "odd", folder / "new"]
    whole = Stream(0.35)  # its first level, 0.077, is above 1 / 15 and below 1 / 9
    expected = [whole.decide(r.p_value) for r in detector.score(images)]
    assert any(expected)
    state = tmp_path / "line.json"
    interrupted = streamed(detector, images, state, 0.35)
    decided = [next(interrupted).is_anomaly for _ in range(3)]
    assert Stream.load(state).seen == 3  # told by now, so a kill changes nothing
    with pytest.raises(InputError, match=r"line\.json: another process is deciding"):
        next(streamed(detector, images, state, None))
    with pytest.raises(KeyboardInterrupt):
        interrupted.throw(KeyboardInterrupt)
    rest = [r.name for r in detector.score(images)][3:]
    decided += [r.is_anomaly for r in streamed(detector, rest, state, None)]
    assert decided == expected
    assert Stream.load(state) == whole


@pytest.mark.parametrize("products", [None, "folders"])
@pytest.mark.parametrize("method", METHODS)
def test_explanations_agree_with_results(method, products, folder, tmp_path):
    detector = Detector(BACKBONE, calibration=method, products=products).fit(folder / "good")
    images = [folder / "new", folder / "odd", folder / "good" / "disc"]
    explained = explain(detector, images, false_alarms=0.3)
    scores = dict(
        zip(detector.scorer.calibrating.tolist(), detector.calibration.good_scores, strict=True)
    )
    for e, r in zip(explained, detector.score(images, false_alarms=0.3), strict=True):
        assert (e.score, e.p_value, e.is_anomaly) == (r.score, r.p_value, r.is_anomaly)
        assert [(n.name, n.distance) for n in e.nearest] == [
            (n.name, n.distance) for n in r.nearest
        ]
        for near in e.nearest:
            assert near.score == scores.get(detector.names.index(near.name))
        for good in e.closest:
            assert good.score == scores[detector.names.index(good.name)]
        if method in ("cross", "jackknife+"):
            assert e.threshold is None
        else:
            assert (e.score > e.threshold) == e.is_anomaly
        assert e.p_value == (1 + e.good_images - e.higher_than) / (e.good_images + 1)
        assert e.product == r.product
    evidence_sheet(explained, detector.calibration, str(tmp_path / "s.png"))
