"""Comparisons on labelled images."""

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
from sklearn.metrics import roc_auc_score

from nnad import BackboneError, CallableBackbone, InputError, load_backbone
from nnad.bench import _patches_of, bench
from nnad.choice import chosen_gain
from nnad.datasets import load_dataset
from nnad.evaluate import Estimate
from nnad.labelled import check_masks, held_out, read_defect
from nnad.tiles import Tiles

NNAD = shutil.which("nnad", path=str(Path(sys.executable).parent))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """14 good training images, 2 good test images, 10 anomalies with masks, a broken file."""
    root = tmp_path_factory.mktemp("discs")
    for i in range(56):
        kind = "train/good" if i < 44 else "test/good" if i < 46 else "test/bar"
        path = root / kind / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(i, odd="bar" in kind)).save(path)
        if "bar" in kind:
            mask = root / "ground_truth/bar" / f"{i:02}_mask.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            y, x = np.mgrid[:60, :80]
            Image.fromarray(((np.abs(x - y * 1.3) < 9) * 255).astype(np.uint8)).save(mask)
    (root / "test/good/broken.png").write_bytes(b"no picture")
    return root


def blind(pixels):
    """A network that sees the colour of one corner."""
    return pixels[:, -4:, :4].reshape(len(pixels), -1).astype(np.float32)


def test_the_default_stays_unless_another_gains(tree):
    backbones = [load_backbone(size=64), CallableBackbone(blind, size=64)]
    seeing_first = bench(load_dataset(tree), backbones, modes=["image"], operators=["knn"])
    seeing, other = seeing_first.rows
    assert seeing.auroc.value > 0.95 > other.auroc.value
    assert seeing_first.recommended == seeing_first.best == seeing.candidate
    assert seeing_first.known == 0
    blind_first = bench(load_dataset(tree), backbones[::-1], modes=["image"], operators=["knn"])
    assert blind_first.recommended == seeing.candidate
    assert blind_first.gain.low > 0
    assert "chosen by your labels" in blind_first.reason

    def by_grey(value, low):
        return replace(seeing_first, grey=Estimate(value, low, 1.0)).may_be_light

    best = max(row.auroc.value for row in seeing_first.rows)
    assert by_grey(best - 0.04, 0.8)
    assert not by_grey(best - 0.06, 0.8)
    assert not by_grey(best, 0.49)  # may be chance
    assert (blind_first.good, blind_first.good_tested, blind_first.anomalies) == (33, 13, 10)
    assert blind_first.masked == 10
    assert [r.name.rpartition("/")[2] for r in blind_first.skipped] == ["broken.png"]


def test_good_test_images_that_were_fitted_are_told(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "discs")
    for i in (44, 45):  # two copies, one of an image that becomes a test image itself
        other = f"{i - 44 + 2:02}.png"
        shutil.copy(tmp_path / "discs/train/good" / other, tmp_path / f"discs/test/good/{i}.png")
    dataset = load_dataset(tmp_path / "discs")
    networks = [CallableBackbone(blind, size=64), load_backbone(size=64)]
    report = bench(dataset, networks, modes=["image"], operators=["knn"])
    assert (report.known, report.good_tested) == (1, 13)
    command = [NNAD, "bench", tmp_path / "discs", "--operators", "knn", "--modes", "image"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "nnad: 1 of 13 good test images also among the fitted ones, bit for bit" in done.stderr


def test_too_few_labels_choose_nothing(tree):
    dataset = load_dataset(tree)
    few = held_out(dataset)
    kept = np.flatnonzero(few.is_anomaly(few.test))[:4]
    rows = np.append(kept, np.flatnonzero(~few.is_anomaly(few.test)))
    few = type(few)(few.name, few.layout, few.classes, few.train, few.test.take(rows), few.good)
    backbones = [CallableBackbone(blind, size=64), load_backbone(size=64)]
    report = bench(few, backbones, modes=["image"], operators=["knn"])
    assert report.gain is None
    assert report.recommended == report.rows[0].candidate != report.best
    with pytest.raises(InputError, match="anomalies"):
        bench(
            type(few)(few.name, few.layout, few.classes, few.train, few.test.take([]), few.good),
            backbones,
            modes=["image"],
        )


def test_a_choice_among_equals_gains_nothing():
    rng = np.random.default_rng(0)
    odd = np.arange(120) >= 60
    noise = rng.normal(size=(20, 120))
    noise[0] = np.tile(np.arange(60), 2)  # AUROC 0.5
    best = max(roc_auc_score(odd, each) for each in noise) - roc_auc_score(odd, noise[0])
    gain = chosen_gain(noise, odd)
    assert best > 0.05  # what the table promises
    assert gain.value < best / 2  # and what is true
    assert gain.low < 0
    better = noise.copy()
    better[7] += 3 * odd
    assert chosen_gain(better, odd).low > 0


def test_training_images_are_spared_for_the_test(tree):
    dataset = held_out(load_dataset(tree))
    assert (len(dataset.train), len(dataset.test)) == (33, 24)
    assert not set(dataset.train.names) & set(dataset.test.names)
    again = held_out(dataset)
    assert again.train.names == dataset.train.names


def test_wrong_names_fail_before_any_image_is_read(tree):
    def unused(pixels):
        raise AssertionError

    dataset, network = load_dataset(tree), CallableBackbone(unused, size=64)
    with pytest.raises(InputError, match="mode='boht'"):
        bench(dataset, [network], modes=["image", "boht"])
    with pytest.raises(InputError, match="operator='nkk'"):
        bench(dataset, [network], modes=["image"], operators=["auto", "nkk"])
    with pytest.raises(InputError, match="operators: none"):
        bench(dataset, [network], modes=["image"], operators=[])
    with pytest.raises(BackboneError, match="knows no maps of this network"):
        bench(dataset, [network], modes=["both"])


def saved(path, levels):
    Image.fromarray(np.asarray(levels, np.uint8)).save(path)
    return str(path)


def test_masks_of_any_levels_mark_the_same_defect(tmp_path):
    defect = np.zeros((32, 48), bool)
    defect[9:19, 18:30] = True
    for name, level in (("a.png", 1), ("b.png", 255), ("c.jpg", 255)):
        assert np.array_equal(read_defect(saved(tmp_path / name, defect * level)), defect)
    assert (np.asarray(Image.open(tmp_path / "c.jpg"))[~defect] > 0).any()  # JPEG's noise
    assert not read_defect(saved(tmp_path / "d.png", defect * 0)).any()


def test_masks_that_do_not_fit_are_named(tree, tmp_path):
    test = load_dataset(tree).test
    row = next(i for i, mask in enumerate(test.masks) if mask)

    def with_mask(path):
        masks = (*test.masks[:row], path, *test.masks[row + 1 :])
        return replace(test, masks=masks)

    check_masks(test)
    with pytest.raises(InputError, match=r"small\.png: 8 x 6 pixels, its image 80 x 60"):
        check_masks(with_mask(saved(tmp_path / "small.png", np.ones((6, 8)))))
    with pytest.raises(InputError, match=r"mask .*gone\.png: no such file"):
        check_masks(with_mask(str(tmp_path / "gone.png")))


def test_pixels_outside_of_the_region_do_not_count(tree):
    dataset = load_dataset(tree)
    test = dataset.test
    rows = np.flatnonzero([mask is not None for mask in test.masks])[:2]
    dataset = replace(dataset, train=dataset.train.take(slice(12)), test=test.take(rows))
    for region, found in (((0.25, 0, 1, 1), True), ((0, 0.9, 0.1, 1), False)):
        network = load_backbone(region=region)
        row = bench(dataset, [network], modes=["patch"], operators=["knn"]).rows[0]
        assert bool(row.pixels) == found  # in the lower left corner is no defect


def test_the_command(tree, tmp_path):
    done = subprocess.run(
        [
            *(NNAD, "bench", tree, "--operators", "knn"),
            *("--modes", "both,patch,image", "--json", tmp_path / "b.json"),
            *("--patch-size", "128", "--tile", "64", "--geometry", "letterbox"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "broken.png" in done.stderr
    report = json.loads((tmp_path / "b.json").read_text())[0]
    assert [row["candidate"]["mode"] for row in report["rows"]] == ["both", "patch", "image"]
    assert report["rows"][1]["pixels"][0] > 0.8  # AUROC of pixels
    assert report["rows"][2]["pixels"] is None
    fit = "nnad fit GOOD --model M --backbone efficientnet-lite0 --mode both --operator knn"
    assert f"{fit} --geometry letterbox --patch-size 128 --tile 64\n" in done.stdout
    assert "--mode patch\n" in done.stdout
    done = subprocess.run(
        [NNAD, "bench", tree, "--modes", "image", "--tile", "64"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--patch-size and --tile go with --modes both or patch" in done.stderr


def test_patches_as_asked_for():
    patches = _patches_of(load_backbone(size=64, region=(0, 0, 0.5, 1)), 128, Tiles(64))
    assert patches.tiles == Tiles(64)
    assert patches.backbone.preprocessing.size == 128
    assert patches.backbone.preprocessing.region == (0, 0, 0.5, 1)
