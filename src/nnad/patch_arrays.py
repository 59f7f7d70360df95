"""The arrays of a saved patch model, checked before anything is scored with them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.errors import InputError

Arrays = Mapping[str, NDArray[Any]]


def check_arrays(
    arrays: Arrays, *, whiten: bool, n_good: int | None = None, n_calibrating: int | None = None
) -> None:
    """Whether `PatchModel.arrays` could have given these.

    Args:
        arrays: by name.
        whiten: that setting of the model.
        n_good: images in the bank, None if that is not known.
        n_calibrating: good images with a score, None if that is not known.

    Raises:
        InputError: one is missing; its type, shape or a value is impossible; or it does not fit
            the others.
    """
    n_rows, dim = _array(arrays, "bank", np.float32, None, None).shape
    images = _array(arrays, "bank_images", np.int64, n_rows)
    _check("bank_images", images, 0, np.inf if n_good is None else n_good - 1)
    if (images == images[0]).all():
        raise InputError("bank_images: all patches are of one image")
    _check("bank_places", _array(arrays, "bank_places", np.int64, n_rows), 0)
    boxes = _array(arrays, "bank_boxes", np.float64, n_rows, 4)
    if not (boxes[:, :2] < boxes[:, 2:]).all():
        raise InputError("bank_boxes: a patch covers nothing")
    _check("bank_spacing", _array(arrays, "bank_spacing", np.float64, n_rows), 0)
    _check("grid", _array(arrays, "grid", np.int64, 2), 1)
    scores = _array(arrays, "good_scores", np.float64, n_calibrating)
    _array(arrays, "good_peaks", np.float64, len(scores))
    _array(arrays, "usual", np.float64, 1)
    dims = _whitened_dims(arrays)
    if bool(dims) != whiten:
        raise InputError(f"whitening: of {len(dims)} stages, but whiten={whiten}")
    if dims and sum(dims) != dim:
        raise InputError(f"whitening: gives patches of {sum(dims)} values, the bank has {dim}")


def n_stages(arrays: Arrays) -> int:
    """How many stages are whitened."""
    return sum(name.startswith("whitening_") and name.endswith("_matrix") for name in arrays)


def _whitened_dims(arrays: Arrays) -> list[int]:
    """Values that a patch has of each stage that is whitened."""
    dims = []
    for i in range(n_stages(arrays)):
        (n_channels,) = _array(arrays, f"whitening_{i}_mean", np.float32, None).shape
        _array(arrays, f"whitening_{i}_matrix", np.float32, n_channels, n_channels)
        scale = _array(arrays, f"whitening_{i}_scale", np.float64, 1)
        _check(f"whitening_{i}_scale", scale, np.finfo(np.float64).tiny)
        kept = _array(arrays, f"whitening_{i}_kept", np.int64, 1)
        _check(f"whitening_{i}_kept", kept, 1, n_channels)
        dims.append(min(int(kept[0]) + 1, n_channels))  # the rest are one length, see Whitening
    return dims


def _array(arrays: Arrays, name: str, dtype: type, *shape: int | None) -> NDArray[Any]:
    """The array of this name, type and shape, not empty and finite; None is any length."""
    if name not in arrays:
        raise InputError(f"{name}: missing")
    array = arrays[name]
    fits = len(shape) == array.ndim and all(
        length in (None, found) for length, found in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        told = ", ".join("any" if length is None else str(length) for length in shape)
        raise InputError(
            f"{name}: {array.dtype} of shape {array.shape}; expected {np.dtype(dtype)}, ({told})"
        )
    if not array.size:
        raise InputError(f"{name}: empty")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: a value is not finite")
    return array


def _check(name: str, array: NDArray[Any], least: float, most: float = np.inf) -> None:
    if array.min() < least or array.max() > most:
        raise InputError(f"{name}: values {array.min()} to {array.max()}; {least} to {most} can be")
