"""One score from two: of the whole image, and of its patches."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad.operators.arguments import check_choice

MODES = ("image", "patch", "both")
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Combined:
    """The mean of image score and patch score, each in deviations of the good images from theirs.

    In the mode `patch` the patch score alone.

    Attributes:
        mode: `patch` or `both`.
        image: mean and standard deviation of the image scores of the images in the bank, none of
            which saw itself.
        patch: the same of their patch scores.
    """

    mode: str
    image: tuple[float, float]
    patch: tuple[float, float]

    @classmethod
    def fit(cls, mode: str, image_scores: Scores, patch_scores: Scores) -> Self:
        """Learn from good images (n,)."""
        return cls(mode, _mean_and_deviation(image_scores), _mean_and_deviation(patch_scores))

    def __call__(self, image_scores: Scores, patch_scores: Scores) -> Scores:
        """(Q,) and (Q,) -> (Q,)."""
        if self.mode == "patch":
            return patch_scores
        image, patch = self.parts(image_scores, patch_scores)
        return (image + patch) / 2

    def parts(self, image_scores: Scores, patch_scores: Scores) -> tuple[Scores, Scores]:
        """Both standardised: 0 is the mean of the good images, 1 a deviation above it."""
        return _standardised(image_scores, *self.image), _standardised(patch_scores, *self.patch)

    def settings(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {"mode": self.mode, "image": list(self.image), "patch": list(self.patch)}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """What `settings` returned, after a trip through JSON."""
        (image, image_deviation), (patch, patch_deviation) = settings["image"], settings["patch"]
        return cls(
            check_choice("mode", settings["mode"], MODES[1:]),
            (float(image), float(image_deviation)),
            (float(patch), float(patch_deviation)),
        )


def _mean_and_deviation(scores: Scores) -> tuple[float, float]:
    return float(scores.mean()), float(scores.std()) or 1.0


def _standardised(scores: Scores, mean: float, deviation: float) -> Scores:
    return (scores - mean) / deviation
