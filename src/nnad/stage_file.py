"""The stages of many images in a temporary file, for which memory would be too small."""

import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.errors import InputError
from nnad.patch_features import Maps


class StageFile:
    """The stages of images, to be read several times.

    The file lies in the temporary folder of the system (TMPDIR) and is gone with this object.

    Args:
        images: the stages (H, W, C) of each, taken one image at a time; all of the same shapes.
        precision: `float32`, or `float16` for half the size.

    Attributes:
        shapes: (H, W, C) of each stage; none without images.

    Raises:
        InputError: the shapes differ.
    """

    def __init__(self, images: Iterable[Sequence[Maps]], precision: str = "float32") -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._precision = np.dtype(precision)
        self._count = 0
        self.shapes: list[tuple[int, ...]] = []
        for stages in images:
            shapes = [stage.shape for stage in stages]
            self.shapes = self.shapes or shapes
            if shapes != self.shapes:
                raise InputError(f"stages: shapes {shapes} after {self.shapes}")
            for stage in stages:
                self._file.write(np.ascontiguousarray(stage, self._precision).data)
            self._count += 1
        self._file.flush()
        self._ends = np.cumsum([0, *(int(np.prod(shape)) for shape in self.shapes)])

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[Maps]]:
        for i in range(len(self)):
            row = np.array(self._mapped()[i], np.float32)
            parts = np.split(row, self._ends[1:-1])
            yield [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def patches(self, stage: int, images: NDArray[np.int64]) -> Maps:
        """(K,) images -> (K * H * W, C) all their patches at that stage, image after image."""
        found = self._mapped()[images, self._ends[stage] : self._ends[stage + 1]]
        return found.reshape(-1, self.shapes[stage][-1]).astype(np.float32, copy=False)

    def _mapped(self) -> NDArray[Any]:
        """(images, values), mapped anew each time: what was read does not stay in memory."""
        shape = self._count, int(self._ends[-1])
        return np.asarray(np.memmap(self._file, self._precision, "r", shape=shape))
