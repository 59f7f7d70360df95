"""A second fit beside the first: with the feature cache, without it, and what filling it costs.

Pictures are JPEGs of 448 and 1,000 pixels, cut from the cookies; an empty cache in a folder of its
own; whole `Detector.fit` calls. Five rounds in turn, medians of the ratios in each round.

    python benchmarks/feature_cache.py
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from provenance import write_rows
from throughput import make_photos

from nnad.backbones import Backbone, load_backbone
from nnad.detector import Detector

ROUNDS = 5
IMAGES = 150


def seconds(photos: Path, backbone: Backbone, *, cache: bool) -> float:
    """Seconds of one fit."""
    start = time.perf_counter()
    Detector(backbone, operator="knn").fit(photos, cache=cache)
    return time.perf_counter() - start


def rows_of(folder: Path, side: int, backbone: Backbone) -> dict[str, Any]:
    photos = folder / f"photos-{side}"
    make_photos(photos, IMAGES, side)
    os.environ["NNAD_CACHE"] = str(folder / "warm-up")
    seconds(photos, backbone, cache=True)
    ratios = []
    for i in range(ROUNDS):
        os.environ["NNAD_CACHE"] = str(folder / f"cache-{side}-{i}")
        without = seconds(photos, backbone, cache=False)
        first = seconds(photos, backbone, cache=True)
        second = seconds(photos, backbone, cache=True)
        ratios.append((first / without, second / first))
    filling, second_to_first = np.median(ratios, axis=0)
    size = sum(p.stat().st_size for p in Path(os.environ["NNAD_CACHE"]).iterdir())
    return {
        "images": f"{IMAGES} JPEGs, {side} px",
        "first_fit_to_fit_without_cache": f"{filling:.3f}",
        "second_fit_to_first": f"{second_to_first:.3f}",
        "second_fit_to_first_of_rounds": " ".join(f"{r:.3f}" for _, r in ratios),
        "bytes_an_image": f"{size / IMAGES:.0f}",
    }


def main() -> None:
    backbone = load_backbone()
    with tempfile.TemporaryDirectory() as name:
        write_rows("feature_cache", [rows_of(Path(name), side, backbone) for side in (448, 1000)])


if __name__ == "__main__":
    main()
