"""The whole path in one place: images -> features -> bank -> score -> p-value -> decision."""

import copy
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nnad import saving
from nnad.backbones import Backbone, Run, load_backbone
from nnad.budgets import fewest_alarms, within_fdr
from nnad.calibrate import Calibration
from nnad.combined import MODES, Combined
from nnad.conformal import Method
from nnad.embedding import embed, warn_of_twins
from nnad.errors import ImageError, InputError
from nnad.export_check import check_export
from nnad.features import own
from nnad.history import History
from nnad.images import Source
from nnad.int8 import PRECISIONS, quantized
from nnad.learnt import Learnt, check_budget, checked_budget
from nnad.located import Located, Patches
from nnad.model_writing import write_model
from nnad.operators import Operator, make_operator, operator_name
from nnad.operators.arguments import check_choice, check_count
from nnad.products import parse_products
from nnad.results import Result, decided
from nnad.scorer import Scorer
from nnad.scoring import Seen, look, results
from nnad.sources import (
    calibration_sample,
    good_images,
    keeping_first,
    named_images,
    readable,
)
from nnad.transforms import TRANSFORMS, usual_transform

AUTO_REASON = (
    "auto: the distance to the local shape of the good images, the same at every number of images; "
    "no rule that chose by good images alone did better (docs/auto.md)"
)


class Detector(Learnt):
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
        mode: what is scored: the `image` as a whole, its `patch`es, or `both`, see
            `nnad.combined`; features are there in all modes, for the nearest good images.
        patches: how patches are looked at; by default those of the whole frame at 320 pixels.
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
        mode: str = "image",
        patches: Patches | None = None,
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
        self.mode = check_choice("mode", mode, MODES)
        self.method = Method.parse(calibration)
        if not isinstance(patches, Patches | None):
            raise InputError(f"patches={patches!r}; expected Patches(...)")
        if mode == "image" and patches is not None:
            raise InputError("patches: go with mode='patch' or 'both'")
        if mode != "image" and products is not None:
            raise InputError("products: with patches, fit a model for each product")
        if mode != "image" and self.method.has_folds:
            raise InputError(f"calibration={calibration!r}: with patches, leave-one-out or split")
        self.backbone = backbone if isinstance(backbone, Backbone) else load_backbone(backbone)
        self._float_backbone = self.backbone if precision == "int8" else None
        self.transform = self._asked_transform = transform
        self.operator = copy.copy(operator)  # fitting one detector must not change another
        self.workers = workers
        self.patches: Patches | None = None
        if mode != "image":
            network = self.backbone if isinstance(backbone, Backbone) else backbone
            self.patches = (patches or Patches()).with_backbone_of(network)
        self.products = parse_products(products)
        self.asked_false_alarms = checked_budget(false_alarms)
        self.skipped: tuple[Result, ...] = ()
        self.export: dict[str, float] | None = None
        self.dropped_unseen = 0
        self._scorer: Scorer | None = None
        self._history: History | None = None

    def __repr__(self) -> str:
        fitted = f"{len(self.names)} good images" if self._history else "not fitted"
        chosen = f"transform={self.transform!r}, operator={operator_name(self.operator)!r}"
        chosen += f", mode={self.mode!r}" if self.patches else ""
        return f"Detector({self.backbone.name!r}, {chosen}): {fitted}"

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
                With patches, those of an iterator are kept in memory until patches are learnt.
            by: who fits, for the log; the user's login by default.
            cache: neither decode nor embed again what was fitted before, see
                `nnad.feature_cache`; the result is the same, bit for bit.
            progress: show a bar on a terminal.

        Raises:
            InputError: nothing to read, or too few images.
            BudgetError: too few images for the false-alarm budget that was asked for.
            BackboneError: the export of a torch network changed features or scores too much.
        """
        named, total = good_images(images)
        if total is not None:
            self.method.check(total)
            check_budget(
                self.asked_false_alarms, Calibration(np.empty(self.method.calibrating(total)))
            )
        listed = []
        if self.patches:  # they are looked at twice
            named = listed = [(name, own(source)) for name, source in named]
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
        self.check_count(len(names), skipped)
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
        check_budget(self.asked_false_alarms, scorer.calibration)
        export = None
        if first:
            export = check_export(backbone, first, lambda new: scorer.score(new).scores)
        patches = self.patches
        if patches:
            sources = dict(listed)
            good = [(name, sources[name]) for name in names]
            bank = [good[row] for row in scorer.rows]
            patches = patches.fit(bank, workers=self.workers, progress=progress)
            combined = Combined.fit(
                self.mode, scorer.operator.left_out_scores(), patches.model.good_scores
            )
            if self.method.name == "split":
                others = [good[row] for row in scorer.calibrating]
                patches = patches.recalibrated(others, workers=self.workers, progress=progress)
            scorer = scorer.with_patches(combined, patches.model.good_scores)
        warn_of_twins(names, features)
        # what failed above leaves this detector as it was
        self.backbone, self.transform, self.export = backbone, transform, export
        self.patches = patches
        self.skipped, self.dropped_unseen = skipped, 0
        self.set_fitted(scorer, History.begin(names, features, by))
        return self

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
        budget = self._budget(false_alarms)
        return (result for result, _ in self._iter_located(images, budget, progress))

    def iter_maps(
        self,
        images: Source | Iterable[Source],
        *,
        false_alarms: float | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[Result, NDArray[np.float32] | None]]:
        """Score images and show where they are odd, one after the other.

        Returns:
            An iterator of results, each with the anomaly map (H, W) in pixels of the image, None
            with an error: 0 is what is usual, 1 the patch threshold (docs/patches.md), NaN what was
            not looked at. The scale is the same for all images of a budget.

        Raises:
            InputError: as `iter_scores`, or the detector's mode is `image`.
            BudgetError: as `iter_scores`.
        """
        if self.patches is None:
            raise InputError("mode='image' has no maps; fit with mode='patch' or 'both'")
        budget = self._budget(false_alarms)
        patches, threshold = self.patches, self.patches.model.pixel_threshold(budget)
        return (
            (result, None if located is None else patches.map(located, threshold))
            for result, located in self._iter_located(images, budget, progress)
        )

    def _budget(self, false_alarms: float | None) -> float:
        budget = self.false_alarms if false_alarms is None else false_alarms
        self.calibration.check(budget)
        return budget

    def look(
        self,
        named: Iterable[tuple[str, Source]],
        total: int | None,
        *,
        false_alarms: float,
        shown: str | None = None,
    ) -> Iterator[tuple[str, Seen | ImageError]]:
        """What is seen in images, one after the other, see `nnad.scoring`."""
        patches = self.patches
        threshold = patches.model.pixel_threshold(false_alarms) if patches else np.inf
        return look(
            *(named, total, self.backbone, patches),
            threshold=threshold,
            workers=self.workers,
            shown=shown,
        )

    def _iter_located(
        self, images: Source | Iterable[Source], budget: float, progress: bool
    ) -> Iterator[tuple[Result, Located | None]]:
        named, total = named_images(images)
        shown = "images" if progress else None
        seen = self.look(named, total, false_alarms=budget, shown=shown)
        return results(seen, self.scorer, self.names, budget, total)

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
