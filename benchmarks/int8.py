"""The int8 backbone beside the float32 one: time, size, and AUROC on five development sets.

For each task the int8 copy is calibrated on 100 of its good training images. Image AUROC x 100 with
k-NN (k = 2) on rooted features. Time: one image on one thread, the two networks in turn, median of
the ratios of 100 pairs. `cosine`: median cosine of int8 and float32 features of held-out good
images. CIFAR-10: three of the ten classes (bird, frog, ship), from the official training split.

    python benchmarks/int8.py --data DIR

DIR is the one of benchmarks/auto.py, and so are the splits.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from auto import auroc
from datasets import elpv
from numpy.typing import NDArray
from one_class import embed
from provenance import write_rows

from nnad.backbones import Backbone, load_backbone
from nnad.images import read_image
from nnad.int8 import CALIBRATION_IMAGES, quantized
from nnad.neighbors import Bank
from nnad.operators.knn import KNN
from nnad.transforms import root

PAIRS = 100
CIFAR_CLASSES = ("bird", "frog", "ship")


class Task(NamedTuple):
    """Good training images, good and odd test images."""

    data: str
    train: list[Any]
    good: list[Any]
    odd: list[Any]


def tasks(folder: Path) -> Iterator[Task]:
    rng = np.random.default_rng(0)
    cells, probability = elpv()
    good = rng.permutation(np.flatnonzero(probability == 0))
    shuffled, half = [cells[i] for i in good], len(good) // 2
    broken = [cells[i] for i in np.flatnonzero(probability >= 2 / 3)]
    yield Task("elpv", shuffled[:half], shuffled[half:], broken)

    files = {p.name: sorted(p.glob("*")) for p in (folder / "cifar10" / "train").iterdir()}
    for name in CIFAR_CLASSES:
        others = [p for other, paths in sorted(files.items()) for p in paths[800:] if other != name]
        odd = [others[i] for i in rng.permutation(len(others))[:600]]
        yield Task("cifar-10 (3 classes)", files[name][:800], files[name][800:], odd)

    tiles = folder / "magnetic_tile"
    odd = [p for p in sorted((tiles / "test").glob("*/*")) if p.parent.name != "good"]
    train, held_out = (sorted((tiles / p / "good").glob("*")) for p in ("train", "test"))
    yield Task("magnetic_tile", train, held_out, odd)

    clothes = folder / "clothing_small"
    held_out = sorted((clothes / "test").glob("*/*")) + sorted((clothes / "validation").glob("*/*"))
    for path in sorted(p for p in (clothes / "train").iterdir() if p.is_dir()):
        same = [p for p in held_out if p.parent.name == path.name]
        odd = [p for p in held_out if p.parent.name != path.name]
        yield Task("clothing", sorted(path.glob("*")), same, odd)

    parts = [("train", "NORMAL"), ("test", "NORMAL"), ("test", "PNEUMONIA")]
    yield Task(
        "chest_xray", *(sorted((folder / "chest_xray_224" / a / b).glob("*")) for a, b in parts)
    )


def evaluate(task: Task, backbone: Backbone) -> dict[str, float]:
    chosen = np.random.default_rng(0).permutation(len(task.train))[:CALIBRATION_IMAGES]
    copy = quantized(backbone, (read_image(task.train[i]) for i in np.sort(chosen)))
    values, features = {}, []
    for label, network in (("float32", backbone), ("int8", copy)):
        train, good, odd = (embed(part, network) for part in (task.train, task.good, task.odd))
        scores = KNN(2).fit(Bank(root(train))).score(root(np.vstack([good, odd])))
        values[f"auroc_{label}"] = auroc(scores, len(good))
        features.append(good)
    return {
        **values,
        "cosine": float(np.median(cosines(*features))),
        "time_ratio": time_ratio(backbone, copy, read_image(task.train[0])),
        "size_ratio": len(copy.onnx) / len(backbone.onnx),
    }


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """(N,) cosine of each row of `a` (N, D) with that of `b`."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / lengths)


def time_ratio(backbone: Backbone, copy: Backbone, image: Any) -> float:
    """Time of the int8 network over that of the float32 one, preprocessing not counted."""
    views = backbone.preprocessing(image)
    ratios = []
    for _ in range(PAIRS):
        pair = []
        for network in (backbone, copy):
            start = time.perf_counter()
            network._session.run(None, {"image": views})
            pair.append(time.perf_counter() - start)
        ratios.append(pair[1] / pair[0])
    return float(np.median(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    backbone = load_backbone()
    found: dict[str, list[dict[str, float]]] = {}
    for task in tasks(parser.parse_args().data):
        found.setdefault(task.data, []).append(evaluate(task, backbone))
        print("done:", task.data, flush=True)
    rows = []
    for data, values in found.items():
        mean = {key: float(np.mean([v[key] for v in values])) for key in values[0]}
        rows.append(
            {
                "data": data,
                "tasks": len(values),
                "auroc_float32": f"{mean['auroc_float32']:.2f}",
                "auroc_int8": f"{mean['auroc_int8']:.2f}",
                "difference": f"{mean['auroc_int8'] - mean['auroc_float32']:+.2f}",
                "cosine": f"{mean['cosine']:.4f}",
                "time_ratio": f"{mean['time_ratio']:.2f}",
                "size_ratio": f"{mean['size_ratio']:.3f}",
            }
        )
    write_rows("int8", rows)


if __name__ == "__main__":
    main()
