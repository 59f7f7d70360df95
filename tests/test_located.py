"""Detectors of patches, from pictures to regions, files and reasons."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from nnad import Detector, ImageError, InputError, evidence
from nnad.evidence_sheet import evidence_sheet
from nnad.located import Patches, patch_backbone
from nnad.map_files import MapFolder
from nnad.patch_model import PatchModel
from nnad.results import Result
from nnad.tiles import Tiles

NNAD = shutil.which("nnad", path=str(Path(sys.executable).parent))


def spotted(seed: int, at: tuple[int, int] = (52, 12)) -> np.ndarray:
    """A good picture with a small dark square; `at` is its left upper corner, x and y."""
    picture = draw(seed)
    x, y = at
    picture[y : y + 9, x : x + 9] = (5, 5, 40)
    return picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two good pictures, one with a spot, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("spots")
    for i in range(2):
        Image.fromarray(draw(100 + i)).save(folder / f"good_{i}.png")
    Image.fromarray(spotted(200)).save(folder / "spot.png")
    (folder / "broken.jpg").write_bytes(b"this is not a picture")
    return folder


@pytest.fixture(scope="module")
def both(good_folder):
    return Detector(mode="both").fit(good_folder)


def by_name(results):
    return {Path(r.name).stem: r for r in results}


@pytest.mark.parametrize("mode", ["patch", "both"])
def test_a_spot_is_found_where_it_is(good_folder, folder, mode):
    detector = Detector(mode=mode).fit(good_folder)
    found = by_name(detector.score(folder))
    assert found["spot"].is_anomaly
    assert found["spot"].score > max(found["good_0"].score, found["good_1"].score)
    left, top, right, bottom = found["spot"].regions[0].box
    x, y = found["spot"].regions[0].place
    assert left < 61  # it touches the spot
    assert right > 52
    assert top < 21
    assert bottom > 12
    assert abs(x - 56) < 8
    assert abs(y - 16) < 8
    assert found["spot"].regions[0].peak > 1
    assert found["broken"].error.startswith(found["broken"].name)
    assert found["broken"].regions == ()


def test_the_score_is_the_mean_of_both_standardised_parts(both, folder, good_folder):
    image = Detector().fit(good_folder)
    patch = Detector(mode="patch").fit(good_folder)
    names = ["good_0", "good_1", "spot"]
    parts = []
    for one in (image, patch):
        good = one.calibration.good_scores
        scores = np.array([by_name(one.score(folder))[name].score for name in names])
        parts.append((scores - good.mean()) / good.std())
    found = by_name(both.score(folder))
    scores = np.array([found[name].score for name in names])
    np.testing.assert_allclose(scores, (parts[0] + parts[1]) / 2, rtol=1e-9)
    good = [
        (one.calibration.good_scores - one.calibration.good_scores.mean())
        / one.calibration.good_scores.std()
        for one in (image, patch)
    ]
    np.testing.assert_allclose(both.calibration.good_scores, (good[0] + good[1]) / 2, rtol=1e-9)
    higher = (both.calibration.good_scores >= scores[2]).sum()
    assert found["spot"].p_value == (1 + higher) / 13


def test_maps_are_on_one_scale(both, folder, good_folder):
    maps = {Path(r.name).stem: (r, found) for r, found in both.iter_maps(folder)}
    assert maps["broken"][1] is None
    result, spot = maps["spot"]
    assert spot.shape == (60, 80)
    assert np.isfinite(spot).all()
    assert spot[12:21, 52:61].max() == pytest.approx(result.regions[0].peak, rel=0.2)
    assert (spot > 1).sum() == sum(region.area for region in result.regions)
    assert np.median(maps["good_0"][1]) == pytest.approx(0, abs=0.5)


def test_saved_equals_loaded(both, folder, tmp_path):
    both.save(tmp_path / "m")
    loaded = Detector.load(tmp_path / "m")
    assert loaded.score(folder) == both.score(folder)
    for (_, one), (_, other) in zip(loaded.iter_maps(folder), both.iter_maps(folder), strict=True):
        np.testing.assert_array_equal(one, other)
    loaded.set_budget(0.2)
    loaded.undo()
    loaded.save(tmp_path / "m", overwrite=True)
    assert Detector.load(tmp_path / "m").score(folder) == both.score(folder)
    next((tmp_path / "m").glob("patches-*")).unlink()
    with pytest.raises(Exception, match="missing or unreadable"):
        Detector.load(tmp_path / "m")


def test_split_calibrates_with_images_that_no_part_has_seen(good_folder, folder):
    detector = Detector(mode="both", calibration="split").fit(good_folder)
    assert len(detector.calibration.good_scores) == 6
    rows = detector.scorer.calibrating
    again = detector.score([detector.names[row] for row in rows])
    np.testing.assert_allclose(
        detector.calibration.good_scores, [r.score for r in again], rtol=1e-12
    )
    bank = {detector.names[row] for row in detector.scorer.rows}
    told = evidence.explain(detector, folder / "spot.png")[0]
    assert told.patch.good_name in bank


def test_tiles_see_a_large_image_at_its_own_size(good_folder, tmp_path):
    for i in range(8):
        wide = np.concatenate([draw(10 * i + j) for j in range(4)], axis=1)
        Image.fromarray(wide).save(tmp_path / f"{i}.png")  # 320 x 60
    new = np.concatenate([draw(90), draw(91), spotted(92, (30, 40)), draw(93)], axis=1)
    backbone = patch_backbone("efficientnet-lite0", size=96)
    patches = Patches(backbone, tiles=Tiles(64), model=PatchModel(rows=500))
    detector = Detector(mode="both", patches=patches).fit(tmp_path)
    assert len(patches.tiles.boxes(320, 60, 96)) > 4
    result, found = next(detector.iter_maps([new]))
    assert found.shape == (60, 320)
    y, x = np.unravel_index(found.argmax(), found.shape)
    assert abs(x - (160 + 34)) < 16
    assert abs(y - 44) < 20
    assert result.regions[0].peak > 1
    detector.save(tmp_path / "model")
    assert Detector.load(tmp_path / "model").score([new]) == [result]


def test_reasons(both, folder, tmp_path):
    told = {Path(e.name).stem: e for e in evidence.explain(both, folder)}
    spot = told["spot"]
    left, top, right, bottom = spot.patch.box
    assert left < 61
    assert right > 52
    assert top < 21
    assert bottom > 12
    assert spot.patch.score > 1
    assert spot.patch.good_name in both.names
    assert spot.patch.distance > spot.patch.usual
    assert spot.score == pytest.approx((spot.patch.image_score + spot.patch.patch_score) / 2)
    assert sum(f.share for f in spot.features) <= 1
    assert spot.regions == by_name(both.score(folder))["spot"].regions
    evidence_sheet(list(told.values()), both.calibration, str(tmp_path / "sheet.png"))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[1] > 3 * 200


def test_what_needs_all_images_again_says_so(both, folder):
    with pytest.raises(InputError, match="fit again"):
        both.add(folder / "good_0.png")
    with pytest.raises(InputError, match="fit again"):
        both.remove(both.names[0])
    with pytest.raises(InputError, match="leave-one-out or split"):
        Detector(mode="both", calibration="cross")
    with pytest.raises(InputError, match="a model for each product"):
        Detector(mode="both", products="folders")
    with pytest.raises(InputError, match="mode"):
        Detector(mode="all")
    with pytest.raises(InputError, match="no maps"):
        Detector().iter_maps(folder)


def test_pictures_in_memory_and_a_broken_one(folder):
    buffer = np.empty_like(draw(0))

    def camera():
        for i in range(8):
            buffer[:] = draw(i)
            yield buffer

    detector = Detector(mode="patch").fit(camera())
    listed = Detector(mode="patch").fit([draw(i) for i in range(8)])
    assert len(detector.names) == 8
    np.testing.assert_array_equal(
        detector.patches.model.good_scores, listed.patches.model.good_scores
    )
    with pytest.raises(ImageError):
        detector.patches.fit([("broken", folder / "broken.jpg")])


def run(*arguments, status=0):
    done = subprocess.run([NNAD, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done


def test_the_command(good_folder, folder, tmp_path):
    model = tmp_path / "m"
    run("fit", good_folder, "--model", model, "--mode", "both", "--bank", "600")
    assert "600 patches" in run("info", model).stdout
    out = tmp_path / "maps"
    run(*("score", model, folder, "--csv", tmp_path / "s.csv", "--json", tmp_path / "s.json"),
        *("--maps", out))  # fmt: skip
    lines = (tmp_path / "s.csv").read_text().splitlines()
    rows = {Path(row["path"]).stem: row for row in csv.DictReader(lines)}
    told = {Path(r["name"]).stem: r for r in json.loads((tmp_path / "s.json").read_text())}
    assert told["spot"]["regions"]
    for name, row in rows.items():
        boxes = [" ".join(map(str, region["box"])) for region in told[name]["regions"]]
        assert row["regions"] == "; ".join(boxes)
    assert {p.name for p in out.iterdir()} == {
        f"{name}_{kind}"
        for name in ("good_0", "good_1", "spot")
        for kind in ("overlay.png", "mask.png", "map.tiff")
    }
    with Image.open(out / "spot_mask.png") as mask:
        pixels = np.asarray(mask)
    assert pixels.shape == (60, 80)
    assert set(np.unique(pixels)) == {0, 255}
    assert (pixels > 0).sum() == sum(r["area"] for r in told["spot"]["regions"])
    explained = run("explain", model, folder / "spot.png", "--picture", tmp_path / "e.png")
    assert "oddest place: x " in explained.stdout
    refused = run("score", model, folder, "--maps", folder / "maps", status=2)
    assert "is below the images" in refused.stderr
    assert "fit again" in run("add", model, folder / "good_0.png", status=2).stderr
    patchcore = ("--mode", "patch", "--patch-operator", "patchcore", "--bank", "5%")
    run("fit", good_folder, "--model", tmp_path / "p", *patchcore, "--patch-size", "128")
    run("score", tmp_path / "p", folder)
    run("fit", good_folder, "--model", tmp_path / "n", "--bank", "600", status=2)
    run(*("fit", good_folder, "--model", tmp_path / "n", "--mode", "both", "--bank", "x"), status=2)


def test_maps_of_images_with_like_names(tmp_path):
    pictures = [tmp_path / "in" / name for name in ("a/x.png", "b/x.png", "b/x.bmp")]
    for path in pictures:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(0)).save(path)
    files = MapFolder(tmp_path / "out", map(str, pictures))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.png").touch()
    with pytest.raises(InputError, match="holds files already"):
        MapFolder(tmp_path / "full", ["x.png"])
    for path in pictures:
        files.add(Result(str(path)), np.zeros((60, 80), np.float32))
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*_mask.png")}
    assert found == {"a/x_mask.png", "b/x.png_mask.png", "b/x.bmp_mask.png"}
    with pytest.raises(InputError, match="does not exist"):
        MapFolder(tmp_path / "no" / "out", ["x.png"])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        MapFolder(tmp_path / "file", ["x.png"])
