"""What `bench` measures of one network: a row for every mode and operator."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad.backbones import Backbone
from nnad.calibrate import within
from nnad.combined import Combined
from nnad.datasets import Split
from nnad.embedding import Embedded, embed
from nnad.errors import InputError
from nnad.evaluate import Estimate, auroc, rate
from nnad.images import read_image
from nnad.labelled import read_defect
from nnad.located import Located, Patches
from nnad.metrics import PixelMetrics, pixel_metrics
from nnad.operators import make_operator
from nnad.scorer import Scorer
from nnad.scoring import Seen, look
from nnad.transforms import usual_transform

_TIMED = 8  # images whose scoring is timed

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """What can be chosen: `nnad fit --backbone B --mode M --operator O`."""

    backbone: str
    mode: str
    operator: str


@dataclass(frozen=True)
class Row:
    """A candidate on the test images.

    Attributes:
        candidate: which.
        auroc: the probability that an anomaly scores higher than a good image.
        false_alarms, detections: the shares of good images and of anomalies that are called
            anomalies at the budget.
        ms: CPU milliseconds an image, of all threads: decoding, network and search.
        megabytes: of features and patches in the model.
        pixels: of its maps where the network looks, in modes with patches; None if no mask marks a
            defect there.
    """

    candidate: Candidate
    auroc: Estimate
    false_alarms: Estimate
    detections: Estimate
    ms: float
    megabytes: float
    pixels: PixelMetrics | None


class Tested(NamedTuple):
    """Scores of the test images by one candidate."""

    row: Row
    scores: Scores  # (T,)
    budget: float


class Images:
    """The images of a data set as one network sees them."""

    def __init__(
        self, backbone: Backbone, train: Split, test: Split, workers: int | None, progress: bool
    ) -> None:
        def embedded(split: Split) -> Embedded:
            named = zip(split.names, split.sources, strict=True)
            return embed(
                *(named, len(split), backbone), workers=workers, cache=True, progress=progress
            )

        self.backbone, self.workers, self.progress = backbone, workers, progress
        good, new = embedded(train), embedded(test)
        self.good, self.new = good.features, new.features
        self.skipped = (*good.skipped, *new.skipped)
        read = set(new.names)
        self.rows = [i for i, name in enumerate(test.names) if name in read]  # of test
        self.test = test.take(self.rows)
        of_name = dict(zip(train.names, train.sources, strict=True))
        self.named = [(name, of_name[name]) for name in good.names]

    def are_known(self) -> NDArray[np.bool_]:
        """(T,) test images whose features are those of a fitted image, bit for bit."""
        fitted = {feature.tobytes() for feature in self.good}
        return np.array([feature.tobytes() in fitted for feature in self.new])

    def patches(self, patches: Patches) -> tuple[Patches, list[Located]]:
        """Patches, fitted, and where each test image is odd."""
        patches = patches.fit(self.named, workers=self.workers, progress=self.progress)
        named = zip(self.test.names, self.test.sources, strict=True)
        seen = look(
            *(named, len(self.test), self.backbone, patches),
            threshold=patches.model.pixel_threshold(),
            workers=self.workers,
            shown="test images" if self.progress else None,
        )
        return patches, [
            each.located for _, each in seen if isinstance(each, Seen) and each.located
        ]

    def ms(self, patches: Patches | None) -> float:
        """CPU milliseconds of reading an image, the networks and the search among patches."""
        sources = self.test.sources[:_TIMED]
        threshold = patches.model.pixel_threshold() if patches else np.inf
        start = time.process_time()
        for source in sources:
            image = read_image(source)
            self.backbone.embed(image)
            if patches:
                patches.locate(image, threshold)
        return (time.process_time() - start) / len(sources) * 1000


def candidates(
    images: Images,
    unfitted: Patches | None,
    modes: Sequence[str],
    operators: Sequence[str],
    odd: NDArray[np.bool_],
    false_alarms: float | None,
) -> Iterator[Tested]:
    """Every mode and operator with one network; patches alone need no operator. Modes with patches
    need `unfitted` ones.
    """
    patches, located = images.patches(unfitted) if unfitted else (None, [])
    of_patches = np.array([each.score for each in located])
    pixels = _pixels(patches, located, images.test.masks, odd) if patches else None
    ms = {mode: images.ms(None if mode == "image" else patches) for mode in modes}
    transform = usual_transform(images.good)
    for operator in operators:
        scorer = Scorer(images.good, transform, make_operator(operator))
        for mode in modes:
            if mode == "patch" and operator != operators[0]:
                continue
            scores, megabytes, used = None, images.good.nbytes / 1e6, scorer
            if mode != "image" and patches:
                model = patches.model
                combined = Combined.fit(mode, scorer.operator.left_out_scores(), model.good_scores)
                used, scores = scorer.with_patches(combined, model.good_scores), of_patches
                megabytes += model.bank.rows.features.nbytes / 1e6
            budget = false_alarms or used.calibration.default_budget()
            used.calibration.check(budget)
            start = time.process_time()
            found = used.score(images.new, scores)
            searched = (time.process_time() - start) / len(images.new) * 1000
            alarms = np.array([within(p, budget) for p in found.p_values])
            row = Row(
                Candidate(images.backbone.name, mode, operator),
                auroc=auroc(found.scores[~odd], found.scores[odd]),
                false_alarms=rate(int(alarms[~odd].sum()), int((~odd).sum())),
                detections=rate(int(alarms[odd].sum()), int(odd.sum())),
                ms=ms[mode] + searched,
                megabytes=megabytes,
                pixels=None if mode == "image" else pixels,
            )
            yield Tested(row, found.scores, budget)


def _pixels(
    patches: Patches,
    located: list[Located],
    masks: Sequence[str | None],
    odd: NDArray[np.bool_],
) -> PixelMetrics | None:
    """Of all maps whose images are good or have a mask, within what was looked at; None if no mask
    marks a defect there. Masks must fit, see `check_masks`.
    """
    if not any(masks):
        return None
    threshold = patches.model.pixel_threshold()

    def told() -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_] | None]]:
        for each, path, is_odd in zip(located, masks, odd, strict=True):
            if path is not None or not is_odd:
                found = patches.map(each, threshold)
                seen = ~np.isnan(found)  # a rectangle
                box = np.ix_(seen.any(axis=1), seen.any(axis=0))
                yield found[box], None if path is None else read_defect(path)[box]

    try:
        return pixel_metrics(told())
    except InputError:  # no defect in sight
        return None
