"""The whole path in one place: images -> features -> bank -> score -> p-value -> decision."""

import copy
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nnad import saving
from nnad.backbones import Backbone, Run, load_backbone
from nnad.budgets import fewest_alarms, within_fdr
from nnad.calibrate import Calibration, within
from nnad.conformal import Method
from nnad.embedding import Embedded, embed, extracted, warn_of_twins
from nnad.errors import ImageError, InputError
from nnad.export_check import check_export
from nnad.history import Change, History
from nnad.images import Source
from nnad.int8 import PRECISIONS, quantized
from nnad.model_writing import write_model
from nnad.operators import Operator, make_operator, operator_name
from nnad.operators.arguments import check_amount, check_count
from nnad.products import parse_products
from nnad.results import Neighbor, Result, decided
from nnad.scorer import Scorer
from nnad.sources import (
    calibration_sample,
    keeping_first,
    named_images,
    readable,
    without_repeats,
)
from nnad.transforms import TRANSFORMS, usual_transform

AUTO_REASON = (
    "auto: the distance to the local shape of the good images, the same at every number of images; "
    "no rule that chose by good images alone did better (docs/auto.md)"
)
_CHUNK = 64  # images searched at a time; those of an iterator one by one, as it may be a camera


class Detector:
    """Finds images unlike the good ones it was shown. Nothing is trained.

    Args:
        backbone: a `Backbone`, or a name, path or function for `load_backbone`.
        transform: `root`, `l2`, `raw`, `log` or `white`, see `nnad.transforms`; by default `auto`,
            `root`, or `l2` for networks whose features are signed.
        operator: a name for `make_operator`, or an operator; `auto`, the default, is the distance
            to the local shape of the good images, see docs/auto.md; `knn` is DN2's Eq. 2.
        k: the operator's neighbours, if the operator is given by name; its own default otherwise.
        false_alarms: the fraction of good images that may be called anomalies; 0.01 by default,
            or 1 / (n + 1) when there are too few good images (n < 99) for that.
        calibration: where p-values come from, and what is promised: `leave-one-out`, `split`,
            `cross` or `jackknife+`, see `nnad.conformal`; `split:0.25` lets a quarter of the good
            images calibrate, `cross:10` makes 10 folds.
        products: for good images of several products: `folders`, named by the folder that holds
            an image, or the number of k-means clusters. Images are assigned to the product of the
            nearest good image, and those of each have a calibration of their own.
        precision: `float32`, or `int8`: `fit` first makes an int8 copy of the backbone, calibrated
            on at most 100 of the good images, see `nnad.int8`. A loaded model keeps its copy.
        workers: threads that decode and embed; one a core by default.

    After `fit` (also after `load`): `names`, the good images; `features` (N, D), as the backbone
    returned them; `calibration`; `false_alarms`, the budget in force; `log`, all changes;
    `skipped`, what could not be read while fitting or adding; `export`, for a network that came
    from torch, the largest relative difference that its export made to `features` and to `scores`;
    `dropped_unseen`, images that `nnad clean` dropped without a person's word, to be set after
    `fit` by whoever drops them: the budget does not hold then, see docs/cleaning.md.

    Raises:
        InputError: an argument is out of range.
        BackboneError: the backbone cannot be loaded.
    """

    def __init__(
        self,
        backbone: str | os.PathLike[str] | Backbone | Run = "efficientnet-lite0",
        *,
        transform: str = "auto",
        operator: str | Operator = "auto",
        k: int | None = None,
        false_alarms: float | None = None,
        calibration: str = "leave-one-out",
        products: str | int | None = None,
        precision: str = "float32",
        workers: int | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision={precision!r}; choose one of {', '.join(PRECISIONS)}")
        if transform not in ("auto", *TRANSFORMS):
            known = ", ".join(TRANSFORMS)
            raise InputError(f"transform={transform!r}; choose one of auto, {known}")
        self.reason = AUTO_REASON if operator == "auto" else "as asked for"
        if isinstance(operator, str):
            operator = make_operator(operator, **({} if k is None else {"k": k}))
        elif k is not None:
            raise InputError("k: goes with the name of an operator; this operator has its own")
        if workers is not None:
            workers = check_count("workers", workers)
        self.backbone = backbone if isinstance(backbone, Backbone) else load_backbone(backbone)
        self._float_backbone = self.backbone if precision == "int8" else None
        self.transform = self._asked_transform = transform
        self.operator = copy.copy(operator)  # fitting one detector must not change another
        self.workers = workers
        self.method = Method.parse(calibration)
        self.products = parse_products(products)
        self.asked_false_alarms = _checked_budget(false_alarms)
        self.skipped: tuple[Result, ...] = ()
        self.export: dict[str, float] | None = None
        self.dropped_unseen = 0
        self._scorer: Scorer | None = None
        self._history: History | None = None

    def __repr__(self) -> str:
        fitted = f"{len(self.names)} good images" if self._history else "not fitted"
        chosen = f"transform={self.transform!r}, operator={operator_name(self.operator)!r}"
        return f"Detector({self.backbone.name!r}, {chosen}): {fitted}"

    @property
    def false_alarms(self) -> float:
        """The false-alarm budget in force."""
        return self.asked_false_alarms or self.calibration.default_budget()

    @property
    def names(self) -> tuple[str, ...]:
        """(N,) the good images."""
        return self.history.names

    @property
    def features(self) -> NDArray[np.float32]:
        """(N, D) features of the good images, as the backbone returned them."""
        return self.history.features()

    @property
    def calibration(self) -> Calibration:
        """What turns scores into p-values."""
        return self.scorer.calibration

    @property
    def log(self) -> tuple[Change, ...]:
        """All changes of the good images and the budget, oldest first."""
        return self.history.changes

    @property
    def scorer(self) -> Scorer:
        """What scores features. Raises an `InputError` before the fit."""
        if self._scorer is None:
            raise InputError("this detector has seen no good images; call fit first")
        return self._scorer

    @property
    def history(self) -> History:
        """The good images and their changes. Raises an `InputError` before the fit."""
        if self._history is None:
            raise InputError("this detector has seen no good images; call fit first")
        return self._history

    def fit(
        self,
        images: Source | Iterable[Source],
        *,
        by: str | None = None,
        cache: bool = True,
        progress: bool = False,
    ) -> Self:
        """Learn what good images look like.

        Args:
            images: see `find_images`; at least 4 that can be read, and more than the operator's k.
            by: who fits, for the log; the user's login by default.
            cache: neither decode nor embed again what was fitted before, see
                `nnad.feature_cache`; the result is the same, bit for bit.
            progress: show a bar on a terminal.

        Raises:
            InputError: nothing to read, or too few images.
            BudgetError: too few images for the false-alarm budget that was asked for.
            BackboneError: the export of a torch network changed features or scores too much.
        """
        named, total = named_images(images, only_good=True)
        if total is not None:
            named = without_repeats(named)
            total = len(named)
            self.method.check(total)
            _check_budget(
                self.asked_false_alarms, Calibration(np.empty(self.method.calibrating(total)))
            )
        backbone = self.backbone
        if self._float_backbone:
            sample, named = calibration_sample(named, total)
            backbone = quantized(self._float_backbone, readable(sample))
        first: list[tuple[str, Source]] = []
        if backbone.exported:
            named = keeping_first(named, first)
        names, features, skipped = embed(
            named, total, backbone, workers=self.workers, cache=cache, progress=progress
        )
        self._check_count(len(names), skipped)
        transform = self._asked_transform
        if transform == "auto":
            transform = usual_transform(features[self.method.bank_rows(features)])
        scorer = Scorer(
            features,
            transform,
            self.operator,
            method=self.method,
            products=self.products,
            names=names,
        )
        _check_budget(self.asked_false_alarms, scorer.calibration)
        export = None
        if first:
            export = check_export(backbone, first, lambda new: scorer.score(new).scores)
        warn_of_twins(names, features)
        # what failed above leaves this detector as it was
        self.backbone, self.transform, self.export = backbone, transform, export
        self.skipped, self.dropped_unseen = skipped, 0
        self.set_fitted(scorer, History.begin(names, features, by))
        return self

    def add(
        self,
        images: Source | Iterable[Source],
        *,
        reason: str = "",
        by: str | None = None,
        cache: bool = True,
        progress: bool = False,
    ) -> Change:
        """Take more good images. The detector is then equal to one fitted on all of them.

        Args:
            images: see `fit`; one that is in the detector already, under any name, is left out
                with a warning. `skipped` has those that could not be read, and those whose name
                stands for another picture.
            reason: why, for the log.
            by: who, for the log; the user's login by default.
            cache: see `fit`.
            progress: see `fit`.

        Raises:
            InputError: nothing to read, or nothing new.
        """
        return self.add_embedded(self.embed(images, cache=cache, progress=progress), reason, by)

    def embed(
        self, images: Source | Iterable[Source], *, cache: bool = True, progress: bool = False
    ) -> Embedded:
        """The slow part of `add`: it changes nothing."""
        named, total = named_images(images, only_good=True)
        if total is not None:
            named = without_repeats(named)
            total = len(named)
        return embed(
            named, total, self.backbone, workers=self.workers, cache=cache, progress=progress
        )

    def add_embedded(self, images: Embedded, reason: str = "", by: str | None = None) -> Change:
        """The fast part of `add`."""
        names, features, refused = self.history.new_among(images.names, images.features)
        skipped = (*images.skipped, *refused)
        if not names:
            why = refused[0].error if refused else "these images are all in the model already"
            raise InputError(f"nothing to add: {why}")
        history = self.history.add(names, features, reason, by)
        warn_of_twins(names, features, total=len(history.names))
        self._change(history, self.asked_false_alarms)
        self.skipped = skipped
        return self.log[-1]

    def remove(
        self, names: str | Iterable[str], *, reason: str = "", by: str | None = None
    ) -> Change:
        """Forget good images. The detector is then equal to one fitted on the others.

        Args:
            names: as in `names`, or the end of a path that fits one image only.
            reason: why, for the log.
            by: who, for the log; the user's login by default.

        Raises:
            InputError: no such image, or too few are left.
            BudgetError: those that are left cannot support the budget that was asked for.
        """
        names = [names] if isinstance(names, str) else list(names)
        if not names:
            raise InputError("names: no image to remove")
        self._change(self.history.remove(names, reason, by), self.asked_false_alarms)
        return self.log[-1]

    def set_budget(
        self, false_alarms: float | None, *, reason: str = "", by: str | None = None
    ) -> Change:
        """Change the false-alarm budget; None is the default one. No image is looked at again.

        Raises:
            InputError: it is not a fraction.
            BudgetError: the good images cannot support it.
        """
        after = _checked_budget(false_alarms)
        history = self.history.set_budget(self.asked_false_alarms, after, reason, by)
        self._change(history, after)
        return self.log[-1]

    def undo(self, *, reason: str = "", by: str | None = None) -> Change:
        """Take back the last change that is in force, see `log`; once more, the one before it.

        Raises:
            InputError: there is none.
            BudgetError: without it the good images cannot support the budget.
        """
        last = self.history.last()
        budget = last.budgets[0] if last.budgets else self.asked_false_alarms
        self._change(self.history.undo(reason, by), budget)
        return self.log[-1]

    def _change(self, history: History, budget: float | None) -> None:
        """Take other good images and another budget, or raise and stay as before."""
        self._check_count(len(history.rows))
        scorer = self.scorer
        if not np.array_equal(history.rows, self.history.rows):
            old_rows = self.history.old_rows(history.rows)
            scorer = scorer.edited(history.features(), old_rows, history.names)
        _check_budget(budget, scorer.calibration)
        self.asked_false_alarms = budget
        self.set_fitted(scorer, history)

    def score(
        self,
        images: Source | Iterable[Source],
        *,
        false_alarms: float | None = None,
        fdr: float | None = None,
        progress: bool = False,
    ) -> list[Result]:
        """Score images; one result each, in order.

        Args:
            images: see `iter_scores`.
            false_alarms: see `iter_scores`.
            fdr: decide on all images together instead: on average at most this fraction of those
                that are called anomalies is good, see `nnad.budgets.within_fdr`.
            progress: see `iter_scores`.

        Raises:
            InputError: as `iter_scores`, or both a budget and `fdr` are given.
            BudgetError: the good images cannot support the budget, or `fdr`.
        """
        if fdr is None:
            return list(self.iter_scores(images, false_alarms=false_alarms, progress=progress))
        if false_alarms is not None:
            raise InputError("give false_alarms or fdr, not both")
        fewest_alarms(1, self.calibration.smallest_p_value, fdr)
        results = list(self.iter_scores(images, progress=progress))
        return decided(results, lambda p_values: within_fdr(p_values, fdr))

    def iter_scores(
        self,
        images: Source | Iterable[Source],
        *,
        false_alarms: float | None = None,
        progress: bool = False,
    ) -> Iterator[Result]:
        """Score images one after the other, in bounded memory.

        Args:
            images: see `find_images`. One that cannot be read gives a result with an error. An
                iterator is read at most one image a worker ahead of the results.
            false_alarms: another budget than the detector's, for this call.
            progress: show a bar on a terminal.

        Raises:
            InputError: nothing to read, or the budget is not a fraction.
            BudgetError: the good images cannot support the budget.
        """
        budget = self.false_alarms if false_alarms is None else false_alarms
        self.calibration.check(budget)
        named, total = named_images(images)
        shown = "images" if progress else None
        features = extracted(named, total, self.backbone, self.workers, shown)
        return self._results(features, budget, chunk=1 if total is None else _CHUNK)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model to a folder, see `nnad.model_file`.

        Raises:
            ModelError: it exists and `overwrite` is false, holds other files, or cannot be written.
        """
        write_model(Path(path), saving.to_saved(self), overwrite=overwrite)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backbone: Backbone | None = None,
        device: str = "cpu",
        workers: int | None = None,
    ) -> Self:
        """Open a saved model. It scores exactly as it did when it was saved.

        Args:
            path: the model's folder.
            backbone: the backbone, if it is a `CallableBackbone`, which no file can hold; another
                than the one that the model was made with is refused.
            device: `cpu`, or `cuda` or `cuda:1`; a GPU rounds otherwise than the CPU.
            workers: see `Detector`.

        Raises:
            ModelError: it is missing, damaged, foreign or from a newer nnad.
            BackboneError: the backbone is another one, or the device is not there.
        """
        return saving.load(cls, Path(path), backbone, device, workers)

    def set_fitted(self, scorer: Scorer, history: History) -> None:
        """Become a fitted detector; `fit`, `load` and changes end here."""
        self._scorer, self._history = scorer, history
        self.operator = scorer.operator

    def _check_count(self, count: int, skipped: tuple[Result, ...] = ()) -> None:
        needed = max(4, getattr(self.operator, "k", 1) + 1)
        if count < needed:
            reason = f" ({skipped[0].error})" if skipped else ""
            raise InputError(f"too few good images: {count}; {needed} are needed{reason}")
        self.method.check(count)

    def _results(
        self,
        extracted: Iterator[tuple[str, NDArray[np.float32] | ImageError]],
        budget: float,
        chunk: int,
    ) -> Iterator[Result]:
        while some := list(islice(extracted, chunk)):
            good = [feature for _, feature in some if not isinstance(feature, ImageError)]
            scored = iter(self._score_features(np.stack(good), budget) if good else ())
            for name, feature in some:
                if isinstance(feature, ImageError):
                    yield Result(name, error=str(feature))
                else:
                    yield Result(name, *next(scored))

    def _score_features(
        self, features: NDArray[np.float32], budget: float
    ) -> Iterator[tuple[float, float, bool, tuple[Neighbor, ...], str | None]]:
        """Features (Q, D) -> score, p-value, decision, evidence and product of each."""
        scores, p_values, found, categories, _ = self.scorer.score(features)
        distances = np.sqrt(found.sq_dists)
        for i in range(len(features)):
            nearest = tuple(
                Neighbor(self.names[row], float(distance))
                for row, distance in zip(found.rows[i], distances[i], strict=True)
            )
            product = self.calibration.product_names[categories[i]] or None
            is_anomaly = within(float(p_values[i]), budget)
            yield float(scores[i]), float(p_values[i]), is_anomaly, nearest, product


def _checked_budget(false_alarms: float | None) -> float | None:
    if false_alarms is None:
        return None
    false_alarms = check_amount("false_alarms", false_alarms)
    if not 0 < false_alarms < 1:
        raise InputError(f"false_alarms={false_alarms!r}; a fraction such as 0.01 for 1 %")
    return false_alarms


def _check_budget(budget: float | None, calibration: Calibration) -> None:
    if budget is not None:
        calibration.check(budget)
