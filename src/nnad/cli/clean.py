"""`nnad clean`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from nnad.cli.options import Backbone, Device, FalseAlarms, Flips, Geometry, Transform
from nnad.cli.options import fraction as fraction_of
from nnad.cli.telling import not_promised, promise, tell_passed_over, tell_unread, visible
from nnad.errors import InputError, counted

if TYPE_CHECKING:
    from nnad.clean import Cleaning
    from nnad.detector import Detector

_SHOWN = 10  # images told on the terminal
_OF_REVIEW = (
    *("fraction", "drop_good", "rounds", "operator", "k"),
    *("transform", "backbone", "geometry", "flips"),
)


def clean(
    context: typer.Context,
    folders: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="DIR...", help="Unlabelled images: folders, .zip, lists, globs."),
    ] = None,
    review: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write a list to decide in, and pictures, into this folder."),
    ] = None,
    decisions: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A review.csv with a person's decisions, instead of DIR."),
    ] = None,
    kept: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write a list of the images that are kept (.csv)."),
    ] = None,
    model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Fit on the images that are kept, and save the model in this folder."),
    ] = None,
    fraction: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Drop this fraction of the images; 0.35 by default."),
    ] = None,
    drop_good: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            parser=fraction_of,
            metavar="FRACTION",
            help="Or drop what stands out, and about this share of the good images.",
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            help="Score again against what was kept, at most so often, first for a core of half "
            "the images; 1: once and without a core, as in DN2."
        ),
    ] = 10,
    operator: Annotated[
        str, typer.Option(help="What ranks the images; the model has the default one.")
    ] = "knn",
    k: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Its neighbours; 3 % of the images by default for knn."),
    ] = None,
    transform: Transform = None,
    backbone: Backbone = "efficientnet-lite0",
    geometry: Geometry = None,
    flips: Flips = "none",
    device: Device = "cpu",
    false_alarms: FalseAlarms = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace the review or the model that is there.")
    ] = False,
) -> None:
    """Find the good images of an unlabelled folder, with or without a person's help."""
    from nnad.model_writing import check_writable
    from nnad.report import check_outputs
    from nnad.review import check_review, read_decisions, relative, write_list, write_review

    if bool(folders) == bool(decisions):
        raise typer.BadParameter("name folders of images, or --decisions; one of them")
    if decisions and review:
        raise typer.BadParameter("--review makes a review, --decisions takes one; not both")
    if not (review or kept or model):
        raise typer.BadParameter("nothing to do: name --review, --kept or --model")
    if decisions:
        _refuse(context, _OF_REVIEW, "--decisions takes it from its review")
    if decisions and not model:
        _refuse(context, ("device",), "no network runs without --model")
    if not model:
        _refuse(context, ("false_alarms",), "goes with --model")
    if not (review or model):
        _refuse(context, ("overwrite",), "goes with --review or --model")
    outputs = [review and review / "review.csv", kept, model]
    inputs = [*(folders or ()), *([str(decisions)] if decisions else ())]
    check_outputs([str(path) for path in outputs if path], inputs=inputs)
    if kept and kept.suffix.lower() != ".csv":
        raise InputError(f"{kept}: the list of kept images needs a name that ends in .csv")
    if review:
        check_review(review, folders or (), overwrite=overwrite)
    if model:
        check_writable(model, overwrite=overwrite)

    options: dict[str, Any]
    if decisions:
        decided = read_decisions(decisions)
        options, names, unseen = decided.options, list(decided.kept), decided.unseen
        print(
            f"{visible(str(decisions))}: {decided.accepted} accepted and {decided.rejected} "
            f"rejected by a person; {len(names)} kept, {unseen} dropped as proposed"
        )
    else:
        options = {"backbone": backbone, "geometry": geometry, "flips": flips}
        options["transform"] = transform or "auto"
        tell_passed_over(folders or [])
        detector = _detector(options, device, None)
        images = detector.embed(folders or [], progress=True)
        rank_by = {"operator": operator, "k": k, "fraction": fraction, "drop_good": drop_good}
        cleaning = _cleaned(detector, images.features, **rank_by, rounds=rounds)
        tell_unread(list(images.skipped))
        _tell(images.names, cleaning)
        names = [name for name, keep in zip(images.names, cleaning.kept, strict=True) if keep]
        unseen = len(images.names) - len(names)
        if review:
            write_review(review, images.names, cleaning, options, images.skipped)
            print(f"{visible(str(review))}: look at top.jpg and border.jpg, decide in review.csv")
    if kept:
        write_list(kept, ["path"], [{"path": relative(name, kept.parent)} for name in names])
        print(f"{visible(str(kept))}: {counted(len(names), 'image')}")
        if unseen:
            print(
                f"nnad: {visible(str(kept))}: {counted(unseen, 'image')} dropped that no person "
                f"rejected; a model fitted on this list calls more good images anomalies than its "
                f"budget says, and does not know it (docs/cleaning.md)",
                file=sys.stderr,
            )
    if model:
        detector = _detector(options, device, false_alarms).fit(names, progress=True)
        tell_unread(list(detector.skipped))
        detector.dropped_unseen = unseen
        detector.save(model, overwrite=overwrite)
        fitted = f"{visible(str(model))}: fitted on {counted(len(detector.names), 'image')}"
        print(f"{fitted}; {promise(detector)}")
        if told := not_promised(detector):
            print(told)


def _refuse(context: typer.Context, options: tuple[str, ...], reason: str) -> None:
    """A usage error if one of the options was given."""
    for option in options:
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--{option.replace('_', '-')}: {reason}")


def _detector(options: dict[str, Any], device: str, false_alarms: float | None) -> "Detector":
    from nnad.backbones import load_backbone
    from nnad.detector import Detector

    options = dict(options)
    transform = options.pop("transform")
    network = load_backbone(options.pop("backbone"), **options, device=device)
    return Detector(network, transform=transform, false_alarms=false_alarms)


def _cleaned(detector: "Detector", features: Any, **how: Any) -> "Cleaning":
    """Features (N, D) as the backbone returned them -> what is proposed."""
    from nnad.clean import clean
    from nnad.transforms import fit_transform, usual_transform

    transform = detector.transform
    if transform == "auto":
        transform = usual_transform(features)
    return clean(fit_transform(transform, features)(features), **how)


def _tell(names: list[str], cleaning: "Cleaning") -> None:
    """The most suspicious images and a summary."""
    print("   score  proposed  image  (nearest one)")
    for row in cleaning.order[:_SHOWN].tolist():
        proposed = "keep" if cleaning.kept[row] else "drop"
        nearest = visible(names[cleaning.nearest[row]])
        print(f"{cleaning.scores[row]:>8.4g}  {proposed:<8}  {visible(names[row])}  ({nearest})")
    dropped = int((~cleaning.kept).sum())
    told = counted(cleaning.rounds, "round")
    print(f"{counted(len(names), 'image')}: drop {dropped}, keep {len(names) - dropped} ({told})")
    if copies := int((cleaning.distances == 0).sum()):
        print(
            f"{counted(copies, 'image')} with an exact copy among those kept: copies vouch for "
            f"each other; nnad preflight finds them, and near ones"
        )
