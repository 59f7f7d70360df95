"""PANDA or MSAD on the embedded network: AUROC before and after, one class good at a time.

    python benchmarks/panda.py --data DIR --fashion-mnist DIR [--method M] --search
    python benchmarks/panda.py --data DIR --fashion-mnist DIR [--method M]

M is `panda` (the default) or `msad`; to search also `msad_angular`, with the angular centre loss.
The images are those of benchmarks/tasks.py, from the official training split: 800 good ones of a
class, of which the first 300 are learnt from here, 200 more and 600 of the other classes to score.
--search compares settings on three classes (airplane, cat, frog): the settings are chosen with
labelled images, those of the development split. Without it the network adapted with the chosen
settings is compared with the network as it is: on all ten classes, on the seven on which nothing
was chosen, and on the ten of Fashion-MNIST, on which nothing was chosen either.

AUROC x 100 of the last epoch, by k-NN (k = 2) after each transform and by k-NNN. `alarms` is the
share of 200 (100) new good images that k-NN on features of length 1 gives a score above the 5 %
highest leave-one-out scores of the images that it learnt from: 5 if those were like new ones.
`seconds` are processor time of the training, without the stem.
"""

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from auto import auroc
from numpy.typing import NDArray
from provenance import write_rows
from tasks import Task, development_tasks

from nnad.adaptation.adapt import EMBEDDED, METHODS
from nnad.adaptation.ewc import Penalty
from nnad.adaptation.msad import Pairs, adapt_msad, kept_pairs
from nnad.adaptation.networks import load_network
from nnad.adaptation.panda import adapt_panda
from nnad.adaptation.pictures import read_pictures, stem_outputs, tail_features
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.transforms import fit_transform

Array = NDArray[Any]
SEARCHED = {"airplane": 0, "cat": 3, "frog": 6}
IMAGES = 300
PAPER: dict[str, Any] = {"lr": 1e-2, "clip_norm": 1e-3, "epochs": 15}
CHOSEN: dict[str, dict[str, Any]] = {
    method: {"epochs": METHODS[method], **EMBEDDED[method]} for method in ("panda", "msad")
}
PANDA_GRID: list[dict[str, Any]] = [
    PAPER,
    {"lr": 1e-1, "clip_norm": 1.0, "epochs": 15},
    {"lr": 1.0, "clip_norm": 1.0, "epochs": 15},
    {"lr": 1e-1, "clip_norm": 0.3, "unit": True, "epochs": 15},
    {"lr": 1.0, "clip_norm": 0.3, "unit": True, "epochs": 5},
    {"lr": 1.0, "clip_norm": 0.3, "unit": True, "epochs": 15},
    {"lr": 3.0, "clip_norm": 0.3, "unit": True, "epochs": 15},
    {"lr": 1.0, "clip_norm": 0.3, "unit": True, "epochs": 50, "l2_sp": True},
    {**PAPER, "epochs": 5, "train_from": "s32b"},
    {"lr": 1e-1, "clip_norm": 0.3, "unit": True, "epochs": 5, "train_from": "s32b"},
]
MSAD_GRID: list[dict[str, Any]] = [
    {"lr": 1.0, "epochs": 5, "views": 8},
    {"lr": 1.0, "epochs": 20, "views": 8},
    {"lr": 1e-1, "epochs": 20, "views": 8},
    {"lr": 3.0, "epochs": 20, "views": 8},
    {"lr": 1.0, "epochs": 20, "views": 2},
]
ANGULAR_GRID: list[dict[str, Any]] = [
    {"lr": 0.3, "angular": 1.0, "epochs": 10, "views": 8},
    {"lr": 0.3, "angular": 3.0, "epochs": 10, "views": 8},
    {"lr": 0.1, "angular": 10.0, "epochs": 10, "views": 8},
    {"lr": 0.3, "angular": 10.0, "epochs": 10, "views": 8},
    {"lr": 0.3, "angular": 3.0, "epochs": 20, "views": 8},
]
GRIDS = {"panda": PANDA_GRID, "msad": MSAD_GRID, "msad_angular": ANGULAR_GRID}


class Maps(NamedTuple):
    """Outputs of the stem: to learn from, and good and odd ones to score."""

    train: Array
    good: Array
    odd: Array
    views: dict[int, Pairs]  # of the images to learn from, by their number


def maps_of(
    tasks: Sequence[Task], images: int, train_from: str, views: Iterable[int] = ()
) -> Iterator[Maps]:
    """Of each task's first `images` good ones, and all it scores; each image once."""
    parts = [(list(t.train)[:images], list(t.good), list(t.odd)) for t in tasks]
    once = {id(image): image for three in parts for part in three for image in part}
    network = load_network(train_from=train_from)
    pixels = read_pictures(once.values(), network.preprocessing, progress=True).pixels
    outputs = stem_outputs(network, pixels, progress=True)
    row = {key: number for number, key in enumerate(once)}
    for three in parts:
        train, good, odd = ([row[id(image)] for image in part] for part in three)
        pairs = {n: kept_pairs(network, pixels[train], n, progress=True) for n in sorted(views)}
        yield Maps(outputs[train], outputs[good], outputs[odd], pairs)


def measured(features: list[Array]) -> dict[str, float]:
    train, good, odd = features
    found = {}
    for name in ("raw", "root", "l2"):
        transform = fit_transform(name, train)
        bank, queries = Bank(transform(train)), transform(np.vstack([good, odd]))
        knn = make_operator("knn").fit(bank)
        scores = knn.score(queries)
        found[f"knn {name}"] = round(auroc(scores, len(good)), 2)
    knnn = make_operator("knnn").fit(bank)  # on features of length 1, as the alarms
    found["knnn l2"] = round(auroc(knnn.score(queries), len(good)), 2)
    limit = np.quantile(knn.left_out_scores(), 0.95, method="higher")
    return {**found, "alarms": round(100 * float((scores[: len(good)] > limit).mean()), 1)}


def adapted(maps: Maps, settings: dict[str, Any]) -> dict[str, Any]:
    """What is measured after training with these settings; without any, before."""
    told = dict(settings)
    network = load_network(train_from=told.pop("train_from", "head"))
    start = time.process_time()
    if told:
        pairs = maps.views.get(told.pop("views", 0))
        penalty = Penalty(network) if told.pop("l2_sp", False) else None
        losses = (
            adapt_msad(network, maps.train, pairs, **told)
            if pairs
            else adapt_panda(network, maps.train, penalty=penalty, **told)
        )
        curve = losses.reshape(told["epochs"], -1).mean(axis=1)
        told = {"first loss": float(f"{curve[0]:.3g}"), "last loss": float(f"{curve[-1]:.3g}")}
    seconds = round(time.process_time() - start, 1)
    features = [tail_features(network, part) for part in (maps.train, maps.good, maps.odd)]
    return {**measured(features), **told, "seconds": seconds if settings else 0}


def described(settings: dict[str, Any]) -> dict[str, Any]:
    loss = "unit" if settings.get("unit") else "paper"
    if "views" in settings:
        angular = f" + {settings['angular']:g} angular" if "angular" in settings else ""
        loss = f"msad{angular}, {settings['views']} views"
    return {
        "trained": settings.get("train_from", "head") if settings else "nothing",
        "loss": loss + (" + L2-SP" if settings.get("l2_sp") else "") if settings else "",
        **{key: settings.get(key, "") for key in ("lr", "clip_norm", "epochs")},
    }


def means(rows: list[dict[str, Any]], told: dict[str, Any]) -> dict[str, Any]:
    numbers = [k for k, v in rows[0].items() if isinstance(v, int | float) and k not in told]
    return {**told, **{key: round(float(np.mean([r[key] for r in rows])), 2) for key in numbers}}


def views_of(grid: list[dict[str, Any]]) -> set[int]:
    return {settings["views"] for settings in grid if "views" in settings}


def search(tasks: list[Task], method: str) -> Iterator[dict[str, Any]]:
    for train_from in ("head", "s32b"):
        grid = [s for s in GRIDS[method] if s.get("train_from", "head") == train_from]
        if not grid:
            continue
        same = [tasks[i] for i in SEARCHED.values()]
        maps = list(maps_of(same, IMAGES, train_from, views_of(grid)))
        if train_from == "head":
            grid = [{}, *grid]
        for settings in grid:
            found = [adapted(each, settings) for each in maps]
            yield means(found, {"classes": " ".join(SEARCHED), **described(settings)})
            print(settings, found, flush=True)


def final(tasks: list[Task], method: str) -> Iterator[dict[str, Any]]:
    ways = [{}, CHOSEN[method]]  # the network as it is, and adapted
    for data in ("cifar-10", "fashion-mnist"):
        rows: list[list[dict[str, Any]]] = [[] for _ in ways]
        same = [t for t in tasks if t.data == data]
        for maps in maps_of(same, IMAGES, "head", views_of(ways)):
            for row, settings in zip(rows, ways, strict=True):
                row.append(adapted(maps, settings))
                print(data, len(row), settings, row[-1], flush=True)
        unseen = [i for i in range(10) if i not in SEARCHED.values()]
        for row, settings in zip(rows, ways, strict=True):
            yield means(row, {"data": data, "classes": "all ten", **described(settings)})
        for row, settings in zip(rows, ways, strict=True):
            if data == "cifar-10":
                told = {"data": data, "classes": "the seven not searched", **described(settings)}
                yield means([row[i] for i in unseen], told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fashion-mnist", type=Path, required=True)
    parser.add_argument("--method", choices=GRIDS, default="panda")
    parser.add_argument("--search", action="store_true")
    options = parser.parse_args()
    if not options.search and options.method not in CHOSEN:
        parser.error(f"--method {options.method}: goes with --search")
    torch.set_num_threads(1)
    tasks = [
        task
        for task in development_tasks(options.data, options.fashion_mnist)
        if task.data in ("cifar-10", "fashion-mnist")
    ]
    cifar = [task for task in tasks if task.data == "cifar-10"]
    if options.search:
        found, name = search(cifar, options.method), f"{options.method}_search"
    else:
        found, name = final(tasks, options.method), options.method
    rows: list[dict[str, Any]] = []
    for row in found:
        rows.append(row)
        write_rows(name, rows)


if __name__ == "__main__":
    main()
