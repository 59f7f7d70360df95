"""A bank of good patches, and how far the patches of an image are from it."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnad.errors import InputError
from nnad.neighbors import Bank, Neighbors

if TYPE_CHECKING:
    from nnad.operators.knnn import KNNN

Scores = NDArray[np.float64]

_SPARE = 16  # neighbours beyond k that are asked for first when some may not count


class PatchBank:
    """Good patches that can be searched.

    Args:
        patches: (N, D) float32, N >= 1.
        images: (N,) which good image each is from.
        places: (N,) where in its grid, as row * width + column.
        boxes: (N, 4) what each covers: left, top, right, bottom in pixels of its image; NaN if that
            is not told.

    Raises:
        InputError: shapes do not fit, or a value is not finite.
    """

    def __init__(
        self,
        patches: NDArray[Any],
        images: NDArray[Any],
        places: NDArray[Any],
        boxes: NDArray[Any] | None = None,
    ) -> None:
        self.rows = Bank(patches, coded=False)
        self.images, self.places = np.asarray(images), np.asarray(places)
        self.boxes = np.full((len(self), 4), np.nan) if boxes is None else np.asarray(boxes)
        if not len(self.rows) == len(self.images) == len(self.places) == len(self.boxes):
            raise InputError(f"images, places, boxes: expected {len(self.rows)} of each")

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(
        self, patches: NDArray[Any], k: int, left_out: int | NDArray[Any] | None = None
    ) -> Neighbors:
        """The k nearest bank patches of each patch (P, D), exactly.

        Args:
            patches: (P, D).
            k: neighbours; fewer if there are not so many.
            left_out: an image, or one for each patch (P,), whose bank patches do not count.

        Raises:
            InputError: nothing would be left of the bank.
        """
        if left_out is None:
            return self.rows.nearest(patches, min(k, len(self)))
        own = np.broadcast_to(left_out, len(patches))
        k = min(k, len(self) - int(np.unique(self.images, return_counts=True)[1].max()))
        if k < 1:
            raise InputError("left_out: all bank patches are from one image")
        sq_dists = np.empty((len(patches), k))
        rows = np.empty((len(patches), k), dtype=np.int64)
        open_, width = np.arange(len(patches)), k + _SPARE
        while len(open_):
            found = self.rows.nearest(patches[open_], min(width, len(self)))
            counts = self.images[found.rows] != own[open_, None]
            first = np.argsort(~counts, axis=1, kind="stable")[:, :k]
            enough = counts.sum(axis=1) >= k
            done = open_[enough]
            sq_dists[done] = np.take_along_axis(found.sq_dists, first, 1)[enough]
            rows[done] = np.take_along_axis(found.rows, first, 1)[enough]
            open_, width = open_[~enough], 4 * width
        return Neighbors(sq_dists, rows)

    @cached_property
    def spacing(self) -> Scores:
        """(N,) distance of each bank patch to the nearest of another image; none is left out."""
        return np.sqrt(self.nearest(self.rows.features, 1, self.images).sq_dists[:, 0])


def knn_scores(bank: PatchBank, patches: NDArray[Any], k: int = 1) -> Scores:
    """(P, D) -> (P,) mean distance to the k nearest bank patches; k = 1 as in PatchCore."""
    return np.asarray(np.sqrt(bank.nearest(patches, k).sq_dists).mean(axis=1))


def calibrated_scores(
    bank: PatchBank,
    patches: NDArray[Any],
    k: int = 3,
    share: float = 0.5,
) -> Scores:
    """(P, D) -> (P,) distance to the nearest bank patch, less what is usual there.

    What is usual is `share` times the mean spacing of the k nearest bank patches: where good images
    differ much from each other, the same distance says less. The idea of k-NNN, to ask the
    neighbours' neighbours, for one number a bank patch.

    A left-out image's patches still count in the spacing of the neighbours, see the module.
    """
    found = bank.nearest(patches, k)
    return np.asarray(np.sqrt(found.sq_dists[:, 0]) - share * bank.spacing[found.rows].mean(axis=1))


def knnn_scores(bank: PatchBank, operator: "KNNN", patches: NDArray[Any]) -> Scores:
    """(P, D) -> (P,) k-NNN scores, by an operator that was fitted on `bank.rows`.

    Of a left-out image the patches are no neighbours, but still members of neighbours' frames.
    """
    return operator.score(patches, bank.nearest(patches, operator.k_used))


def image_score(scores: NDArray[Any], share: float = 0.05) -> float:
    """Patch scores of an image, of any shape -> the mean of the highest `share` of them."""
    count = max(1, round(share * scores.size))
    return float(np.partition(scores.ravel(), -count)[-count:].mean())


def patchcore_score(bank: PatchBank, patches: NDArray[Any], n_support: int = 9) -> float:
    """Patches of an image (P, D) -> PatchCore's image score (Roth et al., CVPR 2022, Eq. 7).

    The largest distance d to a nearest bank patch m, times 1 - exp(d) / sum of exp(distance to
    m's n_support nearest bank patches, m among them): a far patch counts for more if its nearest
    neighbour is itself far from others.
    """
    from scipy.special import logsumexp

    found = bank.nearest(patches, 1)
    top = int(found.sq_dists[:, 0].argmax())
    distance = float(np.sqrt(found.sq_dists[top, 0]))
    nearest = found.rows[top]  # (1,)
    support = bank.nearest(bank.rows.features[nearest], n_support).rows[0]
    to_support = bank.rows.features[support].astype(np.float64) - patches[top]  # (b, D)
    distances = np.linalg.norm(to_support, axis=1)
    return distance * float(1 - np.exp(-logsumexp(distances - distance)))
