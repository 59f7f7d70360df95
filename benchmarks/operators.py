"""k-NNN against the author's package knnn 0.1.0: time and memory on the same features.

    python benchmarks/operators.py [--fashion-mnist DIR] [--rows N] [--queries N] [--repeats N]

Each system runs in a process of its own, which warms up on a small bank first (so that neither
imports nor numba's compiler are timed: the compiled code is cached after the first run ever), then
fits the bank and scores the queries `repeats` times; the systems take turns. Medians are kept, and
ratios are medians of the ratios within a turn, so that a busy machine slows both sides.

CPU seconds of all threads are told as well, and the load average, which on two idle cores would be
2 at most: with other work on the machine, two threads gain nothing over the one of the author.

Memory is the peak resident size of the process above its size before `fit`, when the features
(float32), the queries and all imports are there already. The author's class copies the features to
float64; that copy is its own.

With --fashion-mnist the features are those of real images (root transform, default backbone).
Without, they are made up: sparse and non-negative, max(0, mixture + noise), with so much noise that
all rows are about equally far from a query, which is the hardest case for any search.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import FASHION_MNIST_HELP, fashion_mnist_features
from numpy.typing import NDArray
from provenance import write_rows

DIM = 1280
SYSTEMS = ["knnn-0.1.0", "nnad-eager-float16", "nnad-eager-float32", "nnad-lazy", "nnad-author"]


def relu_like(n_rows: int, dim: int, seed: int) -> NDArray[np.float32]:
    """(n_rows, dim) sparse non-negative features with 40 common causes."""
    mix = np.random.default_rng(0).normal(size=(40, dim)) / 2
    rng = np.random.default_rng(seed)
    causes, noise = rng.normal(size=(n_rows, 40)), rng.normal(size=(n_rows, dim))
    return np.maximum(causes @ mix + 2 * noise - 3, 0).astype(np.float32)


def operator(system: str, bank: NDArray[np.float32]) -> Any:
    """A fitted system; called with queries, it gives their scores."""
    if system == "knnn-0.1.0":
        import knnn

        return knnn.KNNN(3, 25, 5).fit(bank)
    from nnad.neighbors import Bank
    from nnad.operators.knnn import KNNN
    from nnad.operators.knnn_author import AuthorKNNN

    if system == "nnad-author":
        return AuthorKNNN(3, 25, set_size=5).fit(Bank(bank)).score
    storage, precision = {
        "nnad-eager-float16": ("eager", "float16"),
        "nnad-eager-float32": ("eager", "float32"),
        "nnad-lazy": ("lazy", "float32"),
    }[system]
    return KNNN(3, 25, set_size=5, storage=storage, precision=precision).fit(Bank(bank)).score


def measure(system: str, folder: Path) -> dict[str, float]:
    """Seconds to fit and to score, and peak memory in MB, in this process."""
    warm = operator(system, relu_like(2000, 64, 3))
    warm(relu_like(100, 64, 4))
    bank, queries = np.load(folder / "bank.npy"), np.load(folder / "queries.npy")
    bank[:] @ queries[0]  # touched, and BLAS started
    before = memory_mb("VmRSS")
    start, start_cpu = time.perf_counter(), time.process_time()
    score = operator(system, bank)
    fitted, fitted_cpu = time.perf_counter(), time.process_time()
    scores = score(queries)
    scored, scored_cpu = time.perf_counter(), time.process_time()
    score(queries)
    again = time.perf_counter()
    np.save(folder / f"{system}.npy", scores)
    return {
        "fit_s": fitted - start,
        "score_s": scored - fitted,
        "score_again_s": again - scored,
        "fit_cpu_s": fitted_cpu - start_cpu,
        "score_cpu_s": scored_cpu - fitted_cpu,
        "load": os.getloadavg()[0],
        "peak_mb": memory_mb("VmHWM") - before,
    }


def memory_mb(field: str) -> float:
    """Memory of this process (Linux): VmRSS now, or VmHWM at its peak.

    The peak that getrusage tells may be that of the process which started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def compare(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row of results a system."""
    if args.fashion_mnist:
        bank, queries = fashion_mnist_features(args.fashion_mnist, args.rows, args.queries)
    else:
        bank, queries = relu_like(args.rows, DIM, 1), relu_like(args.queries, DIM, 2)
    np.save(folder / "bank.npy", bank)
    np.save(folder / "queries.npy", queries)
    turns: list[dict[str, dict[str, float]]] = []
    for turn in range(-1, args.repeats):
        measured = {}
        for system in SYSTEMS if turn >= 0 else SYSTEMS[1:]:  # turn -1 fills numba's cache
            command = [sys.executable, __file__, "--measure", system, "--folder", str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            measured[system] = json.loads(done.stdout)
            print(turn, system, measured[system], file=sys.stderr)
        if turn >= 0:
            turns.append(measured)

    theirs = np.load(folder / f"{SYSTEMS[0]}.npy")
    ours = np.load(folder / "nnad-author.npy")
    rows = []
    for system in SYSTEMS:

        def median(key: str, system: str = system) -> str:
            return f"{statistics.median(t[system][key] for t in turns):.4g}"

        def faster(*keys: str, system: str = system) -> str:
            ratios = [
                sum(t[SYSTEMS[0]][key] for key in keys) / sum(t[system][key] for key in keys)
                for t in turns
            ]
            return f"{statistics.median(ratios):.3g}"

        peak = statistics.median(t[system]["peak_mb"] / t[SYSTEMS[0]]["peak_mb"] for t in turns)
        rows.append(
            {
                "benchmark": "k-NNN",
                "system": system,
                "rows": args.rows,
                "queries": args.queries,
                "dim": DIM,
                "features": "Fashion-MNIST" if args.fashion_mnist else "made up",
                **{key: median(key) for key in turns[0][system]},
                "fit_faster": faster("fit_s"),
                "score_faster": faster("score_s"),
                "total_faster": faster("fit_s", "score_s"),
                "peak_fraction": f"{peak:.3g}",
                "max_rel_diff": (
                    f"{np.abs(ours / theirs - 1).max():.2g}" if system == "nnad-author" else ""
                ),
                "repeats": args.repeats,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--fashion-mnist", type=Path, help=FASHION_MNIST_HELP)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(args, Path(folder))
    write_rows("operators" if args.fashion_mnist else "operators_made_up", rows)


if __name__ == "__main__":
    main()
