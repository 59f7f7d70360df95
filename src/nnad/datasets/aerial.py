"""DIOR: objects in aerial images, cut out by their boxes."""

import os
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from nnad.datasets.dataset import Dataset, Split, file_split, original, read_lines, require
from nnad.errors import DatasetError
from nnad.images import Crop

_ORIGIN = (
    "DIOR: Annotations.zip, JPEGImages-trainval.zip, JPEGImages-test.zip and ImageSets.zip from "
    "https://gcheng-nwpu.github.io"
)


def dior(folder: str | os.PathLike[str], *, min_side: int = 120, more_than: int = 50) -> Dataset:
    """DIOR (Li et al. 2020): every large object of aerial images, cut out by its box.

    As in DN2 (Sec. 4.1): objects whose box has at least 120 pixels in each axis, and classes with
    more than 50 of them (19 of 20, it says). Train is the official trainval. The paper does not say
    where it counts; here it is in train and test together.

    Args:
        folder: holds `Annotations` (or in it `Horizontal Bounding Boxes`), `JPEGImages-trainval`,
            `JPEGImages-test` and `ImageSets/Main` (or `Main`), as the archives unpack.
        min_side: the smallest width and height of a box, in pixels.
        more_than: classes with so many objects or fewer are left out.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    folder = Path(folder)
    notes = folder / "Annotations" / "Horizontal Bounding Boxes"
    notes = notes if notes.is_dir() else notes.parent
    lists = folder / "ImageSets" / "Main"
    lists = lists if lists.is_dir() else folder / "Main"
    trainval = ["trainval"] if (lists / "trainval.txt").is_file() else ["train", "val"]
    objects: dict[str, list[tuple[Crop, str]]] = {}  # crop and class
    for part, names in (("trainval", trainval), ("test", ["test"])):
        pictures = require(folder / f"JPEGImages-{part}", _ORIGIN)
        objects[part] = []
        numbers = [n for name in names for n in read_lines(lists / f"{name}.txt", _ORIGIN)]
        for number in numbers:
            picture = pictures / f"{number}.jpg"
            for kind, box in _boxes(require(notes / f"{number}.xml", _ORIGIN)):
                if min(box[2] - box[0], box[3] - box[1]) >= min_side:
                    objects[part].append((Crop(str(require(picture, _ORIGIN)), box), kind))
    counts = Counter(kind for part in objects.values() for _, kind in part)
    classes = sorted(kind for kind, count in counts.items() if count > more_than)
    if not classes:
        raise DatasetError(f"{folder}: no class has more than {more_than} objects of that size")

    def split(part: str) -> Split:
        kept = ((crop, kind) for crop, kind in objects[part] if kind in classes)
        return file_split((crop, classes.index(kind), None) for crop, kind in kept)

    few = sorted(kind for kind in counts if kind not in classes)
    left_out = tuple(f"{kind} ({counts[kind]} objects)" for kind in few)
    splits = split("trainval"), split("test")
    return Dataset("DIOR", original(folder), tuple(classes), *splits, left_out=left_out)


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses the declaration that could define entities to expand or files to read."""

    def doctype(self, name: str, *_: Any) -> None:
        raise DatasetError(f"a document type, {name[:40]!r}, has no place here")


def _boxes(path: Path) -> list[tuple[str, tuple[int, int, int, int]]]:
    """The class and the box (left, top, right, bottom) of each object in one annotation."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    try:
        parser = ElementTree.XMLParser(target=_NoDoctype())  # noqa: S314
        parser.feed(path.read_bytes())
        boxes = []
        for item in parser.close().iter("object"):
            kind = (item.findtext("name") or "").strip()
            left, top, right, bottom = (float(item.findtext(f"bndbox/{c}", "")) for c in corners)
            if not kind:
                raise ValueError("an object has no name")
            boxes.append((kind, (int(left), int(top), int(right), int(bottom))))
        return boxes
    except (ElementTree.ParseError, ValueError, OverflowError, OSError) as error:
        raise DatasetError(f"{path}: damaged, or not the original file: {error}") from None
