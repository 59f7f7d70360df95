"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Optional

import typer


def fraction(text: str) -> float:
    """A number, or `A/N`: at most A alarms in N good images, on average."""
    alarms, slash, images = text.partition("/")
    try:
        return float(alarms) / float(images) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{text}: a fraction such as 0.01, or alarms/images") from None


Model = Annotated[Path, typer.Argument(help="The model's folder.")]
Images = Annotated[list[str], typer.Argument(help="Images: files, folders, .zip, lists, globs.")]
FalseAlarms = Annotated[
    Optional[float],  # noqa: UP045 (typer wants it)
    typer.Option(
        parser=fraction,
        metavar="FRACTION",
        help="The fraction of good images that may be called anomalies: 0.01, or 2/1000.",
    ),
]
Fdr = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        parser=fraction,
        metavar="FRACTION",
        help="Decide on all images together: the fraction of alarms that is false, as 0.1 or 1/10.",
    ),
]
Backbone = Annotated[
    str,
    typer.Option(help="The network: a name, onnx:FILE, torchvision:NAME, timm:NAME, or A+B."),
]
Geometry = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="crop: centre, as the paper; whole: squashed; letterbox: as it is."),
]
Flips = Annotated[str, typer.Option(help="Average over mirror images: none, horizontal or both.")]
PatchSize = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=32,
        max=4096,
        help="Side of the network's input for patches, in pixels; 320 otherwise.",
    ),
]
Tile = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=16,
        max=4096,
        help="Cut images into tiles of so many pixels: small defects, large images.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, or cuda or cuda:1 with onnxruntime-gpu.")]
Csv = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Write a CSV file; - for standard output."),
]
Json = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Write a JSON file; - for standard output."),
]
Transform = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="auto: root, or l2 for signed features (the default); or l2, raw, log, white."
    ),
]
