"""The images that a detector is given, before they are read."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice

import numpy as np
from PIL import Image

from nnad.errors import ImageError, InputError
from nnad.export_check import PICTURES
from nnad.features import own
from nnad.image_files import find_images
from nnad.images import Source, collected_warnings, read_image
from nnad.int8 import CALIBRATION_IMAGES
from nnad.lists import GOOD_NAMES, LIST_SUFFIXES, read_list


def check_labels(images: Source | Iterable[Source]) -> None:
    """Raise an `InputError` if a list among `images` labels one as anything but good.

    Lists that tell no labels, or the same for all, are taken as they are.
    """
    if isinstance(images, str | os.PathLike):
        images = [images]
    for item in images if isinstance(images, list | tuple) else ():
        if isinstance(item, str | os.PathLike) and os.fspath(item).lower().endswith(LIST_SUFFIXES):
            labels = {entry.label for entry in read_list(os.fspath(item)) if entry.label}
            odd = sorted(label for label in labels if label.lower() not in GOOD_NAMES)
            if odd and len(labels) > 1:
                raise InputError(
                    f"{item}: images labelled {odd[0]!r} are in this list; to learn from, it must "
                    f"name good images only"
                )


def named_images(
    images: Source | Iterable[Source],
) -> tuple[Iterable[tuple[str, Source]], int | None]:
    """Named images and their number; an iterator is not drained, so its number is unknown."""
    named = find_images(images)
    if isinstance(images, Iterator):
        return named, None
    listed = list(named)
    return listed, len(listed)


def without_repeats(named: Iterable[tuple[str, Source]]) -> list[tuple[str, Source]]:
    """A file that was given twice, however its path is spelt, counts once."""
    kept: dict[str, tuple[str, Source]] = {}
    for name, source in named:
        place = os.path.realpath(source) if isinstance(source, str | os.PathLike) else name
        kept.setdefault(place, (name, source))
    return list(kept.values())


def keeping_first(
    named: Iterable[tuple[str, Source]], first: list[tuple[str, Source]]
) -> Iterator[tuple[str, Source]]:
    """The same images; the first few go into `first` as well."""
    for name, source in named:
        source = own(source)
        if len(first) < PICTURES:
            first.append((name, source))
        yield name, source


def calibration_sample(
    named: Iterable[tuple[str, Source]], total: int | None
) -> tuple[list[tuple[str, Source]], Iterable[tuple[str, Source]]]:
    """Images evenly spread over a list, or the first ones of an iterator; and all of them."""
    if total is None:
        named = iter(named)
        first = [(name, own(source)) for name, source in islice(named, CALIBRATION_IMAGES)]
        return first, chain(first, named)
    listed = list(named)
    chosen = np.linspace(0, total - 1, min(total, CALIBRATION_IMAGES)).round().astype(int)
    return [listed[i] for i in chosen], listed


def readable(named: Iterable[tuple[str, Source]]) -> Iterator[Image.Image]:
    """The images that can be read; `fit` tells of the others when it embeds them."""
    for name, source in named:
        with suppress(ImageError), collected_warnings():
            yield read_image(source, name)
