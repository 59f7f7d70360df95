"""PatchCore here and in anomalib, on the same patch features: image AUROC, time, memory.

    pip install anomalib==2.7.0
    pip install .
    python benchmarks/patchcore_peer.py --data DIR [--sets NAME ...]

DIR, its sets and the patch features are those of patches.py: both systems read them from the same
files, so no network of anomalib's is asked. Everything else of it is its own: `PatchcoreModel` gets
its features from a stand-in that hands them through, and is neither pooled again nor smoothed.

Both keep 10 % of the patches and weigh the image score (Roth et al., Eq. 7). Their coresets differ:
anomalib draws the first patch and a sparse projection by chance, to about 4 ln(patches) / 0.162
dimensions; nnad starts near the mean and takes 48. The row `anomalib, coreset of nnad` has the
same bank on both sides: `score_difference` is then the largest relative difference of a score.

Each runs in a process of its own, on one core. `seconds`, `cpu_seconds` and `peak_mb` are those of
the coreset alone, the peak above what the process held with all patches in memory.
"""

import argparse
import os
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from measuring import measured
from numpy.typing import NDArray
from patches import SETS, SYSTEMS, Data, all_views
from provenance import write_rows

from nnad.coreset import coreset
from nnad.datasets import load_dataset
from nnad.metrics import image_metrics
from nnad.patch_model import PatchModel
from nnad.tiles import View

SHARE = 0.1
WHOLE = (0.0, 0.0, 1.0, 1.0)
NNAD, ANOMALIB, SAME_BANK = "nnad", "anomalib", "anomalib, coreset of nnad"
Told = dict[str, float]


def save_patches(data: Data, folder: Path) -> None:
    """Write (images, H, W, D) patch features of the training and the test images."""
    for name, sources in (("train", data.train), ("test", data.test)):
        views, _ = all_views(sources)
        joined = [np.concatenate(view.stages, axis=-1) for image in views for view in image]
        np.save(folder / f"{name}.npy", np.stack(joined))


def nnad(folder: Path) -> tuple[NDArray[Any], Told]:
    """Scores of the test images; the bank is left in the folder."""
    train, test = np.load(folder / "train.npy"), np.load(folder / "test.npy")
    patches = train.reshape(-1, train.shape[-1])
    _, told = measured(lambda: coreset(patches, round(SHARE * len(patches))))
    model = PatchModel(**SYSTEMS["PatchCore 10 %"])
    model.fit([View([stage], WHOLE)] for stage in train)
    np.save(folder / "bank.npy", model.bank.rows.features)
    start = time.process_time()
    scores = [model.score([View([stage], WHOLE)])[1] for stage in test]
    told["score_ms"] = 1000 * (time.process_time() - start) / len(test)
    return np.array(scores), told | {"rows": len(model.bank)}


def anomalib(folder: Path, *, own_coreset: bool) -> tuple[NDArray[Any], Told]:
    """Scores of the test images."""
    import torch

    try:
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    except ImportError:
        raise SystemExit("anomalib: pip install anomalib==2.7.0") from None

    class Given(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        def forward(self, maps: Any) -> dict[str, Any]:
            return {"given": maps}

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (its projection draws from there)
    model = PatchcoreModel(layers=["layer1"], backbone="resnet18", pre_trained=False)
    model.layers, model.feature_extractor = ["given"], Given()
    model.feature_pooler = torch.nn.Identity()
    train, test = (
        torch.from_numpy(np.load(folder / f"{name}.npy")).permute(0, 3, 1, 2)
        for name in ("train", "test")
    )
    told: Told = {}
    if own_coreset:
        model.train()
        model(train)
        _, told = measured(lambda: model.subsample_embedding(SHARE))
    else:
        model.memory_bank = torch.from_numpy(np.load(folder / "bank.npy"))
    model.eval()
    start = time.process_time()
    scores = [float(model(maps[None]).pred_score) for maps in test]
    told["score_ms"] = 1000 * (time.process_time() - start) / len(test)
    return np.array(scores), told | {"rows": len(model.memory_bank)}


def run(system: str, folder: Path) -> tuple[NDArray[Any], Told]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    if system == NNAD:
        return nnad(folder)
    return anomalib(folder, own_coreset=system == ANOMALIB)


def evaluate(path: Path, folder: Path) -> list[dict[str, Any]]:
    data = Data(load_dataset(path))
    save_patches(data, folder)
    rows: list[dict[str, Any]] = []
    scores: dict[str, NDArray[Any]] = {}
    for system in (NNAD, ANOMALIB, SAME_BANK):
        with get_context("spawn").Pool(1) as pool:
            scores[system], told = pool.apply(run, (system, folder))
        auroc = image_metrics(data.odd, scores[system]).auroc
        row: dict[str, Any] = {"data": data.name, "system": system, "image_auroc": f"{auroc:.4f}"}
        row |= {"rows": told.pop("rows")} | {key: f"{value:.1f}" for key, value in told.items()}
        if system == SAME_BANK:
            difference = np.abs(scores[system] / scores[NNAD] - 1).max()
            row["score_difference"] = f"{difference:.1e}"
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.sets:
        with tempfile.TemporaryDirectory() as folder:
            rows += evaluate(arguments.data / name, Path(folder))
    write_rows("patchcore_peer", rows)


if __name__ == "__main__":
    main()
