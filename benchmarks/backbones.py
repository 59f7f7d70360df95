"""The embedded backbones and their options beside each other, on six development sets.

    python benchmarks/backbones.py --data DIR --fashion-mnist DIR [--only NAME ...]
    python benchmarks/backbones.py --data DIR --fashion-mnist DIR --times

Image AUROC x 100, mean over the tasks of a set (benchmarks/tasks.py tells the sets and what DIR
holds), by plain k-NN (k = 2) and by `auto`, both on rooted features. Nothing is fitted but on the
good training images; int8 is calibrated on 100 of them, for each task anew. But the sets were
looked at while defaults were chosen: this is no clean validation.

With --times nothing is evaluated: `time` is that of one image on one thread, network and flips but
not decoding, over that of the default in the same turn, median of 40 turns; `ms` is the median
itself, and `mb` the networks' size.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
from auto import auroc
from datasets import FASHION_MNIST_HELP, embed
from numpy.typing import NDArray
from PIL import Image
from provenance import write_rows
from tasks import Task, development_tasks

from nnad.backbones import Backbone, load_backbone
from nnad.ensemble import Ensemble
from nnad.images import read_image
from nnad.int8 import CALIBRATION_IMAGES, quantized
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.transforms import fit_transform, l2

TURNS = 40
DEFAULT = "lite0"
CANDIDATES: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "lite0 whole": {"geometry": "whole"},
    "lite2": {"name": "efficientnet-lite2"},
    "lite0+lite2": {"name": "efficientnet-lite0+efficientnet-lite2"},
    "lite0 int8": {},
    "lite0 letterbox": {"geometry": "letterbox"},
    "lite0 flips": {"flips": "horizontal"},
    "lite0 s16b s32a head gem": {"stages": ("s16b", "s32a", "head"), "pooling": "gem"},
    "lite1": {"name": "efficientnet-lite1"},
}


def embedded(images: Sequence[Any], backbone: Backbone) -> NDArray[np.float32]:
    """Features (N, D); those of an ensemble from its members, which are embedded once only."""
    if isinstance(backbone, Ensemble):
        return np.hstack([l2(embed(images, member)) for member in backbone.members])
    return embed(images, backbone)


def aurocs(task: Task, backbone: Backbone) -> dict[str, float]:
    """AUROC of each operator on one task."""
    train, good, odd = (embedded(part, backbone) for part in (task.train, task.good, task.odd))
    transform = fit_transform("root", train)
    bank, queries = Bank(transform(train)), transform(np.vstack([good, odd]))
    return {
        name: auroc(make_operator(name).fit(bank).score(queries), len(good))
        for name in ("knn", "auto")
    }


def quantized_for(task: Task, backbone: Backbone) -> Backbone:
    """An int8 copy of the backbone for one task."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(task.train))[:CALIBRATION_IMAGES])
    return quantized(backbone, (read_image(task.train[i]) for i in chosen))


def times(backbones: dict[str, Backbone], task: Task) -> list[dict[str, Any]]:
    """Milliseconds an image, the ratio to the default's in the same turn, and sizes."""
    backbones = {
        name: quantized_for(task, backbone) if "int8" in name else backbone
        for name, backbone in backbones.items()
    }
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((320, 320), Image.Resampling.BICUBIC)
    measured: dict[str, list[float]] = {name: [] for name in backbones}
    for turn in range(TURNS + 1):
        for name, backbone in backbones.items():
            start = time.perf_counter()
            backbone.embed(image)
            if turn:  # the first starts the network
                measured[name].append(1000 * (time.perf_counter() - start))
    return [
        {
            "backbone": name,
            "features": backbone.dim,
            "ms": f"{statistics.median(measured[name]):.1f}",
            "time": f"{statistics.median(map(truediv, measured[name], measured[DEFAULT])):.2f}",
            "mb": f"{sum(map(len, backbone.networks)) / 1e6:.1f}",
        }
        for name, backbone in backbones.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    parser.add_argument("--times", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    arguments = parser.parse_args()
    chosen = dict.fromkeys([DEFAULT, *arguments.only])
    backbones = {name: load_backbone(**CANDIDATES[name]) for name in chosen}
    tasks = list(development_tasks(arguments.data, arguments.fashion_mnist))
    if arguments.times:
        write_rows("backbone_times", times(backbones, tasks[0]))
        return
    rows = []
    for name, backbone in backbones.items():
        found: dict[str, list[dict[str, float]]] = {}
        for task in tasks:
            network = quantized_for(task, backbone) if "int8" in name else backbone
            found.setdefault(task.data, []).append(aurocs(task, network))
        for operator in ("knn", "auto"):
            means = {data: np.mean([v[operator] for v in values]) for data, values in found.items()}
            rows.append(
                {
                    "backbone": name,
                    "operator": operator,
                    "mean": f"{np.mean(list(means.values())):.2f}",
                    **{data: f"{mean:.2f}" for data, mean in means.items()},
                }
            )
        write_rows("backbones", rows)


if __name__ == "__main__":
    main()
