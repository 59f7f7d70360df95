"""The public data sets that benchmarks read: Fashion-MNIST and ELPV."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Labels = NDArray[Any]

FASHION_MNIST_HELP = (
    "Fashion-MNIST: name the folder that holds its four .gz files with --fashion-mnist DIR. On "
    "Debian: apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb DIR, "
    "which puts them in DIR/usr/share/datasets/fashion-mnist."
)


def fashion_mnist(folder: Path, split: str) -> tuple[Images, Labels]:
    """Images (N, 28, 28) and labels (N,) of the official split, `train` or `t10k`."""
    try:
        images = _read_idx(folder / f"{split}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        return images, _read_idx(folder / f"{split}-labels-idx1-ubyte.gz", 8)
    except FileNotFoundError as error:
        raise SystemExit(f"{error.filename}: not found. {FASHION_MNIST_HELP}") from None


def _read_idx(path: Path, header: int) -> Images:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def elpv() -> tuple[list[Images], NDArray[np.float64]]:
    """Solar cells, 300 x 300 grey, and the probability that each is defective."""
    try:
        from elpv_dataset.utils import load_dataset
    except ImportError:
        raise SystemExit("ELPV: pip install elpv-dataset") from None
    images, probabilities, _ = load_dataset()
    return list(images), np.asarray(probabilities, dtype=np.float64)
