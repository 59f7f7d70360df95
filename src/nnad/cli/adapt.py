"""`nnad adapt`."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from nnad.cli.options import Geometry
from nnad.cli.telling import tell_passed_over, tell_unread
from nnad.errors import BackboneError


def adapt(
    good: Annotated[
        list[str], typer.Argument(help="Good images: files, folders, .zip, lists, globs.")
    ],
    out: Annotated[Path, typer.Option(help="The ONNX file to write, for fit --backbone.")],
    method: Annotated[
        str, typer.Option(help="panda, panda-ewc (weights are held) or msad (contrastive).")
    ] = "panda",
    backbone: Annotated[
        str, typer.Option(help="efficientnet-lite0, -lite1, -lite2, or torchvision:A_RESNET.")
    ] = "efficientnet-lite0",
    weights: Annotated[
        Optional[str],  # noqa: UP045 (typer wants it)
        typer.Option(help="For torchvision: a checkpoint file, or random."),
    ] = None,
    geometry: Geometry = None,
    train_from: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The first part that is trained: s32b, s32a, layer3, ..."),
    ] = None,
    epochs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="15 by default, 50 for panda-ewc, 10 or 20 for msad."),
    ] = None,
    lr: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Learning rate."),
    ] = None,
    clip_norm: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Largest norm of the gradient in a step."),
    ] = None,
    unit: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(help="PANDA on features scaled to length 1, or as they are."),
    ] = None,
    views: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="For msad: views of each image, drawn once; 0: new ones in each step."),
    ] = None,
    angular: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="For msad: weight of the angular centre loss."),
    ] = None,
    fisher: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="For panda-ewc: a file with the Fisher diagonal."),
    ] = None,
    fisher_images: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="For panda-ewc: images of the pretraining's task, to estimate it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace the file that is there.")] = False,
) -> None:
    """Adapt a network to good images; needs the extra torch, its result does not."""
    try:
        from nnad.adaptation.adapt import adapt as run
        from nnad.adaptation.networks import load_network
    except ImportError as error:
        raise BackboneError(f"adapt needs {error.name}: pip install 'nnad[torch]'") from error
    from nnad.adaptation.adapted import check_output

    check_output(out, overwrite=overwrite)
    tell_passed_over(good)
    adapted = run(
        good,
        out,
        method=method,
        network=load_network(backbone, weights=weights, geometry=geometry, train_from=train_from),
        epochs=epochs,
        lr=lr,
        clip_norm=clip_norm,
        unit=unit,
        views=views,
        angular=angular,
        fisher=fisher,
        fisher_images=fisher_images,
        seed=seed,
        overwrite=overwrite,
        progress=True,
    )
    tell_unread(list(adapted.skipped))
    first, last = adapted.first_and_last
    print(
        f"{out}: {adapted.told}; mean loss of the first epoch {first:.4g}, of the last {last:.4g}"
    )
