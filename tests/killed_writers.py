"""Kill a writer at one byte or system call after another: the model is the old or the new one.

    python tests/killed_writers.py MODEL KILLS

The change is the last addition of MODEL: a segment, a log, a state, here also a network, and the
manifest. Some kills hit the first write of a model. It prints how often which model was found.
"""

import os
import pathlib
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nnad import ModelError
from nnad.history import History
from nnad.model_file import Saved, read_model
from nnad.model_writing import write_model
from nnad.scorer import Known


class Clock:
    """Counts bytes and system calls of a write; at the given count the process dies."""

    def __init__(self, fatal: int | None) -> None:
        self.now, self.fatal = 0, fatal

    def tick(self) -> None:
        self.now += 1
        if self.now == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


class MortalFile:
    def __init__(self, file: Any, clock: Clock) -> None:
        self._file, self._clock = file, clock

    def write(self, content: bytes) -> int:
        left = None if self._clock.fatal is None else self._clock.fatal - self._clock.now
        if left is not None and left <= len(content):
            self._file.write(content[:left])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self._clock.now += len(content)
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "MortalFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def mortal(clock: Clock) -> None:
    """Make every step that leaves a trace on the disk count."""
    opened, renamed, removed, flushed = Path.open, Path.replace, Path.unlink, os.fsync

    def open_(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = opened(self, mode, *rest, **more)
        if "x" not in mode:
            return file
        clock.tick()
        return MortalFile(file, clock)

    def counted(step: Any) -> Any:
        def run(*arguments: Any, **more: Any) -> Any:
            clock.tick()
            done = step(*arguments, **more)
            clock.tick()
            return done

        return run

    pathlib.Path.open = open_  # type: ignore[method-assign, assignment]
    pathlib.Path.replace = counted(renamed)  # type: ignore[method-assign]
    pathlib.Path.unlink = counted(removed)  # type: ignore[method-assign]
    os.fsync = counted(flushed)


def before_last(saved: Saved) -> Saved:
    """Without the last entry of the log, an addition, and with another network."""
    history = History(saved.history.segments[:-1], saved.history.changes[:-1])
    known, count = saved.known, len(history.rows)
    calibration = replace(
        known.calibration, good_scores=known.calibration.good_scores[:count].copy()
    )
    graph = type(known.graph)(known.graph.sq_dists[:count], known.graph.rows[:count] * 0)
    return Saved(
        saved.settings, [b"old" * 300], history, Known(graph, {}, calibration, known.products)
    )


def unwritten(saved: Saved) -> Saved:
    """The same, as if its last segment had just come."""
    segments = saved.history.segments
    last = replace(segments[-1], file=None)
    history = History((*segments[:-1], last), saved.history.changes)
    return Saved(saved.settings, [b"new" * 300], history, saved.known)


def steps(write: Callable[[], None]) -> int:
    """Bytes and system calls of the whole write."""
    clock = Clock(None)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        mortal(clock)
        write()
        os.write(writer, str(clock.now).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reader, 100))


def fatal_steps(total: int, kills: int) -> list[int]:
    """Each of the last steps, the others evenly spread over the bytes."""
    last = kills // 4
    spread = [1 + i * (total - last) // (kills - last) for i in range(kills - last)]
    return [*spread, *range(total - last + 1, total + 1)]


def kill(write: Callable[[], None], step: int) -> None:
    if (child := os.fork()) == 0:
        mortal(Clock(step))
        write()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the kill at step {step} came too late"


def main(model: Path, kills: int) -> None:
    new = unwritten(read_model(model))
    old = before_last(new)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "m")
        for change in (True, False):  # of a model, and the first write of one
            write = partial(write_model, place, new, overwrite=change)

            def begin(change: bool = change) -> None:
                shutil.rmtree(place, ignore_errors=True)
                if change:
                    write_model(place, old)

            begin()
            total = steps(write)
            for step in fatal_steps(total, kills if change else kills // 4):
                begin()
                kill(write, step)
                try:
                    seen = read_model(place)
                except ModelError as error:
                    assert not change and "no " in str(error), error
                    found["none"] += 1
                else:
                    is_new = len(seen.history.changes) == len(new.history.changes)
                    expected = new if is_new else old
                    assert seen.encoders == expected.encoders
                    assert seen.history.names == expected.history.names
                    found["new" if is_new else "old"] += 1
                write_model(place, new, overwrite=True)  # the dead hold nobody up
                assert read_model(place).encoders == new.encoders
                assert not [p for p in place.iterdir() if p.suffix == ".tmp"]
    print(f"steps {total} old {found['old']} new {found['new']} none {found['none']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
