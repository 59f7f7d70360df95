"""Operators: a bank of good features and queries -> anomaly scores, higher is more anomalous.

Each is a class with keyword arguments for its numbers and four methods:

    fit(bank) -> itself                 bank: a Bank (N, D) of transformed features
    score(queries, found=None) -> (Q,)  found: neighbours of the queries in the bank, if known
    left_out_scores() -> (N,)           the score of each bank row as if it were not in the bank
    by_feature(query) -> (D,)           what each feature adds to the score of a query (D,)

`fit` is deterministic, so a saved model is fitted again when it is opened; an operator for which
that takes long (k-means, k-NNN) offers `state()` and `restore(bank, state)`.
"""

import importlib
import inspect
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nnad.errors import InputError
from nnad.neighbors import Bank, Neighbors

# name -> module and class, imported when it is asked for (k-NNN brings a compiler with it)
_HOME = {
    "knn": ("knn", "KNN"),
    "global": ("global_", "Global"),
    "local": ("local", "Local"),
    "knnn": ("knnn", "KNNN"),
    "knnn-author": ("knnn_author", "AuthorKNNN"),
    "hull": ("hull", "Hull"),
    "kmeans": ("kmeans", "KMeans"),
    "tree": ("kmeans_tree", "TreeKNN"),
}
NAMES = tuple(_HOME)
# what `auto` stands for; docs/auto.md has the evidence
AUTO: tuple[str, dict[str, Any]] = ("local", {"k": 5, "ridge": 3.0, "reduction": "min"})


class Operator(Protocol):
    """What every operator offers."""

    def fit(self, bank: Bank) -> Self:
        """Take a bank (N, D)."""

    def score(self, queries: NDArray[Any], found: Neighbors | None = None) -> NDArray[np.float64]:
        """(Q, D) -> (Q,)."""

    def left_out_scores(self) -> NDArray[np.float64]:
        """(N,) the score of each bank row as if it were not in the bank."""

    def by_feature(self, query: NDArray[Any]) -> NDArray[np.float64]:
        """(D,) -> (D,), none negative; they add up to the score. See by_feature.py.

        Raises:
            InputError: the score is no sum over features.
        """


def make_operator(name: str, **arguments: Any) -> Operator:
    """An operator by name; `auto` is the one that did best without a choice.

    Raises:
        InputError: no such operator or argument, or a value out of range.
    """
    if name == "auto":
        name, arguments = AUTO[0], AUTO[1] | arguments
        arguments.setdefault("n_local", max(25, arguments["k"]))
    if name not in _HOME:
        raise InputError(f"operator={name!r}; choose one of auto, {', '.join(NAMES)}")
    module, class_name = _HOME[name]
    kind = getattr(importlib.import_module(f"nnad.operators.{module}"), class_name)
    known = inspect.signature(kind).parameters
    for argument in arguments:
        if argument not in known:
            raise InputError(f"operator {name!r} has no {argument}; it has {', '.join(known)}")
    operator: Operator = kind(**arguments)
    return operator


def operator_name(operator: Operator) -> str:
    """The name under which `make_operator` knows it."""
    for name, (_, class_name) in _HOME.items():
        if class_name == type(operator).__name__:
            return name
    raise InputError(f"operator: {type(operator).__name__} is none of nnad's operators")


def settings(operator: Operator) -> dict[str, Any]:
    """The arguments it was made with, as JSON."""
    return {name: getattr(operator, name) for name in inspect.signature(type(operator)).parameters}


def describe(operator: Operator) -> str:
    """One line for people: `knn, k=2, squared=True, ...`."""
    told = (f"{key}={value}" for key, value in settings(operator).items())
    return ", ".join([operator_name(operator), *told])
