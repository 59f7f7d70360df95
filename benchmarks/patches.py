"""Patches: image AUROC, pixel AUROC and PRO, time and memory, beside pooled features.

    python benchmarks/patches.py --data DIR [--sets NAME ...]

DIR holds sets in the MVTec layout with masks. These three are development sets: the recipe of the
patches was chosen on them, so that no row is a test of it. Of a set with fewer than 10 good test
images, every fourth training image goes to the test.

Every system uses EfficientNet-Lite0: pooled features of the centre crop at 224 px, patches of the
whole frame at 320 px, stages s16b and s32a, SPADE at 224 px with the stages s8, s16b and s32b and
10 images in its gallery. Good images are scored without themselves in the bank, which is what
`combined` standardises both parts by: mean 0 and deviation 1 over the good images, then the
average. Maps are compared at the size of the image, all test images together; rows `patches: KIND`
have the defects of one kind only, among all good images. `grey levels` is k-NN on seven statistics
of an image (mean, deviation, least, most, quartiles): a set on which it does well measures
lighting.

Milliseconds are CPU time an image of scoring alone, on one thread; the network's are in the row
`network`. The CSV is written anew after each system. A coreset of 100 %, which is none, is left out
where it would hold more than 50,000 patches.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import embed
from numpy.typing import NDArray
from provenance import write_rows
from threadpoolctl import threadpool_limits

from nnad.anomaly_maps import to_image
from nnad.backbones import load_backbone
from nnad.datasets import load_dataset
from nnad.datasets.dataset import Dataset
from nnad.image_files import find_images
from nnad.images import Source, read_image
from nnad.labelled import grey_scores, held_out, read_defect
from nnad.metrics import image_metrics, pixel_metrics
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.patch_features import Maps
from nnad.patch_model import PatchModel
from nnad.progress import track
from nnad.spade import Spade
from nnad.tiles import View, views_of
from nnad.transforms import root

SETS = ("mvtec_hazelnut_reduced", "mvtec_transistor_reduced", "magnetic_tile")
EVERYTHING = 10**9  # patches: no sample
MOST = 50_000  # patches without a coreset
SYSTEMS: dict[str, dict[str, Any]] = {
    "patches": {},
    "patches, k-NN": {"operator": "knn"},
    "patches, k-NNN": {"operator": "knnn"},
    "patches, coreset 1 %": {"sample": EVERYTHING, "rows": None, "share": 0.01},
    "patches, coreset 10 %": {"sample": EVERYTHING, "rows": None, "share": 0.1},
    "PatchCore 10 %": {
        "operator": "knn",
        "whiten": False,
        "sample": EVERYTHING,
        "rows": None,
        "share": 0.1,
        "reweight": True,
    },
    "patches, bank of 20,000": {"sample": EVERYTHING, "rows": 20_000},
    "patches, coreset 100 %": {"sample": EVERYTHING, "rows": None},
}
Scores = NDArray[np.float64]
Row = dict[str, Any]


class Data:
    """One set: its images, and how good a system's scores of the test images are."""

    def __init__(self, dataset: Dataset) -> None:
        dataset = held_out(dataset)
        self.name, test = dataset.name, dataset.test
        self.train, self.test = dataset.good_train().sources, test.sources
        self.odd = dataset.is_anomaly(test)
        self.kinds = np.array([dataset.classes[label] for label in test.labels])
        self.masks = [None if path is None else read_defect(path) for path in test.masks]
        self.sizes = [read_image(source).size for source in self.test]

    def row(self, system: str, scores: Any, maps: Sequence[list[Any]] = (), **told: Any) -> Row:
        found = image_metrics(self.odd, scores)
        row = {"data": self.name, "system": system, "image_auroc": f"{found.auroc:.4f}"}
        row |= {"image_ap": f"{found.ap:.4f}", "fpr_at_95_tpr": f"{found.fpr_at_95_tpr:.4f}"}
        if maps:
            row |= self.of_pixels(maps, np.arange(len(maps)))
        return row | told

    def of_pixels(self, maps: Sequence[list[Any]], images: NDArray[np.intp]) -> Row:
        pairs = ((to_image(maps[i], self.sizes[i]), self.masks[i]) for i in images)
        found = pixel_metrics(pairs)
        return {
            "pixel_auroc": f"{found.auroc:.4f}",
            "pixel_ap": f"{found.ap:.4f}",
            "pro": f"{found.pro:.4f}",
        }

    def rows_of_kinds(self, system: str, maps: Sequence[list[Any]]) -> list[Row]:
        """Pixel metrics of the defects of each kind, among the good images."""
        rows = []
        for kind in np.unique(self.kinds[self.odd]):
            images = np.flatnonzero((self.kinds == kind) | ~self.odd)
            named = {"data": self.name, "system": f"{system}: {kind}"}
            rows.append(named | self.of_pixels(maps, images))
        return rows


def standardised(scores: Any, good: Any) -> Scores:
    return np.asarray((np.asarray(scores) - np.mean(good)) / np.std(good))


def pooled(data: Data, operator: str) -> tuple[Scores, Scores]:
    """Scores of the test images by pooled features, and of the good ones, each left out."""
    backbone = load_backbone()
    good, new = (root(embed(list(sources), backbone)) for sources in (data.train, data.test))
    fitted = make_operator(operator).fit(Bank(good))
    return fitted.score(new), fitted.left_out_scores()


def all_views(sources: Sequence[Source]) -> tuple[list[list[View]], float]:
    """The views of each image, and the network's CPU milliseconds an image."""
    backbone = load_backbone(size=320, geometry="whole", stages=("s16b", "s32a"), pooling="map")
    start = time.process_time()
    found = views_of(find_images(list(sources)), backbone)
    views = [x for _, x in track(found, len(sources), "embedding", show=True)]
    return views, (time.process_time() - start) / len(sources) * 1000  # type: ignore[return-value]


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    found = function()
    return found, time.process_time() - start


def spade(data: Data) -> Row:
    whole = load_backbone(size=224, geometry="whole")
    stages = load_backbone(size=224, geometry="whole", stages=("s8", "s16b", "s32b"), pooling="map")

    def maps_of(sources: Sequence[Source]) -> Iterator[list[Maps]]:
        return (stages.maps(read_image(source)) for source in sources)

    good, new = (root(embed(list(sources), whole)) for sources in (data.train, data.test))
    model, fit_seconds = timed(lambda: Spade(gallery=10).fit(good, maps_of(data.train)))
    found, seconds = [], 0.0
    for feature, image in zip(new, maps_of(data.test), strict=True):
        scored, taken = timed(lambda: model.score(feature, image))  # noqa: B023
        found.append(scored)
        seconds += taken
    maps, scores = [[grid] for grid, _ in found], [score for _, score in found]
    told = {"ms": f"{1000 * seconds / len(new):.1f}", "fit_s": f"{fit_seconds:.1f}"}
    return data.row("SPADE", scores, maps, **told)


def evaluate(path: Path) -> Iterator[Row]:
    data = Data(load_dataset(path))
    yield data.row("grey levels", grey_scores(data.train, data.test))
    for operator in ("knn", "auto"):
        pooled_scores, pooled_good = pooled(data, operator)
        yield data.row(f"pooled, {operator}", pooled_scores)
    good, network_ms = all_views(data.train)
    new, _ = all_views(data.test)
    yield {"data": data.name, "system": "network", "ms": f"{network_ms:.1f}"}
    for system, arguments in SYSTEMS.items():
        if system.endswith("100 %") and len(good) * good[0][0].stages[0][..., 0].size > MOST:
            continue
        model = PatchModel(**arguments)
        _, fit_seconds = timed(lambda: model.fit(good, progress=True))  # noqa: B023
        found, seconds = timed(lambda: [model.score(views) for views in new])  # noqa: B023
        maps, scores = [x for x, _ in found], [score for _, score in found]
        told = {
            "ms": f"{1000 * seconds / len(new):.1f}",
            "fit_s": f"{fit_seconds:.1f}",
            "bank_mb": f"{model.bank.rows.features.nbytes / 1e6:.1f}",
        }
        yield data.row(system, scores, maps, **told)
        if system == "patches":
            yield from data.rows_of_kinds(system, maps)
            both = standardised(scores, model.good_scores) + standardised(
                pooled_scores, pooled_good
            )
            yield data.row("combined: patches and pooled, auto", both / 2)
            yield spade(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    arguments = parser.parse_args()
    rows: list[Row] = []
    with threadpool_limits(1):
        for name in arguments.sets:
            for row in evaluate(arguments.data / name):
                rows.append(row)
                write_rows("patches", rows)


if __name__ == "__main__":
    main()
