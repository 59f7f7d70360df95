"""`auto` beside fixed operators on six development sets, with few and many good images.

Image AUROC x 100 of the embedded backbone (EfficientNet-Lite0, crop 224). One class is good, the
test set is its held-out images and the anomalies. Numbers of good images: 20, 60, 200 (drawn three
times) and all. The sets were looked at while `auto` was designed: this is no clean validation.

    python benchmarks/auto.py --data DIR --fashion-mnist DIR

benchmarks/tasks.py tells what DIR holds.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import FASHION_MNIST_HELP, embed
from numpy.typing import NDArray
from provenance import write_rows
from sklearn.metrics import roc_auc_score
from tasks import development_tasks

from nnad.backbones import load_backbone
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.operators.knnn import KNNN
from nnad.transforms import fit_transform

Array = NDArray[np.float32]
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
SIZES = (20, 60, 200, None)
DRAWS = 3


class Features(NamedTuple):
    """Features of good training images, of good and of odd test images."""

    train: Array
    good: Array
    odd: Array


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


def evaluate(train: Array, task: Features) -> dict[str, float]:
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
    backbone = load_backbone()
    for data, *parts in development_tasks(arguments.data, arguments.fashion_mnist):
        task = Features(*(embed(part, backbone) for part in parts))
        for size in SIZES:
            if size is not None and size >= len(task.train):
                continue
            for draw in range(DRAWS if size else 1):
                order = np.random.default_rng(draw).permutation(len(task.train))[:size]
                key = (data, str(size or "all"))
                found.setdefault(key, []).append(evaluate(task.train[np.sort(order)], task))
        print("done:", data, flush=True)
    rows = []
    for (data, shown), values in found.items():
        told = {name: f"{np.mean([v[name] for v in values]):.2f}" for name in values[0]}
        rows.append({"data": data, "good_images": shown, "tasks": len(values), **told})
    write_rows("auto", rows)


if __name__ == "__main__":
    main()
