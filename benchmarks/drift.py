"""How often `nnad drift` sees a change where there is none, and which it sees where there is one.

For each set, each split draws good images for the model and others as new ones: as they are, all
altered in one way, or with a share of real anomalies among them. `verdicts` are shares of splits.

    python benchmarks/drift.py --data DIR --fashion-mnist DIR
"""

import argparse
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import FASHION_MNIST_HELP, elpv, embed, fashion_mnist
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from provenance import write_rows

from nnad.backbones import load_backbone
from nnad.drift import ALONG_THE_WAY, BOTH, MORE_ANOMALIES, NO_CHANGE, SHIFTED, judge
from nnad.images import read_image
from nnad.operators import make_operator
from nnad.progress import track
from nnad.scorer import Scorer

GOOD = (30, 200)  # images that the model is fitted on
NEW = (20, 50, 100, 200)
VERDICTS = (NO_CHANGE, MORE_ANOMALIES, SHIFTED, BOTH, ALONG_THE_WAY)
Features = NDArray[np.float32]


def darker(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.point(lambda value: round(value * factor))


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 224))


def compressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file)


def turned(image: Image.Image) -> Image.Image:
    """By 2 degrees, without the corners that are then empty."""
    width, height = image.size
    box = (round(width * 0.04), round(height * 0.04), round(width * 0.96), round(height * 0.96))
    return image.rotate(2, Image.Resampling.BICUBIC).crop(box)


def moved(image: Image.Image) -> Image.Image:
    """As if the camera had moved: 4 % cut off on the left and at the top."""
    return image.crop((round(image.width * 0.04), round(image.height * 0.04), *image.size))


ALTERATIONS = {
    "brightness x 0.9": darker(0.9),
    "brightness x 0.8": darker(0.8),
    "blur": blurred,
    "JPEG 30": compressed,
    "turned by 2 degrees": turned,
    "moved by 4 %": moved,
}


def load(data: Path, fashion: Path) -> dict[str, tuple[list[Any], list[Any]]]:
    """Good images and anomalies of each set."""
    root = data / "magnetic_tile"
    defects = [p for p in sorted((root / "test").glob("*/*")) if p.parent.name != "good"]
    cells, probability = elpv()
    images, labels = fashion_mnist(fashion, "train")
    return {
        "magnetic_tile": (sorted(root.glob("t*/good/*")), defects),
        "elpv": (
            [cell for cell, p in zip(cells, probability, strict=True) if p == 0],
            [cell for cell, p in zip(cells, probability, strict=True) if p >= 2 / 3],
        ),
        "fashion-mnist class 8": (list(images[labels == 8][:700]), list(images[labels != 8][:600])),
    }


def draw(
    case: str, share: float, sets: dict[str, Features], altered: NDArray[np.int64], seed: int
) -> tuple[Features, Features]:
    """Features of good images, all that may be fitted, and of 200 new ones, in random order."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(altered))[: NEW[-1]]
    rest = rng.permutation(np.setdiff1d(np.arange(len(sets["good"])), altered[chosen]))
    new = sets[case][chosen] if case in ALTERATIONS else sets["good"][altered[chosen]]
    if case not in ALTERATIONS:  # any good images may be the new ones
        order = rng.permutation(len(sets["good"]))
        new, rest = sets["good"][order[: NEW[-1]]], order[NEW[-1] :]
    for m in NEW if share else ():  # each of the nested sets has this share
        odd = sets["odd"][rng.permutation(len(sets["odd"]))]
        start = max((smaller for smaller in NEW if smaller < m), default=0)
        places = start + rng.permutation(m - start)[: round(share * (m - start))]
        new = new.copy()
        new[places] = odd[: len(places)]
    return sets["good"][rest], new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds the folder magnetic_tile")
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    parser.add_argument("--splits", type=int, default=100, help="without a change")
    parser.add_argument("--changed-splits", type=int, default=15)
    arguments = parser.parse_args()
    backbone = load_backbone()
    rows = []
    for data, (good, odd) in load(arguments.data, arguments.fashion_mnist).items():
        altered = np.random.default_rng(0).permutation(len(good))[: NEW[-1]]
        sets = {"good": embed(good, backbone), "odd": embed(odd, backbone)}
        for name, alter in ALTERATIONS.items():
            pictures = [np.asarray(alter(read_image(good[i]))) for i in altered]
            sets[name] = embed(pictures, backbone)
        cases = [("none", 0.0), *(("anomalies", share) for share in (0.05, 0.1, 0.2))]
        cases += [(name, 0.0) for name in ALTERATIONS]
        cases += [("brightness x 0.8", 0.2), ("turned by 2 degrees", 0.2)]
        for case, share in cases:
            splits = arguments.splits if case == "none" else arguments.changed_splits
            verdicts: dict[tuple[int, int], Counter[str]] = {}
            for seed in track(range(splits), splits, f"{data}, {case} {share}", show=True):
                rest, new = draw(case, share, sets, altered, seed)
                for n in GOOD:
                    scorer = Scorer(rest[:n], "root", make_operator("auto"))
                    budget = scorer.calibration.default_budget()
                    for m in NEW:
                        found = judge(rest[:n], new[:m], scorer, budget, seed=seed)
                        verdicts.setdefault((n, m), Counter())[found.verdict] += 1
            for (n, m), counts in verdicts.items():
                row = {"data": data, "change": case, "anomalies": share, "good": n, "new": m}
                told = {verdict: f"{counts[verdict] / splits:.3f}" for verdict in VERDICTS}
                rows.append({**row, **told, "splits": splits})
            print(data, case, share, {key: dict(value) for key, value in verdicts.items()})
    write_rows("drift", rows)


if __name__ == "__main__":
    main()
