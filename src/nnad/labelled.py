"""Labelled images: good ones for the test, masks of defects, and what grey levels alone tell."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nnad.datasets import Dataset, Split
from nnad.errors import ImageError, InputError
from nnad.images import Source, read_image
from nnad.neighbors import Bank
from nnad.operators import make_operator

LEAST = 10  # good test images, and anomalies, that a comparison needs


def held_out(dataset: Dataset, every: int = 4) -> Dataset:
    """The data set with good test images: where there are fewer than 10, every fourth good training
    image becomes one. Images of training folders that are no good ones are tested, too.

    Raises:
        InputError: no class is good yet.
    """
    odd = dataset.is_anomaly(dataset.train)
    moved = odd.copy()
    tested = len(dataset.test) - int(dataset.is_anomaly(dataset.test).sum())
    if tested < LEAST:
        moved[np.flatnonzero(~odd)[every - 1 :: every]] = True
    if not moved.any():
        return dataset
    spared, test = dataset.train.take(moved), dataset.test
    joined = Split(
        names=test.names + spared.names,
        sources=test.sources + spared.sources,
        labels=np.concatenate([test.labels, spared.labels]),
        masks=test.masks + spared.masks,
    )
    return replace(dataset, train=dataset.train.take(~moved), test=joined)


def read_defect(path: str) -> NDArray[np.bool_]:
    """(H, W) where a mask marks a defect: its pixels above half of its largest value.

    So masks of 0 and 1, of 0 and 255, and those whose edges JPEG has blurred mean the same. Of
    several levels, as of classes, the lower ones are no defect: save such masks as one level.

    Raises:
        ImageError: it cannot be read.
    """
    levels: NDArray[np.uint8] = np.asarray(read_image(path).convert("L"))
    marked: NDArray[np.bool_] = levels > levels.max() / 2
    return marked


def check_masks(split: Split) -> None:
    """That each mask can be read and has the size of its image; images that cannot be read are
    left to whoever embeds them.

    Raises:
        InputError: one does not; the message names its file.
    """
    for path, source in zip(split.masks, split.sources, strict=True):
        if path is None:
            continue
        try:
            height, width = read_defect(path).shape
        except ImageError as error:
            raise InputError(f"mask {error}") from None
        try:
            size = read_image(source).size
        except ImageError:
            continue
        if size != (width, height):
            raise InputError(
                f"mask {path}: {width} x {height} pixels, its image {size[0]} x {size[1]}; "
                f"scale it to the image"
            )


def grey_scores(good: Sequence[Source], new: Sequence[Source]) -> NDArray[np.float64]:
    """(Q,) k-NN scores by seven statistics of an image's grey levels, each standardised over the
    good images. Where they tell anomalies from good images, light may be all that differs.

    Raises:
        ImageError: an image cannot be read.
    """
    levels = _grey_levels(good)
    centre, spread = levels.mean(axis=0), levels.std(axis=0) + 1e-9
    fitted = make_operator("knn").fit(Bank((levels - centre) / spread))
    return fitted.score((_grey_levels(new) - centre) / spread)


def _grey_levels(sources: Sequence[Source]) -> NDArray[np.float32]:
    """(N, 7) mean, deviation, least, most and quartiles of each image's grey levels."""
    rows = []
    for source in sources:
        grey = np.asarray(read_image(source).convert("L"), np.float32)
        quartiles = np.percentile(grey, [25, 50, 75])
        rows.append([grey.mean(), grey.std(), grey.min(), grey.max(), *quartiles])
    return np.array(rows, np.float32)
