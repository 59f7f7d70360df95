"""`nnad fit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from nnad.cli.options import (
    Backbone,
    Device,
    FalseAlarms,
    Flips,
    Geometry,
    PatchSize,
    Tile,
    Transform,
)
from nnad.cli.telling import promise, tell_passed_over, tell_unread
from nnad.errors import InputError, counted

if TYPE_CHECKING:
    from nnad.patch_model import PatchModel


def fit(
    good: Annotated[
        list[str], typer.Argument(help="Good images: files, folders, .zip, lists, globs.")
    ],
    model: Annotated[Path, typer.Option(help="The folder to save the model in.")],
    false_alarms: FalseAlarms = None,
    calibration: Annotated[
        str, typer.Option(help="leave-one-out, split, cross or jackknife+: what is promised.")
    ] = "leave-one-out",
    products: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Several products: folders, or a number of clusters."),
    ] = None,
    backbone: Backbone = "efficientnet-lite0",
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
    geometry: Geometry = None,
    region: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Look at LEFT,TOP,RIGHT,BOTTOM only, fractions of width and height."),
    ] = None,
    mask: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A picture that is white where images count, black elsewhere."),
    ] = None,
    flips: Flips = "none",
    device: Device = "cpu",
    preset: Annotated[
        str, typer.Option(help="Transform and operator as in a paper: dn2, knnn-paper, ...")
    ] = "",
    transform: Transform = None,
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
    mode: Annotated[
        str, typer.Option(help="What is scored: image as a whole, its patches (patch), or both.")
    ] = "image",
    patch_size: PatchSize = None,
    patch_stages: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Which layers make patches, for example s16b,s32a or layer2,layer3."),
    ] = None,
    patch_operator: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="How patches are scored: calibrated (the default), knn, knnn, patchcore."
        ),
    ] = None,
    tile: Tile = None,
    bank: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Size of the bank of patches: 4000, 10% of those drawn, or 20MB."),
    ] = None,
    cache: Annotated[bool, typer.Option(help="Use the feature cache.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace the model that is there.")] = False,
) -> None:
    """Learn from good images and save a model."""
    from nnad import presets
    from nnad.backbones import load_backbone
    from nnad.detector import Detector
    from nnad.located import SIZE, Patches, patch_backbone
    from nnad.model_writing import check_writable
    from nnad.operators import Operator
    from nnad.tiles import Tiles

    check_writable(model, overwrite=overwrite)
    if mode == "patch":
        of_images = {
            "--operator": operator,
            "--k": k,
            "--preset": preset or None,
            "--transform": transform,
            "--precision": None if precision == "float32" else precision,
            "--size": size,
            "--geometry": geometry,
            "--flips": None if flips == "none" else flips,
        }
        if idle := [option for option, value in of_images.items() if value is not None]:
            raise typer.BadParameter(
                f"{', '.join(idle)}: no meaning with --mode patch, whose scores are those of "
                f"patches alone; use --patch-size, --patch-operator and the like, or --mode both"
            )
    network = load_backbone(
        backbone,
        weights=weights,
        stages=None if stages is None else _names(stages),
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
    patches = None
    if mode == "image" and (patch_size, patch_stages, patch_operator, tile, bank) != (None,) * 5:
        raise typer.BadParameter("--patch-*, --tile and --bank go with --mode both or patch")
    if mode in ("patch", "both"):
        patches = Patches(
            patch_backbone(
                backbone,
                size=SIZE if patch_size is None else patch_size,
                stages=None if patch_stages is None else _names(patch_stages),
                weights=weights,
                region=None if region is None else _fractions(region),
                mask=mask,
                device=device,
            ),
            tiles=None if tile is None else Tiles(tile),
            model=_patch_model(patch_operator or "calibrated", bank),
        )
    detector = Detector(
        network,
        transform=transform or "auto",
        operator=scorer,
        k=k,
        false_alarms=false_alarms,
        calibration=calibration,
        products=products,
        precision=precision,
        mode=mode,
        patches=patches,
    )
    tell_passed_over(good)
    detector.fit(good, cache=cache, progress=True)
    detector.save(model, overwrite=overwrite)
    tell_unread(list(detector.skipped))
    print(f"{model}: fitted on {counted(len(detector.names), 'good image')}; {promise(detector)}")


def _names(stages: str) -> list[str]:
    return [stage.strip() for stage in stages.split(",")]


def _patch_model(operator: str, bank: str | None) -> "PatchModel":
    from nnad.operators.arguments import check_choice
    from nnad.patch_model import PRESETS, PatchModel

    preset = PRESETS[check_choice("--patch-operator", operator, tuple(PRESETS))]
    if bank is None:
        return PatchModel(**preset)
    try:
        return PatchModel(**{**preset, **_size(bank)})
    except InputError as error:
        raise typer.BadParameter(f"--bank {bank}: {error}") from None


def _size(size: str) -> dict[str, Any]:
    """The arguments of `PatchModel` that the size of a bank stands for."""
    kinds = (("%", "share", 0.01), ("MB", "megabytes", 1.0))
    try:
        for unit, argument, factor in kinds:
            if size.endswith(unit):
                number = factor * float(size.removesuffix(unit))
                return {"rows": None, "share": None, argument: number}
        return {"rows": int(size), "share": None}
    except ValueError:
        raise typer.BadParameter("--bank: a number such as 4000, 10% or 20MB") from None


def _fractions(region: str) -> list[float]:
    try:
        return [float(number) for number in region.split(",")]
    except ValueError:
        raise typer.BadParameter("--region: four fractions such as 0.1,0,0.9,1") from None
