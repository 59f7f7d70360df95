import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from nnad.errors import ImageWarning, InputError
from nnad.image_files import passed_over
from nnad.images import read_image
from nnad.near_duplicates import near_pairs, residuals, thumbnail
from nnad.preflight import KINDS, preflight

NNAD = shutil.which("nnad", path=str(Path(sys.executable).parent))


def nnad(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([NNAD, *map(str, arguments)], capture_output=True, text=True)


def texture(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A part: its own coarse spots on what all parts have in common."""
    coarse = np.random.default_rng(seed).integers(60, 190, (9, 12, 3), dtype=np.uint8)
    common = Image.fromarray(draw(0)).resize(size)
    return Image.blend(common, Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), 0.6)


def parts(folder: Path, seeds) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        texture(seed).save(folder / f"part_{seed:03}.png")
    return folder


def noisy(image: Image.Image, seed: int) -> Image.Image:
    pixels = np.asarray(image) + np.random.default_rng(seed).normal(0, 4, (*image.size[::-1], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def found(report, kind: str) -> list[list[str]]:
    """File names of each finding of a kind."""
    return [[Path(f).name for f in x.files] for x in report.findings if x.kind == kind]


def test_different_parts_have_no_findings(tmp_path):
    report = preflight(
        [parts(tmp_path / "good", range(40)), parts(tmp_path / "test", range(40, 60))]
    )
    assert (report.read, report.findings, report.serious) == (60, (), False)


def test_a_burst_is_one_cluster_and_copies_are_told_apart(tmp_path):
    good = parts(tmp_path / "good", range(30))
    noisy(texture(3), 1).save(good / "shot_a.png")
    noisy(texture(3), 2).point(lambda v: min(255, int(v * 1.1))).save(good / "shot_b.jpg")
    texture(5).save(good / "same_pixels.bmp")
    shutil.copy(good / "part_007.png", good / "same_file.png")
    report = preflight([good])
    assert found(report, "near-duplicates") == [["part_003.png", "shot_a.png", "shot_b.jpg"]]
    assert found(report, "duplicates") == [
        ["part_005.png", "same_pixels.bmp"],
        ["part_007.png", "same_file.png"],
    ]
    assert [f.severity for f in report.findings] == ["error", "error", "warning"]
    assert report.serious


def test_what_is_in_two_sets_is_a_leak(tmp_path):
    good, test = parts(tmp_path / "good", range(20)), parts(tmp_path / "test", range(20, 40))
    shutil.copy(good / "part_004.png", test / "leaked.png")
    noisy(texture(25), 1).save(good / "shot.png")
    report = preflight([good, test])
    assert found(report, "leak") == [["part_004.png", "leaked.png"]]
    assert found(report, "near-leak") == [["shot.png", "part_025.png"]]
    assert len(report.findings) == 2
    assert str(good) in report.findings[0].message
    assert str(test) in report.findings[0].message


def test_a_file_given_twice_is_no_duplicate_within_a_set_but_one_in_two_sets(tmp_path):
    good = parts(tmp_path / "good", range(6))
    (good / "link.png").symlink_to(good / "part_000.png")
    assert preflight([good]).findings == ()
    assert len(found(preflight([good, good]), "leak")) == 6


def test_pictures_in_archives(tmp_path):
    good = parts(tmp_path / "good", range(6))
    with zipfile.ZipFile(tmp_path / "test.zip", "w") as archive:
        archive.write(good / "part_003.png", "a/copy.png")
        archive.writestr("a/notes.txt", "")
    report = preflight([good, tmp_path / "test.zip"])
    assert found(report, "leak") == [["part_003.png", "copy.png"]]
    assert len(found(report, "passed-over")) == 1


def test_an_exif_turned_copy_is_the_same_picture(tmp_path):
    good = parts(tmp_path / "good", range(6))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned = texture(2).transpose(Image.Transpose.ROTATE_90)
    turned.save(good / "turned.png", exif=exif)
    report = preflight([good])
    assert found(report, "duplicates") == [["part_002.png", "turned.png"]]
    assert found(report, "rotated") == [["turned.png"]]
    assert found(report, "size") == []


def test_pictures_unlike_the_rest_in_kind(tmp_path):
    good = parts(tmp_path / "good", range(30))
    texture(50, (48, 36)).save(good / "thumb.png")
    texture(51).convert("L").save(good / "grey.png")
    texture(52).convert("L").convert("RGB").save(good / "greyish.png")
    texture(53, (20, 15)).save(good / "tiny.png")
    Image.new("RGB", (96, 72), "white").save(good / "white.png")
    Image.new("RGBA", (96, 72), (9, 9, 9, 0)).save(good / "clear.png")
    deep = (np.asarray(texture(54).convert("L")).astype(np.uint16)) * 16
    Image.fromarray(deep).save(good / "deep.png")
    texture(55).save(good / "pages.tiff", save_all=True, append_images=[texture(56)])
    report = preflight([good])
    assert found(report, "size") == [["thumb.png", "tiny.png"]]
    (modes,) = found(report, "mode")
    assert set(modes) >= {"grey.png", "greyish.png", "clear.png", "deep.png"}
    assert found(report, "tiny") == [["tiny.png"]]
    assert found(report, "single-colour") == [["clear.png", "white.png"]]
    assert sorted(found(report, "reading")) == [["clear.png"], ["deep.png"], ["pages.tiff"]]
    assert found(report, "near-duplicates") == []
    (sizes,) = (f.message for f in report.findings if f.kind == "size")
    assert sizes.startswith("48 x 36 (1), 20 x 15 (1); 36 of 38 in")


def test_mixed_sizes_odd_shapes_and_sets_that_differ(tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i in range(20):
        texture(i, (90 + i, 70 + i)).save(mixed / f"{i}.png")
    texture(99, (300, 60)).save(mixed / "wide.png")
    report = preflight([mixed])
    assert found(report, "shape") == [["wide.png"]]
    assert [f.kind for f in report.findings] == ["shape", "mixed"]
    small = tmp_path / "small"
    small.mkdir()
    for i in range(5):
        texture(100 + i, (64, 48)).save(small / f"{i}.png")
    report = preflight([parts(tmp_path / "good", range(30, 36)), small])
    (differ,) = report.findings
    assert (differ.kind, differ.severity) == ("sets-differ", "warning")
    assert "96 x 72 in" in differ.message
    assert "64 x 48 in" in differ.message


def test_unreadable_and_passed_over_files(tmp_path):
    good = parts(tmp_path / "good", range(6))
    (good / "empty.png").touch()
    (good / "cut.png").write_bytes((good / "part_000.png").read_bytes()[:400])
    for name in ("a.txt", "b.TXT", "film.mp4", ".hidden.txt", "Makefile"):
        (good / name).touch()
    report = preflight([good])
    assert report.read == 6
    assert found(report, "unreadable") == [["cut.png"], ["empty.png"]]
    (note,) = (f for f in report.findings if f.kind == "passed-over")
    assert note.message == ("4 files without an image's extension: 1 .mp4, 2 .txt, 1 no extension")
    assert passed_over([str(good / "part_000.png"), str(good), f"{tmp_path}/g*"]).total() == 4


def test_the_report_does_not_depend_on_the_number_of_threads(tmp_path):
    good = parts(tmp_path / "good", range(15))
    noisy(texture(3), 1).save(good / "shot.png")
    (good / "broken.png").write_text("no")
    reports = [preflight([good], workers=workers) for workers in (1, 2, 7)]
    assert reports[0] == reports[1] == reports[2]
    assert reports[0].findings


def test_residuals_ignore_small_alignment_and_light():
    big = texture(1, (330, 330)).crop((5, 5, 325, 325))
    moved = texture(1, (330, 330)).crop((7, 4, 327, 324))
    light = big.point(lambda v: int(v * 0.8 + 20))
    thumbs = np.stack([thumbnail(i) for i in (big, moved, light, texture(2, (320, 320)))])
    np.testing.assert_allclose(np.linalg.norm(thumbs, axis=1), 1, rtol=1e-5)
    same, shift, bright, other = residuals(thumbs, np.array([[0, 0], [0, 1], [0, 2], [0, 3]]))
    assert same == 0
    assert shift < 0.1 * other
    assert bright < 0.05 * other
    assert shift < 0.5 * np.linalg.norm(thumbs[0] - thumbs[1])


def test_near_pairs_of_bursts_longer_than_the_neighbourhood():
    thumbs = [thumbnail(noisy(texture(i), seed)) for i in range(4) for seed in range(25)]
    thumbs += [thumbnail(texture(i)) for i in range(10, 40)]
    pairs = near_pairs(np.stack(thumbs))
    assert set(np.unique(pairs)) == set(range(100))
    assert (pairs[:, 0] // 25 == pairs[:, 1] // 25).all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_pictures_have_no_near_pairs(count):
    thumbs = np.array([thumbnail(texture(0))] * count, dtype=np.float32).reshape(count, 3072)
    assert near_pairs(thumbs).shape == (0, 2)


def test_pictures_without_contrast_are_near_nothing():
    flat = thumbnail(Image.new("RGB", (50, 50), (9, 80, 200)))
    assert not flat.any()
    assert not near_pairs(np.stack([thumbnail(texture(i)) for i in range(8)] + [flat] * 3)).size


def test_errors():
    with pytest.raises(InputError, match="no folder given"):
        preflight([])
    with pytest.raises(InputError, match="no image files"):
        preflight([Path(__file__).parent])


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("RGB", (1, 1)), "x.png: a single pixel"),
        (Image.new("RGBA", (4, 4), (1, 2, 3, 0)), "x.png: fully transparent"),
    ],
)
def test_pictures_that_show_nothing_give_a_warning(picture, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture.save("x.png")
    with pytest.warns(ImageWarning, match=message):
        read_image("x.png")


def test_command(tmp_path):
    good, test = parts(tmp_path / "good", range(12)), parts(tmp_path / "test", range(12, 20))
    done = nnad("preflight", good, test)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "20 pictures read in 2 sets: 0 errors, 0 warnings, 0 notes\n"

    for i in range(7):
        shutil.copy(good / f"part_{i:03}.png", test / f"copy_{i}.png")
    noisy(texture(11), 1).save(good / "shot.png")
    (good / "notes.txt").touch()
    done = nnad("preflight", good, test, "--json", tmp_path / "r.json")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("error: leak: ")
    assert lines[2:4] == [f"      {good}/part_000.png", f"      {test}/copy_0.png"]
    assert "   ... and 2 more" in lines
    assert lines[-1] == "28 pictures read in 2 sets: 7 errors, 1 warning, 1 note"
    records = json.loads((tmp_path / "r.json").read_text())
    assert [r["kind"] for r in records] == ["leak"] * 7 + ["near-duplicates", "passed-over"]
    assert records[7]["files"] == [f"{good}/part_011.png", f"{good}/shot.png"]
    assert set(records[0]) == {"kind", "severity", "message", "files"}
    done = nnad("preflight", good, "--json", "-")
    assert len(json.loads(done.stdout)) == 2
    assert "13 pictures read in 1 set" in done.stderr


def test_command_exit_code_2(tmp_path):
    (tmp_path / "empty.png").touch()
    done = nnad("preflight", tmp_path)
    assert done.returncode == 2
    assert "is empty (0 bytes)" in done.stdout
    assert nnad("preflight", tmp_path / "none").returncode == 2
    assert nnad("preflight").returncode == 2
    done = nnad("preflight", parts(tmp_path / "a", range(3)), "--json", tmp_path / "no" / "r.json")
    assert done.returncode == 2
    assert "not a place where a file can be written" in done.stderr


def test_command_with_names_that_are_not_unicode(tmp_path):
    good = parts(tmp_path / "good", range(5))
    shutil.copy(good / "part_000.png", os.fsencode(good) + b"/\xff\n.png")
    done = subprocess.run([NNAD, "preflight", good, "--json", good / "r.json"], capture_output=True)
    assert done.returncode == 1
    assert b"\xff\\n.png" in done.stdout
    assert len(json.loads((good / "r.json").read_text())) == 1


def test_fit_and_score_tell_what_they_pass_over(tmp_path, model):
    good = parts(tmp_path / "good", range(4))
    for name in ("a.txt", "b.pdf", ".hidden.doc"):
        (good / name).touch()
    told = "nnad: passed over 2 files without an image's extension: 1 .pdf, 1 .txt\n"
    assert nnad("fit", good, "--model", tmp_path / "m", "--operator", "knn").stderr == told
    done = nnad("score", model, good)
    assert done.stderr == told
    one = nnad("score", model, good / "part_000.png")
    assert one.stderr == ""
    assert one.stdout.splitlines()[-1].startswith("1 image scored, ")


def test_every_kind_has_a_severity_and_advice():
    assert {severity for severity, _ in KINDS.values()} == {"error", "warning", "note"}
    assert all(advice for _, advice in KINDS.values())
