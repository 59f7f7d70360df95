"""How well scores tell anomalies from good images, and anomaly maps defects from good pixels.

Everything is computed at every threshold that occurs, without bins; ties count as ties.
"""

import tempfile
from collections.abc import Iterable
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad.errors import InputError

Rates = NDArray[np.float64]

PRO_LIMIT = 0.3  # false-positive rate up to which PRO is averaged (MVTec AD)
TOUCHING = np.ones((3, 3), dtype=bool)  # 8-connectivity: pixels that share a corner are one region
_BLOCK = 1 << 22  # good pixels that are read back at a time


class ImageMetrics(NamedTuple):
    """Of images; all in 0..1.

    Attributes:
        auroc: area under the ROC curve.
        ap: average precision, the precision summed over the steps of recall.
        f1_max: the largest F1 of any threshold.
        fpr_at_95_tpr: the smallest false-positive rate at which 95 % of the anomalies are found.
    """

    auroc: float
    ap: float
    f1_max: float
    fpr_at_95_tpr: float


class PixelMetrics(NamedTuple):
    """Of the pixels of all images together; all in 0..1.

    Attributes:
        auroc: area under the ROC curve.
        ap: average precision.
        pro: per-region overlap: the share of each defect region that is found, averaged over the
            regions, as a function of the false-positive rate of pixels; its area up to a rate of
            0.3, divided by 0.3 (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021).
    """

    auroc: float
    ap: float
    pro: float


def image_metrics(is_anomaly: Any, scores: Any) -> ImageMetrics:
    """Metrics of N images.

    Args:
        is_anomaly: (N,) bool.
        scores: (N,), higher is more anomalous.

    Raises:
        InputError: the lengths differ, a score is not finite, or there is only one kind of image.
    """
    from sklearn.metrics import (
        average_precision_score,
        precision_recall_curve,
        roc_auc_score,
        roc_curve,
    )

    is_anomaly, scores = np.asarray(is_anomaly, dtype=bool), np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or is_anomaly.shape != scores.shape:
        raise InputError(f"scores: shape {scores.shape} for {is_anomaly.shape} images")
    if not np.isfinite(scores).all():
        raise InputError("scores: some are not finite; leave out images that could not be read")
    if is_anomaly.all() or not is_anomaly.any():
        raise InputError("is_anomaly: metrics need good images and anomalies")
    precision, recall, _ = precision_recall_curve(is_anomaly, scores)
    sums = precision + recall
    f1 = np.divide(2 * precision * recall, sums, out=np.zeros_like(sums), where=sums > 0)
    false_positives, true_positives, _ = roc_curve(is_anomaly, scores, drop_intermediate=False)
    return ImageMetrics(
        auroc=float(roc_auc_score(is_anomaly, scores)),
        ap=float(average_precision_score(is_anomaly, scores)),
        f1_max=float(f1.max()),
        fpr_at_95_tpr=float(false_positives[true_positives >= 0.95].min()),
    )


def pixel_metrics(
    maps: Iterable[tuple[NDArray[Any], NDArray[Any] | None]], *, pro_limit: float = PRO_LIMIT
) -> PixelMetrics:
    """Metrics of the pixels of many images, in one pass.

    Each curve changes only at the scores of defect pixels, so that of the good pixels it is enough
    to count how many lie between those. Memory is about 200 bytes a defect pixel; good pixels wait
    in a temporary file, 4 bytes each, until all defects are known.

    Args:
        maps: for each image the scores (H, W), compared as float32, and the mask (H, W), nonzero
            where there is a defect, or None for a good image. Regions are 8-connected.
        pro_limit: the false-positive rate up to which PRO is averaged, above 0, at most 1.

    Raises:
        InputError: a mask does not fit, a score is not finite, or one kind of pixel is missing.
    """
    from scipy import ndimage

    if not 0 < pro_limit <= 1:
        raise InputError(f"pro_limit={pro_limit!r}; expected a rate above 0, at most 1")
    odd: list[NDArray[np.float32]] = [np.empty(0, np.float32)]
    shares: list[NDArray[np.float64]] = [np.empty(0)]  # 1 / pixels of the region
    n_regions = 0
    with tempfile.TemporaryFile() as file:
        for number, (scores, mask) in enumerate(maps):
            scores, is_odd = _checked(scores, mask, f"image {number}")
            file.write(scores[~is_odd].tobytes())
            regions, count = ndimage.label(is_odd, TOUCHING)
            region = regions[is_odd] - 1
            odd.append(scores[is_odd])
            shares.append(1 / np.bincount(region, minlength=count)[region])
            n_regions += count
        n_good = file.tell() // 4
        if not n_good or not n_regions:
            raise InputError("maps: metrics need good pixels and defect pixels")
        order = np.argsort(np.concatenate(odd))
        levels, first = np.unique(np.concatenate(odd)[order], return_index=True)  # (U,)
        found = np.add.reduceat(np.ones(len(order)), first)[::-1].cumsum()  # defect pixels >= level
        overlap = np.add.reduceat(np.concatenate(shares)[order], first)[::-1].cumsum() / n_regions
        above, equal = _good_counts(file, levels)
    false_after = (above + equal)[::-1] / n_good  # false-positive rate at each level, then above it
    false_before = above[::-1] / n_good
    recall = found / found[-1]
    precision = found / (found + (above + equal)[::-1])
    return PixelMetrics(
        auroc=_area(false_before, false_after, recall, 1.0),
        ap=float(np.diff(recall, prepend=0) @ precision),
        pro=_area(false_before, false_after, overlap, pro_limit),
    )


def _checked(
    scores: NDArray[Any], mask: NDArray[Any] | None, name: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    scores = np.asarray(scores, dtype=np.float32)
    if scores.ndim != 2 or not np.isfinite(scores).all():
        raise InputError(f"{name}: scores of shape {scores.shape}; expected (H, W), all finite")
    is_odd = np.zeros(scores.shape, bool) if mask is None else np.asarray(mask) != 0
    if is_odd.shape != scores.shape:
        raise InputError(f"{name}: its mask has shape {is_odd.shape}, its map {scores.shape}")
    return scores, is_odd


def _good_counts(
    file: IO[bytes], levels: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(U,) how many good scores in the file lie above each level, and how many equal it."""
    at_most = np.zeros(len(levels), dtype=np.int64)
    below = np.zeros(len(levels), dtype=np.int64)
    total = 0
    file.seek(0)
    while content := file.read(4 * _BLOCK):
        block = np.sort(np.frombuffer(content, np.float32))
        at_most += np.searchsorted(block, levels, side="right")
        below += np.searchsorted(block, levels, side="left")
        total += len(block)
    return total - at_most, at_most - below


def _area(before: Rates, after: Rates, heights: Rates, limit: float) -> float:
    """Mean height up to `limit` of a curve that is level, then rises while x goes before -> after.

    Args:
        before, after: (U,) x at which the curve begins to rise to each height, and has risen.
        heights: (U,), rising.
        limit: largest x.
    """
    x = np.append(np.stack([before, after], axis=1), 1.0)  # (2 U + 1,)
    y = np.append(0.0, np.repeat(heights, 2))  # still the height before at each `before`
    inside = x <= limit
    x, y = np.append(x[inside], limit), np.append(y[inside], np.interp(limit, x, y))
    return float(np.diff(x) @ (y[1:] + y[:-1]) / 2 / limit)
