"""Training folders with anomalies in them, with and without cleaning (DN2, Figure 5 right).

Fashion-MNIST and CIFAR-10, development images (see one_class_sets.py): each class in turn is good,
and of the training images a share of 0 to 50 % are from the nine other classes. All good training
images stay, so that only anomalies are added, drawn anew for each class: for `nnad` up to 20 % five
times, with the class's number + 0, 100, ... 400 as seeds, else once, with its number. For the
slower k-NNN and auto every second class is good and fewer cleanings are tried, for auto with one
draw.

Cleaned by: nothing; `dn2`, k = 2, one round, half; `nnad`, the defaults of nnad.clean; `budget`,
5 % of the good images; `person`, as `nnad` when a person looks at all that is to be dropped and
rejects the anomalies alone.

Columns, each a mean over draws and classes: image AUROC x 100; `lost`, against the good images
alone, and `lost_error`, its standard error from draw to draw; `left`, anomalies among the kept
images, %; `good_dropped`, % of the good images. For a false-alarm budget of 5 %, but for k-NNN:
`alarms` and `found`, % of the good and odd test images that are called anomalies; `alarms_all` and
`found_all`, the same when all images calibrate, each scored against the kept ones.

    python benchmarks/contaminated.py --data DIR --fashion-mnist DIR
"""

import argparse
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from auto import auroc
from datasets import FASHION_MNIST_HELP
from numpy.typing import NDArray
from one_class_sets import SETS, Features, OneClass, one_class_sets
from provenance import write_rows

from nnad.calibrate import Calibration
from nnad.clean import clean
from nnad.cores import usable_cores
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.protocols import impurities

IMPURITIES = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
CLEANINGS: dict[str, dict[str, Any]] = {
    "nothing": {"fraction": 0},
    "dn2": {"k": 2, "fraction": 0.5, "rounds": 1},
    "nnad": {},
    "budget": {"drop_good": 0.05},
}
SLOW = ("nothing", "nnad")  # for the other operators than k-NN
DRAWS, REPEATED = 5, 0.2  # of the default cleaning, up to that impurity
OPERATORS = {"knn": "k-NN", "knnn": "k-NNN", "auto": "auto"}
BUDGET = 0.05
PLOT = Path(__file__).parents[1] / "docs" / "contaminated.png"


def evaluate(
    operator: str, features: Features, kept: NDArray[np.bool_], task: OneClass
) -> dict[str, float]:
    """Figures of a model of the kept images (N,) of features (N, D)."""
    fitted = make_operator(operator).fit(Bank(features[kept]))
    scores = fitted.score(np.vstack([task.good, task.odd]))
    n_good = len(task.good)
    is_odd = np.arange(len(features)) >= len(task.train)
    figures = {
        "auroc": auroc(scores, n_good),
        "left": 100 * is_odd[kept].mean(),
        "good_dropped": 100 * (~kept)[~is_odd].mean(),
    }
    if operator == "knnn":
        return figures
    good_scores = fitted.left_out_scores()
    dropped = fitted.score(features[~kept]) if not kept.all() else np.empty(0)
    for name, calibrating in (("", good_scores), ("_all", np.append(good_scores, dropped))):
        called = scores > Calibration(calibrating).threshold(BUDGET)
        figures[f"alarms{name}"] = 100 * called[:n_good].mean()
        figures[f"found{name}"] = 100 * called[n_good:].mean()
    return figures


Key = tuple[str, str, str, float]  # data, operator, cleaning, impurity


def evaluate_class(number: int, task: OneClass) -> dict[Key, list[dict[str, float]]]:
    """Figures of all cleanings of one good class, for each draw."""
    found = defaultdict(list)
    for impurity in IMPURITIES:
        for draw in range(DRAWS if 0 < impurity <= REPEATED else 1):
            seed = number + 100 * draw
            odd = impurities(len(task.train), len(task.others), impurity, seed)
            features = np.vstack([task.train, task.others[odd]])
            names = ("nnad",) if draw else CLEANINGS
            kept = {name: clean(features, **CLEANINGS[name]).kept for name in names}
            if not draw:
                kept["person"] = kept["nnad"] | (np.arange(len(features)) < len(task.train))
            for operator in OPERATORS if number % 2 == 0 else ("knn",):
                if operator == "auto" and draw:
                    continue
                for name in kept if operator == "knn" else [n for n in SLOW if n in kept]:
                    figures = evaluate(operator, features, kept[name], task)
                    found[task.data, operator, name, impurity].append(figures)
    return found


def mean_figures(classes: list[list[dict[str, float]]]) -> dict[str, float]:
    """Means over classes and their draws, and the standard error of the loss if there are draws."""
    names = list(classes[0][0])
    figures = np.array([[[v[name] for name in names] for v in c] for c in classes])  # (C, R, F)
    means = dict(zip(names, figures.mean(axis=(0, 1)).tolist(), strict=True))
    if (draws := figures.shape[1]) > 1:
        by_draw = figures[:, :, names.index("auroc")].mean(axis=0)
        means["lost_error"] = float(by_draw.std(ddof=1) / np.sqrt(draws))
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    arguments = parser.parse_args()
    tasks = list(one_class_sets(arguments.data, arguments.fashion_mnist))
    found: dict[Key, list[list[dict[str, float]]]] = defaultdict(list)  # classes, draws
    with ProcessPoolExecutor(usable_cores()) as pool:
        for i, figures in enumerate(pool.map(evaluate_class, range(len(tasks)), tasks)):
            for key, draws in figures.items():
                found[key].append(draws)
            print("done: a class of", tasks[i].data, flush=True)

    means = {key: mean_figures(classes) for key, classes in found.items()}
    rows: list[dict[str, object]] = []
    for (data, operator, cleaning, impurity), values in means.items():
        values["lost"] = means[data, operator, "nothing", 0]["auroc"] - values["auroc"]
        rows.append(
            {
                "data": data,
                "operator": operator,
                "cleaning": cleaning,
                "impurity": f"{impurity:g}",
                "classes": len(found[data, operator, cleaning, impurity]),
                "draws": len(found[data, operator, cleaning, impurity][0]),
                **{name: f"{value:.2f}" for name, value in values.items()},
            }
        )
    plot(means)
    write_rows("contaminated", rows)


def plot(means: dict[Key, dict[str, float]]) -> None:
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    for row, data in enumerate(SETS):
        for axis, operator in zip(axes[row], OPERATORS, strict=True):
            for name in [*CLEANINGS, "person"]:
                if (data, operator, name, 0) not in means:
                    continue
                aurocs = [means[data, operator, name, i]["auroc"] for i in IMPURITIES]
                axis.plot([100 * i for i in IMPURITIES], aurocs, "o-", markersize=3, label=name)
            axis.set(title=f"{data}, {OPERATORS[operator]}", xlabel="anomalies in the folder, %")
            axis.set_ylabel("image AUROC, %")
            axis.grid(alpha=0.3)
    lines = figure.axes[0].get_legend_handles_labels()
    figure.legend(*lines, title="cleaned by", loc="outside right upper")
    figure.savefig(PLOT, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
