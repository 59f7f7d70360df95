"""The six development sets, as tasks: good training images, good and odd test images.

DIR has folders cifar10/train/<class>, magnetic_tile (MVTec layout), clothing_small/<split>/<class>
and chest_xray_224/{train,test}/<class>; ELPV comes with its pip package. Fashion-MNIST and CIFAR-10
take their development images from the official training splits only.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import elpv, fashion_mnist
from numpy.typing import NDArray


class Task(NamedTuple):
    """Images as anything that `find_images` takes."""

    data: str
    train: Sequence[Any]
    good: Sequence[Any]
    odd: Sequence[Any]


def development_tasks(folder: Path, fashion: Path) -> Iterator[Task]:
    """Tasks of all six sets; those of one set follow each other."""
    rng = np.random.default_rng(0)
    cells, probability = elpv()
    good = [cells[i] for i in np.flatnonzero(probability == 0)]
    good = [good[i] for i in rng.permutation(len(good))]
    half = len(good) // 2
    odd = [cells[i] for i in np.flatnonzero(probability >= 2 / 3)]
    yield Task("elpv", good[:half], good[half:], odd)

    images, labels = fashion_mnist(fashion, "train")
    chosen = np.concatenate([np.flatnonzero(labels == c)[:700] for c in range(10)])
    yield from _one_class("fashion-mnist", list(images[chosen]), labels[chosen], 600, rng)

    root = folder / "cifar10" / "train"
    classes = sorted(p.name for p in root.iterdir() if p.is_dir())
    paths = [p for name in classes for p in sorted((root / name).glob("*"))]
    yield from _one_class("cifar-10", paths, np.array([p.parent.name for p in paths]), 800, rng)

    root = folder / "magnetic_tile"
    train, held_out = (sorted((root / p / "good").glob("*")) for p in ("train", "test"))
    defects = [p for p in sorted((root / "test").glob("*/*")) if p.parent.name != "good"]
    yield Task("magnetic_tile", train, held_out, defects)

    root = folder / "clothing_small"
    test = sorted((root / "test").glob("*/*")) + sorted((root / "validation").glob("*/*"))
    for path in sorted(p for p in (root / "train").iterdir() if p.is_dir()):
        same = [p for p in test if p.parent.name == path.name]
        others = [p for p in test if p.parent.name != path.name]
        yield Task("clothing", sorted(path.glob("*")), same, others)

    root = folder / "chest_xray_224"
    parts = [("train", "NORMAL"), ("test", "NORMAL"), ("test", "PNEUMONIA")]
    yield Task("chest_xray", *(sorted((root / a / b).glob("*")) for a, b in parts))


def _one_class(
    data: str, images: list[Any], labels: NDArray[Any], train: int, rng: np.random.Generator
) -> Iterator[Task]:
    """Each class in turn is good; its first `train` images train, the rest of all classes test."""
    is_train = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        is_train[np.flatnonzero(labels == label)[:train]] = True
    for label in np.unique(labels):
        odd = np.flatnonzero(~is_train & (labels != label))
        odd = odd[rng.permutation(len(odd))[:600]]
        is_good = labels == label
        parts = (is_train & is_good).nonzero()[0], (~is_train & is_good).nonzero()[0], odd
        yield Task(data, *([images[i] for i in part] for part in parts))
