"""`nnad score`."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from nnad.cli.options import Csv, Device, FalseAlarms, Fdr, Images, Json, Model
from nnad.cli.telling import at_budget, tell_passed_over, tell_ranking, visible
from nnad.errors import ImageError, InputError, counted

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
    maps: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A folder for overlays, masks and maps of where images are odd."),
    ] = None,
    false_alarms: FalseAlarms = None,
    fdr: Fdr = None,
    stream: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Decide on one after the other by --fdr; the file keeps the state."),
    ] = None,
    device: Device = "cpu",
    fail_on_anomaly: Annotated[
        bool,
        typer.Option(help="Exit with 1 if there is an anomaly, with 2 if an image is unreadable."),
    ] = False,
) -> None:
    """Score images with a saved model."""
    from nnad.detector import Detector
    from nnad.report import (
        CSV_COLUMNS,
        REGION_COLUMNS,
        check_outputs,
        check_picture,
        contact_sheet,
    )

    if fdr is not None and false_alarms is not None:
        raise typer.BadParameter("--fdr takes the place of --false-alarms")
    if stream is not None and false_alarms is not None:
        raise typer.BadParameter("--stream decides by --fdr, not by --false-alarms")
    if maps is not None and (stream is not None or fdr is not None):
        raise typer.BadParameter("--maps goes with --false-alarms, not with --fdr or --stream")
    state = None if stream is None else str(stream)
    check_outputs([p for p in (csv, json, picture, maps, state) if p is not None], model, images)
    if picture:
        check_picture(picture)
    detector = Detector.load(model, device=device)
    tell_passed_over(images)
    if stream is not None:
        scored = _streamed(detector, images, stream, fdr)
        rule = "in a stream"
    elif fdr is not None:
        scored = iter(detector.score(images, fdr=fdr, progress=True))
        rule = f"at a false discovery rate of {fdr:g}"
    elif maps is not None:
        scored = _with_maps(detector, images, maps, false_alarms)
        rule = at_budget(detector.false_alarms if false_alarms is None else false_alarms)
    else:
        scored = detector.iter_scores(images, false_alarms=false_alarms, progress=True)
        rule = at_budget(detector.false_alarms if false_alarms is None else false_alarms)
    columns = REGION_COLUMNS if detector.patches else CSV_COLUMNS
    results = _written(scored, csv, json, columns)
    out = sys.stderr if "-" in (csv, json) else sys.stdout
    tell_ranking(results, rule, out)
    if fdr is not None and stream is None:
        _tell_fewest(detector, results, fdr)
    if maps is not None:
        print(f"{maps}: written", file=out)
    if picture:
        contact_sheet([r for r in results if r.is_anomaly] or results, picture)
        print(f"{picture}: written", file=out)

    unread = sum(r.error is not None for r in results)
    if fail_on_anomaly and any(r.is_anomaly for r in results):
        raise typer.Exit(1)
    if stream and fail_on_anomaly and _is_silent(stream, detector):
        raise typer.Exit(2)
    if unread == len(results) or (fail_on_anomaly and unread):
        raise typer.Exit(2)


def _written(
    scored: Iterator["Result"], csv: str | None, json: str | None, columns: tuple[str, ...]
) -> list["Result"]:
    """Write the files as results come."""
    from nnad.report import csv_writer, json_writer

    results = []
    with ExitStack() as stack:
        writers = [stack.enter_context(csv_writer(csv, columns))] if csv else []
        writers += [stack.enter_context(json_writer(json))] if json else []
        for result in scored:
            for add in writers:
                add(result)
            results.append(result)
    return results


def _with_maps(
    detector: "Detector", images: list[str], folder: str, false_alarms: float | None
) -> Iterator["Result"]:
    """Results, each after its maps have been written."""
    from nnad.image_files import find_images
    from nnad.map_files import MapFolder

    if detector.patches is None:
        raise typer.BadParameter("--maps: this model has no patches; fit with --mode both or patch")
    place = Path(folder).resolve()
    for given in images:
        if place.is_relative_to(Path(given).resolve()):  # the next call would take maps for images
            raise typer.BadParameter(f"--maps {folder}: is below the images of {given}")
    files = MapFolder(folder, [name for name, _ in find_images(images)])
    for result, found in detector.iter_maps(images, false_alarms=false_alarms, progress=True):
        if found is not None:
            try:
                files.add(result, found)
            except (ImageError, InputError) as error:
                print(f"nnad: {visible(str(error))}", file=sys.stderr)
        yield result


def _streamed(
    detector: "Detector", images: Any, file: Path, fdr: float | None
) -> Iterator["Result"]:
    """Results decided by the stream's rule; its state is saved before each of them is told."""
    from dataclasses import replace

    from nnad.budgets import Stream

    smallest = detector.calibration.smallest_p_value
    with Stream.locked(file):
        if file.exists():
            stream = Stream.load(file)
            if fdr not in (None, stream.fdr):
                raise typer.BadParameter(f"--fdr: the stream in {file} has {stream.fdr:g}")
        else:
            stream = Stream() if fdr is None else Stream(fdr)
            stream.check(smallest)
        for result in detector.iter_scores(images, progress=True):
            if result.p_value is not None:
                result = replace(result, is_anomaly=stream.decide(result.p_value))
                stream.save(file)
            yield result
    if stream.silent(smallest):
        print(
            f"nnad: {visible(str(file))}: images without an alarm have lowered the level to "
            f"{stream.level:.2g}, below the smallest p-value, {smallest:.2g}: no further image can "
            f"be an anomaly; begin a new file, or score without --stream",
            file=sys.stderr,
        )


def _is_silent(file: Path, detector: "Detector") -> bool:
    from nnad.budgets import Stream

    return Stream.load(file).silent(detector.calibration.smallest_p_value)


def _tell_fewest(detector: "Detector", results: list["Result"], fdr: float) -> None:
    from nnad.budgets import fewest_alarms

    smallest = detector.calibration.smallest_p_value
    read = sum(r.error is None for r in results)
    fewest = fewest_alarms(read, smallest, fdr)
    if fewest > 1:
        print(
            f"nnad: with p-values of at least {smallest:.2g}, a batch of {counted(read, 'image')} "
            f"has {fewest} anomalies or more, or none; with more good images fewer are enough",
            file=sys.stderr,
        )
