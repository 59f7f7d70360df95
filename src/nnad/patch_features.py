"""Patch features: what a network sees at each place of an image.

    stages (H, W, C) each -> mean over 3 x 3 places -> aligned to the finest grid
        -> each scaled, whitened -> side by side: (H', W', D)

The first line is PatchCore's locally aware patch features (Roth et al., "Towards Total Recall in
Industrial Anomaly Detection", CVPR 2022, section 3.1); the second keeps a few strong directions and
blank backgrounds from deciding all distances.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnad.backbones import Backbone
from nnad.preprocessing import Preprocessing

Maps = NDArray[np.float32]

RIDGE = 0.1  # in units of the mean eigenvalue
KEEP = 0.8  # of the variance after whitening


def patch_stages(
    backbone: Backbone,
    image: Image.Image,
    neighborhood: int = 3,
    preprocessing: Preprocessing | None = None,
) -> list[Maps]:
    """An RGB image -> (H', W', C) of each stage, all on the grid of the finest.

    Args:
        backbone: one that was loaded with the pooling `map`.
        image: of any size.
        neighborhood: side of the square of places that is averaged around each; 1 for none.
        preprocessing: another than the backbone's own.
    """
    maps = backbone.maps(image, preprocessing)
    return aligned([neighborhood_mean(x, neighborhood) for x in maps])


def neighborhood_mean(stage: Maps, size: int) -> Maps:
    """(H, W, C) -> the mean over size x size places around each, of those that there are."""
    from scipy import ndimage

    if size == 1:
        return stage
    ones = np.ones((*stage.shape[:2], 1), np.float32)
    sums, share = (
        ndimage.uniform_filter(x, (size, size, 1), mode="constant") for x in (stage, ones)
    )
    return np.asarray(sums / share, dtype=np.float32)


def aligned(stages: Sequence[Maps]) -> list[Maps]:
    """Bring all stages (H, W, C) to the grid of the finest, bilinearly."""
    finest = max(stages, key=lambda x: x.shape[0] * x.shape[1]).shape
    return [x if x.shape[:2] == finest[:2] else resized(x, finest[0], finest[1]) for x in stages]


def resized(grid: Maps, height: int, width: int) -> Maps:
    """(H, W, ...) -> (height, width, ...) by bilinear interpolation between centres of places."""
    rows, columns = bilinear(grid.shape[0], height), bilinear(grid.shape[1], width)
    stretched = np.tensordot(rows, grid, axes=1)  # (height, W, ...)
    return np.ascontiguousarray(
        np.swapaxes(np.tensordot(columns, np.swapaxes(stretched, 0, 1), axes=1), 0, 1)
    )


def bilinear(n_in: int, n_out: int, start: float = 0.0, stop: float = 1.0) -> Maps:
    """(n_out, n_in) weights that sample n_in places at n_out pixels.

    Args:
        n_in, n_out: numbers of places and pixels.
        start, stop: where the pixels begin and end, as fractions of the places' extent. Beyond
            the first and the last centre, the value stays the same.
    """
    centres = start + (np.arange(n_out) + 0.5) / n_out * (stop - start)
    at = np.clip(centres * n_in - 0.5, 0, n_in - 1)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n_in)))
    return np.asarray(weights, dtype=np.float32)


def soft_norm(patches: NDArray[Any], scale: float) -> Maps:
    """(..., C) -> x / sqrt(|x|^2 + scale^2): about length 1, but short ones stay short."""
    sq_norms = np.square(patches).sum(axis=-1, keepdims=True)
    return np.asarray(patches / np.sqrt(sq_norms + scale**2), dtype=np.float32)


@dataclass(frozen=True)
class Whitening:
    """Soft norm, then principal components of about equal variance, of one stage.

        x -> V'(soft_norm(x) - mean) / sqrt(e + ridge * mean e) / sqrt(C)

    The first components stay as they are. Of the others, in which good patches hardly differ, only
    their length stays: a third fewer dimensions to search, and a patch that is foreign in a
    direction that good ones lack is still far from them.

    Attributes:
        scale: the mean length of a good patch.
        mean: (C,) mean good patch after the soft norm.
        matrix: (C, C) V and the division, the strongest direction first.
        kept: how many components stay as they are.
    """

    scale: float
    mean: Maps
    matrix: Maps
    kept: int

    @classmethod
    def fit(cls, patches: NDArray[Any], ridge: float = RIDGE, keep: float = KEEP) -> Self:
        """Learn from good patches.

        Args:
            patches: (P, C).
            ridge: added to each eigenvalue, in units of their mean.
            keep: the share of the variance after whitening in the components that stay.
        """
        scale = float(np.linalg.norm(patches, axis=1).mean(dtype=np.float64)) or 1.0
        normed = soft_norm(patches, scale).astype(np.float64)
        mean = normed.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(normed, rowvar=False).reshape(len(mean), -1))
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        spread = values + (ridge * float(values.mean()) or 1.0)
        matrix = np.ascontiguousarray(vectors / np.sqrt(spread) / np.sqrt(len(mean)), np.float32)
        held = np.cumsum(values / spread)
        kept = min(1 + int(np.searchsorted(held, keep * held[-1], side="right")), len(mean))
        return cls(scale, mean.astype(np.float32), matrix, kept)

    def __call__(self, patches: Maps) -> Maps:
        """(..., C) -> (..., kept + 1), or (..., C) if all are kept."""
        components = (soft_norm(patches, self.scale) - self.mean) @ self.matrix
        if self.kept == len(self.mean):
            return np.asarray(components)
        rest = np.linalg.norm(components[..., self.kept :], axis=-1, keepdims=True)
        return np.concatenate([components[..., : self.kept], rest], axis=-1)


def whitened(stages: Sequence[Maps], transforms: Sequence[Whitening]) -> Maps:
    """Stages (..., C) each, by their own whitening -> (..., D), side by side."""
    pairs = zip(stages, transforms, strict=True)
    return np.concatenate([transform(stage) for stage, transform in pairs], axis=-1)


def random_projection(dim: int, n_components: int, seed: int = 0) -> Maps:
    """(dim, n_components) Gaussian matrix that keeps distances on average."""
    matrix = np.random.default_rng(seed).standard_normal((dim, n_components))
    return np.asarray(matrix / np.sqrt(n_components), dtype=np.float32)
