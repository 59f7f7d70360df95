"""Data sets in the layouts of their users: folders, archives and lists."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from nnad import DatasetError, Detector, ImageError, InputError, zips
from nnad.datasets import combine, load_dataset
from nnad.image_files import find_images
from nnad.images import Crop, read_image

PNG = io.BytesIO()
Image.fromarray(draw(0)).save(PNG, "PNG")
MVTEC = [
    "train/good/000.png",
    "train/good/001.png",
    "test/good/000.png",
    "test/scratch/000.png",
    "test/scratch/001.png",
    "test/dent/000.png",
    "ground_truth/scratch/000_mask.png",
    "ground_truth/dent/000_mask.png",
]


def make(root: Path, names: list[str] | str) -> Path:
    for name in names.split() if isinstance(names, str) else names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG.getvalue())
    return root


def pack(archive: Path, names: list[str] | str) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names.split() if isinstance(names, str) else names:
            file.writestr(name, PNG.getvalue())
    return archive


def told(split, data) -> list[tuple[str, str]]:
    """The last two parts of each name, and the class."""
    return [
        ("/".join(Path(name).parts[-2:]), data.classes[label])
        for name, label in zip(split.names, split.labels, strict=True)
    ]


def check_mvtec(data, root: str) -> None:
    assert (data.layout, data.classes, data.good) == (
        "MVTec layout",
        ("good", "dent", "scratch"),
        (0,),
    )
    assert told(data.train, data) == [("good/000.png", "good"), ("good/001.png", "good")]
    assert told(data.test, data) == [
        ("dent/000.png", "dent"),
        ("good/000.png", "good"),
        ("scratch/000.png", "scratch"),
        ("scratch/001.png", "scratch"),
    ]
    masks = [f"{root}/ground_truth/{name}_mask.png" for name in ("dent/000", "scratch/000")]
    assert data.test.masks == (masks[0], None, masks[1], None)
    assert data.is_anomaly(data.test).tolist() == [True, False, True, True]
    assert data.good_train().names == data.train.names
    for source in (*data.train.sources, *data.test.sources, masks[0]):
        np.testing.assert_array_equal(np.asarray(read_image(source)), draw(0))


def test_mvtec_layout(tmp_path):
    data = load_dataset(make(tmp_path / "nut", MVTEC))
    check_mvtec(data, f"{tmp_path}/nut")
    assert data.name == "nut"
    assert repr(data) == "Dataset('nut', MVTec layout): 2 train, 4 test, 3 classes, good: good"


@pytest.mark.parametrize("top", ["", "nut/", "./a/nut/"])
def test_zip_archives_are_read_where_they_are(tmp_path, top):
    names = [top + name for name in MVTEC]
    archive = pack(
        tmp_path / "n.zip", [*names, f"__MACOSX/{top}._x.png", f"{top}train/.hidden.png"]
    )
    check_mvtec(load_dataset(archive), f"{tmp_path}/n.zip/{top}".replace("/./", "/").rstrip("/"))
    assert [path.name for path in tmp_path.iterdir()] == ["n.zip"]


def test_a_folder_in_an_archive_is_a_folder(tmp_path):
    archive = pack(tmp_path / "n.zip", [f"a/nut/{name}" for name in MVTEC])
    check_mvtec(load_dataset(archive / "a" / "nut"), f"{archive}/a/nut")
    good = [name for name, _ in find_images(f"{archive}/a/nut/train/good")]
    assert good == [f"{archive}/a/nut/train/good/00{i}.png" for i in range(2)]


def test_class_folders(tmp_path):
    names = (
        "train/cat/1.png train/dog/b/2.png test/cat/3.png test/eel/4.png val/cat/5.png readme.md"
    )
    data = load_dataset(make(tmp_path, names))
    assert data.layout == "class folders with train and test"
    assert (data.classes, data.good) == (("cat", "dog", "eel"), ())
    assert told(data.train, data) == [("cat/1.png", "cat"), ("b/2.png", "dog")]
    assert told(data.test, data) == [("cat/3.png", "cat"), ("eel/4.png", "eel")]
    assert data.left_out == ("val (1 images)",)
    assert "good: not set; left out: val" in repr(data)
    with pytest.raises(InputError, match=r"which classes are good\? Use with_good.*cat, dog, eel"):
        data.is_anomaly(data.test)
    cats = data.with_good("cat")
    assert cats.is_anomaly(data.test).tolist() == [False, True]
    assert told(cats.good_train(), cats) == [("cat/1.png", "cat")]
    with pytest.raises(InputError, match=r"'fox': no class of .*; cat, dog, eel"):
        data.with_good("fox")


def test_class_folders_without_a_split(tmp_path):
    data = load_dataset(make(tmp_path, "set/crack/1.png set/Normal/1.png"))
    assert (data.layout, data.name) == ("class folders without a split", "set")
    assert (data.classes, data.good, len(data.test)) == (("Normal", "crack"), (0,), 0)
    assert told(data.train, data) == [("Normal/1.png", "Normal"), ("crack/1.png", "crack")]


def test_the_only_class_of_train_is_good(tmp_path):
    data = load_dataset(make(tmp_path, "train/whole/1.png test/whole/2.png test/broken/3.png"))
    assert (data.layout, data.classes, data.good) == ("MVTec layout", ("whole", "broken"), (0,))
    alone = load_dataset(make(tmp_path / "b", "train/x/1.png train/y/1.png"))
    assert alone.layout == "class folders in train alone"


def test_folder_arguments(tmp_path):
    names = (
        "ok/1.png ok/2.png more/3.png bad/a/4.png bad/b/5.png masks/4_mask.png m/5.png extra/6.png"
    )
    make(tmp_path, names)
    data = load_dataset(
        tmp_path,
        normal_dir="ok",
        abnormal_dir=["bad/a", "bad/b"],
        normal_test_dir="more",
        mask_dir=["masks", "m"],
    )
    assert (data.layout, data.classes) == ("folders by argument", ("good", "a", "b"))
    assert told(data.train, data) == [("ok/1.png", "good"), ("ok/2.png", "good")]
    assert told(data.test, data) == [("more/3.png", "good"), ("a/4.png", "a"), ("b/5.png", "b")]
    masks = (None, f"{tmp_path}/masks/4_mask.png", f"{tmp_path}/m/5.png")
    assert data.test.masks == masks
    archive = pack(tmp_path / "all.zip", names)
    packed = load_dataset(archive, normal_dir="ok/", abnormal_dir="bad")
    assert told(packed.test, packed) == [("a/4.png", "bad"), ("b/5.png", "bad")]
    with pytest.raises(DatasetError, match=r"abnormal_dir='worse': no images in .*/worse"):
        load_dataset(tmp_path, normal_dir="ok", abnormal_dir="worse")
    with pytest.raises(InputError, match="normal_dir: is needed"):
        load_dataset(tmp_path, abnormal_dir="bad")
    with pytest.raises(InputError, match="mask_dir: 1 for 2 of abnormal_dir"):
        load_dataset(tmp_path, normal_dir="ok", abnormal_dir=["bad/a", "bad/b"], mask_dir="m")


ROWS = [
    {"path": "a/1.png", "label": "good", "split": "train"},
    {"path": "a/2.png", "label": "good", "split": "test"},
    {"path": "b, c/3.png", "label": "burnt", "split": "test", "mask": "m/3.png"},
]
CSV = """\ufeffpath,label,split,mask
a/1.png,good,train,
a/2.png,good,test,
"b, c/3.png",burnt,test,m/3.png
"""


@pytest.mark.parametrize("name, content", [("l.csv", CSV), ("l.json", json.dumps(ROWS))])
def test_lists(tmp_path, name, content):
    make(tmp_path, ["a/1.png", "a/2.png", "b, c/3.png"])
    (tmp_path / name).write_text(content, encoding="utf-8")
    data = load_dataset(tmp_path / name)
    assert (data.name, data.layout, data.classes, data.good) == (
        "l",
        "list",
        ("good", "burnt"),
        (0,),
    )
    assert told(data.train, data) == [("a/1.png", "good")]
    assert told(data.test, data) == [("a/2.png", "good"), ("b, c/3.png", "burnt")]
    assert data.test.masks == (None, f"{tmp_path}/m/3.png")
    found = [name for name, _ in find_images(tmp_path / name)]
    assert found == [f"{tmp_path}/{row['path']}" for row in ROWS]
    with pytest.raises(InputError, match="a list takes no folder arguments"):
        load_dataset(tmp_path / name, normal_dir="a")


def test_lists_of_paths_alone(tmp_path):
    (tmp_path / "a.csv").write_text("path\nx.png\n\n/y.png\n")
    (tmp_path / "a.json").write_text('["x.png", "/y.png"]')
    for name in ("a.csv", "a.json"):
        data = load_dataset(tmp_path / name)
        assert data.train.names == (f"{tmp_path}/x.png", "/y.png")
        assert (data.classes, data.good) == (("good",), (0,))
        assert len(data.test) == 0


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "", "a.csv, line 1: no column `path`; the header is ''"),
        ("a.csv", "file;label\nx;y\n", "line 1: no column `path`; the header is 'file;label'"),
        ("a.csv", "path\n", "a.csv: this list names no images"),
        ("a.csv", "path,label\nx,good\n,bad\n", "a.csv, line 3: `path` is empty"),
        ("a.csv", "path,label\nx,good\ny\n", "a.csv, line 3: `label` is empty"),
        ("a.csv", "path\nx\ny,z\n", "a.csv, line 3: more fields than the header has names"),
        (
            "a.csv",
            "path,split\nx,train\ny,val\n",
            "line 3: split 'val'; it is either train or test",
        ),
        (
            "a.csv",
            "path,split\nx,train\nx,test\n",
            "line 3: .*x is there twice, see .*a.csv, line 2",
        ),
        ("a.csv", "path\n" + "x" * 200_000, "a.csv: not a CSV file: field larger"),
        ("a.json", "[", "a.json: not JSON: "),
        ("a.json", "[" * 100_000, "a.json: not JSON: "),
        ("a.json", '{"path": "x"}', "a.json: not a list but a dict"),
        ("a.json", '["x", 7]', "a.json, entry 2: neither a path nor an object"),
        ("a.json", '[{"path": "x", "label": 1}]', "a.json, entry 1: `label` is not a text"),
        ("a.json", '[{"label": "x"}]', "a.json, entry 1: `path` is empty"),
    ],
)
def test_malformed_lists(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        load_dataset(tmp_path / name)


def test_a_list_in_another_encoding(tmp_path):
    (tmp_path / "a.csv").write_bytes("path\nä.png\n".encode("utf-16"))
    with pytest.raises(DatasetError, match="line 1: no column `path`"):
        load_dataset(tmp_path / "a.csv")
    with pytest.raises(InputError, match=r"b\.csv: cannot be read: No such file"):
        list(find_images(tmp_path / "b.csv"))


@pytest.mark.parametrize(
    "names, message",
    [
        ("1.png 2.png", "1.png is in no class folder; known layouts: train/good and test/<defect>"),
        ("a/1.png 2.png", "2.png is in no class folder"),
        ("train/1.png test/a/1.png", "train/1.png: in no class folder; expected train/<class>"),
        ("test/good/1.png", "no images in train; known layouts"),
        ("notes.txt", "holds no image files"),
    ],
)
def test_unknown_layouts_are_refused(tmp_path, names, message):
    make(tmp_path / "d", names)
    pack(tmp_path / "d.zip", names)
    for path in (tmp_path / "d", tmp_path / "d.zip"):
        with pytest.raises(InputError, match=message):
            load_dataset(path)


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(DatasetError, match=r"nothing: no such folder, \.zip archive, or"):
        load_dataset(tmp_path / "nothing")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"a\.txt: not a folder, \.zip archive, or"):
        load_dataset(tmp_path / "a.txt")


def test_take_and_combine(tmp_path):
    one = load_dataset(make(tmp_path / "one", MVTEC))
    two = load_dataset(make(tmp_path / "two", MVTEC)).with_good("good", "dent")
    both = combine([one, two], "both")
    assert both.classes[::3] == ("one/good", "two/good")
    assert both.good == (0, 3, 4)
    assert both.train.names == one.train.names + two.train.names
    assert both.test.masks == one.test.masks + two.test.masks
    assert both.is_anomaly(both.test).tolist() == [
        True,
        False,
        True,
        True,
        False,
        False,
        True,
        True,
    ]
    some = both.test.take([5, 0])
    assert (some.names, some.labels.tolist()) == ((two.test.names[1], one.test.names[0]), [3, 1])
    assert len(both.test.take(both.test.labels == 5)) == 2
    with pytest.raises(InputError, match="nothing to combine"):
        combine([], "none")


def test_a_dataset_goes_into_the_detector(tmp_path, good_folder, new_folder, detector):
    with zipfile.ZipFile(tmp_path / "disc.zip", "w") as file:
        for path in sorted(good_folder.iterdir()):
            file.write(path, f"train/good/{path.name}")
        for path in sorted(new_folder.iterdir()):
            file.write(path, f"test/{path.name.split('_')[0]}/{path.name}")
    data = load_dataset(tmp_path / "disc.zip")
    packed = Detector(detector.backbone).fit(data.good_train().sources)
    np.testing.assert_array_equal(packed.features, detector.features)
    assert packed.names == data.train.names
    scored = {r.name: r.score for r in packed.score(data.test.sources)}
    again = {Path(name).name: score for name, score in scored.items()}
    assert again == {Path(r.name).name: r.score for r in detector.score(new_folder)}
    broken = [r for r in packed.score(tmp_path / "disc.zip") if r.error]
    assert [Path(r.name).name for r in broken] == ["broken.jpg"]
    assert "not an image in a format" in broken[0].error


def test_members_that_are_not_there_or_damaged_are_one_bad_image(tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.zip", "a.png b.png empty.png")
    content = bytearray(archive.read_bytes())
    content[content.index(b"a.png") + 60] ^= 255  # in the first picture's data
    archive.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.zip/a\.png: damaged or truncated image"):
        read_image(archive / "a.png")
    with pytest.raises(ImageError, match=r"a\.zip/c\.png: no such file in a\.zip"):
        read_image(f"{archive}/c.png")
    assert [name for name, _ in find_images([f"{archive}/c.png", f"{archive}/b.png"])] == [
        f"{archive}/c.png",
        f"{archive}/b.png",
    ]
    monkeypatch.setattr(zips, "MAX_BYTES", 100)
    with pytest.raises(ImageError, match=r"b\.png: [\d,]+ bytes; at most 100 are read from a zip"):
        read_image(archive / "b.png")
    locked = pack(tmp_path / "locked.zip", "a.png")
    content = bytearray(locked.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1  # the flag of encryption
    locked.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png: is encrypted; unpack the archive first"):
        read_image(locked / "a.png")


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/evil.png", "C:\\evil.png", "..\\e.png"]
)
def test_archives_with_entries_that_point_out_are_refused(tmp_path, name):
    archive = pack(tmp_path / "a.zip", ["good/1.png", name])
    for read in (load_dataset, lambda path: list(find_images(path))):
        with pytest.raises(InputError, match=r"a\.zip: the entry '.*' points out of the archive"):
            read(archive)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_archives_that_are_none(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"not a zip")
    with pytest.raises(InputError, match=r"a\.zip: not a zip archive, or damaged"):
        list(find_images(tmp_path / "a.zip"))
    with pytest.raises(ImageError, match=r"a\.zip/x\.png: "):
        read_image(tmp_path / "a.zip" / "x.png")
    with pytest.raises(ImageError, match=r"b\.zip/x\.png: no such file"):
        read_image(tmp_path / "b.zip" / "x.png")


def test_an_archive_that_changes_is_opened_anew(tmp_path):
    for names in ("a/1.png", "a/2.png a/3.png"):
        archive = pack(tmp_path / "a.zip", names)
        assert len(list(find_images(archive))) == len(names.split())


def test_crops(tmp_path):
    make(tmp_path, "a.png")
    picture = draw(0)
    crop = Crop(f"{tmp_path}/a.png", (10, 5, 30, 45))
    assert list(find_images([crop])) == list(find_images(crop)) == [(str(crop), crop)]
    assert str(crop) == f"{tmp_path}/a.png[10,5,30,45]"
    np.testing.assert_array_equal(np.asarray(read_image(crop)), picture[5:45, 10:30])
    beyond = Crop(f"{tmp_path}/a.png", (60, -3, 500, 20))
    np.testing.assert_array_equal(np.asarray(read_image(beyond)), picture[:20, 60:])
    for box in ((100, 0, 120, 20), (5, 5, 5, 9), (9, 9, 3, 20)):
        with pytest.raises(
            ImageError, match=r"a\.png\[.*\]: the box is outside of the image, 80 x 60"
        ):
            read_image(Crop(f"{tmp_path}/a.png", box))
    with pytest.raises(ImageError, match=r"b\.png\[0,0,9,9\]: no such file"):
        read_image(Crop(f"{tmp_path}/b.png", (0, 0, 9, 9)))


def test_a_nul_in_a_list_is_refused(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(["good.png", "a\0b.png"]))
    with pytest.raises(DatasetError, match=r"list\.json, entry 2: a NUL character"):
        load_dataset(tmp_path / "list.json")
