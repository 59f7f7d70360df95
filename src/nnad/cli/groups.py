"""`nnad groups`: fit, score and rank."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from nnad.cli.options import Backbone, Csv, Device, Flips, Geometry, Json, Model, fraction
from nnad.cli.telling import promise, tell_passed_over, tell_unread, visible
from nnad.errors import counted

if TYPE_CHECKING:
    from nnad.groups import GroupDetector
    from nnad.results import GroupResult, Result

_SHOWN = 20  # ranked groups told on the terminal

groups = typer.Typer(
    help="Anomalous groups: fit, score, rank. A sub-folder is a group, or a list tells.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Groups = Annotated[
    list[str], typer.Argument(help="Folders or .zip of sub-folders, one a group; or lists.")
]

FalseAlarms = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        parser=fraction,
        metavar="FRACTION",
        help="The fraction of good groups that may be called anomalies: 0.01, or 2/100.",
    ),
]


@groups.command()
def fit(
    good: Groups,
    model: Annotated[Path, typer.Option(help="The folder to save the model in.")],
    pooling: Annotated[str, typer.Option(help="mean, max, concat or trace.")] = "mean",
    false_alarms: FalseAlarms = None,
    backbone: Backbone = "efficientnet-lite0",
    geometry: Geometry = None,
    flips: Flips = "none",
    device: Device = "cpu",
    transform: Annotated[
        str, typer.Option(help="Of each image before pooling: auto, root, l2 or raw.")
    ] = "auto",
    operator: Annotated[
        str, typer.Option(help="auto, knn, knnn, hull, global, local, kmeans, tree ...")
    ] = "auto",
    k: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="The operator's neighbours; its own default otherwise."),
    ] = None,
    cache: Annotated[bool, typer.Option(help="Use the feature cache.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace the model that is there.")] = False,
) -> None:
    """Learn from good groups and save a model."""
    from nnad.backbones import load_backbone
    from nnad.groups import GroupDetector
    from nnad.model_writing import check_writable

    check_writable(model, overwrite=overwrite)
    detector = GroupDetector(
        load_backbone(backbone, geometry=geometry, flips=flips, device=device),
        pooling=pooling,
        transform=transform,
        operator=operator,
        k=k,
        false_alarms=false_alarms,
    )
    tell_passed_over(good)
    detector.fit(good, cache=cache, progress=True)
    detector.save(model, overwrite=overwrite)
    tell_unread(list(detector.skipped))
    images = counted(len(detector.members), "image")
    fitted = counted(len(detector.names), "good group")
    print(f"{model}: fitted on {fitted} of {images}; {promise(detector, 'group')}")


@groups.command()
def score(
    model: Model,
    new: Groups,
    csv: Csv = None,
    json: Json = None,
    false_alarms: FalseAlarms = None,
    device: Device = "cpu",
    fail_on_anomaly: Annotated[
        bool, typer.Option(help="Exit with 1 if there is an anomaly, with 2 if a group has errors.")
    ] = False,
) -> None:
    """Score groups with a saved model: which are odd, and which members make them odd."""
    from nnad.calibrate import round_up
    from nnad.groups import GroupDetector
    from nnad.report import check_outputs

    check_outputs([p for p in (csv, json) if p is not None], model, new)
    detector = GroupDetector.load(model, device=device)
    results = _score(detector, new, csv, json, false_alarms)
    anomalies = sum(bool(r.is_anomaly) for r in results)
    budget = round_up(detector.false_alarms if false_alarms is None else false_alarms)
    noun = "anomaly" if anomalies == 1 else "anomalies"
    _tell(results, _out(csv, json), f", {anomalies} {noun} at a budget of {budget:g}")
    if fail_on_anomaly and anomalies:
        raise typer.Exit(1)
    failed = [r for r in results if r.score is None]
    if len(failed) == len(results) or (fail_on_anomaly and any(_errors(r) for r in results)):
        raise typer.Exit(2)


@groups.command()
def rank(
    new: Groups,
    csv: Csv = None,
    json: Json = None,
    backbone: Backbone = "efficientnet-lite0",
    geometry: Geometry = None,
    flips: Flips = "none",
    device: Device = "cpu",
    transform: Annotated[str, typer.Option(help="Of each image: auto, root, l2 or raw.")] = "auto",
) -> None:
    """Rank groups by the spread within each (trace of the covariance), without good groups."""
    from nnad.backbones import load_backbone
    from nnad.groups import GroupDetector
    from nnad.report import check_outputs

    check_outputs([p for p in (csv, json) if p is not None], inputs=new)
    network = load_backbone(backbone, geometry=geometry, flips=flips, device=device)
    detector = GroupDetector(network, pooling="trace", transform=transform)
    results = _score(detector, new, csv, json)
    _tell(results, _out(csv, json), "; without good groups there are no p-values")
    if all(r.score is None for r in results):
        raise typer.Exit(2)


def _score(
    detector: "GroupDetector",
    new: list[str],
    csv: str | None,
    json: str | None,
    false_alarms: float | None = None,
) -> list["GroupResult"]:
    """Score and write the files, whose places are tried first."""
    from nnad.report import GROUP_COLUMNS, csv_writer, json_writer

    with ExitStack() as stack:
        writers = [stack.enter_context(csv_writer(csv, GROUP_COLUMNS))] if csv else []
        writers += [stack.enter_context(json_writer(json))] if json else []
        tell_passed_over(new)
        results = detector.score(new, false_alarms=false_alarms, progress=True)
        for add in writers:
            for result in results:
                add(result)
    return results


def _out(csv: str | None, json: str | None) -> Any:
    return sys.stderr if "-" in (csv, json) else sys.stdout


def _tell(results: list["GroupResult"], out: Any, summary: str) -> None:
    """The oddest first, then what went wrong, then a summary."""
    scored = sorted((r for r in results if r.score is not None), key=lambda r: -(r.score or 0))
    if any(r.p_value is not None for r in scored):  # scores of different sizes do not compare
        scored.sort(key=lambda r: r.p_value or 0)  # ties stay in the order of the scores
    if scored:
        print("   score  p-value           group  (nearest good group; oddest member)", file=out)
    for r in scored[:_SHOWN]:
        _tell_group(r, out)
    if len(scored) > _SHOWN:
        print(f"          ... and {len(scored) - _SHOWN} less odd", file=out)
    errors = [error for r in results for error in _errors(r)]
    tell_unread(errors)
    told = f"{counted(len(scored), 'group')} scored{summary}"
    print(f"{told}; {counted(len(errors), 'error')}" if errors else told, file=out)


def _tell_group(result: "GroupResult", out: Any) -> None:
    p_value = "-" if result.p_value is None else f"{result.p_value:.4f}"
    verdict = {None: "", True: "ANOMALY", False: "good"}[result.is_anomaly]
    oddest = result.oddest.name if result.oddest else ""
    nearest = [visible(result.nearest[0].name)] if result.nearest else []
    evidence = "; ".join([*nearest, visible(oddest)])
    print(
        f"{result.score:>8.4g}  {p_value:<7}  {verdict:<7}  {visible(result.name)}  ({evidence})",
        file=out,
    )


def _errors(result: "GroupResult") -> list["Result"]:
    """Of the group and its members; where it has no score, its own alone."""
    from nnad.results import Result

    if result.error is not None:
        return [Result(result.name, error=result.error)]
    return [Result(m.name, error=m.error) for m in result.members if m.error is not None]
