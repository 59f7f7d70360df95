"""Which operator, network and mode for these images? A comparison on a user's labelled data.

    good images fit -> every candidate scores the labelled test images -> AUROC with an interval
        -> half of the labels choose, the other half measures what the choice gained, many times

The best of many rows looks better than it is, since the labels that choose it also measure it. So
another candidate than the first, the default, is recommended only if it gained on labels that had
no part in the choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnad.backbones import Backbone
from nnad.bench_rows import Candidate, Images, Row, Tested, candidates
from nnad.choice import chosen_gain
from nnad.combined import MODES
from nnad.datasets import Dataset
from nnad.errors import BackboneError, InputError, counted
from nnad.evaluate import Estimate, auroc
from nnad.labelled import LEAST, check_masks, grey_scores, held_out
from nnad.located import SIZE, Patches, maps_of
from nnad.operators import NAMES
from nnad.operators.arguments import check_choice
from nnad.results import Result
from nnad.tiles import Tiles

OPERATORS = ("auto", "knn", "knnn", "global", "hull")
_NEAR = 0.05  # AUROC below the best at which grey levels are as good as it


@dataclass(frozen=True)
class Report:
    """What `bench` found.

    Attributes:
        data: the name of the data set.
        good: images that were fitted.
        good_tested, anomalies: images that were scored.
        masked: anomalies that have a mask; maps are measured on these and the good images.
        known: good test images that were fitted, too, bit for bit by every network's features: they
            tell nothing.
        skipped: images that could not be read.
        budget: the false-alarm budget of the rows.
        rows: of all candidates, the default first.
        grey: AUROC of k-NN on seven statistics of an image's grey levels. See `may_be_light`.
        best: the candidate with the highest AUROC on all labels.
        gain: of choosing by one half of the labels, measured on the other: mean, and the 2.5th and
            97.5th percentile of the splits, which share their images. None if there are too few
            labels.
        recommended: `best` if 97.5 % of the splits gained, else the default.
        reason: why, in a sentence.
    """

    data: str
    good: int
    good_tested: int
    anomalies: int
    masked: int
    known: int
    skipped: tuple[Result, ...]
    budget: float
    rows: tuple[Row, ...]
    grey: Estimate
    best: Candidate
    gain: Estimate | None
    recommended: Candidate
    reason: str

    @property
    def may_be_light(self) -> bool:
        """Whether grey levels alone tell anomalies from good images, beyond chance, about as well
        as the best row: then light may be all that differs, and no row says much about defects.
        """
        best = max(row.auroc.value for row in self.rows)
        return self.grey.low > 0.5 and self.grey.value > best - _NEAR


def bench(
    dataset: Dataset,
    backbones: Sequence[Backbone],
    *,
    modes: Sequence[str] = ("image", "both"),
    operators: Sequence[str] = OPERATORS,
    patch_size: int = SIZE,
    tiles: Tiles | None = None,
    false_alarms: float | None = None,
    workers: int | None = None,
    progress: bool = False,
    seed: int = 0,
) -> Report:
    """Compare candidates on labelled images.

    Args:
        dataset: with good classes; see `held_out` for what is done without good test images.
        backbones: networks; the first is the default's.
        modes: `image`, `patch`, `both`; the default's is the first. Patches need a
            network that gives maps, see `nnad.located.maps_of`.
        operators: names for `make_operator`; the default's is the first.
        patch_size: side of the networks' input for patches, in pixels.
        tiles: cut images into tiles for patches, see `nnad.tiles.Tiles`; else the whole frame.
        false_alarms: the budget; by default 1 %, or what the good images support.
        workers: threads.
        progress: show bars on a terminal.
        seed: of the splits.

    Raises:
        InputError: no such mode or operator, too few images, no anomaly or no good one among the
            test images, or with patches a mask that does not fit its image.
        BackboneError: patches, and a network gives no maps.
        BudgetError: the good images cannot support the budget.
    """
    for name, given in (("backbones", backbones), ("modes", modes), ("operators", operators)):
        if not given:
            raise InputError(f"{name}: none to compare; give one at least")
    for mode in modes:
        check_choice("mode", mode, MODES)
    for operator in operators:
        check_choice("operator", operator, ("auto", *NAMES))
    dataset = held_out(dataset)
    train, test = dataset.good_train(), dataset.test
    unfitted: list[Patches | None] = [None] * len(backbones)
    if set(modes) - {"image"}:
        unfitted = [_patches_of(backbone, patch_size, tiles) for backbone in backbones]
        check_masks(test)
    tested: list[Tested] = []
    odd: NDArray[np.bool_] = np.empty(0, dtype=bool)
    are_known: list[NDArray[np.bool_]] = []  # by each network
    skipped: tuple[Result, ...] = ()
    for backbone, patches in zip(backbones, unfitted, strict=True):
        images = Images(backbone, train, test, workers, progress)
        odd, skipped = dataset.is_anomaly(test)[images.rows], images.skipped
        if odd.all() or not odd.any():
            told = f"{counted(int((~odd).sum()), 'good image')} and {int(odd.sum())} anomalies"
            raise InputError(f"test: needs good images and anomalies; {told} can be read")
        are_known.append(images.are_known())
        tested += candidates(images, patches, modes, operators, odd, false_alarms)
    masks = images.test.masks
    scores = np.stack([each.scores for each in tested])  # (C, T)
    best = int(np.argmax([each.row.auroc.value for each in tested]))
    gain = None
    if min(odd.sum(), (~odd).sum()) >= LEAST and len(tested) > 1:
        gain = chosen_gain(scores, odd, seed=seed)
    worth = gain is not None and gain.low > 0
    rows = tuple(each.row for each in tested)
    grey = grey_scores([source for _, source in images.named], images.test.sources)
    return Report(
        *(dataset.name, len(images.good), int((~odd).sum()), int(odd.sum())),
        masked=sum(mask is not None and bool(o) for mask, o in zip(masks, odd, strict=True)),
        known=int((np.all(are_known, axis=0) & ~odd).sum()),
        skipped=skipped,
        budget=tested[0].budget,
        rows=rows,
        grey=auroc(grey[~odd], grey[odd]),
        best=rows[best].candidate,
        gain=gain,
        recommended=rows[best if worth else 0].candidate,
        reason=_reason(gain, worth, len(tested), int((~odd).sum()), int(odd.sum())),
    )


def _patches_of(backbone: Backbone, size: int, tiles: Tiles | None) -> Patches:
    try:
        return Patches(maps_of(backbone, size), tiles=tiles)
    except BackboneError:
        raise BackboneError(
            f"{backbone.name}: nnad knows no maps of this network, which patches need; compare it "
            f"in the mode image alone"
        ) from None


def _reason(gain: Estimate | None, worth: bool, candidates: int, good: int, odd: int) -> str:
    if gain is None:
        return (
            f"a choice by labels needs two candidates, {LEAST} good test images and {LEAST} "
            f"anomalies; here are {candidates}, {good} and {odd}: the default"
        )
    told = (
        f"what one half of them chose gained {gain.value:+.3f} AUROC over the default on the other "
        f"(95 % of the splits: {gain.low:+.3f} to {gain.high:+.3f})"
    )
    return (
        f"chosen by your labels: {told}"
        if worth
        else f"the default, and not by your labels: {told}, which may be nothing"
    )
