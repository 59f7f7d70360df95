"""Features of whole splits as arrays on disk, made once and mapped into memory.

They are written a block of images at a time, so that a killed run goes on at the last block.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnad.backbones import Backbone
from nnad.datasets import Split
from nnad.errors import ImageError, InputError
from nnad.features import extract
from nnad.files import replacing
from nnad.progress import track
from nnad.reproduce.keys import picture_key

_BLOCK = 1000  # images


def features_path(split: Split, backbone: Backbone, folder: Path, label: str) -> Path:
    """The file of the features of a split, see `features_on_disk`; it need not be there."""
    told = f"{backbone.fingerprint} {picture_key(split)}"
    return folder / f"{label}-{hashlib.sha256(told.encode()).hexdigest()[:16]}.npy"


def unread(split: Split, path: Path) -> list[str]:
    """The images of a split that have no features in its file; none if there is no file."""
    if not path.exists():
        return []
    missing = np.isnan(np.load(path, mmap_mode="r")[:, 0])
    return [split.names[i] for i in np.flatnonzero(missing)]


def features_on_disk(
    split: Split, backbone: Backbone, folder: Path, label: str, *, progress: bool = False
) -> Path:
    """The file of the features (N, D) float32 of a split; a row of an unreadable image is NaN.

    Args:
        split: N images.
        backbone: what embeds those that are not there.
        folder: for all files of this kind.
        label: the beginning of the file's name.
        progress: show a bar on a terminal.

    Raises:
        InputError: there is no image, or none can be read.
    """
    if not len(split):
        raise InputError(f"{label}: no images")
    path = features_path(split, backbone, folder, label)
    with suppress(OSError, ValueError):  # there is none, or a damaged one
        np.load(path, mmap_mode="r")
        return path
    parts = path.with_suffix("")
    parts.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(split), _BLOCK)
    todo = [start for start in starts if not (parts / f"{start:08}.npy").exists()]
    rows = [np.arange(start, min(start + _BLOCK, len(split))) for start in todo]
    images = ((split.names[i], split.sources[i]) for block in rows for i in block.tolist())
    found = extract(images, backbone, cache=True)
    found = track(found, sum(map(len, rows)), f"embedding {label}", show=progress)
    for block in rows:
        features = np.full((len(block), backbone.dim), np.nan, np.float32)
        for at, (_, feature) in zip(range(len(block)), found, strict=False):
            if not isinstance(feature, ImageError):
                features[at] = feature
        _save(parts / f"{block[0]:08}.npy", features)
    blocks = [np.load(parts / f"{start:08}.npy") for start in starts]
    whole = np.concatenate(blocks)
    if np.isnan(whole).any(axis=1).all():
        raise InputError(f"{label}: none of {len(split)} images can be read")
    _save(path, whole)
    for start in starts:
        (parts / f"{start:08}.npy").unlink()
    parts.rmdir()
    return path


def _save(path: Path, array: NDArray[np.float32]) -> None:
    with replacing(path) as file:
        np.save(file, array)
