"""What training reads: the pictures' pixels, and what the frozen stem makes of them, each once.

Both are kept in temporary files without a name, mapped into memory: the system keeps in memory what
fits there, and they are gone when the process is.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nnad.adaptation.networks import Network
from nnad.backbones import load_backbone
from nnad.efficientnet import STAGES
from nnad.errors import ImageError, InputError, counted
from nnad.features import in_threads
from nnad.image_files import find_images
from nnad.images import Source, read_image
from nnad.preprocessing import Preprocessing
from nnad.progress import track
from nnad.results import Result

BATCH = 32  # images through the tail at a time


class Pictures(NamedTuple):
    """Pictures that could be read, and those that could not."""

    names: list[str]  # (N,)
    pixels: NDArray[np.uint8]  # (N, h, w, 3), what the network sees
    skipped: tuple[Result, ...]


def read_pictures(
    images: Source | Iterable[Source], preprocessing: Preprocessing, *, progress: bool = False
) -> Pictures:
    """Read and preprocess good images.

    Args:
        images: see `nnad.Detector.fit`.
        preprocessing: with one view, so `flips` none.
        progress: show a bar on a terminal.

    Raises:
        InputError: fewer than two can be read, or the temporary folder has no room.
    """
    found = list(find_images(images, only_good=True))
    side = preprocessing.size
    pixels = _mapped((len(found), side, side, 3), np.uint8)

    def view(source: Source, name: str) -> NDArray[np.uint8]:
        return np.asarray(preprocessing(read_image(source, name))[0])

    names: list[str] = []
    skipped: list[Result] = []
    read = in_threads(found, view)
    for name, picture in track(read, len(found), "good images", show=progress):
        if isinstance(picture, ImageError):
            skipped.append(Result(name, error=str(picture)))
        else:
            pixels[len(names)] = picture
            names.append(name)
    if len(names) < 2:
        told = f"; {skipped[0].error}" if skipped else ""
        raise InputError(f"too few good images: {counted(len(names), 'image')} can be read{told}")
    return Pictures(names, pixels[: len(names)], tuple(skipped))


def stem_outputs(
    network: Network, pixels: NDArray[np.uint8], *, progress: bool = False
) -> NDArray[np.float32]:
    """What the frozen stem makes of pixels (N, h, w, 3): maps (N, C, h', w').

    The stem never changes while its network is adapted, so each image goes through it once and not
    in every epoch.

    Raises:
        InputError: the temporary folder has no room for them.
    """
    return stem_outputs_of(network, len(pixels), pixels.__getitem__, progress=progress)


def stem_outputs_of(
    network: Network,
    number: int,
    picture: Callable[[int], NDArray[np.uint8]],
    *,
    progress: bool = False,
) -> NDArray[np.float32]:
    """`stem_outputs` of `number` pictures, of which `picture`, called in threads, makes each."""
    run = _stem(network)
    outputs = _mapped((number, *run(picture(0)).shape), np.float32)

    def maps_of(_: Source, place: str) -> NDArray[np.float32]:
        return run(picture(int(place)))

    rows = in_threads(((str(place), b"") for place in range(number)), maps_of)
    for place, maps in track(rows, number, "frozen stem", show=progress):
        outputs[int(place)] = maps
    return outputs


def _stem(network: Network) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """One image's pixels (h, w, 3) -> maps (C, h', w'), by ONNX Runtime for what is embedded."""
    if network.last_frozen in STAGES:
        backbone = load_backbone(network.name, stages=(network.last_frozen,), pooling="map")
        return lambda pixels: backbone.outputs(pixels)[0][0].transpose(2, 0, 1)
    stem = network.stem

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(stem(network.normalised(pixels[None]))[0])

    return run


def tail_features(network: Network, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features (N, D) of stem outputs (N, C, h, w), by the tail as it is now."""
    tail = network.tail
    with torch.no_grad():
        parts = [
            tail(torch.tensor(outputs[i : i + BATCH])).numpy()
            for i in range(0, len(outputs), BATCH)
        ]
    return np.concatenate(parts)


def _mapped(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if size > free:
        raise InputError(
            f"{tempfile.gettempdir()}: {size / 1e9:.1f} GB are needed for what training reads and "
            f"{free / 1e9:.1f} GB are free; give fewer images, or another folder by TMPDIR"
        )
    with tempfile.TemporaryFile() as file:  # the mapping outlives it
        return np.memmap(file, dtype, "w+", shape=shape)
