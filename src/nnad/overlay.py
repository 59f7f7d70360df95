"""Anomaly maps as pictures: an overlay for people, a mask and the map itself for programs.

Colours stand for the good images' scale, never for the extremes of one image: 0 is what is usual,
1 the threshold, and from 2 on the colour stays. So a good image looks plain, and the same colour
means the same thing in every image of a model.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from nnad.anomaly_maps import Region, regions
from nnad.errors import InputError
from nnad.files import replacing
from nnad.metrics import TOUCHING
from nnad.report import FONT, INK, MARGIN, RED

_STOPS = (0.0, 0.5, 1.0, 2.0)  # on the scale of the good images
_COLOURS = ((0, 60, 160), (0, 150, 150), (255, 220, 0), (220, 0, 0))  # at the stops
_OPACITY = (0.0, 0.2, 0.5, 0.75)
_UNSEEN = (128, 128, 128)  # half of it, where nobody looked
_PIXELS, _LONGEST, _SHORTEST = 2_000_000, 4000, 320  # of a picture that is shown
_BAR, _LINE = (240, 12), 16  # the legend's colours; a line of text


def overlay(
    image: Image.Image,
    anomaly_map: NDArray[Any],
    usual: float = 0.0,
    threshold: float = 1.0,
    found: Sequence[Region] | None = None,
) -> Image.Image:
    """The image with its map in colours, the outline and box of each region, and a legend below.

    Large images are shrunk to 2 million pixels and 4,000 on a side, small ones are enlarged. Where
    the map shrinks its highest value counts, so that no small defect disappears.

    Args:
        image: RGB.
        anomaly_map: (height, width) of it; NaN where nobody looked, which is shown in grey.
        usual, threshold: what 0 and 1 of the colour scale are in units of the map.
        found: the regions to mark, by default all above the threshold.

    Raises:
        InputError: the map is not of the image's size, or the threshold not above what is usual.
    """
    if anomaly_map.shape != image.size[::-1]:
        raise InputError(f"anomaly_map: shape {anomaly_map.shape} for {image.size[::-1]} pixels")
    if not usual < threshold:
        raise InputError(f"threshold={threshold!r}; expected more than usual={usual!r}")
    found = regions(anomaly_map, threshold) if found is None else found
    size = shown_size(*image.size)
    levels = (resampled(anomaly_map, size) - usual) / (threshold - usual)
    pixels = coloured(np.asarray(image.resize(size)), levels)
    odd = levels > 1
    pixels[odd & ~ndimage.binary_erosion(odd, TOUCHING)] = RED
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    per_x, per_y = size[0] / image.width, size[1] / image.height
    for left, top, right, bottom in (region.box for region in found):
        corner = max(0, left * per_x - 3), max(0, top * per_y - 3)
        other = min(size[0] - 1, right * per_x + 2), min(size[1] - 1, bottom * per_y + 2)
        draw.rectangle((*corner, *other), outline=RED)
    return _with_legend(picture, unseen=bool(np.isnan(levels).any()))


def coloured(pixels: NDArray[np.uint8], levels: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) under the colours of levels (H, W): 0 is usual, 1 the threshold.

    Where the level is NaN they are grey.
    """
    known = np.nan_to_num(levels, nan=0.0)
    colours = [np.interp(known, _STOPS, channel) for channel in zip(*_COLOURS, strict=True)]
    opacity = np.interp(known, _STOPS, _OPACITY)[:, :, None]
    mixed = (1 - opacity) * pixels + opacity * np.stack(colours, axis=-1)
    unseen = np.isnan(levels)
    mixed[unseen] = (mixed[unseen] + _UNSEEN) / 2
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def shown_size(width: int, height: int) -> tuple[int, int]:
    """How large an image is shown."""
    scale = min(1.0, _LONGEST / max(width, height), math.sqrt(_PIXELS / (width * height)))
    if max(width, height) < _SHORTEST:
        scale = math.ceil(_SHORTEST / max(width, height))
    return max(1, int(width * scale)), max(1, int(height * scale))


def resampled(anomaly_map: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """A map (H, W) -> (height, width): the highest value of each block, or each value repeated."""
    for axis, n_out in enumerate(size[::-1]):
        n_in = anomaly_map.shape[axis]
        starts = np.arange(n_out) * n_in // n_out
        if n_out < n_in:
            anomaly_map = np.fmax.reduceat(anomaly_map, starts, axis=axis)
        elif n_out > n_in:
            anomaly_map = np.take(anomaly_map, starts, axis=axis)
    return anomaly_map


def mask(anomaly_map: NDArray[Any], threshold: float = 1.0) -> Image.Image:
    """A map (H, W) -> a grey picture, 255 where it is above the threshold and 0 elsewhere."""
    return Image.fromarray((anomaly_map > threshold).astype(np.uint8) * np.uint8(255))


def save_overlay(
    path: str | os.PathLike[str],
    image: Image.Image,
    anomaly_map: NDArray[Any],
    usual: float = 0.0,
    threshold: float = 1.0,
    found: Sequence[Region] | None = None,
) -> None:
    """Write an `overlay` as PNG; an `InputError` if that is not possible."""
    _save_picture(path, overlay(image, anomaly_map, usual, threshold, found), "PNG")


def save_mask(
    path: str | os.PathLike[str], anomaly_map: NDArray[Any], threshold: float = 1.0
) -> None:
    """Write a `mask` as PNG; an `InputError` if that is not possible."""
    _save_picture(path, mask(anomaly_map, threshold), "PNG")


def save_map(path: str | os.PathLike[str], anomaly_map: NDArray[Any]) -> None:
    """Write a map (H, W) as float32, in its own units, as `.tiff` or `.npy`; NaN stays.

    Raises:
        InputError: another extension, or it cannot be written.
    """
    values = np.ascontiguousarray(anomaly_map, dtype=np.float32)
    match Path(path).suffix.lower():
        case ".npy":
            with _replacing(path) as file:
                np.save(file, values, allow_pickle=False)
        case ".tif" | ".tiff":
            _save_picture(path, Image.fromarray(values), "TIFF")
        case _:
            raise InputError(f"{path}: unknown kind of map; use .tiff or .npy")


def _save_picture(path: str | os.PathLike[str], picture: Image.Image, kind: str) -> None:
    with _replacing(path) as file:
        picture.save(file, format=kind)


@contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    try:
        with replacing(Path(path)) as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _with_legend(picture: Image.Image, *, unseen: bool) -> Image.Image:
    """The picture, and below it what its colours mean."""
    width, height = _BAR
    lines = ["red line and box: above the threshold", *(["grey: not looked at"] if unseen else [])]
    needed = 2 * MARGIN + max(width, *(math.ceil(FONT.getlength(line)) for line in lines))
    below = 2 * MARGIN + height + (1 + len(lines)) * _LINE
    canvas = Image.new("RGB", (max(picture.width, needed), picture.height + below), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    y = picture.height + MARGIN
    ramp = np.tile(np.linspace(0, _STOPS[-1], width), (height, 1))
    over = np.full((height, width, 3), 200, np.uint8)
    canvas.paste(Image.fromarray(coloured(over, ramp)), (MARGIN, y))
    for level, text, anchor in ((0, "usual", "la"), (1, "threshold", "ma"), (2, "twice", "ra")):
        x = MARGIN + round(level / _STOPS[-1] * (width - 1))
        draw.line((x, y, x, y + height + 2), fill=INK)
        draw.text((x, y + height + 2), text, fill=INK, font=FONT, anchor=anchor)
    for i, line in enumerate(lines):
        draw.text((MARGIN, y + height + 2 + (1 + i) * _LINE), line, fill=INK, font=FONT)
    return canvas
