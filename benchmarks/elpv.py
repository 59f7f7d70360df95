"""AUROC of every operator on ELPV solar cells, which anybody can get: pip install elpv-dataset.

    python benchmarks/elpv.py

Good cells have a defect probability of 0, anomalies one of at least 2/3; a random half of the good
cells is the training set, five draws. Fashion-MNIST: nnad reproduce dn2 --table 2, docs/papers.md.
"""

import argparse
from typing import Any

import numpy as np
from auto import auroc
from datasets import elpv, embed
from provenance import write_rows

from nnad.backbones import load_backbone
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.transforms import fit_transform

DRAWS = 5
COMPARED = [
    *[("knn", transform) for transform in ("raw", "l2", "root", "log")],
    *[(name, "root") for name in ("kmeans", "knnn", "local", "global", "auto")],
]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    images, probability = elpv()
    features = embed(images, load_backbone())
    good, odd = features[probability == 0], features[probability >= 2 / 3]
    rows = []
    for name, transform in COMPARED:
        values = []
        for seed in range(DRAWS):
            order = np.random.default_rng(seed).permutation(len(good))
            train, test = good[order[: len(good) // 2]], good[order[len(good) // 2 :]]
            transformed = fit_transform(transform, train)
            operator = make_operator(name).fit(Bank(transformed(train)))
            scores = operator.score(transformed(np.vstack([test, odd])))
            values.append(auroc(scores, len(test)))
        rows.append(row(name, transform, values))
    write_rows("elpv", rows)


def row(name: str, transform: str, values: list[float]) -> dict[str, Any]:
    return {
        "operator": name,
        "transform": transform,
        "draws": DRAWS,
        "auroc": f"{np.mean(values):.2f}",
        "std": f"{np.std(values, ddof=1):.2f}",
    }


if __name__ == "__main__":
    main()
