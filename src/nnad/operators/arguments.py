"""Checks of arguments that all operators share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnad.errors import InputError
from nnad.neighbors import Bank


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number of at least `least`, or an `InputError` that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name}={value!r}; expected a whole number, at least {least}")
    return int(value)


def check_amount(name: str, value: Any, *, least: float = 0.0) -> float:
    """A finite number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise InputError(f"{name}={value!r}; expected a number")
    if not (np.isfinite(value) and value >= least):
        raise InputError(f"{name}={value!r}; expected a number of at least {least:g}")
    return float(value)


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """One of the choices."""
    if value not in choices:
        raise InputError(f"{name}={value!r}; choose one of {', '.join(map(str, choices))}")
    return value


def clipped(k: int, bank: Bank, *, left_out: bool = False) -> int:
    """k, or as many neighbours as the bank has; `left_out` when a row may not find itself."""
    most = len(bank) - left_out
    if most < 1:
        raise InputError("bank: one row has no neighbours to be compared with")
    return min(k, most)
