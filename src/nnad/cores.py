"""What the processor can do."""

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process is allowed to run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def int8_overflows() -> bool:
    """Whether sums of int8 products may overflow: on x86 without VNNI, or if that is not told."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    with suppress(OSError):
        return "vnni" not in Path("/proc/cpuinfo").read_text()
    return True
