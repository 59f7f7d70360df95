"""Anomalous groups of images (DN2, section 4.5): mean, max, concatenation and trace.

Sets: D'Oro et al.'s task, of which DN2 reports 0.92 ROCAUC on MNIST by the trace without training.
There is no MNIST here: Fashion-MNIST takes its place. A normal set holds 10 to 50 images of one
class, an anomalous one as many of classes drawn at random. 1,000 good training sets (the trace uses
none), 500 normal and 500 anomalous sets; training images and test images differ.

M-of-M: the classes are CIFAR-10's first M. A normal group holds one image of each, an anomalous one
M images of classes drawn at random: `literal`, as the paper says. Of those, M!/M^M are one of each
class as well, so normal (all at M = 1, half at M = 2, 9 % at M = 4); `without permutations` draws
these again. 1,000 good training groups as in the paper, 500 normal and 500 anomalous ones.

Sizes: does the budget hold for groups of another size? 19 good sets of 20 images of one
Fashion-MNIST class, no image twice, budget 10 %, 50 new good sets of 3 to 50 other images, 200
splits; `ours` calibrates with good groups cut to the size of the new one, `full groups` with them
as they are.

Root features before pooling, and raw ones as in the paper. Development images (tasks.py), five
seeds.

    python benchmarks/groups.py --data DIR --fashion-mnist DIR
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from datasets import FASHION_MNIST_HELP, embed, fashion_mnist
from numpy.typing import NDArray
from provenance import write_rows
from sklearn.metrics import roc_auc_score

from nnad.backbones import load_backbone
from nnad.group_bank import GroupBank
from nnad.group_pooling import pooled, trace_of_covariance
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.protocols import (
    Rows,
    any_tuple,
    drawn_group,
    mixed_group,
    no_permutation,
    one_class_group,
    one_of_each,
)
from nnad.transforms import fit_transform

mpl.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parents[1] / "docs"
Array = NDArray[np.float32]
Groups = list[Array]  # of (M, D)
TRAIN, TEST, SEEDS = 1000, 500, 5
OPERATORS = ("knn", "auto")


def drawn(
    count: int, make: Callable[..., Rows], rng: np.random.Generator, features: Array
) -> Groups:
    """Groups of features (C, n, D)."""
    of_class = np.arange(features.shape[0] * features.shape[1]).reshape(features.shape[:2])
    flat = features.reshape(-1, features.shape[-1])
    return [flat[make(rng, of_class)] for _ in range(count)]


def scores(train: Groups, test: Groups, pooling: str, operator: str) -> NDArray[np.float64]:
    if pooling == "trace":
        return np.array([trace_of_covariance(group) for group in test])
    bank, queries = (
        np.stack([pooled(group, pooling) for group in groups]) for groups in (train, test)
    )
    return make_operator(operator).fit(Bank(bank)).score(queries)


def compare(
    train: Array,
    test: Array,
    good: Callable[..., Rows],
    odd: dict[str, Callable[..., Rows]],
    poolings: tuple[str, ...],
    operators: tuple[str, ...],
) -> dict[tuple[str, str, str], list[float]]:
    """AUROC of every seed, by protocol (a key of `odd`), pooling and operator."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        bank = drawn(TRAIN, good, rng, train)
        normal = drawn(TEST, good, rng, test)
        anomalous = {name: drawn(TEST, make, rng, test) for name, make in odd.items()}
        queries = normal + [group for groups in anomalous.values() for group in groups]
        for pooling in poolings:
            for operator in ("none",) if pooling == "trace" else operators:
                found = np.split(scores(bank, queries, pooling, operator), 1 + len(odd))
                for name, of_odd in zip(odd, found[1:], strict=True):
                    labels = np.repeat([0, 1], TEST)
                    area = roc_auc_score(labels, np.concatenate([found[0], of_odd]))
                    values.setdefault((name, pooling, operator), []).append(float(area))
    return values


def same_class(size: int, rng: np.random.Generator, of_class: Sequence[Rows]) -> Rows:
    return drawn_group(rng, of_class, np.zeros(size, np.int64))


def rows_of(values: dict[tuple[str, str, str], list[float]], **told: Any) -> list[dict[str, Any]]:
    return [
        {
            **told,
            "protocol": protocol,
            "pooling": pooling,
            "operator": operator,
            "auroc": f"{100 * np.mean(areas):.2f}",
            "std": f"{100 * np.std(areas, ddof=1):.2f}",
            "seeds": SEEDS,
        }
        for (protocol, pooling, operator), areas in values.items()
    ]


def sets_of_one_class(features: Array) -> list[dict[str, Any]]:
    rows = []
    for transform in ("root", "raw"):
        points = transformed(features, transform)
        values = compare(
            points[:, :400],
            points[:, 400:],
            one_class_group,
            {"10 to 50 images": mixed_group},
            ("mean", "max", "trace"),  # sizes differ, so nothing can be concatenated
            OPERATORS,
        )
        rows += rows_of(values, task="sets", data="fashion-mnist", M="", transform=transform)
    return rows


def m_of_m(features: Array) -> list[dict[str, Any]]:
    rows = []
    for transform, operators in (("root", OPERATORS), ("raw", ("knn",))):
        points = transformed(features, transform)
        for m in range(1, 11):
            protocols: dict[str, Callable[..., Rows]] = {"literal": any_tuple}
            if m > 1:
                protocols["without permutations"] = no_permutation
            poolings = ("mean", "max", "concat", "trace")[: 3 if m == 1 else 4]
            train, test = points[:m, :800], points[:m, 800:]
            values = compare(train, test, one_of_each, protocols, poolings, operators)
            rows += rows_of(values, task="M-of-M", data="cifar-10", M=m, transform=transform)
            print("done:", transform, m, flush=True)
    return rows


def false_alarms(features: Array, splits: int = 200, budget: float = 0.1) -> list[dict[str, Any]]:
    """Good sets of another size than the fitted ones, all of one class."""
    points = transformed(features, "root")
    rates: dict[tuple[str, str, int, str], list[float]] = {}
    for split in range(splits):
        rng = np.random.default_rng(split)
        of_class = points[split % len(points)][rng.permutation(points.shape[1])][None]  # (1, n, D)
        good = list(of_class[0, :380].reshape(19, 20, -1))
        others = of_class[:, 380:]
        names = [str(i) for i in range(len(good))]
        for pooling, operator in (("mean", "knn"), ("mean", "auto"), ("trace", "none")):
            bank = GroupBank(
                names,
                good,
                pooling=pooling,
                operator=None if operator == "none" else make_operator(operator),
            )
            for size in (3, 10, 20, 50):
                new = drawn(50, partial(same_class, size), rng, others)
                found = scores(good, new, pooling, operator)
                rules = {"ours": size} | ({"full groups": 20} if size < 20 else {})
                for rule, of_size in rules.items():
                    alarms = found > bank.calibration(of_size).threshold(budget)
                    rates.setdefault((pooling, operator, size, rule), []).append(alarms.mean())
    return [
        {
            "task": "sizes",
            "data": "fashion-mnist",
            "M": size,
            "transform": "root",
            "protocol": f"{rule}, budget {budget:g}",
            "pooling": pooling,
            "operator": operator,
            "false_alarms": f"{np.mean(found):.4f}",
            "standard_error": f"{np.std(found, ddof=1) / np.sqrt(len(found)):.4f}",
            "seeds": splits,
        }
        for (pooling, operator, size, rule), found in rates.items()
    ]


def transformed(features: Array, name: str) -> Array:
    flat = features.reshape(-1, features.shape[-1])
    return fit_transform(name, flat)(flat).reshape(features.shape)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    protocols = ("literal", "without permutations")
    picture, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    styles = {"mean": "C0", "concat": "C1", "max": "C2", "trace": "C3"}
    for axis, protocol in zip(axes, protocols, strict=True):
        for pooling, colour in styles.items():
            for operator, line in (("knn", "-"), ("auto", "--"), ("none", "-")):
                told = ("M-of-M", "root", protocol, pooling, operator)
                keys = ("task", "transform", "protocol", "pooling", "operator")
                chosen = [r for r in rows if tuple(r[key] for key in keys) == told]
                if chosen:
                    axis.errorbar(
                        [r["M"] for r in chosen],
                        [float(r["auroc"]) for r in chosen],
                        [float(r["std"]) for r in chosen],
                        color=colour,
                        linestyle=line,
                        capsize=2,
                        label=pooling if operator == "none" else f"{pooling}, {operator}",
                    )
        axis.axhline(50, color="grey", linewidth=0.5)
        axis.set(title=f"M of M classes, {protocol}", xlabel="M", xticks=range(1, 11))
    axes[0].set_ylabel("AUROC x 100, mean and std of 5 seeds")
    axes[1].legend(fontsize="small", ncols=2)
    picture.savefig(path, dpi=80)
    plt.close(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    arguments = parser.parse_args()
    backbone = load_backbone()
    images, labels = fashion_mnist(arguments.fashion_mnist, "train")
    chosen = np.concatenate([np.flatnonzero(labels == c)[:700] for c in range(10)])
    fashion = embed(list(images[chosen]), backbone).reshape(10, 700, -1)
    root = arguments.data / "cifar10" / "train"
    classes = sorted(p for p in root.iterdir() if p.is_dir())  # in the order of their IDs
    paths = [p for folder in classes for p in sorted(folder.glob("*"))]
    cifar = embed(paths, backbone).reshape(10, 1000, -1)

    rows = sets_of_one_class(fashion) + m_of_m(cifar)
    plot(rows, DOCS / "groups.png")
    write_rows("groups", rows + false_alarms(fashion))


if __name__ == "__main__":
    main()
