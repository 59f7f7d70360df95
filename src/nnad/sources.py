"""The images that a detector is given, before they are read."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice

import numpy as np
from PIL import Image

from nnad.errors import ImageError
from nnad.export_check import PICTURES
from nnad.features import own
from nnad.image_files import find_images
from nnad.images import Source, collected_warnings, read_image
from nnad.int8 import CALIBRATION_IMAGES


def named_images(
    images: Source | Iterable[Source], *, only_good: bool = False
) -> tuple[Iterable[tuple[str, Source]], int | None]:
    """Named images and their number; an iterator is not drained, so its number is unknown."""
    named = find_images(images, only_good=only_good)
    if isinstance(images, Iterator):
        return named, None
    listed = list(named)
    return listed, len(listed)


def good_images(
    images: Source | Iterable[Source],
) -> tuple[Iterable[tuple[str, Source]], int | None]:
    """As `named_images`, of good images only, each file once."""
    named, total = named_images(images, only_good=True)
    if total is None:
        return named, None
    listed = without_repeats(named)
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
