"""Patch scores on the image: maps in pixels, and the regions in which they are high.

No map is stretched by its own extremes: the same value means the same thing in every image.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnad.metrics import TOUCHING
from nnad.patch_features import bilinear

Box = tuple[float, float, float, float]  # left, top, right, bottom


class Region(NamedTuple):
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
    scores: NDArray[Any], size: tuple[int, int], seen: Box | None = None
) -> NDArray[np.float32]:
    """Patch scores (H', W') -> an anomaly map (height, width), bilinearly.

    Args:
        scores: of the grid of places.
        size: width and height of the image in pixels.
        seen: the part of the image that the grid covers, in pixels; it may reach beyond the image.
            All of it by default. Pixels outside of it are NaN: nobody has looked at them.
    """
    width, height = size
    left, top, right, bottom = seen or (0, 0, width, height)
    rows = bilinear(scores.shape[0], height, -top / (bottom - top), (height - top) / (bottom - top))
    columns = bilinear(
        scores.shape[1], width, -left / (right - left), (width - left) / (right - left)
    )
    stretched = rows @ scores.astype(np.float32) @ columns.T
    y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
    stretched[(y < top) | (y > bottom)] = np.nan
    stretched[:, (x < left) | (x > right)] = np.nan
    return stretched


def regions(anomaly_map: NDArray[Any], threshold: float) -> list[Region]:
    """The 8-connected regions of a map (H, W) above the threshold, the highest peak first."""
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
