"""`auto` beside fixed operators on six development sets, with few and many good images.

Image AUROC x 100 of the embedded backbone (EfficientNet-Lite0, crop 224). One class is good, the
test set is its held-out images and the anomalies. Numbers of good images: 20, 60, 200 (drawn three
times) and all. The sets were looked at while `auto` was designed: this is no clean validation.

    python benchmarks/auto.py --data DIR --fashion-mnist DIR

DIR has folders cifar10/train/<class>, magnetic_tile (MVTec layout), clothing_small/<split>/<class>
and chest_xray_224/{train,test}/<class>; ELPV comes with its pip package. Fashion-MNIST and CIFAR-10
take their development images from the official training splits only.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import FASHION_MNIST_HELP, elpv, fashion_mnist
from numpy.typing import NDArray
from one_class import embed
from provenance import write_rows
from sklearn.metrics import roc_auc_score

from nnad.backbones import Backbone, load_backbone
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.operators.knnn import KNNN
from nnad.transforms import fit_transform

Features = NDArray[np.float32]
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
SIZES = (20, 60, 200, None)
DRAWS = 3


class Task(NamedTuple):
    """Good training features, good and odd test features."""

    data: str
    train: Features
    good: Features
    odd: Features


def tasks(folder: Path, fashion: Path, backbone: Backbone) -> Iterator[Task]:
    rng = np.random.default_rng(0)
    cells, probability = elpv()
    features = embed(cells, backbone)
    good = features[probability == 0][rng.permutation(int((probability == 0).sum()))]
    half = len(good) // 2
    yield Task("elpv", good[:half], good[half:], features[probability >= 2 / 3])

    images, labels = fashion_mnist(fashion, "train")
    chosen = np.concatenate([np.flatnonzero(labels == c)[:700] for c in range(10)])
    yield from one_class("fashion-mnist", embed(images[chosen], backbone), labels[chosen], 600, rng)

    root = folder / "cifar10" / "train"
    classes = sorted(p.name for p in root.iterdir() if p.is_dir())
    paths = [p for name in classes for p in sorted((root / name).glob("*"))]
    names = np.array([p.parent.name for p in paths])
    yield from one_class("cifar-10", embed(paths, backbone), names, 800, rng)

    root = folder / "magnetic_tile"
    train, good = (
        embed(sorted((root / p / "good").glob("*")), backbone) for p in ("train", "test")
    )
    odd = [p for p in sorted((root / "test").glob("*/*")) if p.parent.name != "good"]
    yield Task("magnetic_tile", train, good, embed(odd, backbone))

    root = folder / "clothing_small"
    held_out = sorted((root / "test").glob("*/*")) + sorted((root / "validation").glob("*/*"))
    test, names = embed(held_out, backbone), np.array([p.parent.name for p in held_out])
    for path in sorted(p for p in (root / "train").iterdir() if p.is_dir()):
        train = embed(sorted(path.glob("*")), backbone)
        yield Task("clothing", train, test[names == path.name], test[names != path.name])

    root = folder / "chest_xray_224"
    parts = [("train", "NORMAL"), ("test", "NORMAL"), ("test", "PNEUMONIA")]
    yield Task("chest_xray", *(embed(sorted((root / a / b).glob("*")), backbone) for a, b in parts))


def one_class(
    data: str, features: Features, labels: NDArray[Any], train: int, rng: np.random.Generator
) -> Iterator[Task]:
    """Each class in turn is good; its first `train` images train, the rest of all classes test."""
    is_train = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        is_train[np.flatnonzero(labels == label)[:train]] = True
    for label in np.unique(labels):
        odd = np.flatnonzero(~is_train & (labels != label))
        odd = odd[rng.permutation(len(odd))[:600]]
        is_good = labels == label
        yield Task(data, features[is_train & is_good], features[~is_train & is_good], features[odd])


def columns() -> dict[str, tuple[str, Callable[[], Any]]]:
    """Name -> transform and operator."""
    made: dict[str, tuple[str, Callable[[], Any]]] = {
        f"knn {t}": (t, lambda: make_operator("knn")) for t in ("raw", "l2", "root", "log")
    }
    made["T10"] = (
        "root",
        lambda: make_operator("hull", k=3, m=10, ridge=0, reduction="mean"),
    )
    made["global"] = ("root", lambda: make_operator("global"))
    made["local"] = ("root", lambda: make_operator("local"))
    made["auto"] = ("root", lambda: make_operator("auto"))
    return made


def auroc(scores: NDArray[np.float64], n_good: int) -> float:
    return 100 * float(roc_auc_score(np.arange(len(scores)) >= n_good, scores))


def evaluate(train: Features, task: Task) -> dict[str, float]:
    """AUROC of every column for one training set."""
    queries, n_good = np.vstack([task.good, task.odd]), len(task.good)
    values = {}
    for name, (transform, make) in columns().items():
        transformed = fit_transform(transform, train)
        operator = make().fit(Bank(transformed(train)))
        values[name] = auroc(operator.score(transformed(queries)), n_good)
    root = fit_transform("root", train)
    scores = KNNN().fit(Bank(root(train))).score_ridges(root(queries), RIDGES)  # (Q, R)
    values |= {f"k-NNN {r:g}": auroc(scores[:, i], n_good) for i, r in enumerate(RIDGES)}
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    arguments = parser.parse_args()
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for task in tasks(arguments.data, arguments.fashion_mnist, load_backbone()):
        for size in SIZES:
            if size is not None and size >= len(task.train):
                continue
            for draw in range(DRAWS if size else 1):
                order = np.random.default_rng(draw).permutation(len(task.train))[:size]
                key = (task.data, str(size or "all"))
                found.setdefault(key, []).append(evaluate(task.train[np.sort(order)], task))
        print("done:", task.data, flush=True)
    rows = []
    for (data, shown), values in found.items():
        told = {name: f"{np.mean([v[name] for v in values]):.2f}" for name in values[0]}
        rows.append({"data": data, "good_images": shown, "tasks": len(values), **told})
    write_rows("auto", rows)


if __name__ == "__main__":
    main()
