"""Compute what is missing of a table, then write it.

    data sets -> features on disk -> cells, in parallel -> cells.csv -> the table as Markdown

What cannot be had (a data set, a network, a system) leaves its entries empty and is told.
"""

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from nnad.backbones import Backbone, check_device, load_backbone
from nnad.datasets import Dataset
from nnad.errors import InputError, NnadError
from nnad.protocols import SHAPES
from nnad.reproduce.compute import Computed, Job, Labels, compute, task_of
from nnad.reproduce.data import find_data, layout, load_data
from nnad.reproduce.features import features_on_disk, features_path, unread
from nnad.reproduce.keys import cell_key, data_key, learner_key
from nnad.reproduce.settings import Run, Settings
from nnad.reproduce.store import Store
from nnad.reproduce.tables import (
    ADAPTED,
    BASELINES,
    FEATURES,
    Cell,
    Entry,
    System,
    Table,
    full_name,
)
from nnad.reproduce.trained import adapted_backbone, baseline_features
from nnad.reproduce.workers import computed

_TELL_SECONDS = 30.0
Notify = Callable[[str], None]


def run(table: Table, settings: Settings, notify: Notify = lambda _: None) -> Run:
    """Compute the cells of a table that are not there yet.

    Args:
        table: as declared.
        settings: see `Settings`.
        notify: is told, in a line, what there is to do.

    Raises:
        InputError: an argument is wrong, or another command works in the same folder.
    """
    result = Run(settings.applied(table), table)
    check_device(settings.device)
    settings.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(settings.out / ".lock", timeout=0):
            return _Runner(result, settings, notify).run()
    except Timeout:
        raise InputError(f"{settings.out}: another nnad reproduce works in it") from None


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
        table, result = self.result.table, self.result
        asked = [entry for entry in table.entries if entry.system.name in self.settings.systems]
        for data in dict.fromkeys(entry.data for entry in asked if entry.data not in SHAPES):
            self._attempt(data, self._load_data, data)
        cells = {
            id(entry): [
                (cell, self._key(cell) if self._ready(cell) else "") for cell in self._cells(entry)
            ]
            for entry in asked
        }
        ready = {key: cell for found in cells.values() for cell, key in found if key}
        scored = {key: self.store.scored(key) for key in ready}
        missing = {key: ready[key] for key, known in scored.items() if known is None}
        result.known = len(ready) - len(missing)
        self.notify(f"{table.title}: {len(ready)} cells, {len(missing)} to compute")
        for one in self._told(self._computed(missing), len(missing)):
            cell, scored[one.key] = missing[one.key], one.scored
            if one.scored is None:
                result.problems[f"{cell.data} {cell.label}".strip()] = one.error
                continue
            files = self.digests.get(cell.data, "")
            self.store.add(cell, one, files, self._network_key(cell.system))
            result.computed += 1
        told: set[str] = set()
        for entry in table.entries:
            keys = [key for _, key in cells.get(id(entry), [])]
            found = [(ready[key], known) for key in keys if (known := scored.get(key))]
            result.scored.append(found if len(found) == len(keys) else [])
            told.update(keys if result.scored[-1] else [])
        self._tell_unread()
        result.commits = self.store.commits(told)
        for (name, pooling), network in self.networks.items():
            result.networks[" ".join(filter(None, (name, pooling)))] = network.fingerprint[:8]
        if table.shows_features:
            for entry, whole in zip(table.entries, result.scored, strict=True):
                if whole:
                    self._attempt("picture", self._show, entry, whole[0][0])
        return result

    def _computed(self, missing: dict[str, Cell]) -> Iterator[Computed]:
        """Cells of features and baselines in parallel; then adapted networks, one by one."""
        later = {key: cell for key, cell in missing.items() if cell.system.name in ADAPTED}
        now = {key: cell for key, cell in missing.items() if key not in later}
        jobs = [job for key, cell in now.items() if (job := self._prepared(key, cell))]
        settings = self.settings
        yield from computed(jobs, self.labels, workers=settings.workers, progress=settings.progress)
        tasks: dict[tuple[str, ...], list[str]] = {}  # the cells that share a network
        for key, cell in later.items():
            system = cell.system
            tasks.setdefault((cell.task(), system.name, str(system.backbone)), []).append(key)
        for number, sharing in enumerate(tasks.values(), 1):
            cell = later[sharing[0]]
            self.notify(f"{cell.system.name} {number} of {len(tasks)}: {cell.data} {cell.label}")
            jobs = [job for key in sharing if (job := self._prepared(key, later[key]))]
            for job in jobs:
                yield compute(job, self.labels)
            for path in {p for job in jobs for p in (job.train, job.test) if p}:
                path.unlink(missing_ok=True)  # they are of this task alone

    def _told(self, done: Iterable[Computed], total: int) -> Iterator[Computed]:
        """The same; without a terminal, which has a bar, a line every half minute."""
        start = last = time.monotonic()
        for number, one in enumerate(done, 1):
            yield one
            now = time.monotonic()
            if now - last > _TELL_SECONDS and not sys.stderr.isatty():
                left = (now - start) / number * (total - number) / 60
                self.notify(f"{number} of {total} cells, about {left:.0f} minutes to go")
                last = now

    def _tell_unread(self) -> None:
        """Say which pictures could not be read, whenever they were embedded."""
        folder = self.settings.out / "features"
        for (name, data), network in product(self.data.items(), self.networks.values()):
            for part, split in (("train", data.train), ("test", data.test)):
                path = features_path(split, network, folder, f"{name}-{part}")
                if names := unread(split, path):
                    few = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
                    told = f"{len(names)} of {len(split)} images, which cannot be read: {few}"
                    self.result.problems[f"{name}-{part}"] = told

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
        self.digests[name] = data_key(data, place)
        self.result.layouts[name] = layout(name, data, place)

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
            if system.backbone in map(full_name, self.settings.named_backbones):
                self._load_network(*wanted)  # a name that was typed is an error, told at once
            else:
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
            return learner_key(system, self.settings.weights, self.settings.preset)
        if system.backbone is None:
            return ""
        return self.networks[system.backbone, system.pooling].fingerprint

    def _key(self, cell: Cell) -> str:
        return cell_key(cell, self.digests.get(cell.data, ""), self._network_key(cell.system))

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
