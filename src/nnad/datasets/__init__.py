"""Labelled images: your own, in any usual layout, and the data sets of the two papers.

Every loader returns a `Dataset`. Images stay files that are read when needed, except where the
original is one block of pixels (CIFAR, MNIST, Fashion-MNIST). Nothing is downloaded.
"""

from nnad.datasets.aerial import dior
from nnad.datasets.dataset import Dataset, Split, combine
from nnad.datasets.layouts import load_dataset
from nnad.datasets.photos import (
    MVTEC_CATEGORIES,
    cats_vs_dogs,
    cub_200_2011,
    mvtec_ad,
    oxford_flowers_102,
    wbc,
)
from nnad.datasets.pixels import cifar10, cifar100, fashion_mnist, mnist

__all__ = [
    "MVTEC_CATEGORIES",
    "Dataset",
    "Split",
    "cats_vs_dogs",
    "cifar10",
    "cifar100",
    "combine",
    "cub_200_2011",
    "dior",
    "fashion_mnist",
    "load_dataset",
    "mnist",
    "mvtec_ad",
    "oxford_flowers_102",
    "wbc",
]
