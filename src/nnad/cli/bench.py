"""`nnad bench`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from nnad.cli.options import FalseAlarms, Flips, Geometry, Json, PatchSize, Tile
from nnad.cli.telling import tell_unread, visible
from nnad.errors import counted

if TYPE_CHECKING:
    from nnad.bench import Report
    from nnad.bench_rows import Candidate


def bench(
    data: Annotated[str, typer.Argument(help="Labelled images: a folder, .zip, .csv or .json.")],
    good: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A class that is good; may be given several times."),
    ] = None,
    backbone: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A network to compare; may be given several times."),
    ] = None,
    modes: Annotated[str, typer.Option(help="Among image, patch and both.")] = "image,both",
    operators: Annotated[
        str, typer.Option(help="The first of them is the default's.")
    ] = "auto,knn,knnn,global,hull",
    geometry: Geometry = None,
    flips: Flips = "none",
    patch_size: PatchSize = None,
    tile: Tile = None,
    false_alarms: FalseAlarms = None,
    json: Json = None,
) -> None:
    """Compare operators, networks and modes on labelled images and recommend one."""
    from nnad.backbones import load_backbone
    from nnad.bench import bench as compared
    from nnad.datasets import load_dataset
    from nnad.located import SIZE
    from nnad.report import check_outputs, json_writer
    from nnad.tiles import Tiles

    if json is not None:
        check_outputs([json], inputs=[data])
    dataset = load_dataset(data)
    if good:
        dataset = dataset.with_good(*good)
    names = backbone or ["efficientnet-lite0"]
    compared_modes = [mode.strip() for mode in modes.split(",")]
    if set(compared_modes) == {"image"} and (patch_size, tile) != (None, None):
        raise typer.BadParameter("--patch-size and --tile go with --modes both or patch")
    report = compared(
        dataset,
        [load_backbone(name, geometry=geometry, flips=flips) for name in names],
        modes=compared_modes,
        operators=[operator.strip() for operator in operators.split(",")],
        patch_size=SIZE if patch_size is None else patch_size,
        tiles=None if tile is None else Tiles(tile),
        false_alarms=false_alarms,
        progress=True,
    )
    if json:
        with json_writer(json) as add:
            add(report)
    _tell(report, sys.stderr if json == "-" else sys.stdout)
    chosen = report.recommended
    given: dict[str, str | int | None] = {}
    if chosen.mode != "patch":
        given |= {"--geometry": geometry, "--flips": None if flips == "none" else flips}
    if chosen.mode != "image":
        given |= {"--patch-size": patch_size, "--tile": tile}
    told = "".join(f" {option} {value}" for option, value in given.items() if value is not None)
    out = sys.stderr if json == "-" else sys.stdout
    print(f"   nnad fit GOOD --model M {_options(chosen)}{told}", file=out)


def _tell(report: "Report", out: Any) -> None:
    from nnad.calibrate import round_up

    tell_unread(list(report.skipped))
    if report.known:
        print(
            f"nnad: {report.known} of {counted(report.good_tested, 'good test image')} also among "
            f"the fitted ones, bit for bit: they look too good",
            file=sys.stderr,
        )
    print(
        f"{visible(report.data)}: fitted on {counted(report.good, 'good image')}, tested on "
        f"{report.good_tested} good and {counted(report.anomalies, 'anomalous image')}; "
        f"intervals of 95 %, budget {round_up(report.budget):g}",
        file=out,
    )
    print("AUROC                   detections  false alarms  CPU ms  MB     candidate", file=out)
    for row in sorted(report.rows, key=lambda row: -row.auroc.value):
        print(
            f"{row.auroc!s:<22}  {row.detections.value:<10.3f}  {row.false_alarms.value:<12.3f}  "
            f"{row.ms:<6.0f}  {row.megabytes:<5.1f}  {_options(row.candidate)}",
            file=out,
        )
    pixels = [row for row in report.rows if row.pixels]
    if pixels and pixels[0].pixels:
        auroc, ap, pro = pixels[0].pixels
        masked = f"{report.masked} of {report.anomalies} anomalies have a mask"
        print(f"maps: pixel AUROC {auroc:.3f}, AP {ap:.3f}, PRO {pro:.3f}; {masked}", file=out)
    print(f"grey levels alone: {report.grey}", file=out)
    if report.may_be_light:
        print("   light may be all that differs here: the rows may say little of defects", file=out)
    print(f"recommended: {report.reason}", file=out)


def _options(candidate: "Candidate") -> str:
    c = candidate
    operator = "" if c.mode == "patch" else f" --operator {c.operator}"
    return f"--backbone {c.backbone} --mode {c.mode}{operator}"
