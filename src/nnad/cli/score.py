"""`nnad score`."""

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from nnad.cli.options import Csv, Device, FalseAlarms, Images, Json, Model
from nnad.cli.telling import tell_passed_over, tell_ranking

if TYPE_CHECKING:
    from nnad.detector import Detector
    from nnad.results import Result


def score(
    model: Model,
    images: Images,
    csv: Csv = None,
    json: Json = None,
    picture: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Draw the anomalies beside their nearest good images (.png, .jpg)."),
    ] = None,
    false_alarms: FalseAlarms = None,
    device: Device = "cpu",
    fail_on_anomaly: Annotated[
        bool,
        typer.Option(help="Exit with 1 if there is an anomaly, with 2 if an image is unreadable."),
    ] = False,
) -> None:
    """Score images with a saved model."""
    from nnad.detector import Detector
    from nnad.report import check_outputs, check_picture, contact_sheet

    check_outputs([p for p in (csv, json, picture) if p is not None], model, images)
    if picture:
        check_picture(picture)
    detector = Detector.load(model, device=device)
    tell_passed_over(images)
    results = _score(detector, images, false_alarms, csv, json)
    budget = detector.false_alarms if false_alarms is None else false_alarms
    out = sys.stderr if "-" in (csv, json) else sys.stdout
    tell_ranking(results, budget, out)
    if picture:
        contact_sheet([r for r in results if r.is_anomaly] or results, picture)
        print(f"{picture}: written", file=out)

    unread = sum(r.error is not None for r in results)
    if fail_on_anomaly and any(r.is_anomaly for r in results):
        raise typer.Exit(1)
    if unread == len(results) or (fail_on_anomaly and unread):
        raise typer.Exit(2)


def _score(
    detector: "Detector",
    images: Any,
    false_alarms: float | None,
    csv: str | None,
    json: str | None,
) -> list["Result"]:
    """Score and write the files as results come."""
    from nnad.report import csv_writer, json_writer

    results = []
    with ExitStack() as stack:
        writers = [stack.enter_context(csv_writer(csv))] if csv else []
        writers += [stack.enter_context(json_writer(json))] if json else []
        for result in detector.iter_scores(images, false_alarms=false_alarms, progress=True):
            for add in writers:
                add(result)
            results.append(result)
    return results
