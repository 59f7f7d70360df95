"""Fashion-MNIST and CIFAR-10, development images: each class in turn is good.

Features are those of the embedded backbone under the root transform. Training images of all classes
are told, so that other classes can be mixed into a good one. All images come from the official
training splits, as in benchmarks/tasks.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import embed
from numpy.typing import NDArray
from tasks import development_tasks

from nnad.backbones import load_backbone
from nnad.transforms import root

SETS = ("fashion-mnist", "cifar-10")
Features = NDArray[np.float32]


class OneClass(NamedTuple):
    """Root features (., D) of one good class: of its training images, those of all other classes,
    and good and odd test images.
    """

    data: str
    train: Features
    others: Features
    good: Features
    odd: Features


def one_class_sets(folder: Path, fashion: Path) -> Iterator[OneClass]:
    """The ten tasks of each set."""
    backbone = load_backbone()
    tasks = [t for t in development_tasks(folder, fashion) if t.data in SETS]
    for data in SETS:
        parts = [
            [root(embed(part, backbone)) for part in (t.train, t.good, t.odd)]
            for t in tasks
            if t.data == data
        ]
        for i, (train, good, odd) in enumerate(parts):
            others = np.vstack([other for j, (other, _, _) in enumerate(parts) if j != i])
            yield OneClass(data, train, others, good, odd)
