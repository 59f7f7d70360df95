"""Kill a writer at one byte or system call after another: the model is the old or the new one.

    python tests/killed_writers.py MODEL KILLS

MODEL is copied for each kill; the change takes back its last entry. It prints how often the old and
the new model were found.
"""

import os
import pathlib
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from nnad.calibrate import Calibration
from nnad.history import History
from nnad.model_file import Saved, read_model
from nnad.model_writing import locked, replace_model
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


def changed(saved: Saved) -> Saved:
    """Without the last entry of the log, which is an addition."""
    history = History(saved.history.segments[:-1], saved.history.changes[:-1])
    known = saved.known
    count = len(history.rows)
    graph = type(known.graph)(known.graph.sq_dists[:count], known.graph.rows[:count] * 0)
    calibration = Calibration(known.calibration.good_scores[:count])
    return Saved(saved.settings, saved.encoders, history, Known(graph, {}, calibration, None))


def steps(model: Path) -> int:
    """Bytes and system calls of the whole write."""
    clock = Clock(None)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        mortal(clock)
        replace_model(model, changed(read_model(model)))
        os.write(writer, str(clock.now).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reader, 100))


def main(model: Path, kills: int) -> None:
    old, new = read_model(model), changed(read_model(model))
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(shutil.copytree(model, Path(folder, "whole")))
        total = steps(whole)
        last = kills // 4  # each of the last steps, the others evenly spread over the bytes
        fatal = [1 + i * (total - last) // (kills - last) for i in range(kills - last)]
        fatal += range(total - last + 1, total + 1)
        for i in range(kills):
            copy = Path(shutil.copytree(model, Path(folder, str(i))))
            if (child := os.fork()) == 0:
                mortal(Clock(fatal[i]))
                with locked(copy):
                    replace_model(copy, new)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), f"kill {i} of {kills} came too late"
            seen = read_model(copy)
            expected = {len(old.history.rows): "old", len(new.history.rows): "new"}
            which = expected[len(seen.history.rows)]
            assert len(seen.history.changes) == len({"old": old, "new": new}[which].history.changes)
            found[which] += 1
            with locked(copy):  # the lock of the dead holds nobody up, and the model can go on
                replace_model(copy, new)
            assert len(read_model(copy).history.rows) == len(new.history.rows)
            assert not [p for p in copy.iterdir() if p.suffix == ".tmp"]
            shutil.rmtree(copy)
    print(f"steps {total} old {found['old']} new {found['new']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
