"""What a network is shown of an image: the whole frame, or tiles in which small defects stay large.

    image -> mask -> region of interest -> whole frame, or tiles -> views, each with its patches

A frame of 8,000 x 2,000 pixels that is resized to 320 x 320 loses every defect below 25 pixels. In
tiles the network sees it at native detail; the price is one pass a tile.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from nnad.anomaly_maps import Box
from nnad.backbones import Backbone
from nnad.cores import usable_cores
from nnad.errors import ImageError, InputError
from nnad.features import in_threads
from nnad.images import Source, read_image
from nnad.operators.arguments import check_count
from nnad.patch_features import Maps, patch_stages
from nnad.preprocessing import Preprocessing

PixelBox = tuple[int, int, int, int]


class View(NamedTuple):
    """The patches of one look at an image.

    Attributes:
        stages: (H', W', C) of each stage of the network, all on the same grid.
        seen: left, top, right, bottom in pixels of the whole image that the grid covers. It reaches
            beyond the image where a letterbox or mirrored pixels filled the input up.
    """

    stages: list[Maps]
    seen: Box


@dataclass(frozen=True)
class Tiles:
    """Squares that cover an image row by row.

    Attributes:
        size: side in pixels of the image; None for the backbone's input size, which is native
            detail: one pixel of the image is one of the input. Others are resized to that.
        overlap: the least share of the side that neighbours have in common, 0 to 0.5. Patches at
            the edge of a tile see less around them, so that the map there is blended.

    Raises:
        InputError: one is out of range.
    """

    size: int | None = None
    overlap: float = 0.25

    def __post_init__(self) -> None:
        if self.size is not None:
            check_count("size", self.size, least=16)
            if self.size > 4096:
                raise InputError(f"size={self.size!r}; expected 16 to 4096 pixels")
        if not 0 <= self.overlap <= 0.5:
            raise InputError(f"overlap={self.overlap!r}; expected a share from 0 to 0.5")

    def __str__(self) -> str:
        side = "tiles of the network's size" if self.size is None else f"{self.size} pixel tiles"
        return f"{side}, overlapping by {self.overlap:.0%} or more"

    def boxes(self, width: int, height: int, size: int) -> list[PixelBox]:
        """Left, top, right, bottom of each tile.

        All have the full size: the last of a row or column is moved back inside the image. Only
        where the image is smaller than a tile does the one tile reach beyond it, to the right or
        below.

        Args:
            width, height: of the image in pixels.
            size: of a tile, unless `self.size` says another.
        """
        side = self.size or size
        step = side - math.ceil(self.overlap * side)
        lefts, tops = (_starts(length, side, step) for length in (width, height))
        return [(left, top, left + side, top + side) for top in tops for left in lefts]


def _starts(length: int, side: int, step: int) -> list[int]:
    last = max(0, length - side)
    return [*range(0, last, step), last]


def views(
    backbone: Backbone,
    image: Image.Image,
    tiles: Tiles | None = None,
    roi: Box | None = None,
    *,
    workers: int = 1,
) -> Iterator[View]:
    """The patches of an image, one view after the other.

    Args:
        backbone: one that was loaded with the pooling `map`. With tiles its `geometry` does not
            count, since each tile is seen whole. Its mask is laid over the whole image.
        image: RGB, of any size.
        tiles: None for the whole frame as one view. Where the image is smaller than a tile it is
            continued by its mirror image, which brings in no edges that are not in it.
        roi: left, top, right, bottom of the part that counts, by default the backbone's `region`;
            as fractions of the width and height if all are at most 1, else in pixels.
        workers: threads that embed tiles, few of which are in memory at a time.

    Raises:
        InputError: roi is no box, or the backbone has a region, too; or flips, or gives no maps.
        ImageError: roi lies outside of the image.
    """
    own = backbone.preprocessing
    if roi is not None and own.region is not None:
        raise InputError("roi: the backbone has a region; give one of both")
    area = own.region if roi is None else roi
    box = (0, 0, *image.size) if area is None else pixel_box(area, image.size)
    part = own.masked(image)
    part = part if area is None else part.crop(box)
    plain = replace(own, mask=b"", region=None)
    if tiles is None:
        stages = patch_stages(backbone, part, preprocessing=plain)
        return iter([View(stages, _moved(plain.seen(*part.size), box))])
    return _tiled(backbone, part, box, tiles, replace(plain, geometry="whole"), workers)


def _tiled(
    backbone: Backbone,
    part: Image.Image,
    box: PixelBox,
    tiles: Tiles,
    preprocessing: Preprocessing,
    workers: int,
) -> Iterator[View]:
    """The views of the part of an image within a box."""

    def embed(tile: Source, name: str) -> list[Maps]:
        return patch_stages(backbone, read_image(tile, name), preprocessing=preprocessing)

    boxes = tiles.boxes(*part.size, preprocessing.size)
    cut = ((f"tile {i}", _cut(part, tile)) for i, tile in enumerate(boxes))
    for tile, (_, stages) in zip(boxes, in_threads(cut, embed, workers=workers), strict=True):
        if isinstance(stages, ImageError):
            raise stages
        yield View(stages, _moved(tile, box))


def _cut(image: Image.Image, box: PixelBox) -> Image.Image:
    """A part of an image, which goes on as its mirror image to the right and below."""
    left, top, right, bottom = box
    tile = image.crop((left, top, min(right, image.width), min(bottom, image.height)))
    beyond = ((0, bottom - top - tile.height), (0, right - left - tile.width), (0, 0))
    if beyond == ((0, 0), (0, 0), (0, 0)):
        return tile
    return Image.fromarray(np.pad(np.asarray(tile), beyond, mode="symmetric"))


def _moved(box: Box, origin: PixelBox) -> Box:
    left, top, right, bottom = box
    return left + origin[0], top + origin[1], right + origin[0], bottom + origin[1]


def views_of(
    images: Iterable[tuple[str, Source]],
    backbone: Backbone,
    tiles: Tiles | None = None,
    roi: Box | None = None,
    *,
    workers: int | None = None,
) -> Iterator[tuple[str, Iterable[View] | ImageError]]:
    """Yield (name, views) or (name, the error) of many images, in order; each is decoded once.

    Args:
        images: pairs of name and picture, as from `find_images`.
        backbone, tiles, roi: see `views`.
        workers: threads; one for each core that this process may use by default. They share whole
            frames, or the tiles of one image: those are embedded while they are taken, so take them
            before the next image.
    """
    backbone.gives_maps  # noqa: B018 (starts the network before threads do)

    def look(source: Source, name: str) -> Iterator[View]:
        image = read_image(source, name)
        try:
            return views(backbone, image, tiles, roi, workers=workers or usable_cores())
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None

    if tiles is None:
        yield from in_threads(
            images, lambda source, name: list(look(source, name)), workers=workers
        )
        return
    for name, source in images:
        try:
            found: Iterable[View] | ImageError = look(source, name)
        except ImageError as error:
            found = error
        yield name, found


def pixel_box(roi: Box, size: tuple[int, int]) -> PixelBox:
    """The region of interest in whole pixels, one at least, within an image of that size.

    Args:
        roi: left, top, right, bottom, as fractions if all are at most 1, else in pixels.
        size: width and height of the image.

    Raises:
        InputError: it is no box.
        ImageError: it lies outside of the image.
    """
    left, top, right, bottom = roi
    if not (np.isfinite(roi).all() and 0 <= left < right and 0 <= top < bottom):
        raise InputError(
            f"roi={roi!r}; expected left, top, right, bottom with 0 <= left < right and "
            f"0 <= top < bottom, as fractions or in pixels"
        )
    width, height = size
    if max(roi) <= 1:
        left, right = (round(x * width) for x in (left, right))
        top, bottom = (round(y * height) for y in (top, bottom))
        left, top = min(left, width - 1), min(top, height - 1)
    left, top = round(left), round(top)
    if left >= width or top >= height:
        raise ImageError(f"roi {tuple(roi)} lies outside of the image, {width} x {height} pixels")
    right, bottom = min(round(right), width), min(round(bottom), height)
    return left, top, max(right, left + 1), max(bottom, top + 1)
