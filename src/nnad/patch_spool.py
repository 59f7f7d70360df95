"""Patches of good images on the disk: there are more of them than memory holds."""

import errno
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from nnad.anomaly_maps import Box, patch_box
from nnad.errors import InputError
from nnad.patch_features import Maps
from nnad.tiles import View

Rows = NDArray[np.int64]

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


class Spool:
    """Views of many images in a file, to be read several times, one view after the other.

    Args:
        file: without a buffer.
        images: the views of each.
        total: how many images there will be, if that is known.

    Attributes:
        shapes: (H, W, C) of each stage; none without images.

    Raises:
        InputError: their shapes differ, an image has none, or the disk is too small.
    """

    def __init__(
        self, file: IO[bytes], images: Iterable[Iterable[View]], total: int | None
    ) -> None:
        self._file, self._written = file, 0
        self.shapes: list[tuple[int, ...]] = []
        self._seen: list[list[Box]] = []  # of each image's views
        for views in images:
            self._seen.append([])
            try:
                for view in views:
                    self._add(view)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                raise self._no_room(len(self) - 1, total) from error
            if not self._seen[-1]:
                raise InputError(f"good image {len(self) - 1}: no views")
            if len(self) == 1 and total:
                free = shutil.disk_usage(tempfile.gettempdir()).free
                if self._written * (total - 1) > free:
                    raise self._no_room(1, total)

    def _add(self, view: View) -> None:
        shapes = [stage.shape for stage in view.stages]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            raise InputError(f"stages: shapes {shapes} after {self.shapes}")
        self._seen[-1].append(view.seen)
        for stage in view.stages:
            content = np.ascontiguousarray(stage, np.float32).reshape(-1).view(np.uint8)
            while len(content):  # the last write before a disk is full is short
                count = self._file.write(content.data)
                content = content[count:]
                self._written += count

    def _no_room(self, done: int, total: int | None) -> InputError:
        """The error when `done` images are in the file, and others have no room."""
        needed = f"more than {self._written / 1e9:.2g} GB"
        if done and total:
            needed = f"about {self._written / done * total / 1e9:.2g} GB for {total} images"
        return InputError(
            f"{tempfile.gettempdir()}: the disk is too small; patches wait there while a model is "
            f"made, {needed}. Set TMPDIR to a folder with more room"
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a view."""
        return self.shapes[0][0], self.shapes[0][1]

    def __len__(self) -> int:
        return len(self._seen)

    def __iter__(self) -> Iterator[Iterator[View]]:
        """The views of each image; all of them are to be taken before the next image."""
        self._file.seek(0)
        for seen in self._seen:
            yield (View(self._read(), box) for box in seen)

    def _read(self) -> list[Maps]:
        stages = []
        for shape in self.shapes:
            content = self._file.read(4 * math.prod(shape))
            stages.append(np.frombuffer(content, np.float32).reshape(shape))
        return stages

    def patches(self, stage: int, views: Rows) -> Maps:
        """(K,) views, counted through all images -> (K * H * W, C) all their patches at a stage.

        Not while views are read one after the other.
        """
        sizes = [math.prod(shape) for shape in self.shapes]
        shape = self._written // (4 * sum(sizes)), sum(sizes)
        # mapped anew each time, so that what was read before does not stay in memory
        values = np.asarray(np.memmap(self._file, np.float32, "r", shape=shape))
        start = sum(sizes[:stage])
        return values[views, start : start + sizes[stage]].reshape(-1, self.shapes[stage][-1])

    def sample(self, size: int, seed: int) -> tuple[list[Maps], Rows, Rows, NDArray[np.float64]]:
        """Patches drawn from all alike, without repetition, by image and place.

        Returns:
            (P, C) of each stage; (P,) their images; (P,) their places, through all views of the
            image; (P, 4) what they cover there, see `patch_box`.
        """
        per_view = math.prod(self.grid)
        counts = np.array([len(seen) for seen in self._seen]) * per_view
        n_patches = int(counts.sum())
        drawn = np.random.default_rng(seed).choice(n_patches, min(size, n_patches), replace=False)
        drawn.sort()
        stops = counts.cumsum()
        images = np.searchsorted(stops, drawn, side="right")
        parts, boxes, start = [], [], 0
        for views in self:
            for view in views:
                first, last = np.searchsorted(drawn, [start, start + per_view])
                within = drawn[first:last] - start
                parts.append([stage.reshape(per_view, -1)[within] for stage in view.stages])
                rows, columns = np.divmod(within, self.grid[1])
                boxes.append(np.stack(patch_box(view.seen, self.grid, rows, columns), axis=1))
                start += per_view
        sample = [np.concatenate(stage) for stage in zip(*parts, strict=True)]
        return sample, images, drawn - (stops - counts)[images], np.concatenate(boxes)
