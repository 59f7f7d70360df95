"""What commands print: rankings, promises and what went wrong, safe for a terminal."""

import re
import sys
from typing import TYPE_CHECKING, Any

from nnad.errors import counted

if TYPE_CHECKING:
    from nnad.detector import Detector
    from nnad.groups import GroupDetector
    from nnad.results import Result

REMOVED = (
    "if that was for their high scores and not because they are bad, more good images than "
    "promised will be called anomalies"
)
_SHOWN = 20  # ranked images told on the terminal


def promise(detector: "Detector | GroupDetector", noun: str = "image") -> str:
    """The false-alarm budget and what is known of it, in one line; the noun is what it counts."""
    from nnad.calibrate import DEFAULT_FALSE_ALARMS, round_up

    budget = detector.false_alarms
    text = f"false-alarm budget {round_up(budget):g} of good {noun}s, {grounds(detector)[0]}"
    calibration = detector.calibration
    if budget == calibration.smallest_budget:
        needed = round(1 / DEFAULT_FALSE_ALARMS) - 1
        text += f" (the smallest for {counted(min(calibration.sizes), noun)}"
        if min(calibration.sizes) < len(detector.names):
            text += " to calibrate with"
        text += f"; {DEFAULT_FALSE_ALARMS:g} needs {needed})"
    return text


def not_promised(detector: "Detector") -> str:
    """What a cleaning leaves of the promise; nothing if a person saw all that was dropped."""
    from nnad.clean import rough_rate

    if not (unseen := detector.dropped_unseen):
        return ""
    rate = rough_rate(detector.false_alarms, len(detector.names), unseen)
    return (
        f"that does not hold: cleaning dropped {counted(unseen, 'image')} that no person rejected; "
        f"expect roughly {rate:.2g} of good images to be called anomalies, perhaps more "
        f"(docs/cleaning.md)"
    )


def grounds(detector: "Detector | GroupDetector") -> tuple[str, str]:
    """What is known of the false-alarm budget in a few words, and what there is to add."""
    from nnad.conformal import guarantee
    from nnad.groups import GroupDetector
    from nnad.int8 import is_int8
    from nnad.operators import make_operator, operator_name, settings
    from nnad.transforms import LEARNT

    if isinstance(detector, GroupDetector):
        if detector.operator is None or operator_name(detector.operator) == "knn":
            return f"proven for groups of up to {counted(min(detector.sizes), 'image')}", ""
        return "not proven", ""
    operator, name = detector.operator, operator_name(detector.operator)
    members = getattr(detector.backbone, "members", [detector.backbone])
    usual = [make_operator("knn"), make_operator("auto")]
    of_usual = [(operator_name(each), settings(each)) for each in usual]
    return guarantee(
        detector.method,
        detector.false_alarms,
        len(detector.names),
        k_nn=name == "knn" and detector.transform not in LEARNT and not detector.patches,
        measured=detector.transform == "root"
        and (name, settings(operator)) in of_usual
        and not detector.patches,
        products=detector.products is not None,
        int8=is_int8(detector.backbone),
        adapted=any("adapted" in member.details for member in members),
    )


def at_budget(budget: float) -> str:
    """By what an image was called an anomaly, for `tell_ranking`."""
    from nnad.calibrate import round_up

    return f"at a budget of {round_up(budget):g}"


def tell_ranking(results: list["Result"], rule: str, out: Any) -> None:
    """The highest scores first, then what could not be read, then a summary."""
    scored = sorted((r for r in results if r.score is not None), key=lambda r: -(r.score or 0))
    if scored:
        print("   score  p-value           image  (nearest good image)", file=out)
    for r in scored[:_SHOWN]:
        verdict = "ANOMALY" if r.is_anomaly else "good"
        print(
            f"{r.score:>8.4g}  {r.p_value:<7.4f}  {verdict:<7}  "
            f"{visible(r.name)}  ({visible(r.nearest[0].name)})",
            file=out,
        )
    if len(scored) > _SHOWN:
        print(f"          ... and {len(scored) - _SHOWN} with lower scores", file=out)
    unread = [r for r in results if r.error is not None]
    tell_unread(unread)
    anomalies = sum(bool(r.is_anomaly) for r in scored)
    summary = f"{counted(len(scored), 'image')} scored, {anomalies} "
    summary += f"{'anomaly' if anomalies == 1 else 'anomalies'} {rule}"
    if unread:
        summary += f"; {len(unread)} unreadable"
    print(summary, file=out)


def tell_unread(unread: list["Result"]) -> None:
    """What could not be read, on standard error."""
    for result in unread[:_SHOWN]:
        print(f"nnad: {visible(str(result.error))}", file=sys.stderr)
    if len(unread) > _SHOWN:
        more = counted(len(unread) - _SHOWN, "more unreadable image")
        print(f"nnad: ... and {more}", file=sys.stderr)


def tell_passed_over(images: list[str]) -> None:
    """Files that were passed over because of their extension, on standard error."""
    from nnad.image_files import describe_passed_over, passed_over

    if others := passed_over(images):
        print(f"nnad: passed over {visible(describe_passed_over(others))}", file=sys.stderr)


def visible(text: str) -> str:
    """Control characters of a file name written out, so that they do nothing to the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda m: m[0].encode("unicode_escape").decode(), text)
