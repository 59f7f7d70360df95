"""The greedy k-centre coreset beside the plain loop in numpy: 200,000 patches to 10 %, same result.

    python benchmarks/coreset.py --data DIR [--rows N] [--share S]

DIR is a set in the MVTec layout with 500 images or more (magnetic_tile): patches of all its
images, whitened and projected to 48 dimensions. Both must choose the same rows. The plain loop gets
the vectors as ours rounds them, and does what numpy does best: one matrix-vector product for each
centre, in float32, on one thread and on all. Ours uses all cores. CPU seconds are told as well,
because they depend less on what else the machine does. Also: what `estimate` had said, and the
peak of memory above what was there before, each in a process of its own.
"""

import argparse
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from measuring import measured
from numpy.typing import NDArray
from provenance import write_rows
from threadpoolctl import threadpool_limits

from nnad import coreset
from nnad.backbones import load_backbone
from nnad.cores import usable_cores
from nnad.datasets import load_dataset
from nnad.features import in_threads
from nnad.image_files import find_images
from nnad.images import Source, read_image
from nnad.patch_features import Maps, Whitening, patch_stages, random_projection, whitened
from nnad.progress import track

DIM = 48


def patches(folder: Path, rows: int) -> NDArray[np.float32]:
    """(rows, 48) whitened and projected patches, drawn at random."""
    dataset = load_dataset(folder)
    sources = [*dataset.train.sources, *dataset.test.sources]
    backbone = load_backbone(size=320, geometry="whole", stages=("s16b", "s32a"), pooling="map")
    rng = np.random.default_rng(0)
    each = -(-rows // len(sources))

    def some(source: Source, name: str) -> list[Maps]:
        return patch_stages(backbone, read_image(source, name))

    drawn: list[list[Maps]] = []
    found = in_threads(find_images(sources), some)
    for _, stages in track(found, len(sources), "embedding", show=True):
        flat = [stage.reshape(-1, stage.shape[-1]) for stage in stages]  # type: ignore[union-attr]
        chosen = rng.choice(len(flat[0]), each, replace=False)
        drawn.append([stage[chosen] for stage in flat])
    stages = [np.concatenate(stage)[:rows] for stage in zip(*drawn, strict=True)]
    joined = whitened(stages, [Whitening.fit(stage) for stage in stages])
    return np.asarray(joined @ random_projection(joined.shape[1], DIM))


def plain_loop(vectors: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The greedy choice, one centre after the other."""
    sq_norms = np.square(vectors).sum(axis=1)
    chosen = np.empty(count, np.int64)
    chosen[0] = sq_norms.argmin()
    nearest = np.full(len(vectors), np.inf, np.float32)
    for n in track(range(count - 1), count - 1, "plain loop", show=True, unit="patches"):
        row = chosen[n]
        sq_dists = vectors @ (-2 * vectors[row])
        sq_dists += sq_norms
        sq_dists += sq_norms[row]
        np.minimum(nearest, sq_dists, out=nearest)
        chosen[n + 1] = nearest.argmax()
    return chosen


def measure(system: str, vectors: NDArray[np.float32], count: int) -> tuple[Any, dict[str, Any]]:
    """The rows chosen, and what that cost in this process."""
    ours = system == "nnad"
    if not ours:
        vectors = coreset._whole_numbers(vectors)
    with threadpool_limits(usable_cores() if system.endswith("all cores") else 1):
        return measured(
            lambda: coreset.coreset(vectors, count) if ours else plain_loop(vectors, count)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--share", type=float, default=0.1)
    arguments = parser.parse_args()
    vectors = patches(arguments.data, arguments.rows)
    count = round(arguments.share * len(vectors))
    estimate = coreset.estimate(len(vectors), count, DIM)
    rows, results = [], {}
    systems = ("nnad", "plain loop, one thread", "plain loop, all cores")
    for system in systems:
        with get_context("spawn").Pool(1) as pool:
            results[system], told = pool.apply(measure, (system, vectors, count))
        rows.append({"system": system, "patches": len(vectors), "chosen": count, **told})
    ours = dict(rows[0])
    for row in rows:
        row["nnad_faster"] = f"{row['seconds'] / ours['seconds']:.1f}"
        row["nnad_faster_cpu"] = f"{row['cpu_seconds'] / ours['cpu_seconds']:.1f}"
        row["same"] = bool((results[row["system"]] == results["nnad"]).all())
        row |= {key: f"{row[key]:.1f}" for key in ("seconds", "cpu_seconds", "peak_mb")}
    rows[0]["estimated"] = f"{estimate.seconds:.0f} s, {estimate.megabytes:.0f} MB"
    write_rows("coreset", rows)


if __name__ == "__main__":
    main()
