"""Which good images a model holds, and every change of that, so that each can be undone.

Features are stored in segments that never change: one of the fit and one of each addition. A row is
a place in all segments, one after the other. An image that is removed stays stored and leaves the
list of rows in use; undoing puts it back where it was. So a model is always equal to a fit on the
images in use, in the order in which they came.
"""

import getpass
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from nnad.errors import ImageWarning, InputError, counted
from nnad.results import Result

Rows = NDArray[np.int64]
_UNNAMED = re.compile(r"image\[(\d+)\]")
UNDOABLE = ("add", "remove", "budget")


@dataclass(frozen=True, eq=False)
class Segment:
    """Features (M, D) that came together, with the images' names (M,)."""

    names: tuple[str, ...]
    features: NDArray[np.float32]
    file: Path | None = None  # that it was read from, whole


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a model's log.

    Attributes:
        number: 1, 2, ... in the order in which changes were made; the fit is 0.
        time: UTC, as `2026-11-22T09:30:00+00:00`.
        by: who.
        action: `fit`, `add`, `remove`, `budget` or `undo`.
        reason: why, in that person's words.
        runs: the rows that came or went, as (first, beyond the last).
        undoes: the number of the change that an `undo` took back.
        budgets: the false-alarm budget before and after; None is the default one.
    """

    number: int
    time: str
    by: str
    action: str
    reason: str = ""
    runs: tuple[tuple[int, int], ...] = ()
    undoes: int | None = None
    budgets: tuple[float | None, float | None] | None = None

    @property
    def rows(self) -> Rows:
        """The rows that came or went, (R,)."""
        return np.concatenate([np.empty(0, dtype=np.int64), *(np.arange(*r) for r in self.runs)])


@dataclass(frozen=True, eq=False)
class History:
    """All images that ever were in a model, and those in use.

    Attributes:
        segments: in the order in which they came.
        changes: the log, oldest first. It alone says which rows are in use.
    """

    segments: tuple[Segment, ...]
    changes: tuple[Change, ...]

    @classmethod
    def begin(
        cls, names: Sequence[str], features: NDArray[np.float32], by: str | None
    ) -> "History":
        """The history of a fresh fit on features (N, D)."""
        change = Change(0, _now(), _who(by), "fit", runs=((0, len(names)),))
        return cls((Segment(tuple(names), features),), (change,))

    @cached_property
    def rows(self) -> Rows:
        """(N,) the rows in use, ascending."""
        in_use = np.zeros(len(self.stored_names), dtype=bool)
        for change in self.changes:
            done = change if change.undoes is None else self.changes[change.undoes]
            brings = done.action in ("fit", "add")
            in_use[change.rows] = brings if change is done else not brings
        return np.flatnonzero(in_use)

    @cached_property
    def stored_names(self) -> tuple[str, ...]:
        """The name of every row, in use or not."""
        return tuple(name for segment in self.segments for name in segment.names)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """(N,) names of the images in use."""
        stored = self.stored_names
        return tuple(stored[row] for row in self.rows)

    @property
    def stored_features(self) -> NDArray[np.float32]:
        """Features of every row, in use or not; no copy if there is one segment."""
        parts = [segment.features for segment in self.segments]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def features(self) -> NDArray[np.float32]:
        """(N, D) features of the images in use; no copy if nothing ever changed."""
        stored = self.stored_features
        return stored if len(self.rows) == len(stored) else stored[self.rows]

    def add(
        self, names: Sequence[str], features: NDArray[np.float32], reason: str, by: str | None
    ) -> "History":
        """With more images, at the end."""
        first = len(self.stored_names)
        come = np.arange(first, first + len(names))
        return replace(
            self._changed("add", come, reason, by),
            segments=(*self.segments, Segment(tuple(names), features)),
        )

    def remove(self, names: Sequence[str], reason: str, by: str | None) -> "History":
        """Without some images.

        Raises:
            InputError: a name is not in use, or stands for several images.
        """
        gone = np.unique([self.find(name) for name in names])
        return self._changed("remove", gone, reason, by)

    def set_budget(
        self, before: float | None, after: float | None, reason: str, by: str | None
    ) -> "History":
        """With an entry for another false-alarm budget."""
        return self._changed("budget", np.empty(0, dtype=np.int64), reason, by, (before, after))

    def last(self) -> Change:
        """The change that an undo would take back.

        Raises:
            InputError: there is none.
        """
        undone = {change.undoes for change in self.changes}
        for change in reversed(self.changes):
            if change.action in UNDOABLE and change.number not in undone:
                return change
        raise InputError("nothing to undo: no change since the fit is in force")

    def undo(self, reason: str, by: str | None) -> "History":
        """As before the last change that is in force.

        Raises:
            InputError: there is none.
        """
        last = self.last()
        budgets = last.budgets and (last.budgets[1], last.budgets[0])
        return self._changed("undo", last.rows, reason, by, budgets, last.number)

    def new_among(
        self, names: Sequence[str], features: NDArray[np.float32]
    ) -> tuple[list[str], NDArray[np.float32], list[Result]]:
        """Of images (M,) with features (M, D) those that are not in use yet.

        An image with the features of one in use, bit for bit, is that one, whatever its name.
        Images without a file are called `image[i]`; they get numbers that no other image has.

        Returns:
            names and features of the new ones, and as errors those whose name stands for another
            picture.
        """
        numbers = [int(m[1]) for m in map(_UNNAMED.fullmatch, self.stored_names) if m]
        offset = max(numbers, default=-1) + 1
        held = {feature.tobytes() for feature in self.features()}
        places = {os.path.realpath(name) for name in self.names}
        fresh, kept, present, refused = [], [], [], []
        for i, name in enumerate(names):
            if unnamed := _UNNAMED.fullmatch(name):
                name = f"image[{offset + int(unnamed[1])}]"
            if features[i].tobytes() in held:
                present.append(names[i])
            elif os.path.realpath(name) in places:
                reason = "another picture of that name is in the model; rename it, or remove that"
                refused.append(Result(name, error=f"{name}: {reason}"))
            else:
                fresh.append(name)
                kept.append(i)
        if present and fresh:
            warnings.warn(
                f"left out {counted(len(present), 'image')} that the model has already, "
                f"for example {present[0]}",
                ImageWarning,
                stacklevel=4,
            )
        return fresh, features[kept], refused

    @property
    def removed(self) -> int:
        """How many images a `remove` that is in force took out."""
        undone = {change.undoes for change in self.changes}
        gone = [c for c in self.changes if c.action == "remove" and c.number not in undone]
        return sum(len(change.rows) for change in gone)

    def old_rows(self, rows: Rows) -> Rows:
        """(N',) rows -> the place that each has among this history's rows (N,), or -1."""
        place = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[place] == rows, place, -1)

    def find(self, name: str) -> int:
        """The row in use of an image, by its name or by the end of its path.

        Raises:
            InputError: no such image, or several.
        """
        found = [row for row, n in zip(self.rows, self.names, strict=True) if n == name]
        if not found:
            end = PurePath(name).parts
            found = [
                row
                for row, n in zip(self.rows, self.names, strict=True)
                if end and PurePath(n).parts[-len(end) :] == end
            ]
        if not found:
            raise InputError(f"{name}: no good image of that name (nnad info --images lists them)")
        if len(found) > 1:
            several = ", ".join(self.stored_names[row] for row in found[:3])
            raise InputError(f"{name}: stands for {len(found)} good images ({several}); say which")
        return int(found[0])

    def _changed(
        self,
        action: str,
        rows: Rows,
        reason: str,
        by: str | None,
        budgets: tuple[float | None, float | None] | None = None,
        undoes: int | None = None,
    ) -> "History":
        number = self.changes[-1].number + 1
        change = Change(
            number, _now(), _who(by), action, _text("reason", reason), _runs(rows), undoes, budgets
        )
        return replace(self, changes=(*self.changes, change))


def _runs(rows: Rows) -> tuple[tuple[int, int], ...]:
    """Ascending rows as (first, beyond the last) of each stretch without a gap."""
    if not len(rows):
        return ()
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(rows, breaks))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _who(by: str | None) -> str:
    if by:
        return _text("by", by)
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no entry in the password database
        return "unknown"


def _text(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name}={value!r}; expected text")
    return value
