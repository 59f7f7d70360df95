"""The papers' data sets, found below one folder or where they are said to be.

Each is read from its authors' files (see `nnad.datasets`). Of copies as folders of classes, as many
people keep them, `train/<class>` and `test/<class>` are taken; without a test folder the first 80 %
of each class train, which is told in every table and is nobody's official split.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnad import datasets
from nnad.datasets import Dataset, load_dataset
from nnad.datasets.photos import MVTEC_CATEGORIES
from nnad.errors import DatasetError, InputError

Path_ = str | os.PathLike[str]


class Known(NamedTuple):
    """How a data set is read, and the names under which its files may lie in a folder."""

    load: Callable[[Path], Dataset]
    places: tuple[str, ...]


def _mvtec(path: Path) -> Dataset:
    """All categories that are there; which are needed is the table's concern."""
    there = [name for name in MVTEC_CATEGORIES if (path / name).is_dir()]
    found = datasets.mvtec_ad(path, there or MVTEC_CATEGORIES)
    return datasets.combine(found.values(), "MVTec AD")


# classes, images to train and to test of the official split
OFFICIAL = {
    "cifar10": (10, 50_000, 10_000),
    "cifar100": (20, 50_000, 10_000),
    "mnist": (10, 60_000, 10_000),
    "fashion-mnist": (10, 60_000, 10_000),
}
_FLOWERS = ("flowers", "102flowers", "oxford-flowers")
DATA = {
    "cifar10": Known(
        datasets.cifar10,
        (
            "cifar10",
            "cifar-10-python.tar.gz",
            "cifar-10-batches-py",
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin",
        ),
    ),
    "cifar100": Known(
        datasets.cifar100,
        (
            "cifar100",
            "cifar-100-python.tar.gz",
            "cifar-100-python",
            "cifar-100-binary.tar.gz",
            "cifar-100-binary",
        ),
    ),
    "mnist": Known(datasets.mnist, ("mnist",)),
    "fashion-mnist": Known(datasets.fashion_mnist, ("fashion-mnist", "fashion_mnist")),
    "flowers": Known(datasets.oxford_flowers_102, _FLOWERS),
    "flowers-dn2": Known(
        lambda path: datasets.oxford_flowers_102(path, validation="test"), _FLOWERS
    ),
    "birds": Known(datasets.cub_200_2011, ("birds", "CUB_200_2011")),
    "cats-vs-dogs": Known(datasets.cats_vs_dogs, ("cats-vs-dogs", "PetImages")),
    "dior": Known(datasets.dior, ("dior", "DIOR")),
    "wbc": Known(datasets.wbc, ("wbc", "segmentation_WBC-master")),
    "mvtec": Known(_mvtec, ("mvtec", "mvtec_anomaly_detection")),
}


def find_data(name: str, root: Path | None, given: Mapping[str, Path]) -> Path:
    """Where a data set is.

    Args:
        name: of `DATA`.
        root: the folder of all of them.
        given: where single ones are instead.

    Raises:
        InputError: nothing was said of it.
        DatasetError: it is not there.
    """
    own = given.get(name) or given.get(name.removesuffix("-dn2"))
    if own is not None:
        return own
    if root is None:
        raise InputError(f"where is it? Give --data DIR, or --data {name}=PATH")
    for place in DATA[name].places:
        if (root / place).exists():
            return root / place
    raise DatasetError(f"{root}: holds no {' or '.join(DATA[name].places)}")


def load_data(name: str, path: Path) -> Dataset:
    """A data set from its authors' files, or from folders of classes.

    Raises:
        DatasetError: it is neither, or damaged, or has other classes.
    """
    data = _loaded(name, path)
    if name in OFFICIAL and len(data.classes) != OFFICIAL[name][0]:
        found = ", ".join(data.classes[:30])
        raise DatasetError(
            f"{path}: {name} has {OFFICIAL[name][0]} classes, here are {len(data.classes)}: {found}"
        )
    return data


def layout(name: str, data: Dataset, place: Path) -> str:
    """Where a data set came from, how many images it has, and whether it is the official split."""
    told = data.layout.replace(f" in {place}", "")
    told += f", {len(data.train):,} images to train, {len(data.test):,} to test"
    if name in OFFICIAL and OFFICIAL[name][1:] != (len(data.train), len(data.test)):
        train, test = OFFICIAL[name][1:]
        told += f": not the official split of {train:,} and {test:,}, as in the paper"
    return told


def _loaded(name: str, path: Path) -> Dataset:
    try:
        return DATA[name].load(path)
    except DatasetError:
        if name == "mvtec" or not path.is_dir():
            raise
        try:
            data = load_dataset(path)
        except InputError:
            data = None
        if data is None or len(data.classes) < 2:
            raise
    return data if len(data.test) else _split(data)


def _split(data: Dataset) -> Dataset:
    """The first 80 % of each class, rounded down, train; the others test."""
    labels = data.train.labels
    is_train = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        is_train[rows[: len(rows) * 4 // 5]] = True
    return Dataset(
        data.name,
        f"{data.layout}, the first 80 % of each class to train",
        data.classes,
        data.train.take(is_train),
        data.train.take(~is_train),
    )
