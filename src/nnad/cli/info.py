"""`nnad info`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nnad.cli.options import Model
from nnad.cli.telling import REMOVED, grounds, not_promised, promise, visible
from nnad.errors import counted

if TYPE_CHECKING:
    from nnad.backbones import Backbone
    from nnad.calibrate import Calibration
    from nnad.detector import Detector


def info(
    model: Model,
    images: Annotated[bool, typer.Option("--images", help="List the good images only.")] = False,
) -> None:
    """Tell what a model is made of and what it promises."""
    from nnad.calibrate import round_up
    from nnad.detector import Detector
    from nnad.export_check import describe_export
    from nnad.model_file import read_manifest
    from nnad.operators import describe

    settings = read_manifest(model).get("settings")
    if isinstance(settings, dict) and "groups" in settings:
        _info_of_groups(model, str(settings.get("created")), images)
        return
    detector = Detector.load(model)
    if images:
        for name in detector.names:
            print(visible(name))
        return
    backbone, calibration, last = detector.backbone, detector.calibration, detector.log[-1]
    removed = detector.history.removed
    rows = [
        ("good images", f"{len(detector.names)}, first {detector.names[0]}"),
        ("last change", f"{last.time} by {last.by}: {last.action}"),
        *([("removed", f"{removed}; {REMOVED}")] if removed else []),
        *_backbone(backbone, detector.features.shape[1]),
        *([("export", describe_export(detector.export))] if detector.export else []),
        ("transform", detector.transform),
        ("operator", describe(detector.operator)),
        ("chosen", detector.reason),
        *_patches(detector),
        ("false alarms", promise(detector)),
        ("calibration", f"{detector.method}, {sum(calibration.sizes)} images"),
        ("guarantee", "; ".join(filter(None, grounds(detector)))),
        *([("cleaned", told)] if (told := not_promised(detector)) else []),
        *_thresholds(calibration, detector.false_alarms),
        ("smallest budget", f"{round_up(calibration.smallest_budget):g}"),
    ]
    _print(rows)


def _info_of_groups(model: Path, created: str, images: bool) -> None:
    from nnad.calibrate import round_up
    from nnad.groups import GroupDetector
    from nnad.operators import describe

    detector = GroupDetector.load(model)
    if images:
        for name in detector.members:
            print(visible(name))
        return
    calibration = detector.calibration
    least, most = min(detector.sizes), max(detector.sizes)
    each = f"{least} to {counted(most, 'image')}" if least < most else counted(most, "image")
    rows = [
        ("good groups", f"{len(detector.names)}, first {visible(detector.names[0])}"),
        ("images in each", f"{each}, {len(detector.members)} in all"),
        ("fitted", created),
        *_backbone(detector.backbone, detector.features.shape[1]),
        ("transform", detector.transform),
        ("pooling", detector.pooling),
        ("operator", describe(detector.operator) if detector.operator else "none"),
        ("false alarms", promise(detector, "group")),
        ("calibration", f"leave-one-out, {counted(calibration.sizes[0], 'group')}"),
        (
            "threshold",
            f"{calibration.threshold(detector.false_alarms):.6g} for groups of {most} or more; "
            f"smaller ones have their own",
        ),
        ("smallest budget", f"{round_up(calibration.smallest_budget):g}"),
    ]
    _print(rows)


def _print(rows: list[tuple[str, str]]) -> None:
    for key, value in rows:
        print(f"{key:<16} {value}")


def _backbone(backbone: "Backbone", size: int) -> list[tuple[str, str]]:
    told = f"{backbone.name}, {size} features, fingerprint {backbone.fingerprint[:16]}"
    return [("backbone", told), *backbone.describe()]


def _patches(detector: "Detector") -> list[tuple[str, str]]:
    if not (patches := detector.patches):
        return []
    told = {"patch": "patches alone", "both": "image and patches, each standardised, averaged"}
    bank, model, backbone = patches.model.bank, patches.model, patches.backbone
    budget = detector.false_alarms
    return [
        ("scored", told[detector.mode]),
        ("patch network", f"{backbone.name}, stages {backbone.details.get('stages', '')}"),
        ("patch input", str(patches.tiles or backbone.preprocessing)),
        (
            "patch bank",
            f"{len(bank)} patches of {bank.rows.features.shape[1]} values, "
            f"{bank.rows.features.nbytes / 1e6:.1f} MB, {model.operator}",
        ),
        ("patch threshold", f"{model.pixel_threshold(budget):.6g}; usual is {model.usual:.6g}"),
    ]


def _thresholds(calibration: "Calibration", budget: float) -> list[tuple[str, str]]:
    """A row for each product, or one."""
    rows = []
    for product, name in enumerate(calibration.product_names):
        told = "each fold has its own"
        if calibration.folds is None:
            told = f"{calibration.threshold(budget, product):.6g}"
        if name:
            size = counted(calibration.sizes[product], "image")
            rows.append(("product", f"{visible(name)}, {size}, threshold {told}"))
        else:
            rows.append(("threshold", told))
    return rows
