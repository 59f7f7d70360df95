"""Whether the export of a torch network to ONNX changed what a detector says."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnad.backbones import Backbone
from nnad.errors import BackboneError, ImageError
from nnad.images import Source, read_image
from nnad.probes import largest_difference

PICTURES = 8  # good images that are compared
BOUNDS = {"features": 1e-4, "scores": 1e-3}


def check_export(
    backbone: Backbone,
    good: Iterable[tuple[str, Source]],
    score: Callable[[NDArray[np.float32]], NDArray[np.float64]],
) -> dict[str, float]:
    """Compare features and scores of good images by torch and by ONNX.

    The images are turned by a quarter before: as they are, they are in the bank, at distance 0.

    Args:
        backbone: one that is `exported`.
        good: named images; those that cannot be read are passed over.
        score: features (Q, D) -> scores (Q,) of the fitted detector.

    Returns:
        The largest difference of the `features`, by their length, and of the `scores`, by the
        score or, where that is larger, the scores' median.

    Raises:
        BackboneError: one is above 1e-4, or 1e-3, or no image could be read.
    """
    turned = []
    for name, source in good:
        try:
            turned.append(read_image(source, name).transpose(Image.Transpose.ROTATE_90))
        except ImageError:
            continue
    if not turned:
        raise BackboneError(
            f"backbone {backbone.name!r}: its export cannot be checked, as none of the first "
            f"{PICTURES} pictures can be read"
        )
    by_onnx = np.stack([backbone.embed(image) for image in turned])  # (n, D)
    by_torch = np.stack([backbone.embed_reference(image) for image in turned])
    features = _bounded("features", largest_difference(by_onnx, by_torch), backbone)
    found, expected = score(by_onnx), score(by_torch)
    size = np.maximum(np.abs(expected), np.median(np.abs(expected)))
    size[size == 0] = 1
    scores = _bounded("scores", float((np.abs(found - expected) / size).max()), backbone)
    return {"features": features, "scores": scores}


def _bounded(what: str, difference: float, backbone: Backbone) -> float:
    if not difference <= BOUNDS[what]:
        raise BackboneError(
            f"backbone {backbone.name!r}: its export to ONNX changes {what} by {difference:.2g}, "
            f"more than {BOUNDS[what]:g}; use it as a callable instead"
        )
    return difference


def describe_export(differences: dict[str, Any]) -> str:
    """The differences, for `nnad info`."""
    told = ", ".join(f"{what} by {value:.1g}" for what, value in differences.items())
    return f"from torch; changed {told} at the most"
