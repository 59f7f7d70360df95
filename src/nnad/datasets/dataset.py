"""What every loader returns: images, their classes, and which classes are good."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.errors import DatasetError, InputError
from nnad.images import Crop, Source


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One part of a data set, N images.

    Attributes:
        names: what each image is called, (N,): its path, or for pixels in memory `train[7]`.
        sources: the images, (N,), as `Detector.fit`, `score` and `read_image` take them.
        labels: the index of each image's class, (N,) int64.
        masks: the path of the picture that marks each image's defect, or None, (N,).
    """

    names: tuple[str, ...]
    sources: tuple[Source, ...]
    labels: NDArray[np.int64]
    masks: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Split({len(self)} images)"

    def take(self, rows: Any) -> "Split":
        """The images at some positions (M,), or where a mask (N,) is true; in that order."""
        chosen = np.arange(len(self))[rows].tolist()
        return Split(
            names=tuple(self.names[i] for i in chosen),
            sources=tuple(self.sources[i] for i in chosen),
            labels=self.labels[chosen],
            masks=tuple(self.masks[i] for i in chosen),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Labelled images, split into train and test.

    Attributes:
        name: what it is called.
        layout: where its files came from, in words.
        classes: the names of the classes; a label is an index into them.
        train: images to learn from.
        test: images to score; empty if the layout has no split.
        good: the indices of the classes that are good; empty where any may be (CIFAR, ...).
        left_out: what was found and not used, in words.
    """

    name: str
    layout: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    good: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()

    def __repr__(self) -> str:
        good = ", ".join(self.classes[i] for i in self.good) or "not set"
        text = f"Dataset({self.name!r}, {self.layout}): {len(self.train)} train, "
        text += f"{len(self.test)} test, {len(self.classes)} classes, good: {good}"
        return text + (f"; left out: {', '.join(self.left_out)}" if self.left_out else "")

    def with_good(self, *classes: str) -> "Dataset":
        """The same images with other good classes, given by name.

        Raises:
            InputError: there is no such class.
        """
        for name in classes:
            if name not in self.classes:
                raise InputError(f"{name!r}: no class of {self.name}; {_shortened(self.classes)}")
        return replace(self, good=tuple(self.classes.index(name) for name in classes))

    def is_anomaly(self, split: Split) -> NDArray[np.bool_]:
        """Which images of `train` or `test` are not of a good class, (N,).

        Raises:
            InputError: no class is good yet.
        """
        if not self.good:
            raise InputError(
                f"{self.name}: which classes are good? Use with_good(name, ...) with some of "
                f"{_shortened(self.classes)}"
            )
        return np.isin(split.labels, self.good, invert=True)

    def good_train(self) -> Split:
        """The training images of the good classes: what to fit on."""
        return self.train.take(~self.is_anomaly(self.train))


def combine(datasets: Iterable[Dataset], name: str) -> Dataset:
    """Several data sets as one, whose classes are called `name of the data set/class`.

    So MVTec AD becomes multimodal: all good images of several categories are good (k-NNN, Table 4).

    Raises:
        InputError: there is none.
    """
    parts = list(datasets)
    if not parts:
        raise InputError("datasets: nothing to combine")
    starts = np.cumsum([0, *(len(d.classes) for d in parts)]).tolist()[:-1]
    return Dataset(
        name=name,
        layout=f"{len(parts)} data sets, the first: {parts[0].layout}",
        classes=tuple(f"{d.name}/{c}" for d in parts for c in d.classes),
        train=_joined([d.train for d in parts], starts),
        test=_joined([d.test for d in parts], starts),
        good=tuple(start + i for d, start in zip(parts, starts, strict=True) for i in d.good),
        left_out=tuple(f"{d.name}: {what}" for d in parts for what in d.left_out),
    )


def _joined(splits: list[Split], starts: list[int]) -> Split:
    return Split(
        names=tuple(name for s in splits for name in s.names),
        sources=tuple(source for s in splits for source in s.sources),
        labels=np.concatenate([s.labels + n for s, n in zip(splits, starts, strict=True)]),
        masks=tuple(mask for s in splits for mask in s.masks),
    )


def file_split(rows: Iterable[tuple[str | Crop, int, str | None]]) -> Split:
    """A split of (file, label, mask); files name themselves."""
    files, labels, masks = zip(*rows, strict=True) if (rows := list(rows)) else ((), (), ())
    return Split(tuple(map(str, files)), files, np.array(labels, np.int64), masks)


def require(path: Path, origin: str) -> Path:
    """`path`, if something is there.

    Raises:
        DatasetError: nothing is there; the message says where the original comes from.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder; the original is {origin}")
    return path


def read_lines(path: Path, origin: str) -> list[str]:
    """The lines of a text file that are not blank, stripped.

    Raises:
        DatasetError: the file is missing or is no text.
    """
    try:
        text = require(path, origin).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def original(path: str | os.PathLike[str]) -> str:
    """The layout of a data set in the files of its authors."""
    return f"original files in {os.fspath(path)}"


def _shortened(classes: tuple[str, ...], count: int = 20) -> str:
    return ", ".join(classes[:count]) + (", ..." if len(classes) > count else "")
