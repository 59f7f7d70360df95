"""SPADE: the nearest good images, and for each place the nearest patch in any of them.

    pooled feature -> mean distance to the K nearest good images: the image score
                   -> the `gallery` nearest good images
        each stage -> distance of each place to the nearest of ALL their places
    -> brought to the size of the input, mean over stages, smoothed: the map

Cohen and Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences",
arXiv 2005.02357, section 3. Both searches are exact, and distances are plain, not squared. At both
levels k-NNN can take the place of k-NN, as in the tables of Nizan and Tal, arXiv 2305.17695.
"""

import tempfile
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnad.errors import InputError
from nnad.neighbors import Bank, checked_features
from nnad.operators import Operator
from nnad.operators.arguments import check_amount, check_choice, check_count
from nnad.operators.knn import KNN
from nnad.patch_features import Maps, resized
from nnad.patch_spool import Spool
from nnad.progress import track
from nnad.tiles import View

OPERATORS = ("knn", "knnn")

_WHOLE = (0.0, 0.0, 1.0, 1.0)  # what a view covers, in images


class Spade:
    """SPADE's image scores and maps.

    Args:
        image_operator: `knn`, the mean distance to the nearest good images; or `knnn`, k-NNN with
            the frames of their neighbourhoods among all good images.
        pixel_operator: `knn`, the distance to the nearest patch of the gallery; or `knnn`, k-NNN
            with the frame of that patch. Its neighbours are searched in the same gallery and stage:
            the 25 patches nearest to it, of any image and place, itself excepted. Frames are
            computed for patches that are somewhere the nearest.
        k_images: K, good images that the image score asks.
        gallery: nearest good images whose patches the map asks, all if there are fewer. SPADE's 50
            costs the image score accuracy, so it is not `k_images`.
        sigma: standard deviation of the Gaussian that smooths the map, in its pixels; 0 for none.
        size: height and width of the map in pixels, those of the network's input.

    After `fit`: `good_scores` (N,), the good images' scores, each against the others.

    Raises:
        InputError: an argument is out of range.
    """

    good_scores: NDArray[np.float64]

    def __init__(
        self,
        *,
        image_operator: str = "knn",
        pixel_operator: str = "knn",
        k_images: int = 5,
        gallery: int = 50,
        sigma: float = 4.0,
        size: int = 224,
    ) -> None:
        self.image_operator = check_choice("image_operator", image_operator, OPERATORS)
        self.pixel_operator = check_choice("pixel_operator", pixel_operator, OPERATORS)
        self.k_images = check_count("k_images", k_images)
        self.gallery = check_count("gallery", gallery)
        self.sigma = check_amount("sigma", sigma)
        self.size = check_count("size", size)

    def fit(
        self, features: NDArray[Any], images: Iterable[Sequence[Maps]], *, progress: bool = False
    ) -> Self:
        """Take good images.

        Args:
            features: (N, D) their pooled features, as they are to be compared.
            images: their stages (H, W, C) in the same order, each stage of its own resolution. They
                are kept in a temporary file as long as this object; memory is needed for one image
                here, and in `score` for the gallery of one stage.
            progress: show a bar on a terminal.

        Raises:
            InputError: fewer than two images (four for k-NNN between images), not one feature for
                each, the shapes differ, or the disk is too small.
        """
        self._bank = Bank(features)
        if len(self._bank) < 2:
            raise InputError("too few good images: 1; SPADE needs 2")
        total = len(self._bank)
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        weakref.finalize(self, file.close)
        views = ([View(list(x), _WHOLE)] for x in track(images, total, "images", show=progress))
        self._spool = Spool(file, views, total)
        if len(self._spool) != total:
            raise InputError(f"images: {len(self._spool)}, with {total} features")
        self._images = _operator(self.image_operator, self.k_images).fit(self._bank)
        self.good_scores = self._images.left_out_scores()
        return self

    def score(
        self, feature: NDArray[Any], stages: Sequence[Maps], left_out: int | None = None
    ) -> tuple[Maps, float]:
        """An image -> its map (size, size) and its score.

        Args:
            feature: (D,).
            stages: as in `fit`.
            left_out: the number of this image, if it is one of the good ones; it is then scored
                against the others.

        Raises:
            InputError: the shapes are others than in `fit`, or there is no such image.
        """
        shapes = [stage.shape for stage in stages]
        if shapes != self._spool.shapes:
            raise InputError(f"stages: shapes {shapes}; fitted on {self._spool.shapes}")
        query = checked_features(feature[None], "feature", dim=self._bank.features.shape[1])
        if left_out is None:
            image_score, absent, most = self._images.score(query)[0], None, len(self._bank)
        else:
            if not 0 <= left_out < len(self._bank):
                raise InputError(f"left_out={left_out}: there are {len(self._bank)} good images")
            image_score, absent = self.good_scores[left_out], np.array([left_out])
            most = len(self._bank) - 1
        near = self._bank.nearest(query, min(self.gallery, most), exclude=absent).rows[0]

        total = np.zeros((self.size, self.size), np.float32)
        for i, stage in enumerate(stages):
            scores = self._patch_scores(stage, self._spool.patches(i, near))
            total += resized(scores, self.size, self.size)
        return ndimage.gaussian_filter(total / len(stages), self.sigma), float(image_score)

    def _patch_scores(self, stage: Maps, gallery: Maps) -> Maps:
        """(H, W, C) against patches (G, C) -> (H, W)."""
        from nnad.operators.compiled_search import COMPILED

        patches = stage.reshape(-1, stage.shape[-1])
        bank = Bank(gallery)
        found = bank.nearest(patches, 1, kernels=COMPILED)
        scores = _operator(self.pixel_operator, 1).fit(bank).score(patches, found)
        return scores.reshape(stage.shape[:-1]).astype(np.float32)


def _operator(name: str, k: int) -> Operator:
    if name == "knn":
        return KNN(k, squared=False)
    from nnad.operators.knnn import KNNN

    return KNNN(k)
