"""Which product each good image shows, in a model of several products."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.crossfit import ranks
from nnad.errors import InputError
from nnad.neighbors import Bank

FOLDERS = "folders"


def parse_products(products: str | int | None) -> str | int | None:
    """`folders`, a number of clusters of at least 2, also as text, or None.

    Raises:
        InputError: it is none of these.
    """
    if products is None or products == FOLDERS:
        return products
    if isinstance(products, str) and products.isdecimal():
        products = int(products)
    if isinstance(products, bool) or not isinstance(products, int) or products < 2:
        raise InputError(f"products={products!r}; folders, or a number of clusters, at least 2")
    return products


def bank_products(
    asked_products: str | int,
    names: Sequence[str],
    rows: NDArray[np.int64],
    features: NDArray[np.float32],
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The product (B,) of each row of a bank, and the products' names.

    Args:
        asked_products: `folders`, or the number of clusters.
        names: (N,) of all good images.
        rows: (B,) which of them are in the bank.
        features: (B, D) of the bank.

    Raises:
        InputError: see the two functions below.
    """
    if isinstance(asked_products, int):
        return products_by_cluster(features, asked_products)
    of_images, product_names = products_by_folder(names)
    return of_images[rows], product_names


def products_by_folder(names: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The product (N,) of each image, and the products' names: of the folders that hold them.

    Raises:
        InputError: an image is in no folder, or all are in the same one.
    """
    folders = [Path(name).parent.name for name in names]
    if "" in folders:
        name = names[folders.index("")]
        raise InputError(f"products='folders': {name} is in no folder that could name its product")
    found = sorted(set(folders))
    if len(found) < 2:
        raise InputError(
            f"products='folders': all good images are in a folder {found[0]!r}; "
            f"put each product into a folder of its own, or give a number of clusters"
        )
    return np.array([found.index(folder) for folder in folders]), tuple(found)


def products_by_cluster(
    features: NDArray[Any], count: int
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The k-means cluster (B,) of each of the bank's features (B, D), and the clusters' names.

    The largest is `cluster 1`. The order of the features has no part in it.

    Raises:
        InputError: there are not so many different features.
    """
    from nnad.operators.kmeans import KMeans

    order = np.argsort(ranks(features))
    centers = KMeans(count).fit(Bank(features[order])).centers
    if len(centers) < count:
        raise InputError(f"products={count}: only {len(centers)} different good images in the bank")
    clusters = np.empty(len(features), dtype=np.int64)
    clusters[order] = Bank(centers).nearest(features[order], 1).rows[:, 0]
    by_size = np.argsort(-np.bincount(clusters, minlength=count), kind="stable")
    return np.argsort(by_size)[clusters], tuple(f"cluster {i + 1}" for i in range(count))
