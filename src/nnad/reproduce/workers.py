"""Jobs -> what came of them, in several processes."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

from nnad.cores import one_of_many, usable_cores
from nnad.errors import NnadError
from nnad.progress import track
from nnad.reproduce.compute import Computed, Job, Labels, compute

_COPIES = 6  # of the training features, in a worker at its peak


def computed(
    jobs: Sequence[Job],
    labels: Mapping[str, Labels],
    *,
    workers: int | None = None,
    progress: bool = False,
) -> Iterator[Computed]:
    """Do all jobs, in any order.

    Args:
        jobs: to do.
        labels: of the data sets.
        workers: processes; by default one for each core, but no more than memory has room for, and
            one for a GPU.
        progress: show a bar on a terminal.

    Raises:
        NnadError: a process was killed.
    """
    workers = min(workers or _that_fit(jobs), len(jobs))
    if workers <= 1:
        done: Iterable[Computed] = (compute(job, labels) for job in jobs)
        yield from track(done, len(jobs), "cells", show=progress, unit="cells")
        return
    context = multiprocessing.get_context("spawn")
    threads = max(usable_cores() // workers, 1)
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(labels, threads))
    try:
        futures = [pool.submit(_compute, job) for job in jobs]
        done = (future.result() for future in as_completed(futures))
        yield from track(done, len(jobs), "cells", show=progress, unit="cells")
    except BrokenProcessPool:
        raise NnadError(
            "a worker was killed, perhaps for want of memory: run the same command again, "
            "with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _that_fit(jobs: Sequence[Job]) -> int:
    """One for each core, but no more than the free memory allows, where the system tells it.

    One where something is trained on a GPU.
    """
    if any(job.folder and job.device != "cpu" for job in jobs):
        return 1
    cores = usable_cores()
    largest = max((job.train.stat().st_size for job in jobs if job.train), default=0)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(li.split()[1]) * 1024 for li in lines if li.startswith("MemAvailable"))
        return min(cores, max(free // max(_COPIES * largest, 1), 1))
    return cores


_labels: Mapping[str, Labels] = {}


def _start(labels: Mapping[str, Labels], threads: int) -> None:
    """Called once in each process."""
    global _labels
    _labels = labels
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)
    if threads == 1:
        one_of_many()


def _compute(job: Job) -> Computed:
    return compute(job, _labels)
