"""A detector -> what a model folder holds, and back."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nnad import __version__
from nnad.backbones import Backbone, check_device, from_settings
from nnad.combined import Combined
from nnad.errors import InputError, ModelError
from nnad.located import Patches
from nnad.model_file import Saved, SavedPatches, read_model
from nnad.operators import make_operator, operator_name, settings
from nnad.operators.arguments import check_count
from nnad.scorer import Known, Scorer

if TYPE_CHECKING:
    from nnad.detector import Detector

D = TypeVar("D", bound="Detector")


def to_saved(detector: "Detector") -> Saved:
    """All that `load` needs."""
    operator = detector.operator
    told = {
        "nnad": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "backbone": detector.backbone.settings(),
        "transform": detector.transform,
        "operator": {"name": operator_name(operator), "settings": settings(operator)},
        "reason": detector.reason,
        "dropped_unseen": detector.dropped_unseen,
        "calibration": str(detector.method),
        "products": detector.products,
        "product_names": detector.calibration.product_names,
        "false_alarms": detector.asked_false_alarms,
        "export": detector.export,
        "mode": detector.mode,
        "patches": detector.patches and detector.patches.settings(),
        "combined": detector.scorer.combined and detector.scorer.combined.settings(),
    }
    known = Known(
        graph=detector.scorer.bank.graph,
        operator_state=getattr(operator, "state", dict)(),
        calibration=detector.scorer.by_features,
        products=detector.scorer.products,
    )
    patches = None
    if detector.patches:
        model = detector.patches.model
        patches = SavedPatches(detector.patches.backbone.networks, model.arrays())
    return Saved(told, detector.backbone.networks, detector.history, known, patches)


def check_opening(backbone: Backbone | None, device: str, workers: int | None) -> None:
    """Raise an `InputError` or a `BackboneError` if the arguments of a `load` are wrong."""
    check_device(device)
    if backbone is not None and device not in ("cpu", backbone.device):
        raise InputError(f"device={device!r}: the backbone given runs on {backbone.device}")
    if workers is not None:
        check_count("workers", workers)


def opened_backbone(saved: Saved, backbone: Backbone | None, device: str) -> Backbone:
    """The model's own backbone, or the one given if it is the same."""
    told = saved.settings["backbone"]
    if backbone is None:
        return from_settings(told, saved.encoders, device)
    backbone.check_same(told)
    return backbone


def load(
    kind: type[D], path: Path, backbone: Backbone | None, device: str, workers: int | None
) -> D:
    """See `Detector.load`."""
    saved = read_model(path)
    check_opening(backbone, device, workers)
    try:
        if "groups" in saved.settings:
            raise ModelError(
                f"{path}: a model of groups; `nnad groups score` and `nnad info` open it, and only "
                f"another fit changes it"
            )
        backbone = opened_backbone(saved, backbone, device)
        operator, patches = saved.settings["operator"], None
        if saved.patches:
            known = saved.known
            patches = Patches.restore(
                saved.settings["patches"],
                *saved.patches,
                device,
                n_good=len(known.graph.rows),
                n_calibrating=len(known.calibration.good_scores),
            )
        detector = kind(
            backbone,
            transform=saved.settings["transform"],
            operator=make_operator(operator["name"], **operator["settings"]),
            calibration=saved.settings["calibration"],
            products=saved.settings["products"],
            false_alarms=saved.settings["false_alarms"],
            mode=saved.settings["mode"],
            patches=patches,
            workers=workers,
        )
        detector.reason = str(saved.settings["reason"])
        detector.dropped_unseen = check_count(
            "dropped_unseen", saved.settings["dropped_unseen"], least=0
        )
        detector.export = saved.settings["export"]
        features = saved.history.features()
        scorer = Scorer(
            features,
            detector.transform,
            detector.operator,
            saved.known,
            method=detector.method,
            products=detector.products,
        )
        if patches:
            combined = Combined.from_settings(saved.settings["combined"])
            scorer = scorer.with_patches(combined, patches.model.good_scores)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = repr(error)[:200]
        raise ModelError(f"{path}: damaged or not written by nnad: {reason}") from error
    detector.set_fitted(scorer, saved.history)
    return detector
