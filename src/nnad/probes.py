"""Three fixed pictures by which two versions of one network are compared."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def probe_images(size: int) -> NDArray[np.uint8]:
    """(3, size, size, 3): waves, a checked ramp and something like noise; the same everywhere."""
    y, x = np.mgrid[:size, :size].astype(np.int64)
    waves = [128 + 100 * np.sin(x * (c + 1) / 17 + y * (3 - c) / 23) for c in range(3)]
    ramp = [(x * 255 // size + 90 * ((x // 16 + y // 16 + c) % 2)) % 256 for c in range(3)]
    noise = [((x * 7919 + y * 104729 + c * 1299709) ** 2 // 97) % 256 for c in range(3)]
    return np.stack([np.stack(planes, axis=2) for planes in (waves, ramp, noise)]).astype(np.uint8)


def largest_difference(found: Any, expected: Any) -> float:
    """(N, D), (N, D) -> the largest |found - expected| / |expected| of a row, in Euclidean norm."""
    found, expected = np.float64(found), np.float64(expected)
    norms = np.maximum(np.linalg.norm(expected, axis=1), 1e-30)
    return float((np.linalg.norm(found - expected, axis=1) / norms).max())
