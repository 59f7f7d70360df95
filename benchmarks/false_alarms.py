"""Does the false-alarm budget hold, and what does it cost? Random splits of good images.

For each way to calibrate the mean share of held-out good images that are called anomalies, and of
real anomalies of the same data that are found; beside them the plain rule with which other tools
set their threshold, the (1 - budget) quantile of the leave-one-out scores. `above` marks a mean
more than two standard errors above the budget. A budget that n images cannot support is refused by
all but the plain rule and left empty.

Both operators, k-NN (k = 2) and `auto`, need nothing but inner products of features, so these are
taken once and scores computed from them, in a fiftieth of the time; that they equal those of
nnad's operators is asserted first. The calibration is nnad's own.

    python benchmarks/false_alarms.py --fashion-mnist DIR --cookies examples/cookies
"""

import argparse
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import FASHION_MNIST_HELP, elpv, embed, fashion_mnist
from numpy.typing import NDArray
from provenance import write_rows
from threadpoolctl import threadpool_limits

from nnad.backbones import load_backbone
from nnad.calibrate import within
from nnad.conformal import Method, calibrate, fold_models
from nnad.neighbors import Bank
from nnad.operators import AUTO, make_operator
from nnad.progress import track
from nnad.transforms import root

BUDGETS = (0.01, 0.05, 0.1)
METHODS = ("leave-one-out", "split", "cross", "jackknife+")
SIZES = (20, 50, 100, 500)
TESTED = 100  # held-out good images, and anomalies, of each split
LARGEST_JACKKNIFE = 50  # images; it has a model for each
N_LOCAL = 25  # of auto

Scores = NDArray[np.float64]
Rows = NDArray[np.int64]


class Data(NamedTuple):
    """Root features: of good images, then of anomalies."""

    name: str
    features: NDArray[np.float32]  # (G + A, D)
    good: int  # G


class Gram:
    """Inner products and squared distances of all features of a data set."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        wide = features.astype(np.float64)
        self.dim = wide.shape[1]
        self.inner = wide @ wide.T  # (M, M)
        self.sq_norms = np.square(wide).sum(axis=1)  # (M,)
        sq_dists = self.sq_norms[:, None] + self.sq_norms - 2 * self.inner
        self.sq_dists = np.maximum(sq_dists, 0)


class FromGram:
    """What `Fitted` is to features (n, D), to their rows (n, 1 or 2) among a data set's."""

    def __init__(self, gram: Gram, operator: str, rows: Rows) -> None:
        self._of, self._operator, self._bank = gram, operator, rows[:, 0]
        inner = gram.inner[np.ix_(self._bank, self._bank)]
        total = np.trace(inner) - inner.sum() / len(rows)  # of squares of centred features
        self._ridge = 3 * total / max(len(rows) - 1, 1) / gram.dim  # 3 vbar

    def score(self, rows: Rows) -> Scores:
        """(q, 1) -> (q,)."""
        return self._score(rows[:, 0], self._of.sq_dists[np.ix_(rows[:, 0], self._bank)])

    def left_out_scores(self, rows: Rows) -> Scores:
        """(n, 1), all of the bank -> (n,)."""
        sq_dists = self._of.sq_dists[np.ix_(self._bank, self._bank)]
        np.fill_diagonal(sq_dists, np.inf)
        return self._score(rows[:, 0], sq_dists, left_out=1)

    def _score(self, queries: Rows, sq_dists: Scores, left_out: int = 0) -> Scores:
        if self._operator == "knn":
            return np.asarray(np.partition(sq_dists, 1, axis=1)[:, :2].mean(axis=1))
        count = min(N_LOCAL, len(self._bank) - left_out)
        near = np.argpartition(sq_dists, count - 1, axis=1)[:, :count]
        order = np.take_along_axis(sq_dists, near, 1).argsort(axis=1)
        near = np.take_along_axis(near, order, 1)  # (q, n) nearest first
        lengths = np.take_along_axis(sq_dists, near[:, :5], 1)  # (q, 5) |v|^2
        around = self._bank[near]
        gram = self._of.inner[around[:, :, None], around[:, None]]  # (q, n, n)
        mean = gram.mean(axis=2, keepdims=True)
        centred = gram - mean - gram.mean(axis=1, keepdims=True) + gram.mean((1, 2), keepdims=True)
        to_query = self._of.inner[around, queries[:, None]]  # (q, n)
        along = to_query[:, :, None] - gram[:, :, :5]  # (q, n, 5): row . (query - neighbour)
        along -= along.mean(axis=1, keepdims=True)
        centred[:, np.arange(count), np.arange(count)] += self._ridge * (count - 1)
        free = (along * np.linalg.solve(centred, along)).sum(axis=1)
        return np.asarray(np.maximum(lengths - free, 0).min(axis=1) / self._ridge)


def check(data: Data, gram: Gram) -> None:
    """Stop if the scores from inner products are not those of nnad's operators."""
    assert AUTO == ("local", {"k": 5, "ridge": 3.0, "reduction": "min"})
    rows = np.random.default_rng(0).permutation(data.good)[:40, None]
    for operator in ("knn", "auto"):
        for bank in (rows[:12], rows[:35]):
            ours = FromGram(gram, operator, bank)
            nnads = make_operator(operator).fit(Bank(data.features[bank[:, 0]]))
            expected = nnads.score(data.features[rows[35:, 0]])
            np.testing.assert_allclose(ours.score(rows[35:]), expected, rtol=1e-6)
            np.testing.assert_allclose(ours.left_out_scores(bank), nnads.left_out_scores(), 1e-6)


def one_split(gram: Gram, good: int, operator: str, n: int, split: int) -> dict[Any, Any]:
    """(rule, budget) -> shares of held-out good images and of anomalies that are called one."""

    def fit(rows: Rows) -> Any:
        return FromGram(gram, operator, rows)

    rng = np.random.default_rng(split)

    def drawn(count: int, first: int) -> Rows:
        # (count, 2) rows and the split: an image's part in a calibration is decided by its hash,
        # and must not be the same in all splits, or a lucky half of the data calibrates them all
        rows = first + rng.permutation(count)
        return np.column_stack([rows, np.full(count, split)])

    order = drawn(good, 0)
    fitted, tested = order[:n], order[n : n + TESTED]
    odd = drawn(len(gram.inner) - good, good)[:TESTED]
    new, is_odd = np.concatenate([tested, odd]), np.repeat([False, True], [len(tested), len(odd)])
    shares = {}
    for name in METHODS:
        method = Method(name)
        if name == "jackknife+" and n > LARGEST_JACKKNIFE:
            continue
        main, models = fit(fitted[method.bank_rows(fitted)]), fold_models(method, fitted, fit)
        calibration = calibrate(method, fitted, main, models)
        scores = np.stack([model.score(new) for model in models or [main]], axis=1)
        called = calibration.p_values(scores)
        for budget in BUDGETS:
            if within(calibration.smallest_budget, budget):
                alarm = called <= budget * (1 + 1e-9)
                shares[name, budget] = alarm[~is_odd].mean(), alarm[is_odd].mean()
            if name == "leave-one-out":
                alarm = scores[:, 0] > np.quantile(calibration.good_scores, 1 - budget)
                shares["plain quantile", budget] = alarm[~is_odd].mean(), alarm[is_odd].mean()
    return shares


_shared: Gram  # of a worker process


def _share(features: NDArray[np.float32]) -> None:
    global _shared
    threadpool_limits(1)
    _shared = Gram(features)


def _splits(good: int, operator: str, n: int, splits: range) -> list[dict[Any, Any]]:
    return [one_split(_shared, good, operator, n, split) for split in splits]


def simulate(data: Data, splits: int, workers: int) -> Iterator[dict[str, Any]]:
    """Rows of the table."""
    chunks = [range(i, min(i + 10, splits)) for i in range(0, splits, 10)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _share, (data.features,)) as pool:
        for operator in ("knn", "auto"):
            for n in (n for n in SIZES if n + 20 <= data.good):
                waiting = [pool.submit(_splits, data.good, operator, n, c) for c in chunks]
                results = defaultdict(list)
                label = f"{data.name}, {operator}, n = {n}"
                for done in track((w.result() for w in waiting), len(chunks), label, show=True):
                    for shares in done:
                        for key, share in shares.items():
                            results[key].append(share)
                for (rule, budget), found in sorted(results.items()):
                    yield {
                        "data": data.name,
                        "operator": operator,
                        "good_images": n,
                        "rule": rule,
                        **_row(budget, np.array(found)),
                    }


def _row(budget: float, shares: NDArray[np.float64]) -> dict[str, Any]:
    false_alarms, detections = shares.mean(axis=0)
    errors = shares.std(axis=0, ddof=1) / np.sqrt(len(shares))
    return {
        "budget": budget,
        "false_alarms": f"{false_alarms:.4f}",
        "standard_error": f"{errors[0]:.4f}",
        "above": "above" if false_alarms > budget + 2 * errors[0] else "",
        "detections": f"{detections:.4f}",
        "detections_error": f"{errors[1]:.4f}",
        "splits": len(shares),
    }


def all_data(fashion: Path, cookies: Path) -> Iterator[Data]:
    def data(name: str, good: Any, odd: Any, **settings: Any) -> Data:
        features = embed([*good, *odd], load_backbone(**settings))
        return Data(name, root(features), len(good))

    kinds = [sorted(cookies.glob(f"*/{kind}/*.jpg")) for kind in ("good", "anomaly")]
    yield data("cookies", *kinds, geometry="letterbox", flips="both")
    cells, probability = elpv()
    good, odd = ([c for c, q in zip(cells, probability, strict=True) if q == p] for p in (0, 1))
    yield data("elpv", good, odd)
    images, labels = fashion_mnist(fashion, "train")
    for label in (0, 8):
        others = [images[labels == other][:60] for other in range(10) if other != label]
        chosen = images[labels == label][:1500]
        yield data(f"fashion-mnist class {label}", chosen, np.concatenate(others))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    parser.add_argument("--cookies", type=Path, required=True, help="with */good and */anomaly")
    parser.add_argument("--splits", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    rows = []
    for data in all_data(arguments.fashion_mnist, arguments.cookies):
        check(data, Gram(data.features))
        rows += list(simulate(data, arguments.splits, arguments.workers))
    write_rows("false_alarms", rows)


if __name__ == "__main__":
    main()
