"""`nnad explain`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from nnad.cli.options import Device, FalseAlarms, Images, Json, Model
from nnad.cli.telling import tell_passed_over, tell_unread, visible
from nnad.errors import counted

if TYPE_CHECKING:
    from nnad.evidence import Explanation

_NEAREST, _FEATURES, _SETS = 3, 5, 3  # told on the terminal


def explain(
    model: Model,
    images: Images,
    json: Json = None,
    picture: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Draw each image, its nearest good images and the scores (.png, .jpg)."),
    ] = None,
    false_alarms: FalseAlarms = None,
    device: Device = "cpu",
) -> None:
    """Tell why images got their scores: nearest good images, rank and features."""
    from nnad import evidence
    from nnad.detector import Detector
    from nnad.evidence_sheet import evidence_sheet
    from nnad.report import check_outputs, check_picture, json_writer
    from nnad.results import Result

    check_outputs([p for p in (json, picture) if p is not None], model, images)
    if picture:
        check_picture(picture)
    detector = Detector.load(model, device=device)
    tell_passed_over(images)
    explained = evidence.explain(detector, images, false_alarms=false_alarms, progress=True)
    if json:
        with json_writer(json) as add:
            for explanation in explained:
                add(explanation)
    out = sys.stderr if json == "-" else sys.stdout
    unread = [Result(e.name, error=e.error) for e in explained if e.error is not None]
    for explanation in explained:
        if explanation.error is None:
            _tell(explanation, detector.transform, len(detector.features[0]), out)
    tell_unread(unread)
    if len(unread) == len(explained):
        raise typer.Exit(2)
    if picture:
        evidence_sheet(explained, detector.calibration, picture)
        print(f"{picture}: written", file=out)


def _tell(explanation: "Explanation", transform: str, dim: int, out: Any) -> None:
    e = explanation
    verdict = "ANOMALY" if e.is_anomaly else "good"
    print(f"{verdict}, p = {e.p_value:.4f}: {visible(e.name)}", file=out)
    reasons = [*_patch(e), *_nearest(e), *_features(e, transform, dim), *_sets(e)]
    for line in [_budgets(e), *_scores(e), *reasons]:
        print(f"   {line}", file=out)


def _budgets(e: "Explanation") -> str:
    from nnad.calibrate import round_up

    assert e.p_value and e.budget and e.smallest_budget  # noqa: S101 (no error, so they are there)
    flips = f"an anomaly at budgets of {round_up(e.p_value):g} and more"
    flips = flips if e.p_value < 1 else "good at every budget"
    return (
        f"{flips}; here {round_up(e.budget):g}, the smallest for "
        f"{counted(e.good_images, 'good image')} is {round_up(e.smallest_budget):g}"
    )


def _scores(e: "Explanation") -> list[str]:
    from nnad.evidence_sheet import rank_of

    closest = ", ".join(f"{_short(good.name)} {good.score:.4g}" for good in e.closest)
    threshold = "" if e.threshold is None else f", threshold {e.threshold:.4g}"
    return [
        f"score {e.score:.4g}{threshold}: {visible(rank_of(e))}",
        f"closest scores: {closest}",
    ]


def _patch(e: "Explanation") -> list[str]:
    if not (p := e.patch):
        return []
    parts = []
    if p.image_score is not None:
        parts = [
            f"of two parts, in deviations of the good images: image {p.image_score:+.2f}, "
            f"patches {p.patch_score:+.2f}"
        ]
    return [
        *parts,
        f"oddest place: {_box(p.box)}, {p.score:.2f} where 0 is usual and 1 the threshold",
        f"   nearest good patch {p.distance:.4g} away (usual there {p.usual:.4g}): "
        f"{_box(p.good_box)} of {visible(p.good_name)}",
        *(
            f"region {_box(r.box)}: {counted(r.area, 'pixel')}, peak {r.peak:.2f}"
            for r in e.regions[:_NEAREST]
        ),
    ]


def _box(box: Sequence[float]) -> str:
    left, top, right, bottom = map(round, box)
    return f"x {left} to {right}, y {top} to {bottom}"


def _nearest(e: "Explanation") -> list[str]:
    lines = ["nearest good images, and how near their own nearest good image is:"]
    for near in e.nearest[:_NEAREST]:
        note = "  the same picture" if near.distance == 0 else ""
        if note and near.score is not None:
            note += f": left out, its score is {near.score:.4g}"
        lines.append(f"   {near.distance:<7.4g} {near.usual:<7.4g} {visible(near.name)}{note}")
    return lines


def _features(e: "Explanation", transform: str, dim: int) -> list[str]:
    if e.note:
        return [f"no single features: {e.note}"]
    wide = max(len(visible(f.label)) for f in e.features[:_FEATURES])
    whole = "image part" if e.patch else "score"
    values = "features as given" if transform == "raw" else f"values after {transform}"
    lines = [
        f"half of the {whole} is from {e.features_for_half} of {dim} features; "
        f"the largest ({values}):",
        f"   share  {'feature':<{wide}}  value    5 to 95 % of good  percentile  nearest in value",
    ]
    for f in e.features[:_FEATURES]:
        usual = f"{f.low:.3g} to {f.high:.3g}"
        lines.append(
            f"   {f.share:>5.1%}  {visible(f.label):<{wide}}  {f.value:<7.3g}  {usual:<17}  "
            f"{f.percentile:<10.0f}  {', '.join(map(_short, f.similar))}"
        )
    return lines


def _short(name: str) -> str:
    return visible(Path(name).name)


def _sets(e: "Explanation") -> list[str]:
    if not e.sets:
        return []
    lines = ["the largest sets of features:"]
    for s in e.sets[:_SETS]:
        numbers = " ".join(map(str, s.features[:8])) + (" ..." if len(s.features) > 8 else "")
        lines.append(f"   {s.share:>5.1%}   {numbers}")
    return lines
