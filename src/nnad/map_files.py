"""Anomaly maps of many images as files in one folder.

DIR/NAME_overlay.png     the image under the map's colours, regions outlined
DIR/NAME_mask.png        255 in the regions, of the image's size
DIR/NAME_map.tiff        the map, float32: 0 is usual, 1 the threshold, NaN not looked at
"""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nnad.errors import InputError
from nnad.images import read_image
from nnad.overlay import save_map, save_mask, save_overlay
from nnad.results import Result


class MapFolder:
    """Writes maps to a folder that is empty or not there yet.

    A file is named after its image, below the folders in which the images differ; images that
    differ in their extension only keep it.

    Args:
        folder: where to.
        names: all images that will be added, by their paths.

    Raises:
        InputError: it holds files, a file is in the way, or the folder above it does not exist.
    """

    def __init__(self, folder: str | os.PathLike[str], names: Iterable[str]) -> None:
        self._folder = Path(folder)
        if not self._folder.parent.is_dir():
            raise InputError(f"{folder}: the folder {self._folder.parent} does not exist")
        if self._folder.is_dir() and any(self._folder.iterdir()):
            raise InputError(f"{folder}: holds files already; name a new folder for maps")
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made: {error.strerror}") from error
        paths = [_normal(name) for name in names]
        self._root = Path(os.path.commonpath([path.parent for path in paths]))
        self._stems = Counter(path.with_suffix("") for path in paths)

    def add(self, result: Result, anomaly_map: NDArray[Any]) -> None:
        """Write overlay, mask and map of one image that is a file.

        Raises:
            ImageError: the image cannot be read any more.
            InputError: the files cannot be written.
        """
        name = _normal(result.name)
        stem = name.with_suffix("")
        alone = self._stems[stem] == 1
        path = self._folder / (stem if alone else name).relative_to(self._root)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be made: {error.strerror}") from error
        image = read_image(result.name)
        save_overlay(f"{path}_overlay.png", image, anomaly_map, found=result.regions)
        save_mask(f"{path}_mask.png", anomaly_map)
        save_map(f"{path}_map.tiff", anomaly_map)


def _normal(name: str) -> Path:
    """An absolute path without `..`; links stay."""
    return Path(os.path.normpath(Path(name).absolute()))
