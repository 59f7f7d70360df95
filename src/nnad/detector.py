"""The whole path in one place: images -> features -> bank -> score -> p-value -> decision."""

import copy
import os
import warnings
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad import __version__, model_file
from nnad.backbones import Backbone, Run, check_device, from_settings, load_backbone
from nnad.calibrate import Calibration
from nnad.cores import usable_cores
from nnad.crossfit import cross_fitted
from nnad.errors import ImageError, ImageWarning, InputError, ModelError, counted
from nnad.export_check import check_export
from nnad.features import extract
from nnad.images import Source
from nnad.int8 import PRECISIONS, quantized
from nnad.neighbors import Bank
from nnad.operators import Operator, make_operator, operator_name, settings
from nnad.operators.arguments import check_amount, check_count
from nnad.progress import track
from nnad.results import Neighbor, Result
from nnad.sources import (
    calibration_sample,
    keeping_first,
    named_images,
    readable,
    without_repeats,
)
from nnad.transforms import TRANSFORMS, fit_transform, usual_transform

AUTO_REASON = (
    "auto: the distance to the local shape of the good images, the same at every number of images; "
    "no rule that chose by good images alone did better (docs/auto.md)"
)
_EVIDENCE = 3  # nearest good images told for each decision
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
        precision: `float32`, or `int8`: `fit` first makes an int8 copy of the backbone, calibrated
            on at most 100 of the good images, see `nnad.int8`. A loaded model keeps its copy.
        workers: threads that decode and embed; one a core by default.

    After `fit` (also after `load`): `names`, the good images; `features` (N, D), as the backbone
    returned them; `calibration`; `false_alarms`, the budget in force; `skipped`, what could not be
    read while fitting; `export`, for a network that came from torch, the largest relative
    difference that its export made to `features` and to `scores`.

    Raises:
        InputError: an argument is out of range.
        BackboneError: the backbone cannot be loaded.
    """

    names: tuple[str, ...]
    features: NDArray[np.float32]
    calibration: Calibration
    skipped: tuple[Result, ...]
    export: dict[str, float] | None = None

    def __init__(
        self,
        backbone: str | os.PathLike[str] | Backbone | Run = "efficientnet-lite0",
        *,
        transform: str = "auto",
        operator: str | Operator = "auto",
        k: int | None = None,
        false_alarms: float | None = None,
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
        if false_alarms is not None:
            false_alarms = check_amount("false_alarms", false_alarms)
            if not 0 < false_alarms < 1:
                raise InputError(f"false_alarms={false_alarms!r}; a fraction such as 0.01 for 1 %")
        self.backbone = backbone if isinstance(backbone, Backbone) else load_backbone(backbone)
        self._float_backbone = self.backbone if precision == "int8" else None
        self.transform = self._asked_transform = transform
        self.operator = copy.copy(operator)  # fitting one detector must not change another
        self.workers = workers
        self._asked_false_alarms = false_alarms

    def __repr__(self) -> str:
        fitted = f"{len(self.names)} good images" if hasattr(self, "names") else "not fitted"
        chosen = f"transform={self.transform!r}, operator={operator_name(self.operator)!r}"
        return f"Detector({self.backbone.name!r}, {chosen}): {fitted}"

    @property
    def false_alarms(self) -> float:
        """The false-alarm budget in force."""
        return self._asked_false_alarms or self._fitted().calibration.default_budget()

    def fit(
        self,
        images: Source | Iterable[Source],
        *,
        cache: bool = True,
        progress: bool = False,
    ) -> Self:
        """Learn what good images look like.

        Args:
            images: see `find_images`; at least 4 that can be read, and more than the operator's k.
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
            self._check_budget(total)
        backbone = self.backbone
        if self._float_backbone:
            sample, named = calibration_sample(named, total)
            backbone = quantized(self._float_backbone, readable(sample))
        first: list[tuple[str, Source]] = []
        if backbone.exported:
            named = keeping_first(named, first)
        names, features, skipped = [], [], []
        extracted = self._extract(named, total, "good images", progress, backbone, cache=cache)
        for name, feature in extracted:
            if isinstance(feature, ImageError):
                skipped.append(Result(name, error=str(feature)))
            else:
                names.append(name)
                features.append(feature)
        if skipped and not features:
            raise InputError(
                f"none of {counted(len(skipped), 'image')} can be read; {skipped[0].error}"
            )
        needed = max(4, getattr(self.operator, "k", 1) + 1)
        if len(names) < needed:
            reason = f" ({skipped[0].error})" if skipped else ""
            raise InputError(f"too few good images: {len(names)}; {needed} are needed{reason}")
        self._check_budget(len(names))
        fitted = copy.copy(self)  # what fails below leaves this detector as it was
        fitted.backbone, fitted.operator = backbone, copy.copy(self.operator)
        stacked = np.stack(features)  # (N, D)
        if self._asked_transform == "auto":
            fitted.transform = usual_transform(stacked)
        fitted._set(tuple(names), stacked, {})
        fitted.calibration = Calibration(fitted._left_out_scores())
        fitted.skipped = tuple(skipped)
        fitted.export = check_export(backbone, first, fitted._plain_scores) if first else None
        fitted._warn_of_twins()
        self.__dict__ = fitted.__dict__
        return self

    def score(
        self,
        images: Source | Iterable[Source],
        *,
        false_alarms: float | None = None,
        progress: bool = False,
    ) -> list[Result]:
        """Score images; one result each, in order. See `iter_scores`."""
        return list(self.iter_scores(images, false_alarms=false_alarms, progress=progress))

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
        threshold = self._fitted().calibration.threshold(budget)
        named, total = named_images(images)
        extracted = self._extract(named, total, "images", progress, self.backbone)
        return self._results(extracted, threshold, chunk=1 if total is None else _CHUNK)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model to a folder, see `nnad.model_file`.

        Raises:
            ModelError: it exists and `overwrite` is false, holds other files, or cannot be written.
        """
        self._fitted()
        told = {
            "nnad": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "backbone": self.backbone.settings(),
            "transform": self.transform,
            "operator": {"name": operator_name(self.operator), "settings": settings(self.operator)},
            "reason": self.reason,
            "false_alarms": self._asked_false_alarms,
            "export": self.export,
        }
        saved = model_file.Saved(
            settings=told,
            encoders=self.backbone.networks,
            names=self.names,
            features=self.features,
            good_scores=self.calibration.good_scores,
            operator_state=getattr(self.operator, "state", dict)(),
        )
        model_file.write_model(Path(path), saved, overwrite=overwrite)

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
        saved = model_file.read_model(Path(path))
        check_device(device)
        if backbone is not None and device not in ("cpu", backbone.device):
            raise InputError(f"device={device!r}: the backbone given runs on {backbone.device}")
        try:
            if "groups" in saved.settings:
                raise ModelError(f"{path}: a model of groups; `nnad groups score` opens it")
            told = saved.settings["backbone"]
            if backbone is None:
                backbone = from_settings(told, saved.encoders, device)
            else:
                backbone.check_same(told)
            operator = saved.settings["operator"]
            detector = cls(
                backbone,
                transform=saved.settings["transform"],
                operator=make_operator(operator["name"], **operator["settings"]),
                false_alarms=saved.settings["false_alarms"],
                workers=workers,
            )
            detector.reason = str(saved.settings["reason"])
            detector.export = saved.settings["export"]
            detector._set(saved.names, saved.features, saved.operator_state)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = repr(error)[:200]
            raise ModelError(f"{path}: damaged or not written by nnad: {reason}") from error
        detector.calibration = Calibration(saved.good_scores)
        detector.skipped = ()
        return detector

    def _fitted(self) -> Self:
        if not hasattr(self, "names"):
            raise InputError("this detector has seen no good images; call fit first")
        return self

    def _check_budget(self, count: int) -> None:
        if self._asked_false_alarms is not None:
            Calibration(np.empty(count)).check(self._asked_false_alarms)

    def _set(
        self,
        names: tuple[str, ...],
        features: NDArray[np.float32],
        operator_state: dict[str, NDArray[Any]],
    ) -> None:
        self.names, self.features = names, features  # (N,), (N, D)
        self._transform = fit_transform(self.transform, features)
        self._bank = Bank(self._transform(features))
        if operator_state:
            self.operator.restore(self._bank, operator_state)  # type: ignore[attr-defined]
        else:
            self.operator.fit(self._bank)

    def _left_out_scores(self) -> NDArray[np.float64]:
        if self.transform != "white":  # what it learns from all images would know each of them
            return self.operator.left_out_scores()

        def score(good: NDArray[Any], held_out: NDArray[Any]) -> NDArray[np.float64]:
            transform = fit_transform(self.transform, good)
            operator = copy.copy(self.operator).fit(Bank(transform(good)))
            return operator.score(transform(held_out))

        return cross_fitted(self.features, score)

    def _plain_scores(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Features (Q, D) -> (Q,) scores."""
        return self.operator.score(self._transform(features))

    def _warn_of_twins(self) -> None:
        first: dict[bytes, str] = {}
        twins = []  # pairs of names with the same feature, bit for bit
        for name, feature in zip(self.names, self.features, strict=True):
            other = first.setdefault(feature.tobytes(), name)
            if other != name:
                twins.append((other, name))
        if twins:
            warnings.warn(
                f"copies of others: {len(twins)} of {len(self.names)} good images (for example "
                f"{' and '.join(twins[0])}): the false-alarm budget may not hold; keep one of each",
                ImageWarning,
                stacklevel=3,
            )

    def _extract(
        self,
        named: Iterable[tuple[str, Source]],
        total: int | None,
        label: str,
        progress: bool,
        backbone: Backbone,
        cache: bool = False,
    ) -> Iterator[tuple[str, NDArray[np.float32] | ImageError]]:
        workers = self.workers or usable_cores()
        ahead = workers if total is None else None
        extracted = extract(named, backbone, workers=workers, ahead=ahead, cache=cache)
        return track(extracted, total, label, show=progress)

    def _results(
        self,
        extracted: Iterator[tuple[str, NDArray[np.float32] | ImageError]],
        threshold: float,
        chunk: int,
    ) -> Iterator[Result]:
        while some := list(islice(extracted, chunk)):
            good = [feature for _, feature in some if not isinstance(feature, ImageError)]
            scored = iter(self._score_features(np.stack(good), threshold) if good else ())
            for name, feature in some:
                if isinstance(feature, ImageError):
                    yield Result(name, error=str(feature))
                else:
                    yield Result(name, *next(scored))

    def _score_features(
        self, features: NDArray[np.float32], threshold: float
    ) -> Iterator[tuple[float, float, bool, tuple[Neighbor, ...]]]:
        """Features (Q, D) -> score, p-value, decision and evidence of each."""
        queries = self._transform(features)
        told = min(max(_EVIDENCE, getattr(self.operator, "k", 1)), len(self._bank))
        needed = min(max(told, getattr(self.operator, "n_local", 1)), len(self._bank))
        found = self._bank.nearest(queries, needed)
        scores = self.operator.score(queries, found)
        p_values = self.calibration.p_values(scores)
        for i in range(len(features)):
            nearest = tuple(
                Neighbor(self.names[row], float(distance))
                for row, distance in zip(
                    found.rows[i, :told], np.sqrt(found.sq_dists[i, :told]), strict=True
                )
            )
            yield float(scores[i]), float(p_values[i]), bool(scores[i] > threshold), nearest
