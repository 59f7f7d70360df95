"""Why an image got its score: nearest good images, its place among their scores, its features.

All numbers are of transformed features (`nnad.transforms`), since those are what is scored. What a
feature adds to a score is defined in `nnad.operators.by_feature`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.anomaly_maps import Box, Region
from nnad.backbones import Backbone
from nnad.calibrate import within
from nnad.detector import Detector
from nnad.errors import ImageError, InputError
from nnad.images import Source
from nnad.located import Located
from nnad.neighbors import Neighbors
from nnad.onnx_graph import stage_widths
from nnad.operators import Operator
from nnad.scorer import Scorer
from nnad.scoring import Seen, stacked
from nnad.sources import named_images

_CLOSEST = 3  # good images whose scores are told
_TOP = 10  # features and sets told
_SIMILAR = 2  # good images told of each feature


@dataclass(frozen=True, slots=True)
class NearGood:
    """A good image near the explained one.

    Attributes:
        name: its path.
        distance: Euclidean, of the transformed features.
        usual: from this good image to its own nearest other good image: what is usual there.
        score: that of this good image by the others; None if it is in the bank only (`split`).
    """

    name: str
    distance: float
    usual: float
    score: float | None


@dataclass(frozen=True, slots=True)
class ScoredGood:
    """A good image that calibrates, and its score by others."""

    name: str
    score: float


@dataclass(frozen=True, slots=True)
class FeatureShare:
    """A feature that added much to the score.

    Attributes:
        index: its number among all D features, from 0.
        label: which number of which block of the backbone (stage, or member of an ensemble).
        share: of the score, 0 to 1.
        value: of the image, after the transform.
        low, high: the 5th and 95th percentile of the good images' values.
        percentile: how many of 100 good images have a lower value; equal ones count half.
        similar: the good images with the nearest values, which show what the feature responds to.
    """

    index: int
    label: str
    share: float
    value: float
    low: float
    high: float
    percentile: float
    similar: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetShare:
    """A set of features of k-NNN that added much to the score; `share` is of the score, 0 to 1."""

    features: tuple[int, ...]
    share: float


@dataclass(frozen=True, slots=True)
class PatchReason:
    """Where an image is oddest, and the good patch that comes nearest to it.

    Attributes:
        score: of the oddest patch: 0 is usual, 1 the threshold for patches.
        box: what it covers: left, top, right, bottom in pixels.
        distance: to the nearest good patch.
        usual: from that good patch to the nearest one of another good image.
        good_name: the good image it is from.
        good_box: what it covers there.
        image_score, patch_score: the two parts of the score, in deviations of the good images from
            their mean; the score is their mean. None in the mode `patch`, which has one part.
    """

    score: float
    box: Box
    distance: float
    usual: float
    good_name: str
    good_box: Box
    image_score: float | None = None
    patch_score: float | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one image got its score.

    Attributes:
        name, score, p_value, is_anomaly, error: as in `nnad.Result`. The image is an anomaly at
            every budget of `p_value` or more: there the decision flips.
        budget: the false-alarm budget of the decision.
        smallest_budget: 1 / (n + 1), the smallest that n good images support.
        threshold: the score above which images are anomalies at that budget; None where each fold
            has its own (`cross`, `jackknife+`).
        higher_than: how many good images that calibrate have a lower score,
        good_images: of how many; in a model of several products, those assigned to the image's. As
            the p-value counts: where there are folds, a good image's score is compared with that of
            the image by the same fold's model, while `score` is that of the model of all.
        closest: the good images with the closest scores in this sense, closest first.
        nearest: the nearest good images, nearest first.
        features: those that added most, largest first; empty when the operator or a score of 0
            does not say, and `note` tells why.
        features_for_half: how many features, the largest ones, make half of the score.
        sets: with k-NNN the sets of features that added most, largest first.
        note: why there are no features, or None.
        product: in a model of several products, the one it is assigned to.
        patch: in a model with patches, where the image is oddest.
        regions: as in `nnad.Result`.

    With an error all else is None, 0 or empty.
    """

    name: str
    score: float | None = None
    p_value: float | None = None
    is_anomaly: bool | None = None
    budget: float | None = None
    smallest_budget: float | None = None
    threshold: float | None = None
    higher_than: int = 0
    good_images: int = 0
    closest: tuple[ScoredGood, ...] = ()
    nearest: tuple[NearGood, ...] = ()
    features: tuple[FeatureShare, ...] = ()
    features_for_half: int | None = None
    sets: tuple[SetShare, ...] = ()
    note: str | None = None
    product: str | None = None
    patch: PatchReason | None = None
    regions: tuple[Region, ...] = ()
    error: str | None = None


def explain(
    detector: Detector,
    images: Source | Iterable[Source],
    *,
    false_alarms: float | None = None,
    progress: bool = False,
) -> list[Explanation]:
    """Explain the scores of images, in order. One that cannot be read gives a record of its error.

    Args:
        detector: a fitted one.
        images: see `find_images`.
        false_alarms: another budget than the detector's.
        progress: show a bar on a terminal.

    Raises:
        InputError: nothing to read, the budget is not a fraction, or the detector is not fitted.
        BudgetError: the good images cannot support the budget.
    """
    budget = detector.false_alarms if false_alarms is None else false_alarms
    detector.calibration.check(budget)
    named, total = named_images(images)
    labels = feature_labels(detector.backbone, detector.features.shape[1])
    seen = detector.look(named, total, false_alarms=budget, shown="images" if progress else None)
    return [
        Explanation(name, error=str(found))
        if isinstance(found, ImageError)
        else _explanation(detector, budget, labels, name, found)
        for name, found in seen
    ]


def feature_labels(backbone: Backbone, dim: int) -> list[str]:
    """What to call each of the D features: `s32a[17]` is number 17 of stage s32a.

    The stage's name follows the network's in an ensemble. A backbone that does not tell its stages,
    such as a function, has its own name instead.
    """
    members = getattr(backbone, "members", [backbone])
    labels = []
    for member in members:
        told = member.details.get("stages", "")
        stages = told.split()
        widths = stage_widths(member.onnx) if len(stages) > 1 else []
        if not widths or len(widths) != len(stages):  # one block, or the file does not tell
            stages, widths = [told], [member.dim if len(members) > 1 else dim]
        for stage, width in zip(stages, widths, strict=True):
            of_ensemble = len(members) > 1 and stage
            block = f"{member.name} {stage}" if of_ensemble else stage or member.name
            labels += [f"{block}[{i}]" for i in range(width)]
    return labels


def _explanation(
    detector: Detector, budget: float, labels: list[str], name: str, seen: Seen
) -> Explanation:
    """Of one image."""
    scorer, names = detector.scorer, detector.names
    operator, calibration = scorer.operator, scorer.calibration
    scored = scorer.score(*stacked([seen]))
    query = scorer.transformed(seen.feature[None])[0]  # (D,)
    by_features = float(scored.by_features[0])
    score, product = float(scored.scores[0]), int(scored.categories[0])
    peers = calibration.of_product(product)
    good_scores, rows = calibration.good_scores[peers], scorer.calibrating[peers]  # (n,)
    own = scored.by_fold[0, 0 if calibration.folds is None else calibration.folds[peers]]  # (n,)
    closest = np.argsort(np.abs(good_scores - own), kind="stable")[:_CLOSEST]
    has_threshold = calibration.folds is None
    shares, note = None, None
    try:
        shares = operator.by_feature(query)
    except InputError as error:
        note = str(error)
    if by_features == 0:
        shares, note = None, "a score of 0 has no parts"
    if detector.mode == "patch":
        shares, note = None, "this model scores patches"
    shares = None if shares is None else shares / by_features
    return Explanation(
        name,
        score=score,
        p_value=float(scored.p_values[0]),
        is_anomaly=within(float(scored.p_values[0]), budget),
        budget=budget,
        smallest_budget=1 / (len(good_scores) + 1),
        threshold=calibration.threshold(budget, product) if has_threshold else None,
        higher_than=int((good_scores < own).sum()),
        good_images=len(good_scores),
        closest=tuple(ScoredGood(names[rows[i]], float(good_scores[i])) for i in closest),
        nearest=_nearest(scorer, names, scored.nearest),
        features=() if shares is None else _features(scorer, names, labels, query, shares),
        features_for_half=None if shares is None else _for_half(shares),
        sets=_sets(operator, query) if by_features and detector.mode != "patch" else (),
        note=note,
        product=calibration.product_names[product] or None,
        patch=_patch(scorer, names, by_features, seen.located),
        regions=seen.located.regions if seen.located else (),
    )


def _patch(
    scorer: Scorer, names: tuple[str, ...], by_features: float, located: Located | None
) -> PatchReason | None:
    if located is None or scorer.combined is None:
        return None
    odd = located.oddest
    image, patch = scorer.combined.parts(np.array([by_features]), np.array([located.score]))
    has_parts = scorer.combined.mode == "both"
    return PatchReason(
        *(odd.score, odd.box, odd.distance, odd.usual),
        good_name=names[scorer.rows[odd.good]],
        good_box=odd.good_box,
        image_score=float(image[0]) if has_parts else None,
        patch_score=float(patch[0]) if has_parts else None,
    )


def _nearest(scorer: Scorer, names: tuple[str, ...], found: Neighbors) -> tuple[NearGood, ...]:
    rows, distances = found.rows[0], np.sqrt(found.sq_dists[0])
    usual = np.sqrt(scorer.bank.others(1, np.searchsorted(scorer.rows, rows)).sq_dists[:, 0])
    scores = dict(zip(scorer.calibrating.tolist(), scorer.calibration.good_scores, strict=True))
    return tuple(
        NearGood(names[row], float(distance), float(own), scores.get(row))
        for row, distance, own in zip(rows.tolist(), distances, usual, strict=True)
    )


def _features(
    scorer: Scorer,
    names: tuple[str, ...],
    labels: list[str],
    query: NDArray[np.float32],
    shares: NDArray[np.float64],
) -> tuple[FeatureShare, ...]:
    """The largest of the shares (D,), none of which is 0."""
    told = []
    for index in np.argsort(-shares, kind="stable")[:_TOP]:
        if shares[index] == 0:
            break
        value, good = query[index], scorer.bank.features[:, index]  # (N,)
        low, high = np.percentile(good, (5, 95))
        lower = (good < value).sum() + (good == value).sum() / 2
        similar = np.argsort(np.abs(good - value), kind="stable")[:_SIMILAR]
        told.append(
            FeatureShare(
                int(index),
                labels[index],
                float(shares[index]),
                *(float(value), float(low), float(high)),
                percentile=float(100 * lower / len(good)),
                similar=tuple(names[scorer.rows[row]] for row in similar),
            )
        )
    return tuple(told)


def _for_half(shares: NDArray[np.float64]) -> int:
    summed = np.cumsum(np.sort(shares)[::-1])
    return int(np.searchsorted(summed, summed[-1] / 2)) + 1


def _sets(operator: Operator, query: NDArray[np.float32]) -> tuple[SetShare, ...]:
    """The largest sets of an operator that scores by sets."""
    if not hasattr(operator, "explain"):
        return ()
    parts: Any = operator.explain(query)
    shares = parts.by_set / parts.score
    largest = np.argsort(-shares, kind="stable")[:_TOP]
    return tuple(SetShare(tuple(parts.sets[s].tolist()), float(shares[s])) for s in largest)
