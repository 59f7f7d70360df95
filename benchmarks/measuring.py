"""What a call costs in this process."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from operators import memory_mb


def measured(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a function returns; its seconds, CPU seconds, and MB at its peak above those before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten (Linux)
    before = memory_mb("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    found = function()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return found, {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": memory_mb("VmHWM") - before}
