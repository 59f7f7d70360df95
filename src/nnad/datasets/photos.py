"""Data sets whose original is a folder of image files and a description of their classes."""

import csv
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.io import loadmat

from nnad.datasets.dataset import Dataset, Split, file_split, original, read_lines, require
from nnad.datasets.layouts import as_tree, split_folders
from nnad.errors import DatasetError, InputError
from nnad.image_files import find_in_folder

MVTEC_CATEGORIES = tuple(
    "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush "  # noqa: SIM905
    "transistor wood zipper".split()
)
_MVTEC = (
    "mvtec_anomaly_detection.tar.xz from https://www.mvtec.com/company/research/datasets/mvtec-ad"
)
_FLOWERS = (
    "102flowers.tgz (the folder jpg), imagelabels.mat and setid.mat from "
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
)
_CUB = "CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/"
_CATS_DOGS = (
    "train.zip of Kaggle's competition dogs-vs-cats (train/cat.0.jpg, ...), or Microsoft's "
    "kagglecatsanddogs_5340.zip (PetImages/Cat/0.jpg, ...)"
)
_WBC = "https://github.com/zxaoyou/segmentation_WBC"
_WBC_CLASSES = {1: "neutrophil", 2: "lymphocyte", 3: "monocyte", 4: "eosinophil", 5: "basophil"}

Path_ = str | os.PathLike[str]


def oxford_flowers_102(
    folder: Path_, *, validation: Literal["out", "train", "test"] = "out"
) -> Dataset:
    """Oxford Flowers 102 (Nilsback and Zisserman 2008): 8,189 images, 102 classes.

    The official train set has 1,020 images, ten a class, validation 1,020 and test 6,149, as in
    k-NNN (Sec. 4). DN2 tells of 30 images and more a class to test (Sec. 4.1), which only test and
    validation together have. The classes have no names in the original; here `001` to `102`.

    Args:
        folder: holds `imagelabels.mat`, `setid.mat` and the folder `jpg`.
        validation: where the validation images go: `out` (the default, nowhere), `train`, `test`.

    Raises:
        DatasetError: a file is missing or damaged.
        InputError: `validation` is none of these.
    """
    folder = Path(folder)
    if validation not in ("out", "train", "test"):
        raise InputError(f"validation={validation!r}; choose out, train or test")
    labels = _matlab_row(folder / "imagelabels.mat", "labels")
    train, valid, test = (
        _matlab_row(folder / "setid.mat", key) for key in ("trnid", "valid", "tstid")
    )
    if labels.min() < 1 or labels.max() > 102:
        raise DatasetError(f"{folder / 'imagelabels.mat'}: damaged: labels are not 1 to 102")

    def part(*sets: Any) -> Split:
        numbers = np.concatenate(sets)
        if numbers.min() < 1 or numbers.max() > len(labels):
            raise DatasetError(f"{folder / 'setid.mat'}: damaged: no image of such a number")
        jpg = folder / "jpg"
        rows = ((jpg / f"image_{number:05}.jpg", labels[number - 1] - 1) for number in numbers)
        return _present(rows, _FLOWERS)

    return Dataset(
        "Oxford Flowers 102",
        original(folder),
        tuple(f"{i:03}" for i in range(1, 103)),
        part(train, valid) if validation == "train" else part(train),
        part(test, valid) if validation == "test" else part(test),
        left_out=(f"validation ({len(valid)} images)",) if validation == "out" else (),
    )


def cub_200_2011(folder: Path_) -> Dataset:
    """Caltech-UCSD Birds 200-2011 (Wah et al. 2011): 11,788 images, 200 classes, official split.

    Args:
        folder: the unpacked `CUB_200_2011`, or the folder that holds it.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    folder = Path(folder)
    if (folder / "CUB_200_2011").is_dir():
        folder = folder / "CUB_200_2011"
    classes = _table(folder / "classes.txt")
    images = _table(folder / "images.txt")
    labels = _table(folder / "image_class_labels.txt")
    in_train = _table(folder / "train_test_split.txt")
    numbers = {key: i for i, key in enumerate(classes)}
    rows: dict[str, list[tuple[Path, int]]] = {"0": [], "1": []}
    for key, name in images.items():
        try:
            rows[in_train[key]].append((folder / "images" / name, numbers[labels[key]]))
        except KeyError as error:
            raise DatasetError(
                f"{folder}: image {key} of images.txt: {error} is unknown in another list; "
                f"damaged, the original is {_CUB}"
            ) from None
    train, test = _present(rows["1"], _CUB), _present(rows["0"], _CUB)
    return Dataset("CUB-200-2011", original(folder), tuple(classes.values()), train, test)


def cats_vs_dogs(folder: Path_) -> Dataset:
    """Cats vs Dogs (Elson et al. 2007): of each class the first 10,000 images to train, the last
    2,500 to test, by their numbers (DN2, Sec. 4.1).

    Empty files, of which Microsoft's archive is known to have some, are left out.

    Args:
        folder: holds Kaggle's `cat.0.jpg`, ..., or Microsoft's `Cat/0.jpg`, ..., at any depth.

    Raises:
        DatasetError: there are no images of one of both classes.
    """
    folder = Path(folder)
    found: list[tuple[int, int, str]] = []  # class, number, file
    empty = []
    for file in _images(folder, _CATS_DOGS):
        match = re.search(r"(?i)\b(cat|dog)[./\\](\d+)\.jpg$", file)
        if match and os.stat(file).st_size == 0:  # noqa: PTH116
            empty.append(file)
        elif match:
            found.append((int(match[1].lower() == "dog"), int(match[2]), file))
    for label, name in enumerate(("cat", "dog")):
        if label not in {row[0] for row in found}:
            raise DatasetError(f"{folder}: no images of a {name}; the original is {_CATS_DOGS}")
    found.sort()
    train = file_split((file, label, None) for label, n, file in found if n < 10_000)
    test = file_split((file, label, None) for label, n, file in found if n >= 10_000)
    left_out = tuple(f"{file} (empty)" for file in empty)
    return Dataset("Cats vs Dogs", original(folder), ("cat", "dog"), train, test, left_out=left_out)


def wbc(folder: Path_, *, more_than: int = 20) -> Dataset:
    """White blood cells (Zheng et al. 2018), Dataset 1: 300 images of 120 x 120 pixels.

    As in DN2 (Sec. 4.1): the four classes with more than 20 images, of each the first 80 % (rounded
    down) to train and the rest to test, in the order of their numbers.

    Args:
        folder: holds `Dataset 1` and `Class Labels of Dataset 1.csv`.
        more_than: classes with so many images or fewer are left out.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    folder = Path(folder)
    labels_file = folder / "Class Labels of Dataset 1.csv"
    rows = list(csv.reader(read_lines(labels_file, _WBC)))[1:]
    files: dict[str, list[Path]] = {name: [] for name in _WBC_CLASSES.values()}
    for number, row in enumerate(rows, 2):
        try:
            image, label = map(int, row)
            kind = _WBC_CLASSES[label]
        except (ValueError, KeyError):
            raise DatasetError(
                f"{labels_file}, line {number}: expected the number of an image and 1 to 5"
            ) from None
        files[kind].append(folder / "Dataset 1" / f"{image:03}.bmp")
    classes = tuple(name for name in files if len(files[name]) > more_than)
    if not classes:
        raise DatasetError(f"{labels_file}: no class has more than {more_than} images")
    parts: list[list[tuple[Path, int]]] = [[], []]
    for label, name in enumerate(classes):
        ordered = sorted(files[name])
        first = len(ordered) * 4 // 5
        parts[0] += [(file, label) for file in ordered[:first]]
        parts[1] += [(file, label) for file in ordered[first:]]
    train, test = (_present(part, _WBC) for part in parts)
    few = [name for name in files if name not in classes]
    left_out = tuple(f"{name} ({len(files[name])} images)" for name in few)
    return Dataset("WBC", original(folder), classes, train, test, left_out=left_out)


def mvtec_ad(folder: Path_, categories: Iterable[str] = MVTEC_CATEGORIES) -> dict[str, Dataset]:
    """MVTec AD (Bergmann et al. 2019): one data set for each category, by name.

    Use `combine(mvtec_ad(folder).values(), "MVTec AD")` for all of them as one.

    Args:
        folder: holds a folder for each category.
        categories: which to load; all fifteen by default.

    Raises:
        DatasetError: a category is missing, or has no good images or a defect without its mask.
    """
    found = {}
    for name in categories:
        path = Path(folder) / name
        data = split_folders(str(path), as_tree(str(path), _images(path, _MVTEC)))
        if data.classes[0] != "good" or data.train.labels.any():
            raise DatasetError(f"{path}: train is not one folder `good`; the original is {_MVTEC}")
        anomalous = data.is_anomaly(data.test)
        for image, mask, bad in zip(data.test.names, data.test.masks, anomalous, strict=True):
            if bad and mask is None:
                raise DatasetError(f"{image}: no mask in ground_truth; the original is {_MVTEC}")
        found[name] = data
    return found


def _present(rows: Iterable[tuple[Path, int]], origin: str) -> Split:
    """A split of files, with their labels, that must be there."""
    return file_split((str(require(file, origin)), label, None) for file, label in rows)


def _images(folder: Path, origin: str) -> list[str]:
    """The paths of all images in a folder that must have some."""
    try:
        found = find_in_folder(str(require(folder, origin)))
    except InputError as error:
        raise DatasetError(f"{error}; the original is {origin}") from None
    if found is None:
        raise DatasetError(f"{folder}: not a folder; unpack {origin}")
    return found


def _table(path: Path) -> dict[str, str]:
    """CUB's lists: a key and a value a line."""
    rows = {}
    for number, line in enumerate(read_lines(path, _CUB), 1):
        key, _, value = line.partition(" ")
        if not value:
            raise DatasetError(f"{path}, line {number}: expected a number and a value")
        rows[key] = value
    return rows


def _matlab_row(path: Path, key: str) -> Any:
    """A row of whole numbers (N,) of a MATLAB file."""
    require(path, _FLOWERS)
    try:
        values = np.asarray(loadmat(path)[key], np.int64).ravel()
    except Exception as error:  # scipy raises many types on damaged files
        raise DatasetError(f"{path}: damaged, or not the original file: {error!r}") from error
    if not len(values):
        raise DatasetError(f"{path}: damaged: {key} is empty")
    return values
