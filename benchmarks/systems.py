"""The papers' other systems and nearest neighbours in one table: AUROC and time to fit.

    python benchmarks/systems.py --data DIR --fashion-mnist DIR

Each class in turn is good. Development images (official training splits): the first three classes
of CIFAR-10 and Fashion-MNIST, 500 images to fit, 150 good and 150 odd ones to score. Presets are
`small`: it shows that everything works and roughly what it costs on one core, not what the papers'
systems are worth. For that: `nnad reproduce dn2 --table 1 --system all`.

A run that was killed goes on where it was: finished cells are kept in --cells, and so are the
checkpoints of the one under way. Core minutes are processor time, so that a busy machine tells the
same; those of cells that went on after a kill are left out.
"""

import argparse
import hashlib
import importlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import FASHION_MNIST_HELP, fashion_mnist
from numpy.typing import NDArray
from provenance import write_rows
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from nnad.backbones import Backbone, load_backbone
from nnad.baselines import make_baseline, read_images
from nnad.features import extract
from nnad.files import cache_folder, replacing
from nnad.fitted import Fitted
from nnad.image_files import find_images
from nnad.operators import make_operator
from nnad.reproduce.store import commit

SEED = 0
TRAIN, TEST, CLASSES = 500, 150, 3  # of a small cell
SIDE = 32
NEIGHBOURS = {  # on features of Lite0: how it was adapted, transform, operator
    "DN2: k-NN (Lite0, raw)": ("", "raw", "knn"),
    "k-NN (Lite0, l2)": ("", "l2", "knn"),
    "k-NN (Lite0, root)": ("", "root", "knn"),
    "k-NNN (Lite0, root)": ("", "root", "knnn"),
    "auto (Lite0, root)": ("", "root", "auto"),
    "PANDA: k-NN (Lite0, l2)": ("panda", "l2", "knn"),
    "PANDA: k-NNN (Lite0, l2)": ("panda", "l2", "knnn"),
    "PANDA: auto (Lite0, root)": ("panda", "root", "auto"),
    "MSAD: k-NN (Lite0, l2)": ("msad", "l2", "knn"),
}
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "ocsvm": ("ocsvm", {}),
    "ocsvm-features": ("ocsvm", {"features": True}),
    "ocsvm-hindsight": ("ocsvm", {"hindsight": True}),
    "deep-svdd": ("deep-svdd", {}),
    "geom": ("geom", {}),
    "goad": ("goad", {}),
    "mhrot": ("mhrot", {}),
}
EMBEDDED: dict[tuple[str, str, str], tuple[Any, Any, tuple[float, float]]] = {}
Scored = tuple[str, NDArray[np.float64], float, float]  # title, scores, core and wall minutes


class Task(NamedTuple):
    """Images as anything that `find_images` takes; `odd` (N,) of the test images."""

    data: str
    part: str
    train: Sequence[Any]
    test: Sequence[Any]
    odd: NDArray[np.bool_]


def small_tasks(folder: Path, fashion: Path) -> Iterator[Task]:
    root = folder / "cifar10" / "train"
    names = sorted(p.name for p in root.iterdir() if p.is_dir())
    paths = [sorted((root / name).glob("*")) for name in names]
    yield from _small("CIFAR-10", names, paths)
    images, labels = fashion_mnist(fashion, "train")
    by_class = [list(images[labels == c][:1000]) for c in range(10)]
    yield from _small("Fashion-MNIST", [f"class {c}" for c in range(10)], by_class)


def _small(data: str, names: list[str], by_class: list[list[Any]]) -> Iterator[Task]:
    for good in range(CLASSES):
        mine = by_class[good][TRAIN : TRAIN + TEST]
        others = [images[TRAIN:] for c, images in enumerate(by_class) if c != good]
        odd = [image for row in zip(*others, strict=False) for image in row][:TEST]
        is_odd = np.arange(len(mine) + len(odd)) >= len(mine)
        yield Task(data, names[good], by_class[good][:TRAIN], [*mine, *odd], is_odd)


def pixels(images: Sequence[Any], side: int) -> NDArray[np.uint8]:
    """(N, H, W, C); grey arrays stay as they are."""
    if isinstance(images[0], np.ndarray) and images[0].ndim == 2:
        return np.stack(images)[..., None]
    return read_images(list(images), side)[0]


def baseline_cell(system: str, task: Task, folder: Path) -> Scored:
    name, settings = BASELINES[system]
    baseline = make_baseline(name, "small", seed=SEED, **settings)
    train, test = pixels(task.train, SIDE), pixels(task.test, SIDE)
    labels: dict[str, Any] = {}
    if settings.get("hindsight"):
        labels = {"test_images": test, "test_labels": task.odd}
    with Watch() as watch:
        baseline.fit(train, checkpoints=folder, **labels)
    return baseline.full_title, baseline.score(test), *watch.minutes


def neighbour_cell(system: str, task: Task, folder: Path) -> Scored:
    """Of the network as it is, or adapted; systems with the same network share its features."""
    method, transform, operator = NEIGHBOURS[system]
    key = method, task.data, task.part
    if key not in EMBEDDED:
        with Watch() as watch:
            backbone = adapted(method, task, folder) if method else load_backbone()
            train = embedded(task.train, backbone)
        EMBEDDED[key] = train, embedded(task.test, backbone), watch.minutes
    train, test, (core, wall) = EMBEDDED[key]
    with Watch() as watch:
        fitted = Fitted(train, transform, make_operator(operator))
    return system, fitted.score(test), core + watch.minutes[0], wall + watch.minutes[1]


def adapted(method: str, task: Task, folder: Path) -> Backbone:
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "adapted.onnx"
    adapt = importlib.import_module("nnad.adaptation.adapt").adapt
    adapt(list(task.train), out, method=method, seed=SEED, overwrite=True)
    return load_backbone(f"onnx:{out}")


def embedded(images: Sequence[Any], backbone: Backbone) -> NDArray[np.float32]:
    found = extract(find_images(list(images)), backbone, workers=1)
    return np.stack([feature for _, feature in found])  # type: ignore[misc]


class Watch:
    """Core and wall minutes of a block."""

    def __enter__(self) -> "Watch":
        self.started = time.process_time(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        core, wall = self.started
        self.minutes = (time.process_time() - core) / 60, (time.monotonic() - wall) / 60


def cell(system: str, task: Task, cells: Path) -> dict[str, Any]:
    """A row; from the folder of cells if it was made before."""
    made: dict[str, Callable[..., Scored]] = {
        **dict.fromkeys(NEIGHBOURS, neighbour_cell),
        **dict.fromkeys(BASELINES, baseline_cell),
    }
    what = [system, task.data, task.part, len(task.train), len(task.test)]
    if system in BASELINES:  # what it depends on
        name, settings = BASELINES[system]
        what.append(repr(make_baseline(name, "small", **settings)))
    elif method := NEIGHBOURS[system][0]:
        module = importlib.import_module("nnad.adaptation.adapt")
        own = module.EMBEDDED_MSAD if method == "msad" else module.EMBEDDED
        epochs = module.usual_epochs(method, "efficientnet-lite0", len(task.train))
        what += [own, epochs]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    path = cells / f"{key}.json"
    if not path.exists():
        resumed = (cells / key).exists()
        title, scores, core, wall = made[system](system, task, cells / key)
        row = {
            "data": task.data,
            "part": task.part,
            "system": title,
            "train": len(task.train),
            "good": int((~task.odd).sum()),
            "odd": int(task.odd.sum()),
            "auroc": 100 * roc_auc_score(task.odd, scores),
            "core_minutes": core,
            "wall_minutes": wall,
            "commit_of_cell": commit(),
        }
        if resumed:
            row["core_minutes"] = row["wall_minutes"] = float("nan")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps(row).encode())
        print({**row, "now": time.strftime("%H:%M:%S")}, flush=True)
    told: dict[str, Any] = json.loads(path.read_text())
    return told


def means(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, and after those of one data set the means of each system over its parts."""
    for _, group in groupby(rows, key=lambda row: row["data"]):
        ordered = sorted(group, key=lambda row: row["system"])
        yield from ordered
        for _, same in groupby(ordered, key=lambda row: row["system"]):
            parts = list(same)
            middle = {
                key: float(np.nanmean([row[key] for row in parts]))
                for key in ("auroc", "core_minutes", "wall_minutes")
            }
            commits = " ".join(sorted({row["commit_of_cell"] for row in parts}))
            told = {"part": f"mean of {len(parts)}", "commit_of_cell": commits}
            yield {**parts[0], **middle, **told}


def main() -> None:
    systems = (*NEIGHBOURS, *BASELINES)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems)
    parser.add_argument("--cells", type=Path, default=cache_folder() / "systems")
    parser.add_argument("--data", type=Path, required=True, help="the folder of cifar10/train")
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    arguments = parser.parse_args()
    importlib.import_module("torch").set_num_threads(arguments.threads)
    tasks = list(small_tasks(arguments.data, arguments.fashion_mnist))
    with threadpool_limits(arguments.threads):
        made = [
            cell(system, task, arguments.cells) for system in arguments.systems for task in tasks
        ]
    rows = sorted(made, key=lambda row: row["data"])
    numbers = {"auroc": 1, "core_minutes": 2, "wall_minutes": 2}
    told = [
        {**row, **{key: f"{row[key]:.{digits}f}" for key, digits in numbers.items()}}
        for row in means(rows)
    ]
    write_rows("systems", told)


if __name__ == "__main__":
    main()
