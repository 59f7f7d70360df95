"""Folders, archives, lists, globs and pictures in memory -> named pictures, in order."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnad.errors import InputError, counted
from nnad.images import RAW_SUFFIXES, Crop, Source
from nnad.lists import GOOD_NAMES, LIST_SUFFIXES, read_list
from nnad.zips import zip_folder

# Photos that nnad cannot read are found all the same, so that each is reported, not passed over.
_UNREADABLE = "avif heic heif"
_SUFFIXES = "apng bmp dib gif j2k jfif jp2 jpe jpeg jpg mpo pbm pgm png pnm ppm tif tiff webp"
EXTENSIONS = RAW_SUFFIXES | {f".{suffix}" for suffix in f"{_SUFFIXES} {_UNREADABLE}".split()}


def find_images(
    images: Source | Iterable[Source], *, only_good: bool = False
) -> Iterator[tuple[str, Source]]:
    """Name every picture in `images`, in order.

    A folder, a `.zip` archive or a folder in one stands for all image files in it and below, sorted
    by path; hidden ones and other file types are passed over. A list, `.csv` or `.json`, stands for
    every path in it, see `nnad.lists`. A string with `*`, `?` or `[` that is no file stands for
    what it matches. Paths and crops are named by themselves, all else `image[i]` by its position.

    Args:
        images: a path, folder, archive, list, glob, bytes of an image file, PIL image, array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), a batch of such arrays stacked on a first
            axis, a `Crop`, or any iterable of these.
        only_good: refuse a list that labels images as anything but good, unless all are labelled
            the same, or that names images of another split than `train`.

    Raises:
        InputError: a folder or archive holds no image, a glob matches nothing, a list or archive
            cannot be read or is refused, or an item is none of these.
    """
    if isinstance(images, np.ndarray):
        if images.ndim == 3 and images.shape[0] in (1, 3, 4) and _is_batch(images):
            raise InputError(
                f"images: shape {images.shape} could be channels first or a stack of grey images; "
                f"pass (H, W, {images.shape[0]}), or a list"
            )
        items: Iterable[Any] = images if _is_batch(images) else [images]
    elif isinstance(
        images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | Crop
    ):
        items = [images]
    elif isinstance(images, Iterable):
        items = images
    else:
        raise InputError(f"images: cannot read images from a {type(images).__name__}")
    for i, item in enumerate(items):
        if isinstance(item, str | os.PathLike):
            for path in _find_files(os.fspath(item), only_good):
                yield path, path
        else:
            yield str(item) if isinstance(item, Crop) else f"image[{i}]", item


def _is_batch(array: NDArray[Any]) -> bool:
    return array.ndim == 4 or (array.ndim == 3 and array.shape[2] not in (1, 3, 4))


def _find_files(path: str, only_good: bool) -> list[str]:
    if not path:
        raise InputError("images: an empty string is not a path")
    folder = find_in_folder(path)
    if folder is not None:
        return folder
    if glob.has_magic(path) and not os.path.lexists(path):
        found = []
        for match in sorted(glob.glob(path, recursive=True)):  # noqa: PTH207 (keeps ./)
            found += _walk(match)[0] if os.path.isdir(match) else [match]  # noqa: PTH112
        if not found:
            raise InputError(f"{path}: no file matches")
        return list(dict.fromkeys(found))
    if path.lower().endswith(LIST_SUFFIXES):
        entries = read_list(path)
        labels = {entry.label for entry in entries}
        odd = sorted(label for label in labels if label and label.lower() not in GOOD_NAMES)
        if only_good and odd and len(labels) > 1:
            raise InputError(
                f"{path}: images labelled {odd[0]!r} are in this list; to learn from, it must name "
                f"good images only"
            )
        if only_good and any(entry.split not in ("", "train") for entry in entries):
            raise InputError(f"{path}: not only training images are in this list; name those alone")
        return [entry.path for entry in entries]
    return [path]


def find_in_folder(path: str) -> list[str] | None:
    """The image files of a folder, a zip archive or a folder in one, sorted; None if it is neither.

    Raises:
        InputError: it holds none, or the archive cannot be read.
    """
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises where this says no)
        found, _ = _walk(path)
    else:
        members = zip_folder(path)
        if members is None:
            return None
        found = [name for name in members if is_image(name)]
    if not found:
        raise InputError(f"{path}: this folder holds no image files")
    return found


def is_image(name: str) -> bool:
    """Whether its extension is an image's."""
    return Path(name).suffix.lower() in EXTENSIONS


def passed_over(paths: Iterable[str]) -> Counter[str]:
    """How many files of each extension `find_images` leaves out of folders and archives.

    Hidden files are not counted.
    """
    others: set[str] = set()
    for path in paths:
        matches = glob.glob(path, recursive=True) if glob.has_magic(path) else []  # noqa: PTH207
        for folder in [path, *matches]:
            if os.path.isdir(folder):  # noqa: PTH112
                others.update(_walk(folder)[1])
        others.update(name for name in zip_folder(path) or () if not is_image(name))
    return Counter(Path(path).suffix.lower() or "no extension" for path in others)


def describe_passed_over(others: Counter[str]) -> str:
    """`3 files without an image's extension: 2 .txt, 1 .mp4`."""
    told = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items())[:10])
    more = ", ..." if len(others) > 10 else ""
    return f"{counted(others.total(), 'file')} without an image's extension: {told}{more}"


def _walk(folder: str) -> tuple[list[str], list[str]]:
    """Image files and other files in a folder and below, both sorted."""
    found: list[str] = []
    others: list[str] = []
    seen = set()

    def report(error: OSError) -> None:  # as an image that cannot be read
        found.append(str(error.filename))

    for parent, folders, names in os.walk(folder, onerror=report, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder that was walked already
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                (found if is_image(name) else others).append(str(Path(parent, name)))
    return sorted(found), sorted(others)
