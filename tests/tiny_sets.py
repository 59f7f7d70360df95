"""The papers' data sets in their authors' layouts, a few small pictures a class.

A class has its own colour, with noise on it, so that classes can be told apart.
"""

import gzip
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from nnad import CallableBackbone
from nnad.reproduce.knnn import MVTEC
from nnad.reproduce.run import run
from nnad.reproduce.settings import Run, Settings
from nnad.reproduce.tables import Entry, Table
from nnad.reproduce.told import summary

WEIGHTS = np.random.default_rng(0).normal(size=(48, 20)).astype(np.float32)


def tiny_network(batch):  # (B, 32, 32, 3) -> (B, 20), random weights
    pooled = batch.reshape(len(batch), 4, 8, 4, 8, 3).mean(axis=(2, 4)).reshape(len(batch), 48)
    return np.maximum(pooled @ WEIGHTS / 255, 0)


def network(name="tiny") -> CallableBackbone:
    return CallableBackbone(tiny_network, name=name, size=32, geometry="whole")


def picture(label: int, seed: int, side: int = 16) -> np.ndarray:
    """(side, side, 3) uint8."""
    rng = np.random.default_rng([label, seed])
    colour = np.random.default_rng(label).uniform(40, 215, 3)
    return np.clip(colour + rng.normal(0, 25, (side, side, 3)), 0, 255).astype(np.uint8)


def save(path: Path, label: int, seed: int, side: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(label, seed, side)).save(path)


def records(classes: int, count: int, first: int, fine: bool = False) -> bytes:
    """CIFAR's binary records: labels, then the red, green and blue planes; `count` a class."""
    rows = []
    for seed in range(first, first + count):
        for label in range(classes):
            head = [label, 5 * label] if fine else [label]
            planes = picture(label, seed, 32).transpose(2, 0, 1).ravel()
            rows.append(np.concatenate([np.array(head, np.uint8), planes]))
    return np.concatenate(rows).tobytes()


def cifar10(folder: Path) -> None:
    folder.mkdir()
    names = [f"class_{i}" for i in range(10)]
    (folder / "batches.meta.txt").write_text("\n".join(names))
    for i in range(5):
        (folder / f"data_batch_{i + 1}.bin").write_bytes(records(10, 2, 2 * i))
    (folder / "test_batch.bin").write_bytes(records(10, 2, 50))


def cifar100(folder: Path) -> None:
    folder.mkdir()
    for kind, count in (("coarse", 20), ("fine", 100)):
        names = "\n".join(f"{kind}_{i:03}" for i in range(count))
        (folder / f"{kind}_label_names.txt").write_text(names)
    (folder / "train.bin").write_bytes(records(20, 4, 0, fine=True))
    (folder / "test.bin").write_bytes(records(20, 1, 50, fine=True))


def idx(folder: Path) -> None:
    """MNIST and Fashion-MNIST."""
    folder.mkdir()
    for part, seeds in (("train", range(4)), ("t10k", range(50, 52))):
        images = np.stack([picture(c, s, 28).mean(axis=2) for s in seeds for c in range(10)])
        labels = np.array([c for _ in seeds for c in range(10)], np.uint8)
        for name, array in (("images", images.astype(np.uint8)), ("labels", labels)):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            path = folder / f"{part}-{name}-idx{array.ndim}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes()))


def flowers(folder: Path) -> None:
    """Four training images of each of the first 22 classes, one to test of all 102."""
    labels, parts = [], {"trnid": [], "valid": [], "tstid": []}
    for label in range(1, 103):
        for part, count in (("trnid", 4 if label <= 22 else 0), ("valid", 1), ("tstid", 1)):
            for _ in range(count):
                labels.append(label)
                parts[part].append(len(labels))
                save(folder / "jpg" / f"image_{len(labels):05}.jpg", label, len(labels))
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    savemat(folder / "setid.mat", {k: np.array([v], np.uint16) for k, v in parts.items()})


def birds(folder: Path) -> None:
    """21 classes, three to train and one to test."""
    classes = [f"{i:03}.Bird_{i}" for i in range(1, 22)]
    images, labels, split = [], [], []
    for label, name in enumerate(classes, 1):
        for i in range(4):
            images.append(f"{len(images) + 1} {name}/{i}.jpg")
            labels.append(f"{len(images)} {label}")
            split.append(f"{len(images)} {int(i < 3)}")
            save(folder / "images" / name / f"{i}.jpg", label, i)
    told = [f"{i} {name}" for i, name in enumerate(classes, 1)]
    for name, lines in (
        ("classes", told),
        ("images", images),
        ("image_class_labels", labels),
        ("train_test_split", split),
    ):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def cats_vs_dogs(folder: Path) -> None:
    for label, kind in enumerate(("cat", "dog")):
        for number in (0, 1, 2, 3, 10_000, 10_001):
            save(folder / "train" / f"{kind}.{number}.jpg", label, number)


def dior(folder: Path) -> None:
    """Two large objects a picture; 51 of each of two classes, and a class that is too small."""
    (folder / "Main").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    parts = {"trainval": range(1, 41), "test": range(41, 53)}
    for part, numbers in parts.items():
        (folder / "Main" / f"{part}.txt").write_text("".join(f"{n:05}\n" for n in numbers))
        for n in numbers:
            image = np.hstack([picture(label, n, 120) for label in range(2)])  # (120, 240, 3)
            path = folder / f"JPEGImages-{part}" / f"{n:05}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(path)
            boxes = {"dam": (0, 0, 120, 120), "ship": (120, 0, 240, 120)}
            objects = "".join(
                f"<object><name>{name}</name><bndbox>"
                + "".join(
                    f"<{c}>{v}</{c}>"
                    for c, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
                )
                + "</bndbox></object>"
                for name, box in boxes.items()
            )
            note = folder / "Annotations" / f"{n:05}.xml"
            note.write_text(f"<annotation>{objects}</annotation>")


def wbc(folder: Path) -> None:
    """Four classes of 21 images and one of two."""
    lines = ["image ID,class label"]
    for label, count in ((1, 21), (2, 21), (3, 21), (4, 21), (5, 2)):
        for i in range(count):
            lines.append(f"{len(lines)},{label}")
            save(folder / "Dataset 1" / f"{len(lines) - 1:03}.bmp", label, i)
    (folder / "Class Labels of Dataset 1.csv").write_text("\n".join(lines) + "\n")


def mvtec(folder: Path, good: int = 5, tested: int = 2, sets: Sequence[str] = tuple(MVTEC)) -> None:
    """Fifteen sets: five good images to train, two good and two odd to test."""
    for label, name in enumerate(sets):
        for i in range(good):
            save(folder / name / "train" / "good" / f"{i}.png", label, i)
        for i in range(tested):
            save(folder / name / "test" / "good" / f"{i}.png", label, 50 + i)
            save(folder / name / "test" / "cut" / f"{i}.png", label + 100, i)
            save(folder / name / "ground_truth" / "cut" / f"{i}_mask.png", 0, 0)


def make_all(root: Path) -> Path:
    """Every data set, under the name that `nnad reproduce` looks for."""
    cifar10(root / "cifar10")
    cifar100(root / "cifar100")
    idx(root / "mnist")
    idx(root / "fashion-mnist")
    flowers(root / "flowers")
    birds(root / "birds")
    cats_vs_dogs(root / "cats-vs-dogs")
    dior(root / "dior")
    wbc(root / "wbc")
    mvtec(root / "mvtec")
    return root


def small(table: Table) -> Table:
    """The same entries, with one draw each, a few groups, and three flowers for all."""
    entries = []
    for entry in table.entries:
        options, over = dict(entry.options), entry.over
        if entry.protocol == "groups":
            options |= {"n_train": 8, "n_test": 6}
        if entry.protocol != "sets":
            over = {name: values[:1] for name, values in over.items()}
        if entry.protocol == "plane":
            options["n_odd"] = 50
        few = entry.classes == "all" and entry.data == "flowers"
        classes = (0, 1, 2) if few else entry.classes
        entries.append(replace(entry, options=options, over=over, classes=classes))
    return replace(table, entries=tuple(entries))


def run_twice(table: Table, settings: Settings, has_number: Callable[[Entry], bool]) -> Run:
    """Run it: these entries have a number, of different cells, others none; then all is there."""
    found = run(table, settings)
    for (entry, value), scored in zip(summary(found), found.scored, strict=True):
        if has_number(entry):
            assert value is not None, (entry.row, entry.column, found.problems)
            assert 0 <= value <= 1
            assert len({cell.task() for cell, _ in scored}) == len(scored)
        else:
            assert value is None
    assert run(table, settings).computed == 0
    return found
