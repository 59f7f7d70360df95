"""Peak memory and time of patch models: many images, and large ones in tiles.

    python benchmarks/patch_memory.py --data DIR [--cases NAME ...]

DIR holds `magnetic_tile` in the MVTec layout. Each case runs in a process of its own and reports
the highest memory that the system ever gave it (resident set), everything included: Python, the
network, decoded images. Images are made of the good training images, by a seeded draw:

- `2,000 images`: cut at random from one and perhaps mirrored, seen as whole frames.
- `8,000 x 2,000`, `200 x 5,000`: mosaics of them, in tiles of 320 pixels at native detail. One more
  is scored, up to its map in pixels. (Their seams are no defects, but odd: nothing is said here of
  how well defects are found.)

CPU seconds, of all threads, say more than seconds when others use the machine.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from provenance import write_rows

from nnad.anomaly_maps import Box, to_image
from nnad.backbones import load_backbone
from nnad.datasets import load_dataset
from nnad.images import read_image
from nnad.patch_model import PatchModel
from nnad.tiles import Tiles, View, views_of

CASES = {  # width and height, good images
    "2,000 images": (None, 2000),
    "8,000 x 2,000": ((8000, 2000), 4),
    "200 x 5,000": ((200, 5000), 20),
}
_SIDE = 160  # pixels of the smallest cut


def cut(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random part of a picture, perhaps mirrored."""
    width, height = (int(rng.integers(min(_SIDE, side), side + 1)) for side in picture.size)
    left = int(rng.integers(picture.width - width + 1))
    top = int(rng.integers(picture.height - height + 1))
    part = picture.crop((left, top, left + width, top + height))
    return ImageOps.mirror(part) if rng.random() < 0.5 else part


def mosaic(
    pictures: list[Image.Image], size: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    """A picture full of others, from left to right and down."""
    canvas = Image.new("RGB", size)
    y = 0
    while y < size[1]:
        x, lowest = 0, size[1]
        while x < size[0]:
            part = cut(pictures[int(rng.integers(len(pictures)))], rng)
            canvas.paste(part, (x, y))
            x, lowest = x + part.width, min(lowest, y + part.height)
        y = lowest
    return canvas


def measure(data: Path, case: str) -> dict[str, Any]:
    size, count = CASES[case]
    dataset = load_dataset(data / "magnetic_tile")
    pictures = [read_image(source) for source in dataset.train.sources]
    rng = np.random.default_rng(0)

    def images() -> Iterator[tuple[str, Image.Image]]:
        for i in range(count):
            chosen = pictures[int(rng.integers(len(pictures)))]
            yield str(i), cut(chosen, rng) if size is None else mosaic(pictures, size, rng)

    backbone = load_backbone(size=320, geometry="whole", stages=("s16b", "s32a"), pooling="map")
    tiles = None if size is None else Tiles()
    clocks = time.perf_counter(), time.process_time()
    found = views_of(images(), backbone, tiles)
    model = PatchModel().fit((views for _, views in found), total=count)  # type: ignore[misc]
    row = {"case": case, "good_images": count, **told("fit", *clocks)}
    if size is None:
        return row
    picture = mosaic(pictures, size, rng)
    clocks = time.perf_counter(), time.process_time()
    ((_, views),) = views_of([("new", picture)], backbone, tiles)
    seen: list[Box] = []

    def remembered() -> Iterator[View]:
        for view in views:  # type: ignore[union-attr]
            seen.append(view.seen)
            yield view

    grids, _ = model.score(remembered())
    to_image(grids, size, seen)
    return {**row, "tiles": len(seen), **told("score", *clocks)}


def told(what: str, started: float, cpu: float) -> dict[str, str]:
    return {
        f"{what}_s": f"{time.perf_counter() - started:.1f}",
        f"{what}_cpu_s": f"{time.process_time() - cpu:.1f}",
        f"{what}_peak_mb": f"{peak_mb():.0f}",
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--here", action="store_true", help="in this process, for the others")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.data, arguments.cases[0])))
        return
    rows = []
    for case in arguments.cases:
        command = [sys.executable, __file__, "--data", str(arguments.data), "--cases", case]
        done = subprocess.run([*command, "--here"], stdout=subprocess.PIPE, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    write_rows("patch_memory", rows)


if __name__ == "__main__":
    main()
