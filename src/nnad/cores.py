"""What the processor can do."""

import os
import platform
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

_Part = TypeVar("_Part")
_THREAD = threading.local()  # .is_one_of_many in the threads of `in_parallel`


def usable_cores() -> int:
    """Cores that this process is allowed to run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_cores() -> int:
    """Cores for what is started here: `usable_cores`, but 1 inside `in_parallel`."""
    return 1 if getattr(_THREAD, "is_one_of_many", False) else usable_cores()


def in_parallel(function: Callable[[_Part], None], parts: Iterable[_Part]) -> None:
    """Call function(part) for each part, on all free cores; the first error is raised."""
    parts = list(parts)
    if free_cores() == 1 or len(parts) <= 1:
        for part in parts:
            function(part)
    else:
        for job in [_pool(os.getpid()).submit(function, part) for part in parts]:
            job.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:  # noqa: ARG001 (threads do not outlive a fork)
    return ThreadPoolExecutor(usable_cores(), initializer=one_of_many)


def one_of_many() -> None:
    """Tell that this thread is one of as many as there are cores, for `free_cores`."""
    _THREAD.is_one_of_many = True


@cache
def int8_overflows() -> bool:
    """Whether sums of int8 products may overflow: on x86 without VNNI, or if that is not told."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    with suppress(OSError):
        return "vnni" not in Path("/proc/cpuinfo").read_text()
    return True
