"""The k-means tree of Fukunaga and Narendra: recall against time, beside the exact search.

    python benchmarks/tree.py --fashion-mnist DIR

Bank: features of 50,000 training images of Fashion-MNIST (root transform, default backbone), 256
test images as queries, k = 5. `visit` is the fraction of the bank after which the search of a query
ends. Recall is the share of the true neighbours that are found; `distance` is the mean distance of
what is found over that of the true neighbours, which is what a score is made of.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from datasets import FASHION_MNIST_HELP, fashion_mnist_features
from provenance import write_rows

from nnad.neighbors import Bank
from nnad.operators.kmeans_tree import KMeansTree

ROWS, QUERIES, K = 50_000, 256, 5
VISITS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    features, queries = fashion_mnist_features(parser.parse_args().fashion_mnist, ROWS, 1024)
    queries = queries[:QUERIES]
    bank = Bank(features)
    start = time.perf_counter()
    tree = KMeansTree(bank)
    build = time.perf_counter() - start

    truth = bank.nearest(queries, K)  # also prepares the bank for what follows
    start = time.perf_counter()
    for query in queries:
        bank.nearest(query[None], K)
    one_by_one = (time.perf_counter() - start) / QUERIES
    start = time.perf_counter()
    bank.nearest(queries, K)
    together = (time.perf_counter() - start) / QUERIES

    rows = [
        {"search": "exact, one by one", "visit": "", "ms_a_query": f"{1000 * one_by_one:.2f}"},
        {"search": "exact, 256 at once", "visit": "", "ms_a_query": f"{1000 * together:.2f}"},
    ]
    for visit in VISITS:
        start = time.perf_counter()
        found = tree.nearest(queries, K, visit=visit)
        seconds = (time.perf_counter() - start) / QUERIES
        pairs = zip(found.rows, truth.rows, strict=True)
        hits = [len(np.intersect1d(got, true)) / K for got, true in pairs]
        distances = np.sqrt(found.sq_dists).mean() / np.sqrt(truth.sq_dists).mean()
        rows.append(
            {
                "search": "tree",
                "visit": f"{visit:g}",
                "ms_a_query": f"{1000 * seconds:.2f}",
                "faster_than_one_by_one": f"{one_by_one / seconds:.2f}",
                "recall": f"{np.mean(hits):.3f}",
                "distance": f"{distances:.4f}",
                "build_s": f"{build:.1f}",
            }
        )
    columns = list(rows[-1])
    write_rows("tree", [{column: row.get(column, "") for column in columns} for row in rows])


if __name__ == "__main__":
    main()
