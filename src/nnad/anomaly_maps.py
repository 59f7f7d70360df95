"""Patch scores on the image: maps in pixels, and the regions in which they are high.

No map is stretched by its own extremes: the same value means the same thing in every image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.metrics import TOUCHING
from nnad.patch_features import bilinear

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Region:
    """A connected region of pixels above a threshold.

    Attributes:
        box: left, top, right, bottom in pixels; right and bottom are the first beyond it.
        area: its pixels.
        peak: the highest score in it.
        place: x and y of that pixel.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    place: tuple[int, int]


def to_image(
    grids: Sequence[NDArray[Any]], size: tuple[int, int], seens: Sequence[Box] | None = None
) -> NDArray[np.float32]:
    """Patch scores of the views of an image -> its anomaly map (height, width).

    Each grid is resized bilinearly. Where views overlap the map is their weighted mean; the weight
    of a view falls to 0 towards its edges, so that no seams show.

    Args:
        grids: (H', W') of each view, as from `PatchModel.score`.
        size: width and height of the image in pixels.
        seens: the part of the image that each grid covers, in pixels; it may reach beyond the
            image. All of it by default. Pixels outside of all are NaN: nobody has looked at them.
    """
    width, height = size
    sums = np.zeros((height, width), np.float32)
    weights = np.zeros((height, width), np.float32)
    whole: Box = (0, 0, width, height)
    for grid, seen in zip(grids, seens or [whole] * len(grids), strict=True):
        rows, down, row_weights = _stretching(grid.shape[0], height, seen[1], seen[3])
        columns, across, column_weights = _stretching(grid.shape[1], width, seen[0], seen[2])
        weight = np.outer(row_weights, column_weights)
        sums[rows, columns] += weight * (down @ grid.astype(np.float32) @ across.T)
        weights[rows, columns] += weight
    with np.errstate(invalid="ignore"):
        return np.divide(sums, weights, out=sums)


def _stretching(
    n_places: int, n_pixels: int, start: float, stop: float
) -> tuple[slice, NDArray[np.float32], NDArray[np.float32]]:
    """The pixels whose centres lie between start and stop, how to sample places at them
    (P, n_places), and their weights (P,), 1 in the middle and 0 at start and stop.
    """
    first = max(0, math.floor(start + 0.5))
    last = max(first, min(n_pixels, math.ceil(stop - 0.5)))
    extent = stop - start
    samples = bilinear(n_places, last - first, (first - start) / extent, (last - start) / extent)
    centres = np.arange(first, last) + 0.5
    weights = 2 * np.minimum(centres - start, stop - centres) / extent
    return slice(first, last), samples, weights.astype(np.float32)


def patch_box(seen: Box, shape: tuple[int, ...], row: Any, column: Any) -> Box:
    """What a patch covers: left, top, right, bottom in pixels of the image.

    Args:
        seen: the part of the image that the grid covers.
        shape: (H', W') of the grid.
        row, column: of the patch; arrays give arrays.
    """
    left, top, right, bottom = seen
    wide, high = (right - left) / shape[1], (bottom - top) / shape[0]
    x, y = left + column * wide, top + row * high
    return x, y, x + wide, y + high


def regions(anomaly_map: NDArray[Any], threshold: float) -> list[Region]:
    """The 8-connected regions of a map (H, W) above the threshold, the highest peak first."""
    from scipy import ndimage

    labels, _ = ndimage.label(anomaly_map > threshold, TOUCHING)
    found = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == label
        scores = np.where(inside, anomaly_map[rows, columns], -np.inf)
        y, x = np.unravel_index(int(scores.argmax()), scores.shape)
        found.append(
            Region(
                box=(columns.start, rows.start, columns.stop, rows.stop),
                area=int(inside.sum()),
                peak=float(scores[y, x]),
                place=(columns.start + int(x), rows.start + int(y)),
            )
        )
    return sorted(found, key=lambda region: -region.peak)
