"""What anybody can see of a picture: light, contrast, colour, sharpness, size.

Hints, nothing is decided by them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import laplace
from scipy.stats import mannwhitneyu

MEASURES = ("brightness", "contrast", "saturation", "sharpness", "size")
_SIDE = 512  # pixels; what is finer hardly reaches the network
_LEVEL = 0.01


@dataclass(frozen=True, slots=True)
class Compared:
    """Medians of one measure over good and new pictures."""

    measure: str
    good: float
    new: float
    differs: bool  # Mann-Whitney test, p <= 0.01


def measures(image: Image.Image) -> tuple[float, ...]:
    """Numbers of an RGB picture, in the order of `MEASURES`.

    Mean and standard deviation of the grey levels, 0..255; mean of (max - min) / max over the three
    channels, 0..1; variance of the Laplacian of the grey levels (Pech-Pacheco et al., ICPR 2000);
    square root of the number of pixels. All but the size are taken at 512 pixels a side or less.
    """
    size = (image.width * image.height) ** 0.5
    if max(image.size) > _SIDE:
        image = image.copy()
        image.thumbnail((_SIDE, _SIDE), reducing_gap=2.0)
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    channels = np.asarray(image, dtype=np.float64)  # (H, W, 3)
    highest = channels.max(axis=2)
    saturation = (highest - channels.min(axis=2)) / np.maximum(highest, 1)
    return (
        float(grey.mean()),
        float(grey.std()),
        float(saturation.mean()),
        float(laplace(grey).var()),
        size,
    )


def compare(
    good: Sequence[tuple[float, ...]], new: Sequence[tuple[float, ...]]
) -> tuple[Compared, ...]:
    """What `measures` found in good and in new pictures, side by side."""
    return tuple(
        Compared(name, float(np.median(a)), float(np.median(b)), _differ(a, b))
        for name, a, b in zip(MEASURES, np.transpose(good), np.transpose(new), strict=True)
    )


def _differ(good: NDArray[np.float64], new: NDArray[np.float64]) -> bool:
    return bool(mannwhitneyu(good, new).pvalue <= _LEVEL)
