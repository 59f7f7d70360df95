"""Compute what is missing of a table, then write it.

    data sets -> features on disk -> cells, in parallel -> cells.csv -> the table as Markdown

What cannot be had (a data set, a network, a system) leaves its entries empty and is told.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from nnad.backbones import Backbone, check_device, load_backbone
from nnad.cores import usable_cores
from nnad.datasets import Dataset
from nnad.errors import InputError, NnadError
from nnad.files import replacing
from nnad.progress import track
from nnad.protocols import SHAPES
from nnad.reproduce.compute import (
    Computed,
    Job,
    Labels,
    compute,
    compute_in_worker,
    start_worker,
    task_of,
)
from nnad.reproduce.data import digest, find_data, load_data
from nnad.reproduce.features import features_on_disk
from nnad.reproduce.statistics import Scored
from nnad.reproduce.store import Store
from nnad.reproduce.tables import (
    FEATURES,
    Cell,
    Entry,
    System,
    Table,
    full_name,
    with_backbones,
    with_operators,
)
from nnad.reproduce.trained import ADAPTED, BASELINES, adapted_backbone, baseline_features

SYSTEMS = (FEATURES, *ADAPTED, *BASELINES)
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How a table is to be run.

    Attributes:
        out: the folder of results, shared by all tables.
        root: the folder that holds the data sets; or none, if `given` names all.
        given: data set -> where it is.
        backbones: networks instead of the paper's: names, or `Backbone` objects.
        weights: of torchvision's and timm's networks, see `load_backbone`.
        transform: of the features instead of the paper's.
        also: operators as further columns.
        also_transform: of the features for those.
        systems: which are computed; of others the paper's numbers are told.
        preset: of systems that learn, `paper` or `small`.
        workers: processes; one for each core by default.
        device: of networks, `cpu`, `cuda` or `cuda:1`; what another one computed is taken as it is.
        progress: show bars on a terminal.
    """

    out: Path
    root: Path | None = None
    given: Mapping[str, Path] = field(default_factory=dict)
    backbones: Sequence[str | Backbone] = ()
    weights: str | None = None
    transform: str | None = None
    also: Sequence[str] = ()
    also_transform: str = "auto"
    systems: Sequence[str] = (FEATURES,)
    preset: str = "paper"
    workers: int | None = None
    device: str = "cpu"
    progress: bool = False


@dataclass
class Run:
    """What came of a run.

    Attributes:
        table: as it was run.
        declared: as the paper has it.
        scored: the cells of each entry, in its order; empty if one is missing.
        layouts: of the data sets.
        problems: what could not be had, and why.
        computed, known: cells computed now, and before.
        shown: the test features (U, D) that a figure shows, by row and column; and labels (U,).
    """

    table: Table
    declared: Table
    scored: list[list[tuple[Cell, Scored]]] = field(default_factory=list)
    layouts: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    computed: int = 0
    known: int = 0
    shown: dict[tuple[str, str], NDArray[np.float32]] = field(default_factory=dict)
    labels: NDArray[np.int64] | None = None


def run(table: Table, settings: Settings, notify: Notify = lambda _: None) -> Run:
    """Compute the cells of a table that are not there yet.

    Args:
        table: as declared.
        settings: see `Settings`.
        notify: is told, in a line, what there is to do.

    Raises:
        InputError: an argument is wrong, or another command works in the same folder.
    """
    result = Run(_chosen(table, settings), table)
    check_device(settings.device)
    settings.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(settings.out / ".lock", timeout=0):
            return _Runner(result, settings, notify).run()
    except Timeout:
        raise InputError(f"{settings.out}: another nnad reproduce works in it") from None


def _chosen(table: Table, settings: Settings) -> Table:
    """The table with the networks, transform and operators that were asked for."""
    for name in settings.systems:
        if name not in SYSTEMS:
            raise InputError(f"system={name!r}; choose one of {', '.join(SYSTEMS)}, all")
    names = [full_name(b) if isinstance(b, str) else b.name for b in settings.backbones]
    table = with_backbones(table, names)
    if settings.transform:
        entries = [
            replace(e, system=replace(e.system, transform=settings.transform))
            if e.system.backbone
            else e
            for e in table.entries
        ]
        table = replace(table, entries=tuple(entries))
    return with_operators(table, settings.also, settings.also_transform)


class _Runner:
    """The steps of one run, and what they share."""

    def __init__(self, result: Run, settings: Settings, notify: Notify) -> None:
        self.settings, self.notify = settings, notify
        self.result = result
        self.store = Store(settings.out)
        self.data: dict[str, Dataset] = {}
        self.labels: dict[str, Labels] = {}
        self.digests: dict[str, str] = {}
        self.places: dict[str, Path] = {}
        self.networks: dict[tuple[str | None, str | None], Backbone] = {}
        self.files: dict[tuple[str, str], tuple[Path, Path]] = {}

    def run(self) -> Run:
        table, settings = self.result.table, self.settings
        asked = [entry for entry in table.entries if entry.system.name in settings.systems]
        for data in dict.fromkeys(entry.data for entry in asked if entry.data not in SHAPES):
            self._attempt(data, self._load_data, data)
        cells = {id(entry): self._cells(entry) for entry in asked}
        keys = {
            self._key(cell): cell for found in cells.values() for cell in found if self._ready(cell)
        }
        missing = {key: cell for key, cell in keys.items() if self.store.scored(key) is None}
        self.result.known, self.result.computed = len(keys) - len(missing), 0
        self.notify(f"{table.title}: {len(keys)} cells, {len(missing)} to compute")
        jobs = [job for key, cell in missing.items() if (job := self._prepared(key, cell))]
        for computed in self._computed(jobs):
            cell = missing[computed.key]
            if computed.scored is None:
                self.result.problems[f"{cell.data} {cell.label}".strip()] = computed.error
                continue
            files = self.digests.get(cell.data, "")
            self.store.add(cell, computed, files, self._network_key(cell.system))
            self.result.computed += 1
        for entry in table.entries:
            found = [
                (cell, self.store.scored(self._key(cell)) if self._ready(cell) else None)
                for cell in cells.get(id(entry), [])
            ]
            whole = [(cell, scored) for cell, scored in found if scored is not None]
            self.result.scored.append(whole if len(whole) == len(found) else [])
        if table.shows_features:
            for entry, whole in zip(table.entries, self.result.scored, strict=True):
                if whole:
                    self._attempt("picture", self._show, entry, whole[0][0])
        return self.result

    def _show(self, entry: Entry, cell: Cell) -> None:
        """Get the test features of a cell for the figure."""
        data, system = self.data[cell.data], cell.system
        features: NDArray[np.float32] | None
        if system.name in BASELINES:
            folder = self.settings.out / "learnt" / self._key(cell)
            device = self.settings.device
            features = baseline_features(cell.data, data.test.sources, folder, device=device)
        else:
            network = self.networks[system.backbone, system.pooling]
            features = np.load(self._whole_features(cell.data, network)[1], mmap_mode="r")
        if features is not None:
            self.result.shown[entry.row, entry.column] = features
            self.result.labels = data.test.labels

    def _attempt(self, what: str, function: Callable[..., None], *arguments: object) -> None:
        try:
            function(*arguments)
        except NnadError as error:
            self.result.problems[what] = str(error)

    def _load_data(self, name: str) -> None:
        place = find_data(name, self.settings.root, self.settings.given)
        data = load_data(name, place)
        self.data[name], self.places[name] = data, place
        self.labels[name] = Labels(data.train.labels, data.test.labels, data.classes, data.good)
        both = digest(data.train) + digest(data.test)
        self.digests[name] = hashlib.sha256(both.encode()).hexdigest()
        told = f"{len(data.train):,} images to train, {len(data.test):,} to test"
        layout = data.layout.replace(f" in {place}", "")
        self.result.layouts[name] = f"{layout}, {told}"

    def _cells(self, entry: Entry) -> list[Cell]:
        if entry.data in SHAPES:
            return list(entry.cells(()))
        return list(entry.cells(self.data[entry.data].classes)) if entry.data in self.data else []

    def _ready(self, cell: Cell) -> bool:
        """Whether the network of a cell can be had."""
        system = cell.system
        if system.name != FEATURES or system.backbone is None:
            return True
        wanted = system.backbone, system.pooling
        what = " ".join(filter(None, wanted))
        if wanted not in self.networks and what not in self.result.problems:
            self._attempt(what, self._load_network, *wanted)
        return wanted in self.networks

    def _load_network(self, name: str, pooling: str | None) -> None:
        given = [b for b in self.settings.backbones if isinstance(b, Backbone) and b.name == name]
        kind = name.partition(":")[0]
        if given:
            if pooling is not None:
                raise InputError(f"backbone {name!r}: pooling={pooling!r} needs its name")
            self.networks[name, pooling] = given[0]
            return
        stages = {"torchvision": ("layer4",), "timm": ("norm",)}.get(kind) if pooling else None
        weights = self.settings.weights if kind in ("torchvision", "timm") else None
        self.networks[name, pooling] = load_backbone(
            name, stages=stages, pooling=pooling, weights=weights, device=self.settings.device
        )

    def _network_key(self, system: System) -> str:
        """What else the scores of a system depend on, in hex."""
        if system.name != FEATURES:
            told = f"{system.backbone} {self.settings.weights} {self.settings.preset}"
            return hashlib.sha256(told.encode()).hexdigest()
        if system.backbone is None:
            return ""
        return self.networks[system.backbone, system.pooling].fingerprint

    def _key(self, cell: Cell) -> str:
        told = json.dumps(asdict(cell), sort_keys=True)
        salt = f"{self.digests.get(cell.data, '')} {self._network_key(cell.system)}"
        return hashlib.sha256(f"{salt} {told}".encode()).hexdigest()[:16]

    def _prepared(self, key: str, cell: Cell) -> Job | None:
        """The job of a cell, its features on disk; None if that failed."""
        system, out = cell.system, self.settings.out
        job = Job(cell, key, preset=self.settings.preset, device=self.settings.device)
        if cell.protocol == "plane":
            return job
        if system.name in BASELINES:
            return job._replace(place=self.places[cell.data], folder=out / "learnt" / key)
        what = f"{cell.data}, {system.backbone}"
        try:
            if system.name in ADAPTED:
                return self._adapted(job)
            network = self.networks[system.backbone, system.pooling]
            train, test = self._whole_features(cell.data, network)
        except NnadError as error:
            self.result.problems[what] = str(error)
            return None
        return job._replace(train=train, test=test)

    def _whole_features(self, name: str, network: Backbone) -> tuple[Path, Path]:
        """The files of features of both splits of a data set."""
        asked = name, network.fingerprint
        if asked not in self.files:
            self.files[asked] = self._features(self.data[name], network, name)
        return self.files[asked]

    def _features(self, data: Dataset, network: Backbone, label: str) -> tuple[Path, Path]:
        folder, show = self.settings.out / "features", self.settings.progress
        train, test = (
            features_on_disk(split, network, folder, f"{label}-{part}", progress=show)
            for part, split in (("train", data.train), ("test", data.test))
        )
        return train, test

    def _adapted(self, job: Job) -> Job:
        """Features of the task's own images by a network that was adapted to its training images.

        The cells of one task share the network.
        """
        cell, system = job.cell, job.cell.system
        task, data = task_of(cell, self.labels[cell.data]), self.data[cell.data]
        own = replace(data, train=data.train.take(task.train), test=data.test.take(task.test))
        told = f"{cell.task()} {self.digests[cell.data]} {system.name} {self._network_key(system)}"
        name = hashlib.sha256(told.encode()).hexdigest()[:16]
        network = adapted_backbone(
            system.name,
            system.backbone or "",
            self.settings.weights,
            own.train.sources,
            self.settings.out / "adapted" / f"{name}.onnx",
            preset=self.settings.preset,
            device=self.settings.device,
            progress=self.settings.progress,
        )
        train, test = self._features(own, network, f"{cell.data}-{system.name}")
        return job._replace(train=train, test=test, of_task=True)

    def _computed(self, jobs: Sequence[Job]) -> Iterator[Computed]:
        total = len(jobs)
        workers = min(self.settings.workers or usable_cores(), total)
        show = self.settings.progress
        if workers <= 1:
            done: Iterable[Computed] = (compute(job, self.labels) for job in jobs)
            yield from track(done, total, "cells", show=show, unit="cells")
            return
        context = multiprocessing.get_context("spawn")
        threads = max(usable_cores() // workers, 1)
        pool = ProcessPoolExecutor(
            workers, context, initializer=start_worker, initargs=(self.labels, threads)
        )
        try:
            futures = [pool.submit(compute_in_worker, job) for job in jobs]
            done = (future.result() for future in as_completed(futures))
            yield from track(done, total, "cells", show=show, unit="cells")
        except BrokenProcessPool:
            raise NnadError(
                "a worker was killed, perhaps for want of memory: run the same command again, "
                "with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def write(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())
