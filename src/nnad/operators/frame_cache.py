"""The frames that k-NNN computed most recently, for storage "lazy"."""

import numpy as np
from numpy.typing import NDArray


class FrameCache:
    """The most recently used frames, at most `capacity`."""

    def __init__(self, n_rows: int, shape: tuple[int, int], precision: str, capacity: int) -> None:
        self.frames = np.empty((capacity, *shape), dtype=precision)
        self._place = np.full(n_rows, -1, dtype=np.int32)  # of each bank row
        self._row = np.full(capacity, -1, dtype=np.int64)  # in each place
        self._used = np.zeros(capacity, dtype=np.int64)  # when
        self._now = 0

    def places(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places (M,) of M <= `capacity` distinct rows, and which of the M are to be filled."""
        self._now += 1
        places = self._place[rows].astype(np.int64)
        self._used[places[places >= 0]] = self._now
        missing = np.flatnonzero(places < 0)
        oldest = np.argsort(self._used, kind="stable")[: len(missing)]
        evicted = self._row[oldest]
        self._place[evicted[evicted >= 0]] = -1
        self._place[rows[missing]] = places[missing] = oldest
        self._row[oldest] = rows[missing]
        self._used[oldest] = self._now
        return places, missing
