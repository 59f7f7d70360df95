"""Which operator, network and mode for these images? A comparison on a user's labelled data.

    good images fit -> every candidate scores the labelled test images -> AUROC with an interval
        -> half of the labels choose, the other half measures what the choice gained, many times

The best of many rows looks better than it is, since the labels that choose it also measure it. So
another candidate than the first, the default, is recommended only if it gained on labels that had
no part in the choice.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnad.backbones import Backbone
from nnad.calibrate import within
from nnad.choice import chosen_gain
from nnad.combined import Combined
from nnad.datasets import Dataset, Split
from nnad.embedding import Embedded, embed
from nnad.errors import InputError
from nnad.evaluate import Estimate, auroc, rate
from nnad.images import read_image
from nnad.located import Located, Patches
from nnad.metrics import PixelMetrics, pixel_metrics
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.results import Result
from nnad.scorer import Scorer
from nnad.scoring import Seen, look
from nnad.transforms import usual_transform

OPERATORS = ("auto", "knn", "knnn", "global", "hull")
LEAST = 10  # good test images, and anomalies, that a choice needs
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
        ms: milliseconds an image, decoding, network and search, on one core.
        megabytes: of features and patches in the model.
        pixels: of its maps, in modes with patches, if there are masks.
    """

    candidate: Candidate
    auroc: Estimate
    false_alarms: Estimate
    detections: Estimate
    ms: float
    megabytes: float
    pixels: PixelMetrics | None


@dataclass(frozen=True)
class Report:
    """What `bench` found.

    Attributes:
        data: the name of the data set.
        good: images that were fitted.
        good_tested, anomalies: images that were scored.
        skipped: images that could not be read.
        budget: the false-alarm budget of the rows.
        rows: of all candidates, the default first.
        grey: AUROC of k-NN on seven statistics of an image's grey levels. Where that is high, the
            labels differ in light, and no row says much about defects.
        best: the candidate with the highest AUROC on all labels.
        gain: of choosing by one half of the labels, measured on the other: mean, and where 95 % of
            the splits lie. None if there are too few labels.
        recommended: `best` if the whole interval of `gain` is above 0, else the default.
        reason: why, in a sentence.
    """

    data: str
    good: int
    good_tested: int
    anomalies: int
    skipped: tuple[Result, ...]
    budget: float
    rows: tuple[Row, ...]
    grey: Estimate
    best: Candidate
    gain: Estimate | None
    recommended: Candidate
    reason: str


class _Tested(NamedTuple):
    """Scores of the test images by one candidate."""

    row: Row
    scores: Scores  # (T,)
    budget: float


def bench(
    dataset: Dataset,
    backbones: Sequence[Backbone],
    *,
    modes: Sequence[str] = ("image", "both"),
    operators: Sequence[str] = OPERATORS,
    false_alarms: float | None = None,
    workers: int | None = None,
    progress: bool = False,
    seed: int = 0,
) -> Report:
    """Compare candidates on labelled images.

    Args:
        dataset: with good classes; see `held_out` for what is done without good test images.
        backbones: networks; the first is the default's.
        modes: `image`, `patch`, `both`; the default's is the first. Patches need an embedded
            network.
        operators: names for `make_operator`; the default's is the first.
        false_alarms: the budget; by default 1 %, or what the good images support.
        workers: threads.
        progress: show bars on a terminal.
        seed: of the splits.

    Raises:
        InputError: too few images, or no anomaly or no good one among the test images.
        BudgetError: the good images cannot support the budget.
    """
    dataset = held_out(dataset)
    train, test = dataset.good_train(), dataset.test
    tested: list[_Tested] = []
    odd: NDArray[np.bool_] = np.empty(0, dtype=bool)
    skipped: tuple[Result, ...] = ()
    for backbone in backbones:
        images = _Images(backbone, train, test, workers, progress)
        odd, skipped = dataset.is_anomaly(test)[images.rows], images.skipped
        if odd.all() or not odd.any():
            raise InputError("test: needs good images and anomalies that can be read")
        tested += _candidates(images, modes, operators, odd, false_alarms)
    scores = np.stack([each.scores for each in tested])  # (C, T)
    best = int(np.argmax([each.row.auroc.value for each in tested]))
    gain = None
    if min(odd.sum(), (~odd).sum()) >= LEAST and len(tested) > 1:
        gain = chosen_gain(scores, odd, seed=seed)
    worth = gain is not None and gain.low > 0
    rows = tuple(each.row for each in tested)
    return Report(
        *(dataset.name, len(train), int((~odd).sum()), int(odd.sum()), skipped),
        budget=tested[0].budget,
        rows=rows,
        grey=_grey_baseline(train, test.take(images.rows), odd),
        best=rows[best].candidate,
        gain=gain,
        recommended=rows[best if worth else 0].candidate,
        reason=_reason(gain, worth),
    )


def held_out(dataset: Dataset, every: int = 4) -> Dataset:
    """The data set with good test images: where there are fewer than 10, every fourth good training
    image becomes one. Images of training folders that are no good ones are tested, too.

    Raises:
        InputError: no class is good yet.
    """
    odd = dataset.is_anomaly(dataset.train)
    moved = odd.copy()
    tested = len(dataset.test) - int(dataset.is_anomaly(dataset.test).sum())
    if tested < LEAST:
        moved[np.flatnonzero(~odd)[every - 1 :: every]] = True
    if not moved.any():
        return dataset
    spared, test = dataset.train.take(moved), dataset.test
    joined = Split(
        names=test.names + spared.names,
        sources=test.sources + spared.sources,
        labels=np.concatenate([test.labels, spared.labels]),
        masks=test.masks + spared.masks,
    )
    return replace(dataset, train=dataset.train.take(~moved), test=joined)


def _reason(gain: Estimate | None, worth: bool) -> str:
    if gain is None:
        return (
            f"a choice by labels needs two candidates, {LEAST} good test images and {LEAST} "
            f"anomalies: the default"
        )
    told = f"gained {gain.value:+.3f} AUROC ({gain.low:+.3f} to {gain.high:+.3f})"
    return (
        f"chosen by your labels: what one half of them chose {told} over the default on the other"
        if worth
        else f"the default: what one half of your labels chose {told} over it on the other, which "
        f"may be nothing"
    )


class _Images:
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

    def patches(self) -> tuple[Patches, list[Located]]:
        """Patches, fitted, and where each test image is odd."""
        patches = Patches().with_backbone_of(self.backbone)
        patches = patches.fit(self.named, workers=self.workers, progress=self.progress)
        named = zip(self.test.names, self.test.sources, strict=True)
        seen = look(
            *(named, len(self.test), self.backbone, patches),
            workers=self.workers,
            shown="test images" if self.progress else None,
        )
        return patches, [
            each.located for _, each in seen if isinstance(each, Seen) and each.located
        ]

    def ms(self, patches: Patches | None) -> float:
        """Milliseconds of reading an image, the networks and the search among patches."""
        sources = self.test.sources[:_TIMED]
        start = time.perf_counter()
        for source in sources:
            image = read_image(source)
            self.backbone.embed(image)
            if patches:
                patches.locate(image, np.inf)
        return (time.perf_counter() - start) / len(sources) * 1000


def _candidates(
    images: _Images,
    modes: Sequence[str],
    operators: Sequence[str],
    odd: NDArray[np.bool_],
    false_alarms: float | None,
) -> Iterator[_Tested]:
    """Every mode and operator with one network; patches alone need no operator."""
    patches, located = images.patches() if set(modes) - {"image"} else (None, [])
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
            start = time.perf_counter()
            found = used.score(images.new, scores)
            searched = (time.perf_counter() - start) / len(images.new) * 1000
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
            yield _Tested(row, found.scores, budget)


def _pixels(
    patches: Patches,
    located: list[Located],
    masks: Sequence[str | None],
    odd: NDArray[np.bool_],
) -> PixelMetrics | None:
    """Of all maps whose images are good or have a mask; None if there is no mask."""
    if not any(masks):
        return None

    threshold = patches.model.pixel_threshold()

    def told() -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_] | None]]:
        for each, path, is_odd in zip(located, masks, odd, strict=True):
            if path is not None or not is_odd:
                yield patches.map(each, threshold), None if path is None else _mask(path)

    return pixel_metrics(told())


def _mask(path: str) -> NDArray[np.bool_]:
    return np.asarray(read_image(path).convert("L")) > 127


def _grey_baseline(train: Split, test: Split, odd: NDArray[np.bool_]) -> Estimate:
    good, new = (np.array([grey_levels(read_image(s)) for s in x.sources]) for x in (train, test))
    centre, spread = good.mean(axis=0), good.std(axis=0) + 1e-9
    scores = make_operator("knn").fit(Bank((good - centre) / spread)).score((new - centre) / spread)
    return auroc(scores[~odd], scores[odd])


def grey_levels(image: Image.Image) -> NDArray[np.float32]:
    """(7,) mean, deviation, least, most and quartiles of an image's grey levels."""
    grey = np.asarray(image.convert("L"), np.float32)
    quartiles = np.percentile(grey, [25, 50, 75])
    found = [grey.mean(), grey.std(), grey.min(), grey.max(), *quartiles]
    return np.array(found, np.float32)
