"""Does the false-alarm budget hold? Mean false-alarm rate over random splits of good images.

Beside p-values from leave-one-out scores (ours) the plain rule: the (1 - budget) quantile of the
same scores, with which other tools set their threshold. `above` marks a mean more than two standard
errors above the budget. A budget that n images cannot support is refused by ours and left empty.

    python benchmarks/false_alarms.py --fashion-mnist DIR
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from datasets import FASHION_MNIST_HELP, elpv, embed, fashion_mnist
from numpy.typing import NDArray
from provenance import write_rows

from nnad.backbones import load_backbone
from nnad.calibrate import Calibration
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.progress import track
from nnad.transforms import root

BUDGETS = (0.01, 0.05, 0.1)
TESTED = 200  # held-out good images of each split


def simulate(features: NDArray[np.float32], operator: str, n: int, splits: int) -> dict[str, Any]:
    """False-alarm rates (splits,) of each rule and budget."""
    rates: dict[str, list[float]] = {}
    for split in track(range(splits), splits, f"{operator}, n = {n}", show=True):
        order = np.random.default_rng(split).permutation(len(features))
        fitted = make_operator(operator).fit(Bank(features[order[:n]]))
        calibration = Calibration(fitted.left_out_scores())
        scores = fitted.score(features[order[n : n + TESTED]])
        for budget in BUDGETS:
            plain = np.quantile(calibration.good_scores, 1 - budget)
            rates.setdefault(f"plain quantile {budget}", []).append(float((scores > plain).mean()))
            if budget >= calibration.smallest_budget:
                threshold = calibration.threshold(budget)
                rates.setdefault(f"ours {budget}", []).append(float((scores > threshold).mean()))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    parser.add_argument("--splits", type=int, default=200)
    arguments = parser.parse_args()
    backbone = load_backbone()
    cells, probability = elpv()
    good = [cell for cell, p in zip(cells, probability, strict=True) if p == 0]
    sets = {"elpv": root(embed(good, backbone))}
    images, labels = fashion_mnist(arguments.fashion_mnist, "train")
    for label in (0, 8):
        chosen = images[labels == label][:1500]
        sets[f"fashion-mnist class {label}"] = root(embed(chosen, backbone))

    rows = []
    for data, features in sets.items():
        for operator in ("knn", "auto"):
            for n in (20, 50, 100, 500):
                for rule, rates in simulate(features, operator, n, arguments.splits).items():
                    name, _, budget = rule.rpartition(" ")
                    mean = float(np.mean(rates))
                    error = float(np.std(rates, ddof=1) / np.sqrt(len(rates)))
                    above = "above" if mean > float(budget) + 2 * error else ""
                    rows.append(
                        {
                            "data": data,
                            "operator": operator,
                            "good_images": n,
                            "budget": budget,
                            "rule": name,
                            "false_alarms": f"{mean:.4f}",
                            "standard_error": f"{error:.4f}",
                            "above": above,
                            "splits": arguments.splits,
                        }
                    )
    write_rows("false_alarms", rows)


if __name__ == "__main__":
    main()
