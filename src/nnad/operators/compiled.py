"""Compile a kernel with numba, and run it on all cores.

The compiled code is cached beside its source, or in the user's cache where that is not writable. It
holds no Python lock, so `in_threads` is safe to call from any thread.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import numba

from nnad.cores import free_cores, in_parallel

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile with numba; `contract` permits fused multiply-add, and nothing else is relaxed."""
    compiler: Any = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
    made: _Function = compiler(function)
    return made


def summing(function: _Function) -> _Function:
    """Compile as above, and let sums be taken in any order."""
    compiler: Any = numba.njit(
        cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"}
    )
    made: _Function = compiler(function)
    return made


def in_threads(
    kernel: Callable[..., None], count: int, *args: object, least: int = 4, per_core: int = 4
) -> None:
    """Call kernel(start, stop, *args) for parts of range(count) on all cores.

    A part has `least` items or more: to start a thread takes longer than a few of them. There are
    up to `per_core` parts a core, so that none waits long for another.
    """
    n_parts = min(per_core * free_cores(), count // least)
    if n_parts <= 1 or free_cores() == 1:
        kernel(0, count, *args)
        return
    bounds = [count * i // n_parts for i in range(n_parts + 1)]
    in_parallel(lambda part: kernel(*part, *args), pairwise(bounds))
