"""The papers' other systems and nearest neighbours in one table: AUROC and time to fit.

Each class in turn is good. `--preset small` uses development images (official training splits):
the first three classes of CIFAR-10 and Fashion-MNIST, 500 images to fit, 150 good and 150 odd ones
to score. It shows that everything works and roughly what it costs on one core; networks that are
thin and trained for an epoch say nothing about what the papers' are worth. For that:

    python benchmarks/systems.py --preset small --data DIR --fashion-mnist DIR
    python benchmarks/systems.py --preset paper --device cuda --cifar10 DIR
    python benchmarks/systems.py --preset paper --device cuda --cifar100 DIR   (coarse classes)
    python benchmarks/systems.py --preset paper --device cuda --fashion-mnist DIR
    python benchmarks/systems.py --preset paper --device cuda --mvtec DIR

A run that was killed goes on where it was: finished cells are kept in --cells, and so are the
checkpoints of the one under way; --finished makes the table of those that there are. Core minutes
are processor time, so that a busy machine tells the same; with a GPU look at the wall minutes.
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

import nnad.datasets
from nnad.backbones import Backbone, load_backbone
from nnad.baselines import make_baseline, read_images
from nnad.features import extract
from nnad.files import cache_folder, replacing
from nnad.fitted import Fitted
from nnad.image_files import find_images
from nnad.operators import make_operator

SEED = 0
TRAIN, TEST, CLASSES = 500, 150, 3  # of a small cell
SIDE, MVTEC_SIDE = 32, 224
NEIGHBOURS = {  # on features of the embedded backbone: transform and operator
    "DN2 (Lite0)": ("raw", "knn"),
    "k-NNN (Lite0)": ("root", "knnn"),
    "nnad auto (Lite0)": ("root", "auto"),
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
ADAPTED = {"panda": "l2", "msad": "l2"}  # Lite0, adapted to the good images: transform
EMBEDDED: dict[tuple[str, str], tuple[Any, Any, tuple[float, float]]] = {}
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


def official_tasks(arguments: argparse.Namespace) -> Iterator[Task]:
    if arguments.cifar10:
        yield from _one_class(nnad.datasets.cifar10(arguments.cifar10))
    if arguments.cifar100:
        yield from _one_class(nnad.datasets.cifar100(arguments.cifar100))
    if arguments.fashion_mnist:
        yield from _one_class(nnad.datasets.fashion_mnist(arguments.fashion_mnist))
    if arguments.mvtec:
        for name, data in nnad.datasets.mvtec_ad(arguments.mvtec).items():
            odd = data.is_anomaly(data.test)
            yield Task("MVTec AD", name, data.good_train().sources, data.test.sources, odd)


def _one_class(data: nnad.datasets.Dataset) -> Iterator[Task]:
    for name in data.classes:
        one = data.with_good(name)
        odd = one.is_anomaly(one.test)
        yield Task(data.name, name, one.good_train().sources, one.test.sources, odd)


def pixels(images: Sequence[Any], side: int) -> NDArray[np.uint8]:
    """(N, H, W, C); grey arrays stay as they are."""
    if isinstance(images[0], np.ndarray) and images[0].ndim == 2:
        return np.stack(images)[..., None]
    return read_images(list(images), side)[0]


def baseline_cell(system: str, task: Task, arguments: argparse.Namespace, folder: Path) -> Scored:
    name, settings = BASELINES[system]
    preset = arguments.preset
    if system == "mhrot" and preset == "paper" and task.data != "MVTec AD":
        preset = "32px reconstruction"
    side = MVTEC_SIDE if system == "mhrot" and task.data == "MVTec AD" else SIDE
    baseline = make_baseline(name, preset, seed=SEED, device=arguments.device, **settings)
    train, test = pixels(task.train, side), pixels(task.test, side)
    labels: dict[str, Any] = {}
    if settings.get("hindsight"):
        labels = {"test_images": test, "test_labels": task.odd}
    with Watch() as watch:
        baseline.fit(train, checkpoints=folder, **labels)
    return baseline.full_title, baseline.score(test), *watch.minutes


def neighbour_cell(system: str, task: Task, _arguments: argparse.Namespace, _f: Path) -> Scored:
    transform, operator = NEIGHBOURS[system]
    key = task.data, task.part
    if key not in EMBEDDED:  # the same for all of these systems
        with Watch() as watch:
            train = embedded(task.train, load_backbone())
        EMBEDDED[key] = train, embedded(task.test, load_backbone()), watch.minutes
    train, test, (core, wall) = EMBEDDED[key]
    with Watch() as watch:
        fitted = Fitted(train, transform, make_operator(operator))
    return system, fitted.score(test), core + watch.minutes[0], wall + watch.minutes[1]


def adapted_cell(system: str, task: Task, _arguments: argparse.Namespace, folder: Path) -> Scored:
    adapt = importlib.import_module("nnad.adaptation.adapt").adapt
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "adapted.onnx"
    with Watch() as watch:
        adapt(list(task.train), out, method=system, seed=SEED, overwrite=True)
        backbone = load_backbone(f"onnx:{out}")
        fitted = Fitted(embedded(task.train, backbone), ADAPTED[system], make_operator("knn"))
    scores = fitted.score(embedded(task.test, backbone))
    return f"{system.upper()} (Lite0)", scores, *watch.minutes


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


def cell(system: str, task: Task, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """A row; from `arguments.cells` if it was made before. None if it was not, with --finished."""
    made: dict[str, Callable[..., Scored]] = {
        **dict.fromkeys(NEIGHBOURS, neighbour_cell),
        **dict.fromkeys(ADAPTED, adapted_cell),
        **dict.fromkeys(BASELINES, baseline_cell),
    }
    what = [system, task.data, task.part, len(task.train), len(task.test), arguments.preset]
    if system in BASELINES:  # its settings
        name, settings = BASELINES[system]
        what.append(repr(make_baseline(name, arguments.preset, **settings)))
    key = hashlib.sha256(json.dumps([*what, arguments.device]).encode()).hexdigest()[:16]
    path = arguments.cells / f"{key}.json"
    if arguments.finished and not path.exists():
        return None
    if not path.exists():
        resumed = (arguments.cells / key).exists()
        title, scores, core, wall = made[system](system, task, arguments, arguments.cells / key)
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
            "resumed": resumed,
        }
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
                key: float(np.mean([row[key] for row in parts]))
                for key in ("auroc", "core_minutes", "wall_minutes")
            }
            first = {**parts[0], "part": f"mean of {len(parts)}", **middle}
            yield {**first, "resumed": any(row["resumed"] for row in parts)}


def main() -> None:
    systems = (*NEIGHBOURS, *ADAPTED, *BASELINES)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=("small", "paper"), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems)
    parser.add_argument("--cells", type=Path, default=cache_folder() / "systems")
    parser.add_argument("--finished", action="store_true")
    parser.add_argument("--data", type=Path, help="small: the folder that holds cifar10/train")
    parser.add_argument("--fashion-mnist", type=Path, help=FASHION_MNIST_HELP)
    for name in ("cifar10", "cifar100", "mvtec"):
        parser.add_argument(f"--{name}", type=Path)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        importlib.import_module("torch").set_num_threads(arguments.threads)
    if arguments.preset == "small":
        tasks = list(small_tasks(arguments.data, arguments.fashion_mnist))
    else:
        tasks = list(official_tasks(arguments))
    with threadpool_limits(arguments.threads):
        made = [cell(system, task, arguments) for task in tasks for system in arguments.systems]
    rows = sorted((row for row in made if row), key=lambda row: row["data"])
    told = [
        {
            **row,
            "auroc": f"{row['auroc']:.1f}",
            "core_minutes": f"{row['core_minutes']:.2f}",
            "wall_minutes": f"{row['wall_minutes']:.2f}",
        }
        for row in means(rows)
    ]
    write_rows("systems" if arguments.preset == "small" else "systems_paper", told)


if __name__ == "__main__":
    main()
