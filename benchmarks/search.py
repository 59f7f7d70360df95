"""Exact search beside scikit-learn and faiss: 50,000 x 1,280 float32, k = 5, 1 to 1,024 queries.

All on all cores, in turn within a round; medians of the ratios within rounds. Neighbours are
compared with a float64 brute force, and the distance of a duplicate must be exactly 0.

    python benchmarks/search.py --fashion-mnist DIR

Two banks: features of Fashion-MNIST (root transform, default backbone), and made-up ones in which
all rows are about equally far from a query, so that rounding proves nothing (see nnad/codes.py) and
only the float32 product is left.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from datasets import FASHION_MNIST_HELP, fashion_mnist_features
from numpy.typing import NDArray
from operators import DIM, relu_like
from provenance import write_rows
from sklearn.neighbors import NearestNeighbors

from nnad.neighbors import Bank

ROWS, K, ROUNDS = 50_000, 5, 7


def seconds(search: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        search()
    return (time.perf_counter() - start) / repeats


def brute_force(queries: NDArray[np.float32], bank: NDArray[np.float32]) -> NDArray[np.int64]:
    """The K nearest rows of each query in float64, ties to the lower row."""
    found = []
    for query in queries.astype(np.float64):
        sq_dists = np.concatenate(
            [np.square(bank[i : i + 5000] - query).sum(axis=1) for i in range(0, len(bank), 5000)]
        )
        found.append(np.argsort(sq_dists, kind="stable")[:K])
    return np.array(found)


def compare(
    kind: str, bank: NDArray[np.float32], queries: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """One row of results for each system and number of queries."""
    index = faiss.IndexFlatL2(DIM)
    index.add(bank)
    sklearn = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(bank)
    ours = Bank(bank)
    queries[0] = bank[123]
    rows = []
    for batch, repeats in ((1, 20), (64, 2), (1024, 1)):
        some = queries[:batch]
        systems: dict[str, Callable[[], Any]] = {
            "nnad": lambda q=some: ours.nearest(q, K),  # type: ignore[misc]
            "scikit-learn": lambda q=some: sklearn.kneighbors(q),  # type: ignore[misc]
            "faiss": lambda q=some: index.search(q, K),  # type: ignore[misc]
        }
        for search in systems.values():
            search()
        rounds = [
            {name: seconds(search, repeats) for name, search in systems.items()}
            for _ in range(ROUNDS)
        ]
        found = ours.nearest(some, K)
        equal = bool((found.rows[:64] == brute_force(some[:64], bank)).all())
        rows += [
            {
                "features": kind,
                "system": name,
                "queries": batch,
                "milliseconds": f"{1000 * np.median([r[name] for r in rounds]):.2f}",
                "nnad_faster": f"{np.median([r[name] / r['nnad'] for r in rounds]):.2f}",
                "neighbours_exact": equal if name == "nnad" else "",
                "sq_dist_of_duplicate": found.sq_dists[0, 0] if name == "nnad" else "",
            }
            for name in systems
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    folder = parser.parse_args().fashion_mnist
    rows = compare("Fashion-MNIST", *fashion_mnist_features(folder, ROWS, 1024))
    rows += compare("made up", relu_like(ROWS, DIM, 1), relu_like(1024, DIM, 2))
    write_rows("search", rows)


if __name__ == "__main__":
    main()
