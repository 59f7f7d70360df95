"""PatchCore here and in anomalib, on the same patch features: image AUROC, time, memory.

    pip install anomalib==2.7.0
    pip install .
    python benchmarks/patchcore_peer.py --data DIR [--sets NAME ...] [--images N] [--seeds N]

DIR, its sets and the patch features are those of patches.py, of at most N good images: both systems
read them from the same files, so no network of anomalib's is asked. Everything else of it is its
own: `PatchcoreModel` gets its features from a stand-in that hands them through, unpooled.

Both keep 10 % of the patches and weigh the image score (Roth et al., Eq. 7). Their coresets differ:
anomalib draws the first patch and a sparse projection by chance, to about 4 ln(patches) / 0.162
dimensions; nnad starts near the mean and takes a projection to 48. So each runs with several seeds.
In the row `anomalib, coreset of nnad` the bank is the same on both sides: `score_difference` is
the largest relative difference of a score.

Each run is a process of its own, on one core. `seconds`, `cpu_seconds` and `peak_mb` are those of
the coreset alone, the peak above what the process held with all patches in memory; `score_ms` are
CPU milliseconds an image. All are means over the seeds. glibc is told to give large arrays back
at once: with its own choice it keeps a hole for each of anomalib's steps, 16 GB for 15,200 patches.
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


def nnad(folder: Path, seed: int) -> tuple[NDArray[Any], Told]:
    """Scores of the test images; the bank is left in the folder."""
    train, test = np.load(folder / "train.npy"), np.load(folder / "test.npy")
    patches = train.reshape(-1, train.shape[-1])
    _, told = measured(lambda: coreset(patches, round(SHARE * len(patches)), seed=seed))
    model = PatchModel(**SYSTEMS["PatchCore 10 %"], seed=seed)
    model.fit([View([stage], WHOLE)] for stage in train)
    np.save(folder / "bank.npy", model.bank.rows.features)
    start = time.process_time()
    scores = [model.score([View([stage], WHOLE)])[1] for stage in test]
    told["score_ms"] = 1000 * (time.process_time() - start) / len(test)
    return np.array(scores), told | {"bank": len(model.bank)}


def anomalib(folder: Path, seed: int, *, own_coreset: bool) -> tuple[NDArray[Any], Told]:
    """Scores of the test images."""
    import torch

    try:
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    except ImportError:
        raise SystemExit("anomalib: pip install anomalib==2.7.0") from None

    class Given(torch.nn.Module):
        def forward(self, maps: Any) -> dict[str, Any]:
            return {"given": maps}

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (its projection draws from there)
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
    return np.array(scores), told | {"bank": len(model.memory_bank)}


def run(system: str, folder: Path, seed: int) -> tuple[NDArray[Any], Told]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    if system == NNAD:
        return nnad(folder, seed)
    return anomalib(folder, seed, own_coreset=system == ANOMALIB)


def evaluate(path: Path, folder: Path, images: int, seeds: int) -> list[dict[str, Any]]:
    data = Data(load_dataset(path))
    chosen = np.linspace(0, len(data.train) - 1, min(images, len(data.train))).astype(int)
    data.train = tuple(data.train[i] for i in chosen)
    save_patches(data, folder)
    runs: dict[str, list[tuple[NDArray[Any], Told]]] = {NNAD: [], ANOMALIB: [], SAME_BANK: []}
    for seed in range(seeds):
        for system, done in runs.items():
            with get_context("spawn").Pool(1) as pool:
                done.append(pool.apply(run, (system, folder, seed)))
            print(data.name, seed, system, done[-1][1], flush=True)
    rows: list[dict[str, Any]] = []
    for system, done in runs.items():
        aurocs = [image_metrics(data.odd, scores).auroc for scores, _ in done]
        row: dict[str, Any] = {"data": data.name, "system": system}
        row |= {"good": len(data.train), "test": len(data.test), "seeds": seeds}
        row |= {"image_auroc": f"{np.mean(aurocs):.4f}"}
        row |= {"lowest": f"{min(aurocs):.4f}", "highest": f"{max(aurocs):.4f}"}
        row |= {key: f"{np.mean([told[key] for _, told in done]):.4g}" for key in done[0][1]}
        if system == SAME_BANK:
            pairs = zip(done, runs[NNAD], strict=True)
            differences = [np.abs(theirs / ours - 1).max() for (theirs, _), (ours, _) in pairs]
            row["score_difference"] = f"{max(differences):.1e}"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "1000000", "TQDM_DISABLE": "1"}
    rows = []
    for name in arguments.sets:
        with tempfile.TemporaryDirectory() as folder:
            path = arguments.data / name
            rows += evaluate(path, Path(folder), arguments.images, arguments.seeds)
    write_rows("patchcore_peer", rows)


if __name__ == "__main__":
    main()
