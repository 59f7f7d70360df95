"""Which pictures show the same scene: much nearer to each other than to all others around.

Parts of one product all look alike, so no fixed distance tells a second shot of a part from a shot
of a second part. Two steps and a ratio do:

1. Each picture becomes 32 x 32 pixels, smoothed, without its mean brightness and contrast. The
   20 nearest others of each are found exactly (`nnad.neighbors`).
2. From the difference of two such pictures is removed what a small shift, turn or zoom, a gain and
   an offset explain, to first order: the tangent distance of Simard, LeCun and Denker (1993), with
   the tangents at the mean of both. What remains is the residual.

A pair is a near duplicate if its residual is at most RATIO times the largest residual between
either picture and its 20 nearest. That finds bursts of up to 20 pictures among alike ones, whether
the set holds one product or several. A longer burst is its own neighbourhood; its pictures are
found if their residual is at most STILL times the typical one of the set: frames of a still scene.
Both constants were chosen on real pictures: docs/near-duplicates.md.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from nnad.neighbors import Bank

RATIO = 0.2
STILL = 0.05
NEIGHBORS = 20  # others that each picture is compared with
_SIDE = 32
_SMOOTHING = 1.0  # standard deviation of the Gaussian, in pixels of the thumbnail
_SAMPLE = 512  # pictures that tell what is typical, spread evenly
_PAIRS = 256  # at a time: 40 MB
_FLAT = 1.0  # length of a thumbnail without contrast: a fiftieth of a grey level a pixel


def thumbnail(image: Image.Image) -> NDArray[np.float32]:
    """RGB image -> (3072,) of mean 0 and length 1; all 0 if it has no contrast."""
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0)
    pixels = np.asarray(small, dtype=np.float32)
    pixels = gaussian_filter(pixels, (_SMOOTHING, _SMOOTHING, 0), mode="nearest")
    if np.linalg.norm(pixels - pixels.mean(axis=(0, 1))) < _FLAT:
        return np.zeros(pixels.size, dtype=np.float32)
    pixels = pixels.ravel() - pixels.mean()
    return np.asarray(pixels / np.linalg.norm(pixels))


def near_pairs(thumbnails: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows (P, 2) of near duplicates, in order; those without contrast are never among them.

    Args:
        thumbnails: (N, 3072). With fewer than 3 there is nothing to compare with, and no pair.
    """
    kept = np.flatnonzero(thumbnails.any(axis=1))
    if len(kept) < 3:
        return np.empty((0, 2), dtype=np.int64)
    thumbnails = thumbnails[kept]
    own = np.arange(len(kept))
    k = min(NEIGHBORS, len(kept) - 1)
    found = Bank(thumbnails).nearest(thumbnails, k, exclude=own).rows  # (N, k)
    pairs = np.column_stack([np.repeat(own, k), found.ravel()])
    pairs, place = np.unique(np.sort(pairs, axis=1), axis=0, return_inverse=True)
    remaining = residuals(thumbnails, pairs)  # (P,)
    around = remaining[place.reshape(-1, k)].max(axis=1)  # (N,)
    limit = RATIO * around[pairs].min(axis=1)
    limit = np.maximum(limit, STILL * typical_residual(thumbnails))
    return np.asarray(kept[pairs[remaining <= limit]])


def typical_residual(thumbnails: NDArray[np.float32]) -> float:
    """Median over pictures of the residual to the neighbour at a quarter of the ranks.

    A quarter, so that bursts of less than a quarter of all pictures do not change it.
    """
    count = min(len(thumbnails), _SAMPLE)
    sample = thumbnails[np.linspace(0, len(thumbnails) - 1, count).astype(int)]
    proximity = sample @ sample.T
    np.fill_diagonal(proximity, -np.inf)
    others = np.argsort(-proximity, axis=1, kind="stable")[:, (count - 1) // 4]
    return float(np.median(residuals(sample, np.column_stack([np.arange(count), others]))))


def residuals(thumbnails: NDArray[np.float32], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """What remains (P,) of the difference of each pair (P, 2) after the best small alignment."""
    blocks = [pairs[i : i + _PAIRS] for i in range(0, len(pairs), _PAIRS)]
    return np.concatenate(
        [_residuals(thumbnails[a], thumbnails[b]) for a, b in (block.T for block in blocks)]
    )


def _residuals(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    mean = ((a + b) / 2).reshape(-1, _SIDE, _SIDE, 3)
    down, right = np.gradient(mean, axis=(1, 2))
    place = ((np.arange(_SIDE) - (_SIDE - 1) / 2) / _SIDE).astype(np.float32)
    y, x = place[:, None, None], place[None, :, None]
    # shift (2), zoom, turn, gain, offset
    tangents = [down, right, x * right + y * down, x * down - y * right, mean, np.ones_like(mean)]
    basis = np.stack([t.reshape(len(a), -1) for t in tangents], axis=1).astype(np.float64)
    difference = (a - b).astype(np.float64)  # (P, 3072)
    gram = basis @ basis.transpose(0, 2, 1) + 1e-9 * np.eye(len(tangents))  # (P, 6, 6)
    products = basis @ difference[:, :, None]  # (P, 6, 1)
    explained = (np.linalg.solve(gram, products) * products).sum(axis=(1, 2))
    return np.asarray(np.sqrt(np.maximum(np.square(difference).sum(axis=1) - explained, 0)))
