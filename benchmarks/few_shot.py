"""How few good images are enough? AUROC of 1 to all good images (DN2, Figure 5 left and centre).

Fashion-MNIST and CIFAR-10, development images (see one_class_sets.py); each class in turn is good.
Good images are drawn ten times, three times for k-NNN and auto, which are slower. k is clipped to
the images that there are; k-NNN needs three. Image AUROC x 100; the standard deviation is over
draws, of the mean of the ten classes.

    python benchmarks/few_shot.py --data DIR --fashion-mnist DIR
"""

import argparse
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import numpy as np
from auto import auroc
from datasets import FASHION_MNIST_HELP
from one_class_sets import SETS, one_class_sets
from provenance import write_rows

from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.protocols import drawn

SIZES = (1, 2, 5, 10, 50, 100, 500, None)
OPERATORS = {"knn": "k-NN", "knnn": "k-NNN", "auto": "auto"}
DRAWS = {"knn": 10, "knnn": 3, "auto": 3}
PLOT = Path(__file__).parents[1] / "docs" / "few-shot.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    arguments = parser.parse_args()
    found: dict[tuple[str, str, int | None], list[list[float]]] = defaultdict(list)
    for task in one_class_sets(arguments.data, arguments.fashion_mnist):
        queries = np.vstack([task.good, task.odd])
        for size in SIZES:
            for operator in OPERATORS:
                if operator == "knnn" and size in (1, 2):
                    continue
                orders = [
                    drawn(len(task.train), size, draw)
                    for draw in range(DRAWS[operator] if size else 1)
                ]
                found[task.data, operator, size].append(
                    [
                        auroc(
                            make_operator(operator).fit(Bank(task.train[order])).score(queries),
                            len(task.good),
                        )
                        for order in orders
                    ]
                )
        print("done: a class of", task.data, flush=True)
    rows = []
    for (data, operator, size), values in found.items():
        means = np.mean(values, axis=0)  # (draws,) of the ten classes
        rows.append(
            {
                "data": data,
                "operator": operator,
                "good_images": size or "all",
                "draws": len(means),
                "auroc": f"{means.mean():.2f}",
                "std": f"{means.std(ddof=1):.2f}" if len(means) > 1 else "",
            }
        )
    plot({key: float(np.mean(values)) for key, values in found.items()})
    write_rows("few_shot", rows)


def plot(means: dict[tuple[str, str, int | None], float]) -> None:
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, data in zip(axes, SETS, strict=True):
        for operator, label in OPERATORS.items():
            sizes = [s for s in SIZES if (data, operator, s) in means]
            places = [SIZES.index(s) for s in sizes]
            axis.plot(places, [means[data, operator, s] for s in sizes], "o-", label=label)
        axis.set_xticks(range(len(SIZES)), [str(s or "all") for s in SIZES])
        axis.set(title=data, xlabel="good images", ylabel="image AUROC, %")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(PLOT, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
