"""The `nnad` command: thin callers of the library.

Exit codes: 0 done; 1 something was found: anomalies, only with --fail-on-anomaly, or errors or
warnings of preflight; 2 wrong use or input; 130 interrupted; 141 nobody reads the output.
"""

import io
import os
import re
import sys
import traceback
import warnings
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from nnad import __version__
from nnad.errors import ImageWarning, NnadError, counted

if TYPE_CHECKING:
    from nnad.detector import Detector
    from nnad.preflight import Report
    from nnad.results import Result

app = typer.Typer(
    help="Anomaly detection in images by nearest neighbours. No training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_SHOWN = 20  # ranked images told on the terminal
_FINDINGS = 5  # findings of a kind, and files of a finding, told on the terminal

Model = Annotated[Path, typer.Argument(help="The model's folder.")]
FalseAlarms = Annotated[
    Optional[float],  # noqa: UP045 (typer wants it)
    typer.Option(
        help="The fraction of good images that may be called anomalies, for example 0.01."
    ),
]

Device = Annotated[str, typer.Option(help="cpu, or cuda or cuda:1 with onnxruntime-gpu.")]


@app.command()
def fit(
    good: Annotated[
        list[str], typer.Argument(help="Good images: files, folders, .zip, lists, globs.")
    ],
    model: Annotated[Path, typer.Option(help="The folder to save the model in.")],
    false_alarms: FalseAlarms = None,
    backbone: Annotated[
        str,
        typer.Option(help="The network: a name, onnx:FILE, torchvision:NAME, timm:NAME, or A+B."),
    ] = "efficientnet-lite0",
    weights: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="For torchvision and timm: a checkpoint file, or random."),
    ] = None,
    stages: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Which layers make the feature, for example s16b,s32a,head."),
    ] = None,
    pooling: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="How a map becomes a vector: mean, max, gem, or cls of a ViT."),
    ] = None,
    size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Side of the network's input in pixels; its own otherwise."),
    ] = None,
    geometry: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="crop: centre, as the paper; whole: squashed; letterbox: as it is."),
    ] = None,
    region: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Look at LEFT,TOP,RIGHT,BOTTOM only, fractions of width and height."),
    ] = None,
    mask: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A picture that is white where images count, black elsewhere."),
    ] = None,
    flips: Annotated[
        str, typer.Option(help="Average over mirror images: none, horizontal or both.")
    ] = "none",
    device: Device = "cpu",
    preset: Annotated[
        str, typer.Option(help="Transform and operator as in a paper: dn2, knnn-paper, ...")
    ] = "",
    transform: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="auto: root, or l2 for signed features (the default); or l2, raw, log, white."
        ),
    ] = None,
    operator: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="auto (the default), knn, knnn, hull, global, local, kmeans, tree ..."),
    ] = None,
    k: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="The operator's neighbours; its own default otherwise."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="float32, or int8: smaller and faster, not quite equal.")
    ] = "float32",
    cache: Annotated[bool, typer.Option(help="Use the feature cache.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace the model that is there.")] = False,
) -> None:
    """Learn from good images and save a model."""
    from nnad import presets
    from nnad.backbones import load_backbone
    from nnad.detector import Detector
    from nnad.model_file import check_writable
    from nnad.operators import Operator

    check_writable(model, overwrite=overwrite)
    network = load_backbone(
        backbone,
        weights=weights,
        stages=None if stages is None else [stage.strip() for stage in stages.split(",")],
        pooling=pooling,
        size=size,
        geometry=geometry,
        region=None if region is None else _fractions(region),
        mask=mask,
        flips=flips,
        device=device,
    )
    scorer: str | Operator = operator or "auto"
    if preset:
        if (transform, operator, k) != (None, None, None):
            raise typer.BadParameter("--preset stands for --transform, --operator and --k")
        transform, scorer = presets.preset(preset)
    detector = Detector(
        network,
        transform=transform or "auto",
        operator=scorer,
        k=k,
        false_alarms=false_alarms,
        precision=precision,
    )
    _tell_passed_over(good)
    detector.fit(good, cache=cache, progress=True)
    detector.save(model, overwrite=overwrite)
    _tell_unread(list(detector.skipped))
    print(f"{model}: fitted on {counted(len(detector.names), 'good image')}; {_promise(detector)}")


def _fractions(region: str) -> list[float]:
    try:
        return [float(number) for number in region.split(",")]
    except ValueError:
        raise typer.BadParameter("--region: four fractions such as 0.1,0,0.9,1") from None


@app.command()
def score(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(help="Images: files, folders, .zip, lists, globs.")
    ],
    csv: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Write a CSV file; - for standard output."),
    ] = None,
    json: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Write a JSON file; - for standard output."),
    ] = None,
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
    _tell_passed_over(images)
    results = _score(detector, images, false_alarms, csv, json)
    budget = detector.false_alarms if false_alarms is None else false_alarms
    out = sys.stderr if "-" in (csv, json) else sys.stdout
    _tell_ranking(results, budget, out)
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


@app.command()
def preflight(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="DIR...", help="Sets of pictures: folders, .zip, lists, globs."),
    ],
    json: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Write the findings as a JSON file; - for standard output."),
    ] = None,
) -> None:
    """Look for duplicates, leaks between sets and odd pictures before a fit."""
    from nnad.preflight import preflight as look_over
    from nnad.report import check_outputs, json_writer

    if json is not None:
        check_outputs([json], inputs=folders)
    with ExitStack() as stack:
        writers = [stack.enter_context(json_writer(json))] if json else []
        report = look_over(folders, progress=True)
        for add in writers:
            for finding in report.findings:
                add(finding)
    _tell_findings(report, sys.stderr if json == "-" else sys.stdout)
    if not report.read:
        raise typer.Exit(2)
    if report.serious:
        raise typer.Exit(1)


def _tell_findings(report: "Report", out: Any) -> None:
    from nnad.preflight import KINDS

    for kind, (severity, advice) in KINDS.items():
        findings = [finding for finding in report.findings if finding.kind == kind]
        if not findings:
            continue
        print(f"{severity}: {kind}: {advice}", file=out)
        for finding in findings[:_FINDINGS]:
            names = "".join(f"\n      {_visible(name)}" for name in finding.files[:_FINDINGS])
            if len(finding.files) > _FINDINGS:
                names += f"\n      ... and {len(finding.files) - _FINDINGS} more"
            names = "" if kind == "unreadable" else names  # the message has the name
            print(f"   {_visible(finding.message)}{names}", file=out)
        if len(findings) > _FINDINGS:
            print(f"   ... and {len(findings) - _FINDINGS} more", file=out)
    counts = Counter(finding.severity for finding in report.findings)
    told = [counted(counts[severity], severity) for severity in ("error", "warning", "note")]
    sets = counted(len(report.sets), "set")
    print(f"{counted(report.read, 'picture')} read in {sets}: {', '.join(told)}", file=out)


@app.command()
def info(model: Model) -> None:
    """Tell what a model is made of and what it promises."""
    from nnad.calibrate import round_up
    from nnad.detector import Detector
    from nnad.export_check import describe_export
    from nnad.operators import describe, operator_name

    detector = Detector.load(model)
    backbone, calibration = detector.backbone, detector.calibration
    rows = [
        ("good images", f"{len(detector.names)}, first {detector.names[0]}"),
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
        ("false alarms", _promise(detector)),
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


@app.command()
def demo(
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="A folder with train/good and test/*; the cookies by default."),
    ] = None,
    picture: Annotated[str, typer.Option(help="Where to draw.")] = "nnad-demo.png",
) -> None:
    """Fit and score the example cookies: which are broken, why, and how sure that is."""
    from nnad.backbones import load_backbone
    from nnad.demo import area_under_roc, find_demo
    from nnad.detector import Detector
    from nnad.report import check_picture, contact_sheet

    check_picture(picture)
    folder = find_demo(data)
    # Cookies lie any way up, and broken ones reach to the edge. One good training picture is unlike
    # all others, so the budget leaves room for two of 32 (docs/decisions.md has the reasons).
    network = load_backbone(geometry="letterbox", flips="both")
    detector = Detector(network, false_alarms=None if data else 2 / 32).fit(
        folder / "train" / "good", progress=True
    )
    results = detector.score(folder / "test", progress=True)
    _tell_ranking(results, detector.false_alarms, sys.stdout)
    print(f"fitted on {counted(len(detector.names), 'good image')}; {_promise(detector)}")
    print(f"AUROC {area_under_roc(results):.3f} (1 is a perfect ranking, 0.5 a coin)")
    contact_sheet([r for r in results if r.is_anomaly] or results, picture)
    print(f"{picture}: each anomaly beside its nearest good image")


def _promise(detector: "Detector") -> str:
    from nnad.calibrate import DEFAULT_FALSE_ALARMS, round_up

    budget = detector.false_alarms
    text = f"at most {round_up(budget):g} of good images will be called anomalies"
    if budget == detector.calibration.smallest_budget:
        needed = round(1 / DEFAULT_FALSE_ALARMS) - 1
        text += f" (the smallest budget for {counted(len(detector.names), 'image')}"
        text += f"; {DEFAULT_FALSE_ALARMS:g} needs {needed})"
    return text


def _tell_ranking(results: list["Result"], budget: float, out: Any) -> None:
    from nnad.calibrate import round_up

    scored = sorted((r for r in results if r.score is not None), key=lambda r: -(r.score or 0))
    if scored:
        print("   score  p-value           image  (nearest good image)", file=out)
    for r in scored[:_SHOWN]:
        verdict = "ANOMALY" if r.is_anomaly else "good"
        print(
            f"{r.score:>8.4g}  {r.p_value:<7.4f}  {verdict:<7}  "
            f"{_visible(r.name)}  ({_visible(r.nearest[0].name)})",
            file=out,
        )
    if len(scored) > _SHOWN:
        print(f"          ... and {len(scored) - _SHOWN} with lower scores", file=out)
    unread = [r for r in results if r.error is not None]
    _tell_unread(unread)
    anomalies = sum(bool(r.is_anomaly) for r in scored)
    summary = f"{counted(len(scored), 'image')} scored, {anomalies} "
    summary += f"{'anomaly' if anomalies == 1 else 'anomalies'} at a budget of {round_up(budget):g}"
    if unread:
        summary += f"; {len(unread)} unreadable"
    print(summary, file=out)


def _tell_unread(unread: list["Result"]) -> None:
    for result in unread[:_SHOWN]:
        print(f"nnad: {_visible(str(result.error))}", file=sys.stderr)
    if len(unread) > _SHOWN:
        more = counted(len(unread) - _SHOWN, "more unreadable image")
        print(f"nnad: ... and {more}", file=sys.stderr)


def _tell_passed_over(images: list[str]) -> None:
    from nnad.image_files import describe_passed_over, passed_over

    if others := passed_over(images):
        print(f"nnad: passed over {_visible(describe_passed_over(others))}", file=sys.stderr)


def _visible(text: str) -> str:
    """Control characters of a file name written out, so that they do nothing to the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda m: m[0].encode("unicode_escape").decode(), text)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"nnad {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Anomaly detection in images by nearest neighbours. No training."""


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, ImageWarning):
        print(f"nnad: {message}", file=sys.stderr)


def main() -> None:
    """Run the command. Exit code 1 means something found and nothing else; faults are more."""
    warnings.showwarning = _show_warning
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (to the end)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # names need be neither ASCII nor UTF-8
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    sys.exit(_run())


def _run() -> int:
    try:
        code = int(app(standalone_mode=False) or 0)
        if code == 130:  # typer's number for Ctrl-C
            print("nnad: interrupted", file=sys.stderr)
        return code
    except NnadError as error:
        print(f"nnad: {error}", file=sys.stderr)
        return 2
    except SystemExit:  # typer's way to say that the reader of a pipe has gone
        return 141
    except OSError as error:
        print(f"nnad: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if hasattr(error, "show"):  # wrong use: typer knows how to tell it
            error.show()
        else:
            traceback.print_exc()
        return 2
