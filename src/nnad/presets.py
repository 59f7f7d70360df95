"""Named settings that mean exactly what they say.

| preset        | transform | operator                                                             |
|---------------|-----------|----------------------------------------------------------------------|
| `auto`        | root      | distance to the local shape, see docs/auto.md: what nobody chose     |
| `dn2`         | raw       | k-NN, k = 2, mean of squared distances (DN2, Eq. 2), geometry `crop` |
| `knnn-paper`  | raw       | k-NNN, Eq. 2 as printed: a plain sum with p = 1                      |
| `knnn-author` | raw       | equal to the author's package knnn 0.1.0 with p = 2                  |
"""

from typing import Any

from nnad.errors import InputError
from nnad.operators import Operator, make_operator

PRESETS: dict[str, dict[str, Any]] = {
    "auto": {"transform": "root", "operator": "auto"},
    "dn2": {"operator": "knn", "k": 2},
    "knnn-paper": {
        "operator": "knnn",
        "k": 3,
        "k_prime": 25,
        "set_size": 5,
        "p": 1,
        "reduction": "sum",
        # The paper wants n < L eigenvectors and names no n: here 4, those of the smallest
        # eigenvalues. The ridge only keeps a division by 0 away.
        "n_vectors": 4,
        "ridge": 1e-10,
    },
    "knnn-author": {"operator": "knnn-author"},
}


def preset(name: str) -> tuple[str, Operator]:
    """Transform and operator of a preset.

    Raises:
        InputError: no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"preset={name!r}; choose one of {', '.join(PRESETS)}")
    arguments = dict(PRESETS[name])
    transform = arguments.pop("transform", "raw")
    return transform, make_operator(arguments.pop("operator"), **arguments)
