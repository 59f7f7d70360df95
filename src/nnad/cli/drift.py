"""`nnad drift`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnad.cli.options import Device, FalseAlarms, Images, Json, Model
from nnad.cli.telling import tell_passed_over, tell_unread, visible
from nnad.errors import counted

if TYPE_CHECKING:
    from nnad.drift import Report


def drift(
    model: Model,
    images: Images,
    good: Annotated[
        bool, typer.Option("--good", help="These images are known to be good.")
    ] = False,
    false_alarms: FalseAlarms = None,
    alpha: Annotated[
        float, typer.Option(help="The probability of seeing a change where there is none.")
    ] = 0.01,
    json: Json = None,
    device: Device = "cpu",
) -> None:
    """Do new images still come from where the good ones came from? Exits with 1 if not."""
    from nnad.detector import Detector
    from nnad.drift import drift as compare
    from nnad.report import check_outputs, write_json

    if json is not None:
        check_outputs([json], model, images)
    detector = Detector.load(model, device=device)
    tell_passed_over(images)
    report = compare(
        detector, images, good=good, false_alarms=false_alarms, alpha=alpha, progress=True
    )
    if json is not None:
        write_json(json, report)
    tell_unread(list(report.unread))
    _tell(report, sys.stderr if json == "-" else sys.stdout)
    if report.changed:
        raise typer.Exit(1)


def _tell(report: "Report", out: Any) -> None:
    compared = f"{counted(report.images, 'image')} with {counted(report.good_images, 'good image')}"
    print(f"{report.verdict}: {compared}", file=out)
    print(f"promise: {report.promise.told}", file=out)
    for test in report.tests:
        mark = "seen" if test.rejected else "-"
        print(f"{test.name:<11} {mark:<4}  p = {test.p_value:<7.2g}  {test.seen}", file=out)
    if report.begins is not None:
        print(f"the change seems to begin at {visible(report.begins)}", file=out)
    if not report.changed:
        _tell_limits(report, out)
    _tell_pictures(report, out)
    if report.copies:
        print(f"left out: {counted(len(report.copies), 'copy')} of other images", file=out)


def _tell_limits(report: "Report", out: Any) -> None:
    few = "few images: " if report.images < 10 else ""
    if report.least is None:
        seen = "more anomalies could not be seen, however many are flagged"
    else:
        share = report.least / report.images
        seen = f"more anomalies would be seen from {report.least} flagged on ({share:.0%})"
    print(f"{few}{seen}; a smaller change may be there", file=out)


def _tell_pictures(report: "Report", out: Any) -> None:
    if not report.pictures:
        print("the good pictures are no longer where they were; not compared", file=out)
    for one in report.pictures:
        if report.changed or one.differs:
            told = f"{one.measure} of the pictures {one.good:.3g} -> {one.new:.3g}"
            factor = f" (x {one.new / one.good:.2f})" if one.good else ""
            print(f"{told}{factor}{', differs' if one.differs else ''}", file=out)
