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

from nnad.backbones import Backbone, load_backbone, provider_of
from nnad.errors import BackboneError
from nnad.images import Source, collected_warnings

_LEARNT = "learnt.safetensors"
SMALL = ("cifar10", "cifar100", "mnist", "fashion-mnist")  # 32 x 32 pixels, others 224 x 224


def adapted_backbone(
    method: str,
    name: str,
    weights: str | None,
    images: Sequence[Source],
    path: Path,
    *,
    preset: str = "paper",
    device: str = "cpu",
    progress: bool = False,
) -> Backbone:
    """A network adapted to good images; the file that is there, or trained now.

    Args:
        method: of `ADAPTED`.
        name, weights: of the network, as for `load_backbone`.
        images: good ones.
        path: the ONNX file; a killed training goes on from the checkpoint beside it.
        preset: `paper`, or `small`: one epoch, to try.
        device: see `nnad.adaptation.adapt.adapt` and `load_backbone`.
        progress: show bars on a terminal.

    Raises:
        BackboneError: torch is missing, the network cannot be adapted, or ONNX Runtime has no such
            device.
    """
    provider_of(device)  # before hours of training
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
            device=device,
            progress=progress,
            **epochs,
        )
    with collected_warnings():  # that it promises no budget: none is asked for
        return load_backbone(str(path), device=device)


def baseline_scores(
    name: str,
    data: str,
    train: Sequence[Source],
    test: Sequence[Source],
    folder: Path,
    *,
    preset: str = "paper",
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Scores (M,) of test images by a baseline of `BASELINES` that learnt from good ones.

    Args:
        name: of the baseline.
        data: the data set, which says how large its pictures are to be.
        train, test: pictures.
        folder: for what was learnt, which is there already if this was called before, and for what
            a killed training goes on from; of these images alone.
        preset: `paper`, or `small` for a CPU.
        device: see `nnad.baselines.Baseline`.

    Raises:
        ImageError: one of them cannot be read.
        InputError: torch is missing.
    """
    baselines = _import("nnad.baselines", name)
    if (name, preset, _size(data)) == ("mhrot", "paper", 32):
        preset = "32px reconstruction"
    path = folder / _LEARNT
    if path.exists():
        fitted = baselines.load_baseline(path, device=device)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        fitted = baselines.make_baseline(name, preset, device=device)
        fitted.fit(_pictures(data, train), checkpoints=folder, progress=False).save(path)
    return np.asarray(fitted.score(_pictures(data, test)))


def baseline_features(
    data: str, test: Sequence[Source], folder: Path, *, device: str = "cpu"
) -> NDArray[np.float32] | None:
    """Features (M, D) of test images by what `baseline_scores` left in a folder, if it has some."""
    fitted = _import("nnad.baselines", data).load_baseline(folder / _LEARNT, device=device)
    if not hasattr(fitted, "features"):
        return None
    return np.asarray(fitted.features(_pictures(data, test)))


def _pictures(data: str, sources: Sequence[Source]) -> NDArray[np.uint8]:
    """(N, side, side, 3); grey pixels in memory, as of MNIST, stay (N, 28, 28, 1)."""
    from nnad.baselines import read_images

    if isinstance(sources[0], np.ndarray) and sources[0].ndim == 2:
        return np.stack([np.asarray(source) for source in sources])[..., None]
    images, _, errors = read_images(list(sources), _size(data))
    if errors:
        raise errors[0]
    return images


def _size(data: str) -> int:
    return 32 if data in SMALL else 224


def _import(module: str, system: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BackboneError(f"{system}: needs {error.name}: pip install 'nnad[torch]'") from error
