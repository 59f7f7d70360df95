"""Systems that learn, each behind one function; what they need is imported when they are called.

Adapted networks (`nnad.adaptation`) become backbones, whose features are then scored as any others.
Baselines (`nnad.baselines`) score pictures by themselves. Both need the extra `torch`.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.backbones import Backbone, load_backbone
from nnad.errors import BackboneError
from nnad.images import Source, collected_warnings

ADAPTED = ("panda", "panda-ewc", "msad")
BASELINES = ("ocsvm", "deep-svdd", "geom", "goad", "mhrot")
SMALL = ("cifar10", "cifar100", "mnist", "fashion-mnist")  # 32 x 32 pixels, others 224 x 224


def adapted_backbone(
    method: str,
    name: str,
    weights: str | None,
    images: Sequence[Source],
    path: Path,
    *,
    preset: str = "paper",
    progress: bool = False,
) -> Backbone:
    """A network adapted to good images; the file that is there, or trained now.

    Args:
        method: of `ADAPTED`.
        name, weights: of the network, as for `load_backbone`.
        images: good ones.
        path: the ONNX file; a killed training goes on from the checkpoint beside it.
        preset: `paper`, or `small`: one epoch, to try.
        progress: show bars on a terminal.

    Raises:
        BackboneError: torch is missing, or the network cannot be adapted.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        adapt = _import("nnad.adaptation.adapt", method).adapt
        network = _import("nnad.adaptation.networks", method).load_network(name, weights=weights)
        epochs = {"epochs": 1} if preset == "small" else {}
        adapt(
            images,
            path,
            method=method,
            network=network,
            overwrite=True,
            progress=progress,
            **epochs,
        )
    with collected_warnings():  # that it promises no budget: none is asked for
        return load_backbone(str(path))


def baseline_scores(
    name: str,
    data: str,
    train: Sequence[Source],
    test: Sequence[Source],
    *,
    preset: str = "paper",
    seed: int = 0,
    checkpoints: Path | None = None,
) -> NDArray[np.float64]:
    """Scores (M,) of test images by a baseline of `BASELINES` that learnt from good ones.

    Args:
        name: of the baseline.
        data: the data set, which says how large its pictures are to be.
        train, test: pictures.
        preset: `paper`, or `small` for a CPU.
        seed: of the training.
        checkpoints: a folder for what a killed training goes on from.

    Raises:
        ImageError: one of them cannot be read.
        InputError: torch is missing.
    """
    baselines = _import("nnad.baselines", name)
    size = 32 if data in SMALL else 224
    if (name, preset, size) == ("mhrot", "paper", 32):
        preset = "32px reconstruction"
    parts = []
    for sources in (train, test):
        images, _, errors = baselines.read_images(list(sources), size)
        if errors:
            raise errors[0]
        parts.append(images)
    fitted = baselines.make_baseline(name, preset, seed=seed).fit(
        parts[0], checkpoints=checkpoints, progress=False
    )
    return np.asarray(fitted.score(parts[1]))


def _import(module: str, system: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BackboneError(f"{system}: needs {error.name}: pip install 'nnad[torch]'") from error
