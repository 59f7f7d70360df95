"""`nnad info`."""

from typing import Annotated

import typer

from nnad.cli.options import Model
from nnad.cli.telling import promise, visible


def info(
    model: Model,
    images: Annotated[bool, typer.Option("--images", help="List the good images only.")] = False,
) -> None:
    """Tell what a model is made of and what it promises."""
    from nnad.calibrate import round_up
    from nnad.detector import Detector
    from nnad.export_check import describe_export
    from nnad.operators import describe, operator_name

    detector = Detector.load(model)
    if images:
        for name in detector.names:
            print(visible(name))
        return
    backbone, calibration, last = detector.backbone, detector.calibration, detector.log[-1]
    rows = [
        ("good images", f"{len(detector.names)}, first {detector.names[0]}"),
        ("last change", f"{last.time} by {last.by}: {last.action}"),
        (
            "backbone",
            f"{backbone.name}, {detector.features.shape[1]} features, "
            f"fingerprint {backbone.fingerprint[:16]}",
        ),
        *backbone.describe(),
        *([("export", describe_export(detector.export))] if detector.export else []),
        ("transform", detector.transform),
        ("operator", describe(detector.operator)),
        ("chosen", detector.reason),
        ("false alarms", promise(detector)),
        (
            "guarantee",
            "proven for good images from the same source"
            if operator_name(detector.operator) == "knn"
            else "measured, not proven, for this operator (proven for knn; docs/how-it-works.md)",
        ),
        ("threshold", f"{calibration.threshold(detector.false_alarms):.6g}"),
        ("smallest budget", f"{round_up(calibration.smallest_budget):g}"),
    ]
    for key, value in rows:
        print(f"{key:<16} {value}")
