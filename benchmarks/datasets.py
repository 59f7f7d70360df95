"""The public data sets that benchmarks read: Fashion-MNIST and ELPV, and features of them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nnad.datasets
from nnad.backbones import Backbone, load_backbone
from nnad.errors import DatasetError
from nnad.features import extract
from nnad.image_files import find_images
from nnad.progress import track
from nnad.transforms import fit_transform

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
        data = nnad.datasets.fashion_mnist(folder)
    except DatasetError as error:
        raise SystemExit(f"{error}. {FASHION_MNIST_HELP}") from None
    part = data.train if split == "train" else data.test
    return np.stack([np.asarray(source) for source in part.sources]), part.labels


def fashion_mnist_features(
    folder: Path, rows: int, queries: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Root features (rows, 1280) of training images and (queries, 1280) of test images.

    They are computed by the default backbone.
    """
    images = [
        *fashion_mnist(folder, "train")[0][:rows],
        *fashion_mnist(folder, "t10k")[0][:queries],
    ]
    features = embed(images, load_backbone())
    root = fit_transform("root", features[:rows])
    return root(features[:rows]), root(features[rows:])


def embed(images: Any, backbone: Backbone) -> NDArray[np.float32]:
    """Features (N, D) of images that can all be read; those embedded before are not again."""
    extracted = extract(find_images(images), backbone, cache=True)
    return np.stack(
        [f for _, f in track(extracted, len(images), "embedding", show=True)]  # type: ignore[misc]
    )


def elpv() -> tuple[list[Images], NDArray[np.float64]]:
    """Solar cells, 300 x 300 grey, and the probability that each is defective."""
    try:
        from elpv_dataset.utils import load_dataset
    except ImportError:
        raise SystemExit("ELPV: pip install elpv-dataset") from None
    images, probabilities, _ = load_dataset()
    return list(images), np.asarray(probabilities, dtype=np.float64)
