"""What a change of a model costs beside a fit from scratch, by size of bank and of change.

The features of Fashion-MNIST's training images are computed once; times are those of everything
behind them: transform, neighbours, operator, leave-one-out scores. Adding, and removing the same.

    python benchmarks/living.py --fashion-mnist DIR
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import FASHION_MNIST_HELP, embed, fashion_mnist
from provenance import write_rows

from nnad.backbones import load_backbone
from nnad.operators import make_operator
from nnad.scorer import Scorer


def seconds(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least wall time, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        done = run()
        times.append(time.perf_counter() - start)
    return min(times), done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    largest = max(arguments.sizes) + 100
    images, _ = fashion_mnist(arguments.fashion_mnist, "train")
    features = embed(list(images[:largest]), load_backbone())

    rows = []
    for operator in ("knn", "auto"):
        for size in arguments.sizes:
            for change in (1, 10, 100):
                both = features[: size + change]
                fit, whole = seconds(
                    lambda both=both: Scorer(both, "root", make_operator(operator)),  # type: ignore[misc]  # noqa: B023
                    arguments.repeats,
                )
                first = np.arange(size)
                come = np.concatenate([first, np.full(change, -1)])
                base = Scorer(features[:size], "root", make_operator(operator))
                add, added = seconds(
                    lambda base=base, both=both, come=come: base.edited(both, come),  # type: ignore[misc]
                    arguments.repeats,
                )
                remove, removed = seconds(
                    lambda whole=whole, first=first: whole.edited(features[: len(first)], first),  # type: ignore[misc]
                    arguments.repeats,
                )
                np.testing.assert_array_equal(
                    added.calibration.good_scores, whole.calibration.good_scores
                )
                np.testing.assert_array_equal(
                    removed.calibration.good_scores, base.calibration.good_scores
                )
                rows.append(
                    {
                        "operator": operator,
                        "good_images": size,
                        "change": change,
                        "fit_s": f"{fit:.3f}",
                        "add_s": f"{add:.3f}",
                        "remove_s": f"{remove:.3f}",
                        "fit_over_add": f"{fit / add:.1f}",
                        "fit_over_remove": f"{fit / remove:.1f}",
                    }
                )
                print(rows[-1])
    write_rows("living", rows)


if __name__ == "__main__":
    main()
