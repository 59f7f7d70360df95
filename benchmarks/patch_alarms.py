"""False alarms of models with patches: do good images keep to the budget?

    python benchmarks/patch_alarms.py --data DIR [--splits N]

DIR holds magnetic_tile and mvtec_hazelnut_reduced. In each split n good images are fitted and 80
(or what is left) others scored, by patches and by patches and the whole image, as `Detector` does.
Told are mean shares of these that are called anomalies, with the standard error over splits, and
the share with a region above the patch threshold. Splits share images, so that the standard error
is too small where n is large.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from datasets import embed
from numpy.typing import NDArray
from provenance import write_rows
from threadpoolctl import threadpool_limits

from nnad.backbones import load_backbone
from nnad.calibrate import within
from nnad.combined import Combined
from nnad.errors import ImageError
from nnad.image_files import find_images
from nnad.located import patch_backbone
from nnad.operators import make_operator
from nnad.patch_model import PatchModel
from nnad.progress import track
from nnad.scorer import Scorer
from nnad.tiles import View, views_of

SETS = ("magnetic_tile", "mvtec_hazelnut_reduced")
GOOD = (12, 25, 60)
NEW = 80
BUDGETS = (0.05, 0.1, 0.2)


def looked_at(sources: list[Path]) -> list[list[View]]:
    """The whole frame of each image."""
    found: list[list[View]] = []
    for _, views in views_of(find_images(sources), patch_backbone("efficientnet-lite0")):
        if isinstance(views, ImageError):
            raise views
        found.append(list(views))
    return found


def rates(
    features: NDArray[np.float32], views: list[list[View]], n: int, seed: int
) -> dict[tuple[str, float], float]:
    """Shares of new good images that are flagged, by mode and budget."""
    order = np.random.default_rng(seed).permutation(len(views))
    fitted, new = order[:n], order[n : n + NEW]
    model = PatchModel().fit([views[i] for i in fitted])
    scorer = Scorer(features[fitted], "root", make_operator("auto"))
    image_scores = scorer.operator.left_out_scores()
    scored = [model.score(views[i]) for i in new]
    of_patches = np.array([score for _, score in scored])
    peaks = np.array([max(grid.max() for grid in grids) for grids, _ in scored])
    told = {}
    for mode in ("patch", "both"):
        combined = Combined.fit(mode, image_scores, model.good_scores)
        joined = scorer.with_patches(combined, model.good_scores)
        p_values = joined.score(features[new], of_patches).p_values
        for budget in (1 / (n + 1), *BUDGETS):
            told[mode, budget] = float(np.mean([within(p, budget) for p in p_values]))
    for budget in (1 / (n + 1), *BUDGETS):
        if within(1 / (n + 1), budget):
            told["region", budget] = float((peaks > model.pixel_threshold(budget)).mean())
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=20)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with threadpool_limits(1):
        for name in SETS:
            sources = sorted((arguments.data / name).glob("t*/good/*"))
            features, views = embed(sources, load_backbone()), looked_at(sources)
            for n in GOOD:
                if n + 20 > len(sources):
                    continue
                seeds = track(range(arguments.splits), arguments.splits, f"{name} {n}", show=True)
                found = [rates(features, views, n, seed) for seed in seeds]
                for mode, budget in found[0]:
                    shares = np.array([told[mode, budget] for told in found])
                    row = {"data": name, "good": n, "scored": mode, "budget": f"{budget:.4f}"}
                    row["alarms"] = f"{shares.mean():.4f}"
                    row["error"] = f"{shares.std(ddof=1) / np.sqrt(len(shares)):.4f}"
                    rows.append(row | {"splits": arguments.splits})
                    print(row, flush=True)
    write_rows("patch_alarms", rows)


if __name__ == "__main__":
    main()
