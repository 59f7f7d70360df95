"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Optional

import typer

Model = Annotated[Path, typer.Argument(help="The model's folder.")]
Images = Annotated[list[str], typer.Argument(help="Images: files, folders, .zip, lists, globs.")]
FalseAlarms = Annotated[
    Optional[float],  # noqa: UP045 (typer wants it)
    typer.Option(
        help="The fraction of good images that may be called anomalies, for example 0.01."
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
Device = Annotated[str, typer.Option(help="cpu, or cuda or cuda:1 with onnxruntime-gpu.")]
Csv = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Write a CSV file; - for standard output."),
]
Json = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Write a JSON file; - for standard output."),
]
