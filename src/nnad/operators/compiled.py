"""Compile a kernel with numba, and run it on all cores.

The compiled code is cached beside its source, or in the user's cache where that is not writable. It
holds no Python lock, so `in_threads` is safe to call from any thread.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

import numba

from nnad.cores import usable_cores

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile with numba; `contract` permits fused multiply-add, and nothing else is relaxed."""
    compiler: Any = numba.njit(cache=True, nogil=True, fastmath={"contract"})
    made: _Function = compiler(function)
    return made


def summing(function: _Function) -> _Function:
    """Compile as above, and let sums be taken in any order."""
    compiler: Any = numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
    made: _Function = compiler(function)
    return made


def in_threads(kernel: Callable[..., None], count: int, *args: object, least: int = 4) -> None:
    """Call kernel(start, stop, *args) for parts of range(count) on all cores.

    A part has `least` items or more: to start threads takes longer than a few of them.
    """
    cores = usable_cores()
    parts = min(4 * cores, count // least)  # more parts than cores, so that none waits long
    if parts <= 1 or cores == 1:
        kernel(0, count, *args)
        return
    bounds = [count * i // parts for i in range(parts + 1)]
    with ThreadPoolExecutor(cores) as pool:
        jobs = [pool.submit(kernel, a, b, *args) for a, b in pairwise(bounds)]
        for job in jobs:
            job.result()
