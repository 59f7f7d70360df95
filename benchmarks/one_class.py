"""One-class AUROC of DN2's score (Eq. 2, k = 2) on raw, L2 and root features, for each class.

Fashion-MNIST: official test split; the good images are all 6,000 training images of a class.
ELPV: good cells have a defect probability of 0, anomalies one of at least 2/3; a random half of the
good cells is the training set, five seeds.

    python benchmarks/one_class.py --fashion-mnist DIR
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import FASHION_MNIST_HELP, elpv, embed, fashion_mnist
from provenance import write_rows
from sklearn.metrics import roc_auc_score

from nnad.backbones import Backbone, load_backbone
from nnad.neighbors import Bank
from nnad.operators.knn import KNN
from nnad.protocols import one_class
from nnad.transforms import fit_transform

COMPARED = ("raw", "l2", "root", "log")


def auroc(train: Any, good: Any, odd: Any, transform: str) -> float:
    """AUROC of the mean squared distance to the 2 nearest training features."""
    transformed = fit_transform(transform, train)
    scores = KNN(2).fit(Bank(transformed(train))).score(transformed(np.vstack([good, odd])))
    return float(roc_auc_score(np.arange(len(scores)) >= len(good), scores))


def fashion_mnist_rows(folder: Path, backbone: Backbone) -> list[dict[str, Any]]:
    train_images, train_labels = fashion_mnist(folder, "train")
    test_images, test_labels = fashion_mnist(folder, "t10k")
    train, test = embed(train_images, backbone), embed(test_images, backbone)
    rows = []
    for transform in COMPARED:
        tasks = [one_class(train_labels, test_labels, c) for c in range(10)]
        values = [
            auroc(
                train[t.train], test[t.test[~t.is_anomaly]], test[t.test[t.is_anomaly]], transform
            )
            for t in tasks
        ]
        rows += [row("Fashion-MNIST", f"class {c}", transform, [v]) for c, v in enumerate(values)]
        rows.append(row("Fashion-MNIST", "mean of 10 classes", transform, values))
    return rows


def elpv_rows(backbone: Backbone) -> list[dict[str, Any]]:
    images, probability = elpv()
    features = embed(images, backbone)
    good, odd = features[probability == 0], features[probability >= 2 / 3]
    rows = []
    for transform in COMPARED:
        values = []
        for seed in range(5):
            order = np.random.default_rng(seed).permutation(len(good))
            half = len(good) // 2
            values.append(auroc(good[order[:half]], good[order[half:]], odd, transform))
        rows.append(row("ELPV", "mean of 5 seeds", transform, values))
    return rows


def row(data: str, part: str, transform: str, values: Sequence[float]) -> dict[str, Any]:
    spread = f"{np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return {
        "data": data,
        "part": part,
        "transform": transform,
        "k": 2,
        "auroc": f"{np.mean(values):.4f}",
        "std": spread,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    arguments = parser.parse_args()
    backbone = load_backbone()
    rows = elpv_rows(backbone) + fashion_mnist_rows(arguments.fashion_mnist, backbone)
    write_rows("one_class", rows)


if __name__ == "__main__":
    main()
