"""A cell -> the scores of its test images, in this process or another."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad import protocols
from nnad.clean import clean
from nnad.datasets import Dataset
from nnad.errors import InputError, NnadError
from nnad.group_pooling import pooled, trace_of_covariance
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.reproduce.data import load_data
from nnad.reproduce.statistics import Scored
from nnad.reproduce.tables import BASELINES, Cell, System
from nnad.reproduce.trained import baseline_scores
from nnad.transforms import Transform, fit_transform, usual_transform

Features = NDArray[Any]


class Labels(NamedTuple):
    """What protocols know of a data set: labels (T,) and (U,), classes, and which are good."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    classes: tuple[str, ...]
    good: tuple[int, ...]


class Job(NamedTuple):
    """A cell, and where what it needs is.

    Attributes:
        cell: what is asked.
        key: under which it is stored.
        train, test: files of features of the data set's splits.
        of_task: whether these are only those of the task's images, in its order.
        place: of the data set, for systems that see pictures.
        preset: of systems that learn.
        folder: for what they learn.
        device: for what they learn by torch.
    """

    cell: Cell
    key: str
    train: Path | None = None
    test: Path | None = None
    of_task: bool = False
    place: Path | None = None
    preset: str = "paper"
    folder: Path | None = None
    device: str = "cpu"


class Computed(NamedTuple):
    """What came of a job."""

    key: str
    scored: Scored | None
    seconds: float = 0.0
    memory_mb: float = 0.0
    error: str = ""


def task_of(cell: Cell, labels: Labels) -> protocols.Task:
    """The rows that a cell is about.

    Raises:
        InputError: see the protocol.
    """
    train, test, options = labels.train, labels.test, cell.options
    match cell.protocol:
        case "one class":
            return protocols.one_class(train, test, options["number"])
        case "all but one":
            return protocols.all_but_one(train, test, options["number"])
        case "few shot":
            task = protocols.one_class(train, test, options["number"])
            return protocols.few_shot(task, options["count"], options["seed"])
        case "impure":
            task = protocols.one_class(train, test, options["number"])
            return protocols.impure(task, len(train), options["share"], options["seed"])
        case "sets":
            return protocols.sets_together(
                train, test, labels.classes, labels.good, options["sets"]
            )
        case unknown:
            raise InputError(f"protocol={unknown!r}: unknown, or not one of single images")


def compute(job: Job, labels: Mapping[str, Labels]) -> Computed:
    """Do it; what goes wrong with the cell is told, not raised."""
    _reset_peak()
    try:
        scored, seconds = _scored(job, labels)
    except (NnadError, MemoryError, np.linalg.LinAlgError) as error:
        return Computed(job.key, None, error=str(error) or type(error).__name__)
    return Computed(job.key, scored, seconds, _peak_mb())


def _scored(job: Job, labels: Mapping[str, Labels]) -> tuple[Scored, float]:
    """Scores, and the seconds of learning and scoring; not those of embedding."""
    cell = job.cell
    space = cell.data
    if cell.protocol == "plane":
        plane = protocols.plane_task(cell.data, **cell.options)
        space, items, is_anomaly = cell.task(), np.arange(len(plane.test)), plane.is_anomaly
        start = time.perf_counter()
        scores = operator_scores(cell.system, plane.train, plane.test)
    elif cell.protocol == "groups":
        options = {key: value for key, value in cell.options.items() if key != "pooling"}
        of_data = labels[cell.data]
        group_task = protocols.group_task(of_data.train, of_data.test, **options)
        space = json.dumps([cell.data, options], sort_keys=True)
        items, is_anomaly = np.arange(len(group_task.test)), group_task.is_anomaly
        start = time.perf_counter()
        scores = _group_scores(job, group_task)
    else:
        task = task_of(cell, labels[cell.data])
        items, is_anomaly = task.test, task.is_anomaly
        if cell.system.name in BASELINES:
            start = time.perf_counter()
            scores = _baseline_scores(job, task)
        else:
            rows = (slice(None), slice(None)) if job.of_task else (task.train, task.test)
            train, test = _load(job.train)[rows[0]], _load(job.test)[rows[1]]
            start = time.perf_counter()
            scores = operator_scores(cell.system, train, test)
    seconds = time.perf_counter() - start
    read = ~np.isnan(scores)
    if not is_anomaly[read].any() or is_anomaly[read].all():
        raise InputError(f"{cell.data} {cell.label}: no good or no odd test image can be read")
    return Scored(space, items[read], is_anomaly[read], scores[read]), seconds


def operator_scores(system: System, train: Features, test: Features) -> NDArray[np.float64]:
    """Features (N, D) and (M, D) -> scores (M,), NaN for those that are NaN.

    Raises:
        InputError: too few features, or an argument that the operator does not know.
    """
    train = _read(train)
    transform = _transform(system, train)
    train = transform(train)
    if system.clean:
        train = train[clean(train, k=2, fraction=system.clean, rounds=1).kept]
    operator = make_operator(system.operator or "knn", **system.arguments).fit(Bank(train))
    scores = np.full(len(test), np.nan)
    scores[~np.isnan(test[:, 0])] = operator.score(transform(_read(test)))
    return scores


def _read(features: Features) -> Features:
    """Those (n, D) of images that could be read."""
    is_read = ~np.isnan(features[:, 0])
    return features if is_read.all() else features[is_read]


def _transform(system: System, train: Features) -> Transform:
    name = usual_transform(train) if system.transform == "auto" else system.transform
    return fit_transform(name, train) if name != "raw" else lambda features: features


def _group_scores(job: Job, task: protocols.GroupTask) -> NDArray[np.float64]:
    system, pooling = job.cell.system, job.cell.options["pooling"]
    train, test = _load(job.train), _load(job.test)
    transform = _transform(system, train)
    train, test = transform(train), transform(test)  # before pooling
    system = replace(system, transform="raw")
    if pooling == "trace":
        return np.array([trace_of_covariance(test[rows]) for rows in task.test])
    bank, queries = (
        np.stack([pooled(features[rows], pooling) for rows in groups])
        for features, groups in ((train, task.train), (test, task.test))
    )
    return operator_scores(system, bank, queries)


def _baseline_scores(job: Job, task: protocols.Task) -> NDArray[np.float64]:
    assert job.place is not None and job.folder is not None  # noqa: S101
    data = _data(job.cell.data, job.place)
    return baseline_scores(
        job.cell.system.name,
        job.cell.data,
        data.train.take(task.train).sources,
        data.test.take(task.test).sources,
        job.folder,
        preset=job.preset,
        device=job.device,
    )


@lru_cache(maxsize=1)
def _data(name: str, place: Path) -> Dataset:
    return load_data(name, place)


def _load(path: Path | None) -> Features:
    assert path is not None  # noqa: S101 (the caller's part)
    features: Features = np.load(path, mmap_mode="r")
    return features


def _reset_peak() -> None:
    """So that the peak is that of what follows, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    """The largest memory of this process, in MB; NaN where the system does not tell."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(li.split()[1]) / 1024 for li in lines if li.startswith("VmHWM"))
    return float("nan")
