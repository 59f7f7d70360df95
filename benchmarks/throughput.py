"""How fast and how small `nnad score` is, as a user would run it.

Throughput: images a second of `nnad score` on a folder of JPEGs, beside pure inference and pure
decoding of the same pictures in the same run, each on all cores. Both compete for the same cores,
so what they leave possible is 1 / (1/inference + 1/decoding). Five rounds in turn, medians. The
start-up of the process (the time to score one image) is told apart and not counted in the share.
Start-up: seconds of `nnad --help`, and of scoring one image with a saved model, as whole processes.
Memory: peak of scoring 500 and 10,000 images.

    python benchmarks/throughput.py
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from provenance import write_rows

from nnad.backbones import load_backbone
from nnad.cores import usable_cores
from nnad.images import read_image

NNAD = shutil.which("nnad", path=str(Path(sys.executable).parent)) or "nnad"
COOKIES = Path(__file__).parents[1] / "examples" / "cookies"
ROUNDS = 5


def make_photos(folder: Path, count: int, side: int) -> None:
    """JPEGs of `side` pixels, cut from enlarged cookies so that they have the detail of photos."""
    folder.mkdir()
    sources = [Image.open(p).convert("RGB") for p in sorted(COOKIES.rglob("*.jpg"))]
    rng = np.random.default_rng(0)
    for i in range(count):
        source = sources[i % len(sources)]
        left, top = (int(rng.integers(0, 60)) for _ in range(2))
        box = (left, top, left + 270, top + 270)
        source.resize((side, side), box=box).save(folder / f"{i:05}.jpg", quality=90)


def rate(work: Callable[[Any], Any], items: list[Any]) -> float:
    """Items a second on all cores."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        start = time.perf_counter()
        list(pool.map(work, items))
        return len(items) / (time.perf_counter() - start)


def command(*arguments: object) -> float:
    """Seconds of a whole `nnad` process."""
    start = time.perf_counter()
    subprocess.run([NNAD, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def peak_megabytes(*arguments: object) -> float:
    """Peak resident memory of one `nnad` process, measured by a parent of its own."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    run = [sys.executable, "-c", code, NNAD, *map(str, arguments)]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    return int(done.stdout) / 1024


def throughput_rows(folder: Path, model: Path) -> list[dict[str, Any]]:
    backbone = load_backbone()
    rows = []
    for side, count in ((448, 600), (1000, 300)):
        photos = folder / f"photos-{side}"
        make_photos(photos, count, side)
        paths = sorted(photos.iterdir())
        ready = [Image.fromarray(backbone.preprocessing(read_image(p))[0]) for p in paths[:200]]
        views = [np.asarray(image)[None] for image in ready]
        start_up = float(np.median([command("score", model, paths[0]) for _ in range(ROUNDS)]))
        measured: list[tuple[float, float, float, float]] = []
        for _ in range(ROUNDS):
            inference = rate(lambda x: backbone._session.run(None, {"image": x}), views)
            decoding = rate(lambda p: backbone.preprocessing(read_image(p)), paths)
            seconds = command("score", model, photos)
            whole = (count - 1) / (seconds - start_up)
            measured.append((whole, inference, decoding, count / seconds))
        possible = [1 / (1 / i + 1 / d) for _, i, d, _ in measured]
        shares = [w / p for (w, _, _, _), p in zip(measured, possible, strict=True)]
        medians = np.median(measured, axis=0)
        rows.append(
            {
                "question": f"throughput, {side} px JPEG",
                "nnad_score_images_per_s": f"{medians[0]:.1f}",
                "inference_images_per_s": f"{medians[1]:.1f}",
                "decoding_images_per_s": f"{medians[2]:.1f}",
                "with_start_up_images_per_s": f"{medians[3]:.1f}",
                "share_of_possible": f"{np.median(shares):.3f}",
                "shares_of_rounds": " ".join(f"{s:.3f}" for s in shares),
            }
        )
    return rows


def start_up_rows(folder: Path, model: Path) -> list[dict[str, Any]]:
    photo = next((folder / "photos-448").iterdir())
    asks = {"nnad --help": ("--help",), "score one image": ("score", model, photo)}
    rows = []
    for question, arguments in asks.items():
        command(*arguments)
        seconds = np.median([command(*arguments) for _ in range(9)])
        rows.append({"question": f"start-up, {question}", "seconds": f"{seconds:.3f}"})
    return rows


def memory_rows(folder: Path, model: Path) -> list[dict[str, Any]]:
    photos = folder / "photos-448"
    many = folder / "many"
    many.mkdir()
    for i in range(10_000):  # links cost no disk, and each is read and embedded
        (many / f"{i:05}.jpg").symlink_to(photos / f"{i % 600:05}.jpg")
    few = [many / f"{i:05}.jpg" for i in range(500)]
    arguments = ("--csv", folder / "r.csv")
    small = peak_megabytes("score", model, *few, *arguments)
    large = peak_megabytes("score", model, many, *arguments)
    return [
        {"question": "peak memory, 500 images", "megabytes": f"{small:.0f}"},
        {
            "question": "peak memory, 10,000 images",
            "megabytes": f"{large:.0f}",
            "ratio_to_500": f"{large / small:.3f}",
        },
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "cookies.nnad"
        command("fit", COOKIES / "train" / "good", "--model", model)
        rows = throughput_rows(folder, model)
        rows += start_up_rows(folder, model)
        rows += memory_rows(folder, model)
        write_rows("throughput", rows)


if __name__ == "__main__":
    main()
