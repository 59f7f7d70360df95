"""`nnad evaluate`."""

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnad.cli.options import Device, FalseAlarms, Json, Model
from nnad.errors import counted

if TYPE_CHECKING:
    from nnad.evaluate import Evaluation


def evaluate(
    model: Model,
    good: Annotated[list[str], typer.Option(help="Good images that were not fitted.")],
    anomalies: Annotated[list[str], typer.Option(help="Anomalous images.")],
    false_alarms: FalseAlarms = None,
    json: Json = None,
    device: Device = "cpu",
) -> None:
    """Tell false-alarm and detection rates on labelled images."""
    from nnad.detector import Detector
    from nnad.evaluate import evaluate as evaluated
    from nnad.report import check_outputs, json_writer

    if json is not None:
        check_outputs([json], model, [*good, *anomalies])
    with ExitStack() as stack:
        add = stack.enter_context(json_writer(json)) if json else None
        detector = Detector.load(model, device=device)
        evaluation = evaluated(detector, good, anomalies, false_alarms=false_alarms, progress=True)
        if add:
            add(evaluation)
    _tell(evaluation, sys.stderr if json == "-" else sys.stdout)


def _tell(evaluation: "Evaluation", out: Any) -> None:
    from nnad.calibrate import round_up

    if evaluation.known:
        print(
            f"nnad: {counted(evaluation.known, 'good test image')} of {evaluation.good} are in the "
            f"model: they look too good",
            file=sys.stderr,
        )
    unread = f", {evaluation.unreadable} unreadable" if evaluation.unreadable else ""
    tested = f"{counted(evaluation.good, 'good image')}, {evaluation.anomalies} anomalous{unread}"
    at = evaluation.at_budget
    print(f"tested on        {tested}; intervals of 95 %", file=out)
    print(f"AUROC            {evaluation.auroc}", file=out)
    print(f"budget           {round_up(at.budget):g}", file=out)
    print(f"false alarms     {at.false_alarms}", file=out)
    print(f"detections       {at.detections}", file=out)
    print("\nbudget   false alarms              detections", file=out)
    for row in evaluation.table:
        print(f"{round_up(row.budget):<8g} {row.false_alarms!s:<25} {row.detections}", file=out)
