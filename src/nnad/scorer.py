"""Good features -> a fitted model and its calibration; new features -> scores and p-values.

A detector has one for its images; whatever has features of another kind can have one, too.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad.calibrate import Calibration
from nnad.combined import Combined
from nnad.conformal import LEAVE_ONE_OUT, Method, calibrate, fold_models
from nnad.errors import InputError
from nnad.fitted import Fitted
from nnad.neighbors import Bank, Neighbors
from nnad.operators import Operator
from nnad.products import bank_products

EVIDENCE = 3  # nearest good images told for each decision


class Known(NamedTuple):
    """What a saved model knows and a fit has to find out."""

    graph: Neighbors
    operator_state: dict[str, NDArray[Any]]
    calibration: Calibration  # of the features' scores
    products: NDArray[np.int64] | None  # (B,) of the bank's rows


class Scored(NamedTuple):
    """What features (Q, D) were found to be."""

    scores: NDArray[np.float64]  # (Q,)
    by_features: NDArray[np.float64]  # (Q,) the same without patches
    p_values: NDArray[np.float64]  # (Q,)
    nearest: Neighbors  # (Q, 3 or more) rows of good images, distances of transformed features
    categories: NDArray[np.int64]  # (Q,) assigned products, places in `product_names`
    by_fold: NDArray[np.float64]  # (Q, F) what p-values count by: scores by each fold's model


class Scorer:
    """Scores features by good ones.

    Args:
        features: (N, D) of good images, as the backbone returned them.
        transform: a name of `nnad.transforms`.
        operator: copied, not changed.
        known: what a saved model knows.
        method: how the good images calibrate.
        products: `folders`, the number of clusters, or None for one product.
        names: (N,) of the good images, for `folders`.

    Attributes: `rows` (B,), which good images are in the `bank` of transformed features;
    `operator`; `calibration`, and `calibrating` (n,), which good images its scores are of;
    `products` (B,) of the rows of the bank, or None; `by_features`, the calibration without
    patches; `combined`, what joins both scores, or None.

    Raises:
        InputError: too few or too many images for the method, or for a product.
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        transform: str,
        operator: Operator,
        known: Known | None = None,
        *,
        method: Method = LEAVE_ONE_OUT,
        products: str | int | None = None,
        names: Sequence[str] = (),
    ) -> None:
        def fit(good: NDArray[np.float32]) -> Fitted:
            return Fitted(good, transform, operator)

        self.combined: Combined | None = None
        self._transform, self._method, self._asked_products = transform, method, products
        self.rows, self.calibrating = method.bank_rows(features), method.calibrating_rows(features)
        good = features if len(self.rows) == len(features) else features[self.rows]
        learnt = (known.graph, known.operator_state) if known else ()
        self._main = Fitted(good, transform, operator, *learnt)
        self._folds = fold_models(method, features, fit)
        if known:
            self.by_features, self.products = known.calibration, known.products
        else:
            self._calibrate(features, names)
        self.calibration = self.by_features

    def with_patches(self, combined: Combined, good_scores: NDArray[np.float64]) -> "Scorer":
        """A copy that scores patches, too; its method must not have folds.

        Args:
            combined: what joins the scores.
            good_scores: (n,) patch scores of the good images that calibrate.
        """
        new = copy.copy(self)
        new.combined = combined
        scores = combined(self.by_features.good_scores, good_scores)
        new.calibration = replace(self.by_features, good_scores=scores)
        return new

    @property
    def bank(self) -> Bank:
        """Of transformed features (B, D)."""
        return self._main.bank

    @property
    def operator(self) -> Operator:
        """Fitted on the bank."""
        return self._main.operator

    def transformed(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features (Q, D) as the bank's are."""
        return self._main.transformed(features)

    def edited(
        self,
        features: NDArray[np.float32],
        old_rows: NDArray[np.int64],
        names: Sequence[str] = (),
    ) -> "Scorer":
        """What `Scorer(features, ...)` would be, bit for bit, for the price of the change.

        Only new rows, and rows that lost a neighbour, are searched. What an operator learns from
        all rows (variances, centres, eigenvectors) is learnt anew, and so are the transforms `log`
        and `white`, and all where images have parts of their own (`split`, `cross`, `jackknife+`);
        the leave-one-out scores of k-NN cost next to nothing, those of other operators as much as
        scoring the bank.

        Args:
            features: (N, D) of all good images.
            old_rows: (N,) ascending, the row that each had in this bank, or -1 for a new one.
            names: (N,) of the good images, for products by folders.
        """
        if self._method != LEAVE_ONE_OUT:
            return Scorer(
                features,
                self._transform,
                self.operator,
                method=self._method,
                products=self._asked_products,
                names=names,
            )
        new = copy.copy(self)
        new.rows = new.calibrating = np.arange(len(features))
        new._main = self._main.edited(features, old_rows)
        new._calibrate(features, names)
        new.calibration = new.by_features
        return new

    def score(
        self, features: NDArray[np.float32], patch_scores: NDArray[np.float64] | None = None
    ) -> Scored:
        """Features (Q, D) as the backbone returned them; with `combined`, and patch scores (Q,)."""
        queries = self.transformed(features)
        told = min(max(EVIDENCE, getattr(self.operator, "k", 1)), len(self.bank))
        needed = min(max(told, getattr(self.operator, "n_local", 1)), len(self.bank))
        found = self.bank.nearest(queries, needed)
        scores = by_features = self.operator.score(queries, found)
        if self.combined is not None:
            if patch_scores is None:
                raise InputError("patch_scores: this model scores patches, too")
            scores = self.combined(scores, patch_scores)
        by_fold = np.stack([fold.score(features) for fold in self._folds] or [scores], axis=1)
        nearest = found.rows[:, 0]
        categories = np.zeros_like(nearest) if self.products is None else self.products[nearest]
        return Scored(
            scores,
            by_features,
            self.calibration.p_values(by_fold, categories),
            Neighbors(found.sq_dists[:, :told], self.rows[found.rows[:, :told]]),
            categories,
            by_fold,
        )

    def _calibrate(self, features: NDArray[np.float32], names: Sequence[str]) -> None:
        product_names: tuple[str, ...] = ("",)
        self.products = None
        if self._asked_products is not None:
            self.products, product_names = bank_products(
                self._asked_products, names, self.rows, self.bank.features
            )
        self.by_features = calibrate(
            self._method, features, self._main, self._folds, self.products, product_names
        )
